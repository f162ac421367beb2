"""Bounds of the drop of top-1: against published values, by exact probabilities, and their laws."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from edgetl.parity.bounds import (
    _score,
    interval,
    least_bound,
    rules_out,
    samples_needed,
    score_bound,
    upper_bound,
    worst_chance,
)

CONFIDENCES = st.sampled_from([0.6, 0.8, 0.9, 0.95, 0.99])


@st.composite
def tables(draw: st.DrawFn, most: int = 3000) -> tuple[int, int, int]:
    """worse, better, n."""
    n = draw(st.integers(1, most))
    worse = draw(st.integers(0, n))
    return worse, draw(st.integers(0, n - worse)), n


# --- Tango's bound ---------------------------------------------------------------------------------------------------

PUBLISHED = [
    # only first, only second, n, two-sided confidence, lower, upper
    # Fagerland, Lydersen, Laake, Statistical Analysis of Contingency Tables (2017), chapter 8, as its R package
    # contingencytables has them: complete response before and after consolidation therapy (Cavo et al. 2012)
    (6, 16, 161, 0.95, -0.1240, -0.0054),
    # the same chapter: airway hyper-responsiveness (Bentur et al. 2009), to the three digits that R's ratesci notes
    (1, 7, 21, 0.95, -0.517, -0.026),
    # R's PropCIs::scoreci.mp(25, 28, 618, 0.90), whose difference is second minus first
    (28, 25, 618, 0.90, -0.0148, 0.0247),
]


@pytest.mark.parametrize(("first", "second", "n", "confidence", "lower", "upper"), PUBLISHED)
def test_published_intervals(first: int, second: int, n: int, confidence: float, lower: float, upper: float) -> None:
    one_sided = 1 - (1 - confidence) / 2
    digits = 3 if upper == -0.026 else 4
    assert round(score_bound(first, second, n, one_sided), digits) == upper
    assert round(-score_bound(second, first, n, one_sided), digits) == lower


@given(tables(), CONFIDENCES)
def test_the_bound_is_a_root_of_the_score_equation(table: tuple[int, int, int], confidence: float) -> None:
    """The likelihood is maximised here on a grid, not with the closed form that the code uses."""
    worse, better, n = table
    bound = score_bound(worse, better, n, confidence)
    assume(0.001 < bound < 0.999)
    # Given the difference d, p21 = q and p12 = q + d, with q up to (1 - d) / 2; concordant pairs share 1 - 2q - d.
    # The log likelihood is concave in q: find where its slope is zero.
    low, high = 0.0, (1 - bound) / 2
    for _ in range(200):
        q = (low + high) / 2
        slope = worse / (q + bound) + (better / q if q > 0 else math.inf if better else 0.0)
        rest = 1 - 2 * q - bound
        slope -= 2 * (n - worse - better) / rest if rest > 0 else (math.inf if n > worse + better else 0.0)
        low, high = (q, high) if slope > 0 else (low, q)
    variance = n * (2 * low + bound - bound * bound)
    score = (worse - better - n * bound) / math.sqrt(variance)
    assert score == pytest.approx(-NormalDist().inv_cdf(confidence), abs=1e-4)


FEW = tables(400)


@settings(max_examples=40)
@given(FEW, CONFIDENCES)
def test_the_bound_is_above_the_estimate_and_at_most_one(table: tuple[int, int, int], confidence: float) -> None:
    worse, better, n = table
    assert (worse - better) / n <= upper_bound(worse, better, n, confidence) <= 1.0


@settings(max_examples=40)
@given(FEW, CONFIDENCES)
def test_the_bound_is_the_score_bound_or_a_little_more(table: tuple[int, int, int], confidence: float) -> None:
    """More where few samples leave it: there all that could be seen is so little that its chances go by large steps."""
    worse, better, n = table
    score, bound = score_bound(worse, better, n, confidence), upper_bound(worse, better, n, confidence)
    assert score <= bound
    if n >= 50:
        assert bound - score <= 2 / n


@settings(max_examples=40)
@given(FEW, CONFIDENCES)
def test_what_the_bound_does_not_reach_is_improbable(table: tuple[int, int, int], confidence: float) -> None:
    worse, better, n = table
    bound = upper_bound(worse, better, n, confidence)
    assert bound == 1.0 or worst_chance(bound, worse, better, n, confidence) <= (1 - confidence) * (1 + 1e-6)


@settings(max_examples=40)
@given(FEW, CONFIDENCES, CONFIDENCES)
def test_more_confidence_means_a_higher_bound(table: tuple[int, int, int], one: float, other: float) -> None:
    low, high = sorted((one, other))
    bound = upper_bound(*table, high)
    assert upper_bound(*table, low) <= bound + 1e-3 * abs(bound) + 1e-9


@settings(max_examples=40)
@given(FEW, CONFIDENCES)
@example((71, 75, 147), 0.6)  # lowered by a loss, when what was as clear was looked up anew for every drop
@example((117, 102, 232), 0.6)
def test_another_loss_raises_the_bound_another_gain_lowers_it(table: tuple[int, int, int], confidence: float) -> None:
    worse, better, n = table
    assume(worse + better < n)
    here = upper_bound(worse, better, n, confidence)
    near = 1e-3 * abs(here) + 1e-9
    assert upper_bound(worse + 1, better, n, confidence) >= here - near
    assert upper_bound(worse, better + 1, n, confidence) <= here + near


@given(tables(14), CONFIDENCES)
def test_a_win_in_the_place_of_a_loss_lowers_the_bound(table: tuple[int, int, int], confidence: float) -> None:
    worse, better, n = table
    assume(worse > 0)
    here = upper_bound(worse, better, n, confidence)
    assert upper_bound(worse - 1, better + 1, n, confidence) <= here + 1e-3 * abs(here) + 1e-9


@settings(max_examples=40)
@given(FEW, CONFIDENCES)
def test_the_interval_turns_round_when_the_two_are_swapped(table: tuple[int, int, int], confidence: float) -> None:
    """The lower bound of (first - second) is minus the upper bound of (second - first): they enclose the estimate."""
    worse, better, n = table
    lower, upper = -upper_bound(better, worse, n, confidence), upper_bound(worse, better, n, confidence)
    assert lower - 1e-12 <= (worse - better) / n <= upper + 1e-12
    low, high = interval(worse, better, n, confidence)
    assert low <= lower and upper <= high and interval(better, worse, n, confidence) == (-high, -low)


@settings(max_examples=40)
@given(st.integers(1, 100_000), CONFIDENCES)
def test_without_discordant_pairs_the_bound_is_known_but_for_a_little(n: int, confidence: float) -> None:
    z = NormalDist().inv_cdf(confidence)
    least = max(z * z / (n + z * z), 1 - (1 - confidence) ** (1 / n))
    assert least * (1 - 1e-6) <= least_bound(n, confidence) <= least + 3 / n


@settings(max_examples=40)
@given(tables(40), st.floats(0.0, 1.0), st.floats(0.0, 1.0), CONFIDENCES)
def test_the_worst_chance_is_none_too_small(
    table: tuple[int, int, int], above: float, part: float, confidence: float
) -> None:
    """By adding up every table that there is, each by its own probability, for whatever share of wins."""
    worse, better, n = table
    score = score_bound(worse, better, n, confidence)
    drop = score + above * (1 - score)
    assume(drop < 0.999)
    shared = 0.49 * part * (1 - abs(drop))
    wins, losses = shared + max(-drop, 0.0), shared + max(drop, 0.0)
    chance = 0.0
    for b, w in itertools.product(range(n + 1), repeat=2):
        if w + b <= n and float(_score(score, w, b, n)) <= float(_score(score, worse, better, n)):
            ways = math.comb(n, w) * math.comb(n - w, b)
            chance += ways * losses**w * wins**b * (1 - losses - wins) ** (n - w - b)
    assert chance <= worst_chance(drop, worse, better, n, confidence) * 1.02 + 1e-4


@settings(max_examples=20)
@given(tables(12), CONFIDENCES)
def test_scores_at_the_score_bound_put_tables_in_the_order_of_their_bounds(
    table: tuple[int, int, int], confidence: float
) -> None:
    worse, better, n = table
    score = score_bound(worse, better, n, confidence)
    assume(score < 0.999)  # at one, nothing is in any order
    seen = float(_score(score, worse, better, n))
    for b, w in itertools.product(range(n + 1), repeat=2):
        other = score_bound(w, b, n, confidence) if w + b <= n else score
        if abs(other - score) > 1e-6:
            assert (other < score) == (float(_score(score, w, b, n)) < seen)


@settings(max_examples=40)
@given(FEW, CONFIDENCES, st.floats(0.0, 0.99), st.floats(0.0, 0.99))
def test_the_worst_chance_falls_as_the_drop_rises(
    table: tuple[int, int, int], confidence: float, one: float, other: float
) -> None:
    """So no drop above the bound is left that the data do not reject."""
    score = score_bound(*table, confidence)
    assume(score < 0.99)
    lower, higher = (score + part * (1 - score) for part in sorted((one, other)))
    assert worst_chance(higher, *table, confidence) <= worst_chance(lower, *table, confidence) * 1.01 + 1e-9


@settings(max_examples=40)
@given(FEW, CONFIDENCES, st.floats(-0.5, 0.5))
def test_what_is_ruled_out_is_above_the_bound(table: tuple[int, int, int], confidence: float, drop: float) -> None:
    bound = upper_bound(*table, confidence)
    assume(abs(bound - drop) > 1e-3 * abs(bound) + 1e-9)  # to which the bound is found
    assert rules_out(drop, *table, confidence) == (bound < drop)


LIMITS = [
    (0.01, 0.95, 268), (0.01, 0.95, 298), (0.01, 0.95, 320), (0.01, 0.95, 500), (0.01, 0.95, 1000),
    (0.01, 0.90, 250), (0.005, 0.95, 1000), (0.02, 0.99, 300), (0.05, 0.95, 100), (0.1, 0.90, 23),
]  # fmt: skip


@pytest.mark.parametrize(("drop", "confidence", "n"), LIMITS)
def test_an_engine_at_the_limit_passes_no_more_often_than_stated_by_exact_probabilities(
    drop: float, confidence: float, n: int
) -> None:
    """Whatever it wins. Score bounds let one of a point pass in 6.8% of test sets of 268, and in 12.4% of 23 at 90%."""
    logs = [math.lgamma(k + 1) for k in range(n + 1)]
    passing: list[tuple[int, int]] = []
    losses = 0
    for better in range(min(n, int(n * 0.03) + 30) + 1):
        while losses + better <= n and rules_out(drop, losses, better, n, confidence):
            losses += 1  # with more wins no fewer of them pass
        passing += [(worse, better) for worse in range(min(losses, n - better + 1))]
    for wins in (0.0, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03):
        passed = 0.0
        for worse, better in passing:
            same = n - worse - better
            ways = logs[n] - logs[worse] - logs[better] - logs[same]
            chance = worse * math.log(drop + wins) + same * math.log1p(-drop - 2 * wins)
            if wins or not better:
                passed += math.exp(ways + chance + (better * math.log(wins) if better else 0.0))
        assert passed <= (1 - confidence) * 1.002, wins


@pytest.mark.parametrize(("worse", "better", "n"), [(1, 0, 1), (0, 1, 1), (50, 0, 50), (0, 50, 50), (25, 25, 50)])
def test_the_ends_of_the_range(worse: int, better: int, n: int) -> None:
    bound = upper_bound(worse, better, n, 0.95)
    assert math.isfinite(bound)
    assert (worse - better) / n <= bound <= 1.0


@pytest.mark.parametrize(("p_worse", "p_better", "n"), [(0.02, 0.01, 500), (0.01, 0.01, 1000), (0.05, 0.03, 300)])
def test_coverage_by_simulation(p_worse: float, p_better: float, n: int) -> None:
    """The true difference lies below a 95% bound in about 95 of 100 test sets: the binomial's spread here is 0.5%."""
    rng = np.random.default_rng(11)
    draws = rng.multinomial(n, [p_worse, p_better, 1 - p_worse - p_better], size=2000)
    seen = Counter((worse, better) for worse, better, _ in draws.tolist())
    held = (count for table, count in seen.items() if not rules_out(p_worse - p_better, *table, n, 0.95))
    covered = sum(held) / 2000
    assert 0.935 <= covered <= 0.975


