"""Statements about pairs: against exact sums, published figures and simulation."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import product
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.errors import DataError
from edgetl.parity.bounds import rules_out, samples_needed, score_bound
from edgetl.parity.paired import detectable_drop, holm, mcnemar, mcnemar_worse, samples_to_decide, worse_by_samples

CASES = 1000


def draws(seed: int, drop: float, discordant: float, n: int, cases: int = CASES) -> np.ndarray:
    """worse and better of simulated test sets, (cases, 2)."""
    both = (discordant + drop) / 2, (discordant - drop) / 2
    return np.random.default_rng(seed).multinomial(n, [*both, 1 - discordant], size=cases)[:, :2]


class TestMcNemar:
    @given(st.integers(0, 60), st.integers(0, 60))
    def test_against_exact_fractions(self, worse: int, better: int) -> None:
        total = worse + better
        exact = Fraction(sum(comb(total, k) for k in range(worse, total + 1)), 2**total)
        assert mcnemar_worse(worse, better) == pytest.approx(float(exact), rel=1e-9)

    @given(st.integers(0, 5000), st.integers(0, 5000))
    def test_laws(self, worse: int, better: int) -> None:
        p = mcnemar(worse, better)
        assert 0.0 <= p <= 1.0 and p == mcnemar(better, worse)
        assert mcnemar_worse(worse + 1, better) <= mcnemar_worse(worse, better) + 1e-9

    def test_a_published_p(self) -> None:
        # Agresti, Categorical Data Analysis (3rd ed. 2013), section 11.1: 86 and 150 discordant pairs, z² = 17.36.
        assert mcnemar(150, 86) == pytest.approx(3.716e-05, rel=2e-2)

    def test_negative_counts(self) -> None:
        with pytest.raises(DataError, match="cannot be negative"):
            mcnemar_worse(-1, 3)


class TestSeveralDecisionsOnASample:
    @given(st.lists(st.integers(-4, 4), max_size=10))
    def test_against_all_signs(self, losses: list[int]) -> None:
        sums = [sum(signs) for signs in product(*((-abs(loss), abs(loss)) for loss in losses))]
        share = sum(each >= sum(losses) for each in sums) / len(sums)
        assert worse_by_samples(np.array(losses, np.int64)) == pytest.approx(share, rel=1e-9)

    @given(st.integers(0, 300), st.integers(0, 300))
    def test_one_decision_each_is_mcnemars_test(self, worse: int, better: int) -> None:
        found = worse_by_samples(np.repeat([1, -1, 0], [worse, better, 7]))
        assert found == pytest.approx(mcnemar_worse(worse, better), rel=1e-9)

    def test_very_many_are_taken_for_normal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        losses = np.repeat([3, -3, 1, -1, 2], [400, 370, 900, 850, 20])
        exact = worse_by_samples(losses)
        monkeypatch.setattr("edgetl.parity.paired._MOST_EXACT", 100)
        assert worse_by_samples(losses) == pytest.approx(exact, rel=0.05)


def ruled_out(drop: float, found: np.ndarray, n: int, confidence: float = 0.95) -> float:
    """Share of test sets, (cases, 2) losses and wins, whose upper bound is below a drop."""
    seen = Counter(map(tuple, found.tolist()))
    return sum(count for (worse, better), count in seen.items() if rules_out(drop, worse, better, n, confidence)) / len(
        found
    )


def outside(drop: float, found: np.ndarray, n: int) -> float:
    """Share of test sets whose 95% interval ends below a drop, without looking for the end."""
    seen = Counter(map(tuple, found.tolist()))
    return sum(
        count
        for (worse, better), count in seen.items()
        if score_bound(worse, better, n, 0.975) < drop and rules_out(drop, worse, better, n, 0.95)
    ) / len(found)


class TestSimulated:
    """1,000 test sets each; the standard error of a coverage of 95% is 0.7 points."""

    @pytest.mark.parametrize(
        ("drop", "discordant"), [(0.0, 0.01), (0.0, 0.05), (0.01, 0.03), (0.02, 0.02), (0.05, 0.2)]
    )
    @pytest.mark.parametrize("n", [1000, 5000])
    def test_coverage_of_the_interval(self, drop: float, discordant: float, n: int) -> None:
        found = draws(n, drop, discordant, n)
        covered = 1 - outside(drop, found, n) - outside(-drop, found[:, ::-1], n)
        assert 0.93 <= covered <= 0.975  # counts are whole: where few are discordant, it is a little too wide

    @pytest.mark.parametrize("discordant", [0.011, 0.02, 0.05, 0.2])
    def test_a_drop_that_is_too_large_rarely_passes(self, discordant: float) -> None:
        assert ruled_out(0.01, draws(1, 0.01, discordant, 2000), 2000) <= 0.05 + 3 * 0.007

    @pytest.mark.parametrize(("discordant", "n"), [(0.0, 300), (0.01, 1000), (0.03, 2500)])
    def test_an_equal_model_passes_with_samples_enough(self, discordant: float, n: int) -> None:
        assert ruled_out(0.01, draws(2, 0.0, discordant, n), n) >= 0.8

    @pytest.mark.parametrize("discordant", [0.01, 0.05])
    def test_the_detectable_drop_is_detected_as_often_as_it_says(self, discordant: float) -> None:
        n = 3000
        drop = detectable_drop(round(discordant * n / 2), round(discordant * n / 2), n, 0.95)
        found = draws(3, drop, max(discordant, drop), n)
        assert ruled_out(0.0, found[:, ::-1], n) == pytest.approx(0.8, abs=0.06)

    @pytest.mark.parametrize(("worse", "better"), [(6, 6), (12, 6), (30, 5)])
    def test_so_many_samples_decide_as_often_as_it_says(self, worse: int, better: int) -> None:
        n = samples_to_decide(worse, better, 1000, 0.01, 0.95)
        assert n is not None
        drop, discordant = (worse - better) / 1000, (worse + better + 1) / 1001
        found = draws(4, drop, discordant, n)
        decided = ruled_out(0.01, found, n) + ruled_out(-0.01, found[:, ::-1], n)
        assert decided == pytest.approx(0.8, abs=0.1)  # normal tails, whole counts

    @pytest.mark.parametrize(
        ("worse", "better", "n", "max_drop"),
        [(0, 0, 100, 0.02), (1, 0, 200, 0.02), (1, 1, 200, 0.02), (2, 2, 100, 0.05)],
    )
    def test_and_where_hardly_a_decision_changed(self, worse: int, better: int, n: int, max_drop: float) -> None:
        """By the variance that is seen alone, they would decide in 52 to 71% of all cases."""
        samples = samples_to_decide(worse, better, n, max_drop, 0.95)
        assert samples is not None
        found = draws(5, (worse - better) / n, (worse + better + 1) / (n + 1), samples)
        passed = ruled_out(max_drop, found, samples)
        assert 0.77 <= passed <= 0.88  # whole counts


class TestPlanning:
    @given(st.integers(0, 50), st.integers(0, 50), st.integers(200, 10_000))
    def test_never_fewer_than_the_least(self, worse: int, better: int, n: int) -> None:
        found = samples_to_decide(worse, better, n, 0.01, 0.95)
        assert found is None or found >= samples_needed(0.01, 0.95)

    @given(st.integers(0, 50), st.integers(0, 50), st.integers(200, 10_000))
    def test_more_samples_tell_smaller_drops(self, worse: int, better: int, n: int) -> None:
        assert detectable_drop(worse, better, 4 * n, 0.95) < detectable_drop(worse, better, n, 0.95) <= 1.0


class TestHolm:
    def test_a_published_example(self) -> None:
        # Holm's steps by hand: 0.005·4, 0.01·3, 0.03·2, 0.04·1, each at least the one before.
        assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])

    @given(st.lists(st.floats(0, 1), max_size=30))
    def test_laws(self, p_values: list[float]) -> None:
        found = holm(p_values)
        assert all(p <= adjusted <= 1.0 for p, adjusted in zip(p_values, found, strict=True))
        assert sorted(range(len(found)), key=lambda i: p_values[i]) == sorted(
            range(len(found)), key=lambda i: (found[i], p_values[i])
        ) or len(set(p_values)) < len(p_values)
