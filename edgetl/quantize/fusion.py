"""Proof that a quantized graph fuses: what an engine made of its Q/DQ pairs, read from the engine's own graph.

A pair is fused where it has vanished into a node that computes in integers. What is left is a QuantizeLinear or a
DequantizeLinear that costs a pass over memory at every inference. Each is explained by what stands around it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from edgetl.runtime.runner import UNKNOWN, EngineNode, Placement, int8_share

_QUANTIZE = frozenset({"QuantizeLinear", "DynamicQuantizeLinear", "FakeQuantize", "Quantize"})
_DEQUANTIZE = frozenset({"DequantizeLinear", "Dequantize", "Convert"})
_ARITHMETIC = frozenset({"Convert", "Subtract", "Multiply"})
"""What a DequantizeLinear is made of in OpenVINO."""
_MOVES = frozenset({
    "Reorder", "ReorderInput", "ReorderOutput", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity",
    "MemcpyFromHost", "MemcpyToHost",
})  # fmt: skip
"""Operators that move values and compute nothing: they are not the reason for anything."""

_NO_KERNEL = frozenset({
    "HardSwish", "HSwish", "HardSigmoid", "Gelu", "FastGelu", "BiasGelu", "QuickGelu", "Swish", "Mish", "Erf", "Tanh",
    "Exp", "Log", "Pow", "Sqrt", "Div", "Elu", "Selu", "Softplus", "PRelu", "InstanceNormalization",
    "GroupNormalization", "Einsum",
})  # fmt: skip
"""Operators that no engine here computes in 8 bits (ONNX Runtime: core/optimizer/qdq_transformer has no rule)."""

_BY_CHOICE = frozenset({
    "Softmax", "LayerNormalization", "SimplifiedLayerNormalization", "SkipLayerNormalization", "MVN", "RMSNorm",
    "RMSNormalization",
})  # fmt: skip
"""Operators that lose too much in 8 bits, and stay in float on purpose."""


@dataclass(frozen=True, kw_only=True)
class Unfused:
    """A quantizer or dequantizer that is left in an engine's graph."""

    name: str
    """The engine's name of it."""
    kind: str
    """As QuantizeLinear, FakeQuantize, Convert."""
    after: tuple[str, ...]
    """Nodes that it reads from, as "Conv 'stem'"; empty: an input of the graph, or a constant."""
    before: tuple[str, ...]
    """Nodes that read from it; empty: an output of the graph."""
    rule: str
    """Which of the reasons: a word of :data:`REASONS`."""
    reason: str
    """Why it is there, in words."""

    @property
    def needed(self) -> bool:
        """Whether an engine with a float interface cannot do without it."""
        return self.rule in ("graph input", "graph output")

    @property
    def defect(self) -> bool:
        """Whether it should have been fused, so that the scheme or its placement is at fault."""
        return self.rule in ("float product", "constant", "requantized", "rounded only", "not all quantized")


REASONS: Mapping[str, str] = {
    "constant": "a constant is dequantized at every inference instead of being folded into {around}",
    "left in float": "{products} is left in float as planned",
    "float product": "{products} stayed in float although a pair stands at it",
    "requantized": "two pairs stand back to back: a tensor goes from one scale to another between {ends}",
    "rounded only": "it only rounds: float values go in, and float values come out for {behind}",
    "graph input": "the engine's input is float: it is quantized once",
    "no integer kernel": "{culprits} has no integer kernel in {engine}",
    "float by choice": "{culprits} stays in float on purpose: 8 bits cost it too much accuracy",
    "fused attention": "the attention that {engine} computes at once multiplies integers and puts out floats",
    "graph output": "the engine's output is float",
    "not all quantized": "{around} is computed in float: not all that it reads and writes is quantized",
}
"""Rule → its sentence. Rules are tried in this order; the first that holds explains the node."""


@dataclass(frozen=True, kw_only=True)
class Fusion:
    """What an engine made of a quantized graph."""

    engine: str
    """As "ONNX Runtime"."""
    multiply_adds: Mapping[str, int]
    """Precision → multiply-adds of one inference."""
    unfused: tuple[Unfused, ...]
    """Every quantizer and dequantizer that is left, in the order of execution."""
    float_products: tuple[EngineNode, ...]
    """Convolutions and matrix products that do not run in int8, the largest first; none that may or may not."""
    misplaced: Mapping[str, str]
    """Node that was expected in another precision → the one that it runs in."""

    @property
    def int8_share(self) -> float | None:
        """Share of the multiply-adds that run in 8-bit integers, 0 to 1; None where the engine does not tell."""
        return int8_share(self.multiply_adds)

    @property
    def counts(self) -> dict[str, int]:
        """Rule → quantizers and dequantizers that it explains."""
        return dict(Counter(node.rule for node in self.unfused))

    @property
    def defects(self) -> tuple[Unfused, ...]:
        """Those that should have been fused."""
        return tuple(node for node in self.unfused if node.defect)

    def as_json(self) -> dict[str, Any]:
        """Plain values, for a report."""
        return {
            "engine": self.engine,
            "int8_share": self.int8_share,
            "multiply_adds": dict(self.multiply_adds),
            "counts": self.counts,
            "unfused": [{**asdict(node), "needed": node.needed, "defect": node.defect} for node in self.unfused],
            "float_products": [
                {"name": node.name, "kind": node.kind, "precision": node.precision, "multiply_adds": node.multiply_adds}
                for node in self.float_products
            ],
            "misplaced": dict(self.misplaced),
        }


