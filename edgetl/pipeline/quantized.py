"""What quantization came to in a build: for its report, its manifest and its JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetl.diagnosis import recorded
from edgetl.numbers import counted
from edgetl.pipeline.choice import Decision
from edgetl.pipeline.record import Record
from edgetl.quantize.decibels import NO_NOISE_DB
from edgetl.report import model
from edgetl.report import quantized as values
from edgetl.store import Artifact

_NAMED = 3
_QUANTIZED, _HALF = "quantize.json", "half.json"


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A quantized graph of a build, or one in float16."""

    facts: dict[str, Any]
    """Content of ``quantize.json`` or ``half.json``."""
    artifact: Artifact
    targets: tuple[str, ...]
    """That have engines of it."""

    @property
    def is_half(self) -> bool:
        """Whether nothing in it is an integer."""
        return (self.artifact / _HALF).exists()


def graphs(record: Record) -> tuple[Graph, ...]:
    """The graphs of a build with a precision in them, each once."""
    found: dict[str, tuple[Artifact, list[str]]] = {}
    for item in record.decisions:
        candidate = item.proven.engine.candidate
        artifact = record.graphs[candidate.name]
        if any((artifact / name).exists() for name in (_QUANTIZED, _HALF)):
            found.setdefault(artifact.digest, (artifact, []))[1].append(candidate.target.name)
    return tuple(
        Graph(facts=_facts(artifact), artifact=artifact, targets=tuple(targets)) for artifact, targets in found.values()
    )


def _facts(artifact: Artifact) -> dict[str, Any]:
    path = artifact / (_HALF if (artifact / _HALF).exists() else _QUANTIZED)
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def operators(record: Record) -> tuple[model.Quantization, ...]:
    """Operators by what became of them, per graph with integers."""
    return tuple(
        model.Quantization(
            scheme=graph.facts["scheme"],
            targets=graph.targets,
            operators=tuple(
                model.OperatorCount(
                    operator=operator,
                    quantized=graph.facts["quantized"].get(operator, 0),
                    float_=graph.facts["left_in_float"].get(operator, 0),
                )
                for operator in sorted({*graph.facts["quantized"], *graph.facts["left_in_float"]})
            ),
        )
        for graph in graphs(record)
        if not graph.is_half
    )


def fusions(record: Record) -> tuple[values.Fusion, ...]:
    """What engines made of the graphs, as far as it is known."""
    return tuple(
        _fusion(item.proven.engine.candidate.name, item.proven.fusion)
        for item in record.decisions
        if item.proven.fusion is not None
    )


def layers(record: Record) -> tuple[values.LayerReport, ...]:
    """The layer reports of the graphs that have one."""
    return tuple(_layers(graph, remarks(graph.facts["notes"], _changes(record))) for graph in graphs(record)
                 if graph.facts["layers"] is not None)  # fmt: skip


def document(record: Record) -> dict[str, Any]:
    """Everything, as plain JSON: the content of ``reports/quantization.json``."""
    return {
        "schema": recorded.SCHEMA,
        "changes": _changes(record),
        "graphs": [{**_finite(graph.facts), "targets": list(graph.targets)} for graph in graphs(record)],
        "engines": {
            item.proven.engine.candidate.name: item.proven.fusion
            for item in record.decisions
            if item.proven.fusion is not None
        },
    }


def placement(item: Decision) -> dict[str, Any]:
    """Where an engine's nodes run, and in what: for the manifest."""
    found = item.proven.fusion
    summary = dict(item.proven.placement or {})
    if found is not None and "refused" not in found:
        kept = ("view", "int8_share", "counts", "fallen_back")
        unfused = [{"name": pair["name"], "reason": pair["reason"]} for pair in found["unfused"]]
        summary["int8"] = {**{name: found[name] for name in kept}, "unfused": unfused}
    elif found is not None:
        summary["int8"] = found
    return summary


def remarks(notes: Mapping[str, Any], changes: Mapping[str, Sequence[Mapping[str, Any]]]) -> tuple[str, ...]:
    """What searches, changes of the float graph and corrections did, a sentence each.

    Args:
        notes: Of ``quantize.json`` or ``half.json``.
        changes: Of ``equalize.json``: "equalized", "separated" and "smoothed"; empty where the graph was not changed.
    """
    said = []
    if "activations" in notes:
        decibels, chosen = notes["searched_activations_db"], notes["activations"]
        tried = ", ".join(f"{name} {value:.1f} dB" for name, value in decibels.items())
        said.append(f"Activation ranges by {chosen}, of those tried at the output: {tried}.")
        more = f"{max(decibels.values()) - decibels[chosen]:.1f}"
        if more != "0.0":
            said[-1] += f" None of the {more} dB more is clear on the samples one by one."
    pairs = changes.get("equalized", ())
    if pairs:
        done = sum(pair["method"] is not None for pair in pairs)
        said.append(f"Cross-layer equalization changed {done} of {counted(len(pairs), 'pair')} of convolutions.")
    taken_out = [len(each["channels"]) for each in changes.get("separated", ()) if each["channels"]]
    if taken_out:
        channels, where = counted(sum(taken_out), "outlier channel"), counted(len(taken_out), "activation")
        said.append(f"{channels} of {where} {'is' if sum(taken_out) == 1 else 'are'} multiplied in float.")
    groups = changes.get("smoothed", ())
    if groups:
        done = sum(group["alpha"] is not None for group in groups)
        said.append(f"SmoothQuant changed {done} of {counted(len(groups), 'group')} of matrix products.")
    widened = notes.get("channels_widened_against_saturation") or {}
    if widened:
        channels, where = counted(sum(widened.values()), "channel"), counted(len(widened), "layer")
        said.append(f"The scales of {channels} in {where} are wider, so that no pair of products saturates 16 bits.")
    if left := notes.get("correction_left_out"):
        said.append(
            f"Corrections were left out: on {counted(left['samples'], 'calibration sample')} that they had not seen"
            " they did not clearly serve the output"
            f" (fidelity {left['before_db']:.1f} dB without, {left['after_db']:.1f} dB with them)."
        )
    if kept := notes.get("kept_in_float32"):
        named = ", ".join(f"{node} ({reason})" for node, reason in list(kept.items())[:_NAMED])
        more = ", …" if len(kept) > _NAMED else ""
        said.append(f"{counted(len(kept), 'node')} {'stays' if len(kept) == 1 else 'stay'} in float32: {named}{more}.")
    if lost := notes.get("vanished_weights"):
        weights, where = counted(sum(lost.values()), "weight"), counted(len(lost), "constant")
        said.append(f"{weights} of {where} {'is' if sum(lost.values()) == 1 else 'are'} zero in float16.")
    return (*said, *_corrections(notes.get("corrected", ())))


