"""docs/schemas: the JSON Schemas of this version's reports, and of what its commands print."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgetl.cli import terminal
from edgetl.diagnosis import recorded
from edgetl.errors import UnknownNameError
from edgetl.pipeline import schemas, timing
from edgetl.report import document

DOCS = Path(__file__).parents[2] / "docs" / "schemas"
VERSIONS = {
    "report": document.SCHEMA, "parity": schemas.PARITY, "bench": timing.SCHEMA, "quantization": recorded.SCHEMA,
    **dict.fromkeys(("output-bench", "output-bench-scenario", "output-bench-stages", "output-verify"), terminal.SCHEMA),
}  # fmt: skip


@pytest.mark.parametrize("name", VERSIONS)
def test_the_schema_in_docs_is_the_one_of_this_version(name):
    file = DOCS / f"{name}-{VERSIONS[name]}.json"
    assert json.loads(file.read_text(encoding="utf-8")) == schemas.schema(name), (
        f"edgetl schema --of {name} > docs/schemas/{file.name}, with a new version where readers would go wrong"
    )


@pytest.mark.parametrize("name", VERSIONS)
def test_it_is_a_json_schema(name):
    jsonschema = pytest.importorskip("jsonschema", reason="extra dev")
    jsonschema.Draft202012Validator.check_schema(schemas.schema(name))


def test_a_name_that_has_none():
    with pytest.raises(UnknownNameError, match="did you mean 'bench'"):
        schemas.schema("bnech")
