"""Faster or slower: how often the verdict and the interval are right, on series whose ratio is known."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from edgetl.benchmark.comparison import Comparison, Series, compare, slowdown
from edgetl.errors import UsageError

ROUNDS, PASSES, PER_BLOCK = 5, 8, 10
PROCESS = np.repeat(np.arange(ROUNDS), PASSES * PER_BLOCK)
BLOCK = np.tile(np.repeat(np.arange(PASSES), PER_BLOCK), ROUNDS)


def pair(generator: np.random.Generator, ratio: float, *, drift: float = 0.0, between: float = 0.01) -> list[Series]:
    """Two things; what a round and a pass add is the same for both, what a process adds is not."""
    shared = (
        drift * generator.normal(size=ROUNDS)[PROCESS] + 0.02 * generator.normal(size=(ROUNDS, PASSES))[PROCESS, BLOCK]
    )
    found = []
    for name, level in (("a", 5e6 * ratio), ("b", 5e6)):
        own = between * generator.normal(size=ROUNDS)[PROCESS] + 0.02 * generator.normal(size=len(PROCESS))
        times = np.rint(level * np.exp(shared + own)).astype(np.int64)
        found.append(Series(name=name, times_ns=times, process=PROCESS, block=BLOCK))
    return found


def test_the_interval_of_a_ratio_holds_it_in_95_of_100_cases() -> None:
    generator = np.random.default_rng(3)
    found = [compare(*pair(generator, 1.1, drift=0.1), draws=50) for _ in range(1000)]
    covered = np.mean([each.lower <= 1.1 <= each.upper for each in found])
    assert 0.93 <= covered <= 0.97
    # What slows down both of a round is not in the interval: it is ten times narrower than the rounds are apart.
    assert np.median([each.upper / each.lower - 1 for each in found]) < 0.06


def test_equal_things_differ_in_at_most_one_case_of_twenty() -> None:
    generator = np.random.default_rng(4)
    verdicts = [compare(*pair(generator, 1.0), draws=50).verdict for _ in range(400)]
    assert np.mean([verdict != "no difference" for verdict in verdicts]) <= 0.075


def test_verdicts_of_clear_cases() -> None:
    generator = np.random.default_rng(5)
    slow, fast = compare(*pair(generator, 1.3)), compare(*pair(generator, 0.7))
    assert (slow.verdict, fast.verdict) == ("slower", "faster")
    assert "a takes 1." in slow.statement and "95% interval" in slow.statement
    assert "a is 1.4" in fast.statement
    assert json.loads(json.dumps(slow.to_json()))["verdict"] == "slower"
    assert slow.rounds == 5


def test_turned_around_the_ratio_is_the_reciprocal() -> None:
    first, second = pair(np.random.default_rng(6), 1.2)
    one, other = compare(first, second), compare(second, first)
    assert one.ratio == pytest.approx(1 / other.ratio)
    assert one.lower == pytest.approx(1 / other.upper)


def test_a_thing_against_itself_is_exactly_the_same() -> None:
    first, _ = pair(np.random.default_rng(7), 1.0)
    found = compare(first, first)
    assert (found.ratio, found.lower, found.upper, found.verdict) == (1.0, 1.0, 1.0, "no difference")


def test_one_block_shows_no_difference_however_large_it_is() -> None:
    def one(level: int) -> Series:
        return Series(name=str(level), times_ns=np.full(10, level), process=np.zeros(10, int), block=np.zeros(10, int))

    found = compare(one(10**9), one(10**3))
    assert (found.verdict, found.lower) == ("no difference", 0.0)
    assert json.loads(json.dumps(found.to_json()))["upper"] is None


@pytest.mark.parametrize(("passes", "memory"), [(2, 0.0), (4, 0.0), (72, 0.5)])
def test_equal_things_of_one_process_seldom_differ(passes: int, memory: float) -> None:
    """Of few passes, Student's quantile counts; of many that are like their neighbours, longer ones are compared."""
    generator = np.random.default_rng(11)
    block = np.repeat(np.arange(passes), PER_BLOCK)

    def one(name: str) -> Series:
        level = np.zeros(passes)
        for index in range(passes):
            level[index] = memory * level[index - 1] + generator.normal() * np.sqrt(1 - memory**2)
        times = 5e6 * np.exp(0.01 * level[block] + 0.02 * generator.normal(size=len(block)))
        return Series(name=name, times_ns=times.astype(np.int64), process=np.zeros_like(block), block=block)

    verdicts = [compare(one("a"), one("b"), draws=50).verdict for _ in range(300)]
    assert np.mean([verdict != "no difference" for verdict in verdicts]) <= 0.11


