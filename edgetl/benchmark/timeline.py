"""What the times of a measurement say against it: steps, drifts, stalls, interruptions."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from edgetl.benchmark import trends
from edgetl.benchmark.reasons import Limits, Reason
from edgetl.benchmark.trends import Floats, Ints, group_medians, median
from edgetl.errors import UsageError
from edgetl.numbers import counted

_MOST_BINS = 150
"""Blocks are merged to at most so many values: a trend looks at all pairs of them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Calls:
    """Calls in order of their start; processes and blocks renumbered from 0 in order of appearance."""

    times: Floats
    starts: Ints
    process: Ints
    block: Ints
    block_process: Ints = field(repr=False)
    """Shape (blocks,): the process of each block."""

    @property
    def blocks(self) -> int:
        """How many there are."""
        return len(self.block_process)

    @cached_property
    def processes(self) -> int:
        """How many there are."""
        return int(self.process.max()) + 1

    @cached_property
    def process_median(self) -> Floats:
        """Shape (processes,)."""
        return group_medians(self.process, self.times, self.processes)

    @cached_property
    def block_median(self) -> Floats:
        """Shape (blocks,)."""
        return group_medians(self.block, self.times, self.blocks)


def ordered(times_ns: ArrayLike, starts_ns: ArrayLike, processes: ArrayLike, blocks: ArrayLike) -> Calls:
    """Calls in order of their start; the arguments are those of :func:`edgetl.benchmark.stability.judge`.

    Raises:
        UsageError: The arrays are empty, not of one length, or hold times that are not positive.
    """
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
    return Calls(
        times=times.astype(np.float64), starts=starts, process=process, block=block, block_process=process[first]
    )


def _renumbered(labels: Ints) -> Ints:
    """Labels as numbers from 0 in order of first appearance."""
    _, first, where = np.unique(labels, return_index=True, return_inverse=True)
    number = np.empty(len(first), np.int64)
    number[np.argsort(first)] = np.arange(len(first))
    return np.asarray(number[where], np.int64)


