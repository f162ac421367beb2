"""Percentiles of all processes that there could be: how often their interval holds, and its laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.benchmark.mixture import mixture_interval
from edgetl.benchmark.summary import nearest_rank, summarise

PLACES = {"p90": 1.2815515655446004, "p99": 2.3263478740408408}
"""Percentile → the normal distribution's."""


def calls(random: np.random.Generator, memory: float, between: float, processes: int = 5) -> np.ndarray:
    """Nanoseconds around 10 ms, (processes, 140): calls that remember, of processes that differ."""
    found = random.normal(0, 0.05 * np.sqrt(1 - memory**2), (processes, 140))
    found[:, 0] = random.normal(0, 0.05, processes)
    for index in range(1, 140):
        found[:, index] += memory * found[:, index - 1]
    return np.rint(1e7 * np.exp(found + random.normal(0, between, (processes, 1)))).astype(np.int64)


@pytest.mark.parametrize(("memory", "between"), [(0.9, 0.02), (0.7, 0.05)])
def test_intervals_hold_where_processes_differ_as_much_as_calls(memory: float, between: float) -> None:
    """Resampled processes alone held a p99 in 89 and 85 of 100 cases; 300 cases, 1.3 points are a standard error."""
    process, block = np.repeat(np.arange(5), 140), np.tile(np.arange(140) // 10, 5)
    held = dict.fromkeys(PLACES, 0)
    for seed in range(300):
        found = summarise(
            calls(np.random.default_rng([1, seed]), memory, between).reshape(-1), process, block, draws=50
        )
        for name, place in PLACES.items():
            low, high = found.interval(name) or (np.inf, 0.0)
            held[name] += low <= 10 * np.exp(place * np.hypot(0.05, between)) <= high
    assert all(0.92 <= count / 300 <= 0.985 for count in held.values()), held


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(1000, 10**9), min_size=11, max_size=60),
    st.sampled_from([0.5, 0.9, 0.99]),
    st.floats(0, 1),
    st.sampled_from([0.8, 0.95, 0.99]),
)
def test_an_interval_is_no_narrower_than_that_of_resamples(
    times: list[int], share: float, width: float, confidence: float
) -> None:
    values, process = np.array(times), np.arange(len(times)) % 3
    low, high = mixture_interval(values, process, share, width=width, confidence=confidence)
    assert math.log(high / low) >= 2 * width - 1e-9
    slower = mixture_interval(2 * values, process, share, width=width, confidence=confidence)
    assert slower == pytest.approx((2 * low, 2 * high))


def test_who_is_to_be_surer_or_has_fewer_processes_has_a_wider_interval() -> None:
    times = calls(np.random.default_rng(0), 0.5, 0.03, processes=10)

    def width(processes: int, confidence: float) -> float:
        process = np.repeat(np.arange(processes), 140)
        some = times[:processes].reshape(-1)
        low, high = mixture_interval(some, process, 0.99, width=0.01, confidence=confidence)
        return high / low

    assert width(10, 0.8) < width(10, 0.95) < width(10, 0.99)
    assert width(10, 0.95) < width(5, 0.95) < width(2, 0.95)


def test_processes_that_are_alike_leave_what_resamples_say() -> None:
    times = np.tile(np.arange(1000, 1100), 5)
    low, high = mixture_interval(times, np.repeat(np.arange(5), 100), 0.99, width=0.1, confidence=0.95)
    middle = nearest_rank(np.sort(times), 0.99)
    assert (low, high) == pytest.approx((middle * math.exp(-0.1), middle * math.exp(0.1)))


def test_an_end_that_is_no_number_is_not_told() -> None:
    times = np.array([10**3] * 50 + [10**9] * 50)
    process, block = np.repeat([0, 1], 50), np.tile(np.arange(50) // 10, 2)
    assert mixture_interval(times, process, 0.9, width=1.0, confidence=0.9999)[1] == math.inf
    found = summarise(times, process, block, confidence=0.9999, draws=20)
    assert found.p90_ms is not None and found.p90_interval_ms is None
