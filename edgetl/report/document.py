"""The report as JSON, for programs; and back again, so that a bundle's report can be had in every format.

A float that JSON has no word for is one of the texts "NaN", "Infinity" and "-Infinity".
"""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from edgetl.errors import BundleError
from edgetl.report import learning, model, quantized
from edgetl.report.markup import clean
from edgetl.report.model import Report

if TYPE_CHECKING:
    from pydantic import TypeAdapter

SCHEMA = 1
"""Version of the document: it grows when a reader of an older one would go wrong."""


def render_json(report: Report) -> str:
    """The report as a JSON document that :func:`schema` describes; to be written as UTF-8."""
    return json.dumps({"schema": SCHEMA, "report": _plain(report)}, ensure_ascii=False, allow_nan=False) + "\n"


def read_json(text: str) -> Report:
    """The report that :func:`render_json` wrote; what a newer edgetl added to it is left out.

    Args:
        text: The document.

    Raises:
        BundleError: It is no such document, or one of another version.
    """
    from pydantic import ValidationError

    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"the report is not JSON: {error}") from None
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        found = document.get("schema") if isinstance(document, dict) else None
        raise BundleError(
            f"the report has schema {found!r}, and this edgetl reads {SCHEMA}", hint="the edgetl that built the bundle"
        )
    try:
        return _adapter().validate_python(document.get("report"))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"the report is not what its schema says: {where}: {first['msg']}") from None


def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of the document."""
    from pydantic.json_schema import GenerateJsonSchema
    from pydantic_core import core_schema

    class WithInfinities(GenerateJsonSchema):
        def float_schema(self, schema: core_schema.FloatSchema) -> dict[str, Any]:
            return {"anyOf": [{"type": "number"}, {"enum": ["NaN", "Infinity", "-Infinity"]}]}

    report = _adapter().json_schema(schema_generator=WithInfinities)
    definitions = report.pop("$defs")
    for name, described in {**definitions, "Report": report}.items():
        for field, text in _docstrings().get(name, {}).items():
            described["properties"][field]["description"] = text
    return {
        "$schema": GenerateJsonSchema.schema_dialect,
        "title": "edgetl report",
        "type": "object",
        "required": ["schema", "report"],
        "properties": {"schema": {"const": SCHEMA}, "report": report},
        "$defs": definitions,
    }


@cache
def _adapter() -> TypeAdapter[Report]:
    from pydantic import TypeAdapter

    return TypeAdapter(Report)


def _docstrings() -> dict[str, dict[str, str]]:
    """Class → field → the text below it: what the model's source says of its values."""
    found: dict[str, dict[str, str]] = {}
    for module in (model, learning, quantized):
        for kind in ast.parse(inspect.getsource(module)).body:
            if isinstance(kind, ast.ClassDef):
                found[kind.name] = dict(_described(kind.body))
    return found


def _described(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    for field, text in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            value = text.value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield field.target.id, " ".join(value.value.split())


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
