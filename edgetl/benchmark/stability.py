"""Whether a measurement holds still: reasons why its figures should not be believed.

Three kinds of witness are heard. The times themselves (a step, a drift, a stall, bursts, time lost in interruptions);
what the operating system says of the timed process (processor time, time spent waiting for a processor, involuntary
context switches); and the sensors of the machine (throttling, clocks, load of others, a hypervisor). A witness that is
not there is named in :attr:`Stability.unknown`: its silence is no proof.

A step or a drift must be both certain (a test that takes autocorrelation into account) and large enough to matter
(``Limits.relevant``); what the share of clean measurements is that are called unstable, and of troubled ones that are
not, is simulated in tests/benchmark/test_stability.py and tried for real by benchmarks/injected_trouble.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from edgetl.benchmark import timeline, witnesses
from edgetl.benchmark.conditions import Conditions
from edgetl.benchmark.reasons import Limits, Reason
from edgetl.benchmark.trends import Floats
from edgetl.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Stability:
    """The verdict on a measurement."""

    stable: bool
    reasons: tuple[Reason, ...]
    unknown: tuple[str, ...]
    """Witnesses that could not be heard."""

    @property
    def against(self) -> tuple[Reason, ...]:
        """The reasons that speak against it: all but that there were too few calls to tell."""
        return tuple(reason for reason in self.reasons if reason.kind != "few-samples")

    @property
    def outcome(self) -> Literal["stable", "unstable", "unknown"]:
        """unknown: too few calls to tell, and nothing else speaks against it."""
        if self.stable:
            return "stable"
        return "unstable" if self.against else "unknown"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"outcome": self.outcome, **asdict(self)}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Stability:
        """From :meth:`to_json`."""
        reasons = tuple(Reason(**reason) for reason in found["reasons"])
        return cls(stable=found["stable"], reasons=reasons, unknown=tuple(found["unknown"]))


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockUse:
    """What the operating system says of each block of calls; NaN where it does not tell.

    Each has the shape (blocks,), in any order; leave out what is never known.
    """

    wall_ns: ArrayLike
    """How long the block took."""
    cpu_ns: ArrayLike | None = None
    """Processor time of the process, all its threads (``CLOCK_PROCESS_CPUTIME_ID``)."""
    waiting_ns: ArrayLike | None = None
    """Time that its threads were ready to run and had no processor (second field of ``/proc/PID/schedstat``)."""
    involuntary: ArrayLike | None = None
    """Involuntary context switches (``ru_nivcsw``)."""

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, float | None]]) -> BlockUse:
        """From one table per block, as :meth:`edgetl.benchmark.usage.Usage.told` gives it; None is unknown."""

        def column(name: str) -> Floats:
            found = [row.get(name) for row in rows]
            return np.array([np.nan if one is None else one for one in found], np.float64)

        names = ("wall_ns", "cpu_ns", "waiting_ns", "involuntary")
        return cls(**{name: column(name) for name in names})


def judge(
    times_ns: ArrayLike,
    starts_ns: ArrayLike,
    processes: ArrayLike,
    blocks: ArrayLike,
    *,
    use: BlockUse | None = None,
    conditions: Conditions | None = None,
    during: tuple[int, int] | None = None,
    limits: Limits | None = None,
) -> Stability:
    """Look for reasons to distrust the measurement of one thing.

    Args:
        times_ns: Shape (n,), duration of each call, ns.
        starts_ns: Shape (n,), its start on the monotonic clock, ns; any order.
        processes: Shape (n,), number of the process that made it.
        blocks: Shape (n,), number of its block, counted within the process or over all.
        use: What the operating system says of the blocks.
        conditions: What the sensors said meanwhile.
        during: Beginning and end of what the sensors are asked about, as ``starts_ns``: of everything that was timed in
            turn with this, so that all have the same to say of the machine. None: from the first call to the last.
        limits: From where on something is a reason.

    Returns:
        Stable exactly where there is no reason.

    Raises:
        UsageError: The arrays are empty, not of one length, or hold times that are not positive.
    """
    limits = limits or Limits()
    calls = timeline.ordered(times_ns, starts_ns, processes, blocks)
    reasons: list[Reason] = []
    if (few := timeline.few_samples(calls, limits)) is not None:
        reasons.append(few)
    else:
        reasons += timeline.movements(calls, limits)
    reasons += timeline.stalls(calls, limits)
    reasons += timeline.interruptions(calls, limits)
    unknown: list[str] = []
    reasons += _scheduling(use, limits, unknown, conditions)
    lasted = int(calls.starts[0]), int(calls.starts[-1] + calls.times[-1])
    reasons += _sensors(conditions, during or lasted, limits, unknown)
    return Stability(stable=not reasons, reasons=tuple(reasons), unknown=tuple(unknown))


def judge_machine(
    conditions: Conditions, *, began_ns: int, ended_ns: int, use: BlockUse | None = None, limits: Limits | None = None
) -> Stability:
    """Look for reasons to distrust a measurement in what was going on around it alone; its times are not looked at.

    For queries that come as they come: that their latencies move is what the scenario is about. So is that an engine's
    own threads wait for each other, as they do where the kernel wakes several on one processor after a pause.

    Args:
        conditions: What the sensors said meanwhile.
        began_ns: Start of the first call on the monotonic clock.
        ended_ns: End of the last one.
        use: What the operating system says of the process, for the whole of it or in parts.
        limits: From where on something is a reason.

    Returns:
        Stable exactly where there is no reason.
    """
    limits, unknown = limits or Limits(), list[str]()
    reasons = [
        *(() if _waited_for_itself(use, conditions) else _scheduling(use, limits, unknown, conditions)),
        *_sensors(conditions, (began_ns, ended_ns), limits, unknown),
    ]
    return Stability(stable=not reasons, reasons=tuple(reasons), unknown=tuple(unknown))


# --- the operating system's word -------------------------------------------------------------------------------------


def _column(column: ArrayLike | None, shape: tuple[int, ...], name: str) -> Floats:
    if column is None:
        return np.full(shape, np.nan)
    found = np.asarray(column, np.float64)
    if found.shape != shape:
        raise UsageError(f"{name} has shape {found.shape}, and the blocks have {shape}")
    return found


def _waited_for_itself(use: BlockUse | None, conditions: Conditions | None) -> bool:
    """Whether others used less than half of the time for which the process waited: they cannot have had it all."""
    others_s = conditions.others_s() if conditions is not None else None
    if use is None or use.waiting_ns is None or others_s is None:
        return False
    return others_s < 0.5 * float(np.nansum(np.asarray(use.waiting_ns, np.float64))) / 1e9


def _scheduling(
    use: BlockUse | None, limits: Limits, unknown: list[str], conditions: Conditions | None
) -> list[Reason]:
    if use is None:
        unknown.append("processor time and waiting of the timed process (not given)")
        return []
    wall = np.asarray(use.wall_ns, np.float64)
    cpu = _column(use.cpu_ns, wall.shape, "cpu_ns")
    waiting = _column(use.waiting_ns, wall.shape, "waiting_ns")
    switches = _column(use.involuntary, wall.shape, "involuntary")
    if (there := np.isfinite(wall) & np.isfinite(waiting)).any():
        found = _waited(wall[there], cpu[there], waiting[there], limits)
        return [_of_its_own(one) for one in found] if _waited_for_itself(use, conditions) else found
    unknown.append("time that the timed process waited for a processor (schedstat)")
    there = np.isfinite(wall) & np.isfinite(cpu) & np.isfinite(switches)
    if not there.any():
        unknown.append("processor time and context switches of the timed process")
        return []
    return _switched(float(wall[there].sum()), float(cpu[there].sum()), float(switches[there].sum()), limits)


def _waited(wall: Floats, cpu: Floats, waiting: Floats, limits: Limits) -> list[Reason]:
    total, busy = float(waiting.sum()), float(np.nansum(cpu))
    runnable = busy + total if busy > 0 else float(wall.sum())
    share = total / runnable if runnable > 0 else 0.0
    # An engine on a GPU hardly uses the processor: what it waits for one must also matter for the whole.
    if share < limits.waiting or total < 0.4 * limits.waiting * float(wall.sum()):
        return []
    return [Reason(
        kind="neighbour",
        text=f"the timed process waited for a processor during {share:.1%} of the time in which it wanted to run",
        figures={"waiting": share, "waiting_ms": total / 1e6},
        advice="another process competes for the same processors: stop it, use fewer threads, or pin the measurement",
    )]  # fmt: skip


def _of_its_own(waited: Reason) -> Reason:
    """The same of a process whose threads waited for each other."""
    return replace(
        waited,
        text=f"{waited.text}, and hardly anybody else used one: its own threads waited for each other",
        advice="use fewer threads, or give the measurement more processors",
    )


def _switched(wall: float, cpu: float, switches: float, limits: Limits) -> list[Reason]:
    missing, per_second = 1 - cpu / wall, switches / (wall / 1e9)
    # Only a process with one busy thread must have as much processor time as time; and one that sleeps by its own
    # wish (a GPU computes) is not switched away.
    if missing < limits.waiting or per_second < 20:
        return []
    return [Reason(
        kind="neighbour",
        text=f"the timed process had no processor for {missing:.1%} of the time and lost it {per_second:.0f} times/s",
        figures={"missing": missing, "switches_per_s": per_second},
        advice="another process competes for the same processors: stop it, use fewer threads, or pin the measurement",
    )]  # fmt: skip


# --- the sensors' word -----------------------------------------------------------------------------------------------


def _sensors(
    conditions: Conditions | None, measured_ns: tuple[int, int], limits: Limits, unknown: list[str]
) -> list[Reason]:
    if conditions is None:
        unknown.append("sensors (not read)")
        return []
    return [
        *witnesses.load(conditions, limits, unknown),
        *witnesses.throttling(conditions, unknown),
        *witnesses.frequency(conditions, measured_ns, limits, unknown),
    ]
