"""Scenarios: how an engine answers queries that come the way they do where it will work.

- single-stream, multi-stream: the next query begins when the one before has ended (closed loop); latency.
- offline: all samples are there from the beginning, in batches; throughput.
- server: queries arrive at random (Poisson) at a mean rate; the tail of the latency must keep a bound.
- fixed-rate: a camera: a frame per period, and idle gaps between.

The last two are open loops: a latency counts from the moment at which the query was *scheduled*, not from when the
engine got round to it. A stall of one second then is in the latency of every query that waited for it, not in one
alone (G. Tene calls the mistake coordinated omission). Queries wait in one queue for one engine, which answers them one
at a time. Definitions are those of MLPerf LoadGen, so that :mod:`edgetl.benchmark.loadgen` finds the same.
"""

from __future__ import annotations

import gc
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.benchmark.early_stopping import estimate, most_over, percentile_of, queries_needed
from edgetl.benchmark.schedules import OPEN_LOOP, Plan, arrivals, queries
from edgetl.benchmark.summary import Bounds, run_intervals
from edgetl.benchmark.waiting import Clock, MachineClock
from edgetl.errors import EdgetlError, TargetError, UsageError
from edgetl.numbers import apart, chosen, counted, fixed

Issue = Callable[[Sequence[int]], object]
"""Answers one query, given the indices of its samples; the query has been answered when it returns."""

PATIENCE_NS = 1_000_000_000
"""So far behind the schedule, beyond its longest call, an engine must be before its rate is looked at."""
_HOPELESS = 30
"""Times the patience: so far behind, the run ends whatever the reason."""
_ENOUGH_CALLS, _SURE = 5, 3.0
SHOWN = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p999": 0.999}
"""Percentiles that a result tells, where there are queries enough for them, by name."""


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """When every query of a run was due, began and ended: int64 nanoseconds since the run's start, shape (n,)."""

    scheduled_ns: NDArray[np.int64]
    """When it arrived; in a closed loop, when it began."""
    begun_ns: NDArray[np.int64]
    ended_ns: NDArray[np.int64]
    samples: int
    """Of all queries together."""
    slept_ns: int = 0
    """Of the waiting between queries."""
    spun_ns: int = 0
    """Of the waiting between queries, with the processor kept busy."""
    stopped: str = ""
    """Why the run ended before its schedule did; empty where it did not."""

    @cached_property
    def latency_ns(self) -> NDArray[np.int64]:
        """From the scheduled arrival to the end, shape (n,)."""
        return self.ended_ns - self.scheduled_ns

    @property
    def service_ns(self) -> NDArray[np.int64]:
        """Of the call itself, shape (n,)."""
        return self.ended_ns - self.begun_ns

    @property
    def spin_share(self) -> float:
        """Share of the waiting that was spun, 0 to 1; 0 where nothing was waited for."""
        waited = self.slept_ns + self.spun_ns
        return self.spun_ns / waited if waited else 0.0

    @property
    def lateness_ns(self) -> NDArray[np.int64]:
        """How late the driver began the queries that found the engine idle, shape (at most n,): its own error."""
        idle = self.begun_ns[:0] if not len(self.begun_ns) else np.concatenate([[0], self.ended_ns[:-1]])
        return (self.begun_ns - self.scheduled_ns)[self.scheduled_ns > idle]


