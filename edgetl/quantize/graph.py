"""Graphs before they are quantized: read safely, folded, and in the operators that engines quantize."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgetl.errors import MissingExtraError, ModelError

if TYPE_CHECKING:
    import onnx_ir as ir

MINIMUM_OPSET = 13
"""The first with scales per channel in QuantizeLinear."""


def load(path: Path) -> ir.Model:
    """Read an ONNX model.

    Raises:
        MissingExtraError: onnx-ir is not installed.
        ModelError: Not there, not ONNX, too old an operator set, or weights outside the model's own folder.
    """
    try:
        import onnx_ir as ir
    except ImportError:
        raise MissingExtraError("onnx_ir", extra="export", needed_for="reading an ONNX graph") from None
    if not path.is_file():
        raise ModelError(f"there is no model {path}")
    try:
        model = ir.load(path)
    except Exception as error:  # noqa: BLE001 - protobuf's DecodeError and onnx-ir's ValueError share no base
        raise ModelError(f"{path} is not an ONNX model: {error}") from None
    if not model.graph.inputs or not model.graph.outputs:
        raise ModelError(f"{path} is not an ONNX model: it has no inputs or no outputs")
    _contain_external_data(model, path)
    opset = model.graph.opset_imports.get("", 0)
    if opset < MINIMUM_OPSET:
        raise ModelError(
            f"{path} has operator set {opset}; scales per channel need {MINIMUM_OPSET} or later",
            hint="export the model again with a newer operator set",
        )
    return model


def prepare(model: ir.Model) -> ir.Model:
    """Fold what engines fold anyway, so that statistics are taken where quantizers will stand.

    Constants become initializers, BatchNormalization goes into the convolution before it, a mean over both spatial
    axes becomes GlobalAveragePool. Every value and node has a name, and shapes are inferred.

    Returns:
        The same model, changed.
    """
    import onnx_ir.passes.common as passes
    from onnxscript import optimizer, rewriter
    from onnxscript.rewriter.rules import common as rules

    for noisy in ("onnxscript", "onnx_ir"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    passes.InlinePass()(model)
    optimizer.optimize_ir(model)
    rewriter.rewrite(
        model,
        [
            rules.fuse_batchnorm_into_conv_rule,
            rules.fuse_batchnorm_into_conv_transpose_rule,
            rules.fuse_batchnorm_into_gemm_rule,
        ],
    )
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.RemoveInitializersFromInputsPass()(model)
    passes.ShapeInferencePass()(model)
    _pool_from_mean(model)
    passes.RemoveUnusedNodesPass()(model)
    passes.NameFixPass()(model)
    return model


def array_of(value: ir.Value | None) -> np.ndarray | None:
    """An initializer's values; None for anything that is not a constant."""
    if value is None or value.const_value is None or not value.is_initializer():
        return None
    return value.const_value.numpy()


def add_initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """A new constant of the graph; the one of that name where it exists."""
    import onnx_ir as ir

    if name in graph.initializers:
        return graph.initializers[name]
    value = ir.val(name, const_value=ir.tensor(array, name=name))
    value.dtype, value.shape = ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape)
    graph.register_initializer(value)
    return value


def name_output(node: ir.Node, name: str, *, like: ir.Value, shape: ir.Shape | None = None) -> ir.Value:
    """Name a new node's only output, and give it the type and, unless another is given, the shape of a value."""
    output = node.outputs[0]
    output.name = name
    output.shape = like.shape if shape is None else shape
    if like.dtype is not None:
        output.dtype = like.dtype
    return output


def _pool_from_mean(model: ir.Model) -> None:
    """ReduceMean over (2, 3) with kept axes is GlobalAveragePool, which engines compute in integers."""
    import onnx_ir as ir

    graph = model.graph
    for node in list(graph):
        if node.op_type != "ReduceMean" or node.domain or not node.inputs[0] or node.inputs[0].shape is None:
            continue
        shape = node.inputs[0].shape
        axes_value = array_of(node.inputs[1]) if len(node.inputs) > 1 else None
        attribute = node.attributes.get("axes")
        axes = axes_value.tolist() if axes_value is not None else (attribute.as_ints() if attribute else [])
        keep = node.attributes.get("keepdims")
        if len(shape) != 4 or sorted(axis % 4 for axis in axes) != [2, 3]:
            continue
        keeps = keep is None or keep.as_int() == 1
        output = node.outputs[0]
        source = output.name or node.name or "mean"
        pooled_shape = ir.Shape([shape[0], shape[1], 1, 1])
        pool = ir.node("GlobalAveragePool", [node.inputs[0]], name=f"{node.name or source}_pool")
        result = name_output(pool, f"{source}_pooled", like=output, shape=pooled_shape)
        nodes = [pool]
        if not keeps:
            flat = ir.node("Flatten", [result], {"axis": 1}, name=f"{node.name or source}_flat")
            result = name_output(flat, f"{source}_flat", like=output)
            nodes = [pool, flat]
        ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, [output], [result])


def _contain_external_data(model: ir.Model, path: Path) -> None:
    """Refuse weights that a crafted model would read from somewhere else on the disk."""
    import onnx_ir as ir

    folder = path.resolve().parent
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            place = (folder / tensor.location).resolve()
            if not place.is_relative_to(folder):
                raise ModelError(
                    f"{path}: the weights '{value.name}' lie outside the model's folder: {tensor.location}"
                )
