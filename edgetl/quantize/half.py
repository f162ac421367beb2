"""Half precision in the graph: what strongly typed engines (TensorRT 10 and later, TensorRT-RTX) ask for.

Each node computes in float16 or in float32, and one Cast stands where a value is needed in the other type. Which types
an operator takes at which input is read from ONNX's own operator schemas.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgetl.errors import ModelError
from edgetl.quantize import graph as graphs
from edgetl.quantize._half_plan import MARGIN, SENSITIVE, TYPED_BY_DTYPE, Plan, is_float, plan_of, values_of
from edgetl.quantize.placement import refuse_unknown

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["MARGIN", "SENSITIVE", "Half", "to_half"]

_SMALLEST_NORMAL = float(np.finfo(np.float16).tiny)
_SCALE_TOLERANCE = 1e-3
_OPSET = 19
"""The first in which QuantizeLinear and DequantizeLinear take float16."""


@dataclass(frozen=True, kw_only=True)
class Half:
    """A graph in float16, and an account of it."""

    model: ir.Model
    converted: Mapping[str, int]
    """Operator → nodes that compute in float16."""
    kept: Mapping[str, int]
    """Operator → nodes that compute in float32."""
    reasons: Mapping[str, str]
    """Node → why it stays in float32."""
    vanished: Mapping[str, int]
    """Weights → how many of their values float16 holds only as zero."""
    subnormal: Mapping[str, int]
    """Weights → how many of their values float16 holds with fewer than eleven bits."""


def to_half(model: ir.Model, *, keep: Collection[str] = SENSITIVE, largest: Mapping[str, float] | None = None) -> Half:
    """Compute in float16; inputs and outputs of the model stay float32.

    A node stays in float32, between casts that neighbours share, where: its operator or name is in ``keep``; float16
    cannot hold its constants, or the magnitudes that calibration saw at its inputs and outputs; ONNX has no float16 for
    its operator; it holds a subgraph, or reads or makes a sequence; it computes shapes or indices; or all its
    neighbours are in float32. A DequantizeLinear has its consumers' type, a QuantizeLinear its producer's.

    Args:
        model: From :func:`edgetl.quantize.graph.prepare`, with Q/DQ pairs or without; it is changed.
        keep: Operators, or names of nodes.
        largest: Activation → largest magnitude in calibration; those without an entry are taken to fit.

    Raises:
        ModelError: A quantization scale moves by more than 0.1% in float16, the type of a value is unknown, or a model
            with Q/DQ pairs cannot be converted to operator set 19.
        UnknownNameError: ``keep`` has something that is neither an operator nor a node of this model.
    """
    import onnx_ir.passes.common as passes

    model = _normalize(model)
    graph = model.graph
    refuse_unknown([name for name in keep if name not in SENSITIVE], graph)
    plan = plan_of(model, keep, largest or {})
    converted = Counter(node.op_type for node in graph if node in plan.half)
    kept = Counter(node.op_type for node in graph if node in plan.reasons)
    vanished: dict[str, int] = {}
    subnormal: dict[str, int] = {}
    _set_attributes(plan)
    for value in list(graph.initializers.values()):
        _convert_constant(plan, graph, value, vanished, subnormal)
    _cast_activations(plan, graph)
    _remove_idle_casts(graph)
    graph.sort()
    passes.RemoveUnusedNodesPass()(model)
    reasons = {node.name or node.op_type: reason for node, reason in plan.reasons.items()}
    passes.NameFixPass()(model)  # where the model has names like ours already
    return Half(
        model=model,
        converted=dict(converted),
        kept=dict(kept),
        reasons=reasons,
        vanished=vanished,
        subnormal=subnormal,
    )


def _normalize(model: ir.Model) -> ir.Model:
    """Operator set 19 where there are Q/DQ pairs, constants as initializers, types known, nodes in order."""
    import onnx_ir.passes.common as passes

    quantized = any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph)
    opset = model.graph.opset_imports.get("", 0)
    if quantized and opset < _OPSET:
        from onnxscript.version_converter import ConvertVersionPass

        for noisy in ("onnxscript", "onnx_ir"):
            logging.getLogger(noisy).setLevel(logging.CRITICAL)
        with contextlib.suppress(RuntimeError):  # what it raises where it has no rule; seen at the version it leaves
            model = ConvertVersionPass(_OPSET, fallback=True)(model).model
        if model.graph.opset_imports.get("", 0) < _OPSET:
            raise ModelError(
                f"float16 Q/DQ pairs need operator set {_OPSET}, and this model of {opset} cannot be converted to it",
                hint=f"export the model again with operator set {_OPSET} or later",
            )
        model.ir_version = max(model.ir_version, 9)
    if model.functions:
        passes.InlinePass()(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.RemoveInitializersFromInputsPass()(model)
    if any(output.dtype is None for node in model.graph for output in node.outputs if output.uses()):
        passes.ShapeInferencePass()(model)
    for node in model.graph:
        if any(output.type is None for output in node.outputs if output.uses() or output.is_graph_output()):
            raise ModelError(
                f"the types of the outputs of the node '{node.name}' ({node.op_type}) are not known: "
                "it cannot be decided where float16 ends",
                hint="save the model with the types of its values (value_info), or use a precision that takes float32",
            )
    model.graph.sort()
    return model


def _set_attributes(plan: Plan) -> None:
    """What makes float32 by an attribute makes float16."""
    import onnx_ir as ir

    half, single = int(ir.DataType.FLOAT16), int(ir.DataType.FLOAT)
    for node in plan.half:
        if not any(plan.ports[node].outputs):
            continue
        if node.op_type in TYPED_BY_DTYPE:
            node.attributes["dtype"] = ir.AttrInt64("dtype", half)
        elif node.op_type == "Cast":
            node.attributes["to"] = ir.AttrInt64("to", half)
        elif node.op_type == "ConstantOfShape":
            given = node.attributes.get("value")
            filled = np.zeros(1, np.float16) if given is None else given.as_tensor().numpy().astype(np.float16)
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(filled))
        elif "output_dtype" in node.attributes and node.attributes["output_dtype"].as_int() == single:
            node.attributes["output_dtype"] = ir.AttrInt64("output_dtype", half)


def _convert_constant(
    plan: Plan, graph: ir.Graph, value: ir.Value, vanished: dict[str, int], subnormal: dict[str, int]
) -> None:
    """A float16 version of a constant for those who want one; the float32 one stays where somebody needs it."""
    import onnx_ir as ir

    array = graphs.array_of(value)
    if array is None or array.dtype != np.float32:
        return
    users = [use for use in value.uses() if plan.wants_half(*use)]
    if not users:
        return
    for node, index in users:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and index == 1:
            _check_scales(node, value, array)
    with np.errstate(over="ignore"):
        halved = array.astype(np.float16)
    name = value.name or "constant"
    magnitude = np.abs(halved)
    if lost := int(((halved == 0) & (array != 0)).sum()):
        vanished[name] = lost
    if weak := int(((magnitude > 0) & (magnitude < _SMALLEST_NORMAL)).sum()):
        subnormal[name] = weak
    if len(users) == len(value.uses()) and not value.is_graph_output():
        value.const_value = ir.tensor(halved, name=value.name)
        value.type = ir.TensorType(ir.DataType.FLOAT16)
        return
    second = graphs.add_initializer(graph, f"{name}_half", halved)
    for node, index in users:
        node.replace_input_with(index, second)


def _check_scales(node: ir.Node, value: ir.Value, scales: np.ndarray) -> None:
    with np.errstate(over="ignore"):
        halved = scales.astype(np.float16).astype(np.float64)
    change = np.abs(halved - scales) / np.maximum(np.abs(scales), np.finfo(np.float32).tiny)
    worst = int(change.argmax())
    if change.reshape(-1)[worst] > _SCALE_TOLERANCE:
        raise ModelError(
            f"the scale '{value.name}' of the node '{node.name}' ({node.op_type}) is {scales.reshape(-1)[worst]:.4g}, "
            f"in float16 {halved.reshape(-1)[worst]:.4g}: more than 0.1% apart",
            hint="choose scales of at least 6.2e-5, or keep the quantized operator's node in float32 by its name",
        )


def _cast_activations(plan: Plan, graph: ir.Graph) -> None:
    """One Cast per value and type, and the types of what float16 nodes make."""
    import onnx_ir as ir

    taken = graphs.names_in(graph)
    for value in list(values_of(graph)):
        if not is_float(value):
            continue
        half = plan.is_half(value)
        others = [use for use in value.uses() if plan.wants_half(*use) is (not half)]
        positions = [place for place, output in enumerate(graph.outputs) if output is value and half]
        if half:
            value.type = ir.TensorType(ir.DataType.FLOAT16)  # a copy of a model shares the types of its values
        if not others and not positions:
            continue
        to, suffix = (ir.DataType.FLOAT, "float") if half else (ir.DataType.FLOAT16, "half")
        named = graphs.free_name(f"{value.name}_to_{suffix}", taken)
        cast = ir.node("Cast", [value], {"to": int(to)}, name=named)
        new = graphs.name_output(cast, graphs.free_name(f"{value.name}_{suffix}", taken), like=value)
        new.dtype = to
        producer = value.producer()
        if producer is None:
            graph.append(cast)  # the graph is sorted in the end
        else:
            graph.insert_after(producer, cast)
        for node, index in others:
            node.replace_input_with(index, new)
        if positions:  # the output keeps its name
            new.name, value.name = value.name, graphs.free_name(f"{value.name}_half", taken)
        for place in positions:
            graph.outputs[place] = new


def _remove_idle_casts(graph: ir.Graph) -> None:
    """Remove the model's own casts between what is one type now."""
    for node in list(graph):
        if node.op_type != "Cast" or node.domain:
            continue
        source, output = node.inputs[0], node.outputs[0]
        if source is None or source.dtype is None or source.dtype != output.dtype or output.is_graph_output():
            continue
        output.replace_all_uses_with(source)
        graph.remove(node, safe=True)
