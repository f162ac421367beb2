"""From statistics to scale and zero point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import UsageError
from edgetl.quantize.schemes import IntegerType
from edgetl.quantize.sketch import Sketch
from edgetl.specs import Estimator

_Floats = NDArray[np.float64]

_COARSE = np.geomspace(1.0, 1e-3, 48)
"""Shares of a range that a search tries first, 16% apart; the fine ones around the best bring them to 2.5%.

Geometric, because one far value can stretch a range a thousandfold.
"""
_ENTROPY_BINS = 4096
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
        kept: _Floats = np.clip(steps, self.type.low, self.type.high)
        return (kept - self.zero_point) * self.scale


def params_of(low: float, high: float, type_: IntegerType) -> QuantParams:
    """The quantization of a range.

    The range is widened to hold zero, which is represented exactly: padding and ReLU depend on it (Jacob et al. 2018,
    arXiv:1712.05877, section 2.1). A symmetric type takes the larger magnitude on both sides.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if type_.symmetric:
        reach = max(-low, high)
        return QuantParams(scale=_scale(reach / type_.high, type_), zero_point=0, type=type_)
    scale = _scale((high - low) / (type_.high - type_.low), type_)
    zero_point = int(np.clip(np.rint(type_.low - low / scale), type_.low, type_.high))
    return QuantParams(scale=scale, zero_point=zero_point, type=type_)


def activation_params(sketch: Sketch, estimator: Estimator, type_: IntegerType) -> QuantParams:
    """Scale and zero point of a tensor, from its statistics.

    Args:
        sketch: Of at least one value, all finite.
        estimator: minmax: the full range. percentile: the central share of values. entropy: the range whose quantized
            distribution has the smallest Kullback-Leibler divergence from the real one. mse: the range with the
            smallest mean squared quantization error.
        type_: What is quantized to.

    Raises:
        UsageError: The sketch is empty.
    """
    if not sketch.total:
        raise UsageError("no value was seen: ranges need at least one calibration sample")
    if estimator.method == "percentile":
        return params_of(*_percentile_range(sketch, estimator.percentile), type_)
    if estimator.method == "mse":
        return _least_error(sketch, type_)
    if estimator.method == "entropy":
        return _least_divergence(sketch, type_)
    return params_of(sketch.low, sketch.high, type_)


