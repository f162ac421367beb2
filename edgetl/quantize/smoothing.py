"""SmoothQuant: outlier channels behind a normalisation are moved into the weights of the products that read them.

Xiao et al. 2022, SmoothQuant: accurate and efficient post-training quantization for large language models,
arXiv:2211.10438. With x = norm(…) and y = x W, channel j of x may be divided by any s_j > 0 and row j of W multiplied
by it. The division costs nothing where the normalisation ends in a multiplication by constants (gamma, beta). Therefore
the inputs of a transformer's query, key, value and first feed-forward product can be smoothed; those of its attention
output and second feed-forward product have no such constants before them and stay as they are, and so does everything
behind a normalisation that feeds a residual, too (post-norm, as in BERT).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import ModelError
from edgetl.quantize import graph as graphs
from edgetl.quantize.equalization import bounded, set_constant

if TYPE_CHECKING:
    import onnx_ir as ir

ALPHAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""The exponents that are tried beside "off"."""
_WORTH = 0.98
"""Factors that leave more than this share of the error are within what a sample can tell: "off" wins."""
_CLIPS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
"""Shares of the range of an activation that are tried, as an MSE estimator of ranges would."""
_TRANSPARENT = frozenset({"Reshape", "Transpose", "Identity", "Squeeze", "Unsqueeze", "Flatten", "Gather"})
"""Operators that keep channels apart where they leave the last axis alone; each is checked for that."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """A normalisation and all that reads it."""

    norm: ir.Node
    """LayerNormalization or RMSNormalization; or the Mul by gamma that ends a normalisation of single operators."""
    shift: ir.Node | None
    """The Add of beta behind that Mul."""
    activation: str
    """Name of the normalisation's output."""
    consumers: tuple[ir.Node, ...]
    """The MatMul and Gemm nodes that read it, directly or through operators that keep the last axis."""
    reason: str = ""
    """Why it cannot be smoothed; empty where it can."""


@dataclass(frozen=True, kw_only=True)
class Smoothed:
    """What became of one group."""

    norm: str
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
    reason: str = ""
    """Why nothing was changed."""


def groups(model: ir.Model) -> tuple[Group, ...]:
    """Every normalisation that feeds a matrix product with constant weights, in the graph's order.

    Args:
        model: From :func:`edgetl.quantize.graph.prepare`; not changed.
    """
    return tuple(group for node in model.graph if (group := _group_of(node)) is not None)


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
        reason = group.reason
        if not reason and group.activation not in rows:
            reason = f"no sample rows of '{group.activation}' were given"
        if reason:
            results.append(_result(group, None, (np.nan, np.nan), None, reason))
            continue
        weights = [_rows_by_channel(node) for node in group.consumers]
        sample = _checked_rows(group, rows[group.activation], len(weights[0]))
        off = _error(sample, weights, np.ones(sample.shape[1], np.float32), symmetric)
        chosen, error, factors = _search(sample, weights, off, alpha, symmetric)
        if factors is None:
            results.append(_result(group, None, (off, off), None, "no factors lower the error"))
            continue
        _apply(model.graph, group, factors)
        results.append(_result(group, chosen, (off, error), factors, ""))
    return tuple(results)


def _group_of(norm: ir.Node) -> Group | None:
    """The group that a node ends a normalisation for; None where it does not, or no product reads it."""
    found = _normalisation(norm)
    if found is None:
        return None
    gamma, shift = found
    output = (shift or norm).outputs[0]
    channels = int(gamma.size)
    consumers: list[ir.Node] = []
    reason = "" if not output.is_graph_output() else f"'{output.name}' is an output of the model"
    for value, node, index in _readers(output, channels):
        if node is None:
            reason = reason or f"'{value.name}' is an output of the model"
        elif _is_linear(node, index, channels):
            consumers.append(node)
        else:
            reason = reason or f"{node.op_type} ({node.name}) reads it, too"
    if not consumers:
        return None
    return Group(norm=norm, shift=shift, activation=output.name or "", consumers=tuple(consumers), reason=reason)


def _normalisation(node: ir.Node) -> tuple[NDArray[np.float32], ir.Node | None] | None:
    """Gamma, and the Add of beta where that is a node of its own; None for anything else."""
    if node.domain:
        return None
    if node.op_type in ("LayerNormalization", "RMSNormalization"):
        gamma = graphs.array_of(node.inputs[1])
        if gamma is None or not _is_per_channel(gamma) or _rank(node.inputs[0]) is None:
            return None
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else -1
        beta = node.inputs[2] if len(node.inputs) > 2 else None
        shift = graphs.array_of(beta)
        if axis not in (-1, (_rank(node.inputs[0]) or 0) - 1) or (
            beta is not None and (shift is None or shift.size != gamma.size)
        ):
            return None
        return gamma, None
    if node.op_type != "Mul":
        return None
    position = _constant_input(node)
    gamma = graphs.array_of(node.inputs[position]) if position is not None else None
    if gamma is None or not _is_per_channel(gamma):
        return None
    uses = list(node.outputs[0].uses())
    if len(uses) == 1 and not node.outputs[0].is_graph_output():
        adding = uses[0][0]
        place = _constant_input(adding) if adding.op_type == "Add" and not adding.domain else None
        beta_values = graphs.array_of(adding.inputs[place]) if place is not None else None
        if beta_values is not None and _is_per_channel(beta_values) and beta_values.size == gamma.size:
            return gamma, adding
    return gamma, None