def test_an_engine_at_the_limit_rarely_passes() -> None:
    """The gate's promise: an engine that really drops by max_drop passes in at most about 5 of 100 builds."""
    rng = np.random.default_rng(3)
    draws = rng.multinomial(1000, [0.02, 0.01, 0.97], size=2000).tolist()
    seen = Counter((worse, better) for worse, better, _ in draws)
    passed = sum(count for table, count in seen.items() if rules_out(0.01, *table, 1000, 0.95)) / 2000
    assert passed <= 0.065


@settings(max_examples=40)
@given(st.floats(1e-3, 0.5), CONFIDENCES)
def test_samples_needed_is_the_smallest_number_that_can_pass(max_drop: float, confidence: float) -> None:
    needed = samples_needed(max_drop, confidence)
    assert upper_bound(0, 0, needed, confidence) <= max_drop * (1 + 1e-9)
    assert needed <= 1 or upper_bound(0, 0, needed - 1, confidence) > max_drop * (1 - 1e-9)


def test_samples_needed_for_one_point() -> None:
    assert samples_needed(1.0, 0.95) == 0, "nothing drops further"
    assert samples_needed(0.01, 0.95) == 299  # log 0.05 / log 0.99 = 298.1
    assert samples_needed(0.01, 0.975) == 381  # 1.96² · 0.99 / 0.01 = 380.3, and log 0.025 / log 0.99 = 367.0


@pytest.mark.timeout(20)
@pytest.mark.parametrize("max_drop", [1e-7, 1e-12, 1e-300])
def test_samples_needed_for_next_to_nothing_are_told_at_once(max_drop: float) -> None:
    """A build asks before it trains: 30 million samples took a minute, and more of them all memory."""
    assert samples_needed(max_drop, 0.95) * max_drop == pytest.approx(-math.log(0.05), rel=1e-4)
