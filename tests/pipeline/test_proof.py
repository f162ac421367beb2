"""What is shipped, and what fails a build."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.backends.base import EngineRecord
from edgetl.benchmark.reasons import Kind, Reason
from edgetl.benchmark.stability import Stability
from edgetl.benchmark.summary import Latency
from edgetl.config import Bench, Budget, Config, Finetune, Parity, TargetEntry
from edgetl.data.dataset import Dataset, Sample
from edgetl.errors import BudgetError, ConfigError, MeasurementError, ParityError
from edgetl.finetune.verdict import Forgetting, Verdict
from edgetl.parity.compare import Comparison
from edgetl.parity.numeric import Tolerance
from edgetl.pipeline import choice, present, transfer
from edgetl.pipeline.choice import Decision
from edgetl.pipeline.engines import Candidate, Engine
from edgetl.pipeline.gates import (
    check_budgets,
    check_gate,
    gate,
    refuse_implausible,
    refuse_unstable,
    samples_in_groups,
    tolerance,
    too_few_of_a_class,
    too_few_samples,
)
from edgetl.pipeline.proof import Proven
from edgetl.pipeline.source_task import SourceChange
from edgetl.pipeline.timing import NO_TIMINGS, Timings
from edgetl.runtime.runner import Placement
from edgetl.specs import Hardware, Precision, Target
from edgetl.store import Artifact

PRECISIONS: tuple[Precision, ...] = ("int8", "fp16", "fp32")


def speed(p50_ms: float, p99_ms: float | None = None) -> Latency:
    return Latency(
        p50_ms=p50_ms, p90_ms=p50_ms, p99_ms=p99_ms or p50_ms, p999_ms=None, p50_interval_ms=None,
        p90_interval_ms=None, p99_interval_ms=None, p999_interval_ms=None, confidence=0.95, mean_ms=p50_ms,
        min_ms=p50_ms, max_ms=p99_ms or p50_ms, samples=700, processes=5,
    )  # fmt: skip


def decide(items: list[Proven], timings: Timings, **parity: Any) -> list[Decision]:
    return choice.decide(items, timings, Parity(**parity))


def comparison(passed: bool) -> Comparison:
    return Comparison(
        samples=1000, groups=None, metric="top1", score_reference=0.98, score=0.98, agreement=1.0, worse=0, better=0,
        drop=0.0, drop_upper=0.0, drop_lower=0.0, interval=(0.0, 0.0), p_value=1.0, detectable_drop=0.0,
        samples_to_decide=None, confidence=0.95, max_drop=0.01, max_abs_error=0.0, mean_abs_error=0.0, cosine=1.0,
        sqnr_db=40.0, slices=(),
        outcome="passed" if passed else "failed", statement="as good" if passed else "top-1 drops by 3.00 points",
    )  # fmt: skip


def proven(
    precision: Precision, passed: bool | None = True, *, target: str = "cpu", budget: Budget | None = None
) -> Proven:
    """An engine; passed None: it cannot run here."""
    device = Target(
        name=target, description="", backend="null", provider="none", scheme="", precisions=PRECISIONS,
        built_on_device=passed is None, hardware=Hardware(architecture="x86-64", processor="any"),
    )  # fmt: skip
    record = EngineRecord(
        backend="null", provider="none", precision=precision, status="build-on-device" if passed is None else "ready",
        files=("engine",), note="build it there" if passed is None else "",
    )  # fmt: skip
    engine = Engine(
        candidate=Candidate(
            target=device, precision=precision, entry=TargetEntry(device=target, budget=budget or Budget())
        ),
        artifact=Artifact(stage="compile", key="k", digest="d", folder=Path("nowhere"), cached=False),
        record=record,
    )
    return Proven(engine=engine, comparison=None if passed is None else comparison(passed), placement=None)


def timings(**p50: float | Latency) -> Timings:
    """cpu_int8=2.0 is 2 ms of "cpu int8"."""
    found = {
        name.replace("_", " "): value if isinstance(value, Latency) else speed(value) for name, value in p50.items()
    }
    return Timings(latencies=found, environment={}, created="")


def shipped(decisions: list[Decision]) -> list[str]:
    return [item.proven.engine.candidate.name for item in decisions if item.shipped]


def reasons(decisions: list[Decision]) -> dict[str, str]:
    return {item.proven.engine.candidate.name: item.reason for item in decisions}


def config(**parity: Any) -> Config:
    return Config.model_validate(
        {
            "schema": 1,
            "project": {"name": "p"},
            "data": {"manifest": "m.csv"},
            "target": [{"device": "cpu"}],
            "parity": parity,
        }
    )


def test_the_report_is_told_what_a_share_is_a_share_of() -> None:
    def placed(on: str, nodes: dict[str, int], **device: Any) -> dict[str, Any]:
        item = proven("fp16")
        candidate = replace(item.engine.candidate, target=replace(item.engine.candidate.target, **device))
        engine = replace(item.engine, candidate=candidate, record=replace(item.engine.record, provider="GPU"))
        found = Placement(provider=on, nodes=nodes)
        return present.placed(replace(item, engine=engine, placement={**asdict(found), "share": found.share}))

    on_dla = placed("DLA:0", {"DLA:0": 2, "GPU": 3}, dla_core=0, dla_fallback=True)
    assert on_dla == {"placement_share": 0.4, "placement_provider": "DLA:0", "fallback_allowed": True}
    on_gpu = placed("GPU", {"GPU": 3})
    assert on_gpu == {"placement_share": 1.0, "placement_provider": "", "fallback_allowed": False}
    assert present.placed(proven("fp16", None)) == {}


# --- the choice ------------------------------------------------------------------------------------------------------


def test_the_fastest_that_passes_is_shipped() -> None:
    found = decide([proven("int8"), proven("fp16"), proven("fp32")], timings(cpu_int8=2.5, cpu_fp16=4.0, cpu_fp32=5.0))
    assert shipped(found) == ["cpu int8"]
    assert reasons(found) == {
        "cpu int8": "",
        "cpu fp16": "int8 is faster: 2.50 against 4.00 ms",
        "cpu fp32": "int8 is faster: 2.50 against 5.00 ms",
    }


def test_what_is_undecided_is_shipped_only_where_the_user_lets_it() -> None:
    item = proven("int8")
    assert item.comparison is not None
    undecided = replace(item, comparison=replace(item.comparison, outcome="undecided", statement="undecided: …"))
    assert shipped(decide([undecided], timings(cpu_int8=2.5))) == []
    assert reasons(decide([undecided], timings(cpu_int8=2.5))) == {"cpu int8": "parity: undecided: …"}
    assert shipped(decide([undecided], timings(cpu_int8=2.5), undecided="allow")) == ["cpu int8"]
    failed = replace(item, comparison=replace(item.comparison, outcome="failed"))
    assert shipped(decide([failed], timings(cpu_int8=2.5), undecided="allow")) == []


def test_a_metric_that_is_no_share_of_right_decisions_has_no_sequential_gate() -> None:
    target = TargetEntry(device="x86-64-cpu")
    common = {"project": {"name": "p"}, "target": [target.model_dump()], "parity": {"sequential": True}}
    images = {"train": "a", "test": "b"}
    check_gate(Config.model_validate({"schema": 1, **common, "data": images}))
    with pytest.raises(ConfigError, match=r"counting right decisions, and this project measures AUC"):
        check_gate(Config.model_validate({"schema": 1, **common, "data": {**images, "metric": "auc"}}))


def test_faces_have_no_slices() -> None:
    """They were asked for, and nothing said that there were none."""
    data = {"task": "face-verification", "manifest": "m.csv", "slices": ["camera"]}
    common = {"schema": 1, "project": {"name": "p"}, "target": [{"device": "cpu"}]}
    with pytest.raises(ConfigError, match=r"data\.slices names 'camera', and TAR at FAR 1% is of pairs"):
        check_gate(Config.model_validate({**common, "data": data}))
    check_gate(Config.model_validate({**common, "data": {**data, "task": "image-classification"}}))


def test_limits_of_the_numbers_are_the_users_where_there_are_some() -> None:
    own = Parity.model_validate({"tolerances": {"int8": {"sqnr_db": 12}, "fp32": {}}})
    assert tolerance(own, "int8") == Tolerance(sqnr_db=12.0)
    assert tolerance(own, "fp32") == Tolerance()
    assert tolerance(own, "fp16") == Tolerance(sqnr_db=30.0)
    assert tolerance(Parity(), "int8") is None


def compared(lower: float, upper: float | None, *, ratio: float = 0.9) -> Timings:
    """int8 against fp32, whose medians are 4.5 and 5.0 ms."""
    verdict = "faster" if upper is not None and upper < 1 else "slower" if lower > 1 else "no difference"
    found = {
        "name": "cpu int8", "against": "cpu fp32", "ratio": ratio, "lower": lower, "upper": upper, "confidence": 0.95,
        "verdict": verdict, "rounds": 5,
    }  # fmt: skip
    return replace(timings(cpu_int8=4.5, cpu_fp32=5.0), details={"comparisons": {"cpu int8": [found]}})


def test_a_coarser_precision_must_be_shown_to_be_faster() -> None:
    items = [proven("int8"), proven("fp32")]
    assert shipped(decide(items, compared(0.85, 0.95))) == ["cpu int8"]
    assert reasons(decide(items, compared(0.85, 0.95)))["cpu fp32"] == "int8 is faster: 4.50 against 5.00 ms"
    found = decide(items, compared(0.80, 1.02))
    assert shipped(found) == ["cpu fp32"]
    assert reasons(found)["cpu int8"] == "not shown to be faster than fp32: ratio 0.80 to 1.02 with 95% confidence"
    slower = decide(items, compared(1.01, 1.2, ratio=1.1))
    assert shipped(slower) == ["cpu fp32"]  # whatever the medians over all rounds are
    assert shipped(decide(items, compared(0.0, None))) == ["cpu int8"]  # too few calls: the medians decide


def test_what_was_shown_to_be_faster_than_the_choice_is_the_choice() -> None:
    """bf16 is not shown to be faster than fp32, int8 is, and bf16 is faster than int8."""
    spans = {("int8", "fp32"): (0.92, 0.98), ("bf16", "fp32"): (0.80, 1.02), ("bf16", "int8"): (0.85, 0.99)}

    def found(verdicts: dict[tuple[str, str], tuple[float, float]]) -> Timings:
        comparisons: dict[str, list[dict[str, Any]]] = {}
        for (one, other), (lower, upper) in verdicts.items():
            comparisons.setdefault(f"cpu {one}", []).append({
                "name": f"cpu {one}", "against": f"cpu {other}", "lower": lower, "upper": upper, "confidence": 0.95,
                "verdict": "faster" if upper < 1 else "no difference",
            })  # fmt: skip
        return replace(timings(cpu_int8=9.5, cpu_bf16=9.0, cpu_fp32=10.0), details={"comparisons": comparisons})

    items = [proven("int8"), proven("bf16"), proven("fp32")]
    assert shipped(decide(items, found(spans))) == ["cpu bf16"]
    undecided = decide(items, found({**spans, ("bf16", "int8"): (0.9, 1.01)}))
    assert shipped(undecided) == ["cpu int8"]
    said = reasons(undecided)["cpu bf16"]
    assert said == "not shown to be faster than int8: ratio 0.90 to 1.01 with 95% confidence"


def test_the_budget_comes_before_the_place_that_is_earned() -> None:
    budget = Budget(p50_ms=4.8)
    items = [proven("int8", budget=budget), proven("fp32", budget=budget)]
    assert shipped(decide(items, compared(0.80, 1.02))) == ["cpu int8"]


def test_int8_that_is_slower_is_not_shipped() -> None:
    found = decide([proven("int8"), proven("fp32")], timings(cpu_int8=5.3, cpu_fp32=5.0))
    assert shipped(found) == ["cpu fp32"]
    assert reasons(found)["cpu int8"] == "fp32 is faster: 5.00 against 5.30 ms"


def test_a_fast_engine_without_parity_is_not_shipped() -> None:
    found = decide([proven("int8", False), proven("fp32")], timings(cpu_int8=2.0, cpu_fp32=5.0))
    assert shipped(found) == ["cpu fp32"]
    assert reasons(found)["cpu int8"] == "parity: top-1 drops by 3.00 points"


def test_nothing_is_shipped_where_nothing_passes() -> None:
    assert shipped(decide([proven("int8", False), proven("fp32", False)], NO_TIMINGS)) == []


def test_what_cannot_run_here_is_shipped_unproven_and_says_so() -> None:
    found = decide([proven("int8", None, target="jetson"), proven("fp16", None, target="jetson")], NO_TIMINGS)
    assert shipped(found) == ["jetson int8", "jetson fp16"]
    assert {item.latency for item in found} == {None}
    assert set(reasons(found).values()) == {"build it there"}


def test_targets_do_not_compete() -> None:
    items = [proven("int8"), proven("fp32"), proven("int8", target="gpu"), proven("fp16", target="gpu")]
    found = decide(items, timings(cpu_int8=2.0, cpu_fp32=5.0, gpu_int8=0.9, gpu_fp16=0.5))
    assert shipped(found) == ["cpu int8", "gpu fp16"]


def test_a_budget_narrows_the_choice_first() -> None:
    budget = Budget(p99_ms=8)
    items = [proven("int8", budget=budget), proven("fp32", budget=budget)]
    found = decide(items, timings(cpu_int8=speed(2.0, 9.0), cpu_fp32=speed(5.0, 6.0)))
    assert shipped(found) == ["cpu fp32"]
    assert reasons(found)["cpu int8"] == "misses the budget (p99 9.00 ms, allowed 8 ms)"
    assert [item.missed for item in found] == [("p99 9.00 ms, allowed 8 ms",), ()]


def test_where_all_miss_the_budget_the_fastest_is_the_candidate() -> None:
    budget = Budget(p50_ms=1, p99_ms=1)
    items = [proven("fp32", budget=budget), proven("int8", budget=budget)]
    found = decide(items, timings(cpu_int8=2.0, cpu_fp32=5.0))
    assert shipped(found) == ["cpu int8"]
    assert found[1].missed == ("p50 2.00 ms, allowed 1 ms", "p99 2.00 ms, allowed 1 ms")
    with pytest.raises(BudgetError, match=r"cpu int8: p50 2\.00 ms, allowed 1 ms; p99 2\.00 ms") as caught:
        gate(config(), found)
    assert caught.value.exit_code == 5
    assert "fp32" not in caught.value.message


def test_a_budget_that_is_missed_by_little_is_seen_to_be_missed() -> None:
    budget = Budget(p50_ms=0.05, p99_ms=8)
    found = decide([proven("int8", budget=budget)], timings(cpu_int8=speed(0.050004, 8.0004)))
    assert found[0].missed == ("p50 0.050004 ms, allowed 0.05 ms", "p99 8.0004 ms, allowed 8 ms")


def test_latencies_that_decide_are_told_apart() -> None:
    found = decide([proven("int8"), proven("fp32")], timings(cpu_int8=5.0004, cpu_fp32=5.0001))
    assert reasons(found)["cpu int8"] == "fp32 is faster: 5.0001 against 5.0004 ms"
    found = decide([proven("int8"), proven("fp32")], compared(0.80, 1.0003))
    assert "ratio 0.8000 to 1.0003 with 95% confidence" in reasons(found)["cpu int8"]


def test_a_budget_that_is_met_to_the_point() -> None:
    found = decide([proven("int8", budget=Budget(p50_ms=2.0))], timings(cpu_int8=2.0))
    assert found[0].missed == ()


def test_a_percentile_that_is_not_known_does_not_meet_its_budget() -> None:
    few = replace(speed(1.0), p99_ms=None, samples=100)
    found = decide([proven("int8", budget=Budget(p99_ms=8))], timings(cpu_int8=few))
    assert found[0].missed == ("p99 is not known from 100 calls, allowed 8 ms",)


@pytest.mark.parametrize(("field", "samples"), [("p50_ms", 20), ("p90_ms", 64), ("p99_ms", 662)])
def test_a_budget_needs_the_calls_that_back_it(field: str, samples: int) -> None:
    item = proven("int8", budget=Budget.model_validate({field: 8}))
    values = config().model_dump(by_alias=True)
    check_budgets(Config.model_validate({**values, "bench": {"samples": samples}}), [item.engine.candidate])
    if samples > 20:
        with pytest.raises(ConfigError, match=rf"at least {samples} timed calls; bench\.samples is {samples - 1}"):
            few = Config.model_validate({**values, "bench": {"samples": samples - 1}})
            check_budgets(few, [item.engine.candidate])


def test_an_engine_whose_measurement_cannot_be_true_is_not_shipped() -> None:
    measured = timings(cpu_int8=1.0, cpu_fp32=2.0)
    found = decide([proven("int8"), proven("fp32")], measured)
    refuse_implausible(measured, found)
    refuse_implausible(replace(measured, details={"implausible": {"cpu fp32": ["too fast"]}}), found)
    with pytest.raises(MeasurementError, match="cpu int8: too fast") as caught:
        refuse_implausible(replace(measured, details={"implausible": {"cpu int8": ["too fast"]}}), found)
    assert caught.value.exit_code == 5


def test_without_timings_something_that_passes_is_shipped() -> None:
    assert shipped(decide([proven("int8", False), proven("fp32")], NO_TIMINGS)) == ["cpu fp32"]


OUTCOMES = st.lists(
    st.tuples(st.sampled_from(PRECISIONS), st.sampled_from([True, False, None]), st.floats(0.1, 50), st.booleans()),
    min_size=1, max_size=3, unique_by=lambda row: row[0],
)  # fmt: skip


@given(OUTCOMES)
def test_laws_of_the_choice(rows: list[tuple[Precision, bool | None, float, bool]]) -> None:
    items = [proven(name, passed, budget=Budget(p99_ms=1e-3 if late else 1e3)) for name, passed, _, late in rows]
    speeds = {f"cpu_{name}": p50 for name, passed, p50, _ in rows if passed is not None}
    found = decide(items, timings(**speeds))
    assert [item.proven for item in found] == items  # nothing is lost, and the order stays
    chosen = [item for item in found if item.shipped and item.proven.comparison]
    passing = [item for item in found if item.proven.comparison and item.proven.comparison.passed]
    assert len(chosen) == min(1, len(passing))
    assert all(item in passing for item in chosen)
    for item in passing:
        assert chosen[0].latency is not None
        assert item.latency is not None
        assert (bool(chosen[0].missed), chosen[0].latency.p50_ms) <= (bool(item.missed), item.latency.p50_ms)
    assert all(item.shipped for item in found if item.proven.comparison is None)
    assert all(item.shipped or item.reason for item in found)


# --- the gate --------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(("samples", "max_drop", "needed"), [(298, 0.01, 299), (299, 0.01, None), (59, 0.05, 60)])
def test_too_few_samples_are_told_before_training(samples: int, max_drop: float, needed: int | None) -> None:
    said = too_few_samples(config(max_drop=max_drop), samples)
    assert (f"at least {needed} are needed, and the build will fail" in said) if needed else said == ""
    allowed = too_few_samples(config(max_drop=max_drop, undecided="allow"), samples)
    assert "will fail" not in allowed and bool(allowed) == bool(needed)


@pytest.mark.parametrize(
    ("counts", "groups", "metric", "said"),
    [
        ((200, 20), None, "macro-f1", "2 classes, of which 'b' has 20 in test: at least 29 of each"),
        ((200, 30), None, "macro-f1", ""),
        ((200, 30), 10, "macro-f1", "'b' has 3 in test"),
        ((200, 20), None, "top1", ""),
    ],
)
def test_a_rare_class_is_told_before_training_where_classes_count_alike(
    counts: tuple[int, int], groups: int | None, metric: str, said: str
) -> None:
    """In a mean over two classes a drop of 5 points is one of 10 in a class alone: 0.9²⁹ is below 5%."""
    samples = tuple(
        Sample(raw="", label=label, group=f"{label} {number // groups}" if groups else None, digest="")
        for label, count in enumerate(counts)
        for number in range(count)
    )
    asked = config(max_drop=0.05)
    asked = asked.model_copy(update={"data": asked.data.model_copy(update={"metric": metric})})
    found = too_few_of_a_class(asked, Dataset(classes=("a", "b"), train=(), val=(), test=samples))
    assert said in found and bool(said) == bool(found)


@pytest.mark.parametrize(
    ("groups", "apart"), [(["a", "a", "b", None, None, ""], 5), (["a", "b", None, None], None), ([None] * 3, None)]
)
def test_samples_that_belong_together_are_told(groups: list[str | None], apart: int | None) -> None:
    said = samples_in_groups(config(), groups)
    assert (f"{len(groups)} test samples belong together in {apart} groups" in said) if apart else said == ""
    if apart:
        assert "at least 299 groups show a drop below 1 point," in said
        with pytest.raises(ConfigError, match=f"these {len(groups)} belong together in {apart} groups"):
            samples_in_groups(config(sequential=True), groups)
    else:
        assert samples_in_groups(config(sequential=True), groups) == ""


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


def unstable(*kinds: Kind) -> Stability:
    reasons = tuple(Reason(kind=kind, text=f"a {kind}", figures={}, advice=f"mind the {kind}") for kind in kinds)
    return Stability(stable=not kinds, reasons=reasons, unknown=())


def test_the_report_is_told_which_reasons_are_of_the_machine() -> None:
    timed = Timings(latencies={"cpu int8": speed(1.0)}, environment={}, created="", stability={
        "cpu int8": unstable("neighbour", "stall", "frequency", "throttling", "few-samples"),
    })  # fmt: skip
    found = present.latency(timed, "cpu int8")
    assert found is not None and len(found.unstable) == 4
    assert found.unstable_by_machine == ("a neighbour", "a frequency", "a throttling")


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


def test_the_budget_of_an_engine_that_is_not_shipped_is_not_passed_by_an_unstable_measurement_either() -> None:
    wide = Budget(p50_ms=30.0)
    found = timings(cpu_int8=1.0, cpu_fp32=9.0)
    items = [proven("int8", budget=wide), proven("fp32", budget=wide)]
    shaken = unstable("step")
    told = replace(found, stability={"cpu int8": shaken, "cpu fp32": shaken})
    gates = [present.budget_gate(config(), told, item) for item in decide(items, told)]
    assert sorted((each.outcome, each.message) for each in gates) == [
        ("undecided", "every limit is met, but the measurement is UNSTABLE"),
        ("waived", "every limit is met, but the measurement is UNSTABLE"),
    ]
    calm = [present.budget_gate(config(), found, item) for item in decide(items, found)]
    assert [each.outcome for each in calm] == ["passed", "passed"]


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
