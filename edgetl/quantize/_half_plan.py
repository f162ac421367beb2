"""Which nodes of a graph compute in float16, and why the rest do not. :mod:`edgetl.quantize.half` changes the graph."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from edgetl.numbers import apart
from edgetl.quantize import graph as graphs

if TYPE_CHECKING:
    import onnx.defs
    import onnx_ir as ir

# What PyTorch's autocast keeps in float32 (docs.pytorch.org/docs/stable/amp.html), without what only bounds, compares
# or moves values (Max, TopK, Clip …: onnxconverter-common keeps those because ONNX Runtime has no kernels), and without
# Erf and Sigmoid, whose results are bounded and which engines fuse. BatchNormalization is not here: `graph.prepare`
# folds it where it can, and what is left is a scale and a shift.
SENSITIVE: frozenset[str] = frozenset(
    [
        # Normalisations square their input. TensorRT warns of "layernorm with FP16 Reduce or Pow" (NVIDIA/TensorRT
        # issues 2564, 2781, 3692, 4493), and runs its own in float32 (quoted in pytorch/TensorRT pull request 3272).
        *("LayerNormalization", "GroupNormalization", "InstanceNormalization", "RMSNormalization", "LRN"),
        *("LpNormalization", "MeanVarianceNormalization"),
        # Sums of exponentials.
        *("Softmax", "LogSoftmax", "Softplus"),
        # Sums over an axis: partial sums leave the range that input and result keep to.
        *("ReduceSum", "ReduceMean", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare"),
        *("ReduceLogSum", "ReduceLogSumExp", "CumSum", "CumProd"),
        # Steep functions: 1/x overflows below 1.5e-5, x³ above 40, exp(x) above 11, and √x is steep at the ε of a norm.
        *("Exp", "Log", "Pow", "Reciprocal", "Sqrt", "Tan", "Sinh", "Cosh", "Asinh", "Acosh"),
        # Positions: eleven bits are too few for an angle or for a pixel of a large image.
        *("Sin", "Cos", "GridSample", "RoiAlign"),
    ]
)
"""Operators that compute in float32 unless they are asked for otherwise."""

MARGIN = 4.0
"""Calibrated magnitudes stay this factor below float16's largest value: other inputs and partial sums go beyond."""

