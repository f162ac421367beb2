"""Taking back what quantization does to a layer's output, layer after layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgetl.quantize import constants, rounding
from edgetl.quantize import graph as graphs
from edgetl.quantize.decibels import worst_first
from edgetl.quantize.following import Following, tabulate
from edgetl.quantize.insertion import PACKING, Layer, Quantized, is_depthwise
from edgetl.quantize.placement import bias_add, group_count
from edgetl.quantize.saturation import can_saturate, round_weights
from edgetl.quantize.schemes import Scheme
from edgetl.quantize.walk import Arrays, Walk
from edgetl.runtime.runner import Runner

if TYPE_CHECKING:
    import onnx_ir as ir

_LISTS = ("strides", "pads", "dilations")
_ROUNDED_SHARE = 0.1
"""Share of the layers, those that lose most by themselves, whose rounding is learned."""
_STEPS = 2
"""Of Gauss and Newton, each with the samples' weights of what the one before left."""
_DAMPING = 0.01
"""Of them: a channel goes half of the way where a hundredth of it is let through of what is of the most open one."""
_POSITIONS = 4096
"""Of a sample that are looked at, at most: a mean over more is no surer, as samples differ by more."""
_FAR = 8.0
"""Times as far as half of the samples reach: what is beyond counts as if it were there."""
_LEAST_ERROR = 0.1
"""Of half of the samples' errors: one without any, a blank image, is not to decide for all."""


@dataclass(frozen=True, kw_only=True)
class Corrected:
    """What was done to one layer."""

    node: str
    shift: float
    """Root mean square over the channels of what was taken out of the bias; 0 where it was left."""
    output_rms: float
    """Root mean square of the float layer's output, to compare the shift with."""
    rounding_gain: float = 0.0
    """Share by which learned rounding lowered the squared error of the output, 0 to 1; 0 where it is nearest."""


def flagged(losses: Sequence[tuple[str, float]]) -> frozenset[str]:
    """The layers whose rounding is worth learning: those that lose most by themselves.

    Args:
        losses: Node and isolated SQNR in dB of every layer.
    """
    worst = sorted(losses, key=lambda loss: worst_first(loss[1]))
    return frozenset(node for node, _ in worst[: max(1, round(_ROUNDED_SHARE * len(worst)))])


def correct(
    original: ir.Model,
    quantized: Quantized,
    scheme: Scheme,
    batches: Sequence[Mapping[str, NDArray[np.generic]]],
    *,
    biases: bool,
    learned: Collection[str] = (),
    open_runner: Callable[[Path], Runner],
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Corrected, ...]:
    """Correct weights and biases of a quantized graph, in its order, each layer behind corrected ones.

    The bias takes the shift per output channel that brings what follows the layer nearest to the float graph on the
    same samples, whatever the layer had for a bias before, zeros or none (after sequential bias correction, Nagel et
    al. 2021, A white paper on neural network quantization, arXiv:2106.08295, section 4.3, which takes the mean
    difference of the layer's own output). Rounding is learned on the inputs that the quantized graph really feeds the
    layer with.

    Args:
        original: The float graph, as :func:`edgetl.quantize.graph.prepare` left it.
        quantized: Its quantized form; changed.
        scheme: That it was quantized with.
        batches: Feeds.
        biases: Whether biases are corrected.
        learned: Nodes whose rounding is learned.
        open_runner: Opens an ONNX file.
        progress: Called with the number of layers done, and of all.

    Returns:
        One record per layer, in the graph's order.
    """
    stops = _stops(original, quantized)
    graph = quantized.model.graph
    wanted = Walk(original, [str(stop.float_value.name) for stop in stops], batches, open_runner=open_runner)
    names = [name for stop in stops for name in ([stop.input] if stop.layer.node in learned else []) + [stop.output]]
    got = Walk(quantized.model, names, batches, open_runner=open_runner)
    records = []
    for place, stop in enumerate(stops):
        gain = 0.0
        if stop.layer.node in learned:
            gain = _learn_rounding(graph, stop, scheme, got.advance(), centred=biases)
        target, found = wanted.advance(), got.advance()
        shift = np.zeros(stop.layer.scales.size)
        if biases:
            function = partial(tabulate, original, stop.float_value, open_runner=open_runner)
            shift = _best_shift(target, found, stop.layer, function)
            _shift_output(graph, stop, shift, scheme, got, found)
        output_rms = float(np.sqrt(np.mean([np.mean(np.square(array, dtype=np.float64)) for array in target])))
        shift_rms = float(np.sqrt(np.mean(shift**2)))
        records.append(Corrected(node=stop.layer.node, shift=shift_rms, output_rms=output_rms, rounding_gain=gain))
        if progress:
            progress(place + 1, len(stops))
    graph.sort()
    return tuple(records)


