"""Samples as tensors: one at a time for a training library, or as batches that threads decode ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from edgetl.data.dataset import Sample
from edgetl.data.verify import threads
from edgetl.errors import UsageError
from edgetl.runtime.preprocessing import ImagePreprocessing

_AHEAD = 2


@dataclass(frozen=True)
class ImageSamples(Sequence[tuple[NDArray[np.float32], int]]):
    """Samples that become tensors when they are asked for; it can be pickled and given to a torch DataLoader."""

    samples: tuple[Sample, ...]
    preprocessing: ImagePreprocessing

    def __len__(self) -> int:
        return len(self.samples)

    @overload
    def __getitem__(self, index: int) -> tuple[NDArray[np.float32], int]: ...

    @overload
    def __getitem__(self, index: slice) -> ImageSamples: ...

    def __getitem__(self, index: int | slice) -> tuple[NDArray[np.float32], int] | ImageSamples:
        """Decode and preprocess a sample; a slice gives the samples of that slice, not yet decoded.

        Returns:
            float32 of shape (3, height, width), and the label.

        Raises:
            IndexError: There is no such sample.
            ImageError: It can no longer be decoded.
        """
        if isinstance(index, slice):
            return ImageSamples(self.samples[index], self.preprocessing)
        sample = self.samples[index]
        return self.preprocessing(sample.path), sample.label


def batches(
    samples: ImageSamples, batch_size: int
) -> Generator[tuple[NDArray[np.float32], NDArray[np.int64]], None, None]:
    """All samples in their order, as batches; the last one may be smaller.

    Threads decode the next batch while the caller works on one. At most three batches are alive at once: the one
    that the caller holds and two that are being filled. Closing the generator stops the threads.

    Args:
        samples: What to decode.
        batch_size: Samples per batch.

    Returns:
        A generator of float32 arrays of shape (n, 3, height, width), owned by the caller, and int64 labels of
        shape (n,).

    Raises:
        UsageError: ``batch_size`` is below 1; raised at once.
        ImageError: A sample can no longer be decoded; raised where its batch would have come.
    """
    if batch_size < 1:
        raise UsageError(f"the batch size is {batch_size}; it must be at least 1")
    return _batches(samples, batch_size)


@dataclass
class _Pending:
    images: NDArray[np.float32]
    labels: NDArray[np.int64]
    parts: list[Future[None]]


def _batches(
    samples: ImageSamples, batch_size: int
) -> Generator[tuple[NDArray[np.float32], NDArray[np.int64]], None, None]:
    starts = deque(range(0, len(samples), batch_size))
    queue: deque[_Pending] = deque()
    pool = ThreadPoolExecutor(threads(), thread_name_prefix="edgetl-batches")
    try:
        while starts or queue:
            while starts and len(queue) < _AHEAD:
                start = starts.popleft()
                queue.append(_begin(pool, samples[start : start + batch_size]))
            batch = queue.popleft()
            for part in batch.parts:
                part.result()
            images, labels = batch.images, batch.labels
            del batch  # its memory is the caller's from here on
            yield images, labels
            del images, labels
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(pool: ThreadPoolExecutor, samples: ImageSamples) -> _Pending:
    """Allocate a batch and let the threads fill it in place, a run of samples each."""
    contract = samples.preprocessing
    images = np.empty((len(samples), 3, contract.height, contract.width), dtype=np.float32)
    labels = np.asarray([sample.label for sample in samples.samples], dtype=np.int64)

    def fill(part: range) -> None:
        for index in part:
            images[index] = samples[index][0]

    step = max(1, len(samples) // (4 * threads()))
    whole = range(len(samples))
    parts = [pool.submit(fill, whole[start : start + step]) for start in whole[::step]]
    return _Pending(images, labels, parts)
