"""What calibration remembers of a tensor: a mergeable histogram of its values, whatever their number.

A float32 is counted in the bucket of its upper sixteen bits (sign, exponent, seven bits of mantissa: a bfloat16).
No range has to be guessed beforehand, merging is addition, and neither the order of the samples nor the size of a
batch can change a count. A bucket is at most 1/128 of its value wide; minimum and maximum are exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BUCKETS = 1 << 16
_CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Sketch:
    """Statistics of all values of one tensor."""

    counts: NDArray[np.int64]
    """Shape (65536,): number of values by the upper sixteen bits of their float32."""
    low: float
    """Smallest value; inf of an empty sketch."""
    high: float
    """Largest value; -inf of an empty sketch."""
    channel_sums: NDArray[np.float64]
    """Shape (channels,): sum of the values of each channel, axis 1; empty for a tensor without one."""

    @classmethod
    def empty(cls) -> Sketch:
        """A sketch of no values: the neutral element of :meth:`merge`."""
        return cls(counts=np.zeros(BUCKETS, dtype=np.int64), low=np.inf, high=-np.inf, channel_sums=np.zeros(0))

    @classmethod
    def of(cls, values: NDArray[np.float32]) -> Sketch:
        """The sketch of an array.

        Args:
            values: float32, any shape; axis 0 is the batch and axis 1 the channels, where there are as many. NaN and
                Inf are counted in buckets of their own; see :attr:`finite`.
        """
        flat = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
        if not flat.size:
            return cls.empty()
        counts = np.zeros(BUCKETS, dtype=np.int64)
        upper = flat.view(np.uint16)[1::2] if np.little_endian else flat.view(np.uint16)[0::2]
        for start in range(0, upper.size, _CHUNK):  # bincount widens to int64: in pieces, or it doubles the memory
            counts += np.bincount(upper[start : start + _CHUNK], minlength=BUCKETS)
        with np.errstate(invalid="ignore", over="ignore"):
            sums = _channel_sums(np.asarray(values, dtype=np.float32))
        return cls(counts=counts, low=float(flat.min()), high=float(flat.max()), channel_sums=sums)

    @property
    def total(self) -> int:
        """Number of values."""
        return int(self.counts.sum())

    @property
    def finite(self) -> bool:
        """Whether there is neither NaN nor Inf among the values."""
        return not (self.counts[0x7F80:0x8000].any() or self.counts[0xFF80:].any())

    def merge(self, other: Sketch) -> Sketch:
        """The sketch of both sets of values together; associative and commutative, bit for bit."""
        return Sketch(
            counts=self.counts + other.counts,
            low=float(np.minimum(self.low, other.low)),  # np.minimum keeps NaN, Python's min may lose it
            high=float(np.maximum(self.high, other.high)),
            channel_sums=self.channel_sums + other.channel_sums
            if self.channel_sums.shape == other.channel_sums.shape
            else (self.channel_sums if self.channel_sums.size else other.channel_sums),
        )

    def channel_means(self) -> NDArray[np.float64] | None:
        """Mean of each channel, shape (channels,); None for a tensor without channels."""
        if not self.channel_sums.size:
            return None
        return self.channel_sums * (self.channel_sums.size / self.total)

    def points(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """The distribution as weighted points, ascending.

        Returns:
            Values, float64, shape (n,): the middle of each bucket that is not empty, within [low, high]; and the
            number of values in each, int64, shape (n,).
        """
        filled = _ASCENDING[self.counts[_ASCENDING] > 0]
        return np.clip(_MIDDLE[filled], self.low, self.high), self.counts[filled]

    def quantile(self, share: float) -> float:
        """The value below which ``share`` (0 to 1) of all values lie, to the resolution of a bucket."""
        values, counts = self.points()
        rank = share * (int(counts.sum()) - 1)
        return float(values[np.searchsorted(np.cumsum(counts) - 1, rank, side="left")])


def _channel_sums(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Rows are summed in float32, pairwise, as NumPy does along contiguous axes; everything above in float64."""
    if values.ndim < 2:
        return np.zeros(0)
    rows = values.reshape(values.shape[0], values.shape[1], -1).sum(axis=2)
    sums: NDArray[np.float64] = rows.sum(axis=0, dtype=np.float64)
    return sums


def _middles() -> NDArray[np.float64]:
    """The middle of every bucket as float64; zeros of both signs are exactly zero."""
    bits = (np.arange(BUCKETS, dtype=np.uint32) << 16) | 0x8000
    bits[[0x0000, 0x8000]] = 0
    with np.errstate(invalid="ignore"):  # the buckets of NaN
        return bits.view(np.float32).astype(np.float64)


_MIDDLE = _middles()
# Negative floats grow in magnitude with their bits: from -Inf down to -0.0, then from 0.0 up.
_ASCENDING = np.concatenate([np.arange(0xFF80, 0x7FFF, -1), np.arange(0x0000, 0x7F81)])