@dataclass(frozen=True)
class _Stop:
    """A layer, where the walks through the float graph and the quantized graph stop."""

    layer: Layer
    node: ir.Node
    """In the quantized graph."""
    float_node: ir.Node
    addition: ir.Node | None
    """The Add of its bias in the quantized graph, where no pair stands between the two."""

    @property
    def input(self) -> str:
        """What the layer reads in the quantized graph."""
        return str(self.node.inputs[0].name) if self.node.inputs[0] is not None else ""

    @property
    def output(self) -> str:
        """What it puts out in the quantized graph, behind its bias."""
        return str((self.addition or self.node).outputs[0].name)

    @property
    def float_value(self) -> ir.Value:
        """The same in the float graph: behind the bias only where it is so in the quantized graph."""
        addition = bias_add(self.float_node, self.layer.scales.size) if self.addition is not None else None
        return (addition or self.float_node).outputs[0]


def _stops(original: ir.Model, quantized: Quantized) -> list[_Stop]:
    """One for each layer, in the graph's order."""
    nodes = {str(node.name): node for node in quantized.model.graph}
    floats = {str(node.name): node for node in original.graph}
    return [
        _Stop(layer, nodes[layer.node], floats[layer.node], bias_add(nodes[layer.node], layer.scales.size))
        for layer in quantized.layers
    ]


def _shift_output(
    graph: ir.Graph, stop: _Stop, shift: NDArray[np.float64], scheme: Scheme, got: Walk, found: Arrays
) -> None:
    """Put a shift into a layer's bias, so that what the walk comes to next is computed from the shifted output.

    Args:
        graph: The quantized graph.
        stop: Where the walk stands.
        shift: Shape (channels,).
        scheme: Says what a bias is made of.
        got: The walk.
        found: The layer's output before.
    """
    shift = constants.add_to_bias(graph, stop.node, shift, scheme)
    if stop.node.op_type != "MatMul" or stop.addition is not None:  # an Add that is new is computed by the walk
        shape = _channel_shape(stop.layer, found[0].ndim)
        got.replace(stop.output, [array + shift.reshape(shape).astype(np.float32) for array in found])
    got.refresh()


def _channel_shape(layer: Layer, rank: int) -> list[int]:
    """The shape that lets a vector of channels meet a layer's output: channels before space, or last."""
    axis = 1 if layer.operator == "Conv" else rank - 1
    return [-1 if index == axis else 1 for index in range(rank)]


def _best_shift(
    target: Arrays, found: Arrays, layer: Layer, function: Callable[[float, float], Following | None]
) -> NDArray[np.float64]:
    """What to add to a layer's output so that what follows it is nearest to the float graph; float64, (channels,).

    With f the function that follows, the float output y and the quantized graph's x, it is the shift s per channel that
    makes Σ w (f(y) - f(x + s))² least, by some steps of Gauss and Newton: the mean of y - x where nothing follows, and
    behind a ReLU6 the mean over positions that it lets through. The mean over all of them, which sequential bias
    correction takes, is mostly made of what is cut off anyway. It is what is left where f is flat at all x: of no
    shift, that mean and the steps', each channel takes the best.

    The weights w are those of samples, and make them count as they do in
    :attr:`edgetl.quantize.fidelity.Fidelity.db`, by the slope of that figure over a sample's squared error: one that is
    far off counts in the sum of all, and next to nothing for the typical sample. With equal weights a few such samples
    shift the bias of all others.

    Few samples of a layer with few positions give a shift that is mostly chance. It is shrunk by the share of its
    square that its standard error over the samples explains (positive-part James-Stein, channel by channel).

    Args:
        target: The float layer's output.
        found: The quantized graph's.
        layer: Of both.
        function: The function that follows, on a range of values.
    """
    pairs = [(_positions(mine, layer), _positions(its, layer)) for mine, its in zip(target, found, strict=True)]
    low, high = _ends([array for pair in pairs for array in pair])
    following = function(low, high)
    if following is not None:  # beyond, it is what it is at the ends
        pairs = [(np.clip(mine, low, high), np.clip(its, low, high)) for mine, its in pairs]
    shift = np.zeros(layer.scales.size)
    for _ in range(_STEPS):
        slopes, squares, errors = _slopes_and_errors(pairs, shift, following)
        weights = _weights(errors.sum(axis=1))
        curvature = weights @ squares
        curvature += _DAMPING * curvature.max() + np.finfo(np.float64).tiny
        step = weights @ slopes / curvature
        shift = shift + step
    stepped = _shrunk(shift, weights, (slopes - squares * step) / curvature)
    if following is None:
        return stepped
    means = np.concatenate([(mine - its).mean(axis=1, dtype=np.float64) for mine, its in pairs])
    mean = weights @ means
    tried = np.stack([stepped, _shrunk(mean, weights, means - mean), np.zeros_like(mean)])
    left = np.stack([weights @ _slopes_and_errors(pairs, each, following)[2] for each in tried])
    best: NDArray[np.float64] = np.take_along_axis(tried, left.argmin(axis=0)[None], axis=0)[0]
    return best


def _ends(arrays: Sequence[NDArray[np.float32]]) -> tuple[float, float]:
    """The range that a function is looked at on: of all values, but for those far beyond what samples usually reach.

    A table that has to hold one sample of 1e30 has no step left for the others.
    """
    reach = np.median(np.concatenate([np.abs(array).max(axis=(1, 2)) for array in arrays]))
    limit = _FAR * float(reach) if reach > 0 else math.inf
    low, high = min(float(array.min()) for array in arrays), max(float(array.max()) for array in arrays)
    return max(low, -limit), min(high, limit)


