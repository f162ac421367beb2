"""JSON Schemas of what a bundle's reports hold and of what commands print, each with a version in its document."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from edgetl.benchmark.comparison import Comparison as Ratio
from edgetl.benchmark.process import ColdStart
from edgetl.benchmark.reasons import Reason
from edgetl.benchmark.sensors.energy import Energy
from edgetl.benchmark.stages import STAGES
from edgetl.benchmark.summary import Latency
from edgetl.diagnosis import recorded
from edgetl.errors import UnknownNameError
from edgetl.parity.compare import Comparison
from edgetl.pipeline import timing
from edgetl.pipeline.check import Checked
from edgetl.quantize.layers import LayerReport
from edgetl.report import document
from edgetl.tomlfile import did_you_mean

PARITY = 1
"""Version of parity.json."""
OUTPUT = 1
"""Version of what ``--json`` prints."""


def schema(name: str) -> dict[str, Any]:
    """The JSON Schema (2020-12) of a file of a bundle's ``reports`` folder, or of what ``--json`` prints.

    Args:
        name: report, parity, bench or quantization, of the JSON file of that name; output-bench, output-bench-scenario,
            output-bench-stages or output-verify, of the document whose ``kind`` is what follows the hyphen.

    Raises:
        UnknownNameError: There is none of that name.
    """
    if name not in _SCHEMAS:
        raise UnknownNameError(f"there is no schema '{name}'; {did_you_mean(name, ('config', *NAMES))}")
    return _SCHEMAS[name]()


def _parity() -> dict[str, Any]:
    from pydantic import TypeAdapter
    from pydantic.json_schema import GenerateJsonSchema

    engine = TypeAdapter(Comparison).json_schema()
    definitions = engine.pop("$defs")
    engine["properties"]["passed"] = {"type": "boolean", "title": "Passed"}
    engine["required"].append("passed")
    return {
        "$schema": GenerateJsonSchema.schema_dialect,
        "title": "parity.json",
        "type": "object",
        "required": ["schema", "engines"],
        "properties": {
            "schema": {"const": PARITY},
            "engines": {"type": "object", "additionalProperties": engine},
        },
        "$defs": definitions,
    }


def _stability() -> dict[str, Any]:
    from pydantic import TypeAdapter

    return {
        "type": "object",
        "required": ["outcome", "stable", "reasons", "unknown"],
        "properties": {
            "outcome": {"enum": ["stable", "unstable", "unknown"], "description": "unknown: too few calls to tell"},
            "stable": {"type": "boolean"},
            "reasons": {"type": "array", "items": TypeAdapter(Reason).json_schema()},
            "unknown": {
                "type": "array",
                "items": {"type": "string"},
                "description": "witnesses that could not be heard",
            },
        },
    }


def _bench() -> dict[str, Any]:
    from pydantic import TypeAdapter
    from pydantic.json_schema import GenerateJsonSchema

    latency, cold = TypeAdapter(Latency).json_schema(), TypeAdapter(ColdStart).json_schema()
    texts = {"type": "array", "items": {"type": "string"}}
    each = {
        "latency": latency,
        "cold_start": cold,
        "steady": {"type": "object", "required": ["warmup_samples", "settling_samples", "not_steady", "reasons"]},
        "histogram": {"type": ["string", "null"], "description": "HdrHistogram of nanoseconds: V2, compressed, base64"},
        "comparisons": {"type": "array", "items": {"type": "object", "required": ["name", "against", "ratio"]}},
        "implausible": texts,
        "stability": _stability(),
        "energy": {"type": "array", "items": TypeAdapter(Energy).json_schema()},
        "roofline": {"type": "object", "required": ["least_ms", "share", "limits", "layers", "reason"]},
    }
    kept = {name: {"type": "object", "additionalProperties": found} for name, found in each.items()}
    conditions = {"type": ["object", "null"], "required": ["facts", "series", "load", "period_s"]}
    plain = {"schema": {"const": timing.SCHEMA}, "created": {"type": "string"}, "environment": {"type": "object"}}
    return {
        "$schema": GenerateJsonSchema.schema_dialect,
        "title": "bench.json",
        "type": "object",
        "required": [*plain, "latency"],
        "properties": {**plain, **kept, "conditions": conditions, "ceilings": {"type": "object"}},
    }


def _document(title: str, required: Mapping[str, Any], more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """An object's schema, of properties that are always there and others; what a later edgetl adds is allowed."""
    from pydantic.json_schema import GenerateJsonSchema

    properties = {**required, **(more or {})}
    return {
        "$schema": GenerateJsonSchema.schema_dialect,
        "title": title,
        "type": "object",
        "required": [*required],
        "properties": properties,
    }


