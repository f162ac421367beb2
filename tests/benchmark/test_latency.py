"""Latency: percentiles, and the order of the calls. Nothing here depends on how fast this machine is."""

from __future__ import annotations

import gc
import json
import math
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.benchmark import environment, latency
from edgetl.errors import UsageError

TIMES = st.lists(st.floats(1e-3, 1e4), min_size=1, max_size=300)


def nearest_rank(times: list[float], share: float) -> float:
    """By definition: the smallest measured time that at least that share of the calls did not exceed."""
    return min(one for one in times if sum(other <= one for other in times) >= share * len(times) - 1e-9)


@given(TIMES)
def test_percentiles_are_nearest_rank(times: list[float]) -> None:
    found = latency.summarise(times)
    assert found.p50_ms == nearest_rank(times, 0.5)
    assert found.p90_ms == nearest_rank(times, 0.9)
    assert found.p99_ms == nearest_rank(times, 0.99)


@given(TIMES, st.randoms())
def test_laws_of_a_summary(times: list[float], random: object) -> None:
    found = latency.summarise(times)
    shuffled = list(times)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert latency.summarise(shuffled) == found
    assert found.min_ms <= found.p50_ms <= found.p90_ms <= found.p99_ms <= found.max_ms
    assert found.mean_ms == pytest.approx(math.fsum(times) / len(times))
    assert (found.samples, found.p99_backed) == (len(times), len(times) >= 662)
    assert json.loads(json.dumps(found.to_json())) == found.to_json()


def test_a_hundred_times() -> None:
    found = latency.summarise([float(number) for number in range(100, 0, -1)])
    assert (found.p50_ms, found.p90_ms, found.p99_ms, found.max_ms) == (50, 90, 99, 100)


def test_a_p99_needs_662_samples() -> None:
    assert not latency.summarise([1.0] * 661).p99_backed
    assert latency.summarise([1.0] * 662).p99_backed


def test_no_time_is_an_error() -> None:
    with pytest.raises(UsageError, match="no measured time"):
        latency.summarise([])


@given(st.integers(1, 4), st.integers(1, 45), st.integers(0, 5), st.integers(0, 100))
def test_calls_are_interleaved_in_blocks(engines: int, samples: int, warmup: int, seed: int) -> None:
    made: list[int] = []
    calls = {str(index): (lambda index=index: made.append(index)) for index in range(engines)}
    times = latency.measure(calls, samples=samples, warmup=warmup, seed=seed)
    assert list(times) == list(calls)
    assert {len(found) for found in times.values()} == {samples}
    assert all(value >= 0 for found in times.values() for value in found)
    blocks = -(-samples // 10)
    # Every engine: its warm-up, and per block one call that is not counted.
    assert [made.count(index) for index in range(engines)] == [warmup + samples + blocks] * engines
    timed = made[warmup * engines :]
    rounds = [min(10, samples - done) + 1 for done in range(0, samples, 10)]
    for calls_per_block in rounds:
        block, timed = timed[: calls_per_block * engines], timed[calls_per_block * engines :]
        parts = [block[start : start + calls_per_block] for start in range(0, len(block), calls_per_block)]
        assert all(len(set(part)) == 1 for part in parts)
        assert sorted(part[0] for part in parts) == list(range(engines))  # every round visits every engine once
    assert timed == []


def test_the_order_changes_from_round_to_round_and_with_the_seed() -> None:
    def order(seed: int) -> list[str]:
        made: list[str] = []
        calls = {name: (lambda name=name: made.append(name)) for name in "abcd"}
        latency.measure(calls, samples=50, warmup=0, seed=seed)
        return made

    rounds = [tuple(name for name, _ in groupby(order(0)[start : start + 44])) for start in range(0, 220, 44)]
    assert len(set(rounds)) > 1
    assert order(0) == order(0) != order(1)


def test_the_first_call_of_a_block_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that every call moves by its own number, the counted times are those of calls 2 to 11 of a block."""
    clock = {"now": 0, "calls": 0}

    def call() -> None:
        clock["calls"] += 1
        clock["now"] += clock["calls"] * 1_000_000

    monkeypatch.setattr(latency.time, "perf_counter_ns", lambda: clock["now"])
    times = latency.measure({"a": call}, samples=15, warmup=3)
    assert times["a"] == [*map(float, range(5, 15)), *map(float, range(16, 21))]


def test_progress_counts_to_the_end() -> None:
    seen: list[tuple[int, int]] = []
    calls = {"a": lambda: None, "b": lambda: None}
    latency.measure(calls, samples=25, warmup=1, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(20, 50), (40, 50), (50, 50)]


@pytest.mark.parametrize(("calls", "samples"), [({}, 5), ({"a": lambda: None}, 0), ({"a": lambda: None}, -1)])
def test_nothing_to_measure(calls: dict[str, object], samples: int) -> None:
    with pytest.raises(UsageError, match="needs an engine and at least one sample"):
        latency.measure(calls, samples=samples, warmup=0)  # type: ignore[arg-type]


@pytest.mark.parametrize("collecting", [True, False])
def test_garbage_collection_is_as_before_even_after_an_error(collecting: bool) -> None:
    seen = []

    def call() -> None:
        seen.append(gc.isenabled())
        if len(seen) > 3:
            raise RuntimeError("the engine is gone")

    (gc.enable if collecting else gc.disable)()
    try:
        with pytest.raises(RuntimeError, match="the engine is gone"):
            latency.measure({"a": call}, samples=5, warmup=1)
        assert gc.isenabled() is collecting
        assert seen == [collecting, False, False, False]
    finally:
        gc.enable()


# --- the environment -------------------------------------------------------------------------------------------------


def test_the_environment_is_plain_json_and_knows_this_machine() -> None:
    found = environment.environment()
    assert json.loads(json.dumps(found)) == found
    assert found["cores"] >= 1
    assert found["cpu"]
    assert "numpy" in found["versions"]
    assert environment.load_average() >= 0


def test_no_nvidia_smi_means_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert environment.gpu_names() == []
