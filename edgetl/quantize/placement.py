"""Where Q/DQ pairs stand: from a float graph, statistics and a scheme to the graph that an engine fuses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from edgetl.errors import ModelError
from edgetl.quantize import graph as graphs
from edgetl.quantize.ranges import QuantParams, activation_params, limit_pair_sums, params_of, weight_scales
from edgetl.quantize.schemes import Scheme
from edgetl.quantize.sketch import Sketch
from edgetl.specs import Recipe

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """A graph with Q/DQ pairs, and an account of them."""

    model: ir.Model
    params: Mapping[str, QuantParams]
    """Activation → scale and zero point."""
    quantized: Mapping[str, int]
    """Operator → nodes that the engine can compute in integers, or folds into one that it does."""
    left_in_float: Mapping[str, int]
    """Operator → nodes that stay in float."""


@dataclass(kw_only=True)
class _Plan:
    """What the scheme asks of one graph."""

    nodes: dict[int, ir.Node] = field(default_factory=dict)
    """Nodes that become integer ones, by identity."""
    values: dict[ir.Value, None] = field(default_factory=dict)
    """Activations that are quantized, in the graph's order."""
    root: dict[ir.Value, ir.Value] = field(default_factory=dict)
    """Value behind a transparent operator → value whose quantization it shares."""

    bare: dict[int, ir.Value] = field(default_factory=dict)
    """Residual Add, by identity → the branch that is fused into its convolution and has no pair."""

    def root_of(self, value: ir.Value) -> ir.Value:
        while value in self.root:
            value = self.root[value]
        return value


def points(model: ir.Model, schemes: list[Scheme]) -> list[str]:
    """The activations whose statistics any of the schemes will ask for.

    Args:
        model: From :func:`edgetl.quantize.graph.prepare`; not changed.
    """
    names: dict[str, None] = {}
    for scheme in schemes:
        plan = _plan(model, scheme)
        names.update((plan.root_of(value).name or "", None) for value in plan.values if graphs.array_of(value) is None)
        fed = (node.inputs[0] for node in plan.nodes.values() if node.op_type in scheme.weighted)
        names.update((value.name or "", None) for value in fed if value is not None)  # for bias correction
    return list(names)


def quantize(model: ir.Model, statistics: Mapping[str, Sketch], scheme: Scheme, recipe: Recipe) -> Quantized:
    """Insert the Q/DQ pairs of a scheme.

    Args:
        model: From :func:`edgetl.quantize.graph.prepare`; it is changed into the result.
        statistics: By activation, for at least ``points(model, [scheme])``.
        scheme: The engine's.
        recipe: How ranges are chosen.

    Raises:
        ModelError: Nothing in the graph can be quantized, or an activation has no statistics.
    """
    import onnx_ir.passes.common as passes

    plan = _plan(model, scheme)
    if not plan.nodes:
        raise ModelError(
            f"nothing in this graph can be quantized for {scheme.name}: "
            f"it has none of {', '.join(sorted(scheme.weighted))} with constant weights"
        )
    params = {value: _params(plan.root_of(value), statistics, scheme, recipe) for value in plan.values}
    before = Counter(node.op_type for node in model.graph)
    quantized = Counter(node.op_type for node in plan.nodes.values())
    quantized.update(node.op_type for node in model.graph if _follows(node, plan, scheme))
    named = {value.name or "": chosen for value, chosen in params.items()}
    # Before pairs come between, and before values that are outputs get other names.
    means = {
        id(node): _input_means(node, statistics, recipe)
        for node in plan.nodes.values()
        if node.op_type in scheme.weighted
    }
    _insert_activation_pairs(model.graph, plan, params, scheme)
    for node in plan.nodes.values():
        if node.op_type in scheme.weighted:
            _quantize_weights(model.graph, node, scheme, recipe, means[id(node)])
    model.graph.sort()
    passes.RemoveUnusedNodesPass()(model)  # the float weights that integers replaced
    passes.NameFixPass()(model)  # where the model has names like ours already
    return Quantized(
        model=model,
        params=named,
        quantized=dict(quantized),
        left_in_float={name: count - quantized[name] for name, count in before.items() if count > quantized[name]},
    )


