"""SmoothQuant: outlier channels of an activation are moved into the weights of the products that read it.

Xiao et al. 2022, SmoothQuant: accurate and efficient post-training quantization for large language models,
arXiv:2211.10438. With y = x W, channel j of x may be divided by any s_j > 0 and row j of W multiplied by it. The
division costs nothing where x comes from a normalisation that nothing else reads: its constants (gamma, beta) take it.
Elsewhere, as behind the normalisations of BERT, which a residual reads, too, behind Gelu and behind attention, it is a
Mul before the product, and has to gain more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import ModelError
from edgetl.quantize import graph as graphs
from edgetl.quantize.equalization import bounded
from edgetl.quantize.smoothing_groups import Group, divide, groups, input_axis

if TYPE_CHECKING:
    import onnx_ir as ir

ALPHAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""The exponents that are tried beside "off"."""
_WORTH = 0.98
"""Factors that leave more than this share of the error are within what a sample can tell: "off" wins."""
_WORTH_A_MUL = 0.8
"""The same for factors that need a node of their own, which costs the engine a pass over the activation."""
_CLIPS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
"""Shares of the range of an activation that are tried, as an MSE estimator of ranges would."""


@dataclass(frozen=True, kw_only=True)
class Smoothed:
    """What became of one group."""

    producer: str
    """The node that puts the activation out."""
    activation: str
    consumers: tuple[str, ...]
    alpha: float | None
    """The exponent that was applied; None: off."""
    error_off: float
    """Noise-to-signal power of the consumers' outputs under int8 without factors, mean of consumers; nan: not tried."""
    error: float
    """The same with what was chosen."""
    lowest: float = 1.0
    """Smallest factor s."""
    highest: float = 1.0
    """Largest factor s."""
    inserted: bool = False
    """Whether the division is a Mul of its own, or could only be one; else the normalisation before takes it."""
    reason: str = ""
    """Why nothing was changed."""


def smooth(
    model: ir.Model,
    rows: Mapping[str, NDArray[np.floating]],
    *,
    alpha: float | None = None,
    symmetric: bool = False,
) -> tuple[Smoothed, ...]:
    """Move outlier channels of each group's activation into the weights, where that lowers the error under int8.

    The factors are s_j = max|x_j|^alpha / max|W_j|^(1-alpha) (equation 4). The error is that of the outputs of all
    consumers, each relative to its power, with the activation in 8 bits per tensor and weights in symmetric 8 bits per
    output channel. The float function stays what it was, up to float32 rounding.

    Args:
        model: From :func:`edgetl.quantize.graph.prepare`; gamma, beta and weights are changed. Where other nodes share
            one of them, they keep it and the group gets a new one.
        rows: Activation (:attr:`Group.activation`) → sample rows, shape (n, K), float, at least one; a few hundred do.
        alpha: Applied to every group without comparison, in [0, 1]; None searches over :data:`ALPHAS` and "off".
        symmetric: Activations in s8 with zero point 0, as TensorRT has them; else in u8 or s8 with a zero point.

    Returns:
        One result per group of :func:`groups`, in the same order.

    Raises:
        ModelError: Rows or weights hold NaN or Inf, rows do not have K columns, or alpha is not in [0, 1].
    """
    if alpha is not None and not 0.0 <= alpha <= 1.0:
        raise ModelError(f"alpha is between 0 and 1, not {alpha}", hint="0.5 is the paper's choice; None searches")
    results = []
    for group in groups(model):
        if group.activation not in rows:
            reason = f"no sample rows of '{group.activation}' were given"
            results.append(_result(group, None, (np.nan, np.nan), None, reason))
            continue
        weights = [_rows_by_channel(node) for node in group.consumers]
        sample = _checked_rows(group, rows[group.activation], len(weights[0]))
        off = _error(sample, weights, np.ones(sample.shape[1], np.float32), symmetric)
        enough = (_WORTH if group.norm is not None else _WORTH_A_MUL) * off
        chosen, error, factors = _search(sample, weights, enough, alpha, symmetric)
        if factors is None:
            results.append(_result(group, None, (off, off), None, "no factors lower the error enough"))
            continue
        divide(model.graph, group, factors)
        results.append(_result(group, chosen, (off, error), factors, ""))
    return tuple(results)