LARGEST = float(np.finfo(np.float16).max)
_ZERO = float(np.finfo(np.float16).smallest_subnormal) / 2
TYPELESS = frozenset({"Shape", "Size"})
_HEAVY = frozenset(
    {"Conv", "ConvTranspose", "ConvInteger", "Gemm", "MatMul", "Einsum", "LSTM", "GRU", "RNN", "Attention"}
    | {"DeformConv", "QuantizeLinear", "DequantizeLinear", "GlobalAveragePool", "AveragePool"}
)
"""What does not stay in float32 only to save a Cast."""
_MANY = 4096
"""Constants with more values neither: reading them in float32 costs more than the Cast."""
MOVES = frozenset(
    {"Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Concat", "Split", "Expand"}
    | {"Gather", "Tile", "Pad", "QuantizeLinear", "DequantizeLinear"}
)
_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div", "Neg", "Abs", "Where", "Max", "Min"})
_BOUNDS = frozenset({"Clip", "Min", "Max"})
_FLOAT_PORTS = {"Resize": (1, 2)}
"""Inputs that engines read in float32 alone, although ONNX allows float16 for some."""
TYPED_BY_DTYPE = frozenset(
    {"EyeLike", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli"}
)


@dataclass(frozen=True, kw_only=True)
class _Ports:
    """Which inputs and outputs of a node can be float16; all False: the operator has no float16."""

    inputs: tuple[bool, ...]
    outputs: tuple[bool, ...]
    follows_inputs: bool
    """False: a float output's type is not tied to any input."""


@dataclass(kw_only=True)
class Plan:
    ports: dict[ir.Node, _Ports] = field(default_factory=dict)
    half: dict[ir.Node, None] = field(default_factory=dict)
    reasons: dict[ir.Node, str] = field(default_factory=dict)

    def wants_half(self, node: ir.Node, index: int) -> bool | None:
        """The type that a node reads at an input; None: it takes whichever there is."""
        ports = self.ports.get(node)  # a node of a subgraph has none: it keeps its types
        if ports is None:
            return False
        if not node.domain and (node.op_type in TYPELESS or (node.op_type == "Cast" and index == 0)):
            return None
        return node in self.half and ports.inputs[index]

    def is_half(self, value: ir.Value) -> bool:
        """Whether an activation is made in float16."""
        producer = value.producer()
        place = value.index()
        return producer in self.half and place is not None and self.ports[producer].outputs[place]


def plan_of(model: ir.Model, keep: Collection[str], largest: Mapping[str, float]) -> Plan:
    """Decide for every node of a graph, which is changed only by twins of nodes that both types want.

    Args:
        model: In topological order, every value with its type.
        keep: Operators and names of nodes that stay in float32.
        largest: Activation → largest magnitude in calibration.
    """
    plan = Plan()
    _decide(plan, model, keep, largest)
    _keep_indices(plan, model.graph)
    _keep_islands(plan)
    _follow(plan, model.graph)
    for node in [node for node in plan.half if node.op_type in TYPELESS]:
        del plan.half[node]
    return plan


def _decide(plan: Plan, model: ir.Model, keep: Collection[str], largest: Mapping[str, float]) -> None:
    """Decide each node by itself and by the magnitudes that reach it, in topological order."""
    opset = model.graph.opset_imports.get("", 0)
    limit = LARGEST / MARGIN
    beyond: dict[ir.Value, str] = {}
    for value in values_of(model.graph):
        reached = largest.get(value.name or "")
        if reached is not None and not reached <= limit:  # NaN is none that fits
            text, most = apart(reached, limit, 0) if reached < 2 * limit else (f"{reached:.3g}", f"{limit:.0f}")
            beyond[value] = f"'{value.name}' reaches {text} in calibration, and {most} is the limit"
    for node in model.graph:
        plan.ports[node] = ports = _ports(node, opset)
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and not node.domain:
            reason = None  # they follow their neighbours
        else:
            reason = _own_reason(node, ports, keep, opset) or _constant_reason(node, ports)
        touched = next((beyond[value] for value in (*node.inputs, *node.outputs) if value in beyond), None)
        _carry(node, ports, beyond, largest)
        if not _has_float(node):
            continue
        reason = reason or touched
        if reason is None:
            plan.half[node] = None
        else:
            plan.reasons[node] = reason


def values_of(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    for node in graph:
        yield from node.outputs


def is_float(value: ir.Value | None) -> bool:
    import onnx_ir as ir

    return value is not None and isinstance(value.type, ir.TensorType) and value.dtype == ir.DataType.FLOAT


def _is_tensor(value: ir.Value | None) -> bool:
    """Whether a value is no sequence or optional one, whose elements would all have to change their type."""
    import onnx_ir as ir

    return value is None or value.type is None or isinstance(value.type, ir.TensorType)


def _is_rounded(value: ir.Value | None) -> bool:
    """Whether a value has fewer bits than float32, as an input or output of the user's own float16 has."""
    import onnx_ir as ir

    return value is not None and value.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def _has_float(node: ir.Node) -> bool:
    return any(is_float(value) for value in (*node.inputs, *node.outputs))


def _ports(node: ir.Node, opset: int) -> _Ports:
    """Which of a node's float inputs and outputs ONNX allows to be float16."""
    import onnx.defs

    none = _Ports(inputs=(False,) * len(node.inputs), outputs=(False,) * len(node.outputs), follows_inputs=True)
    if node.domain or not onnx.defs.has(node.op_type) or _subgraphs(node):
        return none
    schema = onnx.defs.get_schema(node.op_type, opset, "")
    allowed = {rule.type_param_str: set(rule.allowed_type_strs) for rule in schema.type_constraints}

    def type_name(formal: list[onnx.defs.OpSchema.FormalParameter], index: int) -> str:
        """What the schema calls the type of a parameter, as "T"; the last one may be variadic."""
        return str(formal[min(index, len(formal) - 1)].type_str)

    def can_be_half(name: str, value: ir.Value | None) -> bool:
        """Whether a value is a float, and the schema allows float16 where its type stands."""
        return is_float(value) and "tensor(float16)" in allowed.get(name, {name})

    names = [type_name(schema.inputs, index) for index in range(len(node.inputs))]
    float_only = _FLOAT_PORTS.get(node.op_type, ())
    inputs = tuple(
        can_be_half(name, value) and index not in float_only
        for index, (name, value) in enumerate(zip(names, node.inputs, strict=True))
    )
    made = [type_name(schema.outputs, index) for index in range(len(node.outputs))]
    outputs = tuple(can_be_half(name, value) for name, value in zip(made, node.outputs, strict=True))
    tied = {name for name, possible in zip(names, inputs, strict=True) if possible}
    typed = node.op_type in TYPED_BY_DTYPE | {"Cast", "ConstantOfShape", "DequantizeLinear"}
    return _Ports(
        inputs=inputs,
        outputs=outputs,
        follows_inputs=typed or all(name in tied for name, possible in zip(made, outputs, strict=True) if possible),
    )


def _subgraphs(node: ir.Node) -> bool:
    import onnx_ir as ir

    return any(item.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for item in node.attributes.values())


def _own_reason(node: ir.Node, ports: _Ports, keep: Collection[str], opset: int) -> str | None:
    """Why a node stays in float32 whatever it is fed with."""
    if _subgraphs(node):
        return "it holds a subgraph"
    if not all(_is_tensor(value) for value in (*node.inputs, *node.outputs)):
        return "it reads or makes a sequence"
    if node.domain:
        return f"an operator of the domain {node.domain}"
    if node.name in keep:
        return "asked for by name"
    if node.op_type in keep:
        return "a sensitive operator" if node.op_type in SENSITIVE else "asked for by operator"
    if not any((*ports.inputs, *ports.outputs)) and node.op_type not in TYPELESS:
        return f"ONNX has no float16 for {node.op_type} in operator set {opset}"
    return None if ports.follows_inputs else f"{node.op_type} makes float32 of its own"


def _constant_reason(node: ir.Node, ports: _Ports) -> str | None:
    """A constant of the node that float16 cannot hold."""
    for index, value in enumerate(node.inputs):
        array = graphs.array_of(value)
        if array is None or value is None or not ports.inputs[index]:
            continue
        if _overflows(array) and node.op_type not in _BOUNDS:  # a bound beyond all values is infinity as well
            largest = float(np.abs(array[np.isfinite(array)]).max())
            return f"its constant '{value.name}' reaches {largest:.3g}, and float16 {LARGEST:.0f}"
        if array.size == 1 and node.op_type in _ARITHMETIC | _BOUNDS and _vanishes(array):  # the ε of a division
            return f"its constant '{value.name}' is zero in float16 ({float(np.abs(array).max()):.3g})"
    return None


def _overflows(array: np.ndarray) -> bool:
    return bool((np.abs(array[np.isfinite(array)]) > LARGEST).any())


def _vanishes(array: np.ndarray) -> bool:
    return bool(array.any()) and bool((np.abs(array) <= _ZERO).all())


def _carry(node: ir.Node, ports: _Ports, beyond: dict[ir.Value, str], largest: Mapping[str, float]) -> None:
    """Hand on what float16 cannot hold: through what moves values, and behind arithmetic with such a constant.

    The -3.4e38 of an attention mask reaches the Softmax this way, and the 1e-12 of a norm its division.
    """
    source = next((beyond[value] for value in node.inputs if value in beyond), None)
    if source is None and node.op_type in _ARITHMETIC | _BOUNDS:
        source = _constant_reason(node, ports)
    if source is None or node.domain or node.op_type not in MOVES | _ARITHMETIC | _BOUNDS:
        return
    for output in node.outputs:
        if output.name not in largest:  # measured: known better
            beyond[output] = source


def _keep_indices(plan: Plan, graph: ir.Graph) -> None:
    """Arithmetic on shapes and indices, from integers to integers by way of float32, stays exact."""
    derived: dict[ir.Node, None] = {}
    for node in graph:
        floats = [value for value in node.inputs if is_float(value) and graphs.array_of(value) is None]
        known = all(value is not None and value.producer() in derived for value in floats)
        if known and (floats or (node.op_type == "Cast" and not _is_rounded(node.inputs[0]))):
            derived[node] = None
    exact: dict[ir.Node, None] = {}
    for node in reversed(list(graph)):
        if node not in derived or node not in plan.half:
            continue
        if any(
            (consumer.op_type == "Cast" and not _is_rounded(consumer.outputs[0]) and not is_float(consumer.outputs[0]))
            or (consumer in plan.ports and not consumer.domain and index in _FLOAT_PORTS.get(consumer.op_type, ()))
            or consumer in exact
            for output in node.outputs
            for consumer, index in output.uses()
        ):
            exact[node] = None
    for node in exact:
        _keep(plan, node, "it computes shapes or indices")


def _keep_islands(plan: Plan) -> None:
    """Light nodes with float32 before and behind them stay in it: that saves casts, and bits.

    The largest such set: all light nodes to begin with, without those that have a neighbour in float16.
    """
    candidates = {node: None for node in plan.half if not _is_heavy(node) and not _is_follower(node)}
    changed = True
    while changed:
        changed = False
        for node in list(candidates):
            if not _between(plan, node, candidates):
                del candidates[node]
                changed = True
    for node in candidates:
        _keep(plan, node, "between nodes in float32")


def _is_heavy(node: ir.Node) -> bool:
    arrays = (graphs.array_of(value) for value in node.inputs if is_float(value))
    return node.op_type in _HEAVY or any(array is not None and array.size > _MANY for array in arrays)


def _between(plan: Plan, node: ir.Node, candidates: Mapping[ir.Node, None]) -> bool:
    for value in node.inputs:
        if value is None or not is_float(value) or graphs.array_of(value) is not None:
            continue
        producer = value.producer()
        if producer is None or (producer not in candidates and producer not in plan.reasons):
            return False
    return all(
        consumer in candidates or not plan.wants_half(consumer, index)
        for output in node.outputs
        if is_float(output)
        for consumer, index in output.uses()
    )


def _keep(plan: Plan, node: ir.Node, reason: str) -> None:
    plan.half.pop(node, None)
    plan.reasons[node] = reason


def _is_follower(node: ir.Node) -> bool:
    """Whether a node makes floats of integers, in the type that its consumers want."""
    if node.domain or node.op_type not in ("Cast", "DequantizeLinear"):
        return False
    return any(is_float(value) for value in node.outputs) and not is_float(node.inputs[0])


def _follow(plan: Plan, graph: ir.Graph) -> None:
    """A DequantizeLinear has its consumers' type, and a twin where they want both; a QuantizeLinear its producer's."""
    import onnx_ir as ir

    taken = graphs.names_in(graph)
    for node in reversed(list(graph)):
        if node not in plan.half or not _is_follower(node):
            continue
        output = node.outputs[0]
        uses = [(use, plan.wants_half(*use)) for use in output.uses() if use[0].op_type != "QuantizeLinear"]
        in_float = [use for use, half in uses if half is False]
        if any(half for _, half in uses):
            if in_float:
                named = graphs.free_name(f"{node.name}_in_float", taken)
                twin = ir.Node("", node.op_type, node.inputs, list(node.attributes.values()), name=named)
                graphs.name_output(twin, graphs.free_name(f"{output.name}_in_float", taken), like=output)
                graph.insert_after(node, twin)
                plan.ports[twin] = plan.ports[node]
                plan.reasons[twin] = "some of its consumers are in float32"
                for consumer, index in in_float:
                    consumer.replace_input_with(index, twin.outputs[0])
        elif in_float or output.is_graph_output():
            _keep(plan, node, "its consumers are in float32")
    for node in graph:
        if node in plan.half and node.op_type == "QuantizeLinear":
            source = node.inputs[0]
            if source is None or not plan.is_half(source):
                _keep(plan, node, "what it quantizes is in float32")
