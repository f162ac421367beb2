"""Where Q/DQ pairs stand: what a scheme asks of a graph, before anything is changed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np

from edgetl.errors import UnknownNameError
from edgetl.quantize import graph as graphs
from edgetl.quantize.schemes import Scheme

if TYPE_CHECKING:
    import onnx_ir as ir

_ARITHMETIC = frozenset({"Add", "Mul"})
_SHOWN = 5
"""Names that a message lists at most."""


@dataclass(kw_only=True)
class Plan:
    """What a scheme asks of one graph."""

    scheme: Scheme
    nodes: dict[int, ir.Node] = field(default_factory=dict)
    """Nodes that become integer ones, by identity."""
    values: dict[ir.Value, None] = field(default_factory=dict)
    """Activations that are quantized, in the graph's order."""
    root: dict[ir.Value, ir.Value] = field(default_factory=dict)
    """Value behind a transparent operator → value whose quantization it shares."""
    shared: dict[ir.Value, list[ir.Value]] = field(default_factory=dict)
    """Value → all values, itself included, that have one quantization, as the inputs and the output of a Concat."""
    products: dict[int, ir.Node] = field(default_factory=dict)
    """Those of the nodes that multiply two activations, by identity."""
    bare: dict[int, ir.Value] = field(default_factory=dict)
    """Residual Add, by identity → the branch that is fused into its convolution and has no pair."""

    def root_of(self, value: ir.Value) -> ir.Value:
        """The value whose statistics say how this one is quantized."""
        while value in self.root:
            value = self.root[value]
        return value

    def measured(self, value: ir.Value) -> list[ir.Value]:
        """The values whose statistics together say how this one is quantized."""
        root = self.root_of(value)
        return list(dict.fromkeys(self.root_of(other) for other in self.shared.get(root, [root])))

    def weighted(self) -> Iterator[ir.Node]:
        """The integer nodes that have weights, in the graph's order."""
        return (
            node
            for key, node in self.nodes.items()
            if node.op_type in self.scheme.weighted and key not in self.products
        )


def points(model: ir.Model, schemes: Collection[Scheme]) -> list[str]:
    """The activations whose statistics any of the schemes will ask for.

    Args:
        model: From :func:`edgetl.quantize.graph.prepare`; not changed.
        schemes: Of the engines in question.
    """
    names: dict[str, None] = {}
    for scheme in schemes:
        plan = plan_of(model, scheme)
        for value in plan.values:
            names.update((other.name or "", None) for other in plan.measured(value) if graphs.array_of(other) is None)
        fed = (node.inputs[0] for node in plan.weighted())
        names.update((value.name or "", None) for value in fed if value is not None)  # for bias correction
        # Where a recipe keeps one convolution in float, the pair of a residual Add moves to the other branch.
        names.update((value.name or "", None) for value in plan.bare.values())
    return list(names)


def plan_of(model: ir.Model, scheme: Scheme, keep_float: Collection[str] = ()) -> Plan:
    """What becomes of each node and activation.

    Args:
        model: From :func:`edgetl.quantize.graph.prepare`; not changed.
        scheme: The engine's.
        keep_float: Operators, names of nodes, or patterns of names (``*`` and ``?``), that stay in float.
    """
    plan = Plan(scheme=scheme)
    order = [node for node in model.graph if not is_kept(node, keep_float)]
    for node in order:
        if _is_weighted(node, scheme):
            plan.nodes[id(node)] = node
            plan.values[_input(node)] = None
            if node.op_type not in scheme.float_outputs and scheme.placement == "inputs-and-outputs":
                plan.values[behind_function(node, scheme)] = None
        elif _multiplies_activations(node, scheme.activation_products):
            plan.nodes[id(node)] = plan.products[id(node)] = node
            plan.values.update((value, None) for value in node.inputs if value is not None)
    # That of a kept matrix product too: an Add between two floats.
    biases = {id(bias_add(node, _channels(node))) for node in model.graph if _is_weighted(node, scheme)}
    _add_elementwise(plan, [node for node in order if id(node) not in biases and not _adds_channel(node)])
    _quantize_before_moving(plan)
    _share_through_transparent(plan, order)
    _share_scales(plan, order)
    if scheme.placement == "inputs":
        _mark_residual_branches(plan, order)
    rank = {output: place for place, node in enumerate(model.graph) for output in node.outputs}
    plan.values = dict.fromkeys(sorted(plan.values, key=lambda value: rank.get(value, -1)))
    in_order = {id(node): node for node in model.graph if id(node) in plan.nodes}
    plan.nodes = in_order
    return plan


