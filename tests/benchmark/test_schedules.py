"""Schedules: arrivals by their laws, and plans that make no sense."""

from __future__ import annotations

import json
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.benchmark.schedules import SCENARIOS, Plan, arrivals, queries
from edgetl.errors import UsageError


def server(**changes: Any) -> Plan:
    return Plan(**{"scenario": "server", "rate_per_s": 100.0, "bound_ms": 15.0, **changes})


@given(st.floats(0.5, 5000.0), st.floats(0.0, 3.0), st.integers(1, 300), st.integers(0, 2**31))
def test_arrivals_go_on_until_both_minima_are_reached(rate: float, duration: float, least: int, seed: int) -> None:
    for plan in (
        server(rate_per_s=rate, min_duration_s=duration, min_queries=least, seed=seed),
        Plan(scenario="fixed-rate", rate_per_s=rate, min_duration_s=duration, min_queries=least),
    ):
        times = arrivals(plan)
        assert times.dtype == np.int64
        assert times[0] == 0
        assert (np.diff(times) >= 0).all()
        assert len(times) >= least
        assert times[-1] >= duration * 1e9 - 1  # to a nanosecond: the times are rounded
        assert len(times) == least or times[-2] <= duration * 1e9  # and not a query longer


@given(st.integers(0, 2**31), st.floats(1.0, 50.0))
def test_the_same_seed_is_the_same_pattern_at_every_rate(seed: int, factor: float) -> None:
    slow = arrivals(server(rate_per_s=10.0, min_duration_s=1.0, min_queries=50, seed=seed))
    fast = arrivals(server(rate_per_s=10.0 * factor, min_duration_s=1.0, min_queries=50, seed=seed))
    count = min(len(slow), len(fast))
    assert slow[:count] / factor == pytest.approx(fast[:count], abs=2)


def test_another_seed_is_another_pattern() -> None:
    assert not np.array_equal(arrivals(server(seed=1))[:100], arrivals(server(seed=2))[:100])


def test_arrivals_are_a_poisson_process() -> None:
    gaps = np.diff(arrivals(server(rate_per_s=2000.0, min_duration_s=20.0))) / 1e9
    assert gaps.mean() == pytest.approx(1 / 2000, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03)  # exponential
    assert np.corrcoef(gaps[:-1], gaps[1:])[0, 1] == pytest.approx(0.0, abs=0.03)  # without memory
    assert np.quantile(gaps, 0.5) == pytest.approx(np.log(2) / 2000, rel=0.04)


def test_frames_come_at_their_period() -> None:
    times = arrivals(Plan(scenario="fixed-rate", rate_per_s=30.0, min_duration_s=1.0, min_queries=1))
    assert len(times) == 31
    assert np.abs(times - np.arange(31) * 1e9 / 30).max() <= 0.5


def test_queries_are_drawn_from_the_samples() -> None:
    drawn = list(islice(queries(Plan(scenario="single-stream", samples=10)), 4000))
    assert {len(one) for one in drawn} == {1}
    counts = np.bincount([one[0] for one in drawn], minlength=10)
    assert counts.min() > 300  # 400 each, give or take 5 standard deviations of 19
    assert drawn == list(islice(queries(Plan(scenario="single-stream", samples=10)), 4000))
    assert drawn != list(islice(queries(Plan(scenario="single-stream", samples=10, seed=1)), 4000))


def test_samples_of_a_multi_stream_query_follow_each_other() -> None:
    for one in islice(queries(Plan(scenario="multi-stream", samples=5, per_query=8)), 100):
        assert one == tuple((one[0] + more) % 5 for more in range(8))


def test_offline_takes_the_samples_in_their_order() -> None:
    batches = list(islice(queries(Plan(scenario="offline", samples=5, per_query=2)), 7))
    assert batches == [(0, 1), (2, 3), (4, 0), (1, 2), (3, 4), (0, 1), (2, 3)]


def test_defaults_are_those_of_loadgen() -> None:
    single = Plan(scenario="single-stream")
    assert single.percentile == 0.9
    assert Plan(scenario="multi-stream", per_query=8).percentile == server().percentile == 0.99
    assert (single.min_duration_s, single.min_queries) == (10.0, 100)
    assert Plan(scenario="offline").min_queries == 100
    assert server().min_queries == 662  # what p99 needs
    assert server(percentile=0.999).min_queries == 6636
    assert Plan(scenario="fixed-rate", rate_per_s=50.0).bound_ms == 20.0  # the period
    assert server(bound_ms=0.25).bound_ns == 250_000


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_json(scenario: str) -> None:
    changes = {"rate_per_s": 10.0, "bound_ms": 5.0} if scenario in ("server", "fixed-rate") else {}
    plan = Plan(scenario=scenario, **changes)  # type: ignore[arg-type]
    assert Plan(**json.loads(json.dumps(plan.to_json()))) == plan


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scenario": "serve"}, "no scenario 'serve'; there are single-stream"),
        ({"rate_per_s": 0.0}, "rate above 0"),
        ({"rate_per_s": -3.0}, "rate above 0"),
        ({"rate_per_s": float("inf")}, "rate above 0"),
        ({"rate_per_s": float("nan")}, "rate above 0"),
        ({"rate_per_s": None}, "needs a rate"),
        ({"bound_ms": None}, "needs a latency bound"),
        ({"bound_ms": 0.0}, "above 0 ms"),
        ({"bound_ms": -1.0}, "above 0 ms"),
        ({"per_query": 2}, "one sample"),
        ({"samples": 0}, "samples of at least 1"),
        ({"min_queries": -1}, "min_queries of at least 1"),
        ({"seed": -1}, "seed is a whole number from 0"),
        ({"seed": 2**63}, "seed is a whole number from 0"),
        ({"min_duration_s": -1.0}, "at least 0 seconds"),
        ({"min_duration_s": 700.0}, "cannot end after"),
        ({"max_duration_s": 0.0, "min_duration_s": 0.0}, "cannot end after"),
        ({"percentile": 99.0}, "share between 0 and 1"),
        ({"scenario": "single-stream"}, "has no rate"),
        ({"scenario": "single-stream", "rate_per_s": None}, "no latency bound"),
        ({"scenario": "single-stream", "rate_per_s": None, "bound_ms": None, "per_query": 4}, "one sample"),
        ({"scenario": "offline", "rate_per_s": None, "bound_ms": None, "per_query": 0}, "per_query of at least 1"),
    ],
)
def test_a_plan_that_makes_no_sense(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        server(**changes)


def test_more_queries_than_memory_should_hold() -> None:
    with pytest.raises(UsageError, match=r"10,000,000,000 queries"):
        arrivals(server(rate_per_s=1e9))


def test_a_closed_loop_has_no_arrivals() -> None:
    with pytest.raises(UsageError, match="no arrivals"):
        arrivals(Plan(scenario="single-stream"))


@pytest.mark.parametrize(("rate", "words"), [(None, "none was given"), (0.0, "given was 0"), (-1.5, "given was -1.5")])
def test_a_rate_that_is_none(rate: float | None, words: str) -> None:
    with pytest.raises(UsageError, match=rf"server needs a rate above 0 queries per second; {words}$"):
        server(rate_per_s=rate)
