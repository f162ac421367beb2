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
from edgetl.quantize import products
from edgetl.quantize.equalization import bounded
from edgetl.quantize.smoothing_groups import Group, divide, groups

if TYPE_CHECKING:
    import onnx_ir as ir

ALPHAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""The exponents that are tried beside "off"."""
_WORTH = 0.98
"""Factors that leave more than this share of the error are within what a sample can tell: "off" wins."""
_WORTH_A_MUL = 0.8
"""The same for factors that need a node of their own, which costs the engine a pass over the activation."""


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
        weights = [products.rows_of_weights(node) for node in group.consumers]
        sample = products.checked_rows(group.activation, rows[group.activation], len(weights[0]))
        unread = products.unread(weights)
        off = products.relative_noise(sample, weights, symmetric=symmetric, in_float=unread)
        enough = (_WORTH if group.norm is not None else _WORTH_A_MUL) * off
        chosen, error, factors = search(
            sample, weights, enough=enough, alpha=alpha, symmetric=symmetric, in_float=unread
        )
        if factors is None:
            results.append(_result(group, None, (off, off), None, "no factors lower the error enough"))
            continue
        divide(model.graph, group, factors)
        results.append(_result(group, chosen, (off, error), factors, ""))
    return tuple(results)


def search(
    rows: NDArray[np.float32],
    weights: Sequence[NDArray[np.float32]],
    *,
    enough: float,
    alpha: float | None = None,
    symmetric: bool = False,
    in_float: Sequence[int] = (),
) -> tuple[float | None, float, NDArray[np.float32] | None]:
    """The exponent, its error and its factors; without factors where none leaves less than the error that is enough.

    Args:
        rows: Of the activation, shape (n, K).
        weights: Of its readers, each (K, outputs).
        enough: Noise-to-signal power.
        alpha: Taken without comparison; None tries :data:`ALPHAS`.
        symmetric: As of :func:`edgetl.quantize.products.relative_noise`.
        in_float: As there.
    """
    best: tuple[float | None, float, NDArray[np.float32] | None] = (None, enough, None)
    for candidate in ALPHAS if alpha is None else (alpha,):
        factors = _factors(rows, weights, candidate)
        factors[list(in_float)] = 1.0
        error = products.relative_noise(rows, weights, factors, symmetric=symmetric, in_float=in_float)
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