@dataclass(frozen=True, kw_only=True)
class ScenarioResult:
    """A run of a scenario by edgetl's own driver."""

    plan: Plan
    times: Timeline

    @cached_property
    def ordered_ns(self) -> NDArray[np.int64]:
        """Latencies, sorted, shape (n,)."""
        return np.sort(self.times.latency_ns)

    @property
    def queries(self) -> int:
        """That were answered."""
        return len(self.times.ended_ns)

    @property
    def samples_per_s(self) -> float:
        """Samples by the time from the start to the last end."""
        return self.times.samples * 1e9 / max(int(self.times.ended_ns[-1]), 1)

    def percentile_ns(self, share: float) -> int:
        """A percentile of the latency, LoadGen's way: see :func:`edgetl.benchmark.early_stopping.percentile_of`."""
        return percentile_of(self.ordered_ns, share)

    @cached_property
    def intervals_ms(self) -> dict[str, Bounds]:
        """Percentile's name → its 95% interval in this run; see :func:`edgetl.benchmark.summary.run_intervals`.

        Of offline there is none: a latency there is how long ago the run began.
        """
        return {} if self.plan.scenario == "offline" else run_intervals(self.times.latency_ns)

    @cached_property
    def estimate_ns(self) -> int | None:
        """The plan's percentile, estimated so that it holds at 99%; None offline, or with too few queries."""
        return None if self.plan.scenario == "offline" else estimate(self.ordered_ns, self.plan.percentile)

    @property
    def over_bound(self) -> int | None:
        """Queries whose latency was over the bound; None where there is none."""
        bound = self.plan.bound_ns
        return None if bound is None else self.queries - int(np.searchsorted(self.ordered_ns, bound, side="right"))

    @property
    def keeps_bound(self) -> bool | None:
        """Whether the percentile keeps the bound, measured and at 99% confidence; None where there is none."""
        over, most = self.over_bound, most_over(self.queries, self.plan.percentile)
        if over is None or self.plan.bound_ns is None:
            return None
        measured = self.percentile_ns(self.plan.percentile) <= self.plan.bound_ns
        return not self.times.stopped and measured and most is not None and over <= most

    @property
    def problems(self) -> tuple[str, ...]:
        """Why the run says less than was asked of it, in sentences; empty where nothing is wrong."""
        plan, found = self.plan, [self.times.stopped] if self.times.stopped else []
        what, count = ("samples", self.times.samples) if plan.scenario == "offline" else ("queries", self.queries)
        if count < plan.min_queries:
            found.append(f"there were {count} {what}, and {plan.min_queries} were asked for")
        if not self.times.stopped and self._duration_ns < int(plan.min_duration_s * 1e9):
            took = fixed(self._duration_ns / 1e9, 1, beside=plan.min_duration_s)
            found.append(f"the run took {took} s, and {chosen(plan.min_duration_s)} s were asked for")
        return (*found, *self._tail_problems())

    def _tail_problems(self) -> list[str]:
        """What is wrong with the percentile that the scenario is about."""
        plan, name = self.plan, f"p{self.plan.percentile * 100:.6g}"
        if plan.scenario == "offline" or self.keeps_bound or (plan.bound_ms is None and self.estimate_ns is not None):
            return []
        measured = self.percentile_ns(plan.percentile) / 1e6
        if plan.bound_ms is not None and measured > plan.bound_ms:
            took = fixed(measured, 3, beside=plan.bound_ms)
            return [f"{name} was {took} ms, and the bound is {chosen(plan.bound_ms)} ms"]
        needed = queries_needed(plan.percentile, 1 if self.over_bound is None else self.over_bound)
        if self.queries >= needed:
            return []  # it kept the bound until it was stopped
        over = f", with {self.over_bound} of them over the bound" if self.over_bound else ""
        return [f"{name} needs {needed} queries to speak of{over}, and there were {self.queries}"]

    @property
    def valid(self) -> bool:
        """Whether LoadGen's rules are kept: duration, number of queries, early stopping, the bound."""
        return not self.problems

    @property
    def _duration_ns(self) -> int:
        """What LoadGen compares with the minimum: offline until the last end, else until the last query came."""
        return int((self.times.ended_ns if self.plan.scenario == "offline" else self.times.scheduled_ns)[-1])

    def to_json(self) -> dict[str, Any]:
        """Plain values; percentiles for which there are too few queries are left out."""
        times, lateness = self.times, self.times.lateness_ns
        latency = {"mean": float(times.latency_ns.mean()), "min": self.ordered_ns[0], "max": self.ordered_ns[-1]}
        for name, share in SHOWN.items():
            if self.queries >= queries_needed(share):
                latency[name] = self.percentile_ns(share)
        open_loop = self.plan.scenario in OPEN_LOOP
        return {
            "driver": "edgetl",
            "plan": self.plan.to_json(),
            "queries": self.queries,
            "samples": times.samples,
            "samples_per_s": round(self.samples_per_s, 3),
            "latency_ms": {name: _ms(value) for name, value in latency.items()},
            "intervals_ms": {name: [round(end, 6) for end in ends] for name, ends in self.intervals_ms.items()},
            "service_p50_ms": _ms(_percentile(times.service_ns, 0.5)),
            "estimate_ms": None if self.estimate_ns is None else _ms(self.estimate_ns),
            "over_bound": self.over_bound,
            "keeps_bound": self.keeps_bound,
            "spin_share": round(times.spin_share, 4) if open_loop else None,
            "lateness_p99_us": round(_percentile(lateness, 0.99) / 1e3, 1) if open_loop and len(lateness) else None,
            "valid": self.valid,
            "problems": list(self.problems),
        }


