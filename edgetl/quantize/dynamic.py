"""Dynamic quantization for transformers on processors: integer weights, activations quantized as they come.

No calibration: ONNX Runtime measures the range of each activation at run time. The form is the one that its optimizer
fuses (onnxruntime/core/optimizer/matmul_integer_to_float.cc and dynamic_quantize_matmul_fusion.cc):

    DynamicQuantizeLinear ─ MatMulInteger ─ Cast ─ Mul ─ Add      into DynamicQuantizeMatMul, or
             └─ scale ──── Mul (with the weights' scales) ┘       MatMulIntegerToFloat for products of one input
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import ModelError
from edgetl.quantize import graph as graphs
from edgetl.quantize.insertion import PACKING
from edgetl.quantize.placement import is_kept
from edgetl.quantize.ranges import weight_scales
from edgetl.quantize.saturation import round_weights, scales_without_saturation
from edgetl.quantize.schemes import INT8_NARROW, UINT8
from edgetl.specs import Estimator

if TYPE_CHECKING:
    import onnx_ir as ir

OPERATORS = ("MatMul", "Gemm")
"""What is replaced where its second input is a constant matrix. ONNX Runtime's ConvInteger is slower than Conv."""


@dataclass(frozen=True, kw_only=True)
class Product:
    """A node that became an integer product."""

    node: str
    """Its name in the float graph."""
    operator: str
    """MatMul or Gemm."""
    output: str
    """What it puts out, by its name in the float graph."""
    result: str
    """The same by its name in the quantized graph."""


@dataclass(frozen=True, kw_only=True)
class Dynamic:
    """A dynamically quantized graph, and an account of it."""

    model: ir.Model
    products: tuple[Product, ...]
    """In the graph's order."""
    quantized: Mapping[str, int]
    """Operator → nodes that became integer products."""
    left_in_float: Mapping[str, int]
    """Operator → nodes of the kinds in :data:`OPERATORS`, and convolutions, that stay in float."""
    reasons: Mapping[str, str]
    """Node of those → why."""
    weight_bytes: tuple[int, int]
    """Bytes of the replaced weights, before and after, with their scales."""


@dataclass(frozen=True)
class _Weights:
    integers: ir.Value
    """int8 (K, N)"""
    scales: ir.Value
    """float32 (N,)"""


@dataclass(kw_only=True)
class _Shared:
    """What several products share: an activation's integers, a weight's integers."""

    activations: dict[ir.Value, ir.Node] = field(default_factory=dict)
    weights: dict[tuple[ir.Value, bool, float], _Weights] = field(default_factory=dict)


def quantize_dynamic(
    model: ir.Model,
    *,
    weights: Estimator | None = None,
    keep: Collection[str] = (),
    minimum_size: int = 0,
    saturates: bool = False,
) -> Dynamic:
    """Replace products with constant matrices by integer ones.

    Activations become uint8 with a scale per tensor, measured at run time; weights int8, symmetric, with a scale per
    output channel. Products share the integers of an activation, and of weights.

    Args:
        model: From :func:`edgetl.quantize.graph.prepare`; it is changed.
        weights: How the weights' ranges are chosen; the default is mse.
        keep: Names of nodes, or operators, that stay in float.
        minimum_size: Weights with fewer values stay in float.
        saturates: Whether the processor adds pairs of products in 16 bits: see :mod:`edgetl.quantize.saturation`.

    Raises:
        ModelError: There is nothing to quantize, or the model is quantized already.
    """
    import onnx_ir.passes.common as passes

    graphs.refuse_quantized(model)
    found, reasons = _sorted_out(model.graph, keep, minimum_size)
    if not found:
        raise ModelError(
            "nothing in this graph can be quantized dynamically: it has no MatMul or Gemm with a constant matrix, "
            f"or all stay in float ({'; '.join(sorted(set(reasons.values()))) or 'there are none'})",
            hint="for convolutional networks take a recipe with calibration, as int8-mse",
        )
    estimator = weights if weights is not None else Estimator(method="mse")
    before = sum(_nbytes(value) for value in {node.inputs[1]: None for node in found})
    names = [(str(node.name), node.op_type, str(node.outputs[0].name)) for node in found]
    shared = _Shared()
    results = [_replace(model.graph, node, estimator, shared, saturates=saturates) for node in found]
    model.graph.sort()
    passes.RemoveUnusedNodesPass()(model)
    passes.NameFixPass()(model)  # where the model has names like ours already
    return Dynamic(
        model=model,
        products=tuple(
            Product(node=name, operator=operator, output=output, result=str(result.name))
            for (name, operator, output), result in zip(names, results, strict=True)
        ),
        quantized=dict(Counter(operator for _, operator, _ in names)),
        left_in_float=dict(Counter(node.op_type for node in reasons)),
        reasons={node.name or node.op_type: reason for node, reason in reasons.items()},
        weight_bytes=(before, sum(_nbytes(made.integers) + _nbytes(made.scales) for made in shared.weights.values())),
    )


