"""JSON Schemas of what a bundle's reports hold, each with a version in its document."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from edgetl.benchmark.process import ColdStart
from edgetl.benchmark.reasons import Reason
from edgetl.benchmark.sensors.energy import Energy
from edgetl.benchmark.summary import Latency
from edgetl.errors import UnknownNameError
from edgetl.parity.compare import Comparison
from edgetl.pipeline import timing
from edgetl.report import document
from edgetl.tomlfile import did_you_mean

PARITY = 1
"""Version of parity.json."""


def schema(name: str) -> dict[str, Any]:
    """The JSON Schema (2020-12) of a file of a bundle's ``reports`` folder.

    Args:
        name: report (report.json), parity (parity.json) or bench (bench.json).

    Raises:
        UnknownNameError: There is none of that name.
    """
    if name not in _SCHEMAS:
        raise UnknownNameError(f"there is no schema '{name}'; {did_you_mean(name, ('config', *_SCHEMAS))}")
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


_SCHEMAS: Mapping[str, Callable[[], dict[str, Any]]] = MappingProxyType(
    {"report": document.schema, "parity": _parity, "bench": _bench}
)
