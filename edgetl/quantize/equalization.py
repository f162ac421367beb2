"""Cross-layer equalisation: channels of an activation are brought to like ranges, paid for by the next weights.

Where two convolutions follow each other, with a positively homogeneous function f between them, channel i may be
divided by any s_i > 0 in the first and multiplied by it again in the second: f(x / s) · s = f(x). Nagel et al. 2019,
Data-free quantization through weight equalization and bias correction, arXiv:1906.04721, section 4.1.

That paper equalises weights that share one scale per tensor. Here weights have a scale per output channel, so that the
first convolution takes any factor for free; what loses precision is the activation between, which has one scale, and
the second convolution, where the input channels of one output channel share one. With calibrated magnitudes the
factors are therefore s_i ∝ reach_i^alpha / weight_i^(1-alpha) (Xiao et al. 2022, SmoothQuant, arXiv:2211.10438,
equation 4), and alpha is the one with the least predicted noise, or none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import ModelError
from edgetl.quantize import graph as graphs
from edgetl.quantize.placement import group_count

if TYPE_CHECKING:
    import onnx_ir as ir

_Floats = NDArray[np.float64]

STRENGTHS = (0.25, 0.5, 0.75, 1.0)
"""The alpha that are tried beside "off"."""
_LARGEST_FACTOR = 64.0
HEADROOM = 0.8
"""A channel that is scaled up ends at this share of the tensor's range: other data reaches further than calibration."""
_WORTH = 0.98
"""Factors that leave more than this share of the predicted noise are not worth a changed graph."""
_RMS_OF_REACH = 1.0 / 6.0
"""Root mean square over largest magnitude of an activation, for the prediction; only the order of magnitude matters."""
_CONVERGED = 1e-3


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two convolutions whose channels between can be scaled."""

    first: ir.Node
    second: ir.Node
    activation: str
    """The value that the second convolution reads: behind the function."""
    clip: float | None
    """Upper bound of the Clip between; None for a ReLU and for no function."""


@dataclass(frozen=True, kw_only=True)
class Equalized:
    """What became of one pair."""

    first: str
    """Name of the first convolution."""
    second: str
    """Name of the second convolution."""
    activation: str
    """Name of the value between, behind the function."""
    method: Literal["reach", "weights"] | None
    """From activation magnitudes, from weights alone (section 4.1 of the paper), or left as it was."""
    lowest: float = 1.0
    """Smallest factor s; channels are divided by it in the first convolution."""
    highest: float = 1.0
    """Largest factor s."""
    predicted: float = 1.0
    """Noise power at the second convolution's output relative to that without factors; 1 where nothing is predicted."""
    reason: str = ""
    """Why a pair was left as it was."""


def pairs(model: ir.Model) -> tuple[Pair, ...]:
    """The pairs of convolutions that can be equalised, in the graph's order.

    Args:
        model: From :func:`edgetl.quantize.graph.prepare`; not changed.

    Returns:
        Conv–Conv, Conv–Relu–Conv and Conv–Clip–Conv with constant float32 weights, of any grouping, where nothing else
        reads a value between. A Clip counts where it bounds below at 0 or not at all.
    """
    return tuple(pair for node in model.graph if (pair := _pair_from(node)) is not None)


