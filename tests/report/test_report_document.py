from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgetl.errors import BundleError
from edgetl.report.document import read_json, render_json, schema
from edgetl.report.formats import FORMATS
from edgetl.report.markup import clean


def test_what_is_written_is_read_back(good, bad):
    for report in (good, bad):
        assert read_json(render_json(report)) == report


def test_every_format_of_what_was_read_back_is_the_same(bad):
    again = read_json(render_json(bad))
    for form in FORMATS.values():
        assert form.render(again) == form.render(bad)


def test_documents_are_what_the_schema_says(sample, good, bad):
    jsonschema = pytest.importorskip("jsonschema", reason="extra dev")
    validator = jsonschema.Draft202012Validator(schema())
    validator.check_schema(validator.schema)
    odd = sample.renumbered(good, iter([math.inf, -math.inf, math.nan] * 100_000).__next__)
    for report in (good, bad, odd):
        validator.validate(json.loads(render_json(report)))
    document = json.loads(render_json(good))
    document["report"]["engines"][0]["status"] = "perhaps"
    assert not validator.is_valid(document)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.text(alphabet=st.characters(), max_size=40), st.floats())
def test_any_text_and_float_survives(sample, good, text, number):
    report = sample.renumbered(sample.replaced(good, text), lambda: number)
    document = render_json(report)
    document.encode("utf-8")
    again = read_json(document)
    assert again.project == clean(text)
    assert str(again.max_drop) == str(number)


def test_what_a_newer_edgetl_added_is_left_out(good):
    document = json.loads(render_json(good))
    document["report"]["mood"] = "sunny"
    document["report"]["engines"][0]["colour"] = 3
    assert read_json(json.dumps(document)) == good


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not JSON"), ("[" * 100_000, "not JSON"), ("[]", "schema None"), ('{"schema": 99}', "schema 99"),
        ('{"schema": 1}', "not what its schema says"), ('{"schema": 1, "report": {"project": 3}}', "project"),
    ],
)  # fmt: skip
def test_what_is_no_report_is_refused(text, words):
    with pytest.raises(BundleError, match=words):
        read_json(text)


def test_every_format_has_its_own_file():
    names = [form.file for form in FORMATS.values()]
    assert len(set(names)) == len(names)
    assert set(FORMATS) == {"html", "json", "junit", "sarif", "codequality", "markdown", "card"}


def test_code_quality_is_what_gitlab_reads(good, bad):
    """``codequality.schema.json``: README.md beside it says where it is from."""
    jsonschema = pytest.importorskip("jsonschema", reason="extra dev")
    schema = json.loads(Path(__file__).with_name("codequality.schema.json").read_text(encoding="utf-8"))
    validator = jsonschema.Draft202012Validator(schema)
    found = json.loads(FORMATS["codequality"].render(bad))
    for report in (good, bad):
        validator.validate(json.loads(FORMATS["codequality"].render(report)))
    for wrong in ({"severity": "error"}, {"location": {"path": "edgetl.toml"}}, {"fingerprint": ""}):
        assert not validator.is_valid([{**found[0], **wrong}])
    assert len(found) > 10
    assert len({each["fingerprint"] for each in found}) == len(found)
    for each in found:
        assert set(each) == {"description", "check_name", "fingerprint", "severity", "location"}
        assert each["location"]["path"] == "models/edgetl.toml" and each["location"]["lines"]["begin"] >= 1
    assert FORMATS["codequality"].render(dataclasses.replace(bad, config_file="")).count('"edgetl.toml"') == len(found)