def _plan(model: ir.Model, scheme: Scheme) -> _Plan:
    plan = _Plan()
    order = list(model.graph)
    for node in order:
        if _is_weighted(node, scheme):
            plan.nodes[id(node)] = node
    for node in order:
        if _is_elementwise(node, scheme):
            plan.nodes[id(node)] = node
    for node in plan.nodes.values():
        for value in _activations(node):
            plan.values[value] = None
        output = _behind_function(node.outputs[0], scheme)
        if scheme.placement == "inputs-and-outputs" and not (
            output.is_graph_output() and node.op_type in ("Gemm", "MatMul")
        ):
            plan.values[output] = None
    _share_through_transparent(plan, order, scheme)
    if scheme.placement == "inputs":
        _mark_residual_branches(plan, order)
    rank = {output: place for place, node in enumerate(order) for output in node.outputs}
    plan.values = dict.fromkeys(sorted(plan.values, key=lambda value: rank.get(value, -1)))
    return plan


def _is_weighted(node: ir.Node, scheme: Scheme) -> bool:
    if node.domain or node.op_type not in scheme.weighted:
        return False
    weights = graphs.array_of(node.inputs[1])
    if weights is None or weights.dtype != np.float32 or weights.ndim < 2:
        return False
    if node.op_type == "MatMul" and weights.ndim != 2:
        return False
    if node.op_type == "Gemm" and any(
        name in node.attributes and node.attributes[name].as_float() != 1.0 for name in ("alpha", "beta")
    ):
        return False
    if graphs.array_of(node.inputs[0]) is not None or _has_attribute(node, "transA"):
        return False
    if node.op_type == "Conv":
        narrow = min(weights.shape[0], weights.shape[1] * _group_count(node))
    else:
        narrow = min(weights.shape)
    return bool(narrow >= scheme.minimum_channels)


def _has_attribute(node: ir.Node, name: str) -> bool:
    return name in node.attributes and node.attributes[name].as_int() != 0


def _is_elementwise(node: ir.Node, scheme: Scheme) -> bool:
    """Where all inputs are float activations, or constants that fit one quantization."""
    if node.domain or node.op_type not in scheme.elementwise:
        return False
    import onnx_ir as ir

    for value in node.inputs:
        if value is None or value.dtype != ir.DataType.FLOAT:
            return False
        constant = graphs.array_of(value)
        if constant is not None and not np.isfinite(constant).all():
            return False
    return any(graphs.array_of(value) is None for value in node.inputs)


def _activations(node: ir.Node) -> list[ir.Value]:
    """The inputs that are quantized per tensor: of a weighted operator the first, else all of them."""
    from_weights = node.op_type in ("Conv", "Gemm", "MatMul")
    values = node.inputs[:1] if from_weights else node.inputs
    return [value for value in values if value is not None]


def _follows(node: ir.Node, plan: _Plan, scheme: Scheme) -> bool:
    """Whether a node vanishes into an integer one, or moves integers: a folded ReLU, a transparent operator."""
    source = node.inputs[0] if node.inputs else None
    if source is None or id(node) in plan.nodes:
        return False
    if node.op_type in scheme.activation_functions:
        producer = source.producer()
        return producer is not None and id(producer) in plan.nodes and len(source.uses()) == 1
    return node.op_type in scheme.transparent and node.outputs[0] in plan.root


def _behind_function(value: ir.Value, scheme: Scheme) -> ir.Value:
    """Behind the ReLU that the engine folds into the operator, where it is the only consumer."""
    consumers = value.consumers()
    if len(consumers) == 1 and not value.is_graph_output():
        (consumer,) = consumers
        if consumer.op_type in scheme.activation_functions and consumer.inputs[0] is value:
            return consumer.outputs[0]
    return value


def _share_through_transparent(plan: _Plan, order: list[ir.Node], scheme: Scheme) -> None:
    """Carry a quantization over operators that only move values."""
    for node in order:
        if node.op_type in scheme.transparent and not node.domain and node.inputs[0] is not None:
            source, output = node.inputs[0], node.outputs[0]
            if source in plan.values and not output.is_graph_output() and scheme.placement == "inputs-and-outputs":
                plan.values[output] = None
            if source in plan.values and output in plan.values:
                plan.root[output] = source


