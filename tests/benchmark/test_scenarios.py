"""Scenarios: laws of queues, found with a simulated clock; nothing but the last section looks at this machine's."""

from __future__ import annotations

import gc
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count as counting
from itertools import cycle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.benchmark.issuing import issue_of
from edgetl.benchmark.overhead import overhead
from edgetl.benchmark.scenarios import ScenarioResult, Timeline, closed_loop, open_loop, run
from edgetl.benchmark.schedules import Plan, queries
from edgetl.errors import DataError, TargetError, UsageError

MS, S = 1_000_000, 1_000_000_000


class SimulatedClock:
    """Time passes only where an engine works or somebody waits."""

    def __init__(self) -> None:
        self.time = 12_345

    def now(self) -> int:
        return self.time

    def wait_until(self, due_ns: int) -> tuple[int, int]:
        slept, self.time = max(due_ns - self.time, 0), max(due_ns, self.time)
        return slept, 0

    def engine(self, service_ns: Iterable[int]) -> Callable[[Sequence[int]], None]:
        times = iter(service_ns)

        def issue(_: Sequence[int]) -> None:
            self.time += next(times)

        return issue


def asked() -> Iterator[tuple[int, ...]]:
    return cycle([(0,)])


def simulated(plan: Plan, service_ns: Iterable[int]) -> ScenarioResult:
    clock = SimulatedClock()
    return run(clock.engine(service_ns), plan, clock=clock)


def server(**changes: Any) -> Plan:
    return Plan(**{"scenario": "server", "rate_per_s": 100.0, "bound_ms": 15.0, **changes})


def camera(**changes: Any) -> Plan:
    return Plan(**{"scenario": "fixed-rate", "rate_per_s": 100.0, **changes})


def single(**changes: Any) -> Plan:
    return Plan(**{"scenario": "single-stream", **changes})


# --- open loop -------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 20 * MS), st.integers(0, 20 * MS)), min_size=1, max_size=200))
def test_an_open_loop_is_a_queue_before_one_engine(pairs: list[tuple[int, int]]) -> None:
    """Lindley's recursion: a query begins when it has arrived and the one before has ended."""
    due, service = np.cumsum([gap for gap, _ in pairs]), [time for _, time in pairs]
    clock = SimulatedClock()
    times = open_loop(clock.engine(service), due, asked(), clock=clock, patience_ns=10**15)
    free = 0
    for at, took, begun, ended in zip(due, service, times.begun_ns, times.ended_ns, strict=True):
        assert begun == max(at, free)
        free = begun + took
        assert ended == free
    assert (times.latency_ns == times.ended_ns - due).all()
    assert (times.lateness_ns == 0).all()
    assert times.slept_ns == sum(max(0, int(x)) for x in times.begun_ns - [0, *times.ended_ns[:-1]])
    assert times.stopped == ""


@given(st.integers(0, 1000), st.integers(1, 9 * MS), st.floats(1.0, 3.0))
def test_a_higher_rate_is_never_faster(seed: int, service: int, factor: float) -> None:
    slow, fast = (
        simulated(server(rate_per_s=rate, min_duration_s=0.0, min_queries=100, seed=seed), cycle([service]))
        for rate in (30.0, 30.0 * factor)
    )
    # To a nanosecond per query: arrivals are whole nanoseconds.
    assert (fast.times.latency_ns >= slow.times.latency_ns - 100).all()


def test_a_stall_is_in_the_tail_of_an_open_loop_and_not_of_a_closed_one() -> None:
    """Coordinated omission: 2 ms calls at 100 frames per second, of which one takes a second more."""
    service = [2 * MS] * 500 + [S] + [2 * MS] * 6000
    opened = simulated(camera(), service)
    closed = simulated(single(min_queries=1001, min_duration_s=0.0), service)
    assert opened.queries == closed.queries == 1001
    assert closed.percentile_ns(0.99) == 2 * MS
    assert opened.percentile_ns(0.5) == 2 * MS
    # The frame that stalled waits 1 s, each behind it 8 ms less; p99 of 1,001 is the eleventh largest.
    assert opened.percentile_ns(0.99) == S - 10 * 8 * MS
    assert opened.times.stopped == ""  # it caught up: a stall is no overload
    assert opened.keeps_bound is False
    assert "p99 was 920.000 ms, and the bound is 10 ms" in opened.problems


