"""From a plan to the graph that an engine fuses: Q/DQ pairs, integer weights, integer biases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np

from edgetl.errors import ModelError
from edgetl.quantize import graph as graphs
from edgetl.quantize.constants import dequantized, held, set_bias
from edgetl.quantize.placement import (
    Plan,
    channel_axis,
    follows,
    group_count,
    made_in_integers,
    onward,
    pads,
    plan_of,
)
from edgetl.quantize.ranges import (
    QuantParams,
    activation_params,
    params_of,
    signed_params,
    weight_scales,
    without_outliers,
)
from edgetl.quantize.saturation import Packing, round_weights, scales_without_saturation
from edgetl.quantize.schemes import Scheme
from edgetl.quantize.sketch import Sketch
from edgetl.specs import Estimator, Recipe

if TYPE_CHECKING:
    import onnx_ir as ir

PACKING: Packing = "channels-last"
"""How the engines that saturate pair products; docs/saturation.md tells how that was seen."""
_ROOM_OF_BIAS = 2**31 - 2**16
"""Largest magnitude of an int32 bias, with room for what corrections add."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A weighted node that was quantized, and where its parts are found."""

    node: str
    """Its name, in the float graph and in the quantized one."""
    operator: str
    input: str
    """The activation that it reads, by its name in the float graph."""
    output: str
    """What it puts out, before any function behind it, by its name in the float graph."""
    weights: str
    """Initializer of the float graph."""
    integers: str
    """Initializer of the quantized graph: the weights as int8."""
    scales: np.ndarray
    """Of the weights: float32, shape (channels,)."""
    axis: int
    """Axis of the output channels in the weights."""
    widened: int = 0
    """Channels whose scale was widened so that no pair of products saturates 16 bits."""


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """A graph with Q/DQ pairs, and an account of them."""

    model: ir.Model
    params: Mapping[str, QuantParams]
    """Activation → scale and zero point."""
    layers: tuple[Layer, ...]
    """The weighted nodes, in the graph's order."""
    quantized: Mapping[str, int]
    """Operator → nodes that the engine can compute in integers, or folds into one that it does."""
    left_in_float: Mapping[str, int]
    """Operator → nodes that stay in float."""


KnownScales = dict[tuple[Any, ...], np.ndarray]
"""Scales of weights that were worked out already, for one float graph, one scheme and one estimator of weights: a
search over the ranges of activations does not do it again."""


def quantize(
    model: ir.Model,
    statistics: Mapping[str, Sketch],
    scheme: Scheme,
    recipe: Recipe,
    known: KnownScales | None = None,
) -> Quantized:
    """Insert the Q/DQ pairs of a scheme.

    Args:
        model: From :func:`edgetl.quantize.graph.prepare`; it is changed into the result.
        statistics: By activation, for at least ``points(model, [scheme])``.
        scheme: The engine's.
        recipe: How ranges are chosen; of kind "static".
        known: Read and filled; the same one for every time that copies of a graph are quantized in one search.

    Raises:
        ModelError: Nothing in the graph can be quantized, it is quantized already, or an activation has no statistics.
    """
    import onnx_ir.passes.common as passes

    graphs.refuse_quantized(model)
    if recipe.attention == "float":
        scheme = replace(scheme, activation_products=None)
    plan = plan_of(model, scheme, recipe.keep_float)
    if not plan.nodes:
        raise ModelError(
            f"nothing in this graph can be quantized for {scheme.name}: "
            f"it has none of {', '.join(sorted(scheme.weighted))} with constant float32 weights"
            + (f" and {scheme.minimum_channels} channels or more" if scheme.minimum_channels > 1 else ""),
            hint="edgetl inspect MODEL lists its operators; keep_float of the recipe may exclude them",
        )
    assert recipe.activations is not None and recipe.weights is not None  # of every static recipe
    params = _all_params(plan, statistics, recipe.activations)
    before = Counter(node.op_type for node in model.graph)
    quantized = Counter(node.op_type for node in plan.nodes.values())
    quantized.update(node.op_type for node in model.graph if follows(node, plan))
    named = {value.name or "": chosen for value, chosen in params.items()}
    drafts = [_Draft.of(node, statistics, recipe, params) for node in plan.weighted()]  # before pairs come between
    _insert_activation_pairs(model.graph, plan, params)
    known = {} if known is None else known
    layers = tuple(_quantize_weights(model.graph, draft, scheme, recipe.weights, known) for draft in drafts)
    model.graph.sort()
    passes.RemoveUnusedNodesPass()(model)  # the float weights that integers replaced
    passes.NameFixPass()(model)  # where the model has names like ours already
    return Quantized(
        model=model,
        params=named,
        layers=layers,
        quantized=dict(quantized),
        left_in_float={name: count - quantized[name] for name, count in before.items() if count > quantized[name]},
    )


