"""What timer and driver themselves cost, measured with an engine that does nothing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.benchmark._worker import timed_calls
from edgetl.benchmark.early_stopping import percentile_of
from edgetl.benchmark.issuing import issue_of
from edgetl.benchmark.scenarios import Timeline, closed_loop, open_loop
from edgetl.benchmark.schedules import Plan, queries
from edgetl.benchmark.waiting import Clock, MachineClock
from edgetl.errors import UsageError
from edgetl.runtime.runner import Placement, Tensors, TensorSpec


@dataclass(frozen=True, kw_only=True)
class Overhead:
    """Cost per query of a driver, from one run of an engine that does nothing."""

    in_latency_ns: int
    """Median latency: what every measured one holds beside the engine's."""
    per_query_ns: int
    """Median time from the beginning of one call to that of the next: what a query costs in all."""
    queries: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def overhead(*, count: int = 20_000, clock: Clock | None = None) -> dict[str, Overhead]:
    """Measure the drivers on this machine; takes about a tenth of a second.

    Args:
        count: Queries of each.
        clock: To measure the loops of scenarios with; None: this machine's.

    Returns:
        "block" (what ``edgetl bench`` makes of calls), "closed loop" and "open loop" (of scenarios, with what finds a
        query's sample) → their cost. The open loop's queries are all due at once, so that none is waited for; its
        latency there is the queue's, so the call's own time is taken.
    """
    if count < 2:
        raise UsageError("the overhead needs at least two queries")
    clock = clock or MachineClock()
    plan = Plan(scenario="single-stream", min_duration_s=0.0, min_queries=count)
    engine, sample = _Idle(), np.zeros((1, 1), np.float32)
    issue = issue_of(engine, sample)
    closed = closed_loop(issue, queries(plan), plan=plan, clock=clock)
    opened = open_loop(issue, np.zeros(count, dtype=np.int64), queries(plan), clock=clock)
    starts, times, _ = timed_calls(engine.run, {"x": sample}, count)
    return {
        "block": _cost(np.array(times), np.array(starts)),
        "closed loop": _of_run(closed),
        "open loop": _of_run(opened),
    }


class _Idle:
    """An engine of no work."""

    inputs = outputs = (TensorSpec(name="x", shape=("batch", 1), dtype="float32"),)

    def run(self, feeds: Tensors) -> dict[str, NDArray[np.generic]]:
        return {}

    def placement(self) -> Placement:
        return Placement(provider="none", nodes={})

    def __enter__(self) -> _Idle:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def _of_run(found: Timeline) -> Overhead:
    return _cost(found.service_ns, found.begun_ns)


def _cost(times_ns: NDArray[np.int64], begun_ns: NDArray[np.int64]) -> Overhead:
    return Overhead(
        in_latency_ns=percentile_of(np.sort(times_ns), 0.5),
        per_query_ns=percentile_of(np.sort(np.diff(begun_ns)), 0.5),
        queries=len(times_ns),
    )
