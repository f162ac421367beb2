"""Percentiles, how many calls they take, and the histogram."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.benchmark.early_stopping import queries_needed
from edgetl.benchmark.summary import PERCENTILES, Latency, histogram, summarise
from edgetl.errors import MissingExtraError, UsageError

TIMES = st.lists(st.integers(1000, 10**10), min_size=11, max_size=300)


def summary_of(times: list[int], processes: int = 2, block: int = 5, **given_: float) -> Latency:
    places = np.arange(len(times))
    return summarise(np.array(times), places % processes, places // processes // block, draws=50, **given_)


def nearest_rank(times: list[int], share: float) -> float:
    """By definition: the smallest measured time that at least that share of the calls did not exceed."""
    return min(one for one in times if sum(other <= one for other in times) >= share * len(times) - 1e-9) / 1e6


# --- percentiles -----------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(TIMES)
def test_percentiles_are_nearest_rank_and_only_where_calls_back_them(times: list[int]) -> None:
    found = summary_of(times)
    assert found.p50_ms == nearest_rank(times, 0.5)
    assert found.p90_ms == (nearest_rank(times, 0.9) if len(times) >= 64 else None)
    assert (found.p99_ms, found.p999_ms) == (None, None)
    assert found.min_ms <= found.p50_ms <= (found.p90_ms or found.max_ms) <= found.max_ms
    assert found.mean_ms == pytest.approx(math.fsum(times) / len(times) / 1e6)
    for name in PERCENTILES:
        value, interval = found.percentile(name), found.interval(name)
        assert (value is None) <= (interval is None)
        assert value is None or interval is None or interval[0] <= value <= interval[1]
    assert Latency.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_a_p99_needs_662_calls_and_the_slowest_of_them_counts() -> None:
    times = [1_000_000] * 655 + [9_000_000] * 7
    assert summary_of(times[1:]).p99_ms is None
    assert summary_of(times).p99_ms == 9.0
    assert summary_of(times).max_ms == 9.0


def test_an_interval_grows_with_confidence_and_with_what_processes_differ_by() -> None:
    generator = np.random.default_rng(0)
    alike = generator.normal(5e6, 1e5, (5, 140))
    process, block = np.repeat(np.arange(5), 140), np.tile(np.arange(140) // 10, 5)

    def width(times: object, **more: float) -> float:
        interval = summarise(np.rint(times).astype(np.int64).reshape(-1), process, block, **more).p50_interval_ms
        assert interval is not None
        return interval[1] / interval[0] - 1

    apart = alike + np.array([-4, -2, 0, 2, 4])[:, None] * 1e5
    assert width(alike) < 0.02 < 0.05 < width(apart)
    assert width(apart, confidence=0.8) < width(apart) < width(apart, confidence=0.99)


def test_too_few_calls_for_a_median() -> None:
    assert queries_needed(0.5) == 11
    with pytest.raises(UsageError, match="a median needs at least 11 calls; there are 10"):
        summary_of([1_000_000] * 10)
    with pytest.raises(UsageError, match="there are 0"):
        summary_of([])
    with pytest.raises(UsageError, match="its process and its block"):
        summarise(np.arange(20), np.zeros(19, int), np.zeros(20, int))


def test_equal_times_have_an_interval_of_no_width() -> None:
    found = summary_of([2_000_000] * 100)
    assert found.p50_interval_ms == pytest.approx((2.0, 2.0))


# --- the histogram ---------------------------------------------------------------------------------------------------


def test_the_histogram_keeps_every_time_to_three_digits() -> None:
    hdrh = pytest.importorskip("hdrh.histogram", reason="the extra bench is not installed")
    times = np.random.default_rng(0).lognormal(15, 1, 5000).astype(np.int64)
    found = hdrh.HdrHistogram.decode(histogram(times))
    assert found.get_total_count() == 5000
    for share in (0.5, 0.9, 0.99):
        assert found.get_value_at_percentile(100 * share) == pytest.approx(np.quantile(times, share), rel=5e-3)
    assert found.get_max_value() == pytest.approx(times.max(), rel=2e-3)


def test_a_time_of_nothing_and_one_of_days_are_counted_at_the_ends() -> None:
    hdrh = pytest.importorskip("hdrh.histogram", reason="the extra bench is not installed")
    assert hdrh.HdrHistogram.decode(histogram(np.array([0, 10**16]))).get_total_count() == 2


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "hdrh.histogram", None)
    with pytest.raises(MissingExtraError, match="hdrh") as caught:
        histogram(np.array([1]))
    assert caught.value.hint == "pip install 'edgetl[bench]'"


def test_no_interval_begins_below_that_of_a_lower_percentile() -> None:
    """Of few processes that differ, that of p99 reached below the median: there it cannot be."""
    number = np.arange(5 * 160)
    level = np.array([1.0, 1.01, 1.0, 0.99, 1.4])[number // 160]
    times = np.rint(1e6 * level * np.random.default_rng(3).lognormal(0.0, 0.04, len(number))).astype(np.int64)
    times[number // 160 == 2] = np.where(number[:160] % 40 == 0, 4_000_000, times[320:480])
    found = summarise(times, number // 160, number % 160 // 10)
    lows = [(found.interval(name) or (0.0, 0.0))[0] for name in ("p50", "p90", "p99")]
    assert 0 < lows[0] <= lows[1] <= lows[2]


@pytest.mark.parametrize("wrong", [-1.0, float("nan")])
def test_a_time_that_cannot_be_is_refused(wrong: float) -> None:
    times, places = np.full(100, 1e6), np.arange(100)
    times[50] = wrong
    with pytest.raises(UsageError, match="less than nothing"):
        summarise(times, places % 2, places // 20)  # type: ignore[arg-type]


@pytest.mark.parametrize("confidence", [0.0, 1.0, -1.0, 95.0, float("nan")])
def test_a_confidence_is_a_share(confidence: float) -> None:
    with pytest.raises(UsageError, match="a confidence is a share between 0 and 1"):
        summary_of([2_000_000, 2_100_000] * 50, confidence=confidence)