def _all_params(plan: Plan, statistics: Mapping[str, Sketch], estimator: Estimator) -> dict[ir.Value, QuantParams]:
    """The quantization of every activation; each is worked out once, however many values share it."""
    known: dict[tuple[int, ...], QuantParams] = {}
    params = {}
    for value in plan.values:
        measured = plan.measured(value)
        key = tuple(sorted(id(other) for other in measured))
        if key not in known:
            known[key] = _params(measured, statistics, plan, estimator)
        params[value] = known[key]
    return params


def _params(values: list[ir.Value], statistics: Mapping[str, Sketch], plan: Plan, estimator: Estimator) -> QuantParams:
    scheme = plan.scheme
    constants = [array for value in values if (array := graphs.array_of(value)) is not None]
    if constants:  # shares its quantization with nothing that is measured
        low, high = (float(edge(array)) for edge, array in ((np.min, constants[0]), (np.max, constants[0])))
        return params_of(low, high, scheme.activations)
    readers, values = values, [_with_statistics(value, statistics, scheme) for value in values]
    missing = [str(value.name) for value in values if value.name not in statistics]
    if missing:
        raise ModelError(
            f"the activation '{missing[0]}' has no statistics: calibrate this model first",
            hint="statistics belong to the graph that they were taken of",
        )
    sketches = [statistics[str(value.name)] for value in values]
    reached = [_reached(value, sketch, plan) for value, sketch in zip(readers, sketches, strict=True)]
    if estimator.outliers == "drop":
        sketches = [without_outliers(sketch) for sketch in sketches]
    if readers == values:
        sketches = [sketch.within(*ends) if ends else sketch for sketch, ends in zip(sketches, reached, strict=True)]
    pooled = reduce(Sketch.pooled, sketches)
    type_ = scheme.activations
    uses = [use for value in readers for moved in onward(value, scheme) for use in moved.uses()]
    places = {index for node, index in uses if id(node) in plan.products}
    if type_.signed is not None and places:
        # Unsigned bytes are fast as first factor alone, and without a zero point.
        return activation_params(pooled, estimator, type_ if pooled.low >= 0.0 and places == {0} else type_.signed)
    pays = any(_pays_for_zero_point(value, plan) for value in readers)
    return (signed_params if pays else activation_params)(pooled, estimator, type_)


def _pays_for_zero_point(value: ir.Value, plan: Plan) -> bool:
    """Whether a convolution reads a value whose zero point no bias can take: it pads, or others read the pair, too."""
    whole = made_in_integers(value, plan)
    readers = [node for node, index in value.uses() if _reads_pair(node, index, value, plan, whole)]
    in_bias = plan.scheme.zero_points_in_bias
    alone = all(id(node) in plan.nodes and node.op_type in in_bias and not pads(node) for node in readers)
    return any(node.op_type == "Conv" for node in readers) and not (alone and not value.is_graph_output())


def _reached(value: ir.Value, sketch: Sketch, plan: Plan) -> tuple[float, float] | None:
    """How far the channels go that some integer product of a value does not multiply by zero; None where all count."""
    read = _read_channels(value, plan)
    if read is None or read.all() or not read.any() or read.size != sketch.channel_low.size:
        return None
    return float(sketch.channel_low[read].min()), float(sketch.channel_high[read].max())


def _read_channels(value: ir.Value, plan: Plan) -> np.ndarray | None:
    """Channels of the last axis that count in integers, bool (channels,); None where all may."""
    whole = made_in_integers(value, plan)
    if (whole and value.is_graph_output()) or graphs.axis_of_channels(value) != -1:
        return None
    found = None
    for node, index in value.uses():
        if not _reads_pair(node, index, value, plan, whole):
            continue
        weights = graphs.array_of(node.inputs[1]) if len(node.inputs) > 1 else None
        if id(node) not in plan.nodes or node.op_type not in ("MatMul", "Gemm") or index or weights is None:
            return None
        read = np.asarray(weights.any(axis=channel_axis(node, weights)))
        found = read if found is None else found | read
    return found


