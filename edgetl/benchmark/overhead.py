"""What timer and driver themselves cost, measured with an engine that does nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from edgetl.benchmark.early_stopping import percentile_of
from edgetl.benchmark.scenarios import Timeline, closed_loop, open_loop
from edgetl.benchmark.schedules import Plan, queries
from edgetl.benchmark.waiting import Clock, MachineClock
from edgetl.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Overhead:
    """Cost per query of a driver, from one run of an empty call."""

    in_latency_ns: int
    """Median latency of the empty call: what every measured latency holds beside the engine's."""
    per_query_ns: int
    """Median time from the beginning of one empty call to that of the next: what a query costs in all."""
    queries: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def overhead(*, count: int = 20_000, clock: Clock | None = None) -> dict[str, Overhead]:
    """Measure both drivers on this machine; takes a few hundredths of a second.

    Args:
        count: Queries of each.
        clock: To measure with; None: this machine's.

    Returns:
        "closed loop" and "open loop" → their cost. The open loop's queries are all due at once, so that none is waited
        for; its latency there is the queue's, so the call's own time is taken.
    """
    if count < 2:
        raise UsageError("the overhead needs at least two queries")
    clock = clock or MachineClock()
    plan = Plan(scenario="single-stream", min_duration_s=0.0, min_queries=count)
    closed = closed_loop(_nothing, queries(plan), plan=plan, clock=clock)
    opened = open_loop(_nothing, np.zeros(count, dtype=np.int64), queries(plan), clock=clock)
    return {"closed loop": _cost(closed), "open loop": _cost(opened)}


def _nothing(_: Sequence[int]) -> None:
    """An engine of no work."""


def _cost(times: Timeline) -> Overhead:
    return Overhead(
        in_latency_ns=percentile_of(np.sort(times.service_ns), 0.5),
        per_query_ns=percentile_of(np.sort(np.diff(times.begun_ns)), 0.5),
        queries=len(times.ended_ns),
    )