def explain(nodes: Sequence[EngineNode], expected: Mapping[str, str] | None = None, *, engine: str) -> Fusion:
    """Count and explain what is left of the Q/DQ pairs, and what really runs in 8-bit integers.

    What TensorRT's parser tells (:func:`edgetl.backends.tensorrt_rtx.parsed`) is the graph before fusion: of it only
    the share and the float products mean something, and its pairs are not counted as unfused.

    Args:
        nodes: Of the engine's optimised graph, with the tensors that each reads and writes.
        expected: Node of the compiled graph → precision that it was meant to run in ("int8", "fp32" …); nodes that the
            engine no longer knows by their name are passed over.
        engine: Its name, for the reasons.
    """
    graph, planned = _Graph(nodes), expected or {}
    left = [node for node in nodes if is_quantizer(node) or is_dequantizer(node)]
    products = [node for node in nodes if node.multiply_adds and node.precision != UNKNOWN]
    floats = [node for node in products if node.precision != "int8"]
    runs = {origin: node.precision for node in products for origin in _names(node)}
    return Fusion(
        engine=engine,
        multiply_adds=Placement.of("", nodes).multiply_adds,
        unfused=tuple(_explained(_Place(node, graph, planned), engine) for node in left),
        float_products=tuple(sorted(floats, key=lambda node: -node.multiply_adds)),
        misplaced={name: runs[name] for name, wanted in planned.items() if runs.get(name, wanted) != wanted},
    )


def is_quantizer(node: EngineNode) -> bool:
    """Whether a node only maps float values to integers (or rounds them to what integers could hold).

    Where shapes are known OpenVINO compiles that as a subgraph of one input; with two it computes something.
    """
    if node.kind == "Subgraph" and node.output_precision == "int8" and len(node.inputs) <= 1:
        return bool(node.operators) and set(node.operators) <= _ARITHMETIC | _QUANTIZE
    return node.kind in _QUANTIZE


def is_dequantizer(node: EngineNode) -> bool:
    """Whether a node only maps integers to float values."""
    if node.multiply_adds or node.precision != "int8" or node.output_precision in ("", "int8"):
        return False
    return node.kind in _DEQUANTIZE or (bool(node.operators) and set(node.operators) <= _ARITHMETIC)


class _Graph:
    """Who writes and who reads each tensor."""

    def __init__(self, nodes: Sequence[EngineNode]) -> None:
        self._writer = {tensor: node for node in nodes for tensor in node.outputs}
        self._readers: dict[str, list[EngineNode]] = {}
        for node in nodes:
            for tensor in node.inputs:
                self._readers.setdefault(tensor, []).append(node)

    def before(self, node: EngineNode) -> list[EngineNode]:
        """Nodes that it reads from."""
        return _unique(self._writer[tensor] for tensor in node.inputs if tensor in self._writer)

    def after(self, node: EngineNode) -> list[EngineNode]:
        """Nodes that read from it."""
        return _unique(reader for tensor in node.outputs for reader in self._readers.get(tensor, ()))

    def past_moves(self, node: EngineNode, step: Callable[[EngineNode], list[EngineNode]]) -> list[EngineNode]:
        """The neighbours in one direction that compute something: what only moves values is looked through."""
        found: dict[EngineNode, None] = {}
        seen: set[EngineNode] = set()
        waiting = step(node)
        while waiting:
            near = waiting.pop(0)
            if near in seen:
                continue
            seen.add(near)
            if _passes(near):
                waiting += step(near)
            else:
                found[near] = None
        return list(found)

    def float_region(self, starts: list[EngineNode]) -> list[EngineNode]:
        """Float nodes that hang together with some, up to the next quantizers, dequantizers and integer nodes."""
        found: list[EngineNode] = []
        waiting = list(starts)
        while waiting:
            node = waiting.pop(0)
            if node not in found and _is_float(node):
                found.append(node)
                waiting += self.before(node) + self.after(node)
        return found


