"""Constants of a quantized graph: integers behind a DequantizeLinear, and biases in whichever form they have."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgetl.quantize import graph as graphs
from edgetl.quantize.placement import bias_add
from edgetl.quantize.schemes import Scheme

if TYPE_CHECKING:
    import onnx_ir as ir


def dequantized(graph: ir.Graph, name: str, integers: np.ndarray, scales: np.ndarray, axis: int) -> ir.Value:
    """Put integers and the DequantizeLinear that restores them into a graph.

    Args:
        graph: To put them into.
        name: What the names of all parts begin with.
        integers: int8 or int32, of any shape.
        scales: float32, shape (channels,).
        axis: Of the channels.

    Returns:
        The float32 values that they stand for.
    """
    import onnx_ir as ir

    quantized = graphs.add_initializer(graph, f"{name}_quantized", integers)
    scale = graphs.add_initializer(graph, f"{name}_scale", scales)
    zero_point = graphs.add_initializer(graph, f"{name}_zero_point", np.zeros(scales.shape, dtype=integers.dtype))
    node = ir.node("DequantizeLinear", [quantized, scale, zero_point], {"axis": axis}, name=f"{name}_dequantize")
    output = node.outputs[0]
    output.name, output.dtype, output.shape = f"{name}_dequantized", ir.DataType.FLOAT, ir.Shape(integers.shape)
    graph.append(node)
    return output


def replace_integers(graph: ir.Graph, node: ir.Node, integers: np.ndarray) -> None:
    """Give a quantized layer other integers for weights; other layers that share the old ones keep them.

    Args:
        graph: Of the node.
        node: A weighted node whose weights come from a DequantizeLinear.
        integers: int8, of the weights' shape.
    """
    dequantize = node.inputs[1].producer() if node.inputs[1] is not None else None
    assert dequantize is not None and dequantize.inputs[0] is not None  # quantize() put it there
    old = dequantize.inputs[0]
    dequantize.replace_input_with(0, None)
    _forget(graph, old)  # first, so that the new ones have the name that the layer's record says
    dequantize.replace_input_with(0, graphs.add_initializer(graph, str(old.name), integers))


def set_bias(graph: ir.Graph, node: ir.Node, bias: np.ndarray, scales: np.ndarray | None) -> None:
    """Give a convolution or a Gemm another bias.

    Args:
        graph: Of the node.
        node: Whose bias it is; one without gets one.
        bias: float64, shape (channels,).
        scales: float32, shape (channels,): of an int32 bias; None: the bias stays float32.
    """
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    old = node.inputs[2].producer() if node.inputs[2] is not None else None
    node.replace_input_with(2, None)
    if old is not None and not old.outputs[0].uses():  # an int32 bias of before, whose names are wanted again
        constants = [value for value in old.inputs if value is not None]
        graph.remove(old, safe=True)
        for value in constants:
            _forget(graph, value)
    if scales is None:
        new = graphs.add_initializer(graph, f"{node.name}_bias", bias.astype(np.float32))
    else:
        steps = np.clip(np.rint(bias / scales.astype(np.float64)), -(2**31), 2**31 - 1).astype(np.int32)
        new = dequantized(graph, f"{node.name}_bias", steps, scales, 0)
    node.replace_input_with(2, new)


def held(bias: NDArray[np.float64], scheme: Scheme) -> NDArray[np.float64]:
    """A float bias as the finished graph holds it: in float16 where the rest of the scheme is, and it fits.

    A background of one colour sends one value through a layer. Rounding its bias, by a hundredth of a step of the
    quantizer behind it, can take all of that background to the next integer: what is fitted has to know of it.
    """
    if scheme.rest != "float16":
        return bias
    with np.errstate(over="ignore"):
        halved = bias.astype(np.float16).astype(np.float64)
    return halved if np.isfinite(halved).all() else bias


def add_to_bias(graph: ir.Graph, node: ir.Node, shift: NDArray[np.float64], scheme: Scheme) -> NDArray[np.float64]:
    """Add a vector to a layer's bias, which may be an Add, float, int32, of zeros, or not there yet.

    Args:
        graph: Of the node.
        node: A weighted node whose input and weights come from a DequantizeLinear each.
        shift: Shape (channels,).
        scheme: Says what a bias is made of.

    Returns:
        What was added, as far as :func:`held` rounds; steps of an int32 bias are too small to tell.
    """
    addition = bias_add(node, shift.size)
    if addition is not None:
        place = next(index for index, value in enumerate(addition.inputs) if graphs.array_of(value) is not None)
        before = np.asarray(graphs.array_of(addition.inputs[place]), dtype=np.float64)
        after = held(before + shift, scheme)
        constant = graphs.add_initializer(graph, f"{addition.name}_bias", after.astype(np.float32))
        addition.replace_input_with(place, constant)
        return (after - before).reshape(-1) if after.size == shift.size else shift
    if node.op_type == "MatMul":
        after = held(shift, scheme)
        _append_bias(graph, node, after)
        return after
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        scales = None
        if scheme.bias == "int32":
            scales = np.atleast_1d(_scale_of(node.inputs[0]) * _scale_of(node.inputs[1])).astype(np.float32)
        after = held(shift, scheme) if scales is None else shift
        set_bias(graph, node, after, scales)
        return after
    bias = graphs.array_of(value)
    if bias is not None:
        after = held(bias + shift, scheme)
        set_bias(graph, node, after, None)
        return np.asarray(after - bias, dtype=np.float64)
    dequantize = value.producer()
    integers = graphs.array_of(dequantize.inputs[0]) if dequantize is not None else None
    if integers is not None:  # else it is computed in the graph, and not ours to change
        scales = np.atleast_1d(_scale_of(value)).astype(np.float32)
        set_bias(graph, node, integers * scales.astype(np.float64) + shift, scales)
    return shift


def _append_bias(graph: ir.Graph, node: ir.Node, shift: NDArray[np.float64]) -> None:
    """Put an Add behind a matrix product that has no bias."""
    import onnx_ir as ir

    output = node.outputs[0]
    uses = list(output.uses())
    constant = graphs.add_initializer(graph, f"{node.name}_bias", shift.astype(np.float32))
    addition = ir.node("Add", [output, constant], name=f"{node.name}_corrected")
    graphs.name_output(addition, f"{output.name}_corrected", like=output)
    graph.append(addition)
    for user, index in uses:
        user.replace_input_with(index, addition.outputs[0])
    for index, value in enumerate(graph.outputs):
        if value is output:
            name = output.name
            output.name = f"{name}_uncorrected"
            graph.outputs[index] = addition.outputs[0]
            addition.outputs[0].name = name


def _scale_of(value: ir.Value | None) -> np.ndarray:
    dequantize = value.producer() if value is not None else None
    scale = graphs.array_of(dequantize.inputs[1]) if dequantize is not None else None
    assert scale is not None  # every input of a quantized layer is a DequantizeLinear
    return np.asarray(scale, dtype=np.float64)


def _forget(graph: ir.Graph, value: ir.Value) -> None:
    """Drop a constant that nobody reads any more, so that its name is free."""
    if not value.uses() and value.name is not None and value.name in graph.initializers:
        del graph.initializers[value.name]