def _with_statistics(value: ir.Value, statistics: Mapping[str, Sketch], scheme: Scheme) -> ir.Value:
    """The value itself where it was measured; else, where a recipe keeps the node before in float, its source."""
    start = value
    while value.name not in statistics:
        producer = value.producer()
        if producer is None or producer.op_type not in scheme.transparent or producer.inputs[0] is None:
            return start
        value = producer.inputs[0]
    return value


def _insert_activation_pairs(graph: ir.Graph, plan: Plan, params: Mapping[ir.Value, QuantParams]) -> None:
    """One Q/DQ pair behind each quantized activation.

    Where its producer puts out integers, every consumer reads the pair, or the engine could not fuse the producer;
    otherwise only integer nodes do: the residual Add beside a product behind a LayerNormalization loses nothing.
    """
    import onnx_ir as ir

    whole = {value for value in params if made_in_integers(value, plan)}  # before pairs come between
    for value, chosen in params.items():
        uses = [(node, index) for node, index in value.uses() if _reads_pair(node, index, value, plan, value in whole)]
        is_output = value.is_graph_output() and value in whole
        name = value.name or "activation"
        scale = graphs.add_initializer(graph, f"{name}_scale", np.asarray(chosen.scale, dtype=np.float32))
        zero_point = graphs.add_initializer(
            graph, f"{name}_zero_point", np.asarray(chosen.zero_point, dtype=chosen.type.name)
        )
        quantize = ir.node("QuantizeLinear", [value, scale, zero_point], name=f"{name}_quantize")
        dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], scale, zero_point], name=f"{name}_dequantize")
        quantize.outputs[0].name = f"{name}_quantized"
        quantize.outputs[0].dtype, quantize.outputs[0].shape = ir.DataType[chosen.type.name.upper()], value.shape
        graphs.name_output(dequantize, f"{name}_dequantized", like=value)
        graph.extend([quantize, dequantize])
        for node, index in uses:
            node.replace_input_with(index, dequantize.outputs[0])
        if is_output:
            position = list(graph.outputs).index(value)
            graph.outputs[position] = dequantize.outputs[0]
            dequantize.outputs[0].name, value.name = value.name, f"{name}_float"


def _reads_pair(node: ir.Node, index: int, value: ir.Value, plan: Plan, whole: bool) -> bool:
    """Whether a use of a quantized value, all of which is computed as integers or not, is rewired to its pair."""
    if graphs.array_of(value) is not None:  # a constant may also be somebody's weights, bias or bound
        return id(node) in plan.nodes and (node.op_type not in plan.scheme.weighted or index == 0)
    return whole or _reads_integers(node, value, plan)


def _reads_integers(node: ir.Node, value: ir.Value, plan: Plan) -> bool:
    if id(node) not in plan.nodes:
        # A transparent operator between the pair and its consumer would end the fusion.
        return node.op_type in plan.scheme.transparent and node.outputs[0] in plan.root
    return value is not plan.bare.get(id(node))


@dataclass(kw_only=True)
class _Draft:
    """A weighted node before pairs come between it and what it reads."""

    node: ir.Node
    weights_value: ir.Value
    weights: np.ndarray
    input: str
    output: str
    input_means: np.ndarray | None
    """Mean of each input channel, as far as its quantization reaches: a sample far out may hold most of the mean, and
    is clipped. None where the bias is not corrected by it."""

    @classmethod
    def of(
        cls,
        node: ir.Node,
        statistics: Mapping[str, Sketch],
        recipe: Recipe,
        params: Mapping[ir.Value, QuantParams],
    ) -> _Draft:
        source, value = node.inputs[0], node.inputs[1]
        weights = graphs.array_of(value)
        assert source is not None and value is not None and weights is not None  # the plan saw to it
        means = None
        if recipe.bias_correction == "input-mean" and source.name in statistics:
            found = np.clip(statistics[str(source.name)].channel_means(), params[source].low, params[source].high)
            reduced = weights.shape[1] if channel_axis(node, weights) == 0 else weights.shape[0]
            means = found if len(found) == reduced * group_count(node) else None
        return cls(
            node=node,
            weights_value=value,
            weights=weights,
            input=str(source.name),
            output=str(node.outputs[0].name),
            input_means=means,
        )


