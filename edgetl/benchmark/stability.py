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
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from edgetl.benchmark import trends, witnesses
from edgetl.benchmark.conditions import Conditions
from edgetl.benchmark.reasons import Limits, Reason
from edgetl.benchmark.trends import Floats, Ints, group_medians
from edgetl.errors import UsageError

_MOST_BINS = 150
"""Blocks are merged to at most so many values: a trend looks at all pairs of them."""


@dataclass(frozen=True, kw_only=True)
class Stability:
    """The verdict on a measurement."""

    stable: bool
    reasons: tuple[Reason, ...]
    unknown: tuple[str, ...]
    """Witnesses that could not be heard."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


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
        limits: From where on something is a reason.

    Returns:
        Stable exactly where there is no reason.

    Raises:
        UsageError: The arrays are empty, not of one length, or hold times that are not positive.
    """
    limits = limits or Limits()
    calls = _calls(times_ns, starts_ns, processes, blocks)
    reasons: list[Reason] = []
    if (few := _few_samples(calls, limits)) is not None:
        reasons.append(few)
    else:
        reasons += _trends(calls, limits)
    reasons += _stalls(calls, limits)
    reasons += _interruptions(calls, limits)
    unknown: list[str] = []
    reasons += _scheduling(use, limits, unknown)
    reasons += _sensors(conditions, calls, limits, unknown)
    return Stability(stable=not reasons, reasons=tuple(reasons), unknown=tuple(unknown))


# --- the calls, in order ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class _Calls:
    """Calls in order of their start; processes and blocks renumbered from 0 in order of appearance."""

    times: Floats
    starts: Ints
    process: Ints
    block: Ints
    block_process: Ints = field(repr=False)
    """Shape (blocks,): the process of each block."""

    @property
    def blocks(self) -> int:
        return len(self.block_process)

    @property
    def processes(self) -> int:
        return int(self.process.max()) + 1


def _calls(times_ns: ArrayLike, starts_ns: ArrayLike, processes: ArrayLike, blocks: ArrayLike) -> _Calls:
    columns = [np.asarray(one) for one in (times_ns, starts_ns, processes, blocks)]
    if len({one.shape for one in columns}) != 1 or columns[0].ndim != 1:
        shapes = ", ".join(str(one.shape) for one in columns)
        raise UsageError(f"times, starts, processes and blocks must be of one length, and are {shapes}")
    if not len(columns[0]):
        raise UsageError("there is no measured time")
    times, starts, process, block = (one.astype(np.int64) for one in columns)
    if times.min() <= 0:
        raise UsageError(f"a call cannot take {int(times.min())} ns")
    order = np.argsort(starts, kind="stable")
    times, starts = times[order], starts[order]
    process = _renumbered(process[order])
    both = process * (int(block.max()) - int(block.min()) + 1) + (block[order] - int(block.min()))
    block = _renumbered(both)
    first = np.unique(block, return_index=True)[1]
    return _Calls(times=times.astype(np.float64), starts=starts, process=process, block=block, block_process=process[first])


def _renumbered(labels: Ints) -> Ints:
    """Labels as numbers from 0 in order of first appearance."""
    _, first, where = np.unique(labels, return_index=True, return_inverse=True)
    number = np.empty(len(first), np.int64)
    number[np.argsort(first)] = np.arange(len(first))
    return np.asarray(number[where], np.int64)


def _few_samples(calls: _Calls, limits: Limits) -> Reason | None:
    if calls.blocks >= limits.blocks and len(calls.times) >= limits.times:
        return None
    return Reason(
        kind="few-samples",
        text=f"{len(calls.times)} calls in {calls.blocks} blocks are too few to tell whether the latency holds still",
        figures={"calls": len(calls.times), "blocks": calls.blocks},
        advice=f"measure at least {limits.times} calls in {limits.blocks} blocks",
    )


# --- steps and drifts ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class _Bins:
    """Medians of blocks, or of neighbouring blocks of one process together."""

    values: Floats
    at_s: Floats
    process: Ints


