"""The search for the highest rate: laws of the search, then a simulated engine whose limit is known."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.benchmark.peak_rate import peak_rate, search
from edgetl.benchmark.schedules import Plan
from edgetl.errors import UsageError

MS = 1_000_000


class SimulatedClock:
    """Time passes only where the engine works or somebody waits."""

    def __init__(self, service_ns: int) -> None:
        self.time, self.service_ns = 0, service_ns

    def now(self) -> int:
        return self.time

    def wait_until(self, due_ns: int) -> tuple[int, int]:
        slept, self.time = max(due_ns - self.time, 0), max(due_ns, self.time)
        return slept, 0

    def issue(self, _: Sequence[int]) -> None:
        self.time += self.service_ns


@given(st.floats(0.01, 1e5), st.floats(0.1, 1e4), st.floats(0.005, 0.5))
def test_the_search_ends_beside_the_limit(limit: float, first: float, precision: float) -> None:
    kept, broke, reason = search(lambda rate: rate <= limit, first=first, precision=precision, most=200)
    assert kept is not None
    assert broke is not None
    assert reason == ""
    assert kept <= limit < broke
    assert broke / kept <= 1 + precision


@given(st.integers(1, 12), st.floats(0.1, 100.0))
def test_the_search_makes_no_more_runs_than_it_may(most: int, limit: float) -> None:
    tried: list[float] = []

    def keeps(rate: float) -> bool:
        tried.append(rate)
        return rate <= limit

    kept, broke, reason = search(keeps, first=3.0, precision=1e-6, most=most)
    assert len(tried) == most
    assert f"after {most} run{'' if most == 1 else 's'}" in reason
    assert kept == max((rate for rate in tried if rate <= limit), default=None)
    assert broke == min((rate for rate in tried if rate > limit), default=None)


def test_where_no_rate_can_be_kept_the_search_does_not_go_on() -> None:
    tried: list[float] = []
    assert search(lambda rate: tried.append(rate), first=8.0, precision=0.1, most=20)[0] is None  # type: ignore[func-returns-value]
    assert tried == [8.0]


@pytest.mark.parametrize("changes", [{"first": 0.0}, {"first": -1.0}, {"precision": 0.0}, {"most": 0}])
def test_numbers_that_make_no_sense(changes: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="above 0"):
        search(lambda _: True, **{"first": 1.0, "precision": 0.1, "most": 5, **changes})  # type: ignore[arg-type]


def server(bound_ms: float) -> Plan:
    return Plan(scenario="server", rate_per_s=10.0, bound_ms=bound_ms, min_duration_s=20.0, min_queries=700)


@pytest.mark.parametrize("first", [None, 0, 400.0])
def test_the_limit_of_an_engine(first: float | None) -> None:
    """M/D/1 with calls of 2 ms: p99 of the latency passes 10 ms at a little above half of 500 per second."""
    clock = SimulatedClock(2 * MS)
    found = peak_rate(clock.issue, server(10.0), first_per_s=first, clock=clock)
    assert found.rate_per_s is not None
    assert found.broke_at_per_s is not None
    assert 225 < found.rate_per_s < 350
    assert found.broke_at_per_s / found.rate_per_s <= 1.05
    assert {result.plan.rate_per_s for result in found.runs} >= {found.rate_per_s, found.broke_at_per_s}
    kept = {result.plan.rate_per_s: result.keeps_bound for result in found.runs}
    assert kept[found.rate_per_s]
    assert not kept[found.broke_at_per_s]
    assert json.loads(json.dumps(found.to_json()))["rate_per_s"] == found.rate_per_s


def test_a_bound_below_a_single_call() -> None:
    clock = SimulatedClock(12 * MS)
    found = peak_rate(clock.issue, server(10.0), clock=clock)
    assert found.rate_per_s is None
    assert found.reason == "no rate keeps 10 ms: the calls alone take longer, without any queue"
    assert len(found.runs) == 1


def test_only_the_server_scenario_has_a_highest_rate() -> None:
    with pytest.raises(UsageError, match="of the scenario server, not of fixed-rate"):
        peak_rate(lambda _: None, Plan(scenario="fixed-rate", rate_per_s=30.0))