def test_a_bound_that_is_missed_by_nanoseconds_is_seen_to_be_missed() -> None:
    found = simulated(camera(bound_ms=2.0), [2 * MS + 40] * 7000)
    assert found.keeps_bound is False
    assert "p99 was 2.00004 ms, and the bound is 2 ms" in found.problems


def test_a_driver_that_is_late_is_late_in_the_latency() -> None:
    class LateClock(SimulatedClock):
        def wait_until(self, due_ns: int) -> tuple[int, int]:
            super().wait_until(due_ns + 70_000)
            return 60_000, 10_000

    clock = LateClock()
    result = run(clock.engine(cycle([MS])), camera(min_duration_s=1.0), clock=clock)
    assert set(result.times.lateness_ns.tolist()) == {70_000}
    assert result.percentile_ns(0.5) == MS + 70_000
    assert result.times.spin_share == pytest.approx(1 / 7)
    assert result.to_json()["lateness_p99_us"] == 70.0


@pytest.mark.parametrize("plan", [camera(), server()])
def test_a_rate_that_cannot_be_kept_ends_the_run_and_is_said(plan: Plan) -> None:
    result = simulated(plan, cycle([11 * MS, 13 * MS]))
    assert result.queries < 800
    assert re.search(r"cannot keep (9|10)\d\.\d queries per second", result.times.stopped)
    assert "a call takes 12.00 ms on average" in result.times.stopped
    assert result.keeps_bound is False
    assert not result.valid
    assert result.to_json()["problems"][0] == result.times.stopped


def test_an_engine_much_too_slow_is_found_out_after_a_few_calls() -> None:
    assert simulated(camera(rate_per_s=30.0), cycle([3 * S])).queries <= 6


@given(st.integers(0, 10_000))
def test_a_rate_that_can_be_kept_is_not_taken_for_too_high(seed: int) -> None:
    """At 80% of what the engine can do, with calls that differ and a stall of a second now and then."""
    generator = np.random.default_rng(seed)
    service = generator.exponential(8 * MS, 20_000).astype(np.int64)
    service[generator.integers(0, 1000, 2)] += S
    assert simulated(server(seed=seed), service.tolist()).times.stopped == ""


def test_far_too_far_behind_ends_the_run_even_where_the_mean_is_not_clear() -> None:
    service = [MS] * 10 + [20 * S] * 3 + [MS] * 10_000
    result = simulated(camera(rate_per_s=100.0, min_duration_s=60.0), service)
    assert "behind" in result.times.stopped


def test_the_time_limit_ends_an_open_loop() -> None:
    result = simulated(camera(rate_per_s=1.0, min_duration_s=10.0, max_duration_s=10.0, min_queries=100), cycle([MS]))
    assert result.queries == 11
    assert result.times.stopped == "the run ended at its limit of 10 s, 89 queries short"
    assert "there were 11 queries, and 100 were asked for" in result.problems


def test_the_bound_is_kept_at_confidence_only_with_enough_queries() -> None:
    few = simulated(server(min_duration_s=0.0, min_queries=300, rate_per_s=10.0), cycle([MS]))
    assert few.over_bound == 0
    assert few.keeps_bound is False
    assert few.problems == ("p99 needs 459 queries to speak of, and there were 300",)
    enough = simulated(server(min_duration_s=0.0, min_queries=459, rate_per_s=10.0), cycle([MS]))
    assert enough.keeps_bound is True
    assert enough.valid
    one_over = simulated(camera(min_duration_s=0.0, min_queries=600), [MS] * 20 + [11 * MS] + [MS] * 1000)
    assert one_over.over_bound == 1
    assert one_over.keeps_bound is False
    assert one_over.problems == (
        "p99 needs 662 queries to speak of, with 1 of them over the bound, and there were 600",
    )


def test_no_arrival_and_times_that_fall() -> None:
    clock = SimulatedClock()
    for due in ([], [5, 4], [-1, 4]):
        with pytest.raises(UsageError, match="at least one arrival"):
            open_loop(clock.engine([]), np.array(due, dtype=np.int64), asked(), clock=clock)


# --- closed loop -----------------------------------------------------------------------------------------------------


