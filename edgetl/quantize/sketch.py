"""What calibration remembers of a tensor: a mergeable histogram of its values, whatever their number.

A float32 is counted in the bucket of its upper sixteen bits (sign, exponent, seven bits of mantissa: a bfloat16).
No range has to be guessed beforehand, merging is addition, and neither the order of the samples nor the size of a
batch can change a count. A bucket is at most 1/128 of its value wide. Minimum and maximum, of all values, of each
channel and of each sample, are exact. Sums and sums of squares are taken per sample in float32, in an order that only
the sample's shape decides, and added exactly from there on. ``benchmarks/sketches.py`` compares this with bins of equal
width.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgetl.quantize.exactsum import ExactSum

BUCKETS = 1 << 16
Pieces = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]
"""Lower ends, upper ends and counts, each of shape (n,)."""
_CHUNK = 1 << 17
"""Values that are looked at together; half a megabyte, and a megabyte once they are widened."""
_TERMS = 16
"""Samples whose sums are added at once."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sketch:
    """Statistics of all values of one tensor."""

    counts: NDArray[np.int64]
    """Shape (65536,): number of values by the upper sixteen bits of their float32."""
    channel_low: NDArray[np.float32]
    """Shape (channels,): smallest value of each channel; one channel where the tensor has no such axis."""
    channel_high: NDArray[np.float32]
    """Shape (channels,): largest value of each channel."""
    channel_sums: ExactSum
    """Sum of the values of each channel."""
    channel_squares: ExactSum
    """Sum of the squared values of each channel."""
    sample_lows: NDArray[np.float32]
    """Shape (samples,), ascending: the smallest value of each sample; a sample with an extreme shows as such."""
    sample_highs: NDArray[np.float32]
    """Shape (samples,), ascending: the largest value of each sample."""

    @classmethod
    def of(cls, values: NDArray[np.float32], *, channel_axis: int | None = 1) -> Sketch:
        """The sketch of an array.

        Args:
            values: float32, any shape; axis 0 is the batch. NaN and Inf are counted in buckets of their own and
                left out of the sums; see :attr:`finite`.
            channel_axis: The axis of the channels; None, or an axis that is not there: one channel.
        """
        building = SketchBuilder()
        for sample in np.atleast_1d(values):
            building.add(sample, channel_axis=None if channel_axis is None else channel_axis - 1)
        return building.sketch()

    @property
    def low(self) -> float:
        """Smallest value; inf of an empty sketch."""
        return float(self.channel_low.min(initial=np.inf))

    @property
    def high(self) -> float:
        """Largest value; -inf of an empty sketch."""
        return float(self.channel_high.max(initial=-np.inf))

    @property
    def total(self) -> int:
        """Number of values."""
        return int(self.counts.sum())

    @property
    def finite(self) -> bool:
        """Whether there is neither NaN nor Inf among the values."""
        return not (self.counts[0x7F80:0x8000].any() or self.counts[0xFF80:].any())

    @property
    def mean(self) -> float:
        """Mean of all values; NaN of an empty sketch."""
        return float(self.channel_sums.values().sum() / self.total) if self.total else float("nan")

    @property
    def mean_square(self) -> float:
        """Mean of all squared values; NaN of an empty sketch."""
        return float(self.channel_squares.values().sum() / self.total) if self.total else float("nan")

    @property
    def channel_reach(self) -> NDArray[np.float64]:
        """Largest magnitude in each channel, shape (channels,)."""
        return np.maximum(np.abs(self.channel_low), np.abs(self.channel_high)).astype(np.float64)

    def channel_means(self) -> NDArray[np.float64]:
        """Mean of each channel, shape (channels,)."""
        return self.channel_sums.values() * (self.channel_sums.size / max(self.total, 1))

    def merge(self, other: Sketch) -> Sketch:
        """The sketch of both sets of values together; associative and commutative, bit for bit.

        Raises:
            ValueError: The two have different numbers of channels, and neither is empty.
        """
        if not self.total or not other.total:
            return self if self.total else other
        if self.channel_low.shape != other.channel_low.shape:
            raise ValueError(f"sketches of {self.channel_low.size} and {other.channel_low.size} channels do not merge")
        return Sketch(
            counts=self.counts + other.counts,
            channel_low=np.minimum(self.channel_low, other.channel_low),
            channel_high=np.maximum(self.channel_high, other.channel_high),
            channel_sums=self.channel_sums.merge(other.channel_sums),
            channel_squares=self.channel_squares.merge(other.channel_squares),
            sample_lows=np.sort(np.concatenate([self.sample_lows, other.sample_lows])),
            sample_highs=np.sort(np.concatenate([self.sample_highs, other.sample_highs])),
        )

    def within(self, low: float, high: float) -> Sketch:
        """The values from one to the other alone, to the resolution of a bucket, as one channel without sums."""
        low, high = max(low, self.low), min(high, self.high)
        first, last = (0.0 if abs(end) < _LEAST else end for end in (low, high))  # what is so small counts as zero
        counts = np.where((first <= _UPPER) & (last >= _LOWER), self.counts, 0)
        return self._pooled(counts, low, high)

    def pooled(self, other: Sketch) -> Sketch:
        """Both sets of values together where their channels are not the same ones: as one channel, without sums."""
        return self._pooled(self.counts + other.counts, min(self.low, other.low), max(self.high, other.high))

    @staticmethod
    def _pooled(counts: NDArray[np.int64], low: float, high: float) -> Sketch:
        nothing = ExactSum(size=1)
        nobody = np.zeros(0, dtype=np.float32)
        return Sketch(
            counts=counts,
            channel_low=np.asarray([low], dtype=np.float32),
            channel_high=np.asarray([high], dtype=np.float32),
            channel_sums=nothing,
            channel_squares=nothing,
            sample_lows=nobody,
            sample_highs=nobody,
        )

    def pieces(self) -> Pieces:
        """The distribution as pieces of the number line, ascending.

        Returns:
            Lower ends and upper ends, within [low, high], and the number of values in each. A bucket ends where the
            next begins; zero, and a bucket that holds but an extreme, is a piece without width.
        """
        filled = _ASCENDING[self.counts[_ASCENDING] > 0]
        low, high = self.low, self.high
        return np.clip(_LOWER[filled], low, high), np.clip(_UPPER[filled], low, high), self.counts[filled]

    def quantile(self, share: float) -> float:
        """The value below which ``share`` (0 to 1) of all values lie, to the resolution of a bucket.

        Values are taken to lie evenly within their bucket, and between two values it is interpolated, as
        ``numpy.quantile`` does; 0 and 1 give the exact extremes.
        """
        lower, upper, counts = self.pieces()
        ends = np.cumsum(counts)
        rank = share * (int(ends[-1]) - 1)

        def value(whole: int) -> float:
            if whole in (0, int(ends[-1]) - 1):
                return self.high if whole else self.low
            place = int(np.searchsorted(ends, whole, side="right"))
            count = int(counts[place])
            inside = (whole - (int(ends[place]) - count)) / (count - 1) if count > 1 else 0.5
            return float(lower[place] + inside * (upper[place] - lower[place]))

        below, above = value(math.floor(rank)), value(math.ceil(rank))
        return below + (rank - math.floor(rank)) * (above - below)


