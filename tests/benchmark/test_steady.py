"""Where the steady state begins: on series whose beginning is known."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgetl.benchmark.steady import steady_state
from edgetl.errors import UsageError

MS = 1e6


def noise(generator: np.random.Generator, count: int, memory: float = 0.0, spread: float = 0.02) -> NDArray[np.float64]:
    """Factors around 1 with a first-order memory, and one call in fifty three times as slow."""
    values, found = 0.0, []
    for step in generator.normal(0, spread * np.sqrt(1 - memory**2), count):
        values = memory * values + step
        found.append(values)
    return np.exp(found) * np.where(generator.random(count) < 0.02, 3.0, 1.0)


def series(level: NDArray[np.float64], generator: np.random.Generator, **noisy: float) -> NDArray[np.int64]:
    return np.asarray(level * MS * noise(generator, len(level), **noisy)).astype(np.int64)


@pytest.mark.parametrize("count", [60, 160, 1000])
@pytest.mark.parametrize("memory", [0.0, 0.5, 0.8])
def test_a_series_without_a_warm_up_is_steady_from_the_start(count: int, memory: float) -> None:
    generator = np.random.default_rng(count)
    found = [steady_state(series(np.ones(count), generator, memory=memory)) for _ in range(100)]
    # Noise that remembers for dozens of calls looks like a change of level, in a short series.
    assert sum(each.outcome == "never" for each in found) <= (3 if memory < 0.8 else 10)
    starts = [each.start for each in found if each.start is not None]
    assert np.mean(np.array(starts) > 0.1 * count) <= (0.06 if memory < 0.8 else 0.15)


@pytest.mark.parametrize("length", [10, 40])
def test_slow_calls_at_the_beginning_are_found(length: int) -> None:
    generator = np.random.default_rng(length)
    level = np.where(np.arange(160) < length, 1.5, 1.0)
    starts = [steady_state(series(level, generator)).start for _ in range(50)]
    assert sum(start is not None and abs(start - length) <= 10 for start in starts) >= 48


def test_a_level_that_falls_slowly_is_cut_where_it_is_within_what_matters() -> None:
    generator = np.random.default_rng(1)
    level = 1 + 0.8 * np.exp(-np.arange(300) / 20)
    starts = [steady_state(series(level, generator)).start for _ in range(50)]
    # 0.8 exp(-n / 20) is 5% at 55 and 1% at 88.
    assert sum(start is not None and 35 <= start <= 120 for start in starts) >= 48


def test_a_fast_start_is_a_warm_up_too() -> None:
    """A processor that slows down when it gets warm: the first calls are not what an hour will bring."""
    generator = np.random.default_rng(2)
    level = np.where(np.arange(200) < 50, 0.8, 1.0)
    starts = [steady_state(series(level, generator)).start for _ in range(50)]
    assert sum(start is not None and abs(start - 50) <= 10 for start in starts) >= 48


def test_a_disturbance_in_the_middle_is_no_warm_up() -> None:
    generator = np.random.default_rng(3)
    level = np.where((np.arange(200) >= 60) & (np.arange(200) < 90), 2.0, 1.0)
    assert sum(steady_state(series(level, generator)).start == 0 for _ in range(50)) >= 47


@pytest.mark.parametrize("to", [1.5, 0.6])
def test_a_trend_is_never_steady(to: float) -> None:
    generator = np.random.default_rng(4)
    found = [steady_state(series(np.linspace(1, to, 200), generator)) for _ in range(50)]
    assert sum(each.outcome == "never" for each in found) >= 48
    assert "still changed" in found[0].reason


def test_a_late_change_is_never_steady() -> None:
    generator = np.random.default_rng(5)
    found = steady_state(series(np.where(np.arange(200) < 150, 1.0, 1.3), generator))
    assert (found.outcome, found.start) == ("never", None)


@given(st.integers(0, 3000), st.integers(0, 10**10))
def test_a_constant_series_is_steady_from_the_start_or_too_short(count: int, value: int) -> None:
    found = steady_state(np.full(count, value))
    assert found.samples == count
    assert (found.outcome, found.start) == (("unknown", None) if count < 20 else ("steady", 0))
    assert (found.reason == "") == (found.outcome == "steady")


@given(st.lists(st.integers(0, 10**12), max_size=200))
def test_laws_for_any_series(times: list[int]) -> None:
    array = np.array(times, dtype=np.int64)
    found = steady_state(array)
    assert (found.start is None) == (found.outcome != "steady") == bool(found.reason)
    if found.start is not None:
        assert 0 <= found.start <= len(times) / 2 + 5
    assert steady_state(array) == found
    assert json.loads(json.dumps(found.to_json())) == found.to_json()


@pytest.mark.parametrize("times", [[[1, 2], [3, 4]], [5, -1]])
def test_what_is_no_series(times: list[object]) -> None:
    with pytest.raises(UsageError, match="one row of numbers"):
        steady_state(np.array(times))


def test_one_call_says_that_it_is_too_few() -> None:
    assert steady_state(np.array([7])).reason == "1 call is too few to tell; 20 are needed"
