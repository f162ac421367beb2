"""Steps and drifts: against definitions, and how often each test errs on correlated noise."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgetl.benchmark import trends

VALUES = st.lists(st.integers(1, 20), min_size=4, max_size=40).map(lambda found: np.array(found, np.float64))


@given(VALUES)
def test_ranks_by_definition(values: NDArray[np.float64]) -> None:
    expected = [(values < one).sum() + ((values == one).sum() + 1) / 2 for one in values]
    assert trends.ranks(values).tolist() == expected


@given(VALUES)
def test_the_slope_is_the_median_of_all_pairs(values: NDArray[np.float64]) -> None:
    at = np.cumsum(np.arange(len(values)) % 3 + 1).astype(np.float64)
    pairs = list(itertools.combinations(range(len(values)), 2))
    assert trends.slope(at, values) == pytest.approx(
        np.median([(values[b] - values[a]) / (at[b] - at[a]) for a, b in pairs])
    )


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60))
def test_group_medians_by_definition(labels: list[int]) -> None:
    groups = np.unique(labels, return_inverse=True)[1].astype(np.int64)
    values = np.arange(len(labels), dtype=np.float64)[::-1] ** 2
    found = trends.group_medians(groups, values, int(groups.max()) + 1)
    assert found.tolist() == [np.median(values[groups == group]) for group in range(int(groups.max()) + 1)]


def test_kolmogorovs_distribution() -> None:
    """Its quantiles as tables have them."""
    assert trends.kolmogorov(1.3581) == pytest.approx(0.05, abs=1e-4)
    assert trends.kolmogorov(1.6276) == pytest.approx(0.01, abs=1e-4)
    assert trends.kolmogorov(0.0) == 1.0
    assert trends.kolmogorov(9.0) == pytest.approx(0.0, abs=1e-60)
    assert all(trends.kolmogorov(x) >= trends.kolmogorov(x + 0.01) for x in np.arange(0, 3, 0.01))


@given(st.integers(6, 54), st.integers(0, 1 << 32))
def test_a_step_in_quiet_values_is_found_wherever_it_is(at: int, seed: int) -> None:
    """Also near an end, where ranks lose it among the noise of the longer side."""
    values = 100 + np.random.default_rng(seed).normal(0, 0.01, 60) + np.where(np.arange(60) < at, 0, 10)
    found = trends.step(values)
    assert found.index == at and found.size == pytest.approx(0.1, abs=0.001) and found.p < 0.003


def test_a_clear_step_and_a_clear_line() -> None:
    step = np.r_[np.full(20, 100.0), np.full(30, 110.0)]
    found = trends.step(step)
    assert (found.index, found.p) == (20, 0.0)
    assert found.size == pytest.approx(0.1)
    line = trends.drift(np.arange(50.0), np.linspace(100, 120, 50))
    assert line.size == pytest.approx(20 / 110)
    assert line.p < 1e-10
    assert line.misfit == pytest.approx(0, abs=1e-9)


def test_constant_series_have_neither() -> None:
    same = np.full(30, 5.0)
    assert (trends.step(same).p, trends.step(same).size) == (1.0, 0.0)
    assert trends.drift(np.arange(30.0), same).p == 1.0
    assert trends.autocorrelation(same, trends.STEP_BIAS) == 0.0


def test_a_trend_without_noise_is_certain_although_it_is_no_straight_line() -> None:
    """What a line leaves over of a curve is correlated with itself, and small."""
    at = np.arange(60.0)
    assert trends.drift(at, 100 + 10 * np.sqrt(at / 60)).p < 1e-3
    wave = 100 + 0.2 * np.sin(at / 3)
    assert trends.step(np.where(at < 30, wave, wave + 10)).p < 1e-3
    assert trends.step(wave).p > 0.05
    assert trends.drift(at, wave).p > 0.05


def test_groups_that_differ_have_no_drift() -> None:
    groups = np.repeat(np.arange(4), 10)
    values = 100.0 + groups * 10 + np.tile([0, 1, -1, 0, 1, 0, -1, 1, 0, -1], 4)
    assert trends.drift(np.arange(40.0), values).size == pytest.approx(0.3, abs=0.05)
    assert trends.drift(np.arange(40.0), values, groups).p > 0.1


def test_groups_too_small_say_nothing() -> None:
    found = trends.drift(np.arange(6.0), np.arange(1.0, 7.0), np.array([0, 0, 1, 1, 2, 2]))
    assert (found.p, found.size) == (1.0, 0.0)
    assert math.isinf(found.misfit)


@pytest.mark.parametrize("resemblance", [0.0, 0.5, 0.8])
@pytest.mark.parametrize("length", [20, 80])
def test_significance_on_correlated_noise(resemblance: float, length: int) -> None:
    """At 5% a test errs in about 5%; one that takes such blocks for independent errs in half of all series at 0.8."""
    random = np.random.default_rng(1)
    fresh = random.standard_normal((600, length + 50))
    noise = np.empty_like(fresh)
    noise[:, 0] = fresh[:, 0]
    for index in range(1, noise.shape[1]):
        noise[:, index] = resemblance * noise[:, index - 1] + fresh[:, index]
    values = 100 + noise[:, 50:]
    at = np.arange(float(length))
    steps = np.mean([trends.step(one).p < 0.05 for one in values])
    drifts = np.mean([trends.drift(at, one).p < 0.05 for one in values])
    assert steps <= 0.10
    assert drifts <= 0.10