def noise_power(sketch: Sketch, params: QuantParams) -> float:
    """Mean squared error of quantizing what a sketch has counted, values lying evenly within their buckets."""
    return float(_Noise(sketch)(params))


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

    With the sawtooth r(t) = t - round(t), the integral of r² from 0 to u is round(u)/12 + r(u)³/3; beyond the ends of
    the range the error is the distance to them. Taking each piece for its middle instead would see no rounding at all
    where pieces and steps are as wide as each other.
    """

    def __init__(self, sketch: Sketch, *, join: int = 1) -> None:
        """Of a sketch, with so many neighbouring pieces taken for one."""
        lower, upper, counts = sketch.pieces()
        starts = np.arange(0, len(counts), join)
        weights = np.add.reduceat(counts, starts)
        self._weights = weights / weights.sum()
        self._lower, self._upper = lower[starts], np.maximum.reduceat(upper, starts)
        self._width = self._upper - self._lower

    def __call__(self, params: QuantParams) -> float:
        scale, low, high = params.scale, params.low, params.high
        inside = _sawtooth(np.clip(self._upper, low, high) / scale) - _sawtooth(np.clip(self._lower, low, high) / scale)
        above = _cube(self._upper - high) - _cube(self._lower - high)
        below = _cube(low - self._lower) - _cube(low - self._upper)
        # Where a piece is far narrower than a step, the difference of integrals is lost in rounding: take its middle.
        narrow = self._width <= 1e-3 * scale
        integral = inside * scale**3 + above + below
        middle = (self._lower + self._upper) / 2
        difference = params.fake_quantize(middle) - middle
        error = np.where(narrow, difference * difference, integral / np.where(narrow, 1.0, self._width))
        return float(self._weights @ error)


def _sawtooth(steps: _Floats) -> _Floats:
    whole = np.rint(steps)
    rest = steps - whole
    result: _Floats = whole / 12.0 + rest * rest * rest / 3.0
    return result


def _cube(beyond: _Floats) -> _Floats:
    kept = np.maximum(beyond, 0.0)
    result: _Floats = kept * kept * kept / 3.0
    return result


def _least_error(sketch: Sketch, type_: IntegerType) -> QuantParams:
    """Shrink both ends together, then each alone: the coordinate descent of an error that is smooth in both."""
    rough, noise = _Noise(sketch, join=8), _Noise(sketch)

    def error(low: float, high: float, of: _Noise = noise) -> float:
        return of(params_of(low, high, type_))

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


def _search(
    error: Callable[[float], float], rough: Callable[[float], float] | None = None, *, grid: _Floats = _COARSE
) -> float:
    """The share of a range with the smallest error: a coarse geometric grid, then a fine one around its best."""
    coarse = rough or error
    place = min(range(len(grid)), key=lambda index: coarse(float(grid[index])))
    return _fine(error, float(grid[max(0, place - 1)]), float(grid[min(len(grid) - 1, place + 1)]))


def _fine(error: Callable[[float], float], first: float, last: float) -> float:
    return min((float(share) for share in np.geomspace(first, last, 13)), key=error)


def _least_divergence(sketch: Sketch, type_: IntegerType) -> QuantParams:
    """The range with the smallest Kullback-Leibler divergence (Migacz 2017, 8-bit inference with TensorRT).

    A threshold of the magnitude is searched, as there: an end nearer to zero than it stays where it is. The reference
    distribution holds what lies outside in its first and last bin; the quantized one spreads the mass of each step
    evenly over the bins of the step that are not empty.
    """
    edges = np.linspace(min(sketch.low, 0.0), max(sketch.high, 0.0), _ENTROPY_BINS + 1)
    mass = np.diff(_cumulative(sketch, edges))
    middle = (edges[:-1] + edges[1:]) / 2
    reach = max(-sketch.low, sketch.high)

    def within(share: float) -> QuantParams:
        return params_of(max(sketch.low, -share * reach), min(sketch.high, share * reach), type_)

    def divergence(share: float) -> float:
        params = within(share)
        inside = (middle >= params.low - params.scale / 2) & (middle <= params.high + params.scale / 2)
        kept = mass[inside]
        if not kept.any():  # as where there are but a few single values
            return float("inf")
        reference = kept.copy()
        below = middle < params.low - params.scale / 2
        reference[0] += mass[below].sum()
        reference[-1] += mass[~inside & ~below].sum()
        steps = np.rint(middle[inside] / params.scale).astype(np.int64)
        steps -= steps[0]
        filled = kept > 0
        per_step = np.bincount(steps, weights=kept)
        bins = np.bincount(steps, weights=filled)
        spread = np.where(filled, per_step[steps] / np.maximum(bins[steps], 1.0), 0.0)
        return _divergence(reference / reference.sum(), spread / spread.sum())

    if edges[0] == edges[-1]:
        return params_of(sketch.low, sketch.high, type_)
    return within(_search(divergence, grid=_COARSE[_COARSE > 0.01]))


def _divergence(reference: _Floats, other: _Floats) -> float:
    """Kullback-Leibler divergence, with a little mass where only the reference has some."""
    filled = reference > 0
    return float((reference[filled] * np.log(reference[filled] / np.maximum(other[filled], 1e-9))).sum())


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
        scales = (share * safe / type_.high).astype(np.float32)[:, None]
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


def _scale(value: float, type_: IntegerType) -> float:
    """A usable scale, rounded down to its type.

    Down, because engines drop a ReLU6 before a quantizer only where 255 steps do not reach beyond six.
    """
    tiny = _TINY if type_.scale_type == "float32" else _TINY_HALF
    if value <= tiny:
        return 1.0 if value <= 0.0 else tiny
    if type_.scale_type == "float16":
        return float(_to_float16(np.asarray(value), upward=False))
    rounded = np.float32(value)
    # Compared as float64: numpy would round the Python float to float32 first, and find the two equal.
    return float(np.nextafter(rounded, np.float32(0.0)) if float(rounded) > value else rounded)


def _to_float16(values: _Floats, *, upward: bool) -> _Floats:
    """The nearest float16 on one side; upward for weights, whose largest must not be clipped by a rounded scale."""
    kept = np.clip(values, _TINY_HALF, float(np.finfo(np.float16).max))
    rounded = kept.astype(np.float16)
    wrong = rounded.astype(np.float64) < kept if upward else rounded.astype(np.float64) > kept
    towards = np.float16(np.inf if upward else 0.0)
    result: _Floats = np.where(wrong, np.nextafter(rounded, towards), rounded).astype(np.float64)
    return result
