"""Zero points that cost nothing: what one adds to a product with constant weights is constant, and goes into the bias.

An activation x is restored as s·(q - z) of its integers q. Of a matrix product with weights W and a bias b that makes

    s·(q - z)·W + b = s·q·W + (b - s·z·1ᵀW),

the same sum, of integers that are restored without a zero point. An engine whose matrix products pay for zero points
at their inputs is faster so, and nothing is lost. A convolution that pads is no such product: its padding would no
longer be zero.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgetl.quantize import constants
from edgetl.quantize import graph as graphs
from edgetl.quantize.insertion import Layer
from edgetl.quantize.placement import pads
from edgetl.quantize.schemes import Scheme

if TYPE_CHECKING:
    import onnx_ir as ir


def fold(model: ir.Model, layers: Sequence[Layer], scheme: Scheme) -> tuple[str, ...]:
    """Take the zero points of activations that nothing but matrix products reads into the biases of these.

    Args:
        model: The quantized graph, all of whose corrections are done; changed. A product behind a folded zero point
            puts out other values than before, and its bias makes them the same again.
        layers: Its weighted nodes.
        scheme: That it was quantized with: says which operators.

    Returns:
        The activations, by name.
    """
    import onnx_ir.passes.common as passes

    by_node = {layer.node: layer for layer in layers if layer.operator in scheme.zero_points_in_bias}
    folded = []
    for dequantize in [node for node in model.graph if node.op_type == "DequantizeLinear"]:
        quantize = dequantize.inputs[0].producer() if dequantize.inputs[0] is not None else None
        if quantize is None or quantize.op_type != "QuantizeLinear" or quantize.inputs[0] is None:
            continue
        scale, zero_point = (graphs.array_of(value) for value in dequantize.inputs[1:3])
        products = _products(dequantize.outputs[0], by_node, scheme.transparent)
        if scale is None or zero_point is None or not zero_point.any() or not products:
            continue
        for product in products:
            sums = _sums(model.graph, by_node[str(product.name)])
            constants.add_to_bias(model.graph, product, -float(scale) * float(zero_point) * sums, scheme)
        none = graphs.add_initializer(model.graph, f"{dequantize.name}_no_zero_point", np.zeros_like(zero_point))
        dequantize.replace_input_with(2, none)
        folded.append(str(quantize.inputs[0].name))
    if folded:
        model.graph.sort()
        passes.RemoveUnusedNodesPass()(model)  # the biases of before
    return tuple(folded)


def _products(value: ir.Value, layers: Mapping[str, Layer], transparent: Collection[str]) -> list[ir.Node] | None:
    """The layers that read a value, in whatever form it was moved to; None where anything else does, too."""
    if value.is_graph_output():
        return None
    found: list[ir.Node] = []
    for node, index in value.uses():
        if index == 0 and node.op_type in transparent:
            behind = _products(node.outputs[0], layers, transparent)
            if behind is None:
                return None
            found += behind
        elif index == 0 and str(node.name) in layers and _takes(node, layers[str(node.name)]):
            found.append(node)
        else:
            return None
    return found


def _takes(node: ir.Node, layer: Layer) -> bool:
    """Whether a layer's bias can take a constant: it pads nothing, and its bias is a vector of constants, or none."""
    if pads(node):
        return False
    bias = node.inputs[2] if node.op_type != "MatMul" and len(node.inputs) > 2 else None
    if bias is None:
        return True
    producer = bias.producer()
    constant = graphs.array_of(producer.inputs[0] if producer is not None else bias)
    return constant is not None and constant.shape == layer.scales.shape


def _sums(graph: ir.Graph, layer: Layer) -> NDArray[np.float64]:
    """What all weights of each output channel add up to: float64, shape (channels,)."""
    integers = graphs.array_of(graph.initializers[layer.integers])
    assert integers is not None  # quantize() put them there
    summed = np.moveaxis(integers, layer.axis, 0).reshape(layer.scales.size, -1).sum(axis=1, dtype=np.int64)
    return np.asarray(summed * layer.scales.astype(np.float64))
