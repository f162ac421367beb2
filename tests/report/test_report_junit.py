from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgetl.report import model
from edgetl.report.junit import render_junit


def _report(engines: tuple[model.Engine, ...], name: str = "digits") -> model.Report:
    return model.Report(
        project=name, version="1.0.0", edgetl_version="0.1.0", created="2026-11-21T03:12:45+00:00",
        config_digest="9f2c",
        verdict=model.Verdict(published=False, reason=name), signed_by=None, reference=model.Baseline(name="PyTorch"),
        test_samples=1000, max_drop=0.01, confidence=0.95, engines=engines,
    )  # fmt: skip


def _engine(parity: model.Gate, budget: model.Gate, target: str = "x86-64-cpu") -> model.Engine:
    return model.Engine(
        target=target, backend="onnxruntime", provider="CPUExecutionProvider", precision="int8", status="ready",
        shipped=False, parity_gate=parity, budget_gate=budget, budget=model.Budget(p99_ms=8.0),
    )  # fmt: skip


def test_one_case_per_engine_and_gate() -> None:
    failed = model.Gate(outcome="failed", message="the drop may be 2.1 points, accepted is 1")
    passed, waived = model.Gate(outcome="passed"), model.Gate(outcome="waived", message="the drop may be 3 points")
    root = ElementTree.fromstring(
        render_junit(_report((_engine(failed, model.Gate(outcome="not-run")), _engine(waived, passed, "intel-cpu"))))
    )
    cases = root.findall("./testsuite/testcase")
    assert [(case.get("classname"), case.get("name")) for case in cases] == [
        ("edgetl.build", "published"),
        ("edgetl.x86-64-cpu.int8", "parity"), ("edgetl.x86-64-cpu.int8", "budget"),
        ("edgetl.intel-cpu.int8", "parity"), ("edgetl.intel-cpu.int8", "budget"),
    ]  # fmt: skip
    failure = cases[1].find("failure")
    assert failure is not None and failure.get("message") == failed.message and failed.message in (failure.text or "")
    assert [skip.get("message") for skip in root.iter("skipped")] == [
        "budget: p99 ≤ 8 ms",
        "waived: the drop may be 3 points",
    ]
    assert len(cases[4]) == 0
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("5", "2", "0")
    assert root[0].get("skipped") == "2"


def test_a_refusal_that_no_gate_explains_is_a_failure(good: model.Report) -> None:
    """A server that goes by the cases alone must not see a green build."""
    root = ElementTree.fromstring(render_junit(good))
    assert root.get("failures") == "0" and root.find("./testsuite/testcase[@classname='edgetl.build']") is not None
    refused = dataclasses.replace(good, verdict=model.Verdict(published=False, reason="transfer did not help"))
    root = ElementTree.fromstring(render_junit(refused))
    (failure,) = root.iter("failure")
    assert (failure.get("type"), failure.get("message")) == ("published", "transfer did not help")
    assert root.get("failures") == root[0].get("failures") == "1"


def test_without_an_engine_there_is_the_build() -> None:
    root = ElementTree.fromstring(render_junit(_report(())))
    assert root.get("tests") == "1" and len(root.findall("./testsuite/testcase")) == 1
    published = [each.get("value") for each in root.iter("property") if each.get("name") == "published"]
    assert published == ["no"]


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet=st.characters(), max_size=60))
def test_any_text_is_xml(text: str) -> None:
    gate = model.Gate(outcome="failed", message=text)
    document = render_junit(_report((_engine(gate, gate, text),), text))
    root = ElementTree.fromstring(document.encode("utf-8"))
    assert len(root.findall("./testsuite/testcase")) == 3


@pytest.fixture(scope="module")
def jenkins() -> Any:
    xmlschema = pytest.importorskip("xmlschema", reason="extra dev")
    return xmlschema.XMLSchema(str(Path(__file__).with_name("junit-10.xsd")))


def test_it_is_what_the_schema_of_jenkins_says(jenkins: Any, good: model.Report, bad: model.Report) -> None:
    for report in (good, bad, _report(())):
        jenkins.validate(ElementTree.fromstring(render_junit(report)))
    root = ElementTree.fromstring(render_junit(bad))
    root.set("skipped", "2")
    assert not jenkins.is_valid(root), "Jenkins's schema has no such attribute there"


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.text(alphabet=st.characters(), max_size=40))
def test_any_text_is_valid(jenkins: Any, sample: Any, bad: model.Report, text: str) -> None:
    jenkins.validate(ElementTree.fromstring(render_junit(sample.replaced(bad, text)).encode("utf-8")))
