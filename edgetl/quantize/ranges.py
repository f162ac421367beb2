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

_STEPS = 48
"""Candidates of a coarse search, 16% apart; the fine one brings them to 1%."""


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

    def fake_quantize(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """What is left of the values after quantizing and dequantizing; any shape."""
        steps = np.rint(values / self.scale) + self.zero_point
        kept: NDArray[np.float64] = np.clip(steps, self.type.low, self.type.high)
        return (kept - self.zero_point) * self.scale


def params_of(low: float, high: float, type_: IntegerType) -> QuantParams:
    """The quantization of a range.

    The range is widened to hold zero, which is represented exactly: padding and ReLU depend on it (Jacob et al. 2018,
    arXiv:1712.05877, section 2.1). A symmetric type takes the larger magnitude on both sides.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if type_.symmetric:
        reach = max(-low, high)
        return QuantParams(scale=_scale(reach / type_.high), zero_point=0, type=type_)
    scale = _scale((high - low) / (type_.high - type_.low))
    zero_point = int(np.clip(np.rint(type_.low - low / scale), type_.low, type_.high))
    return QuantParams(scale=scale, zero_point=zero_point, type=type_)


def activation_params(sketch: Sketch, estimator: Estimator, type_: IntegerType) -> QuantParams:
    """Scale and zero point of a tensor, from its statistics.

    Args:
        sketch: Of at least one value, all finite.
        estimator: minmax; percentile (the central share of values); or mse, the range with the smallest mean
            squared quantization error over the histogram.
        type_: What is quantized to.
    """
    if not sketch.total:
        raise UsageError("no value was seen: ranges need at least one calibration sample")
    if estimator.method == "percentile":
        outside = (100.0 - estimator.percentile) / 100.0
        # A tensor on one side of zero loses nothing on the other: the whole share comes off its tail.
        two_sided = sketch.low < 0.0 < sketch.high
        tail = outside / 2 if two_sided else outside
        low = sketch.quantile(tail) if sketch.low < 0.0 else sketch.low
        high = sketch.quantile(1.0 - tail) if sketch.high > 0.0 else sketch.high
        if low == high == 0.0:  # nearly all values are zero: the rest still needs a range
            low, high = sketch.low, sketch.high
        return params_of(low, high, type_)
    if estimator.method == "mse":
        return _least_error(sketch, type_)
    return params_of(sketch.low, sketch.high, type_)


def _least_error(sketch: Sketch, type_: IntegerType) -> QuantParams:
    """Shrink both ends together, then each alone: the coordinate descent of an error that is smooth in both."""
    values, counts = sketch.points()
    weights = counts / counts.sum()

    def error(low: float, high: float) -> float:
        params = params_of(low, high, type_)
        difference = params.fake_quantize(values) - values
        return float(weights @ (difference * difference))

    share = _search(lambda s: error(s * sketch.low, s * sketch.high))
    low, high = share * sketch.low, share * sketch.high
    if not type_.symmetric and sketch.low < 0.0 < sketch.high:
        for _ in range(2):
            low = sketch.low * _search(lambda s: error(s * sketch.low, high))  # noqa: B023 - used at once
            high = sketch.high * _search(lambda s: error(low, s * sketch.high))  # noqa: B023 - used at once
    return params_of(low, high, type_)


def _search(error: Callable[[float], float]) -> float:
    """The share of a range with the smallest error: a coarse geometric grid, then a fine one around its best.

    Geometric, because one far value can stretch a range a thousandfold.
    """
    coarse = [float(share) for share in np.geomspace(1.0, 1e-3, _STEPS)]
    place = min(range(_STEPS), key=lambda index: error(coarse[index]))
    fine = np.geomspace(coarse[max(0, place - 1)], coarse[min(_STEPS - 1, place + 1)], _STEPS // 2)
    return min((float(share) for share in fine), key=error)


def weight_scales(
    weights: NDArray[np.floating], axis: int | None, estimator: Estimator, type_: IntegerType
) -> NDArray[np.float32]:
    """Symmetric scales of a weight tensor.

    Args:
        weights: Any shape.
        axis: The channel axis; None for one scale for the whole tensor.
        estimator: minmax; percentile of the magnitudes; or mse per channel over the exact weights.
        type_: A symmetric integer type.

    Returns:
        float32, shape (channels,), or () without an axis. A channel of zeros has scale 1.
    """
    rows = np.asarray(weights, dtype=np.float64)
    rows = rows.reshape(1, -1) if axis is None else np.moveaxis(rows, axis, 0).reshape(rows.shape[axis], -1)
    magnitude = np.abs(rows)
    reach = magnitude.max(axis=1)
    if estimator.method == "percentile":
        inner = np.percentile(magnitude, estimator.percentile, axis=1)
        reach = np.where(inner > 0, inner, reach)
    elif estimator.method == "mse":
        best = np.full(len(rows), np.inf)
        shrunk = reach.copy()
        for share in np.geomspace(1.0, 0.1, 80):
            scale = np.where(reach > 0, share * reach / type_.high, 1.0)[:, None]
            difference = np.clip(np.rint(rows / scale), type_.low, type_.high) * scale - rows
            error = (difference * difference).sum(axis=1)
            better = error < best
            best[better], shrunk[better] = error[better], share * reach[better]
        reach = shrunk
    scales = np.where(reach > 0, np.maximum(reach / type_.high, _TINY), 1.0).astype(np.float32)
    return scales.reshape(()) if axis is None else scales


def limit_pair_sums(
    scales: NDArray[np.float32], weights: NDArray[np.floating], axis: int, limit: int
) -> NDArray[np.float32]:
    """Widen scales so that no two integer weights of one sign in a channel add up to more than a limit.

    Which weights an engine multiplies in pairs depends on how it packs them; the two largest bound every packing.

    Args:
        scales: Shape (channels,).
        weights: Any shape, float.
        axis: The channel axis.
        limit: Of the sum of two integers.

    Returns:
        float32, shape (channels,), nowhere smaller than ``scales``.
    """
    rows = np.moveaxis(np.asarray(weights, dtype=np.float64), axis, 0).reshape(weights.shape[axis], -1)
    ordered = np.sort(rows, axis=1)
    positive = np.maximum(ordered[:, -2:], 0.0).sum(axis=1)
    negative = -np.minimum(ordered[:, :2], 0.0).sum(axis=1)
    # Half a step less than the limit: both of the pair may be rounded up.
    smallest = np.maximum(positive, negative) / (limit + 0.5 - 1.0)
    widened: NDArray[np.float32] = np.maximum(scales, smallest.astype(np.float32))
    return widened


_TINY = float(np.finfo(np.float32).tiny) * 2**10


def _scale(value: float) -> float:
    """A usable float32 scale, rounded down.

    Down, because engines drop a ReLU6 before a quantizer only where 255 steps do not reach beyond six.
    """
    if value <= _TINY:
        return 1.0 if value <= 0.0 else _TINY
    rounded = np.float32(value)
    return float(np.nextafter(rounded, np.float32(0.0)) if rounded > value else rounded)