@given(st.integers(1, 50 * MS), st.integers(1, 500), st.integers(0, 2000))
def test_a_closed_loop_ends_where_loadgen_does(service: int, least: int, duration_ms: int) -> None:
    """After the first query that begins at the minimum duration or later and is not below the minimum number."""
    plan = single(min_queries=least, min_duration_s=duration_ms / 1e3)
    if duration_ms * MS // service > 20_000:
        return
    result = simulated(plan, cycle([service]))
    begins_late_enough = -(-int(plan.min_duration_s * 1e9) // service) + 1
    assert result.queries == max(least, begins_late_enough)
    assert (result.times.latency_ns == service).all()
    assert (result.times.scheduled_ns == result.times.begun_ns).all()
    assert result.percentile_ns(0.5) == service
    assert result.keeps_bound is None
    assert (result.estimate_ns is None) == (result.queries < 64)
    assert result.valid == (result.queries >= 64)


def test_a_multi_stream_query_has_several_samples() -> None:
    result = simulated(
        Plan(scenario="multi-stream", samples=20, per_query=8, min_duration_s=1.0, min_queries=662), cycle([MS])
    )
    assert (result.queries, result.times.samples) == (1001, 8008)
    assert result.samples_per_s == pytest.approx(8000)
    assert result.valid


def test_offline_counts_from_the_start() -> None:
    result = simulated(
        Plan(scenario="offline", samples=100, per_query=16, min_duration_s=0.0, min_queries=1000), cycle([4 * MS])
    )
    assert (result.queries, result.times.samples) == (63, 1008)
    assert result.samples_per_s == pytest.approx(16 / 0.004)
    assert result.times.latency_ns.tolist() == [4 * MS * (at + 1) for at in range(63)]
    assert result.estimate_ns is None
    assert result.valid


def test_the_time_limit_ends_a_closed_loop() -> None:
    result = simulated(single(max_duration_s=12.0), cycle([5 * S]))
    assert result.queries == 3
    assert result.problems == (
        "the run ended at its limit of 12 s",
        "there were 3 queries, and 100 were asked for",
        "p90 needs 64 queries to speak of, and there were 3",
    )


def test_a_run_without_queries() -> None:
    with pytest.raises(UsageError, match="at least one query"):
        closed_loop(SimulatedClock().engine([]), [], plan=single(), clock=SimulatedClock())


# --- engines that fail -----------------------------------------------------------------------------------------------


def failing(error: BaseException, at: int) -> Callable[[Sequence[int]], None]:
    calls = counting(1)

    def issue(_: Sequence[int]) -> None:
        if next(calls) == at:
            raise error

    return issue


@pytest.mark.parametrize("plan", [single(), server(rate_per_s=1e4), Plan(scenario="offline", per_query=4)])
def test_an_engine_that_fails_is_named_with_its_query(plan: Plan) -> None:
    cause = RuntimeError("out of memory")
    with pytest.raises(TargetError, match=r"failed at query 7 of .*: out of memory") as caught:
        run(failing(cause, 7), plan, clock=SimulatedClock())
    assert caught.value.__cause__ is cause
    assert gc.isenabled()


@pytest.mark.parametrize("error", [DataError("not an image"), KeyboardInterrupt(), SystemExit(3)])
@pytest.mark.parametrize("plan", [single(), server(rate_per_s=1e4)])
def test_what_is_no_failure_of_an_engine_passes(plan: Plan, error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        run(failing(error, 3), plan, clock=SimulatedClock())
    assert caught.value is error
    assert gc.isenabled()


# --- results ---------------------------------------------------------------------------------------------------------


def test_a_result_is_plain_json_without_percentiles_that_too_few_queries_back() -> None:
    result = simulated(single(min_queries=100, min_duration_s=0.0), [MS + at for at in range(100)])
    document = json.loads(json.dumps(result.to_json()))
    assert document["latency_ms"].pop("mean") == pytest.approx(1.0000495, abs=1e-6)
    assert document["latency_ms"] == {"min": 1.0, "max": 1.000099, "p50": 1.00005, "p90": 1.00009}
    assert document["estimate_ms"] == 1.000097
    assert document["driver"] == "edgetl"
    assert document["plan"]["scenario"] == "single-stream"
    assert document["problems"] == []
    assert "p99" in simulated(single(min_queries=662, min_duration_s=0.0), cycle([MS])).to_json()["latency_ms"]


def test_times_are_whole_nanoseconds() -> None:
    times = simulated(camera(min_duration_s=0.1), cycle([MS])).times
    for column in (times.scheduled_ns, times.begun_ns, times.ended_ns, times.latency_ns, times.service_ns):
        assert column.dtype == np.int64
    assert isinstance(times, Timeline)


# --- engines ---------------------------------------------------------------------------------------------------------


class Recorder:
    """A runner that says what it was fed."""

    def __init__(self, *shape: int | str) -> None:
        from edgetl.runtime.runner import TensorSpec

        self.inputs = (TensorSpec(name="x", shape=shape, dtype="float32"),)
        self.outputs = (TensorSpec(name="y", shape=shape, dtype="float32"),)
        self.fed: list[list[float]] = []

    def run(self, feeds: Any) -> dict[str, Any]:
        self.fed.append(feeds["x"][:, 0].tolist())
        return {"y": feeds["x"]}


SAMPLES = np.arange(5, dtype=np.float32)[:, None]


def test_queries_become_batches() -> None:
    runner = Recorder("batch", 1)
    issue = issue_of(runner, SAMPLES, largest=3)  # type: ignore[arg-type]
    issue((4,))
    issue((0, 1, 2, 3, 4, 0, 1))
    assert runner.fed == [[4], [0, 1, 2], [3, 4, 0], [1]]


@pytest.mark.parametrize(("shape", "smallest"), [((4, 1), 1), (("batch", 1), 4)])
def test_a_batch_that_is_too_small_is_filled_up(shape: tuple[int | str, ...], smallest: int) -> None:
    runner = Recorder(*shape)
    issue = issue_of(runner, SAMPLES, smallest=smallest, largest=4)  # type: ignore[arg-type]
    issue((2,))
    issue((0, 1, 2, 3, 4))
    assert runner.fed == [[2, 2, 2, 2], [0, 1, 2, 3], [4, 4, 4, 4]]


def test_an_engine_without_samples_or_with_two_inputs() -> None:
    with pytest.raises(UsageError, match="at least one sample"):
        issue_of(Recorder("batch", 1), SAMPLES[:0])  # type: ignore[arg-type]
    runner = Recorder("batch", 1)
    runner.inputs *= 2
    with pytest.raises(UsageError, match="2 inputs"):
        issue_of(runner, SAMPLES)  # type: ignore[arg-type]


# --- this machine ----------------------------------------------------------------------------------------------------


def test_the_drivers_add_two_microseconds_at_most() -> None:
    """The best of many short runs: a busy machine stretches some of them, and cannot make one of them faster."""
    runs = [overhead(count=500) for _ in range(20)]
    assert all(set(run) == {"block", "closed loop", "open loop"} for run in runs)
    for name in runs[0]:
        best = min((run[name] for run in runs), key=lambda cost: cost.per_query_ns)
        assert 0 < best.in_latency_ns <= best.per_query_ns <= 2000, (name, best)
        assert best.to_json()["queries"] == 500
    with pytest.raises(UsageError, match="at least two"):
        overhead(count=1)


STOPPED = """
import sys, time
from edgetl.benchmark.scenarios import run
from edgetl.benchmark.schedules import Plan

def issue(_):
    if not sys.argv[1:]:
        print("begun", flush=True)
        sys.argv.append("told")
    time.sleep(0.001)

result = run(issue, Plan(scenario="fixed-rate", rate_per_s=200.0, min_duration_s=3.0))
print(result.percentile_ns(0.99), sorted(result.times.service_ns.tolist())[-2], result.times.stopped)
"""


def test_a_process_that_is_stopped_for_a_second_has_it_in_its_tail() -> None:
    child = subprocess.Popen([sys.executable, "-c", STOPPED], stdout=subprocess.PIPE, text=True)
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "begun\n"
        time.sleep(0.5)
        child.send_signal(signal.SIGSTOP)
        time.sleep(1.0)
        child.send_signal(signal.SIGCONT)
        p99, second_longest_call, *stopped = child.communicate(timeout=60)[0].split()
    assert int(p99) > 0.5 * S
    assert int(second_longest_call) < int(p99)  # one call, or none, was slow; many queries waited
    assert stopped == []
    assert child.returncode == 0


def test_a_real_clock() -> None:
    done = []
    result = run(
        lambda indices: done.append(tuple(indices)),
        camera(samples=3, rate_per_s=500.0, min_duration_s=0.2, min_queries=100),
    )
    assert len(done) == result.queries == 101
    assert done == [one for one, _ in zip(queries(result.plan), range(101), strict=False)]
    assert (result.times.begun_ns >= result.times.scheduled_ns).all()
    assert (result.times.latency_ns > 0).all()
    assert 0 < result.times.spin_share <= 1
    assert 0.19 < int(result.times.ended_ns[-1]) / 1e9 < 5