def _sorted_out(graph: ir.Graph, keep: Collection[str], minimum_size: int) -> tuple[list[ir.Node], dict[ir.Node, str]]:
    """The products that become integer ones, in the graph's order, and why each of the others stays in float."""
    found, reasons = [], {}
    for node in graph:
        if node.domain or node.op_type not in (*OPERATORS, "Conv", "ConvTranspose"):
            continue
        reason = _why_float(node, keep, minimum_size)
        if reason is None:
            found.append(node)
        else:
            reasons[node] = reason
    return found, reasons


def _nbytes(value: ir.Value | None) -> int:
    return 0 if value is None or value.const_value is None else int(value.const_value.nbytes)


def _why_float(node: ir.Node, keep: Collection[str], minimum_size: int) -> str | None:
    """Why a product stays in float; None: it need not."""
    if node.op_type not in OPERATORS:
        return "a convolution, which ONNX Runtime computes faster in float than with dynamic ranges"
    if is_kept(node, keep):
        return "asked for"
    left, right = (graphs.array_of(value) for value in node.inputs[:2])
    if left is not None:
        return "its first input is constant"
    if right is None:
        return "no weights: both inputs are activations"
    if right.dtype != np.float32:
        return f"its weights are {right.dtype}"
    if right.ndim != 2:
        return f"its weights have {right.ndim} dimensions"
    if not np.isfinite(right).all():
        return "its weights are not finite"
    if right.size < max(1, minimum_size):
        return f"its weights have {right.size} values"
    source = node.inputs[0]
    if source is None or source.dtype is None or source.dtype.name != "FLOAT":
        return "its input is not known to be float32"
    if node.op_type == "Gemm" and _integer(node, "transA"):
        return "its input is transposed"
    return None


def _integer(node: ir.Node, name: str) -> int:
    return node.attributes[name].as_int() if name in node.attributes else 0


def _real(node: ir.Node, name: str) -> float:
    return node.attributes[name].as_float() if name in node.attributes else 1.0