def _object(required: Mapping[str, Any], more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {"type": "object", "required": [*required], "properties": {**required, **(more or {})}}


def _by_name(values: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": dict(values)}


_TEXT, _TEXTS = {"type": "string"}, {"type": "array", "items": {"type": "string"}}
_NUMBER, _COUNT, _SHARE = {"type": "number"}, {"type": "integer", "minimum": 0}, {"type": ["number", "null"]}
_BOUNDS = {"type": "array", "items": _NUMBER, "minItems": 2, "maxItems": 2}


def _with_definitions(schema: dict[str, Any], *parts: dict[str, Any]) -> dict[str, Any]:
    """Collect the ``$defs`` of parts at the top, where their references point."""
    found: dict[str, Any] = {}
    for part in parts:
        found.update(part.pop("$defs", {}))
    return {**schema, "$defs": found} if found else schema


def _quantization() -> dict[str, Any]:
    from pydantic import TypeAdapter

    layers = TypeAdapter(LayerReport).json_schema()
    for loss in layers["$defs"].values():
        for name in ("isolated_db", "accumulated_db"):
            loss["properties"][name] |= {"type": ["number", "null"], "description": "null: a power overflowed float32"}
    graph = _object(
        {
            "scheme": _TEXT,
            "recipe": _TEXT,
            "quantized": {**_by_name(_COUNT), "description": "operator: how many"},
            "left_in_float": _by_name(_COUNT),
            "params": {
                **_by_name({"type": "array", "items": _NUMBER, "minItems": 4, "maxItems": 4}),
                "description": "activation: scale, zero point, least and largest value",
            },
            "layers": {"anyOf": [layers, {"type": "null"}]},
            "notes": {"type": "object"},
            "targets": _TEXTS,
        }
    )
    unfused = _object({"name": _TEXT, "kind": _TEXT, "reason": _TEXT, "needed": {"type": "boolean"},
                       "defect": {"type": "boolean"}})  # fmt: skip
    looked_into = _object(
        {
            "view": {"enum": ["engine", "parser"]},
            "engine": _TEXT,
            "int8_share": _SHARE,
            "multiply_adds": _by_name(_COUNT),
            "counts": _by_name(_COUNT),
            "unfused": {"type": "array", "items": unfused},
            "float_products": {"type": "array", "items": {"type": "object"}},
            "fallen_back": _by_name(_TEXT),
        }
    )
    refused = _object({"view": {"enum": ["engine", "parser"]}, "engine": _TEXT, "refused": _TEXT})
    changes = _by_name({"type": "array", "items": {"type": "object"}})
    required = {
        "schema": {"const": recorded.SCHEMA},
        "changes": {**changes, "description": "of the float graph, before it was quantized, by kind"},
        "graphs": {"type": "array", "items": graph},
        "engines": _by_name({"anyOf": [looked_into, refused]}),
    }
    return _with_definitions(_document("quantization.json", required), layers)


def _printed(kind: str, result: dict[str, Any]) -> dict[str, Any]:
    """The document that a command prints with ``--json``."""
    return _document(f"kind {kind} of --json", {"schema": {"const": OUTPUT}, "kind": {"const": kind}, "result": result})


def _output_bench() -> dict[str, Any]:
    from pydantic import TypeAdapter

    latency, cold = TypeAdapter(Latency).json_schema(), TypeAdapter(ColdStart).json_schema()
    comparison = TypeAdapter(Ratio).json_schema()
    comparison["properties"] |= {"upper": _SHARE, "statement": _TEXT}
    comparison["required"].append("statement")
    measured = {
        "name": _TEXT,
        "inputs": _TEXTS,
        "ratio_p50": _NUMBER,
        "engine_clock_p50_ms": {
            "type": ["number", "null"],
            "description": "by the engine's own clock, without the call from Python; null where it has none",
        },
        "cold_start": {"type": "array", "items": cold},
        "warmup_samples": _COUNT,
        "settling_samples": _COUNT,
        "not_steady": _COUNT,
        "reasons": _TEXTS,
        "stability": _stability(),
        "roofline": {"type": ["object", "null"], "required": ["least_ms", "share", "limits", "layers", "reason"]},
        "energy": {"type": "array", "items": TypeAdapter(Energy).json_schema()},
    }
    slowdown = {
        "comparison": comparison,
        "allowed": _NUMBER,
        "outcome": {"enum": ["passed", "failed", "undecided"]},
        "statement": _TEXT,
    }
    both = {
        **latency,
        "required": [*latency["required"], *measured],
        "properties": {**latency["properties"], **measured},
    }
    result = {
        "environment": {"type": "object"},
        "measured": {"type": "array", "minItems": 1, "items": both},
        "comparisons": {"type": "array", "items": comparison},
        "slowdowns": {"type": "array", "items": _object(slowdown)},
        "notes": _TEXTS,
        "conditions": {"type": ["object", "null"], "required": ["facts", "series", "load", "period_s"]},
        "ceilings": {"type": "object"},
        "gate": {"enum": ["passed", "failed", None], "description": "null: no baseline was given"},
    }
    return _with_definitions(_printed("bench", _object(result)), latency, cold, comparison)


_RUN = {
    "bundle": _TEXT,
    "engine": {**_TEXT, "description": "target and precision"},
    "environment": {"type": "object"},
    "gate": {"enum": ["passed", "failed", None], "description": "null: no bound was given"},
    "stability": {"type": ["object", "null"], "required": ["stable", "reasons"]},
    "conditions": {"type": ["object", "null"], "required": ["facts", "series", "load", "period_s"]},
}


def _output_scenario() -> dict[str, Any]:
    plan = _object({"scenario": _TEXT, "percentile": _NUMBER, "min_queries": _COUNT, "samples": _COUNT, "seed": _COUNT})
    run = _object(
        {
            "driver": _TEXT,
            "plan": plan,
            "queries": _COUNT,
            "samples": _COUNT,
            "samples_per_s": _SHARE,
            "latency_ms": {**_by_name(_NUMBER), "description": "mean, min, max, and percentiles with enough queries"},
            "estimate_ms": _SHARE,
            "valid": {"type": "boolean"},
            "problems": _TEXTS,
        },
        {
            "intervals_ms": {
                **_by_name(_BOUNDS),
                "description": "percentile: its 95% interval; of edgetl's own driver",
            },
            "service_p50_ms": _NUMBER,
            "over_bound": {"type": ["integer", "null"]},
            "keeps_bound": {"type": ["boolean", "null"]},
            "spin_share": _SHARE,
            "lateness_p99_us": _SHARE,
        },
    )
    peak = _object({"rate_per_s": _SHARE, "broke_at_per_s": _SHARE, "reason": _TEXT,
                    "runs": {"type": "array", "items": run}})  # fmt: skip
    either = {"oneOf": [{"required": ["scenario"]}, {"required": ["peak_rate"]}]}
    return _printed("bench-scenario", {**_object(_RUN, {"scenario": run, "peak_rate": peak}), **either})


def _output_stages() -> dict[str, Any]:
    times = {
        "type": "object",
        "propertyNames": {"enum": [*STAGES]},
        "additionalProperties": _NUMBER,
        "minProperties": 1,
    }
    stages = {
        "stages_ms": times,
        "shares": times,
        "sum_ms": _NUMBER,
        "whole_ms": _NUMBER,
        "gap": _NUMBER,
        "adds_up": {"type": "boolean"},
        "note": _TEXT,
        "samples": _COUNT,
    }
    return _printed("bench-stages", _object({**_RUN, "stages": _object(stages)}))


def _output_verify() -> dict[str, Any]:
    from pydantic import TypeAdapter

    checked = TypeAdapter(Checked).json_schema(mode="serialization")
    return _with_definitions(_printed("verify", checked), checked)


_SCHEMAS: Mapping[str, Callable[[], dict[str, Any]]] = MappingProxyType(
    {
        "report": document.schema,
        "parity": _parity,
        "bench": _bench,
        "quantization": _quantization,
        "output-bench": _output_bench,
        "output-bench-scenario": _output_scenario,
        "output-bench-stages": _output_stages,
        "output-verify": _output_verify,
    }
)
NAMES = tuple(_SCHEMAS)
"""Of all schemas here."""
