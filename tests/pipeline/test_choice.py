"""What is shipped."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from decided import PRECISIONS, config, decide, proven, reasons, shipped, speed, timings
from hypothesis import given
from hypothesis import strategies as st

from edgetl.config import Budget
from edgetl.errors import BudgetError
from edgetl.pipeline.gates import gate
from edgetl.pipeline.timing import NO_TIMINGS, Timings
from edgetl.specs import Precision


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
