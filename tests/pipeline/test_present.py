"""What a report is told of engines."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from decided import config, decide, proven, speed, timings, unstable

from edgetl.config import Budget
from edgetl.pipeline import present
from edgetl.pipeline.timing import Timings
from edgetl.runtime.runner import Placement


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


def test_the_report_is_told_which_reasons_are_of_the_machine() -> None:
    timed = Timings(latencies={"cpu int8": speed(1.0)}, environment={}, created="", stability={
        "cpu int8": unstable("neighbour", "stall", "frequency", "throttling", "few-samples"),
    })  # fmt: skip
    found = present.latency(timed, "cpu int8")
    assert found is not None and len(found.unstable) == 4
    assert found.unstable_by_machine == ("a neighbour", "a frequency", "a throttling")


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