def run(issue: Issue, plan: Plan, *, clock: Clock | None = None) -> ScenarioResult:
    """Run a scenario in this thread, with garbage collection off meanwhile.

    Args:
        issue: Answers one query. It should have been called a few times before: the first calls of an engine are slow.
        plan: The scenario.
        clock: To measure with; None: this machine's.

    Returns:
        What happened, also where the engine could not keep the rate or the time ran out: see
        :attr:`ScenarioResult.problems`.

    Raises:
        TargetError: The engine failed at a query; its own error is the cause. An error of edgetl passes as it is.
    """
    clock = clock or MachineClock()
    with no_collection():
        if plan.scenario in OPEN_LOOP:
            times = open_loop(issue, arrivals(plan), queries(plan), clock=clock, max_duration_s=plan.max_duration_s)
        else:
            times = closed_loop(issue, queries(plan), plan=plan, clock=clock)
    return ScenarioResult(plan=plan, times=times)


def closed_loop(issue: Issue, asked: Iterable[Sequence[int]], *, plan: Plan, clock: Clock) -> Timeline:
    """One query after the other, until the plan's duration and number of queries are both reached.

    Args:
        issue: Answers one query.
        asked: Samples of each query; what ends earlier ends the run.
        plan: For its limits; offline, all queries were due at the start.
        clock: To measure with.

    Raises:
        TargetError: The engine failed.
        UsageError: No query was asked.
    """
    now = clock.now
    offline = plan.scenario == "offline"
    begun, ended = array("q"), array("q")
    count, stopped = 0, ""
    least = -(-plan.min_queries // plan.per_query) if offline else plan.min_queries
    long_ns, longest_ns = int(plan.min_duration_s * 1e9), int(plan.max_duration_s * 1e9)
    start = now()
    with _named(plan.scenario, begun):
        for query in asked:
            before = now()
            issue(query)
            after = now()
            begun.append(before)
            ended.append(after)
            count += 1
            if count >= least and (after if offline else before) - start >= long_ns:
                break
            if after - start >= longest_ns:
                stopped = f"the run ended at its limit of {plan.max_duration_s:g} s"
                break
    return _timeline(start, None, begun, ended, samples=count * plan.per_query, offline=offline, stopped=stopped)


def open_loop(
    issue: Issue,
    due_ns: NDArray[np.int64],
    asked: Iterable[Sequence[int]],
    *,
    clock: Clock,
    max_duration_s: float = 600.0,
    patience_ns: int = PATIENCE_NS,
) -> Timeline:
    """Queries at the times of a schedule; those that find the engine busy wait in a queue.

    The run ends early where the queue grows without bound: the engine is behind by more than ``patience_ns`` beyond its
    longest call (a single stall is no overload), and its calls take longer on average than the gaps between
    arrivals, by three standard errors.

    Args:
        issue: Answers one query.
        due_ns: When each query arrives, since the start, shape (n,), never falling.
        asked: Samples of each query; one each.
        clock: To measure and wait with.
        max_duration_s: The run ends after that.
        patience_ns: See above.

    Raises:
        TargetError: The engine failed.
        UsageError: There is no arrival, or the times fall.
    """
    if not len(due_ns) or (np.diff(due_ns) < 0).any() or due_ns[0] < 0:
        raise UsageError("a schedule needs at least one arrival, and times that never fall")
    now, wait = clock.now, clock.wait_until
    begun, ended = array("q"), array("q")
    slept = spun = longest = 0
    stopped = ""
    limit = int(max_duration_s * 1e9)
    schedule = due_ns.tolist()  # before the start: for a million arrivals it takes a while
    start = now()
    with _named("the open loop", begun):
        for at, query in zip(schedule, asked, strict=False):
            due = start + at
            if now() < due:
                asleep, awake = wait(due)
                slept, spun = slept + asleep, spun + awake
            before = now()
            issue(query)
            after = now()
            begun.append(before)
            ended.append(after)
            if after - before > longest:  # a comparison is cheaper than max()
                longest = after - before
            behind = after - due - longest
            if behind > patience_ns and (stopped := _overload(begun, ended, due_ns, behind, patience_ns)):
                break
            if after - start >= limit and len(ended) < len(due_ns):
                short = counted(len(due_ns) - len(ended), "query", "queries")
                stopped = f"the run ended at its limit of {max_duration_s:g} s, {short} short"
                break
    return _timeline(start, due_ns, begun, ended, samples=len(ended), slept=slept, spun=spun, stopped=stopped)


def _overload(begun: array[int], ended: array[int], due_ns: NDArray[np.int64], behind: int, patience_ns: int) -> str:
    """Why the rate cannot be kept, in a sentence; empty where that is not clear (yet)."""
    count = len(ended)
    if count < _ENOUGH_CALLS or (count > 64 and count % 16 and behind < _HOPELESS * patience_ns):
        return ""  # looking at all calls after every call would take longer than the calls
    service = np.frombuffer(ended, dtype=np.int64) - np.frombuffer(begun, dtype=np.int64)
    mean, error = float(service.mean()), float(service.std(ddof=1)) / count**0.5
    gap = float(due_ns[-1]) / max(len(due_ns) - 1, 1)
    if mean - _SURE * error <= gap and behind < _HOPELESS * patience_ns:
        return ""
    takes, comes = apart(mean / 1e6, gap / 1e6, 2)
    return (
        f"the engine cannot keep {1e9 / gap if gap else float('inf'):,.1f} queries per second: a call takes"
        f" {takes} ms on average, and a query comes every {comes} ms; after {count} of {len(due_ns)}"
        f" queries it was {behind / 1e9:.1f} s behind"
    )


def _timeline(
    start: int,
    due_ns: NDArray[np.int64] | None,
    begun: array[int],
    ended: array[int],
    *,
    samples: int,
    offline: bool = False,
    slept: int = 0,
    spun: int = 0,
    stopped: str = "",
) -> Timeline:
    if not len(ended):
        raise UsageError("a scenario needs at least one query")
    begun_ns, ended_ns = (np.array(times, dtype=np.int64) - start for times in (begun, ended))
    scheduled = np.zeros_like(begun_ns) if offline else begun_ns if due_ns is None else due_ns[: len(begun_ns)]
    return Timeline(
        scheduled_ns=scheduled, begun_ns=begun_ns, ended_ns=ended_ns, samples=samples,
        slept_ns=slept, spun_ns=spun, stopped=stopped,
    )  # fmt: skip


@contextmanager
def _named(scenario: str, begun: array[int]) -> Iterator[None]:
    """An engine's own error says which query it failed at."""
    try:
        yield
    except EdgetlError:
        raise
    except Exception as error:
        raise TargetError(f"the engine failed at query {len(begun) + 1} of {scenario}: {error}") from error


@contextmanager
def no_collection() -> Iterator[None]:
    """A garbage collection in the middle of a call is Python's latency, not the engine's."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _percentile(times_ns: NDArray[np.int64], share: float) -> int:
    return percentile_of(np.sort(times_ns), share)


def _ms(nanoseconds: float) -> float:
    return round(float(nanoseconds) / 1e6, 6)
