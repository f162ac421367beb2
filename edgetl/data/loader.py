"""Samples as tensors: one at a time for a training library, or as batches that threads decode ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from edgetl.data.dataset import Sample
from edgetl.data.verify import threads
from edgetl.errors import UsageError
from edgetl.runtime.preprocessing import Array, Preprocessing

if TYPE_CHECKING:
    import torch

_AHEAD = 2
Label = NDArray[np.int64]


@dataclass(frozen=True)
class Samples(Sequence[tuple[Array, Label]]):
    """Samples that become tensors when they are asked for; it can be pickled and given to a torch DataLoader."""

    samples: tuple[Sample, ...]
    preprocessing: Preprocessing

    def __len__(self) -> int:
        return len(self.samples)

    @overload
    def __getitem__(self, index: int) -> tuple[Array, Label]: ...

    @overload
    def __getitem__(self, index: slice) -> Samples: ...

    def __getitem__(self, index: int | slice) -> tuple[Array, Label] | Samples:
        """Preprocess a sample; a slice gives the samples of that slice, not yet read.

        Returns:
            The array that the contract makes of it, and the label: int64, of shape (), or (classes,) where a sample may
            have several.

        Raises:
            IndexError: There is no such sample.
            DataError: It can no longer be read.
        """
        if isinstance(index, slice):
            return Samples(self.samples[index], self.preprocessing)
        sample = self.samples[index]
        return self.preprocessing(sample.raw), np.asarray(sample.label, dtype=np.int64)


@dataclass(frozen=True)
class KeyedSamples:
    """Samples by key (epoch, index), as training asks for them; every epoch has the same."""

    samples: Samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Array, Label]:
        """See :meth:`Samples.__getitem__`."""
        return self.samples[key[1]]

    def collate(self, pairs: Sequence[tuple[Array, Label]]) -> tuple[torch.Tensor, torch.Tensor]:
        """A batch of samples, as the contract puts them together."""
        import torch

        arrays = self.samples.preprocessing.together([array for array, _ in pairs])
        return torch.from_numpy(arrays), torch.from_numpy(np.stack([label for _, label in pairs]))


def batches(samples: Samples, batch_size: int) -> Generator[tuple[Array, Label], None, None]:
    """All samples in their order, as batches; the last one may be smaller.

    Threads decode the next batch while the caller works on one. At most three batches are alive at once: the one
    that the caller holds and two that are being filled. Closing the generator stops the threads.

    Args:
        samples: What to decode.
        batch_size: Samples per batch.

    Returns:
        A generator of arrays of shape (n, *input_shape), owned by the caller, and int64 labels of shape (n,) or
        (n, classes).

    Raises:
        UsageError: ``batch_size`` is below 1; raised at once.
        DataError: A sample can no longer be read; raised where its batch would have come.
    """
    if batch_size < 1:
        raise UsageError(f"the batch size is {batch_size}; it must be at least 1")
    return _batches(samples, batch_size)


class _Pending:
    """A batch that threads fill, a run of samples each."""

    def __init__(self, pool: ThreadPoolExecutor, samples: Samples) -> None:
        self._samples = samples
        self.labels = np.asarray([sample.label for sample in samples.samples], dtype=np.int64)
        shape = samples.preprocessing.input_shape
        sizes = [size for size in shape if isinstance(size, int)]
        # Where all samples are of one shape, each is written to its place; else they wait for each other.
        self._arrays: Any = [None] * len(samples)
        if len(sizes) == len(shape):
            self._arrays = np.empty((len(samples), *sizes), dtype=samples.preprocessing.dtype)
        step = max(1, len(samples) // (4 * threads()))
        whole = range(len(samples))
        self._parts = [pool.submit(self._fill, whole[start : start + step]) for start in whole[::step]]

    def _fill(self, part: range) -> None:
        for index in part:
            self._arrays[index] = self._samples[index][0]

    def finished(self) -> Array:
        """The batch, when it is complete; it is the caller's from here on."""
        for part in self._parts:
            part.result()
        arrays, self._arrays = self._arrays, None
        batch: Array = arrays if isinstance(arrays, np.ndarray) else self._samples.preprocessing.together(arrays)
        return batch


def _batches(samples: Samples, batch_size: int) -> Generator[tuple[Array, Label], None, None]:
    starts = deque(range(0, len(samples), batch_size))
    queue: deque[_Pending] = deque()
    pool = ThreadPoolExecutor(threads(), thread_name_prefix="edgetl-batches")
    try:
        while starts or queue:
            while starts and len(queue) < _AHEAD:
                start = starts.popleft()
                queue.append(_Pending(pool, samples[start : start + batch_size]))
            pending = queue.popleft()
            labels, arrays = pending.labels, pending.finished()
            del pending
            yield arrays, labels
            del arrays, labels
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