def channel_axis(node: ir.Node, weights: np.ndarray) -> int:
    """The axis of a weight tensor that is its output channels."""
    return 0 if node.op_type == "Conv" or flag(node, "transB") else weights.ndim - 1


def group_count(node: ir.Node) -> int:
    """The groups of a convolution; 1 of anything else."""
    return node.attributes["group"].as_int() if "group" in node.attributes else 1


def pads(node: ir.Node) -> bool:
    """Whether a convolution may read zeros from beyond its input; of anything else, False."""
    if "auto_pad" in node.attributes and node.attributes["auto_pad"].as_string() not in ("NOTSET", "VALID"):
        return True
    return node.op_type == "Conv" and "pads" in node.attributes and any(node.attributes["pads"].as_ints())


def flag(node: ir.Node, name: str) -> bool:
    """Whether an integer attribute is there and not 0."""
    return name in node.attributes and node.attributes[name].as_int() != 0


def follows(node: ir.Node, plan: Plan) -> bool:
    """Whether a node vanishes into an integer one, or moves integers: a folded ReLU, a transparent operator."""
    source = node.inputs[0] if node.inputs else None
    if source is None or id(node) in plan.nodes:
        return False
    if node.op_type in plan.scheme.activation_functions:
        producer = source.producer()
        return producer is not None and id(producer) in plan.nodes and len(source.uses()) == 1
    return node.op_type in plan.scheme.transparent and node.outputs[0] in plan.root


def made_in_integers(value: ir.Value, plan: Plan) -> bool:
    """Whether the engine can compute a value as integers, given a pair behind it."""
    producer = value.producer()
    if plan.scheme.placement != "inputs-and-outputs" or producer is None:
        return False
    return id(producer) in plan.nodes or follows(producer, plan)


def behind_function(node: ir.Node, scheme: Scheme) -> ir.Value:
    """A node's output, behind the ReLU that the engine folds into it where that is the only consumer."""
    value = node.outputs[0]
    consumers = value.consumers()
    if len(consumers) == 1 and not value.is_graph_output():
        (consumer,) = consumers
        if consumer.op_type in scheme.activation_functions and consumer.inputs[0] is value:
            return consumer.outputs[0]
    return value


def onward(value: ir.Value, scheme: Scheme) -> Iterator[ir.Value]:
    """A value and its moved forms."""
    yield value
    for node in value.consumers():
        if node.op_type in scheme.transparent and node.inputs[0] is value:
            yield from onward(node.outputs[0], scheme)


def bias_add(node: ir.Node, channels: int) -> ir.Node | None:
    """The Add of a constant per channel that is the only consumer of a MatMul: its bias, in the form that it has.

    Args:
        node: Any node.
        channels: Its output channels.
    """
    if node.op_type != "MatMul" or node.outputs[0].is_graph_output():
        return None
    consumers = node.outputs[0].consumers()
    if len(consumers) != 1 or consumers[0].op_type != "Add" or consumers[0].domain:
        return None
    constants = [array for value in consumers[0].inputs if (array := graphs.array_of(value)) is not None]
    return consumers[0] if len(constants) == 1 and constants[0].shape == (channels,) else None


def is_kept(node: ir.Node, keep_float: Collection[str]) -> bool:
    """Whether a node is among operators, names of nodes, or patterns of names, that stay in float."""
    return any(node.op_type == pattern or fnmatchcase(node.name or "", pattern) for pattern in keep_float)


