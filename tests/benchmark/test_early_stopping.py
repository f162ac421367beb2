"""Early stopping: the numbers that LoadGen prints, and the definition itself, by exact arithmetic."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.benchmark.early_stopping import estimate, most_over, percentile_of, queries_needed
from edgetl.errors import UsageError


def at_most(over: int, queries: int, share: Fraction) -> Fraction:
    """P(X ≤ over), X binomial (queries, 1 - share), without rounding."""
    return sum(
        (comb(queries, k) * (1 - share) ** k * share ** (queries - k) for k in range(over + 1)), start=Fraction(0)
    )


@pytest.mark.parametrize(
    ("percentile", "over", "queries"),
    [(0.9, 1, 64), (0.99, 1, 662), (0.999, 1, 6636), (0.9, 0, 44), (0.99, 0, 459), (0.5, 1, 11)],
)
def test_the_numbers_of_loadgen(percentile: float, over: int, queries: int) -> None:
    assert queries_needed(percentile, over) == queries
    assert most_over(queries, percentile) == over
    assert most_over(queries - 1, percentile) == (over - 1 if over else None)


@given(st.integers(0, 400), st.sampled_from([Fraction(1, 2), Fraction(9, 10), Fraction(97, 100), Fraction(99, 100)]))
def test_is_the_largest_number_that_the_definition_allows(queries: int, share: Fraction) -> None:
    found = most_over(queries, float(share))
    least = -1 if found is None else found
    assert found is None or at_most(least, queries, share) < Fraction(1, 100)
    assert at_most(least + 1, queries, share) >= Fraction(1, 100)


@given(st.integers(0, 40), st.floats(0.3, 0.995))
def test_queries_needed_is_the_inverse(over: int, percentile: float) -> None:
    needed = queries_needed(percentile, over)
    assert (most_over(needed, percentile) or 0) >= over
    before = most_over(needed - 1, percentile)
    assert before is None or before < over


@given(st.lists(st.integers(0, 10**9), min_size=64, max_size=400), st.randoms())
def test_an_estimate_is_a_latency_at_or_above_the_percentile(values: list[int], random: object) -> None:
    latencies = np.array(values, dtype=np.int64)
    found = estimate(latencies, 0.9)
    assert found is not None
    assert found in values
    assert found >= percentile_of(np.sort(latencies), 0.9)
    over = most_over(len(values), 0.9)
    assert over is not None
    assert found == sorted(values)[len(values) - over]


def test_a_million_queries() -> None:
    over = most_over(1_000_000, 0.99)
    assert over is not None
    # By the normal approximation: mean 10,000 less 2.326 standard deviations of 99.5.
    assert over == pytest.approx(10_000 - 2.326 * 99.5, abs=5)


def test_too_few_queries_give_no_estimate() -> None:
    assert estimate(np.arange(63, dtype=np.int64), 0.9) is None
    assert estimate(np.arange(64, dtype=np.int64), 0.9) == 63
    assert estimate(np.zeros(0, dtype=np.int64), 0.9) is None


def test_a_percentile_is_at_the_place_of_loadgen() -> None:
    ordered = np.arange(1000, dtype=np.int64)
    assert [percentile_of(ordered, share) for share in (0.0, 0.5, 0.9, 0.99, 0.999)] == [0, 500, 900, 990, 999]
    assert percentile_of(ordered[:1], 0.999) == 0


@pytest.mark.parametrize("percentile", [0.0, 1.0, -0.1, 90.0, float("nan")])
def test_a_percentile_is_a_share(percentile: float) -> None:
    with pytest.raises(UsageError, match="between 0 and 1"):
        most_over(100, percentile)
    with pytest.raises(UsageError, match="between 0 and 1"):
        queries_needed(percentile)


def test_bad_numbers() -> None:
    with pytest.raises(UsageError, match="cannot be over"):
        queries_needed(0.9, -1)
    with pytest.raises(UsageError, match="a confidence one from"):
        most_over(100, 0.9, 0.1)