def equalize(
    model: ir.Model,
    reach: Mapping[str, NDArray[np.floating]] | None = None,
    *,
    iterations: int = 20,
    strengths: tuple[float, ...] = STRENGTHS,
    headroom: float = HEADROOM,
) -> tuple[Equalized, ...]:
    """Scale the channels between convolutions so that int8 loses less; the float function stays what it was.

    It is exact up to float32 rounding, except behind a Clip with an upper bound: there only channels are scaled that
    stayed well below the bound in calibration, and so far only that they still do. On inputs that reach further a
    scaled channel is cut off earlier than before; the int8 range of the tensor cuts it off at the same place.

    Args:
        model: From :func:`edgetl.quantize.graph.prepare`; its weights and biases are changed. Where another node reads
            the same initializer, that node keeps it and the pair gets a new one.
        reach: Activation (:attr:`Pair.activation`) → largest magnitude of each channel, shape (channels,), float, ≥ 0.
            None: factors come from the weights alone, and pairs with a Clip are left as they are.
        iterations: Passes over all pairs, without ``reach`` only: there a pair's factors move those of its neighbours.
        strengths: The alpha to choose from, with ``reach``.
        headroom: A channel that is scaled up ends at this share of the tensor's range at most, in (0, 1]; with
            ``reach``.

    Returns:
        One result per pair of :func:`pairs`, in the same order.

    Raises:
        ModelError: Weights or magnitudes hold NaN or Inf, or magnitudes do not fit the channels.
    """
    if not 0.0 < headroom <= 1.0:
        raise ModelError(f"the headroom of equalisation is a share above 0 and up to 1, not {headroom}")
    found = pairs(model)
    arrays = _Arrays(found)
    magnitudes = {pair.activation: _checked_reach(pair, arrays, reach) for pair in found} if reach is not None else {}
    factors = {index: np.ones(arrays.channels(pair)) for index, pair in enumerate(found)}
    results: list[Equalized] = []
    if reach is None:
        _from_weights(found, arrays, factors, iterations)
    for index, pair in enumerate(found):
        magnitude = magnitudes.get(pair.activation)
        predicted, reason = 1.0, ""
        if magnitude is not None:
            factors[index], predicted = _from_reach(pair, arrays, magnitude, strengths, headroom)
            reason = "" if predicted < 1.0 else "no factors promise less noise"
        elif reach is not None:
            reason = f"the magnitudes of '{pair.activation}' were not given"
        elif pair.clip is not None:
            reason = "scaling behind a Clip needs the magnitudes of calibration"
        elif np.all(factors[index] == 1.0):
            reason = "the ranges are equal already"
        results.append(_result(pair, factors[index], "weights" if reach is None else "reach", predicted, reason))
    for index, pair in enumerate(found):
        if not results[index].reason:
            _apply(model.graph, pair, factors[index])
    return tuple(results)


def set_constant(graph: ir.Graph, node: ir.Node, index: int, array: NDArray[np.float32]) -> None:
    """Give one input of one node other constant values; whoever else reads the old ones keeps them.

    Args:
        graph: The node's.
        node: Its input ``index`` is an initializer.
        index: Position of the input.
        array: The new values, of the old shape.
    """
    import onnx_ir as ir

    value = node.inputs[index]
    assert value is not None  # the callers read its values before
    if len(value.uses()) == 1 and not value.is_graph_output():
        value.const_value = ir.tensor(np.ascontiguousarray(array), name=value.name)
        return
    node.replace_input_with(index, graphs.add_initializer(graph, f"{value.name}_{node.name}", array))


def bounded(factors: _Floats) -> _Floats:
    """Factors within 1/64 … 64; 1 where one is not a positive number (a dead channel, a channel without weights)."""
    with np.errstate(invalid="ignore"):
        usable = np.isfinite(factors) & (factors > 0.0)
    kept: _Floats = np.clip(np.where(usable, factors, 1.0), 1.0 / _LARGEST_FACTOR, _LARGEST_FACTOR)
    return kept


