"""The highest rate of the server scenario at which the tail of the latency still keeps its bound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgetl.benchmark.scenarios import Issue, ScenarioResult, run
from edgetl.benchmark.schedules import Plan
from edgetl.benchmark.waiting import Clock
from edgetl.errors import UsageError
from edgetl.numbers import chosen, counted

_PILOT_QUERIES = 32
_FIRST_LOAD = 0.5


@dataclass(frozen=True, kw_only=True)
class PeakRate:
    """What the search found, with every run that it took."""

    rate_per_s: float | None
    """The highest rate that was run and kept the bound; None where none did."""
    broke_at_per_s: float | None
    """The lowest rate above it that was run and did not; None where every rate kept it."""
    runs: tuple[ScenarioResult, ...]
    """In their order."""
    reason: str = ""
    """Why there is no rate, or no closer one; empty where the search ended as it should."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "rate_per_s": self.rate_per_s,
            "broke_at_per_s": self.broke_at_per_s,
            "reason": self.reason,
            "runs": [result.to_json() for result in self.runs],
        }


def peak_rate(
    issue: Issue,
    plan: Plan,
    *,
    first_per_s: float | None = None,
    precision: float = 0.05,
    most_runs: int = 16,
    clock: Clock | None = None,
    begins: Callable[[Plan], None] | None = None,
) -> PeakRate:
    """Run the server scenario at rising rates, then in between, as LoadGen's FindPeakPerformance does.

    The arrivals of every run are the same pattern, only faster.

    Args:
        issue: Answers one query; warm.
        plan: Of the scenario server; its own rate counts only where ``first_per_s`` is None and is where the search
            begins.
        first_per_s: Where the search begins; 0: at half of what the engine does without pause.
        precision: Two rates so close to each other, as a share, are close enough.
        most_runs: Runs after which the search ends, whatever it still lacks.
        clock: To measure with; None: this machine's.
        begins: Is told the plan of every run before it.

    Raises:
        UsageError: The plan is of another scenario, or a number makes no sense.
        TargetError: The engine failed.
    """
    if plan.scenario != "server" or plan.bound_ns is None or plan.rate_per_s is None:
        raise UsageError(f"a rate that keeps a bound is of the scenario server, not of {plan.scenario}")
    first = plan.rate_per_s if first_per_s is None else first_per_s or _FIRST_LOAD * _unpaused(issue, plan, clock)
    runs: list[ScenarioResult] = []

    def keeps(rate: float) -> bool | None:
        wanted = replace(plan, rate_per_s=rate)
        if begins is not None:
            begins(wanted)
        result = run(issue, wanted, clock=clock)
        runs.append(result)
        return None if _too_slow(result) and not result.keeps_bound else bool(result.keeps_bound)

    kept, broke, reason = search(keeps, first=first, precision=precision, most=most_runs)
    if kept is None and _too_slow(runs[-1]):
        reason = f"no rate keeps {chosen(plan.bound_ms)} ms: the calls alone take longer, without any queue"
    return PeakRate(rate_per_s=kept, broke_at_per_s=broke, runs=tuple(runs), reason=reason)


def search(
    keeps: Callable[[float], bool | None], *, first: float, precision: float, most: int
) -> tuple[float | None, float | None, str]:
    """Double or halve a rate until one is kept and one is not, then halve what is between them.

    Args:
        keeps: Whether a rate keeps the bound; None: it does not, and no lower one would.
        first: Where to begin, per second.
        precision: Kept and broken rate closer than that, as a share of the kept one, end the search.
        most: Rates to try at most.

    Returns:
        The highest rate that was kept, the lowest that was not, and why there is no closer one (empty if there is).
    """
    if first <= 0 or not precision > 0 or most < 1:
        raise UsageError(f"a search needs a first rate and a precision above 0 and a run; given: {first}, {precision}")
    kept: float | None = None
    broke: float | None = None
    rate = first
    for _ in range(most):
        answer = keeps(rate)
        if answer:
            kept = rate
        else:
            broke = rate
        if kept is None and answer is None:
            return None, broke, "no rate keeps the bound"
        if kept is not None and broke is not None and broke / kept <= 1 + precision:
            return kept, broke, ""
        rate = rate / 2 if kept is None else rate * 2 if broke is None else (kept * broke) ** 0.5
    return kept, broke, f"the search ended after {counted(most, 'run')}"


def _unpaused(issue: Issue, plan: Plan, clock: Clock | None) -> float:
    pilot = Plan(scenario="single-stream", samples=plan.samples, min_duration_s=0.0, min_queries=_PILOT_QUERIES)
    return 1e9 / max(float(np.median(run(issue, pilot, clock=clock).times.service_ns)), 1.0)


def _too_slow(result: ScenarioResult) -> bool:
    """Whether the calls by themselves are over the bound, at the percentile."""
    bound = result.plan.bound_ns
    times = np.sort(result.times.service_ns)
    return bound is not None and int(times[int(len(times) * result.plan.percentile)]) > bound