class SketchBuilder:
    """A sketch under construction, sample by sample."""

    def __init__(self) -> None:
        self._counts = np.zeros(BUCKETS, dtype=np.int64)
        self._small: list[NDArray[np.uint16]] = []
        self._small_size = 0
        self._low: NDArray[np.float32] | None = None
        self._high: NDArray[np.float32] | None = None
        self._moments = ExactSum(size=0)
        """Sums, and behind them sums of squares: one vector, because each addition has a cost of its own."""
        self._terms: list[NDArray[np.float64]] = []
        """Of the moments, not yet added."""
        self._sample_lows: list[np.float32] = []
        self._sample_highs: list[np.float32] = []

    def add(self, sample: NDArray[np.float32], *, channel_axis: int | None) -> bool:
        """Count the values of one sample.

        Args:
            sample: float32, any shape, without a batch axis.
            channel_axis: Of the sample's axes; None, or one that is not there: one channel.

        Returns:
            False where there is NaN or Inf among them.
        """
        values = np.ascontiguousarray(sample, dtype=np.float32)
        if not values.size:
            return True
        rows = _by_channel(values, channel_axis)
        step = max(1, _CHUNK // rows.shape[1])
        # Channel by channel, all that is asked of a value is asked while the cache has it.
        found = [self._rows(rows[start : start + step]) for start in range(0, len(rows), step)]
        low, high, sums, squares = (np.concatenate(parts) for parts in zip(*found, strict=True))
        if self._low is None or self._high is None:
            self._low, self._high = low, high
            self._moments = ExactSum(size=2 * len(rows))
        else:
            self._low, self._high = np.minimum(self._low, low), np.maximum(self._high, high)
        self._sample_lows.append(low.min() + np.float32(0.0))  # -0.0 becomes 0.0: a sort may leave the two in any order
        self._sample_highs.append(high.max() + np.float32(0.0))
        finite = bool(np.isfinite(low).all() and np.isfinite(high).all())  # NaN wins in min and max
        if finite:
            self._terms.append(np.concatenate([sums, squares]))
            if len(self._terms) >= _TERMS:
                self._sum()
        return finite

    def sketch(self) -> Sketch:
        """What was counted so far."""
        self._flush()
        self._sum()
        nothing = np.zeros(0, dtype=np.float32)
        channels = self._moments.size // 2
        return Sketch(
            counts=self._counts.copy(),
            channel_low=nothing if self._low is None else self._low,
            channel_high=nothing if self._high is None else self._high,
            channel_sums=self._moments.part(0, channels),
            channel_squares=self._moments.part(channels, 2 * channels),
            sample_lows=np.sort(np.asarray(self._sample_lows, dtype=np.float32)),
            sample_highs=np.sort(np.asarray(self._sample_highs, dtype=np.float32)),
        )

    def _rows(
        self, rows: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float64], NDArray[np.float64]]:
        """Count some channels, (channels, n); their smallest and largest values, sums and sums of squares."""
        self._count(rows)
        with np.errstate(over="ignore", invalid="ignore"):
            sums, squares = rows.sum(axis=1), np.einsum("ij,ij->i", rows, rows)
        if not np.isfinite(sums).all() or not np.isfinite(squares).all():  # beyond 1.8e19 squared: the slow way
            with np.errstate(invalid="ignore"):
                sums = rows.sum(axis=1, dtype=np.float64)
                squares = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
        return rows.min(axis=1), rows.max(axis=1), sums.astype(np.float64), squares.astype(np.float64)

    def _count(self, rows: NDArray[np.float32]) -> None:
        """Small arrays wait for each other: a histogram of 65,536 buckets costs something of its own."""
        upper = np.ascontiguousarray(rows).reshape(-1).view(np.uint16)[1 if sys.byteorder == "little" else 0 :: 2]
        if upper.size >= _CHUNK // 2:
            for start in range(0, upper.size, _CHUNK):  # bincount widens to int64: in pieces that fit the cache
                self._tally(upper[start : start + _CHUNK])
            return
        self._small.append(upper.copy())  # the copy is half the size, and lets the sample go
        self._small_size += upper.size
        if self._small_size >= _CHUNK:
            self._flush()

    def _tally(self, upper: NDArray[np.uint16]) -> None:
        # Widened here, where other threads go on meanwhile; as long as the largest asks: short without negatives.
        found = np.bincount(upper.astype(np.intp))
        self._counts[: found.size] += found

    def _flush(self) -> None:
        if self._small:
            self._tally(np.concatenate(self._small))
            self._small, self._small_size = [], 0

    def _sum(self) -> None:
        if self._terms:
            self._moments.add(np.stack(self._terms))
            self._terms = []


def _by_channel(values: NDArray[np.float32], axis: int | None) -> NDArray[np.float32]:
    """Shape (channels, n)."""
    if axis is None or not -values.ndim <= axis < values.ndim:
        return values.reshape(1, -1)
    moved = np.moveaxis(values, axis, 0)
    return moved.reshape(moved.shape[0], -1)


def _edges() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where every bucket begins and ends, as float64; zeros of both signs are exactly zero."""
    bits = np.arange(BUCKETS, dtype=np.uint32) << 16
    with np.errstate(invalid="ignore"):  # the buckets of NaN
        near = bits.view(np.float32).astype(np.float64)
    far = np.append(near[1:], np.nan)  # of the next bucket, which is further from zero
    far[[0x0000, 0x8000]] = 0.0  # denormals this small are zeros to every engine
    return np.minimum(near, far), np.maximum(near, far)


_LOWER, _UPPER = _edges()
_LEAST = float(_LOWER[0x0001])
"""The smallest magnitude that is not counted as zero."""
# Negative floats grow in magnitude with their bits: from -Inf down to -0.0, then from 0.0 up.
_ASCENDING = np.concatenate([np.arange(0xFF80, 0x7FFF, -1), np.arange(0x0000, 0x7F81)])