class _Arrays:
    """Weights of the convolutions, float64, changed in step with the factors before the graph is."""

    def __init__(self, found: tuple[Pair, ...]) -> None:
        nodes = {id(node): node for pair in found for node in (pair.first, pair.second)}
        self._weights: dict[int, _Floats] = {}
        for node in nodes.values():
            weights = graphs.array_of(node.inputs[1])
            assert weights is not None  # _is_convolution saw to it
            if not np.isfinite(weights).all():
                name = node.inputs[1].name if node.inputs[1] is not None else ""
                raise ModelError(f"the weights '{name}' of {node.name} hold NaN or Inf: they cannot be equalised")
            self._weights[id(node)] = weights.astype(np.float64)

    def channels(self, pair: Pair) -> int:
        """Channels of the activation between."""
        return int(self._weights[id(pair.first)].shape[0])

    def outgoing(self, pair: Pair) -> _Floats:
        """Weights of the first convolution by output channel, shape (channels, rest)."""
        weights = self._weights[id(pair.first)]
        return weights.reshape(len(weights), -1)

    def incoming(self, pair: Pair) -> _Floats:
        """Weights of the second convolution, shape (groups, outputs per group, inputs per group, kernel)."""
        weights = self._weights[id(pair.second)]
        groups = group_count(pair.second)
        return weights.reshape(groups, weights.shape[0] // groups, weights.shape[1], -1)

    def scale(self, pair: Pair, factors: _Floats) -> None:
        """Divide the first's output channels, multiply the second's input channels (both are views of the weights)."""
        outgoing, incoming = self.outgoing(pair), self.incoming(pair)
        outgoing /= factors[:, None]
        incoming *= factors.reshape(incoming.shape[0], 1, -1, 1)


def _pair_from(first: ir.Node) -> Pair | None:
    if not _is_convolution(first):
        return None
    consumer = _only_consumer(first.outputs[0])
    clip: float | None = None
    if consumer is not None and not consumer.domain and consumer.op_type in ("Relu", "Clip"):
        bound = _upper_bound(consumer)
        if bound is None:
            return None
        clip = bound if np.isfinite(bound) else None
        consumer = _only_consumer(consumer.outputs[0])
    if consumer is None or not _is_convolution(consumer):
        return None
    between = consumer.inputs[0]
    first_weights, second_weights = graphs.array_of(first.inputs[1]), graphs.array_of(consumer.inputs[1])
    if between is None or first_weights is None or second_weights is None or not first_weights.size:
        return None
    if first_weights.shape[0] != second_weights.shape[1] * group_count(consumer):
        return None
    return Pair(first=first, second=consumer, activation=between.name or "", clip=clip)


def _is_convolution(node: ir.Node) -> bool:
    """With constant weights and, if any, a constant bias."""
    if node.domain or node.op_type != "Conv" or graphs.array_of(node.inputs[0]) is not None:
        return False
    weights = graphs.array_of(node.inputs[1])
    if weights is None or weights.dtype != np.float32:
        return False
    return len(node.inputs) < 3 or node.inputs[2] is None or graphs.array_of(node.inputs[2]) is not None


def _only_consumer(value: ir.Value) -> ir.Node | None:
    """The node that alone reads a value, as its first input."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output() or uses[0][1] != 0:
        return None
    return uses[0][0]


def _upper_bound(node: ir.Node) -> float | None:
    """Where a ReLU or Clip cuts off above, inf where it does not; None for a Clip that does not commute at all."""
    if node.op_type == "Relu":
        return float("inf")
    bounds = []
    for index, default in ((1, -np.inf), (2, np.inf)):
        value = node.inputs[index] if len(node.inputs) > index else None
        array = graphs.array_of(value)
        if value is not None and (array is None or array.size != 1):
            return None
        bounds.append(default if array is None else float(array.reshape(-1)[0]))
    largest = float(np.finfo(np.float32).max)
    low, high = bounds
    if not (low == 0.0 or low <= -largest) or not high > 0.0:
        return None
    return float("inf") if high >= largest else high


def _checked_reach(pair: Pair, arrays: _Arrays, reach: Mapping[str, NDArray[np.floating]]) -> _Floats | None:
    if pair.activation not in reach:
        return None
    values = np.asarray(reach[pair.activation], dtype=np.float64)
    if values.shape != (arrays.channels(pair),):
        raise ModelError(
            f"the activation '{pair.activation}' has {arrays.channels(pair)} channels, and magnitudes of shape "
            f"{values.shape} were given",
            hint="give the largest magnitude of each channel, axis 1, over all samples",
        )
    if not np.isfinite(values).all() or (values < 0.0).any():
        raise ModelError(f"the magnitudes of '{pair.activation}' hold NaN, Inf or negative numbers")
    return values


def _from_weights(found: tuple[Pair, ...], arrays: _Arrays, factors: dict[int, _Floats], iterations: int) -> None:
    """The paper's factors, s = sqrt(range of the first / range of the second), repeated until none moves."""
    for _ in range(iterations):
        moved = 0.0
        for index, pair in enumerate(found):
            if pair.clip is not None:
                continue
            before = np.abs(arrays.outgoing(pair)).max(axis=1, initial=0.0)
            behind = np.abs(arrays.incoming(pair)).max(axis=(1, 3), initial=0.0).reshape(-1)
            with np.errstate(divide="ignore", invalid="ignore"):
                wanted = np.sqrt(before / behind)
            total = bounded(factors[index] * np.where((before > 0.0) & (behind > 0.0), wanted, 1.0))
            step = total / factors[index]
            factors[index] = total
            arrays.scale(pair, step)
            moved = max(moved, float(np.abs(np.log(step)).max(initial=0.0)))
        if moved < _CONVERGED:
            return


def _from_reach(
    pair: Pair, arrays: _Arrays, reach: _Floats, strengths: tuple[float, ...], headroom: float
) -> tuple[_Floats, float]:
    """The factors with the least predicted noise, and that noise relative to none; ones and 1.0 where none is better.

    Pairs do not influence each other: an output channel has its own scale, so the shares of its weights count alone.
    """
    incoming = arrays.incoming(pair)
    best, least = np.ones(len(reach)), 1.0
    largest = reach.max(initial=0.0)
    peaks = np.abs(incoming).max(axis=3, initial=0.0)  # (groups, outputs, inputs)
    tops = peaks.max(axis=2, keepdims=True, initial=0.0)
    shares = np.divide(peaks, tops, out=np.zeros_like(peaks), where=tops > 0.0).max(axis=1, initial=0.0).reshape(-1)
    alive = (reach > 0.0) & (shares > 0.0)
    unchanged = _noise(incoming, reach, best)
    if largest == 0.0 or unchanged == 0.0 or not alive.any():
        return best, least
    for strength in strengths:
        with np.errstate(divide="ignore", invalid="ignore"):
            wanted = np.where(alive, reach**strength / shares ** (1.0 - strength), np.nan)
        # The tensor's range is kept: a common factor changes nothing.
        factors = bounded(wanted * (np.nanmax(reach / wanted) / largest))
        factors = np.where(alive, _limited(factors, reach, pair.clip, headroom), 1.0)
        noise = _noise(incoming, reach, factors) / unchanged
        if noise < min(least, _WORTH):
            best, least = factors, noise
    return best, least


def _limited(factors: _Floats, reach: _Floats, clip: float | None, headroom: float) -> _Floats:
    """Scale no channel up to the range's end, and behind a Clip none that comes near the bound, nor any down.

    Scaled down, a channel would pass what the Clip cut off, on data that reaches further than calibration did.
    """
    end = reach.max(initial=0.0) if clip is None else min(clip, reach.max(initial=0.0))
    nearest = np.minimum(1.0, reach / (headroom * end))
    up = np.maximum(factors, nearest)
    if clip is None:
        return np.where(factors < 1.0, up, factors)
    return np.where((factors < 1.0) & (reach < headroom * clip), up, 1.0)


def _noise(incoming: _Floats, reach: _Floats, factors: _Floats) -> float:
    """Predicted noise-to-signal power at the second convolution's outputs, mean over output channels.

    Rounding noise of step Δ has the power Δ²/12 (Widrow and Kollár 2008, Quantization Noise, chapter 3): of 255
    steps of the activation through the weights, and of 127 steps of each output channel's weights through it.
    """
    groups, _, _, taps = incoming.shape
    scale = factors.reshape(groups, 1, -1)
    inputs = reach.reshape(groups, 1, -1)
    energy = np.square(incoming).sum(axis=3)
    signal = (energy * np.square(inputs)).sum(axis=2) * _RMS_OF_REACH**2
    activation_step = (reach / factors).max(initial=0.0) / 255.0
    weight_steps = (np.abs(incoming).max(axis=3, initial=0.0) * scale).max(axis=2, initial=0.0) / 127.0
    from_activation = activation_step**2 * (energy * scale**2).sum(axis=2)
    from_weights = weight_steps**2 * (np.square(inputs / scale).sum(axis=2) * taps * _RMS_OF_REACH**2)
    noise = np.divide(from_activation + from_weights, signal, out=np.zeros_like(signal), where=signal > 0.0)
    return float(noise.mean() / 12.0) if noise.size else 0.0


def _result(
    pair: Pair, factors: _Floats, method: Literal["reach", "weights"], predicted: float, reason: str
) -> Equalized:
    return Equalized(
        first=pair.first.name or "",
        second=pair.second.name or "",
        activation=pair.activation,
        method=None if reason else method,
        lowest=1.0 if reason else float(factors.min(initial=np.inf)),
        highest=1.0 if reason else float(factors.max(initial=-np.inf)),
        predicted=predicted,
        reason=reason,
    )


def _apply(graph: ir.Graph, pair: Pair, factors: _Floats) -> None:
    first, second = pair.first, pair.second
    weights = graphs.array_of(first.inputs[1])
    assert weights is not None
    column = factors.reshape(-1, *[1] * (weights.ndim - 1))
    set_constant(graph, first, 1, (weights / column).astype(np.float32))
    bias = graphs.array_of(first.inputs[2]) if len(first.inputs) > 2 else None
    if bias is not None:
        set_constant(graph, first, 2, (bias / factors).astype(np.float32))
    weights = graphs.array_of(second.inputs[1])
    assert weights is not None
    groups = group_count(second)
    grouped = weights.reshape(groups, weights.shape[0] // groups, weights.shape[1], -1)
    scaled = (grouped * factors.reshape(groups, 1, -1, 1)).reshape(weights.shape)
    set_constant(graph, second, 1, scaled.astype(np.float32))
