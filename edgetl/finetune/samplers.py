"""The order of samples as a pure function of seed and epoch, and the batches of a whole phase."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Key = tuple[int, int]
"""Epoch, from 0, and index of a sample: what a data set is asked for."""


@dataclass(frozen=True, kw_only=True)
class Batches:
    """The batches of a phase from some step on; a batch sampler for a torch DataLoader.

    Every batch is the same whatever ran before, in whatever process: an interrupted training goes on with it, and
    several processes share it.
    """

    labels: NDArray[np.int64]
    """Of all samples, (n,)."""
    batch_size: int
    """Samples per step, of all processes together."""
    epochs: int
    seed: int
    balanced: bool = False
    """Draw from every class alike, with replacement, as many samples per epoch as there are."""
    first_step: int = 0
    rank: int = 0
    """Of this process."""
    world: int = 1
    """Number of processes."""

    @property
    def per_epoch(self) -> int:
        """Steps per epoch. A last batch with one sample, or none, for a process is left out: BatchNorm cannot learn."""
        whole, rest = divmod(len(self.labels), self.batch_size)
        return max(1, whole + (rest >= 2 * self.world))

    @property
    def steps(self) -> int:
        """Steps of the whole phase."""
        return self.per_epoch * self.epochs

    def size(self, step: int) -> int:
        """Samples of a step, of all processes together; the last batch of an epoch may be smaller."""
        return min(self.batch_size, len(self.labels) - step % self.per_epoch * self.batch_size)

    def __len__(self) -> int:
        return self.steps - self.first_step

    def __iter__(self) -> Iterator[list[Key]]:
        for epoch in range(self.first_step // self.per_epoch, self.epochs):
            begin = self.first_step % self.per_epoch if epoch == self.first_step // self.per_epoch else 0
            order = self.order(epoch)
            for place in range(begin, self.per_epoch):
                batch = order[place * self.batch_size : (place + 1) * self.batch_size]
                yield [(epoch, int(index)) for index in batch[self.rank :: self.world]]

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The samples of an epoch in their order, (n,)."""
        random = np.random.default_rng((self.seed, epoch))
        if not self.balanced:
            return random.permutation(len(self.labels))
        classes = np.unique(self.labels)
        members = [np.flatnonzero(self.labels == label) for label in classes]
        drawn = random.integers(len(classes), size=len(self.labels))
        return np.asarray([members[label][random.integers(len(members[label]))] for label in drawn], dtype=np.int64)