def _mark_residual_branches(plan: _Plan, order: list[ir.Node]) -> None:
    """At a residual Add, quantize the skip branch alone: the other is fused into the convolution before it."""
    for node in order:
        if node.op_type != "Add" or node.domain or any(graphs.array_of(value) is not None for value in node.inputs):
            continue
        fused = [
            value
            for value in node.inputs
            if value is not None
            and (producer := value.producer()) is not None
            and id(producer) in plan.nodes
            and producer.op_type == "Conv"
            and len(value.uses()) == 1
        ]
        if fused:
            plan.nodes[id(node)] = node
            for value in node.inputs:
                if value is not None and value is not fused[0]:
                    plan.values[value] = None
            plan.bare[id(node)] = fused[0]


def _params(value: ir.Value, statistics: Mapping[str, Sketch], scheme: Scheme, recipe: Recipe) -> QuantParams:
    constant = graphs.array_of(value)
    if constant is not None:
        return params_of(float(constant.min()), float(constant.max()), scheme.activations)
    if value.name is None or value.name not in statistics:
        raise ModelError(f"the activation '{value.name}' has no statistics: calibrate this model first")
    return activation_params(statistics[value.name], recipe.activations, scheme.activations)


def _insert_activation_pairs(
    graph: ir.Graph, plan: _Plan, params: Mapping[ir.Value, QuantParams], scheme: Scheme
) -> None:
    """One Q/DQ pair behind each quantized activation.

    With outputs quantized too, every consumer reads the pair, or the engine could not fuse the producer; otherwise
    only integer nodes do.
    """
    import onnx_ir as ir

    for value, chosen in params.items():
        uses = [(node, index) for node, index in value.uses() if _reads_pair(node, index, value, plan, scheme)]
        is_output = value.is_graph_output()
        name = value.name or "activation"
        scale = graphs.add_initializer(graph, f"{name}_scale", np.asarray(chosen.scale, dtype=np.float32))
        zero_point = graphs.add_initializer(
            graph, f"{name}_zero_point", np.asarray(chosen.zero_point, dtype=chosen.type.name)
        )
        quantize = ir.node("QuantizeLinear", [value, scale, zero_point], name=f"{name}_quantize")
        dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], scale, zero_point], name=f"{name}_dequantize")
        quantize.outputs[0].name = f"{name}_quantized"
        graphs.name_output(dequantize, f"{name}_dequantized", like=value)
        graph.extend([quantize, dequantize])
        for node, index in uses:
            node.replace_input_with(index, dequantize.outputs[0])
        if is_output and scheme.placement == "inputs-and-outputs":
            position = list(graph.outputs).index(value)
            graph.outputs[position] = dequantize.outputs[0]
            dequantize.outputs[0].name, value.name = value.name, f"{name}_float"


def _reads_pair(node: ir.Node, index: int, value: ir.Value, plan: _Plan, scheme: Scheme) -> bool:
    """Whether a use of a quantized value is rewired to its pair."""
    if graphs.array_of(value) is not None:  # a constant may also be somebody's weights, bias or bound
        return id(node) in plan.nodes and (node.op_type not in scheme.weighted or index == 0)
    return scheme.placement == "inputs-and-outputs" or _reads_integers(node, value, plan, scheme)


def _reads_integers(node: ir.Node, value: ir.Value, plan: _Plan, scheme: Scheme) -> bool:
    if id(node) not in plan.nodes:
        # A transparent operator between the pair and its consumer would end the fusion.
        return node.op_type in scheme.transparent and node.outputs[0] in plan.root
    return value is not plan.bare.get(id(node))


