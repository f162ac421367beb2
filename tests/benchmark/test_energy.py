"""Energy: counters that wrap around, integrals of power, and the part of the machine at rest."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.benchmark.sensors import energy
from edgetl.errors import UsageError

SECOND = 1_000_000_000


@given(st.lists(st.floats(0, 99), min_size=1, max_size=50), st.floats(0, 99))
def test_a_counter_that_wraps_around_counts_on(steps: list[float], first: float) -> None:
    """Whatever it counts between two readings, as long as it is less than its range."""
    true = first + np.concatenate([[0.0], np.cumsum(steps)])
    found = energy.unwrapped(true % 100, 100.0)
    assert found == pytest.approx(true - first, abs=1e-6) or np.any(
        np.isclose(true % 100, 0) | np.isclose(true % 100, 100)
    )
    assert np.all(np.diff(found) >= 0)


def test_a_counter_that_was_reset_is_not_guessed() -> None:
    with pytest.raises(ValueError, match="reset"):
        energy.unwrapped(np.array([5.0, 6.0, 1.0]), None)


def test_counted_energy_is_interpolated() -> None:
    times = np.array([0, 10, 20]) * SECOND
    joules = np.array([90.0, 98.0, 6.0])  # 8 J, then 8 J across the end of the range
    assert energy.joules_counted(times, joules, 100.0, 5 * SECOND, 15 * SECOND) == pytest.approx(8.0)
    assert energy.joules_counted(times, joules, 100.0, 0, 20 * SECOND) == pytest.approx(16.0)


def test_integrated_power() -> None:
    times = np.array([0, 1, 2, 3]) * SECOND
    watts = np.array([10.0, 20.0, 20.0, 0.0])
    assert energy.joules_integrated(times, watts, 0, 3 * SECOND) == pytest.approx(15 + 20 + 10)
    assert energy.joules_integrated(times, watts, SECOND // 2, SECOND) == pytest.approx((15 + 20) / 2 / 2)


@pytest.mark.parametrize(
    ("times", "window", "message"),
    [
        ([0], (0, 1), "fewer than two"),
        ([], (0, 1), "fewer than two"),
        ([0, 10], (5, 5), "empty"),
        ([0, 10], (0, 200), "do not cover"),
        ([0, 10], (-200, 5), "do not cover"),
    ],
)
def test_readings_that_do_not_cover_the_time(times: list[int], window: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        energy.joules_integrated(np.array(times, np.int64), np.ones(len(times)), *window)


def test_what_no_reading_covers_is_not_taken_for_nothing() -> None:
    """A counter that was read 2 s late, at 100 W; and one that had stopped to answer before it was asked for."""
    times, joules = np.array([2, 10]) * SECOND, np.array([0.0, 800.0])
    assert energy.joules_counted(times, joules, None, 0, 10 * SECOND) == pytest.approx(1000.0)
    assert energy.joules_counted(times, joules, None, 4 * SECOND, 12 * SECOND) == pytest.approx(800.0)
    for window in ((12, 14), (-4, 0), (7, 17)):
        with pytest.raises(ValueError, match="do not cover"):
            energy.joules_counted(times, joules, None, window[0] * SECOND, window[1] * SECOND)
        with pytest.raises(ValueError, match="do not cover"):
            energy.joules_integrated(times, np.full(2, 100.0), window[0] * SECOND, window[1] * SECOND)


def test_energy_per_inference_and_its_idle_part() -> None:
    found = energy.per_inference(sensor="a", source="b", joules=30.0, seconds=2.0, inferences=100, idle_w=5.0)
    assert (found.per_inference_j, found.above_idle_per_inference_j, found.why) == (0.3, 0.2, "")
    no_idle = energy.per_inference(sensor="a", source="b", joules=30.0, seconds=2.0, inferences=100, idle_w=None)
    assert no_idle.above_idle_per_inference_j is None
    assert "at rest was not measured" in no_idle.why
    nothing = energy.per_inference(
        sensor="a", source="b", joules=None, seconds=2.0, inferences=100, idle_w=None, why="no counter"
    )
    assert (nothing.per_inference_j, nothing.why) == (None, "no counter")
    assert nothing.to_json()["joules"] is None


@pytest.mark.parametrize(("seconds", "inferences"), [(0.0, 1), (float("nan"), 1), (1.0, 0)])
def test_no_inference_or_no_time(seconds: float, inferences: int) -> None:
    with pytest.raises(UsageError, match="at least one inference"):
        energy.per_inference(sensor="a", source="b", joules=1.0, seconds=seconds, inferences=inferences, idle_w=None)
