"""Decode every image once: damaged ones are found before training starts, and content gets its digest."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from edgetl.errors import ImageError
from edgetl.runtime.preprocessing import Readable, decode

Progress = Callable[[int, int], None]
"""Called with the number of samples done and the total, from the thread that called the function."""

_MAX_NAMED = 20
_CHUNK = 16


def verify_images(sources: Sequence[Readable], *, max_pixels: int, progress: Progress | None = None) -> tuple[str, ...]:
    """Decode every image and hash its pixels.

    Args:
        sources: Image files, or parts of larger ones.
        max_pixels: An image with more is refused before its pixels are decoded.
        progress: See :data:`Progress`.

    Returns:
        The digest of each, in the order of ``sources``; see :func:`pixel_digest`.

    Raises:
        ImageError: Images are damaged, too large or not there; all are looked at, up to 20 are named.
    """
    chunks = [sources[start : start + _CHUNK] for start in range(0, len(sources), _CHUNK)]
    digests: list[str] = []
    problems: list[ImageError] = []

    def work(chunk: Iterable[Readable]) -> list[str | ImageError]:
        return [_digest_or_problem(source, max_pixels) for source in chunk]

    with ThreadPoolExecutor(threads(), thread_name_prefix="edgetl-verify") as pool:
        try:
            done = 0
            for results in pool.map(work, chunks):
                done += len(results)
                digests += [result for result in results if isinstance(result, str)]
                problems += [result for result in results if isinstance(result, ImageError)]
                if progress is not None:
                    progress(done, len(sources))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)  # an interruption must not wait for the whole data set
    if problems:
        raise _summary(problems, len(sources))
    return tuple(digests)


def pixel_digest(image: Image.Image) -> str:
    """SHA-256 of an image's size and RGB pixels, in hexadecimal: the same however the pixels were encoded.

    Args:
        image: From :func:`edgetl.runtime.preprocessing.decode`: mode RGB.
    """
    content = hashlib.sha256(f"{image.width}x{image.height}:".encode())
    content.update(image.tobytes())
    return content.hexdigest()


def threads() -> int:
    """How many threads decode: the processors that this process may use, at most 8."""
    return min(8, len(os.sched_getaffinity(0)))


def _digest_or_problem(source: Readable, max_pixels: int) -> str | ImageError:
    try:
        return pixel_digest(decode(source, max_pixels=max_pixels))
    except ImageError as error:
        return error


def _summary(problems: Sequence[ImageError], total: int) -> ImageError:
    if len(problems) == 1:
        return problems[0]
    listed = "\n".join(f"  {problem.message}" for problem in problems[:_MAX_NAMED])
    more = f"\n  … and {len(problems) - _MAX_NAMED} more" if len(problems) > _MAX_NAMED else ""
    hints = sorted({problem.hint for problem in problems if problem.hint})
    hint = "; ".join(hints) or "replace or remove these files"
    return ImageError(f"{len(problems)} of {total} images cannot be used:\n{listed}{more}", hint=hint)