def _replace(graph: ir.Graph, node: ir.Node, estimator: Estimator, shared: _Shared, *, saturates: bool) -> ir.Value:
    """input → DynamicQuantizeLinear → MatMulInteger → Cast → Mul (scales) → Add (bias); the value at the end."""
    import onnx_ir as ir

    source, weights_value, output = node.inputs[0], node.inputs[1], node.outputs[0]
    assert source is not None and weights_value is not None  # _why_float saw to it
    transposed = bool(_integer(node, "transB"))
    alpha = _real(node, "alpha") if node.op_type == "Gemm" else 1.0
    key = (weights_value, transposed, alpha)
    if key not in shared.weights:
        shared.weights[key] = _integers(graph, weights_value, transposed, alpha, estimator, saturates=saturates)
    weights = shared.weights[key]
    if source not in shared.activations:
        shared.activations[source] = _quantize_activation(graph, source)
    dynamic = shared.activations[source]
    levels, scale, zero_point = dynamic.outputs
    name = node.name or output.name or "product"
    product = ir.node("MatMulInteger", [levels, weights.integers, zero_point], name=name)
    graphs.name_output(product, f"{name}_sums", like=output)
    product.outputs[0].dtype = ir.DataType.INT32
    cast = ir.node("Cast", [product.outputs[0]], {"to": int(ir.DataType.FLOAT)}, name=f"{name}_cast")
    graphs.name_output(cast, f"{name}_sums_float", like=output)
    # The order of the inputs is the one that the optimizer takes the scales from.
    scales = ir.node("Mul", [scale, weights.scales], name=f"{name}_scales")
    graphs.name_output(scales, f"{name}_scale", like=output, shape=weights.scales.shape)
    scaled = ir.node("Mul", [cast.outputs[0], scales.outputs[0]], name=f"{name}_scaled")
    result = graphs.name_output(scaled, f"{name}_result", like=output)
    nodes = [product, cast, scales, scaled]
    bias = _bias(graph, node, name)
    if bias is not None:
        add = ir.node("Add", [result, bias], name=f"{name}_add")
        result = graphs.name_output(add, f"{name}_biased", like=output)
        nodes.append(add)
    else:
        _bias_second(output)
    ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, [output], [result])
    return result


def _bias_second(output: ir.Value) -> None:
    """The optimizer fuses an Add whose second input is the constant; MatMul's may come first."""
    consumers = output.consumers()
    if len(consumers) != 1 or consumers[0].op_type != "Add" or consumers[0].domain:
        return
    (add,) = consumers
    first, second = add.inputs
    if second is output and graphs.array_of(first) is not None:
        add.replace_input_with(0, second)
        add.replace_input_with(1, first)


def _integers(
    graph: ir.Graph, value: ir.Value, transposed: bool, alpha: float, estimator: Estimator, *, saturates: bool
) -> _Weights:
    """The weights (K, N) as int8, and a scale for each of the N output channels, which takes a Gemm's alpha in."""
    array = graphs.array_of(value)
    assert array is not None  # _why_float saw to it
    matrix: NDArray[np.float32] = np.ascontiguousarray(array.T) if transposed else array
    scales = weight_scales(matrix, 1, estimator, INT8_NARROW)
    if saturates:
        scales = scales_without_saturation(matrix, scales, 1, UINT8.high, INT8_NARROW, PACKING)
    steps = round_weights(matrix, scales, 1, INT8_NARROW)
    return _Weights(
        graphs.add_initializer(graph, f"{value.name}_integers", steps),
        graphs.add_initializer(graph, f"{value.name}_scales", (scales * np.float32(alpha)).astype(np.float32)),
    )


def _quantize_activation(graph: ir.Graph, value: ir.Value) -> ir.Node:
    import onnx_ir as ir

    name = value.name or "activation"
    node = ir.node("DynamicQuantizeLinear", [value], num_outputs=3, name=f"{name}_quantize")
    kinds = (ir.DataType.UINT8, ir.DataType.FLOAT, ir.DataType.UINT8)
    for output, suffix, kind in zip(node.outputs, ("levels", "scale", "zero_point"), kinds, strict=True):
        output.name, output.dtype = f"{name}_{suffix}", kind
        output.shape = value.shape if suffix == "levels" else ir.Shape([])
    graph.append(node)
    return node


def _bias(graph: ir.Graph, node: ir.Node, name: str) -> ir.Value | None:
    """A Gemm's third input, times beta."""
    value = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
    beta = _real(node, "beta")
    if value is None or beta == 0.0:
        return None
    if beta == 1.0:
        return value
    array = graphs.array_of(value)
    if array is not None:
        return graphs.add_initializer(graph, f"{name}_bias", (array * np.float32(beta)).astype(np.float32))
    import onnx_ir as ir

    factor = graphs.add_initializer(graph, f"{name}_beta", np.asarray(beta, np.float32))
    times = ir.node("Mul", [value, factor], name=f"{name}_bias_scaled")
    graph.append(times)
    return graphs.name_output(times, f"{name}_bias", like=value)
