"""What is shipped for each target: the fastest precision that passes parity, if it is shown to be the fastest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgetl.benchmark.summary import Latency
from edgetl.config import Budget, Parity
from edgetl.numbers import chosen, confidence_percent, counted, decimals_apart, milliseconds, milliseconds_apart
from edgetl.pipeline.proof import Proven, accepted
from edgetl.pipeline.timing import Timings
from edgetl.specs import Precision

_COARSENESS: dict[Precision, int] = {"fp32": 0, "bf16": 1, "fp16": 1, "int8": 2}
"""The coarser of two precisions has to be shown faster than the finer one."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What becomes of an engine."""

    proven: Proven
    latency: Latency | None
    shipped: bool
    reason: str
    """Why it is not shipped, or why nothing is known of it here."""
    missed: tuple[str, ...] = ()
    """The limits of its budget that it misses, in words."""

    @property
    def name(self) -> str:
        """Of the engine."""
        return self.proven.engine.candidate.name


def decide(proven: Sequence[Proven], timings: Timings, parity: Parity) -> list[Decision]:
    """Choose per target among the precisions that pass parity; a budget narrows the choice first.

    The finest precision is shipped unless a coarser one earns its place: the interval of the ratio of their medians
    must lie below 1. Where there is no such interval, because there were too few calls for one, the medians decide.
    What could not run here is shipped unproven, and says so.

    Args:
        proven: Every engine.
        timings: Of those that run here.
        parity: What passes.
    """
    decisions = []
    for target in dict.fromkeys(item.engine.candidate.target.name for item in proven):
        items = [item for item in proven if item.engine.candidate.target.name == target]
        decisions += _of_target(items, timings, parity)
    return decisions


def _of_target(items: list[Proven], timings: Timings, parity: Parity) -> list[Decision]:
    judged = [
        Decision(
            proven=item,
            latency=(speed := timings.latencies.get(item.engine.candidate.name)),
            shipped=item.comparison is None,
            reason=item.engine.record.note if item.comparison is None else "",
            missed=_missed(item.engine.candidate.entry.budget, speed),
        )
        for item in items
    ]
    passing = [each for each in judged if accepted(parity, each.proven.comparison)]
    best = _best(passing, timings)
    return [_decided(each, best, timings, parity) for each in judged]


def _best(passing: Sequence[Decision], timings: Timings) -> Decision | None:
    """The one that is shipped, of those that miss the budget only if all do."""
    affordable = [each for each in passing if not each.missed] or list(passing)
    best: Decision | None = None
    for each in sorted(affordable, key=lambda each: (_COARSENESS[_precision(each)], _p50(each))):
        if best is None or _earns_its_place(each, best, timings):
            best = each
    # A finer one that was not shown to be faster than the finest may be so beside a coarser one.
    for each in sorted(affordable, key=_p50):
        if best is not None and each is not best and _is_faster(each, best, timings):
            return each
    return best


def _is_faster(one: Decision, other: Decision, timings: Timings) -> bool:
    found = _compared(one, other, timings)
    return found is not None and found["verdict"] == "faster"


def _earns_its_place(coarse: Decision, fine: Decision, timings: Timings) -> bool:
    found = _compared(coarse, fine, timings)
    return _p50(coarse) < _p50(fine) if found is None else bool(found["verdict"] == "faster")


def _compared(first: Decision, second: Decision, timings: Timings) -> dict[str, Any] | None:
    """The comparison of their medians; None where there is no interval."""
    for found in timings.details.get("comparisons", {}).get(first.name, ()):
        if found["against"] == second.name and found["upper"] is not None:
            return dict(found)
    return None


def _decided(item: Decision, best: Decision | None, timings: Timings, parity: Parity) -> Decision:
    """With why it is shipped or not."""
    if item.proven.comparison is None:
        return item
    if not accepted(parity, item.proven.comparison):
        return _with(item, f"parity: {item.proven.comparison.statement}")
    if best is None or item is best:
        return _with(item, "", shipped=item is best)
    if item.missed and not best.missed:
        return _with(item, f"misses the budget ({'; '.join(item.missed)})")
    found = _compared(item, best, timings)
    if found is not None and found["verdict"] != "slower":
        ends = decimals_apart((found["lower"], found["upper"]), 1.0, least=2)
        sure = f"{confidence_percent(found['confidence'])}% confidence"
        span = f"ratio {found['lower']:.{ends}f} to {found['upper']:.{ends}f} with {sure}"
        return _with(item, f"not shown to be faster than {_precision(best)}: {span}")
    than = (
        ": {} against {} ms".format(*milliseconds_apart(_p50(best), _p50(item)))
        if best.latency and item.latency
        else ""
    )
    return _with(item, f"{_precision(best)} is faster{than}")


def _with(item: Decision, reason: str, *, shipped: bool = False) -> Decision:
    return Decision(proven=item.proven, latency=item.latency, shipped=shipped, reason=reason, missed=item.missed)


def _missed(budget: Budget, found: Latency | None) -> tuple[str, ...]:
    if found is None:
        return ()
    missed = []
    for field, limit in budget.model_dump(exclude_none=True).items():
        name = field.removesuffix("_ms")
        measured = found.percentile(name)
        if measured is None:
            missed.append(f"{name} is not known from {counted(found.samples, 'call')}, allowed {chosen(limit)} ms")
        elif measured > limit:
            missed.append(f"{name} {milliseconds(measured, beside=limit)} ms, allowed {chosen(limit)} ms")
    return tuple(missed)


def _precision(item: Decision) -> Precision:
    return item.proven.engine.candidate.precision


def _p50(item: Decision) -> float:
    return item.latency.p50_ms if item.latency else float("inf")
