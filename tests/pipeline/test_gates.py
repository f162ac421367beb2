"""What fails a build in the end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from decided import config, decide, proven, timings, unstable

from edgetl.config import Bench, Budget, Config, Finetune
from edgetl.errors import MeasurementError, ParityError
from edgetl.finetune.verdict import Forgetting, Verdict
from edgetl.pipeline import transfer
from edgetl.pipeline.gates import gate, refuse_implausible, refuse_unstable
from edgetl.pipeline.source_task import SourceChange
from edgetl.pipeline.timing import NO_TIMINGS


def test_an_engine_whose_measurement_cannot_be_true_is_not_shipped() -> None:
    measured = timings(cpu_int8=1.0, cpu_fp32=2.0)
    found = decide([proven("int8"), proven("fp32")], measured)
    refuse_implausible(measured, found)
    refuse_implausible(replace(measured, details={"implausible": {"cpu fp32": ["too fast"]}}), found)
    with pytest.raises(MeasurementError, match="cpu int8: too fast") as caught:
        refuse_implausible(replace(measured, details={"implausible": {"cpu int8": ["too fast"]}}), found)
    assert caught.value.exit_code == 5


def test_a_target_without_a_passing_precision_fails() -> None:
    found = decide([proven("int8", False), proven("fp32", False), proven("int8", target="gpu")], NO_TIMINGS)
    with pytest.raises(ParityError) as caught:
        gate(config(), found)
    assert caught.value.exit_code == 4
    assert caught.value.message.splitlines() == [
        "parity was not shown:",
        "  cpu int8: top-1 drops by 3.00 points",
        "  cpu fp32: top-1 drops by 3.00 points",
    ]
    assert caught.value.hint


def test_where_nothing_is_decided_the_hint_asks_for_samples_and_not_for_calibration() -> None:
    undecided = proven("int8", False)
    assert undecided.comparison is not None
    undecided = replace(undecided, comparison=replace(undecided.comparison, outcome="undecided"))
    for found, hint in (
        ([undecided], "more test samples, a larger"),
        ([undecided, proven("fp32", False)], "more calib"),
    ):
        with pytest.raises(ParityError) as caught:
            gate(config(), decide(found, NO_TIMINGS))
        assert (caught.value.hint or "").startswith(hint)


def test_any_needs_one_and_all_needs_every_precision() -> None:
    found = decide([proven("int8", False), proven("fp32")], timings(cpu_int8=1.0, cpu_fp32=2.0))
    gate(config(require="any"), found)
    with pytest.raises(ParityError, match="cpu int8: top-1 drops"):
        gate(config(require="all"), found)


def test_all_is_met_by_all() -> None:
    gate(config(require="all"), decide([proven("int8"), proven("fp32")], timings(cpu_int8=1.0, cpu_fp32=2.0)))


def test_what_cannot_run_here_fails_nothing() -> None:
    found = decide([proven("int8", None, target="jetson"), proven("int8")], timings(cpu_int8=1.0))
    gate(config(require="all"), found)


def test_an_unproven_precision_does_not_cover_for_a_failed_one() -> None:
    with pytest.raises(ParityError):
        gate(config(), decide([proven("int8", False), proven("fp16", None)], NO_TIMINGS))


def test_one_failing_target_fails_the_build() -> None:
    found = decide([proven("int8"), proven("int8", False, target="gpu")], timings(cpu_int8=1.0, gpu_int8=1.0))
    with pytest.raises(ParityError, match="gpu int8") as caught:
        gate(config(), found)
    assert "cpu" not in caught.value.message


def test_parity_comes_before_the_budget() -> None:
    late = Budget(p50_ms=0.1)
    found = decide([proven("int8", budget=late), proven("int8", False, target="gpu")], timings(cpu_int8=1.0))
    with pytest.raises(ParityError):
        gate(config(), found)


def test_a_budget_missed_by_what_is_not_shipped_fails_nothing() -> None:
    late = Budget(p50_ms=3.0)
    gate(
        config(),
        decide([proven("int8", budget=late), proven("fp32", budget=late)], timings(cpu_int8=1.0, cpu_fp32=9.0)),
    )


def test_a_budget_that_an_unstable_measurement_meets_is_not_passed() -> None:
    wide = Budget(p50_ms=30.0)
    found = timings(cpu_int8=1.0, cpu_fp32=9.0, gpu_int8=1.0)
    items = [proven("int8", budget=wide), proven("fp32", budget=wide), proven("int8", target="gpu")]
    shaken = unstable("step", "throttling")
    of = {"cpu int8": shaken, "cpu fp32": shaken, "gpu int8": shaken}
    told = replace(found, stability=of)
    with pytest.raises(MeasurementError, match=r"UNSTABLE.*\n  cpu int8: a step; a throttling$") as caught:
        refuse_unstable(config(), told, decide(items, told))
    assert caught.value.exit_code == 5
    hint = caught.value.hint or ""
    assert all(words in hint for words in ("mind the step; mind the throttling", "--force bench", 'unstable = "allow"'))
    allowed = config().model_copy(update={"bench": Bench(unstable="allow")})
    refuse_unstable(allowed, told, decide(items, told))
    refuse_unstable(config(), told, decide(items[2:], told))  # no budget: no gate


def test_too_few_calls_to_tell_are_no_reason_to_fail_a_budget() -> None:
    items = [proven("int8", budget=Budget(p50_ms=30.0))]
    few = replace(timings(cpu_int8=1.0), stability={"cpu int8": unstable("few-samples")})
    refuse_unstable(config(), few, decide(items, few))
    both = replace(few, stability={"cpu int8": unstable("few-samples", "stall")})
    with pytest.raises(MeasurementError, match=r"cpu int8: a stall$"):
        refuse_unstable(config(), both, decide(items, both))


def judged(lower: float, samples: int = 1000) -> transfer.Comparison:
    """A verdict of "neutral" with a change on the source task."""
    change = Forgetting(
        before=0.9, after=0.9 + lower / 2, change=lower / 2, lower=lower, upper=0.0, confidence=0.95, seeds=3,
        samples=samples, statement="it changes",
    )  # fmt: skip
    verdict = Verdict(
        outcome="neutral", confidence=0.95, seeds=3, samples=100, means={}, differences=(), statement="neutral: it may"
    )
    source = SourceChange(forgetting=change, head="own", how="as it is", metric="top-1", scores=[0.9] * 3)
    return transfer.Comparison(verdict=verdict, metric="top-1", epochs={}, scores={}, source=source)


def gated(**finetune: Any) -> Config:
    return config().model_copy(update={"finetune": Finetune(source_test=Path("old"), **finetune)})


def test_forgetting_fails_a_build_only_where_a_gate_was_asked_for() -> None:
    found = decide([proven("int8")], timings(cpu_int8=1.0))
    gate(gated(), found, judged(-0.5))
    gate(gated(max_forgetting=0.05), found, judged(-0.04))
    with pytest.raises(ParityError, match=r"a drop of 5 points on the source task is not excluded") as caught:
        gate(gated(max_forgetting=0.05), found, judged(-0.06))
    assert caught.value.exit_code == 4
    assert caught.value.message.startswith("the verdict on transfer was not passed:")
    assert "it may be 6.00 (3 seeds, 1,000 test samples; the score changes by -3.00 points)" in caught.value.message
    with pytest.raises(ParityError, match=r"a drop of 5 points .* it may be 5\.00004 \(") as caught:
        gate(gated(max_forgetting=0.05), found, judged(-0.0500004))
    # A drop of exactly so much is not excluded; nor is a small one by few samples.
    for change in (judged(-0.05), judged(0.0, samples=50)):
        with pytest.raises(ParityError):
            gate(gated(max_forgetting=0.05), found, change)


@pytest.mark.parametrize(("passed", "head"), [(True, "the verdict on transfer"), (False, "parity was not shown")])
def test_both_findings_of_a_verdict_are_told(passed: bool, head: str) -> None:
    found = decide([proven("int8", passed)], timings(cpu_int8=1.0))
    with pytest.raises(ParityError) as caught:
        gate(gated(max_forgetting=0.01, verdict="require"), found, judged(-0.06))
    assert caught.value.message.startswith(head)
    assert "transfer did not help: neutral" in caught.value.message and "source task" in caught.value.message