def _quantize_weights(
    graph: ir.Graph, draft: _Draft, scheme: Scheme, estimator: Estimator, known: KnownScales
) -> Layer:
    """Replace the weights, and the bias where the scheme says so, by integers behind a DequantizeLinear."""
    node, weights = draft.node, draft.weights
    axis = channel_axis(node, weights)
    key = (draft.weights_value.name, axis)
    if key not in known:
        known[key] = weight_scales(weights, axis, estimator, scheme.weights)
    scales = known[key]
    widened = 0
    input_scale = _input_scale(node)
    bias = _bias(node, len(scales), wanted=draft.input_means is not None)
    if bias is not None and scheme.bias == "int32":
        scales = _with_room_for_bias(scales, bias, input_scale, weights, axis)
    if scheme.pair_sums_saturate and not is_depthwise(node, weights):
        start = (*key, scales.tobytes())  # with room for a bias they may depend on the activations
        if start not in known:
            most = scheme.activations.high
            known[start] = scales_without_saturation(weights, scales, axis, most, scheme.weights, PACKING)
        safe = known[start]
        widened, scales = int((safe > scales).sum()), safe
    integers = round_weights(weights, scales, axis, scheme.weights)
    value = draft.weights_value
    name = f"{value.name}_{node.name}" if len(value.uses()) > 1 else f"{value.name}"
    new = dequantized(graph, name, integers, scales, axis)
    node.replace_input_with(1, new)
    if bias is not None:
        if draft.input_means is not None:
            shape = [-1 if index == axis else 1 for index in range(weights.ndim)]
            rounding = integers * scales.reshape(shape).astype(np.float64) - weights
            bias = bias - _response(node, rounding, axis, draft.input_means)
        if scheme.bias == "float":
            bias = held(bias, scheme)
        if scheme.bias == "int32" or scheme.rest == "float16" or draft.input_means is not None:
            set_bias(graph, node, bias, scales * np.float32(input_scale) if scheme.bias == "int32" else None)
    producer = new.producer()
    assert producer is not None and producer.inputs[0] is not None  # _dequantized made it
    return Layer(
        node=str(node.name),
        operator=node.op_type,
        input=draft.input,
        output=draft.output,
        weights=str(value.name),
        integers=str(producer.inputs[0].name),
        scales=scales,
        axis=axis,
        widened=widened,
    )


def _with_room_for_bias(
    scales: np.ndarray, bias: np.ndarray, input_scale: float, weights: np.ndarray, axis: int
) -> np.ndarray:
    """Scales at which an int32 bias does not overflow, as it would with tiny weights and a large bias.

    A channel of zeros has any scale: the one that keeps twenty bits of its bias.
    """
    magnitude = np.abs(bias) / np.float32(input_scale)
    empty = ~np.moveaxis(weights, axis, 0).reshape(len(scales), -1).any(axis=1) & (bias != 0)
    roomy = np.where(empty, magnitude / 2**20, np.maximum(scales, magnitude / _ROOM_OF_BIAS))
    return np.asarray(roomy, dtype=np.float32)


def is_depthwise(node: ir.Node, weights: np.ndarray) -> bool:
    """Whether each input channel is convolved by itself into one output channel."""
    groups = group_count(node)
    return node.op_type == "Conv" and groups > 1 and weights.shape[1] == 1 and weights.shape[0] == groups


def _bias(node: ir.Node, channels: int, *, wanted: bool) -> np.ndarray | None:
    """The bias per output channel; zeros where there is none and one is wanted; None where it is of another kind."""
    if node.op_type == "MatMul":
        return None
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return np.zeros(channels, dtype=np.float32) if wanted else None
    bias = graphs.array_of(value)
    return bias if bias is not None and bias.shape == (channels,) else None


def _response(node: ir.Node, rounding: np.ndarray, axis: int, means: np.ndarray) -> np.ndarray:
    """What the rounding of weights adds to each output channel at the mean input.

    Nagel et al. 2019, Data-free quantization through weight equalization and bias correction, arXiv:1906.04721,
    section 4.2: the expectation of the error is the error of the weights times the expectation of the input. Padding
    at the borders is neglected.
    """
    rows = np.moveaxis(rounding, axis, 0)
    if node.op_type != "Conv":
        return np.asarray(rows @ means)
    summed = rows.reshape(rows.shape[0], rows.shape[1], -1).sum(axis=2)
    groups = group_count(node)
    per_group = means.reshape(groups, -1)
    outputs = summed.shape[0] // groups
    return np.asarray(np.einsum("goc,gc->go", summed.reshape(groups, outputs, -1), per_group)).reshape(-1)


def _input_scale(node: ir.Node) -> float:
    """The scale of the pair that was put before this node."""
    source = node.inputs[0]
    dequantize = source.producer() if source is not None else None
    scale = graphs.array_of(dequantize.inputs[1]) if dequantize is not None else None
    return float(scale) if scale is not None else 1.0
