"""Half precision in the graph: what strongly typed engines (TensorRT 10 and later, TensorRT-RTX) ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgetl.errors import ModelError
from edgetl.quantize import graph as graphs

if TYPE_CHECKING:
    import onnx_ir as ir

_LARGEST = float(np.finfo(np.float16).max)


def to_half(model: ir.Model) -> ir.Model:
    """Compute in float16 between a cast behind each input and a cast before each output, which stay float32.

    Args:
        model: From :func:`edgetl.quantize.graph.prepare`; it is changed.

    Raises:
        ModelError: A weight does not fit float16.
    """
    import onnx_ir as ir

    graph = model.graph
    kept = {node.inputs[2] for node in graph if node.op_type == "Resize" and len(node.inputs) > 2}
    for node in graph:
        _refuse_float_attribute(node)
    for value in list(graph.initializers.values()):
        array = graphs.array_of(value)
        if array is None or array.dtype != np.float32 or value in kept:  # Resize takes its scales in float32 alone
            continue
        if array.size and np.abs(array[np.isfinite(array)]).max(initial=0.0) > _LARGEST:
            raise ModelError(f"the weights '{value.name}' do not fit float16 (largest magnitude above {_LARGEST:.0f})")
        value.const_value = ir.tensor(array.astype(np.float16), name=value.name)
        value.dtype = ir.DataType.FLOAT16
    for node in graph:
        to = node.attributes.get("to")
        if node.op_type == "Cast" and to is not None and to.as_int() == int(ir.DataType.FLOAT):
            node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT16))
        for output in node.outputs:
            if output.dtype == ir.DataType.FLOAT:
                output.dtype = ir.DataType.FLOAT16
    for value in graph.inputs:
        if value.dtype == ir.DataType.FLOAT:
            _cast_input(graph, value)
    for position, value in enumerate(list(graph.outputs)):
        if value.dtype == ir.DataType.FLOAT16:
            _cast_output(graph, position, value)
    graph.sort()
    return model


def _refuse_float_attribute(node: ir.Node) -> None:
    """An attribute that makes float32 out of nothing would meet float16 at the next operator."""
    kind = node.attributes.get("dtype")
    value = node.attributes.get("value")
    if node.op_type == "ConstantOfShape":
        makes_float = value is None or value.as_tensor().dtype.name == "FLOAT"
    else:
        makes_float = kind is not None and kind.as_int() == 1
    if makes_float:
        raise ModelError(
            f"the operator {node.op_type} ({node.name}) makes float32 and cannot be put into float16",
            hint="a target or precision that takes float32",
        )


def _cast_input(graph: ir.Graph, value: ir.Value) -> None:
    import onnx_ir as ir

    uses = list(value.uses())
    cast = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT16)}, name=f"{value.name}_to_half")
    cast.outputs[0].name = f"{value.name}_half"
    cast.outputs[0].dtype, cast.outputs[0].shape = ir.DataType.FLOAT16, value.shape
    for node, index in uses:
        node.replace_input_with(index, cast.outputs[0])
    graph.append(cast)


def _cast_output(graph: ir.Graph, position: int, value: ir.Value) -> None:
    import onnx_ir as ir

    name = value.name
    cast = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)}, name=f"{name}_from_half")
    value.name = f"{name}_half"
    cast.outputs[0].name = name
    cast.outputs[0].dtype, cast.outputs[0].shape = ir.DataType.FLOAT, value.shape
    graph.append(cast)
    graph.outputs[position] = cast.outputs[0]