def _weights(errors: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much each sample counts by its squared error, (n,); their sum is 1."""
    errors = np.maximum(errors, _LEAST_ERROR * float(np.median(errors)) + np.finfo(np.float64).tiny)
    weights = 1.0 / errors.sum() + 1.0 / (len(errors) * errors)
    found: NDArray[np.float64] = weights / weights.sum()
    return found


def _shrunk(
    shift: NDArray[np.float64], weights: NDArray[np.float64], departures: NDArray[np.float64]
) -> NDArray[np.float64]:
    """A shift without what its samples do not bear out: departures of each from it, shape (n, channels)."""
    if len(weights) < 2:
        return shift
    variance = np.square(weights) @ np.square(departures) * len(weights) / (len(weights) - 1)
    kept: NDArray[np.float64] = shift * np.maximum(0.0, 1.0 - variance / np.maximum(shift * shift, 1e-300))
    return kept


def _slopes_and_errors(
    pairs: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]],
    shift: NDArray[np.float64],
    following: Following | None,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Of what follows y, and x with a shift: means over positions, each of shape (n, channels).

    Returns:
        f' · (f(y) - f(x + s)), f'² and (f(y) - f(x + s))².
    """
    slopes, squares, errors = [], [], []
    for target, found in pairs:
        shifted = found + shift.astype(np.float32)
        if following is None:
            slope, difference = np.ones((1, 1, 1), dtype=np.float32), target - shifted
        else:
            places = following.places(shifted)
            slope, difference = following.slopes[places], following.values[following.places(target)]
            difference -= following.values[places]
        slopes.append((slope * difference).mean(axis=1, dtype=np.float64))
        square = np.square(slope).mean(axis=1, dtype=np.float64)
        squares.append(np.broadcast_to(square, slopes[-1].shape))
        errors.append(np.square(difference).mean(axis=1, dtype=np.float64))
    return np.concatenate(slopes), np.concatenate(squares), np.concatenate(errors)


def _positions(array: NDArray[np.generic], layer: Layer) -> NDArray[np.float32]:
    """A layer's output as (b, positions, channels); of many positions some, always the same of a layer."""
    rows = np.moveaxis(np.asarray(array, dtype=np.float32), 1 if layer.operator == "Conv" else -1, -1)
    rows = rows.reshape(len(rows), -1, layer.scales.size)
    if rows.shape[1] <= _POSITIONS:
        return rows
    drawn = np.random.default_rng(0).choice(rows.shape[1], _POSITIONS, replace=False)
    return rows[:, np.sort(drawn)]


def _learn_rounding(graph: ir.Graph, stop: _Stop, scheme: Scheme, inputs: Arrays, *, centred: bool) -> float:
    """Learn which way to round; the share by which the squared error of the output fell.

    Args:
        graph: The quantized graph, which is changed.
        stop: The layer.
        scheme: That it was quantized with.
        inputs: Of the layer in the quantized graph.
        centred: Whether the bias takes the mean of the error away afterwards.
    """
    layer, float_node = stop.layer, stop.float_node
    weights = graphs.array_of(float_node.inputs[1])
    assert weights is not None  # it was quantized
    geometry = _geometry(float_node, weights)
    if geometry is None:
        return 0.0
    moments = reduce(add, (rounding.gram(np.asarray(array, dtype=np.float32), **geometry) for array in inputs))
    done = rounding.adaround(
        weights,
        layer.scales,
        layer.axis,
        scheme.weights.low,
        scheme.weights.high,
        moments.matrix(centred=centred),
    )
    integers = done.integers
    if scheme.pair_sums_saturate and not is_depthwise(float_node, weights):
        unsafe = can_saturate(integers, layer.axis, scheme.activations.high, PACKING)
        nearest = round_weights(weights, layer.scales, layer.axis, scheme.weights)
        integers = np.where(_along(unsafe, layer.axis, weights.ndim), nearest, integers).astype(np.int8)
    constants.replace_integers(graph, stop.node, integers)
    return 1.0 - done.objective_after / done.objective_before if done.objective_before > 0 else 0.0


def _along(vector: np.ndarray, axis: int, rank: int) -> np.ndarray:
    return vector.reshape([-1 if index == axis else 1 for index in range(rank)])


def _geometry(node: ir.Node, weights: np.ndarray) -> dict[str, Any] | None:
    """What :func:`edgetl.quantize.rounding.gram` asks of a node; None where its padding is not written out."""
    if node.op_type != "Conv":
        return {"op_type": node.op_type}
    padding = node.attributes.get("auto_pad")
    if padding is not None and padding.as_string() != "NOTSET":
        return None
    lists = {name: list(node.attributes[name].as_ints()) for name in _LISTS if name in node.attributes}
    return {"op_type": "Conv", "kernel": weights.shape[2:], "groups": group_count(node), **lists}
