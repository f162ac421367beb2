"""What a float16 graph computes, on an engine that has no float16: in float32, rounded behind every node.

ONNX Runtime's CPU provider has few kernels of float16. For the rest it puts casts around float32 ones, and drops those
that follow each other, optimizer or not: (2048 + 1) - 2048, which is 0 in float16, is 1 there. Explicit roundings stay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgetl.quantize import graph as graphs
from edgetl.quantize._half_plan import MOVES, TYPED_BY_DTYPE

if TYPE_CHECKING:
    import onnx_ir as ir


def in_float32(model: ir.Model) -> ir.Model:
    """A copy of a graph whose float16 values have the type float32, and are rounded as float16 rounds.

    Sums within a node are taken in float32, as the matrix units of NVIDIA's GPUs do; what a node makes of them is
    rounded, and infinite beyond 65,504. Bodies of loops and branches compute as the engine does. What a
    DequantizeLinear puts out is not rounded: engines join it with the product behind it. Inputs and outputs, and the
    names of nodes, are as they were. A graph without float16 is only copied.

    Args:
        model: From :func:`edgetl.quantize.half.to_half`, with Q/DQ pairs or without; not changed.
    """
    import onnx_ir as ir

    copied = model.clone()
    graph = copied.graph
    mark = graphs.free_mark(graph)
    for value in list(graph.initializers.values()):
        array = graphs.array_of(value)
        if array is not None and array.dtype == np.float16:
            _widen_constant(graph, value, array)
    values = [*graph.inputs, *(output for node in graph for output in node.outputs)]
    for value in [value for value in values if value.dtype == ir.DataType.FLOAT16]:
        node, users, places = value.producer(), list(value.uses()), _places(graph, value)
        half = node is None or node.op_type == "Cast" or _has_body(node)
        if node is not None and not half:
            value.type = ir.TensorType(ir.DataType.FLOAT)  # copies share the types of their values
            _widen_attributes(node)
        moved = node is not None and node.op_type in MOVES  # what it moves was rounded
        kept = value if moved else rounded(graph, value, mark)
        bodies = [use for use in users if _is_of_body(graph, use[0])]
        if bodies and not half:
            narrow = ir.node("Cast", [kept], {"to": int(ir.DataType.FLOAT16)}, name=f"{value.name}{mark}body")
            graphs.name_output(narrow, f"{value.name}{mark}body", like=value).dtype = ir.DataType.FLOAT16
            graph.append(narrow)
            for user, index in bodies:
                user.replace_input_with(index, narrow.outputs[0])
        if kept is not value:
            for user, index in users:
                if (user, index) not in bodies:
                    user.replace_input_with(index, kept)
        if places:  # a float16 output stays one
            _put_out(graph, kept, value, places, mark)
    graph.sort()
    return copied


def rounded(graph: ir.Graph, value: ir.Value, mark: str) -> ir.Value:
    """A value as float16 holds it, in float32: two casts more in the graph, which has to be sorted afterwards.

    Args:
        graph: Of the value.
        value: float32 or float16.
        mark: For names, from :func:`edgetl.quantize.graph.free_mark`.
    """
    import onnx_ir as ir

    for kind, suffix in ((ir.DataType.FLOAT16, "half"), (ir.DataType.FLOAT, "rounded")):
        if value.dtype == kind:
            continue
        cast = ir.node("Cast", [value], {"to": int(kind)}, name=f"{value.name}{mark}{suffix}")
        value = graphs.name_output(cast, f"{value.name}{mark}{suffix}", like=value)
        value.dtype = kind
        graph.append(cast)
    return value


def _has_body(node: ir.Node) -> bool:
    """Whether it is a loop or a branch, whose body keeps its types."""
    import onnx_ir as ir

    return any(item.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for item in node.attributes.values())


def _is_of_body(graph: ir.Graph, node: ir.Node) -> bool:
    """Whether a node is in the body of a loop or a branch, or is the loop or the branch."""
    return node.graph is not graph or _has_body(node)


def _widen_constant(graph: ir.Graph, value: ir.Value, array: np.ndarray) -> None:
    """Let all read a constant in float32 but bodies of loops and branches, and who reads an output of the graph."""
    import onnx_ir as ir

    wide = array.astype(np.float32)
    users = [use for use in value.uses() if not _is_of_body(graph, use[0])]
    if len(users) == len(value.uses()) and not value.is_graph_output():
        value.const_value = ir.tensor(wide, name=value.name)
        value.type = ir.TensorType(ir.DataType.FLOAT)
    elif users:
        second = graphs.add_initializer(graph, f"{value.name}_wide", wide)
        for user, index in users:
            user.replace_input_with(index, second)


def _places(graph: ir.Graph, value: ir.Value) -> list[int]:
    return [place for place, output in enumerate(graph.outputs) if output is value]


def _put_out(graph: ir.Graph, kept: ir.Value, value: ir.Value, places: list[int], mark: str) -> None:
    """Put out a value in float16, under the name that it had."""
    import onnx_ir as ir

    cast = ir.node("Cast", [kept], {"to": int(ir.DataType.FLOAT16)}, name=f"{value.name}{mark}output")
    output = graphs.name_output(cast, str(value.name), like=value)
    output.dtype = ir.DataType.FLOAT16
    graph.append(cast)
    for place in places:
        graph.outputs[place] = output
    value.name = f"{value.name}{mark}float"


def _widen_attributes(node: ir.Node) -> None:
    """What makes float16 by an attribute makes float32."""
    import onnx_ir as ir

    half, single = int(ir.DataType.FLOAT16), int(ir.DataType.FLOAT)
    for name in ("dtype", "output_dtype"):
        given = node.attributes.get(name)
        if given is not None and given.as_int() == half:
            node.attributes[name] = ir.AttrInt64(name, single)
    if node.op_type == "ConstantOfShape" and "value" in node.attributes:
        filled = node.attributes["value"].as_tensor().numpy().astype(np.float32)
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(filled))
    elif node.op_type in TYPED_BY_DTYPE and "dtype" not in node.attributes:
        node.attributes["dtype"] = ir.AttrInt64("dtype", single)