def few_samples(calls: Calls, limits: Limits) -> Reason | None:
    """Too few calls or blocks to say anything."""
    if calls.blocks >= limits.blocks and len(calls.times) >= limits.times:
        return None
    return Reason(
        kind="few-samples",
        text=f"{counted(len(calls.times), 'call')} in {counted(calls.blocks, 'block')} are too few to tell whether the"
        " latency holds still",
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


def _bins(calls: Calls) -> _Bins:
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
    values = (calls.block_median if per_bin == 1 else group_medians(where, calls.times, count))[in_time]
    return _Bins(values=values, at_s=at_s, process=calls.process[first][in_time])


def movements(calls: Calls, limits: Limits) -> list[Reason]:
    """A step or a drift of the whole, a drift within each process, processes that lie far apart."""
    bins = _bins(calls)
    step = trends.step(bins.values)
    drift = trends.drift(bins.at_s, bins.values)
    within = trends.drift(bins.at_s, bins.values, bins.process)
    is_step = step.p < limits.alpha and abs(step.size) >= limits.relevant and _is_more_than_levels(step, bins)
    is_drift = drift.p < limits.alpha and abs(drift.size) >= limits.relevant
    is_drift = is_drift and (_goes_on_within(drift, within) or _clear_of_levels(bins, bins.at_s - bins.at_s.mean()))
    if is_step and (not is_drift or step.misfit <= drift.misfit):
        return [_step_reason(step, bins)]
    if is_drift:
        seconds = float(bins.at_s[-1])
        return [Reason(
            kind="drift",
            text=f"the latency {_grew(drift.size)} steadily, by {abs(drift.size):.1%} in {seconds:.3g} s",
            figures={"size": drift.size, "p": drift.p, "seconds": seconds},
            advice="let the machine reach its working temperature first, lock its clocks, stop what runs beside it",
        )]  # fmt: skip
    found: list[Reason] = []
    if calls.processes > 1:
        if within.p < limits.alpha and abs(within.size) >= limits.relevant:
            found.append(Reason(
                kind="drift",
                text=f"within each process the latency {_grew(within.size)} by {abs(within.size):.1%}",
                figures={"size": within.size, "p": within.p},
                advice="the steady state begins later than it was taken to: measure longer, leave out more of it",
            ))  # fmt: skip
        found += _process_reason(bins, limits)
    return found


def _clear_of_levels(bins: _Bins, weights: Floats) -> bool:
    """Whether a trend is more than that every process has a level of its own, at 5%.

    Each start gives a program another speed. A few such levels in a row make a step or a line as easily as not, however
    certain it is that they differ. What the trend leaves over of the levels tells how far they lie apart without it:
    a t-test of the regression of the processes' medians.

    Args:
        bins: The medians.
        weights: Shape (bins,): the shape of the trend.

    Returns:
        True with fewer than four processes, which leave nothing over to tell it from.
    """
    count = int(bins.process.max()) + 1
    if count < 4:
        return True
    sizes = np.bincount(bins.process, minlength=count)
    shape = np.bincount(bins.process, weights=weights, minlength=count) / sizes
    shape = shape - shape.mean()
    levels = group_medians(bins.process, bins.values, count)
    levels = levels - levels.mean()
    whole = float(shape @ shape)
    if whole <= 0:
        return False
    slope = float(shape @ levels) / whole
    left = levels - slope * shape
    error = float(np.sqrt(left @ left / (count - 2) / whole))
    return abs(slope) > _critical_t(count - 2) * error


def _critical_t(freedom: int) -> float:
    """Two-sided 5% point of Student's t, to 1%."""
    return {1: 12.71, 2: 4.303, 3: 3.182, 4: 2.776}.get(freedom, 1.96 + 2.4 / freedom + 2 / freedom**2)


def _goes_on_within(drift: trends.Drift, within: trends.Drift) -> bool:
    return within.p < 0.1 and within.size * drift.size > 0


def _is_more_than_levels(step: trends.Step, bins: _Bins) -> bool:
    """A step inside a process can be seen there; else it must be clear of the levels of the processes."""
    position = np.arange(len(bins.values))
    if _clear_of_levels(bins, (position >= step.index).astype(np.float64)):
        return True
    mine = bins.process == bins.process[step.index]
    before, after = bins.values[mine & (position < step.index)], bins.values[mine & (position >= step.index)]
    if min(len(before), len(after)) < 2:
        return False
    count = int(bins.process.max()) + 1
    left = bins.values - group_medians(bins.process, bins.values, count)[bins.process]
    noise = 1.2533 * 1.4826 * median(np.abs(left)) * float(np.sqrt(1 / len(before) + 1 / len(after)))
    change = median(after) - median(before)
    return change * step.size > 0 and abs(change) > 2.5 * noise


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
    left = bins.values - medians[bins.process]
    alike = trends.inflation(left, trends.LINE_BIAS)
    noise = 1.2533 * 1.4826 * median(np.abs(left)) * float(np.sqrt(alike / sizes.min()))
    apart = float(medians.max() - medians.min())
    size = apart / median(medians)
    if size < 2 * limits.relevant or apart < 5 * noise:
        return []
    return [Reason(
        kind="processes",
        text=f"the medians of the {count} processes lie {size:.1%} apart",
        figures={"size": size, "processes": count},
        advice="measure more processes: each start gives this program another speed, and the median is one by chance",
    )]  # fmt: skip


# --- stalls, interruptions -------------------------------------------------------------------------------------------


def stalls(calls: Calls, limits: Limits) -> list[Reason]:
    """Single calls that took far too long, and pauses between calls."""
    usual = calls.process_median
    over = calls.times - usual[calls.process]
    spread = 1.4826 * group_medians(calls.process, np.abs(over), calls.processes)
    least = np.maximum(np.maximum(limits.stall_ms * 1e6, 0.5 * usual), 20 * spread)[calls.process]
    found: list[Reason] = []
    if (stalled := over >= least).any():
        longest, count = float(calls.times[stalled].max()) / 1e6, int(stalled.sum())
        found.append(Reason(
            kind="stall",
            text=f"{count} of {len(over)} calls took up to {longest:.0f} ms: the median is {median(usual) / 1e6:.3g}",
            figures={"calls": count, "longest_ms": longest, "lost_ms": float(over[stalled].sum()) / 1e6},
            advice="something stopped the process: a debugger, a full disk, swapped memory, a suspended machine",
        ))  # fmt: skip
    if (gap_ms := _gap_ms(calls, limits)) is not None:
        found.append(Reason(
            kind="stall",
            text=f"between two calls the process did nothing for {gap_ms:.0f} ms",
            figures={"longest_ms": gap_ms},
            advice="something stopped the process between two calls; the times themselves may be right: measure again",
        ))  # fmt: skip
    return found


def _gap_ms(calls: Calls, limits: Limits) -> float | None:
    """The longest pause between two calls of one process that nothing explains; in a block, or between two blocks."""
    order = np.lexsort((calls.starts, calls.process))
    starts, ends = calls.starts[order], calls.starts[order] + calls.times[order].astype(np.int64)
    gaps = (starts[1:] - ends[:-1]).astype(np.float64)
    one_process = calls.process[order][1:] == calls.process[order][:-1]
    one_block = calls.block[order][1:] == calls.block[order][:-1]
    worst = 0.0
    for inside, least_ns in ((one_process & one_block, limits.stall_ms * 1e6), (one_process & ~one_block, 5e8)):
        if inside.any():
            usual, longest = median(gaps[inside]), float(gaps[inside].max())
            if longest - usual >= max(least_ns, 20 * usual):
                worst = max(worst, longest)
    return worst / 1e6 if worst else None


def interruptions(calls: Calls, limits: Limits) -> list[Reason]:
    """Time lost in calls that were held up, and bursts of slow blocks."""
    usual = calls.process_median[calls.process]
    over = calls.times - usual
    held_up = (over > usual) & (over < np.maximum(limits.stall_ms * 1e6, 0.5 * usual))
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


def _bursts(calls: Calls, limits: Limits) -> Reason | None:
    """Blocks that are slower or faster than their process by more than their own noise explains."""
    if calls.blocks < limits.blocks:
        return None
    medians = calls.block_median
    spread = 1.4826 * group_medians(calls.block, np.abs(calls.times - medians[calls.block]), calls.blocks)
    sizes = np.bincount(calls.block, minlength=calls.blocks)
    usual = group_medians(calls.block_process, medians, calls.processes)[calls.block_process]
    off = np.abs(medians / usual - 1)
    noise = 1.2533 * median(spread / medians) / np.sqrt(sizes)
    if median(sizes.astype(np.float64)) < 4:  # so few calls have no spread of their own: their noise is that of blocks
        noise = np.full(calls.blocks, 1.4826 * median(off))
    far = off > np.maximum(1.5 * limits.relevant, 5 * noise)
    if far.sum() < max(3, 0.05 * calls.blocks):
        return None
    count, size = int(far.sum()), median(off[far])
    return Reason(
        kind="neighbour",
        text=f"{count} of {calls.blocks} blocks are off their process's median by {size:.1%}",
        figures={"blocks": count, "of": calls.blocks, "size": size},
        advice="something disturbs the machine in bursts: stop other work, lock the clocks, measure again",
    )
