"""Graphs before they are quantized: read safely, folded, and in the operators that engines quantize."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgetl.backends.onnx_file import read_onnx
from edgetl.errors import ModelError

if TYPE_CHECKING:
    import onnx_ir as ir

MINIMUM_OPSET = 13
"""The first with scales per channel in QuantizeLinear."""
_SPATIAL = frozenset({"Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "BatchNormalization"})
_FOLDED, _FOLDED_INTO = ("BatchNormalization", "Identity"), ("Conv", "ConvTranspose", "Gemm")
"""What disappears into the product before it, and such products."""
_QUANTIZED = re.compile(
    r"(Dynamic)?QuantizeLinear|DequantizeLinear|(Fused)?MatMulInteger(ToFloat)?|ConvInteger|MatMulNBits|MatMulBnb4"
    r"|DynamicQuantize(MatMul|LSTM)|QLinear\w+|QOrdered\w+|Q(Gemm|Attention|EmbedLayerNormalization|MoE)"
)
"""Operators that only a quantized graph has: ONNX's own, and those of ONNX Runtime (com.microsoft)."""


def load(path: Path) -> ir.Model:
    """Read an ONNX model.

    Raises:
        MissingExtraError: onnx-ir is not installed.
        ModelError: Not there, not ONNX, of an operator set too old to be converted, or weights outside the model's own
            folder.
    """
    model = read_onnx(path)
    opset = model.graph.opset_imports.get("", 0)
    return _to_minimum(model, path, opset) if opset < MINIMUM_OPSET else model


def prepare(model: ir.Model) -> ir.Model:
    """Fold what engines fold anyway, so that statistics are taken where quantizers will stand.

    Constants become initializers, BatchNormalization goes into the convolution before it, a mean over both spatial
    axes becomes GlobalAveragePool. Every value and node has a name, and shapes are inferred. What something is folded
    into keeps its name: recipes name nodes as the user's file does.

    Returns:
        The same model, changed.
    """
    import onnx_ir.passes.common as passes
    from onnxscript import optimizer, rewriter
    from onnxscript.rewriter.rules import common as rules

    for noisy in ("onnxscript", "onnx_ir"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    passes.InlinePass()(model)
    inputs = [value.name for value in model.graph.inputs]
    names = _names_by_output(model.graph)
    optimizer.optimize_ir(model)
    rewriter.rewrite(
        model,
        [
            rules.fuse_batchnorm_into_conv_rule,
            rules.fuse_batchnorm_into_conv_transpose_rule,
            rules.fuse_batchnorm_into_gemm_rule,
        ],
    )
    for node in model.graph:
        if node.op_type not in _FOLDED:
            node.name = names.get(node.outputs[0].name) or node.name
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.RemoveInitializersFromInputsPass()(model)
    passes.ShapeInferencePass()(model)
    _pool_from_mean(model)
    passes.RemoveUnusedNodesPass()(model)
    _restore_inputs(model.graph, inputs)
    passes.NameFixPass()(model)
    return model


def _restore_inputs(graph: ir.Graph, names: list[str | None]) -> None:
    """Give an input that is an output as well its name back: the optimizer gave it to a copy, and renamed the input."""
    for value, name in zip(graph.inputs, names, strict=True):
        if value.name == name:
            continue
        for place, output in enumerate(graph.outputs):
            copy = output.producer()
            if copy is not None and output.name == name and copy.op_type == "Identity" and copy.inputs[0] is value:
                graph.outputs[place] = value
                output.replace_all_uses_with(value)
                graph.remove(copy, safe=True)
        value.name = name


def _names_by_output(graph: ir.Graph) -> dict[str | None, str | None]:
    """What each node puts out → its name; of a folded node, the name of the product before it.

    The optimizer gives what it puts in a node's place the output of that node, and a name of its own making.
    """
    names: dict[str | None, str | None] = {}
    for node in graph:
        source: ir.Node | None = node
        while source is not None and source.op_type in _FOLDED:  # of several in a row, the first is behind the product
            source = source.inputs[0].producer() if source.inputs[0] is not None else None
        folded = source is not None and source.op_type in _FOLDED_INTO
        names[node.outputs[0].name] = source.name if folded and source is not None else node.name
    return names


def refuse_quantized(model: ir.Model, what: str = "the model") -> None:
    """See to it that a model is not quantized yet: in pairs, in integer operators, or dynamically.

    Args:
        model: As it was read, or from :func:`prepare`; bodies of loops, branches and functions are looked at, too.
        what: What the message calls it.

    Raises:
        ModelError: It is.
    """
    import onnx_ir as ir

    bodies: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for node in (node for body in bodies for node in ir.traversal.RecursiveGraphIterator(body)):
        if _QUANTIZED.fullmatch(node.op_type):
            name = node.name or next((output.name for output in node.outputs), "")
            raise ModelError(
                f"{what} is quantized already: '{name}' is a {node.op_type}",
                hint="give the float graph that it was made from",
            )


def fixed_batch(model: ir.Model) -> int | None:
    """The leading dimension of the model's first input where it is fixed; None where it is dynamic."""
    shape = model.graph.inputs[0].shape
    size = shape[0] if shape is not None and len(shape) else None
    return size if isinstance(size, int) else None


def array_of(value: ir.Value | None) -> np.ndarray | None:
    """An initializer's values; None for anything that is not a constant."""
    if value is None or value.const_value is None or not value.is_initializer():
        return None
    return value.const_value.numpy()


def axis_of_channels(value: ir.Value) -> int:
    """The axis of an activation's channels, from the end: before space in images, last in tokens and rows.

    Four dimensions and more are an image's, unless matrix products, and what picks single channels, alone read them.
    """
    readers, producer = value.consumers(), value.producer()
    rank = len(value.shape) if value.shape is not None else 0
    spatial = any(node.op_type in _SPATIAL for node in (*readers, *([producer] if producer is not None else [])))
    kinds = {node.op_type for node in readers}
    rows = bool(kinds & {"MatMul", "Gemm"}) and kinds <= {"MatMul", "Gemm", "Gather"}
    return 1 - rank if rank > 2 and (spatial or (rank > 3 and not rows)) else -1


def add_initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """A new constant of the graph; under another name where the model has something else of that name."""
    import onnx_ir as ir

    taken = {value.name for node in graph for value in node.outputs} | {value.name for value in graph.inputs}
    wanted, number = name, 1
    while name in graph.initializers or name in taken:
        number += 1
        name = f"{wanted}_{number}"
    value = ir.val(name, const_value=ir.tensor(array, name=name))
    value.dtype, value.shape = ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape)
    graph.register_initializer(value)
    return value