def _rows_by_channel(node: ir.Node) -> NDArray[np.float32]:
    """The weights of a product as (K, outputs)."""
    value = node.inputs[1]
    weights = graphs.array_of(value)
    assert value is not None and weights is not None  # _is_linear saw to it
    if not np.isfinite(weights).all():
        raise ModelError(f"the weights '{value.name}' of {node.name} hold NaN or Inf: they cannot be smoothed")
    return weights.T if input_axis(node) else weights


def _checked_rows(group: Group, rows: NDArray[np.floating], channels: int) -> NDArray[np.float32]:
    if rows.ndim != 2 or rows.shape[1] != channels or not len(rows):
        raise ModelError(
            f"the activation '{group.activation}' has {channels} channels, and sample rows of shape {rows.shape} "
            "were given",
            hint=f"give an array of shape (n, {channels}), n at least 1",
        )
    if not np.isfinite(rows).all():
        raise ModelError(f"the sample rows of '{group.activation}' hold NaN or Inf")
    return rows.astype(np.float32)


def _search(
    rows: NDArray[np.float32],
    weights: Sequence[NDArray[np.float32]],
    enough: float,
    alpha: float | None,
    symmetric: bool,
) -> tuple[float | None, float, NDArray[np.float32] | None]:
    """The exponent, its error and its factors; without factors where none leaves less than the error that is enough."""
    best: tuple[float | None, float, NDArray[np.float32] | None] = (None, enough, None)
    for candidate in ALPHAS if alpha is None else (alpha,):
        factors = _factors(rows, weights, candidate)
        error = _error(rows, weights, factors, symmetric)
        if alpha is not None or error < best[1]:
            best = candidate, error, factors
    return best


def _factors(rows: NDArray[np.float32], weights: Sequence[NDArray[np.float32]], alpha: float) -> NDArray[np.float32]:
    """Equation 4, brought to a geometric mean of 1; channels without activation or weights keep 1."""
    reach = np.abs(rows).max(axis=0).astype(np.float64)
    strength = np.max([np.abs(array).max(axis=1) for array in weights], axis=0).astype(np.float64)
    alive = (reach > 0.0) & (strength > 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where(alive, alpha * np.log(reach) - (1.0 - alpha) * np.log(strength), 0.0)
    mean = logs[alive].mean() if alive.any() else 0.0
    return np.where(alive, bounded(np.exp(logs - mean)), 1.0).astype(np.float32)


def _error(
    rows: NDArray[np.float32],
    weights: Sequence[NDArray[np.float32]],
    factors: NDArray[np.float32],
    symmetric: bool,
) -> float:
    """Noise-to-signal power of the products in simulated int8, mean over consumers."""
    inputs = _fake_quantized(rows / factors, symmetric)
    errors = []
    for array in weights:
        exact = rows @ array
        scaled = array * factors[:, None]
        steps = np.maximum(np.abs(scaled).max(axis=0) / np.float32(127), np.finfo(np.float32).tiny)
        difference = inputs @ (np.rint(scaled / steps) * steps) - exact
        power = float(np.square(exact, dtype=np.float64).sum())
        errors.append(float(np.square(difference, dtype=np.float64).sum()) / power if power else 0.0)
    return float(np.mean(errors))


def _fake_quantized(values: NDArray[np.float32], symmetric: bool) -> NDArray[np.float32]:
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
        kept: NDArray[np.float32] = np.clip(np.rint(values / np.float32(step)), bottom, top) * np.float32(step)
        error = float(np.square(kept - values, dtype=np.float64).sum())
        if error < least:
            best, least = kept, error
    return best


def _result(
    group: Group,
    alpha: float | None,
    errors: tuple[float, float],
    factors: NDArray[np.float32] | None,
    reason: str,
) -> Smoothed:
    return Smoothed(
        producer=group.producer,
        activation=group.activation,
        consumers=tuple(node.name or "" for node in group.consumers),
        alpha=alpha,
        error_off=errors[0],
        error=errors[1],
        lowest=1.0 if factors is None else float(factors.min()),
        highest=1.0 if factors is None else float(factors.max()),
        inserted=group.norm is None,
        reason=reason,
    )
