"""What really runs in 8 bits: the graph that an engine made of a quantized one, held against what was planned."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgetl import backends
from edgetl.backends import tensorrt_rtx
from edgetl.errors import ProviderError, TargetError
from edgetl.pipeline.engines import Engine
from edgetl.quantize.fusion import Fusion, explain
from edgetl.runtime.runner import UNKNOWN, EngineNode
from edgetl.store import Artifact

CODE = ("pipeline/fused.py", "quantize/fusion.py")
"""What the results here depend on, besides the backends."""
_LIBRARIES = {
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "tensorrt": "TensorRT",
    "tensorrt_rtx": "TensorRT for RTX",
}
_PARSED = ("tensorrt", "tensorrt_rtx")
"""Backends whose graphs TensorRT's parser reads."""
_INTEGER = frozenset({"MatMulInteger", "ConvInteger"})
_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"}) | _INTEGER


def weighted_nodes(model: Path) -> dict[str, str]:
    """The convolutions and matrix products of an ONNX file: name → operator, in the graph's order."""
    import onnx_ir as ir

    return {str(node.name): node.op_type for node in ir.load(model).graph if node.op_type in _WEIGHTED and node.name}


def facts_of(graph: Artifact) -> dict[str, Any] | None:
    """The account of a quantized graph; None of a graph that is none.

    Args:
        graph: With ``quantize.json`` where it is one.
    """
    path = graph / "quantize.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def expected(graph: Artifact) -> dict[str, str]:
    """What each convolution and matrix product of a quantized graph was meant to run in: "int8", or "fp32".

    Args:
        graph: With ``model.onnx`` and ``quantize.json``.
    """
    facts = facts_of(graph) or {}
    layers = (facts.get("layers") or {}).get("layers", ())
    planned = {layer["node"] for layer in layers}
    return {
        **dict.fromkeys(planned, "int8"),
        **{
            name: "int8" if name in planned or operator in _INTEGER else "fp32"
            for name, operator in weighted_nodes(graph / "model.onnx").items()
        },
    }


def of_engine(engine: Engine, graph: Artifact) -> dict[str, Any] | None:
    """What an engine that runs here made of a quantized graph: plain JSON values; None of a graph that is none.

    Args:
        engine: Of status "ready".
        graph: That it was compiled from.
    """
    facts = facts_of(graph)
    if facts is None:
        return None
    nodes = backends.backend(engine.record.backend).nodes(engine.artifact.folder)
    found = _found("engine", nodes, graph, _LIBRARIES.get(engine.record.backend, engine.record.backend))
    if not facts["params"]:  # a dynamic recipe: what it quantizes at run time stands there on purpose
        found.update(unfused=[], counts={})
    return found


def can_parse(engine: Engine, graph: Artifact) -> bool:
    """Whether TensorRT's parser is here and the engine is made of a quantized graph that it reads."""
    return engine.record.backend in _PARSED and facts_of(graph) is not None and tensorrt_rtx_version() is not None


def of_parser(graph: Artifact) -> dict[str, Any]:
    """What TensorRT's parser makes of a quantized graph, for an engine that does not run here.

    It shows the graph before fusion: which products have integers on both sides.

    Args:
        graph: One that :func:`can_parse` allows.
    """
    try:
        nodes = tensorrt_rtx.parsed(graph / "model.onnx")
    except (TargetError, ProviderError) as error:
        return {"view": "parser", "engine": "TensorRT's parser", "refused": error.message}
    found = _found("parser", nodes, graph, "TensorRT's parser")
    found.update(unfused=[], counts={})  # fusion comes after the parser: all pairs are still there
    return found


def tensorrt_rtx_version() -> str | None:
    """Of the installed TensorRT-RTX, whose parser is TensorRT's; None without one."""
    return tensorrt_rtx.TensorRTRTXBackend().version()


def told(name: str, found: Mapping[str, Any]) -> list[str]:
    """A finding in lines for a person: the share in 8 bits, then each defect by the node's name.

    Args:
        name: Of the engine: target and precision.
        found: From :func:`of_engine` or :func:`of_parser`.
    """
    if "refused" in found:
        return [f"{name}: {found['engine']} refuses the graph: {found['refused']}"]
    wider = [
        f"{name}: '{node}' was to run in int8 and runs in {precision}"
        for node, precision in found["fallen_back"].items()
    ]
    share = found["int8_share"]
    if share is None:
        return [f"{name}: {found['engine']} does not tell {_untold(found['multiply_adds'])}", *wider]
    where = f"by {found['engine']}, before fusion" if found["view"] == "parser" else f"in {found['engine']}'s own graph"
    left = sum(found["counts"].values())
    ends = sum(pair["needed"] for pair in found["unfused"])
    return [f"{name}: multiply-adds in int8 {percent(share)} {where}" + _left(left, ends), *wider]


def _untold(multiply_adds: Mapping[str, int]) -> str:
    """What an engine does not tell that tells no share, and what it tells nevertheless."""
    total, known = sum(multiply_adds.values()), multiply_adds.get("int8", 0)
    if not total:
        return "what runs in int8"
    unknown = percent(multiply_adds[UNKNOWN] / total)
    return f"what {unknown} of the multiply-adds run in; {percent(known / total)} run in int8 for certain"


def percent(share: float) -> str:
    """A share that says 100% only where it is all of it."""
    floor = int(share * 1000 + 1e-7) / 10
    return f"{floor:g}%"


def _left(count: int, ends: int) -> str:
    if not count:
        return ""
    where = ", at inputs and outputs" if ends == count else f", {ends} of them at inputs and outputs" if ends else ""
    return f"; {count} quantizer{'' if count == 1 else 's'} left{where}"


def _found(view: str, nodes: Sequence[EngineNode], graph: Artifact, library: str) -> dict[str, Any]:
    planned = expected(graph)
    fusion = explain(nodes, planned, engine=library)
    return {"view": view, **fusion.as_json(), "fallen_back": fallen_back(fusion, nodes, planned)}


def fallen_back(fusion: Fusion, nodes: Sequence[EngineNode], planned: Mapping[str, str]) -> dict[str, str]:
    """Products that were to run in int8 and do not: name → the precision that they run in.

    An engine may give a product a name of its own (ONNX Runtime's "r1_nchwc" is the convolution that wrote r1). Such a
    one stands here by the engine's name, where more of them run in float than nodes were left in float.

    Args:
        fusion: What was found.
        nodes: Of the engine's graph.
        planned: From :func:`expected`.
    """
    found = {node: precision for node, precision in fusion.misplaced.items() if planned[node] == "int8"}
    strangers = [node for node in fusion.float_products if planned.keys().isdisjoint(_names(node))]
    known = {name for node in nodes if node.multiply_adds for name in _names(node)}
    unseen = sum(wanted != "int8" and node not in known for node, wanted in planned.items())
    if len(strangers) > unseen:
        found.update((node.name, node.precision) for node in strangers)
    return found


def _names(node: EngineNode) -> set[str]:
    return {node.name, *node.origins, *(origin.split("/")[0] for origin in node.origins)}