def _quantize_weights(
    graph: ir.Graph, node: ir.Node, scheme: Scheme, recipe: Recipe, input_means: np.ndarray | None
) -> None:
    """Replace the weights, and the bias where the scheme says so, by integers behind a DequantizeLinear."""
    weights_value = node.inputs[1]
    weights = graphs.array_of(weights_value)
    assert weights_value is not None and weights is not None  # _is_weighted saw to it
    axis = 0 if node.op_type == "Conv" or _has_attribute(node, "transB") else weights.ndim - 1
    scales = weight_scales(weights, axis, recipe.weights, scheme.weights)
    if scheme.pair_sum_limit is not None and not _is_depthwise(node, weights):
        scales = limit_pair_sums(scales, weights, axis, scheme.pair_sum_limit)
    input_scale = _input_scale(node)
    bias = _bias(node, len(scales), wanted=input_means is not None)
    if bias is not None and scheme.bias == "int32":
        # A channel with tiny weights and a large bias would overflow the bias: its scale is widened. One of zeros has
        # any scale: the one that keeps twenty bits of its bias.
        magnitude = np.abs(bias) / np.float32(input_scale)
        empty = ~np.moveaxis(weights, axis, 0).reshape(len(scales), -1).any(axis=1) & (bias != 0)
        scales = np.where(empty, magnitude / 2**20, np.maximum(scales, magnitude / (2**31 - 2**16))).astype(np.float32)
    name = f"{weights_value.name}_{node.name}" if len(weights_value.uses()) > 1 else f"{weights_value.name}"
    shape = [-1 if index == axis else 1 for index in range(weights.ndim)]
    integers = np.clip(np.rint(weights / scales.reshape(shape)), scheme.weights.low, scheme.weights.high)
    node.replace_input_with(1, _dequantized(graph, name, integers.astype(np.int8), scales, axis))
    if bias is None:
        return
    if input_means is not None:
        rounding = integers * scales.reshape(shape).astype(np.float64) - weights
        bias = bias - _response(node, rounding, axis, input_means)
    if scheme.bias == "int32":
        bias_scales = (scales * np.float32(input_scale)).astype(np.float32)
        steps = np.clip(np.rint(bias.astype(np.float64) / bias_scales), -(2**31), 2**31 - 1).astype(np.int32)
        new = _dequantized(graph, f"{node.name}_bias", steps, bias_scales, 0)
    elif input_means is None:
        return
    else:
        new = graphs.add_initializer(graph, f"{node.name}_bias", bias.astype(np.float32))
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    node.replace_input_with(2, new)


def _is_depthwise(node: ir.Node, weights: np.ndarray) -> bool:
    groups = _group_count(node)
    return node.op_type == "Conv" and groups > 1 and weights.shape[1] == 1 and weights.shape[0] == groups


def _group_count(node: ir.Node) -> int:
    return node.attributes["group"].as_int() if "group" in node.attributes else 1


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
    groups = _group_count(node)
    per_group = means.reshape(groups, -1)
    outputs = summed.shape[0] // groups
    return np.asarray(np.einsum("goc,gc->go", summed.reshape(groups, outputs, -1), per_group)).reshape(-1)


def _input_means(node: ir.Node, statistics: Mapping[str, Sketch], recipe: Recipe) -> np.ndarray | None:
    """Mean per channel of what a weighted operator was fed with; None where it is not wanted or not known."""
    value = node.inputs[0]
    if recipe.bias_correction == "none" or value is None:
        return None
    sketch = statistics.get(value.name or "")
    means = sketch.channel_means() if sketch is not None else None
    weights = graphs.array_of(node.inputs[1])
    if means is None or weights is None:
        return None
    reduced = weights.shape[1] if node.op_type == "Conv" or _has_attribute(node, "transB") else weights.shape[0]
    return means if len(means) == reduced * _group_count(node) else None


def _input_scale(node: ir.Node) -> float:
    """The scale of the pair that was put before this node."""
    source = node.inputs[0]
    dequantize = source.producer() if source is not None else None
    scale = graphs.array_of(dequantize.inputs[1]) if dequantize is not None else None
    return float(scale) if scale is not None else 1.0


def _dequantized(graph: ir.Graph, name: str, integers: np.ndarray, scales: np.ndarray, axis: int) -> ir.Value:
    import onnx_ir as ir

    quantized = graphs.add_initializer(graph, f"{name}_quantized", integers)
    scale = graphs.add_initializer(graph, f"{name}_scale", scales)
    zero_point = graphs.add_initializer(graph, f"{name}_zero_point", np.zeros(scales.shape, dtype=integers.dtype))
    node = ir.node("DequantizeLinear", [quantized, scale, zero_point], {"axis": axis}, name=f"{name}_dequantize")
    output = node.outputs[0]
    output.name, output.dtype, output.shape = f"{name}_dequantized", ir.DataType.FLOAT, ir.Shape(integers.shape)
    graph.append(node)
    return output
