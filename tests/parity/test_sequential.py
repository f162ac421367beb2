"""The test that may be looked at after every sample: its error rates by simulation, and its laws."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.errors import DataError
from edgetl.parity.bounds import upper_bound
from edgetl.parity.sequential import Sequential

MAX_DROP = 0.01


def simulated(drop: float, discordant: float, n: int, cases: int, seed: int = 0) -> tuple[Counter[str], float]:
    """Outcomes of so many test sets of n samples, and the mean number of samples looked at."""
    random = np.random.default_rng(seed)
    worse, better = (discordant + drop) / 2, (discordant - drop) / 2
    outcomes: Counter[str] = Counter()
    looked_at = 0
    for _ in range(cases):
        chance = random.random(n)
        test = Sequential(MAX_DROP, 0.95)
        outcomes[test.add(np.where(chance < worse, 1, np.where(chance < worse + better, -1, 0)).tolist())] += 1
        looked_at += test.samples
    return outcomes, looked_at / cases


@pytest.mark.slow
@pytest.mark.parametrize("discordant", [0.01, 0.03, 0.1])
def test_at_the_bound_neither_answer_comes_more_often_than_stated(discordant: float) -> None:
    outcomes, _ = simulated(MAX_DROP, discordant, 1000, 1000)
    assert outcomes["passed"] <= 50 and outcomes["failed"] <= 50


@pytest.mark.parametrize("discordant", [0.0, 0.002])
def test_a_clear_pass_takes_less_than_half_of_the_samples(discordant: float) -> None:
    n = 1300
    outcomes, mean = simulated(0.0, discordant, n, 300)
    assert outcomes["passed"] >= 0.95 * 300
    assert mean <= n / 2


@pytest.mark.parametrize(("discordant", "fixed"), [(0.01, 1312), (0.03, 3360), (0.1, 10816)])
def test_an_equal_engine_that_disagrees_passes_before_a_fixed_test_cut_to_measure(
    discordant: float, fixed: int
) -> None:
    """``fixed``: what one needs that passes 95% of such engines (benchmarks/coverage.py --table sequential)."""
    outcomes, mean = simulated(0.0, discordant, 4 * fixed, 120)
    assert outcomes["passed"] >= 0.95 * 120
    assert mean <= (0.75 if discordant < 0.1 else 0.65) * fixed  # 72% while a drop was counted in losses


@pytest.mark.parametrize(
    ("drop", "discordant", "fixed", "most"),
    [(0.03, 0.05, 1288, 0.75), (0.05, 0.06, 350, 0.75), (0.03, 0.03, 564, 0.75)],
)
def test_a_worse_engine_fails_before_a_fixed_test_cut_to_measure(
    drop: float, discordant: float, fixed: int, most: float
) -> None:
    outcomes, mean = simulated(drop, discordant, 4 * fixed, 400)
    assert outcomes["failed"] >= 0.95 * 400
    assert mean <= most * fixed


def test_a_clear_failure_takes_less_than_half_of_the_samples() -> None:
    outcomes, mean = simulated(0.05, 0.06, 1300, 300)
    assert outcomes["failed"] >= 0.95 * 300 and mean <= 1300 / 2


def test_without_any_disagreement_it_takes_little_more_than_the_fixed_test_needs_at_least() -> None:
    test = Sequential(MAX_DROP, 0.95)
    assert test.add([0] * 1000) == "passed"
    assert upper_bound(0, 0, 299, 0.95) <= MAX_DROP and 299 < test.samples < 400


@pytest.mark.parametrize(("worse", "better"), [(0.2, 0.0), (0.3, 0.1), (0.55, 0.35)])
def test_bets_are_fair_while_the_drop_is_the_limit(worse: float, better: float) -> None:
    """Over all that seven samples can be, capital is 1 in the mean: what Ville's inequality asks for."""
    chances = {1: worse, 0: 1 - worse - better, -1: better}
    means = np.zeros(2)
    for differences in itertools.product(chances, repeat=7):
        test = Sequential(worse - better, 0.6)
        test.add(differences)
        means += math.prod(chances[one] for one in differences) * np.array(test.e_values)
    assert means == pytest.approx([1.0, 1.0], rel=1e-9)


@given(st.lists(st.sampled_from([-1, 0, 0, 0, 1, 1]), max_size=300))
def test_who_bets_on_a_large_drop_stakes_no_more_than_the_end_needs(differences: list[int]) -> None:
    test = Sequential(0.05, 0.9)
    test.add(differences)
    assert test.e_values[1] <= 10 * (1 + 1e-6)
    assert (test.e_values[1] >= 10) == (test.outcome == "failed")


@given(st.lists(st.sampled_from([-1, 0, 0, 0, 1]), max_size=300), st.integers(1, 20))
def test_batches_do_not_matter_and_a_decision_stands(differences: list[int], size: int) -> None:
    whole, parts = Sequential(0.05, 0.9), Sequential(0.05, 0.9)
    whole.add(differences)
    for start in range(0, len(differences), size):
        parts.add(differences[start : start + size])
    assert (whole.outcome, whole.samples, whole.e_values) == (parts.outcome, parts.samples, parts.e_values)
    if whole.outcome != "undecided":
        before = whole.samples
        assert whole.add([1] * 50) == parts.outcome and whole.samples == before
    limit = 1 / 0.1
    passing, failing = whole.e_values
    assert (passing >= limit, failing >= limit) == (whole.outcome == "passed", whole.outcome == "failed")


@pytest.mark.parametrize(("max_drop", "confidence"), [(0.0, 0.95), (1.0, 0.95), (0.01, 0.4), (0.01, 1.0)])
def test_settings_that_make_no_test(max_drop: float, confidence: float) -> None:
    with pytest.raises(DataError, match="a sequential test needs"):
        Sequential(max_drop, confidence)


def test_next_to_nothing_as_the_limit_is_undecided() -> None:
    assert Sequential(1e-200, 0.95).add([0, 1, 0, -1] * 10) == "undecided"


def test_a_difference_that_is_none() -> None:
    with pytest.raises(DataError, match="is 1, 0 or -1, not 2"):
        Sequential(0.01, 0.95).add([0, 2])