def _corrections(corrected: Sequence[Mapping[str, Any]]) -> list[str]:
    said = []
    shifted = [item for item in corrected if item["shift"] > 0]
    if shifted:
        most = max(shifted, key=lambda item: _share(item["shift"], item["output_rms"]))
        share = _share(most["shift"], most["output_rms"]) * 100
        said.append(
            f"Bias correction moved {counted(len(shifted), 'bias', 'biases')}, most that of {most['node']}: "
            f"by {share:.2g}% of its output."
        )
    rounded = [item["rounding_gain"] for item in corrected if item["rounding_gain"] > 0]
    if rounded:
        gains = " to ".join(dict.fromkeys(f"{gain * 100:.0f}%" for gain in (min(rounded), max(rounded))))
        said.append(f"Rounding was learned for {counted(len(rounded), 'layer')}: the squared error fell by {gains}.")
    return said


def _changes(record: Record) -> dict[str, Any]:
    """What was done to the float graph before it was quantized; empty where the recipe wants nothing."""
    path = record.statistics / "equalize.json" if record.statistics else None
    if path is None or not path.exists():
        return {}
    return {kind: without_nan(items) for kind, items in json.loads(path.read_text(encoding="utf-8")).items()}


def without_nan(items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Accounts whose figures that are none are None: JSON has no nan."""
    found: list[dict[str, Any]] = _finite(items)
    return found


def _finite(value: Any) -> Any:
    """JSON values with None for every float that JSON has no number for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _fusion(name: str, found: Mapping[str, Any]) -> values.Fusion:
    if "refused" in found:
        return values.Fusion(
            engine=name, library=found["engine"], view=found["view"], int8_share=None, refused=found["refused"]
        )
    total = sum(found["multiply_adds"].values())
    return values.Fusion(
        engine=name,
        library=found["engine"],
        view=found["view"],
        int8_share=found["int8_share"],
        unfused=tuple(
            values.Unfused(**{key: pair[key] for key in ("name", "kind", "reason", "needed", "defect")})
            for pair in found["unfused"]
        ),
        float_products=tuple(
            values.FloatProduct(
                name=node["name"], kind=node["kind"], precision=node["precision"], share=node["multiply_adds"] / total
            )
            for node in found["float_products"]
        ),
        fallen_back=tuple(values.FallenBack(node=node, precision=runs) for node, runs in found["fallen_back"].items()),
    )


def _layers(graph: Graph, said: tuple[str, ...]) -> values.LayerReport:
    found = graph.facts["layers"]
    order = _order(graph.artifact / "model.onnx")
    before = graph.facts["notes"].get("before_corrections", {})
    return values.LayerReport(
        scheme=graph.facts["scheme"],
        recipe=graph.facts["recipe"],
        targets=graph.targets,
        half=graph.is_half,
        samples=found["samples"],
        layers=tuple(
            values.LayerLoss(
                node=loss["node"],
                operator=loss["operator"],
                place=order.get(loss["node"], len(order)),
                isolated_db=_ratio(loss["isolated_db"]),
                accumulated_db=_ratio(loss["accumulated_db"]),
                before_db=_ratio(before[loss["node"]]) if loss["node"] in before else None,
            )
            for loss in found["layers"]
        ),
        tensors=tuple(
            values.TensorLoss(
                name=loss["name"],
                isolated_db=_ratio(loss["isolated_db"]),
                accumulated_db=_ratio(loss["accumulated_db"]),
                low=loss["low"],
                high=loss["high"],
                scale=loss["scale"],
            )
            for loss in found["tensors"]
        ),
        notes=said,
    )


def _order(path: Path) -> dict[str, int]:
    """Node → its place in an ONNX file."""
    import onnx_ir as ir

    return {str(node.name): place for place, node in enumerate(ir.load(path).graph)}


def _ratio(value: float) -> float:
    """A ratio in dB; inf where nothing is lost."""
    return math.inf if value >= NO_NOISE_DB else value


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
