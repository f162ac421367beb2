from __future__ import annotations

import dataclasses
import re

import pytest

from edgetl.report import model, quantized
from edgetl.report.card import render_card
from edgetl.report.findings import RULES, findings, line_of
from edgetl.report.formats import FORMATS


def test_a_good_build_has_warnings_at_most(good):
    found = findings(good)
    assert {each.rule.id for each in found} == {
        "edgetl/class-regressed", "edgetl/slice-regressed", "edgetl/unfused-pair", "edgetl/not-in-int8",
        "edgetl/provider-fallback",
    }  # fmt: skip
    assert all(each.level == "warning" for each in found)


def test_every_kind_of_trouble_is_found_once_and_errors_come_first(bad):
    found = findings(bad)
    assert {each.rule for each in found} == set(RULES) - {RULES[-1]}, "all but 'not published', which others explain"
    assert [each.level for each in found] == sorted(
        (each.level for each in found), key=["error", "warning", "note"].index
    )
    keys = [(each.rule.id, each.about) for each in found]
    assert len(set(keys)) == len(keys)
    said = {each.rule.id: each.message for each in found}
    assert said["edgetl/parity-failed"] == "x86-64-cpu int8: top-1 drops by 2.40 points, and 1.00 are allowed"
    assert said["edgetl/class-regressed"] == (
        "x86-64-cpu int8: class three is worse than PyTorch: 12 of 100 decisions lost, 1 won, a drop of 11.0 points "
        "(adjusted p 0.0040)"
    )
    assert said["edgetl/graph-refused"].endswith("node 'x' of Foo is not known")


def test_findings_stand_at_the_line_that_decides_or_at_its_table(bad):
    lines = {(each.rule.id, each.about.split(":")[0]): each.line for each in findings(bad)}
    assert lines["edgetl/parity-failed", "x86-64-cpu int8"] == 21
    assert lines["edgetl/parity-waived", "x86-64-cpu fp32"] == 20, "parity.require is not there: its table is"
    assert lines["edgetl/budget-missed", "intel-cpu int8"] == 46
    assert lines["edgetl/slice-regressed", "x86-64-cpu int8"] == 9
    assert lines["edgetl/unfused-pair", "x86-64-cpu int8"] == 30
    assert lines["edgetl/class-regressed", "x86-64-cpu int8"] is None, "a line of another target would be wrong"
    assert line_of(bad, "target.precisions", "intel-cpu") == 44


def test_numbers_beyond_their_limits_stand_at_the_limit_and_not_at_the_drop(good):
    engine = dataclasses.replace(
        good.engines[0], precision="fp32", parity_gate=model.Gate(outcome="failed", message="SQNR is 40 dB")
    )
    limit = model.Setting(key="parity.tolerances.fp32", target="", line=25)
    report = dataclasses.replace(good, engines=(engine,), settings=(*good.settings, limit))
    assert engine.parity.drop_upper <= report.max_drop
    assert [each.line for each in findings(report) if each.rule.id == "edgetl/parity-failed"] == [25]
    worse = dataclasses.replace(engine, parity=dataclasses.replace(engine.parity, drop_upper=0.5))
    report = dataclasses.replace(report, engines=(worse,))
    assert [each.line for each in findings(report) if each.rule.id == "edgetl/parity-failed"] == [21]


def test_a_share_of_an_accelerator_is_told_of_it_and_what_the_target_allows_is_a_note(good):
    def told(**facts):
        engine = dataclasses.replace(good.engines[0], provider="GPU", **facts)
        report = dataclasses.replace(good, engines=(engine,))
        (found,) = [each for each in findings(report) if each.rule.id == "edgetl/provider-fallback"]
        return report, found

    on_dla = {"placement_provider": "DLA:0", "fallback_allowed": True}
    report, found = told(placement_share=0.4, **on_dla)
    said = "x86-64-cpu int8: 40.0 % of the nodes run on DLA:0; the target lets the others run elsewhere"
    assert (found.level, found.message) == ("note", said)
    assert "DLA:0" in FORMATS["html"].render(report)
    card = render_card(report).replace("\\", "")
    assert "| onnxruntime | DLA:0 | 40.0 |" in card and "of the nodes run on" not in card
    assert told(placement_share=0.0, **on_dla)[1].level == "warning", "nothing at all runs where it was meant to"
    assert told(placement_share=0.4)[1].message == "x86-64-cpu int8: 40.0 % of the nodes run on GPU"
    assert told(placement_share=0.4)[1].level == "warning"


def test_a_fingerprint_depends_on_what_it_is_about_and_on_no_figure(bad):
    before = {each.fingerprint for each in findings(bad)}
    assert len(before) == len(findings(bad))
    assert all(re.fullmatch("[0-9a-f]{64}", each) for each in before)
    other = dataclasses.replace(
        bad,
        settings=tuple(dataclasses.replace(each, line=each.line + 7) for each in bad.settings),
        engines=tuple(
            dataclasses.replace(each, parity_gate=dataclasses.replace(each.parity_gate, message="other figures"))
            for each in bad.engines
        ),
    )
    assert {each.fingerprint for each in findings(other)} == before


def test_a_refusal_that_no_gate_explains_is_a_finding(good):
    refused = dataclasses.replace(good, verdict=model.Verdict(published=False, reason="transfer did not help"))
    errors = [each for each in findings(refused) if each.level == "error"]
    assert [(each.rule.id, each.message) for each in errors] == [("edgetl/not-published", "transfer did not help")]


def test_thousands_of_defects_are_counted_and_not_listed(good):
    pairs = tuple(
        quantized.Unfused(name=f"n{index}", kind="QuantizeLinear", reason="r", needed=False, defect=True)
        for index in range(5000)
    )
    fusion = quantized.Fusion(engine="e int8", library="L", view="engine", int8_share=0.1, unfused=pairs)
    found = [each for each in findings(dataclasses.replace(good, fusions=(fusion,))) if "unfused" in each.rule.id]
    assert len(found) == 20
    assert found[-1].message.endswith("and 4,980 more like it")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_rules_are_told_in_words(rule):
    assert re.fullmatch("edgetl/[a-z0-9-]+", rule.id)
    assert rule.full.endswith(".") and rule.help.endswith((".", "?")) and not rule.short.endswith(".")
    assert rule.key.split(".")[0] in ("parity", "quantize", "bench", "target", "data", "project")


def test_an_unstable_measurement_is_a_warning_until_a_budget_depends_on_it(bad):
    def of(report: model.Report):
        (found,) = [each for each in findings(report) if each.rule.id == "edgetl/unstable-measurement"]
        return found

    (engine,) = [each for each in bad.engines if each.latency and each.latency.unstable]
    assert of(bad).level == "warning"
    assert of(bad).message == f"{engine.name}: other processes used 31% of the processors"
    undecided = dataclasses.replace(engine, budget_gate=model.Gate(outcome="undecided", message="UNSTABLE"))
    gated = dataclasses.replace(bad, engines=(undecided,), fusions=(), data=None)
    assert of(gated).level == "error"
    assert "edgetl/not-published" not in {each.rule.id for each in findings(gated)}
    for form in ("html", "markdown"):
        text = FORMATS[form].render(gated)
        assert "UNSTABLE" in text and "other processes used 31" in text
        steady = dataclasses.replace(engine, latency=dataclasses.replace(engine.latency, unstable=()))
        assert "UNSTABLE" not in FORMATS[form].render(dataclasses.replace(bad, engines=(steady,)))
