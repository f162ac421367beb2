"""What 8 bits cost a matrix product: simulated on sample rows of what it reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import ModelError
from edgetl.quantize import graph as graphs

if TYPE_CHECKING:
    import onnx_ir as ir

_Rows = NDArray[np.float32]

_CLIPS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
"""Shares of the range of an activation that are tried, as an MSE estimator of ranges would."""


def input_axis(node: ir.Node) -> int:
    """The axis of a product's weights that the input's channels are on."""
    return 1 if "transB" in node.attributes and node.attributes["transB"].as_int() else 0


def rows_of_weights(node: ir.Node) -> _Rows:
    """The constant weights of a MatMul or Gemm as (K, outputs), one row per input channel.

    Raises:
        ModelError: They hold NaN or Inf.
    """
    value = node.inputs[1]
    weights = graphs.array_of(value)
    assert value is not None and weights is not None  # the callers' groups have constant weights
    if not np.isfinite(weights).all():
        raise ModelError(f"the weights '{value.name}' of {node.name} hold NaN or Inf: 8 bits cannot be simulated")
    return weights.T if input_axis(node) else weights


def checked_rows(activation: str, rows: NDArray[np.floating], channels: int) -> _Rows:
    """Sample rows of an activation as float32.

    Raises:
        ModelError: They are not of shape (n, channels), n at least 1, or hold NaN or Inf.
    """
    if rows.ndim != 2 or rows.shape[1] != channels or not len(rows):
        raise ModelError(
            f"the activation '{activation}' has {channels} channels, and sample rows of shape {rows.shape} were given",
            hint=f"give an array of shape (n, {channels}), n at least 1",
        )
    if not np.isfinite(rows).all():
        raise ModelError(f"the sample rows of '{activation}' hold NaN or Inf")
    return rows.astype(np.float32)


def relative_noise(
    rows: _Rows,
    weights: Sequence[_Rows],
    factors: _Rows | None = None,
    *,
    symmetric: bool = False,
    in_float: Sequence[int] = (),
) -> float:
    """Noise-to-signal power of the products of an activation in simulated int8, mean over those who read it.

    Args:
        rows: Of the activation, shape (n, K).
        weights: Of its readers, each (K, outputs); in symmetric 8 bits per output channel.
        factors: By which channels of the activation are divided and rows of the weights multiplied, shape (K,).
        symmetric: The activation, in 8 bits per tensor, has zero point 0 in s8; else one of its own.
        in_float: Channels that are multiplied in float: without noise of their own, and without a say in any range.
    """
    chosen = list(in_float)
    inputs = (rows / factors) if factors is not None else rows.copy()
    inputs[:, chosen] = 0.0
    inputs = _fake_quantized(inputs, symmetric)
    errors = []
    for array in weights:
        exact = rows @ array
        scaled = array * factors[:, None] if factors is not None else array.copy()
        scaled[chosen] = 0.0
        steps = np.maximum(np.abs(scaled).max(axis=0) / np.float32(127), np.finfo(np.float32).tiny)
        difference = inputs @ (np.rint(scaled / steps) * steps) - exact
        if chosen:
            difference += rows[:, chosen] @ array[chosen]
        power = float(np.square(exact, dtype=np.float64).sum())
        errors.append(float(np.square(difference, dtype=np.float64).sum()) / power if power else 0.0)
    return float(np.mean(errors))


def unread(weights: Sequence[_Rows]) -> list[int]:
    """The input channels that all weights, each (K, outputs), multiply by zero."""
    return [int(channel) for channel in np.flatnonzero(~np.any([array.any(axis=1) for array in weights], axis=0))]


def _fake_quantized(values: _Rows, symmetric: bool) -> _Rows:
    """Quantized to 8 bits and back, with the range of least squared error among shares of the full one."""
    best, least = values, np.inf
    for share in _CLIPS:
        low, high = share * min(float(values.min()), 0.0), share * max(float(values.max()), 0.0)
        if symmetric:
            step, bottom, top = max(-low, high) / 127.0, -128, 127
        else:
            step = (high - low) / 255.0
            bottom = round(low / step) if step else 0
            top = bottom + 255
        if not step:
            return values
        kept: _Rows = np.clip(np.rint(values / np.float32(step)), bottom, top) * np.float32(step)
        error = float(np.square(kept - values, dtype=np.float64).sum())
        if error < least:
            best, least = kept, error
    return best