@dataclass(frozen=True)
class _Place:
    """A quantizer or dequantizer and what stands around it."""

    node: EngineNode
    graph: _Graph
    planned: Mapping[str, str]

    @cached_property
    def before(self) -> list[EngineNode]:
        return self.graph.past_moves(self.node, self.graph.before)

    @cached_property
    def after(self) -> list[EngineNode]:
        return self.graph.past_moves(self.node, self.graph.after)

    @cached_property
    def float_side(self) -> list[EngineNode]:
        """The neighbours that give it, or are given, float values: of a pair that only rounds, on both its sides."""
        if not is_quantizer(self.node):
            return self.after
        return self.before + (self.behind if self.rounds else [])

    @cached_property
    def behind(self) -> list[EngineNode]:
        """What reads the result of the pair that the node belongs to."""
        return [
            reader
            for near in self.after
            for reader in (self.graph.past_moves(near, self.graph.after) if is_dequantizer(near) else [near])
        ]

    @cached_property
    def computing(self) -> list[EngineNode]:
        """The float nodes on that side, with all that hang together with them."""
        return [node for node in self.graph.float_region(self.float_side) if not _passes(node)]

    @cached_property
    def products(self) -> list[EngineNode]:
        return [node for node in self.float_side if node.multiply_adds and node.precision not in ("int8", UNKNOWN)]

    @cached_property
    def rounds(self) -> bool:
        """Whether float values come out of the pair that went into it."""
        if is_quantizer(self.node):
            stays = self.node.kind == "FakeQuantize" and self.node.output_precision not in ("", "int8")
            return stays or (bool(self.after) and all(is_dequantizer(near) for near in self.after))
        return any(is_quantizer(near) for near in self.before)

    def culprits(self, kinds: frozenset[str]) -> list[str]:
        """Operators of the float side that are among some."""
        return sorted({operator for node in self.computing for operator in _operators(node) & kinds})

    def holds(self, rule: str) -> bool:
        """Whether a rule of :data:`REASONS` explains it."""
        quantizes = is_quantizer(self.node)
        opposite, ahead = (is_dequantizer, self.before) if quantizes else (is_quantizer, self.after)
        found = {
            "constant": not quantizes and not self.node.inputs,
            "left in float": bool(self.products) and all(self._is_planned(node) for node in self.products),
            "float product": bool(self.products),
            "rounded only": self.rounds,
            "requantized": any(opposite(near) for near in ahead) or (quantizes and self.node.precision == "int8"),
            "graph input": quantizes and not self.before,
            "no integer kernel": bool(self.culprits(_NO_KERNEL)),
            "float by choice": bool(self.culprits(_BY_CHOICE)),
            "fused attention": quantizes and any(_is_attention(node) for node in self.before),
            "graph output": not quantizes and not self.computing,
        }
        return found.get(rule, True)

    def _is_planned(self, node: EngineNode) -> bool:
        return any(self.planned.get(name, "int8") != "int8" for name in _names(node))


def _explained(place: _Place, engine: str) -> Unfused:
    rule = next(rule for rule in REASONS if place.holds(rule))
    reason = REASONS[rule].format(
        engine=engine,
        around=_listed([_called(node) for node in place.computing or [*place.before, *place.after]]),
        ends=_listed([_called(node) for node in [*place.before, *place.after]]),
        behind=_listed([_called(node) for node in place.behind]),
        products=_listed([_called(node) for node in place.products]),
        culprits=_listed(place.culprits(_NO_KERNEL) or place.culprits(_BY_CHOICE)),
    )
    return Unfused(
        name=place.node.name,
        kind=place.node.kind,
        after=tuple(_called(node) for node in place.before),
        before=tuple(_called(node) for node in place.after),
        rule=rule,
        reason=reason,
    )


def _is_float(node: EngineNode) -> bool:
    return not is_quantizer(node) and not is_dequantizer(node) and node.precision in ("fp32", "fp16", "bf16", "fp64")


def _is_attention(node: EngineNode) -> bool:
    """Whether a node is attention in one, with integer products and a float result."""
    return node.precision == "int8" and node.output_precision == "fp32" and _operators(node) >= {"Softmax", "MatMul"}


def _passes(node: EngineNode) -> bool:
    """Whether a node only moves values, or is the arithmetic of a dequantizer whose conversion stands before it."""
    operators = _operators(node)
    return operators <= _MOVES or (_is_float(node) and len(node.inputs) == 1 and operators <= _ARITHMETIC)


def _operators(node: EngineNode) -> frozenset[str]:
    """What a node computes: the operators fused into it where they are known, else its own kind."""
    return frozenset(node.operators) or frozenset({node.kind})


def _called(node: EngineNode) -> str:
    """As "Conv 'stem'"."""
    telling = [operator for operator in node.operators if operator not in _ARITHMETIC and not node.multiply_adds]
    return f"{'+'.join(telling) or node.kind} '{node.name}'"


def _names(node: EngineNode) -> set[str]:
    """Names of the compiled graph's nodes: OpenVINO appends its own steps behind a slash."""
    return {node.name, *node.origins, *(origin.split("/")[0] for origin in node.origins)}


def _listed(names: Sequence[str]) -> str:
    unique = list(dict.fromkeys(names))
    return ", ".join(unique[:4]) + (f" and {len(unique) - 4} more" if len(unique) > 4 else "") or "its neighbours"


def _unique(nodes: Iterator[EngineNode]) -> list[EngineNode]:
    return list(dict.fromkeys(nodes))
