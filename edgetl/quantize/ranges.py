"""From statistics to scale and zero point."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import UsageError
from edgetl.quantize.schemes import IntegerType
from edgetl.quantize.sketch import Pieces, Sketch
from edgetl.specs import Estimator

_Floats = NDArray[np.float64]

_COARSE = np.geomspace(1.0, 1e-3, 48)
"""Shares of a range that a search tries first, 16% apart; the fine ones around the best bring them to 2.5%.

Geometric, because one far value can stretch a range a thousandfold.
"""
_ENTROPY_BINS = 4096
_LITTLE = 1e-9
_LITTLE_NOISE = 1.12
_NARROW = 1e-6
_ENOUGH_SAMPLES = 20
_LEAST_SPREAD = 0.05
"""Of the logarithms of reaches between their quartiles: where samples are alike, 8% more is no outlier yet."""
_AT_ONCE = 8192
"""Numbers in an array of intermediate results: larger ones are given back to the system each time, and taken anew."""
_WEIGHT_SHARES = np.concatenate([np.linspace(1.0, 0.6, 33), np.geomspace(0.58, 0.1, 12)])


@dataclass(frozen=True, kw_only=True)
class QuantParams:
    """An affine quantization: real = scale · (integer - zero_point), for one tensor."""

    scale: float
    zero_point: int
    type: IntegerType

    @property
    def low(self) -> float:
        """Smallest real value that is represented."""
        return self.scale * (self.type.low - self.zero_point)

    @property
    def high(self) -> float:
        """Largest real value that is represented."""
        return self.scale * (self.type.high - self.zero_point)

    def fake_quantize(self, values: _Floats) -> _Floats:
        """What is left of the values after quantizing and dequantizing; any shape."""
        steps = np.rint(values / self.scale) + self.zero_point
        return (_clamp(steps, self.type.low, self.type.high) - self.zero_point) * self.scale


def params_of(low: float, high: float, type_: IntegerType) -> QuantParams:
    """The quantization of a range.

    The range is widened to hold zero, which is represented exactly: padding and ReLU depend on it (Jacob et al. 2018,
    arXiv:1712.05877, section 2.1). A symmetric type takes the larger magnitude on both sides.
    """
    scale, zero_point = _affine(np.asarray([low]), np.asarray([high]), type_)
    return QuantParams(scale=float(scale[0]), zero_point=int(zero_point[0]), type=type_)


def _affine(low: _Floats, high: _Floats, type_: IntegerType) -> tuple[_Floats, _Floats]:
    """Scales and zero points, (k,), of ranges, (k,)."""
    low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    if type_.symmetric:
        return _scales(np.maximum(-low, high) / type_.high, type_), np.zeros(low.shape)
    scale = _scales((high - low) / (type_.high - type_.low), type_)
    zero_point = _clamp(np.rint(type_.low - low / scale), type_.low, type_.high)
    # Rounding the zero point moved the range by up to half a step. Where both ends count it is widened until it holds
    # them again: values on a lattice, as pixels from -1 to 1, would else lie half-way between two integers.
    steps_up, steps_down = np.maximum(type_.high - zero_point, 1.0), np.maximum(zero_point - type_.low, 1.0)
    held = _scales(np.maximum(high / steps_up, -low / steps_down), type_)
    return np.where((low < 0.0) & (high > 0.0), np.maximum(scale, held), scale), zero_point


def _clamp(values: _Floats, low: float | _Floats, high: float | _Floats) -> _Floats:
    """As numpy.clip, which costs more than the work where arrays are small."""
    kept: _Floats = np.minimum(np.maximum(values, low), high)
    return kept


def activation_params(sketch: Sketch, estimator: Estimator, type_: IntegerType) -> QuantParams:
    """Scale and zero point of a tensor, from its statistics.

    Args:
        sketch: Of at least one value, all finite.
        estimator: Neither its method nor its outliers "search". minmax: the full range. percentile: the central share
            of values (Wu et al. 2020, arXiv:2004.09602). entropy: the range whose quantized distribution
            has the smallest Kullback-Leibler divergence from the real one (Migacz 2017). mse: the range with the
            smallest mean squared quantization error (Nagel et al. 2021, arXiv:2106.08295).
        type_: What is quantized to.

    Raises:
        UsageError: The sketch is empty.
    """
    if not sketch.total:
        raise UsageError("no value was seen: ranges need at least one calibration sample")
    if estimator.outliers == "drop":
        sketch = without_outliers(sketch)
    if estimator.method == "percentile":
        return params_of(*_percentile_range(sketch, estimator.percentile), type_)
    if estimator.method == "mse":
        return _least_error(sketch, type_)
    if estimator.method == "entropy":
        return _least_divergence(sketch, type_)
    return params_of(sketch.low, sketch.high, type_)


def signed_params(sketch: Sketch, estimator: Estimator, type_: IntegerType) -> QuantParams:
    """As :func:`activation_params`, for what a convolution reads.

    A tensor of both signs is quantized to the type's ``signed`` where that has at most 12% (0.5 dB) more noise.
    """
    chosen = activation_params(sketch, estimator, type_)
    if type_.signed is None or not sketch.low < 0.0 < sketch.high:
        return chosen
    signed = activation_params(sketch, estimator, type_.signed)
    return signed if noise_power(sketch, signed) <= _LITTLE_NOISE * noise_power(sketch, chosen) else chosen


def without_outliers(sketch: Sketch) -> Sketch:
    """What a sketch counted, without what lies beyond the reach of all samples but outliers.

    A sample is one where the logarithm of its reach, on either side of zero, is beyond the upper quartile by more than
    1.5 times the distance between the quartiles (Tukey 1977, Exploratory Data Analysis). A few samples that drive a
    network far out would otherwise have ranges made for them, with steps too wide for all others.

    Args:
        sketch: Of one tensor. Of fewer than 20 samples nothing is said, and it comes back as it is.
    """
    low, high = -_fence(-sketch.sample_lows), _fence(sketch.sample_highs)
    if low <= sketch.low and high >= sketch.high:
        return sketch
    return sketch.within(low, high)


def _fence(reaches: NDArray[np.float32]) -> float:
    """The largest reach that is no outlier; inf where nothing can be said. Reaches are above zero on their side."""
    if len(reaches) < _ENOUGH_SAMPLES:
        return math.inf
    there = reaches[reaches > 0].astype(np.float64)
    if not len(there):
        return 0.0
    lower, upper = np.quantile(np.log(there), (0.25, 0.75))
    limit = math.exp(upper + 1.5 * max(upper - lower, _LEAST_SPREAD))
    return float(there[there <= limit].max())


def noise_power(sketch: Sketch, params: QuantParams) -> float:
    """Mean squared error of quantizing what a sketch has counted, values lying evenly within their buckets."""
    scale, zero_point = np.asarray([params.scale]), np.asarray([float(params.zero_point)])
    return float(_Noise(sketch.pieces(), params.type)(scale, zero_point)[0])


def _percentile_range(sketch: Sketch, percentile: float) -> tuple[float, float]:
    outside = (100.0 - percentile) / 100.0
    # A tensor on one side of zero loses nothing on the other: the whole share comes off its tail.
    tail = outside / 2 if sketch.low < 0.0 < sketch.high else outside
    low = sketch.quantile(tail) if sketch.low < 0.0 else sketch.low
    high = sketch.quantile(1.0 - tail) if sketch.high > 0.0 else sketch.high
    if low == high == 0.0:  # nearly all values are zero: the rest still needs a range
        return sketch.low, sketch.high
    return low, high


class _Noise:
    """Mean squared quantization error of a histogram, exactly, were values spread evenly within each piece.

    The integral of the squared error up to x is the sawtooth's within the range, where the error is r(t) = t - round(t)
    steps and r² has the integral round(t)/12 + r(t)³/3, and a cube of the distance to the range beyond its ends.
    Pieces share their edges, so that integral is needed once per edge, weighted with by how much the density falls
    there. Taking each piece for its middle instead would see no rounding at all where pieces and steps are as wide as
    each other.
    """

    def __init__(self, pieces: Pieces, type_: IntegerType, *, join: int = 1) -> None:
        """Of the pieces of a sketch, with so many neighbours taken for one, quantized to a type."""
        self._type = type_
        lower, upper, counts = pieces
        starts = np.arange(0, len(counts), join)
        lower, upper, weights = lower[starts], np.maximum.reduceat(upper, starts), np.add.reduceat(counts, starts)
        weights = weights / weights.sum()
        # Where a piece is a single value, or nearly, its density would drown the difference of the integrals.
        wide = upper - lower > _NARROW * np.maximum(np.abs(lower), np.abs(upper))
        self._points, self._point_weights = lower[~wide], weights[~wide]
        density = weights[wide] / (upper[wide] - lower[wide])
        self._edges, places = np.unique(np.concatenate([lower[wide], upper[wide]]), return_inverse=True)
        self._falls = np.bincount(places, weights=np.concatenate([-density, density]), minlength=len(self._edges))

    def __call__(self, scale: _Floats, zero_point: _Floats) -> _Floats:
        """The errors, (k,), of quantizations with scales and zero points (k,)."""
        rows = max(1, _AT_ONCE // max(1, len(self._edges)))
        parts = [slice(start, start + rows) for start in range(0, len(scale), rows)]
        return np.concatenate([self._errors(scale[part, None], zero_point[part, None]) for part in parts])

    def _errors(self, scale: _Floats, zero_point: _Floats) -> _Floats:
        low, high = scale * (self._type.low - zero_point), scale * (self._type.high - zero_point)
        edges = self._edges
        integral = _sawtooth(_clamp(edges, low, high) / scale)
        integral *= scale**3
        # The edges that any of the ranges leaves out; that of a cube within the range is zero.
        first, last = edges.searchsorted((low.max(), high.min()))
        integral[:, :first] += _cube(np.minimum(edges[:first] - low, 0.0))
        integral[:, last:] += _cube(np.maximum(edges[last:] - high, 0.0))
        points = _clamp(np.rint(self._points / scale) + zero_point, self._type.low, self._type.high)
        error = (points - zero_point) * scale - self._points
        result: _Floats = integral @ self._falls + (error * error) @ self._point_weights
        return result


def _sawtooth(steps: _Floats) -> _Floats:
    """The integral of the squared distance to the nearest integer, from 0 to each; an odd function."""
    whole = np.rint(steps)
    rest = steps - whole
    result: _Floats = whole / 12.0 + rest * rest * rest / 3.0
    return result


def _cube(beyond: _Floats) -> _Floats:
    """The integral of the squared distance from 0."""
    result: _Floats = beyond * beyond * beyond / 3.0
    return result


def _least_error(sketch: Sketch, type_: IntegerType) -> QuantParams:
    """Shrink both ends together, then each alone: the coordinate descent of an error that is smooth in both."""
    pieces = sketch.pieces()
    rough, noise = _Noise(pieces, type_, join=8), _Noise(pieces, type_)

    def error(low: _Floats | float, high: _Floats | float, of: _Noise = noise) -> _Floats:
        return of(*_affine(np.asarray(low), np.asarray(high), type_))

    share = _search(
        lambda s: error(s * sketch.low, s * sketch.high), lambda s: error(s * sketch.low, s * sketch.high, rough)
    )
    low, high = share * sketch.low, share * sketch.high
    if not type_.symmetric and sketch.low < 0.0 < sketch.high:
        for _ in range(2):
            ends = low, high
            low = ends[0] * _fine(lambda s: error(s * ends[0], ends[1]), 0.8, 1.25)  # noqa: B023 - used at once
            high = ends[1] * _fine(lambda s: error(low, s * ends[1]), 0.8, 1.25)  # noqa: B023 - used at once
        low, high = max(low, sketch.low), min(high, sketch.high)
    return params_of(low, high, type_)


_Errors = Callable[[_Floats], _Floats]
"""Of shares of a range, (k,), the errors, (k,)."""


def _search(error: _Errors, rough: _Errors | None = None, *, grid: _Floats = _COARSE) -> float:
    """The share of a range with the smallest error: a coarse geometric grid, then a fine one around its best."""
    place = int(np.argmin((rough or error)(grid)))
    return _fine(error, float(grid[max(0, place - 1)]), float(grid[min(len(grid) - 1, place + 1)]))


def _fine(error: _Errors, first: float, last: float) -> float:
    shares = np.geomspace(first, last, 13)
    return float(shares[np.argmin(error(shares))])


def _least_divergence(sketch: Sketch, type_: IntegerType) -> QuantParams:
    """The range with the smallest Kullback-Leibler divergence (Migacz 2017, 8-bit inference with TensorRT).

    A threshold of the magnitude is searched, as there: an end nearer to zero than it stays where it is. The reference
    distribution holds what lies outside in its first and last bin; the quantized one spreads the mass of each step
    evenly over the bins of the step that are not empty.
    """
    reach = max(-sketch.low, sketch.high)

    def within(shares: _Floats) -> tuple[_Floats, _Floats]:
        return np.maximum(sketch.low, -shares * reach), np.minimum(sketch.high, shares * reach)

    edges = np.linspace(min(sketch.low, 0.0), max(sketch.high, 0.0), _ENTROPY_BINS + 1)
    mass = np.diff(_cumulative(sketch, edges))
    if not mass.any():  # as where there are but a few single values
        return params_of(sketch.low, sketch.high, type_)
    divergence = _Divergence(edges, mass, type_)
    share = _search(lambda shares: divergence(*_affine(*within(shares), type_)), grid=_COARSE[_COARSE > 0.01])
    low, high = within(np.asarray([share]))
    return params_of(float(low[0]), float(high[0]), type_)


class _Divergence:
    """Kullback-Leibler divergence of a quantized distribution from the real one, Σ p · log(p / q).

    Within a step q is the same for all bins that are not empty, so that sums over a step's bins are all that is
    needed: differences of sums from the first bin on. Where only p has mass, q has a little.
    """

    def __init__(self, edges: _Floats, mass: _Floats, type_: IntegerType) -> None:
        """Of a histogram: the edges of its bins, (n + 1,), and the mass of each, (n,); quantized to a type."""
        self._middle = (edges[:-1] + edges[1:]) / 2
        self._mass = mass
        self._sums, self._filled, self._own = (
            np.concatenate([[0.0], np.cumsum(part)]) for part in (mass, mass > 0, _times_log(mass))
        )
        self._between = np.arange(type_.low, type_.high + 2) - 0.5
        """The middles between integers."""

    def __call__(self, scale: _Floats, zero_point: _Floats) -> _Floats:
        """The divergences, (k,), of quantizations with scales and zero points (k,)."""
        places = self._middle.searchsorted((self._between - zero_point[:, None]) * scale[:, None])
        first, last = places[:, 0], places[:, -1]
        sums, filled = (whole[places[:, 1:]] - whole[places[:, :-1]] for whole in (self._sums, self._filled))
        kept, everything = self._sums[last] - self._sums[first], self._sums[-1]
        nothing = kept <= 0.0
        log_q = np.log(np.maximum(sums / np.maximum(filled, 1.0) / np.where(nothing, 1.0, kept)[:, None], _LITTLE))
        own = self._own[last] - self._own[first]
        crossed = np.einsum("ij,ij->i", sums, log_q)
        # What lies outside counts as the first and the last bin's.
        for bins, more in ((first, self._sums[first]), (last - 1, everything - self._sums[last])):
            mass = self._mass[bins]
            own += _times_log(mass + more) - _times_log(mass)
            step = (places <= bins[:, None]).sum(axis=1) - 1
            there = np.take_along_axis(log_q, np.clip(step, 0, log_q.shape[1] - 1)[:, None], axis=1)[:, 0]
            crossed += more * np.where(mass > 0, there, math.log(_LITTLE))
        return np.where(nothing, np.inf, (own - crossed) / everything - math.log(everything))


def _times_log(values: _Floats | float) -> _Floats:
    """x · log(x), 0 for 0."""
    result: _Floats = values * np.log(np.maximum(values, 1e-300))
    return result


def _cumulative(sketch: Sketch, edges: _Floats) -> _Floats:
    """Number of values up to each edge, evenly spread within their buckets.

    Zeros are left out: every quantization represents them exactly, and the half of all values that a ReLU makes zero
    would be the only thing that a divergence sees. So are single values, as the bound of a ReLU6.
    """
    lower, upper, counts = sketch.pieces()
    spread = lower < upper
    if not spread.any():
        return np.zeros(len(edges))
    ends = np.stack([lower[spread], upper[spread]], axis=1).reshape(-1)
    steps = np.stack([np.zeros(int(spread.sum())), counts[spread]], axis=1).reshape(-1)
    cumulative: _Floats = np.interp(edges, ends, np.cumsum(steps))
    return cumulative


def weight_scales(
    weights: NDArray[np.floating], axis: int | None, estimator: Estimator, type_: IntegerType
) -> NDArray[np.float32]:
    """Symmetric scales of a weight tensor.

    Args:
        weights: Any shape.
        axis: The channel axis; None for one scale for the whole tensor.
        estimator: minmax; percentile of the magnitudes; or mse per channel over the exact weights. entropy is for
            activations alone: a channel of weights has too few values for a distribution.
        type_: A symmetric integer type.

    Returns:
        float32, shape (channels,), or () without an axis. A channel of zeros has scale 1.
    """
    rows = np.asarray(weights, dtype=np.float32)
    rows = rows.reshape(1, -1) if axis is None else np.moveaxis(rows, axis, 0).reshape(rows.shape[axis], -1)
    reach = np.abs(rows).max(axis=1).astype(np.float64)
    if estimator.method == "percentile":
        inner = np.percentile(np.abs(rows), estimator.percentile, axis=1)
        reach = np.where(inner > 0, inner, reach)
    elif estimator.method == "mse":
        reach = _weights_reach(rows, reach, type_)
    scales = np.where(reach > 0, np.maximum(reach / type_.high, _TINY), 1.0)
    if type_.scale_type == "float16":
        scales = _to_float16(scales, upward=True)
    result: NDArray[np.float32] = scales.astype(np.float32)
    return result.reshape(()) if axis is None else result


def _weights_reach(rows: NDArray[np.float32], reach: _Floats, type_: IntegerType) -> _Floats:
    """Per channel the reach with the smallest squared error over the exact weights."""
    best = np.full(len(rows), np.inf)
    chosen: _Floats = reach.copy()
    safe = np.where(reach > 0, reach, 1.0)
    for share in _WEIGHT_SHARES:
        wanted = share * safe / type_.high
        if type_.scale_type == "float16":  # as it will be, which may be 0.1% more
            wanted = _to_float16(wanted, upward=True)
        scales = wanted.astype(np.float32)[:, None]
        steps = np.rint(rows / np.maximum(scales, np.float32(_TINY)))
        np.clip(steps, type_.low, type_.high, out=steps)
        steps *= scales
        steps -= rows
        error = np.einsum("ij,ij->i", steps, steps, dtype=np.float64)
        better = error < best
        best[better], chosen[better] = error[better], share * reach[better]
    return chosen


_TINY = float(np.finfo(np.float32).tiny) * 2**10
_TINY_HALF = float(np.finfo(np.float16).smallest_subnormal) * 2**6


def _scales(values: _Floats, type_: IntegerType) -> _Floats:
    """Usable scales, rounded down to their type.

    Down, because engines drop a ReLU6 before a quantizer only where 255 steps do not reach beyond six.
    """
    if type_.scale_type == "float16":
        tiny, rounded = _TINY_HALF, _to_float16(values, upward=False)
    else:
        nearest = values.astype(np.float32)
        # Compared as float64: numpy would round the value to float32 first, and find the two equal.
        above = nearest.astype(np.float64) > values
        tiny, rounded = _TINY, np.where(above, np.nextafter(nearest, np.float32(0.0)), nearest).astype(np.float64)
    result: _Floats = np.where(values <= 0.0, 1.0, np.maximum(rounded, tiny))
    return result


def _to_float16(values: _Floats, *, upward: bool) -> _Floats:
    """The nearest float16 on one side; upward for weights, whose largest must not be clipped by a rounded scale."""
    kept = np.clip(values, _TINY_HALF, float(np.finfo(np.float16).max))
    rounded = kept.astype(np.float16)
    wrong = rounded.astype(np.float64) < kept if upward else rounded.astype(np.float64) > kept
    towards = np.float16(np.inf if upward else 0.0)
    result: _Floats = np.where(wrong, np.nextafter(rounded, towards), rounded).astype(np.float64)
    return result
