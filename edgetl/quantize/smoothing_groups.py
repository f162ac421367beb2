"""Which products read one activation, and how its channels are scaled: what SmoothQuant works on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgetl.quantize import graph as graphs
from edgetl.quantize.equalization import set_constant
from edgetl.quantize.products import input_axis

if TYPE_CHECKING:
    import onnx_ir as ir

_TRANSPARENT = frozenset({"Reshape", "Transpose", "Identity", "Squeeze", "Unsqueeze", "Flatten", "Gather"})
"""Operators that keep channels apart where they leave the last axis alone; each is checked for that."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """An activation and the matrix products that read it."""

    activation: str
    """Name of the activation; its last axis is the channels."""
    producer: str
    """Name of the node that puts it out; empty for an input of the model."""
    consumers: tuple[ir.Node, ...]
    """MatMul and Gemm nodes with constant weights: all that read it, also through operators that keep the last axis,
    where the division is folded; else those that read it directly."""
    norm: ir.Node | None = None
    """Whose constants take the division: LayerNormalization or RMSNormalization, or the Mul by gamma that ends a
    normalisation of single operators. None: the division is a Mul of its own before the products."""
    shift: ir.Node | None = None
    """The Add of beta behind that Mul."""


def groups(model: ir.Model) -> tuple[Group, ...]:
    """Every activation that a matrix product with constant weights reads, in the graph's order.

    Args:
        model: From :func:`edgetl.quantize.graph.prepare`; not changed.
    """
    found: dict[str, Group] = {}
    covered: set[int] = set()
    for node in model.graph:
        folded = _folded_group(node)
        if folded is not None:
            found[folded.activation] = folded
            covered.update(id(consumer) for consumer in folded.consumers)
    direct: dict[ir.Value, list[ir.Node]] = {}
    for node in model.graph:
        value = node.inputs[0] if node.inputs else None
        if value is not None and id(node) not in covered and _is_linear(node, 0):
            direct.setdefault(value, []).append(node)
    for value, nodes in direct.items():
        widths = {_channels(node) for node in nodes}
        if len(widths) == 1 and value.name and graphs.array_of(value) is None:
            producer = value.producer()
            name = (producer.name or "") if producer is not None else ""
            found[value.name] = Group(activation=value.name, producer=name, consumers=tuple(nodes))
    rank = {output.name: place for place, node in enumerate(model.graph) for output in node.outputs}
    return tuple(sorted(found.values(), key=lambda group: rank.get(group.activation, -1)))


def divide(graph: ir.Graph, group: Group, factors: NDArray[np.float32]) -> None:
    """Divide the channels of an activation, and multiply the weights that read them: the function stays.

    Args:
        graph: Of the group; constants that other nodes share are copied first.
        group: From :func:`groups`.
        factors: Shape (channels,), above 0.
    """
    if group.norm is not None:
        _fold(graph, group, factors)
    else:
        _insert(graph, group, factors)
    for node in group.consumers:
        array = graphs.array_of(node.inputs[1])
        assert array is not None  # _is_linear saw to it
        shape = (1, -1) if input_axis(node) else (-1, 1)
        set_constant(graph, node, 1, (array * factors.reshape(shape)).astype(np.float32))


def _fold(graph: ir.Graph, group: Group, factors: NDArray[np.float32]) -> None:
    norm, shift = group.norm, group.shift
    assert norm is not None
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


def _insert(graph: ir.Graph, group: Group, factors: NDArray[np.float32]) -> None:
    """A Mul before the products; whoever else reads the activation keeps it as it was."""
    import onnx_ir as ir

    value = group.consumers[0].inputs[0]
    assert value is not None  # groups() found it there
    inverse = graphs.add_initializer(graph, f"{group.activation}_factors", (1.0 / factors).astype(np.float32))
    node = ir.node("Mul", [value, inverse], name=f"{group.activation}_smooth")
    graphs.name_output(node, f"{group.activation}_smoothed", like=value)
    graph.insert_before(min(group.consumers, key=list(graph).index), node)
    for consumer in group.consumers:
        consumer.replace_input_with(0, node.outputs[0])


def _folded_group(norm: ir.Node) -> Group | None:
    """The group whose division the constants of a normalisation take; None where something else reads it, too."""
    found = _normalisation(norm)
    if found is None:
        return None
    gamma, shift = found
    output = (shift or norm).outputs[0]
    channels = int(gamma.size)
    consumers: list[ir.Node] = []
    if output.is_graph_output() or not output.name:
        return None
    for node, index in _readers(output, channels):
        if node is None or not _is_linear(node, index) or _channels(node) != channels:
            return None
        consumers.append(node)
    if not consumers:
        return None
    return Group(activation=output.name, producer=norm.name or "", consumers=tuple(consumers), norm=norm, shift=shift)


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


def _readers(value: ir.Value, channels: int) -> Iterator[tuple[ir.Node | None, int]]:
    """Who reads a value, also through operators that keep its last axis; without a node where the model returns it."""
    for node, index in value.uses():
        if _keeps_last_axis(node, index, channels):
            output = node.outputs[0]
            if output.is_graph_output():
                yield None, 0
            yield from _readers(output, channels)
        else:
            yield node, index


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


def _is_linear(node: ir.Node, index: int) -> bool:
    """Whether an input of a node is multiplied by constant weights of a known layout."""
    if node.domain or node.op_type not in ("MatMul", "Gemm") or index != 0 or len(node.inputs) < 2:
        return False
    weights = graphs.array_of(node.inputs[1])
    if weights is None or weights.dtype != np.float32 or weights.ndim != 2 or not weights.size:
        return False
    return not ("transA" in node.attributes and node.attributes["transA"].as_int())


def _channels(node: ir.Node) -> int:
    """Channels that a linear node reads."""
    weights = graphs.array_of(node.inputs[1])
    assert weights is not None  # _is_linear saw to it
    return int(weights.shape[input_axis(node)])