def test_passes_that_count_for_one_alone_do_no_harm() -> None:
    """A warm-up of one of them."""
    first, second = pair(np.random.default_rng(8), 1.3)
    keep = first.block >= 5
    later = Series(name="a", times_ns=first.times_ns[keep], process=first.process[keep], block=first.block[keep])
    assert compare(later, second).verdict == "slower"


def test_things_of_different_rounds_are_not_compared() -> None:
    first, second = pair(np.random.default_rng(9), 1.0)
    other = Series(name="c", times_ns=second.times_ns, process=second.process + 1, block=second.block)
    none = Series(name="n", times_ns=np.array([], int), process=np.array([], int), block=np.array([], int))
    zero = Series(name="z", times_ns=first.times_ns * 0, process=first.process, block=first.block)
    for bad, words in ((other, "same rounds"), (none, "same rounds"), (zero, "no time at all")):
        with pytest.raises(UsageError, match=words):
            compare(first, bad)


# --- the gate --------------------------------------------------------------------------------------------------------


def ratio(lower: float, upper: float) -> Comparison:
    return Comparison(
        name="new", against="old", ratio=(lower + upper) / 2, lower=lower, upper=upper, confidence=0.95,
        verdict="no difference", rounds=5,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("lower", "upper", "outcome"),
    [(0.9, 1.0, "passed"), (1.0, 1.03, "passed"), (1.01, 1.04, "undecided"), (1.031, 1.2, "failed"),
     (0.0, float("inf"), "undecided")],
)  # fmt: skip
def test_a_slowdown_is_held_against_the_whole_interval(lower: float, upper: float, outcome: str) -> None:
    found = slowdown(ratio(lower, upper), 0.03)
    assert found.outcome == outcome
    assert found.to_json()["outcome"] == outcome
    assert "3.0%" in found.statement


def test_statements_do_not_contradict_their_figures() -> None:
    """What is asked for stands there as it was, and no digit is left out that a verdict rests on."""
    tight = replace(ratio(1.0302, 1.0398), confidence=0.999)
    said = slowdown(tight, 0.03).statement
    assert said == "new is slower by more than 3.00%: +3.02% to +3.98% with 99.9% confidence beside old"
    assert "by no more than 0.25%: -1.00% to +0.20%" in slowdown(ratio(0.99, 1.002), 0.0025).statement
    assert "may or may not be slower by more than 3.0%: +1.0% to +inf%" in slowdown(ratio(1.01, np.inf), 0.03).statement
    slower = replace(tight, ratio=1.0012, lower=1.0003, upper=1.0021, verdict="slower", confidence=0.995)
    assert slower.statement == (
        "new takes 1.001× as long as old (99.5% interval of the ratio of medians 1.0003 to 1.0021)"
    )
    faster = replace(tight, ratio=0.9988, lower=0.9979, upper=0.9997, verdict="faster", confidence=0.9999)
    assert faster.statement == (
        "new is 1.001× as fast as old (99.99% interval of the ratio of medians 0.9979 to 0.9997)"
    )


@pytest.mark.parametrize("allowed", [-0.01, float("nan")])
def test_a_slowdown_that_cannot_be_allowed(allowed: float) -> None:
    with pytest.raises(UsageError, match="cannot be allowed"):
        slowdown(ratio(1, 1), allowed)


def test_a_true_slowdown_beyond_the_limit_passes_in_at_most_one_case_of_twenty() -> None:
    generator = np.random.default_rng(10)
    outcomes = [slowdown(compare(*pair(generator, 1.04), draws=50), 0.03).outcome for _ in range(200)]
    assert outcomes.count("passed") <= 10