def refuse_unknown(keep_float: Collection[str], graph: ir.Graph) -> None:
    """See to it that what is to stay in float is known: a misspelt name would silently be quantized.

    An operator of ONNX need not be in the graph: a recipe serves many models.

    Args:
        keep_float: Operators, names of nodes, or patterns of names (``*`` and ``?``).
        graph: As :func:`edgetl.quantize.graph.prepare` left it.

    Raises:
        UnknownNameError: Something is neither an operator of ONNX nor the name, or the pattern of a name, of a node.
    """
    import onnx.defs

    for name in keep_float:
        if not onnx.defs.has(name) and not any(is_kept(node, [name]) for node in graph):
            there = {node.name for node in graph if node.name} | {node.op_type for node in graph}
            raise UnknownNameError(
                f"'{name}', which is to stay in float, is neither an ONNX operator nor a node of this model; "
                f"{_nearest(name, sorted(there))}",
                hint="keep_float in the recipe; edgetl inspect MODEL lists operators",
            )


def _nearest(name: str, known: Sequence[str]) -> str:
    """The names nearest to one, for a message; a few of all where none is near."""
    near = get_close_matches(name, known, n=_SHOWN, cutoff=0.5)
    if near:
        return "near it: " + ", ".join(near)
    return f"it has {', '.join(known[:_SHOWN])}" + (f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else "")


def _is_weighted(node: ir.Node, scheme: Scheme) -> bool:
    if node.domain or node.op_type not in scheme.weighted or len(node.inputs) < 2:
        return False
    weights = graphs.array_of(node.inputs[1])
    if weights is None or weights.dtype != np.float32 or weights.ndim < 2 or not np.isfinite(weights).all():
        return False
    if node.op_type == "MatMul" and weights.ndim != 2:
        return False
    if node.op_type == "Gemm" and any(
        name in node.attributes and node.attributes[name].as_float() != 1.0 for name in ("alpha", "beta")
    ):
        return False
    if graphs.array_of(node.inputs[0]) is not None or flag(node, "transA"):
        return False
    if node.op_type == "Conv":
        narrow = min(weights.shape[0], weights.shape[1] * group_count(node))
    else:
        narrow = min(weights.shape)
    return bool(narrow >= scheme.minimum_channels)


def _adds_channel(node: ir.Node) -> bool:
    """Whether a node adds the product of a channel's column and a constant row, which is there to stay in float."""
    for value in node.inputs if node.op_type == "Add" and not node.domain else ():
        product = value.producer() if value is not None else None
        if product is None or product.op_type != "Mul" or graphs.array_of(product.inputs[1]) is None:
            continue
        column = product.inputs[0].producer() if product.inputs[0] is not None else None
        if column is not None and column.op_type == "Gather" and "axis" in column.attributes:
            return column.attributes["axis"].as_int() == -1
    return False


def _multiplies_activations(node: ir.Node, least_rows: int | None) -> bool:
    """Whether a node is a matrix product of two float32 activations, of so many rows or a number that is not fixed."""
    import onnx_ir as ir

    if least_rows is None or node.op_type != "MatMul" or node.domain:
        return False
    if any(
        value is None or value.dtype != ir.DataType.FLOAT or graphs.array_of(value) is not None for value in node.inputs
    ):
        return False
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    rows = shape[-2] if shape is not None and len(shape) > 1 else None
    return not isinstance(rows, int) or rows >= least_rows


