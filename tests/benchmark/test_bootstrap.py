"""Intervals: how often they hold the truth, on series whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgetl.benchmark import bootstrap, summary
from edgetl.benchmark.bootstrap import Grouping, weighted_percentiles
from edgetl.benchmark.summary import independent_calls, run_intervals, summarise

CASES, DRAWS, PER_BLOCK, BLOCKS = 1000, 100, 10, 8


def simulated(
    generator: np.random.Generator, processes: int, blocks: int, *, memory: float, between: float, spread: float = 0.05
) -> NDArray[np.float64]:
    """Logarithms of times, (CASES, processes, blocks · PER_BLOCK): noise with a memory, and processes that differ."""
    count = blocks * PER_BLOCK
    steps = generator.normal(0, spread * np.sqrt(1 - memory**2), (CASES, processes, count))
    found = np.empty_like(steps)
    found[..., 0] = generator.normal(0, spread, (CASES, processes))
    for index in range(1, count):
        found[..., index] = memory * found[..., index - 1] + steps[..., index]
    return found + generator.normal(0, between, (CASES, processes, 1))


def grouping_of(processes: int, blocks: int) -> Grouping:
    process = np.repeat(np.arange(processes), blocks * PER_BLOCK)
    block = np.tile(np.repeat(np.arange(blocks), PER_BLOCK), processes)
    return Grouping.of(process, block)


def covered(logs: NDArray[np.float64], blocks: int, share: float, truth: float) -> float:
    """Share of the cases whose 95% interval holds the truth."""
    grouping, hits = grouping_of(logs.shape[1], blocks), 0
    for case in logs:
        times = np.rint(np.exp(case.reshape(-1)) * 1e7).astype(np.int64)
        ordered = np.sort(times)
        middle = ordered[int(np.ceil(share * len(ordered))) - 1]
        factor = bootstrap.relative_interval(
            lambda weights, times=times: weighted_percentiles(times, grouping.cells, weights, [share]),
            grouping, confidence=0.95, draws=DRAWS,
        )[0]  # fmt: skip
        hits += middle / factor <= 1e7 * np.exp(truth) <= middle * factor
    return hits / len(logs)


@pytest.mark.parametrize(
    ("memory", "between"), [(0.0, 0.0), (0.7, 0.0), (0.9, 0.01), (0.7, 0.03)], ids=["iid", "memory", "both", "between"]
)
def test_the_interval_of_a_median_holds_the_truth_in_95_of_100_cases(memory: float, between: float) -> None:
    logs = simulated(np.random.default_rng(11), 5, BLOCKS, memory=memory, between=between)
    assert 0.93 <= covered(logs, BLOCKS, 0.5, 0.0) <= 0.97


def test_the_interval_of_a_90th_percentile_does_too() -> None:
    logs = simulated(np.random.default_rng(12), 5, BLOCKS, memory=0.7, between=0.02)
    truth = 1.2815515655446004 * np.hypot(0.05, 0.02)
    assert 0.93 <= covered(logs, BLOCKS, 0.9, float(truth)) <= 0.97


@pytest.mark.parametrize(("memory", "between"), [(0.0, 0.0), (0.7, 0.0), (0.7, 0.02)], ids=["iid", "memory", "both"])
def test_the_interval_of_a_99th_percentile_does_with_as_many_calls_as_a_bench_makes(
    memory: float, between: float
) -> None:
    """benchmarks/coverage.py --table latency has more of it, and where it ends."""
    blocks = 14
    logs = simulated(np.random.default_rng(15), 5, blocks, memory=memory, between=between)[:500]
    process, block = np.repeat(np.arange(5), blocks * PER_BLOCK), np.tile(np.repeat(np.arange(blocks), PER_BLOCK), 5)
    truth, hits = 10 * np.exp(2.3263478740408408 * np.hypot(0.05, between)), 0
    for case in logs:
        times = np.rint(np.exp(case.reshape(-1)) * 1e7).astype(np.int64)
        low, high = summarise(times, process, block, draws=DRAWS).p99_interval_ms or (np.inf, 0.0)
        hits += low <= truth <= high
    assert 0.92 <= hits / len(logs) <= 0.98  # of 500, at 95%: one point is a standard error


@pytest.mark.parametrize(("memory", "calls"), [(0.0, 1000), (0.7, 1000), (0.9, 5000)])
def test_the_intervals_of_one_run_hold_the_truth(memory: float, calls: int) -> None:
    logs = simulated(np.random.default_rng(18), 1, calls // PER_BLOCK, memory=memory, between=0.0)[:400, 0]
    truths = {"p50": 0.0, "p90": 1.2815515655446004, "p99": 2.3263478740408408}
    hits = dict.fromkeys(truths, 0)
    for case in logs:
        found = run_intervals(np.rint(np.exp(case) * 1e7).astype(np.int64))
        assert set(found) == set(truths), "1,000 calls say nothing about p99.9"
        for name, truth in truths.items():
            low, high = found[name]
            hits[name] += low <= 10 * np.exp(truth * 0.05) <= high
    assert all(0.92 <= count / len(logs) <= 0.985 for count in hits.values()), hits


def test_a_run_whose_calls_are_alike_has_no_interval_of_what_it_hardly_saw() -> None:
    """Of 1,000 calls with a memory of 0.9, worth some 55, half of one is above p99: its interval held in 87 of 100."""
    logs = simulated(np.random.default_rng(19), 1, 100, memory=0.9, between=0.0)[:300, 0]
    held = 0
    for case in logs:
        times = np.rint(np.exp(case) * 1e7).astype(np.int64)
        assert 30 < independent_calls(times) < 100
        found = run_intervals(times)
        assert set(found) == {"p50", "p90"}
        held += found["p90"][0] <= 10 * np.exp(1.2815515655446004 * 0.05) <= found["p90"][1]
        alone = summarise(times, np.zeros(1000, np.int64), np.arange(1000) // PER_BLOCK, draws=10)
        assert alone.p90_interval_ms is not None
        assert (alone.p99_ms is not None, alone.p99_interval_ms) == (True, None)
    assert 0.92 <= held / len(logs) <= 0.985


def test_how_many_independent_calls_there_are() -> None:
    random = np.random.default_rng(21)
    assert independent_calls(random.integers(0, 10**6, 10_000)) == pytest.approx(10_000, rel=0.05)
    assert independent_calls(np.repeat(random.integers(0, 10**6, 1000), 10)) == pytest.approx(530, rel=0.1)
    assert independent_calls(np.full(100, 7)) == 100, "nothing varies"
    assert independent_calls(np.arange(100)) < 4, "a drift"
    assert independent_calls(np.tile([1, 2], 50)) == 100, "what changes to and fro is worth no more than it is"


@pytest.mark.parametrize("count", [5000, 1_000_000])
def test_a_run_of_many_calls_is_resampled_exactly(count: int) -> None:
    generator, shares = np.random.default_rng(20), [0.5, 0.9, 0.99, 0.999]
    for spread in (0.05, 0.0001):  # the second has many calls of the same time
        times = np.rint(1e6 * np.exp(spread * generator.normal(size=count))).astype(np.int64)
        cells = np.arange(count) * 20 // count
        weights = generator.multinomial(20, np.full(20, 1 / 20), size=6)
        found = summary._percentiles_of_blocks(times, np.sort(times), cells, shares)(weights)
        np.testing.assert_array_equal(found, weighted_percentiles(times, cells, weights, shares))


def test_a_run_of_few_calls_has_no_intervals() -> None:
    assert run_intervals(np.arange(1, 12)) == {}
    times = np.random.default_rng(22).permutation(np.arange(1000, 1064))
    assert set(run_intervals(times)) == {"p50", "p90"}


def test_the_interval_of_one_process_holds_the_truth_of_that_process() -> None:
    logs = simulated(np.random.default_rng(13), 1, 20, memory=0.5, between=0.0)
    assert 0.92 <= covered(logs, 20, 0.5, 0.0) <= 0.97


def test_one_block_tells_nothing() -> None:
    grouping = grouping_of(1, 1)
    times = np.arange(1, 11)
    factor = bootstrap.relative_interval(
        lambda weights: weighted_percentiles(times, grouping.cells, weights, [0.5]), grouping, confidence=0.95
    )
    assert np.isnan(factor).all()


@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(0, 3)), min_size=1, max_size=60),
    st.sampled_from([0.1, 0.5, 0.9, 0.99]),
)
def test_weights_count_as_copies(calls: list[tuple[int, int]], share: float) -> None:
    values, cells = (np.array(column) for column in zip(*calls, strict=True))
    weights = np.random.default_rng(len(calls)).integers(0, 3, (5, 4))
    found = weighted_percentiles(values, cells, weights, [share])[:, 0]
    for row, got in zip(weights, found, strict=True):
        copies = np.sort(np.repeat(values, row[cells]))
        if len(copies):
            assert got == copies[max(0, int(np.ceil(share * len(copies) - 1e-9)) - 1)]
        else:
            assert np.isnan(got)


def test_many_calls_are_resampled_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    values, cells = generator.integers(1, 10**6, 300), generator.integers(0, 7, 300)
    weights = generator.integers(0, 4, (40, 7))
    whole = weighted_percentiles(values, cells, weights, [0.5, 0.9])
    monkeypatch.setattr(bootstrap, "_AT_ONCE", 700)
    assert np.array_equal(weighted_percentiles(values, cells, weights, [0.5, 0.9]), whole)


@pytest.mark.parametrize("processes", [2, 5, 6, 9])
def test_processes_are_resampled_as_by_chance(processes: int) -> None:
    grouping = grouping_of(processes, 2)
    weights, chances = bootstrap._across(grouping, 20_000, np.random.default_rng(0))
    shares = np.full(len(weights), 1 / len(weights)) if chances is None else chances
    mine = weights[:, ::2]
    assert (weights[:, 1::2] == mine).all() and (mine.sum(axis=1) == processes).all()
    assert shares.sum() == pytest.approx(1)
    assert shares @ mine == pytest.approx(np.ones(processes), abs=0.03)
    assert shares @ (mine - 1.0) ** 2 == pytest.approx(np.full(processes, 1 - 1 / processes), rel=0.05)


def test_groups_are_counted_over_all_processes() -> None:
    grouping = Grouping.of(np.array([3, 3, 5, 5, 5]), np.array([0, 0, 0, 0, 2]))
    assert grouping.cells.tolist() == [0, 0, 1, 1, 2]
    assert grouping.processes.tolist() == [0, 1, 1]
    assert grouping.blocks.tolist() == [1, 2]