def _constant_input(node: ir.Node) -> int | None:
    """The position of the one constant among two inputs."""
    constant = [index for index, value in enumerate(node.inputs) if graphs.array_of(value) is not None]
    return constant[0] if len(constant) == 1 and len(node.inputs) == 2 else None


def _is_per_channel(array: NDArray[np.generic]) -> bool:
    """Whether a constant has one float32 per channel of the last axis, and there are several."""
    return array.dtype == np.float32 and array.ndim > 0 and array.size > 1 and array.shape[-1] == array.size


def _rank(value: ir.Value | None) -> int | None:
    return None if value is None or value.shape is None else len(value.shape)


def _readers(value: ir.Value, channels: int) -> Iterator[tuple[ir.Value, ir.Node | None, int]]:
    """Who reads a value, also through operators that keep its last axis; without a node where the model returns it."""
    for node, index in value.uses():
        if _keeps_last_axis(node, index, channels):
            output = node.outputs[0]
            if output.is_graph_output():
                yield output, None, 0
            yield from _readers(output, channels)
        else:
            yield value, node, index


def _keeps_last_axis(node: ir.Node, index: int, channels: int) -> bool:
    """Whether the channels are on the last axis of a node's output, each still apart."""
    if node.domain or node.op_type not in _TRANSPARENT or index != 0 or node.inputs[0] is None:
        return False
    before, after = node.inputs[0].shape, node.outputs[0].shape
    if before is None or after is None or not len(before) or not len(after):
        return False
    if before[-1] != channels or after[-1] != channels:
        return False
    rank = len(before)
    if node.op_type == "Transpose":
        order = node.attributes["perm"].as_ints() if "perm" in node.attributes else range(rank)[::-1]
        return bool(order[-1] == rank - 1)
    if node.op_type == "Gather":
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
        return axis % rank != rank - 1
    return True


def _is_linear(node: ir.Node, index: int, channels: int) -> bool:
    """A product of the value with constant weights of a known layout."""
    if node.domain or node.op_type not in ("MatMul", "Gemm") or index != 0:
        return False
    weights = graphs.array_of(node.inputs[1])
    if weights is None or weights.dtype != np.float32 or weights.ndim != 2 or not weights.size:
        return False
    if "transA" in node.attributes and node.attributes["transA"].as_int():
        return False
    return bool(weights.shape[_input_axis(node)] == channels)


def _input_axis(node: ir.Node) -> int:
    """The axis of the weights that the input's channels are on."""
    return 1 if "transB" in node.attributes and node.attributes["transB"].as_int() else 0


def _rows_by_channel(node: ir.Node) -> NDArray[np.float32]:
    """The weights of a product as (K, outputs)."""
    value = node.inputs[1]
    weights = graphs.array_of(value)
    assert value is not None and weights is not None  # _is_linear saw to it
    if not np.isfinite(weights).all():
        raise ModelError(f"the weights '{value.name}' of {node.name} hold NaN or Inf: they cannot be smoothed")
    return weights.T if _input_axis(node) else weights


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
    off: float,
    alpha: float | None,
    symmetric: bool,
) -> tuple[float | None, float, NDArray[np.float32] | None]:
    """The exponent, its error and its factors; without factors where "off" is as good."""
    best: tuple[float | None, float, NDArray[np.float32] | None] = (None, _WORTH * off, None)
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


def _apply(graph: ir.Graph, group: Group, factors: NDArray[np.float32]) -> None:
    norm, shift = group.norm, group.shift
    constants = [(norm, 1 if norm.op_type != "Mul" else _constant_input(norm))]
    if norm.op_type != "Mul" and len(norm.inputs) > 2 and norm.inputs[2] is not None:
        constants.append((norm, 2))
    if shift is not None:
        constants.append((shift, _constant_input(shift)))
    for node, index in constants:
        assert index is not None  # _normalisation saw to it
        array = graphs.array_of(node.inputs[index])
        assert array is not None
        set_constant(graph, node, index, (array / factors.reshape(array.shape)).astype(np.float32))
    for node in group.consumers:
        array = graphs.array_of(node.inputs[1])
        assert array is not None
        shape = (1, -1) if _input_axis(node) else (-1, 1)
        set_constant(graph, node, 1, (array * factors.reshape(shape)).astype(np.float32))


def _result(
    group: Group,
    alpha: float | None,
    errors: tuple[float, float],
    factors: NDArray[np.float32] | None,
    reason: str,
) -> Smoothed:
    return Smoothed(
        norm=(group.norm.name or ""),
        activation=group.activation,
        consumers=tuple(node.name or "" for node in group.consumers),
        alpha=alpha,
        error_off=errors[0],
        error=errors[1],
        lowest=1.0 if factors is None else float(factors.min()),
        highest=1.0 if factors is None else float(factors.max()),
        reason=reason,
    )