def _input(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None  # _is_weighted saw to it
    return value


def _channels(node: ir.Node) -> int:
    weights = graphs.array_of(node.inputs[1])
    assert weights is not None  # _is_weighted saw to it
    return int(weights.shape[channel_axis(node, weights)])


def _add_elementwise(plan: Plan, order: list[ir.Node]) -> None:
    """Operators without weights become integer ones where they stand among integers, and not between floats.

    Either all that they read is quantized anyway, or what they put out. A residual Add between two matrix products
    that put out floats, before a LayerNormalization, gains nothing from three quantizations; neither does one with a
    constant, as the end of a normalisation or the factors of SmoothQuant, from rounding before and after.
    """
    inputs_and_outputs = plan.scheme.placement == "inputs-and-outputs"
    waiting = [node for node in order if _may_be_elementwise(node, plan.scheme)]
    while True:
        joined = [node for node in waiting if _stands_among_integers(node, plan)]
        if not joined:
            return
        waiting = [node for node in waiting if node not in joined]
        for node in joined:
            plan.nodes[id(node)] = node
            plan.values.update((value, None) for value in node.inputs if value is not None)
            if inputs_and_outputs:
                plan.values[behind_function(node, plan.scheme)] = None


def _quantize_before_moving(plan: Plan) -> None:
    """An output that may be floats is quantized where it, only moved, is what an integer node reads."""
    if plan.scheme.placement == "inputs-and-outputs":
        for node in plan.weighted():
            output = behind_function(node, plan.scheme)
            if any(_is_more_than_factor(value, plan) for value in onward(output, plan.scheme)):
                plan.values[output] = None


def _stands_among_integers(node: ir.Node, plan: Plan) -> bool:
    read = [value for value in node.inputs if value is not None and graphs.array_of(value) is None]
    if plan.scheme.placement == "inputs-and-outputs" and all(_is_quantized(value, plan) for value in read):
        return True
    if node.op_type in _ARITHMETIC and len(read) < len(node.inputs):
        return False
    return any(_is_more_than_factor(value, plan) for value in onward(behind_function(node, plan.scheme), plan.scheme))


def _is_more_than_factor(value: ir.Value, plan: Plan) -> bool:
    """Whether a value is quantized, and not for products of activations alone: these take it as floats made it."""
    readers = value.consumers()
    return value in plan.values and (not readers or any(id(reader) not in plan.products for reader in readers))


def _is_quantized(value: ir.Value, plan: Plan) -> bool:
    """Whether a value, or what it is only a moved form of, is quantized."""
    while value not in plan.values:
        producer = value.producer()
        if producer is None or producer.op_type not in plan.scheme.transparent or producer.inputs[0] is None:
            return False
        value = producer.inputs[0]
    return True


def _may_be_elementwise(node: ir.Node, scheme: Scheme) -> bool:
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


def _share_through_transparent(plan: Plan, order: list[ir.Node]) -> None:
    """Carry a quantization over operators that only move values."""
    for node in order:
        if node.op_type in plan.scheme.transparent and not node.domain and node.inputs[0] is not None:
            source, output = node.inputs[0], node.outputs[0]
            if (
                source in plan.values
                and not output.is_graph_output()
                and plan.scheme.placement == "inputs-and-outputs"
                and plan.scheme.pairs_behind_transparent
                and (output in plan.values or _feeds_integers(output, plan))
            ):
                plan.values[output] = None
            if source in plan.values and output in plan.values:
                plan.root[output] = source


def _feeds_integers(value: ir.Value, plan: Plan) -> bool:
    """Whether a moved value, at once or moved again, comes to an integer node; to move it as floats is as good else."""
    return any(id(node) in plan.nodes for moved in onward(value, plan.scheme) for node in moved.consumers())


def _share_scales(plan: Plan, order: list[ir.Node]) -> None:
    """Give the inputs and the output of a Concat one quantization, and those of Concats that share a value."""
    for node in order:
        if node.op_type not in plan.scheme.shared_scales or node.domain:
            continue
        # An input that only its producer knows (no pair stands on it) still widens the range of the output.
        members = [value for value in node.inputs if value is not None and graphs.array_of(value) is None]
        output = behind_function(node, plan.scheme)
        if not any(value in plan.values for value in (*members, *onward(output, plan.scheme))):
            continue
        joined: dict[ir.Value, None] = {}
        for value in (*members, output):
            root = plan.root_of(value)
            joined.update(dict.fromkeys(plan.shared.get(root, [root])))
        for value in joined:
            plan.shared[value] = list(joined)


def _mark_residual_branches(plan: Plan, order: list[ir.Node]) -> None:
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