def names_in(graph: ir.Graph) -> set[str]:
    """Of all nodes and values of a graph, those of its subgraphs among them."""
    import onnx_ir as ir

    nodes = list(ir.traversal.RecursiveGraphIterator(graph))
    values = [*graph.inputs, *graph.initializers.values(), *(value for node in nodes for value in node.outputs)]
    return {*(str(node.name) for node in nodes), *(str(value.name) for value in values)}


def free_name(wanted: str, taken: set[str]) -> str:
    """A name that is not taken, and is from then on: the one that is wanted, or that with a number."""
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}_{number}"
    taken.add(name)
    return name


def free_mark(graph: ir.Graph) -> str:
    """What can stand in the names of new nodes and values: no name of the graph has it. "@" in all but odd graphs."""
    mark = "@"
    while any(mark in name for name in names_in(graph)):
        mark += "@"
    return mark


def name_output(node: ir.Node, name: str, *, like: ir.Value, shape: ir.Shape | None = None) -> ir.Value:
    """Name a new node's only output, and give it the type and, unless another is given, the shape of a value."""
    output = node.outputs[0]
    output.name = name
    output.shape = like.shape if shape is None else shape
    if like.dtype is not None:
        output.dtype = like.dtype
    return output


def _to_minimum(model: ir.Model, path: Path, opset: int) -> ir.Model:
    """An older model in the first operator set that can hold scales per channel, by ONNX's own converter."""
    import onnx
    import onnx.version_converter
    import onnx_ir as ir

    try:
        proto = onnx.version_converter.convert_version(ir.to_proto(model), MINIMUM_OPSET)
        onnx.checker.check_model(proto)
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"{path} has operator set {opset}; scales per channel need {MINIMUM_OPSET} or later, "
            f"and ONNX's converter cannot bring it there: {reason}",
            hint="export the model again with a newer operator set",
        ) from None
    converted: ir.Model = ir.from_proto(proto)
    return converted


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
        pool = ir.node("GlobalAveragePool", [node.inputs[0]], name=node.name or f"{source}_pool")
        result = name_output(pool, f"{source}_pooled", like=output, shape=pooled_shape)
        nodes = [pool]
        if not keeps:
            flat = ir.node("Flatten", [result], {"axis": 1}, name=f"{node.name or source}_flat")
            result = name_output(flat, f"{source}_flat", like=output)
            nodes = [pool, flat]
        ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, [output], [result])