def _bins(calls: _Calls) -> _Bins:
    per_bin = -(-calls.blocks // _MOST_BINS)
    # Position of each block within its process, so that no bin spans two processes.
    order = np.argsort(calls.block_process, kind="stable")
    sizes = np.bincount(calls.block_process)
    position = np.empty(calls.blocks, np.int64)
    position[order] = np.arange(calls.blocks) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    of_block = _renumbered(calls.block_process * calls.blocks + position // per_bin)
    where = of_block[calls.block]
    count = int(of_block.max()) + 1
    first = np.unique(where, return_index=True)[1]
    at_s = (calls.starts[first] - calls.starts[0]) / 1e9
    in_time = np.argsort(at_s, kind="stable")
    # Two blocks cannot start at one moment; a clock that is too coarse may say so.
    at_s = np.maximum.accumulate(at_s[in_time]) + np.arange(count) * 1e-9
    values = group_medians(where, calls.times, count)[in_time]
    return _Bins(values=values, at_s=at_s, process=calls.process[first][in_time])


def _trends(calls: _Calls, limits: Limits) -> list[Reason]:
    bins = _bins(calls)
    step = trends.step(bins.values)
    drift = trends.drift(bins.at_s, bins.values)
    is_step = step.p < limits.alpha and abs(step.size) >= limits.relevant
    is_drift = drift.p < limits.alpha and abs(drift.size) >= limits.relevant
    if is_step and (not is_drift or step.misfit <= drift.misfit):
        return [_step_reason(step, bins)]
    if is_drift:
        seconds = float(bins.at_s[-1])
        return [Reason(
            kind="drift",
            text=f"the latency {_grew(drift.size)} steadily by {abs(drift.size):.1%} over the {seconds:.3g} s of the measurement",
            figures={"size": drift.size, "p": drift.p, "seconds": seconds},
            advice="let the machine reach its working temperature first, lock its clocks, and stop what runs beside it",
        )]  # fmt: skip
    found: list[Reason] = []
    if calls.processes > 1:
        within = trends.drift(bins.at_s, bins.values, bins.process)
        if within.p < limits.alpha and abs(within.size) >= limits.relevant:
            found.append(Reason(
                kind="drift",
                text=f"within each process the latency {_grew(within.size)} by {abs(within.size):.1%}",
                figures={"size": within.size, "p": within.p},
                advice="the steady state begins later than it was taken to: measure longer, and leave out more of the start",
            ))  # fmt: skip
        found += _process_reason(bins, limits)
    return found


def _grew(size: float) -> str:
    return "grew" if size > 0 else "fell"


def _step_reason(step: trends.Step, bins: _Bins) -> Reason:
    between = bins.process[step.index - 1] != bins.process[step.index]
    moment = float(bins.at_s[step.index])
    place = "where another process began" if between else f"within process {int(bins.process[step.index]) + 1}"
    advice = "find out what changed on the machine at that moment, and measure again"
    if between:
        advice = "processes may differ by how their memory lies: measure more of them; or the machine changed meanwhile"
    return Reason(
        kind="step",
        text=f"the latency {_grew(step.size)} at once by {abs(step.size):.1%}, {moment:.3g} s after the start, {place}",
        figures={"size": step.size, "p": step.p, "after_s": moment, "between_processes": float(between)},
        advice=advice,
    )


def _process_reason(bins: _Bins, limits: Limits) -> list[Reason]:
    """Processes whose medians lie far apart, in whatever order: twice the relevant size, and clear of the noise."""
    count = int(bins.process.max()) + 1
    medians = group_medians(bins.process, bins.values, count)
    sizes = np.bincount(bins.process, minlength=count)
    spread = 1.4826 * float(np.median(np.abs(bins.values - medians[bins.process])))
    noise = 1.2533 * spread * float(np.sqrt(trends.inflation(bins.values - medians[bins.process]) / sizes.min()))
    apart = float(medians.max() - medians.min())
    size = apart / float(np.median(medians))
    if size < 2 * limits.relevant or apart < 5 * noise:
        return []
    return [Reason(
        kind="processes",
        text=f"the medians of the {count} processes lie {size:.1%} apart",
        figures={"size": size, "processes": count},
        advice="measure more processes: each start gives this program another speed, and the median is one of them by chance",
    )]  # fmt: skip


# --- stalls, interruptions -------------------------------------------------------------------------------------------


def _stalls(calls: _Calls, limits: Limits) -> list[Reason]:
    median = group_medians(calls.process, calls.times, calls.processes)
    spread = 1.4826 * group_medians(calls.process, np.abs(calls.times - median[calls.process]), calls.processes)
    least = np.maximum(np.maximum(limits.stall_ms * 1e6, 0.5 * median), 20 * spread)[calls.process]
    over = calls.times - median[calls.process]
    found: list[Reason] = []
    if (stalled := over >= least).any():
        longest = float(calls.times[stalled].max()) / 1e6
        found.append(Reason(
            kind="stall",
            text=f"{int(stalled.sum())} of {len(over)} calls took up to {longest:.0f} ms, where the median is {_ms(median)} ms",
            figures={"calls": int(stalled.sum()), "longest_ms": longest, "lost_ms": float(over[stalled].sum()) / 1e6},
            advice="something stopped the process: look for a debugger, a full disk, memory that is swapped, a suspended machine",
        ))  # fmt: skip
    if (gap_ms := _gap_ms(calls, limits)) is not None:
        found.append(Reason(
            kind="stall",
            text=f"between two calls the process did nothing for {gap_ms:.0f} ms",
            figures={"longest_ms": gap_ms},
            advice="something stopped the process between two calls; the times themselves may be right: measure again",
        ))  # fmt: skip
    return found


def _ms(median: Floats) -> str:
    return f"{float(np.median(median)) / 1e6:.3g}"


def _gap_ms(calls: _Calls, limits: Limits) -> float | None:
    """The longest pause between two calls of one process that nothing explains; in a block, or between two blocks."""
    order = np.lexsort((calls.starts, calls.process))
    starts, ends = calls.starts[order], calls.starts[order] + calls.times[order].astype(np.int64)
    gaps = (starts[1:] - ends[:-1]).astype(np.float64)
    one_process = calls.process[order][1:] == calls.process[order][:-1]
    one_block = calls.block[order][1:] == calls.block[order][:-1]
    worst = 0.0
    for inside, least_ns in ((one_process & one_block, limits.stall_ms * 1e6), (one_process & ~one_block, 5e8)):
        if inside.any():
            usual = float(np.median(gaps[inside]))
            longest = float(gaps[inside].max())
            if longest - usual >= max(least_ns, 20 * usual):
                worst = max(worst, longest)
    return worst / 1e6 if worst else None


def _interruptions(calls: _Calls, limits: Limits) -> list[Reason]:
    """Time lost in calls that were held up, and bursts of slow blocks."""
    median = group_medians(calls.process, calls.times, calls.processes)[calls.process]
    over = calls.times - median
    held_up = (over > median) & (over < np.maximum(limits.stall_ms * 1e6, 0.5 * median))
    lost = float(over[held_up].sum() / calls.times.sum())
    found: list[Reason] = []
    if lost >= limits.lost and int(held_up.sum()) >= 3:
        found.append(Reason(
            kind="neighbour",
            text=f"{lost:.1%} of the time was lost in {int(held_up.sum())} calls that took more than twice the median",
            figures={"lost": lost, "calls": int(held_up.sum())},
            advice="other work interrupts the calls: stop it, or pin the measurement to processors of its own",
        ))  # fmt: skip
    if (burst := _bursts(calls, limits)) is not None:
        found.append(burst)
    return found


def _bursts(calls: _Calls, limits: Limits) -> Reason | None:
    """Blocks that are slower or faster than their process by more than their own noise explains."""
    if calls.blocks < limits.blocks:
        return None
    medians = group_medians(calls.block, calls.times, calls.blocks)
    spread = 1.4826 * group_medians(calls.block, np.abs(calls.times - medians[calls.block]), calls.blocks)
    sizes = np.bincount(calls.block, minlength=calls.blocks)
    usual = group_medians(calls.block_process, medians, calls.processes)[calls.block_process]
    typical = float(np.median(spread / medians))
    noise = 1.2533 * typical / np.sqrt(sizes)
    # One call per block has no spread of its own: its noise is that of the blocks.
    if float(np.median(sizes)) < 4:
        noise = np.full(calls.blocks, 1.4826 * float(np.median(np.abs(medians / usual - 1))))
    off = np.abs(medians / usual - 1)
    far = off > np.maximum(1.5 * limits.relevant, 5 * noise)
    if far.sum() < max(3, 0.05 * calls.blocks):
        return None
    return Reason(
        kind="neighbour",
        text=f"{int(far.sum())} of {calls.blocks} blocks are off their process's median by {float(np.median(off[far])):.1%}",
        figures={"blocks": int(far.sum()), "of": calls.blocks, "size": float(np.median(off[far]))},
        advice="something disturbs the machine in bursts: stop other work, lock the clocks, measure again",
    )


# --- the operating system's word -------------------------------------------------------------------------------------


def _column(column: ArrayLike | None, shape: tuple[int, ...], name: str) -> Floats:
    if column is None:
        return np.full(shape, np.nan)
    found = np.asarray(column, np.float64)
    if found.shape != shape:
        raise UsageError(f"{name} has shape {found.shape}, and the blocks have {shape}")
    return found


def _scheduling(use: BlockUse | None, limits: Limits, unknown: list[str]) -> list[Reason]:
    if use is None:
        unknown.append("processor time and waiting of the timed process (not given)")
        return []
    wall = np.asarray(use.wall_ns, np.float64)
    cpu = _column(use.cpu_ns, wall.shape, "cpu_ns")
    waiting = _column(use.waiting_ns, wall.shape, "waiting_ns")
    switches = _column(use.involuntary, wall.shape, "involuntary")
    if (there := np.isfinite(wall) & np.isfinite(waiting)).any():
        return _waited(wall[there], cpu[there], waiting[there], limits)
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


def _switched(wall: float, cpu: float, switches: float, limits: Limits) -> list[Reason]:
    missing, per_second = 1 - cpu / wall, switches / (wall / 1e9)
    # Only a process with one busy thread must have as much processor time as time; and one that sleeps by its own
    # wish (a GPU computes) is not switched away.
    if missing < limits.waiting or per_second < 20:
        return []
    return [Reason(
        kind="neighbour",
        text=f"the timed process had no processor during {missing:.1%} of the time, and lost one {per_second:.0f} times a second",
        figures={"missing": missing, "switches_per_s": per_second},
        advice="another process competes for the same processors: stop it, use fewer threads, or pin the measurement",
    )]  # fmt: skip


# --- the sensors' word -----------------------------------------------------------------------------------------------


def _sensors(conditions: Conditions | None, calls: _Calls, limits: Limits, unknown: list[str]) -> list[Reason]:
    if conditions is None:
        unknown.append("sensors (not read)")
        return []
    began, ended = int(calls.starts[0]), int(calls.starts[-1] + calls.times[-1])
    return [
        *witnesses.load(conditions, limits, unknown),
        *witnesses.throttling(conditions, unknown),
        *witnesses.frequency(conditions, (began, ended), limits, unknown),
    ]
