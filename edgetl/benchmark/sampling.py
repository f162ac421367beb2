"""Time several things side by side: in fresh processes, in turn, and keep every single time.

A round is one fresh process of each thing, all alive at once. Within a round they are timed in passes: every pass
visits all of them in a new random order, with a block of calls each, so that a machine that slows down slows all of
them.

Where the machine has a sensor of energy, each of the last round then runs by itself for some seconds, which it is read
in: blocks that take turns are too short for sensors that answer every tenth of a second or so.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.benchmark.ceilings import device_of
from edgetl.benchmark.comparison import Series
from edgetl.benchmark.conditions import Conditions, energies
from edgetl.benchmark.feeds import Feeds
from edgetl.benchmark.process import Block, Check, ColdStart, Process, started
from edgetl.benchmark.sampler import Sampler
from edgetl.benchmark.sensors.energy import Energy, without_sensor
from edgetl.benchmark.stability import BlockUse, Stability, judge
from edgetl.benchmark.steady import Steady, steady_state
from edgetl.benchmark.things import Thing
from edgetl.benchmark.usage import Use
from edgetl.errors import UsageError

SETTLING = 3
"""Calls at the beginning of each block that do not count, because they pay for what the other things left in caches and
for threads that slept meanwhile: docs/benchmarking.md shows how much that is. They are kept like all others."""
_PATIENCE = 2
"""A process that is not steady, or not for long enough, is given so many times the calls that were planned, at most."""

_ENERGY_READINGS = 20
"""Of the sensors, while a thing runs for its energy."""
_ENERGY_BLOCK_NS = 200_000_000
"""Between two looks at the sensors while energy is measured."""

Progress = Callable[[int, int], None]
Integers = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is measured."""

    samples: int = 700
    """Calls that count per thing, over all processes, at least where all of them become steady."""
    processes: int = 5
    """Fresh processes per thing."""
    warmup: int = 20
    """Calls per process that are planned for warming up. Where it is over is found out."""
    block: int = 10
    """Calls in a row that count: long enough for caches and threads to settle, short against drift."""
    threads: int | None = None
    """Per thing; None: as many as each takes by itself."""
    seed: int = 0
    """Of the order."""
    energy_s: float = 2.0
    """Seconds that each thing runs in a row for its energy, and as many at rest before all; where a sensor tells."""


@dataclass(frozen=True, kw_only=True)
class EnergyRun:
    """Calls of one thing in a row, with the sensors read before, after and meanwhile."""

    began_ns: int
    """On the system's monotonic clock."""
    ended_ns: int
    inferences: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Sampled:
    """All times of one thing, in the order in which they were measured."""

    thing: Thing
    inputs: tuple[str, ...]
    """What it was fed with, as "input float32[1, 3, 224, 224]"."""
    times_ns: Integers
    """(n,): how long each call took."""
    starts_ns: Integers
    """(n,): when it began, on the system's monotonic clock."""
    process: Integers
    """(n,): its round, from 0."""
    block: Integers
    """(n,): its pass within the round, from 0."""
    place: Integers
    """(n,): its place within the block, from 0."""
    steady: tuple[Steady, ...]
    """Per process: where the calls that are not settling become steady."""
    cold: tuple[ColdStart, ...]
    """Per process."""
    timer_ns: int
    """What timing nothing takes."""
    check: Check
    uses: tuple[Use, ...] = ()
    """Per block, in the order of the calls: what the operating system says of its process; empty: it was not asked."""
    engine_ms: tuple[float | None, ...] = ()
    """Per block: what the engine's own clock says of its last call; None where it has none."""
    energy_run: EnergyRun | None = None
    """None: no sensor knew any energy."""

    @property
    def settling(self) -> NDArray[np.bool_]:
        """(n,): calls at the beginning of a block, which pay for the others."""
        return np.asarray(self.place < SETTLING)

    @property
    def warmup(self) -> NDArray[np.bool_]:
        """(n,): calls before the steady state of their process; none where it was not found."""
        found = np.zeros(len(self.times_ns), dtype=bool)
        for index, steady in enumerate(self.steady):
            mine = np.flatnonzero((self.process == index) & ~self.settling)
            if steady.start:
                found[(self.process == index) & (np.arange(len(found)) < mine[steady.start])] = True
        return found

    @property
    def counted(self) -> NDArray[np.bool_]:
        """(n,): the others. Nothing is left out for being slow."""
        return ~self.settling & ~self.warmup

    def series(self) -> Series:
        """The calls that count."""
        keep = self.counted
        return Series(
            name=self.thing.name, times_ns=self.times_ns[keep], process=self.process[keep], block=self.block[keep]
        )

    @property
    def engine_clock_p50_ms(self) -> float | None:
        """Median that the engine's own clock says of the last calls of blocks that count; None where it has none."""
        told = [self.engine_ms[index] for index in np.unique(self._of_block[self.counted])] if self.engine_ms else []
        known = [each for each in told if each is not None]
        return float(np.median(known)) if known else None

    @property
    def counted_ns(self) -> tuple[int, int]:
        """Start of the first call that counts, and end of the last."""
        keep = self.counted
        return int(self.starts_ns[keep].min()), int((self.starts_ns + self.times_ns)[keep].max())

    def stability(self, conditions: Conditions | None = None, *, during: tuple[int, int] | None = None) -> Stability:
        """Whether the calls that count may be believed: see :func:`edgetl.benchmark.stability.judge`.

        Args:
            conditions: What the machine's sensors said meanwhile; of GPUs it is heard where the thing may use one.
            during: See there, and :func:`span_of`.
        """
        if conditions is not None and self._on_processor:
            conditions = conditions.without_gpus()
        keep = self.counted
        with_calls = np.unique(self._of_block[keep])
        return judge(
            self.times_ns[keep],
            self.starts_ns[keep],
            self.process[keep],
            self.block[keep],
            use=BlockUse.of([self.uses[index] for index in with_calls]) if self.uses else None,
            conditions=conditions,
            during=during,
        )

    def energy(self, conditions: Conditions | None = None) -> tuple[Energy, ...]:
        """Energy per inference by each sensor, also by those that do not know it, with the reason.

        Args:
            conditions: What the machine's sensors said meanwhile; without them nothing is known.
        """
        run = self.energy_run
        if conditions is None:
            return ()
        if run is None:
            return tuple(without_sensor(one.name, one.source, one.why) for one in conditions.energy_sensors())
        return energies(conditions, began_ns=run.began_ns, ended_ns=run.ended_ns, inferences=run.inferences)

    @property
    def _on_processor(self) -> bool:
        """Whether everything that the thing multiplies is known to be multiplied by the processor."""
        return {device_of(layer.provider) for layer in self.check.layers if layer.multiply_adds} == {"cpu"}

    @property
    def _of_block(self) -> Integers:
        """(n,): number of each call's block over all processes, from 0."""
        return np.asarray(np.cumsum(self.place == 0) - 1, np.int64)

    def to_json(self) -> dict[str, Any]:
        """Every call, as plain values: per process its times and starts, and what they are."""
        return {
            "thing": {**self.thing.to_json(), "path": self.thing.path.name},
            "inputs": list(self.inputs),
            "timer_ns": self.timer_ns,
            "depends_on_input": self.check.depends_on_input,
            "multiply_adds": self.check.multiply_adds,
            "processes": [self._process(index) for index in range(len(self.cold))],
        }

    def _process(self, index: int) -> dict[str, Any]:
        mine = self.process == index
        return {
            "cold_start": self.cold[index].to_json(),
            "steady": self.steady[index].to_json(),
            "times_ns": self.times_ns[mine].tolist(),
            "starts_ns": self.starts_ns[mine].tolist(),
            "block": self.block[mine].tolist(),
            "counted": self.counted[mine].astype(int).tolist(),
            "uses": [self.uses[index] for index in np.unique(self._of_block[mine])] if self.uses else [],
        }


def measure(
    things: Sequence[Thing],
    feeds: Feeds,
    plan: Plan,
    *,
    progress: Progress | None = None,
    sampler: Sampler | None = None,
) -> tuple[Sampled, ...]:
    """Time things side by side.

    Args:
        things: With names of their own.
        feeds: What they are fed with.
        plan: How much is measured.
        progress: Called with the passes so far and their planned number.
        sampler: Reads the machine's sensors between blocks, when no call is timed; entered.

    Returns:
        Per thing, in their order.

    Raises:
        UsageError: There is nothing to time, a name twice, or less than one of what the plan counts.
        EdgetlError: Something cannot be opened or run, or its process died.
    """
    counts = (plan.samples, plan.processes, plan.block)
    if not things or min(counts) < 1 or plan.warmup < 0:
        raise UsageError("a measurement needs a thing, and at least one call, process and call per block")
    names = [thing.name for thing in things]
    if len(set(names)) < len(names):
        raise UsageError("things that are timed together need names of their own")
    order = random.Random(plan.seed)
    takings = [_Taking(thing=thing) for thing in things]
    for number in range(plan.processes):
        _round(takings, feeds, plan, order, number, progress, sampler)
    return tuple(taking.done() for taking in takings)


def span_of(sampled: Sequence[Sampled]) -> tuple[int, int]:
    """From the first call that counts to the end of the last, of things that were timed in turn, on their clock."""
    spans = [each.counted_ns for each in sampled]
    return min(first for first, _ in spans), max(last for _, last in spans)


def observe(
    things: Sequence[Thing], feeds: Feeds, plan: Plan, *, progress: Progress | None = None
) -> tuple[tuple[Sampled, ...], Conditions]:
    """Time things side by side, and read the machine's sensors meanwhile: :func:`measure` with a sampler of its own.

    Returns:
        Per thing, in their order; and what the sensors said, from before the first process to after the last.

    Raises:
        EdgetlError: As :func:`measure`.
    """
    with Sampler() as sampler:
        if plan.energy_s > 0 and sampler.knows_energy:
            sampler.idle(plan.energy_s)
        found = measure(things, feeds, plan, progress=progress, sampler=sampler)
    return found, sampler.conditions()


@dataclass(kw_only=True)
class _Taking:
    """What was measured of one thing so far."""

    thing: Thing
    rounds: list[list[Block]] = field(default_factory=list)
    """Per process, its blocks."""
    steady: list[Steady] = field(default_factory=list)
    cold: list[ColdStart] = field(default_factory=list)
    process: Process | None = None
    check: Check | None = None
    energy_run: EnergyRun | None = None

    def enough(self, wanted: int) -> bool:
        """Whether the living process is steady, for so many calls; where too few to tell are wanted, has made them."""
        found = self.look()
        if found.outcome == "unknown":
            return found.samples >= wanted
        return found.start is not None and found.samples - found.start >= wanted

    def look(self) -> Steady:
        """Where the living process became steady."""
        return steady_state(np.concatenate([block.times_ns[SETTLING:] for block in self.rounds[-1]]))

    def run_for_energy(self, seconds: float, sampler: Sampler) -> None:
        """Call the living process for some seconds, and have the sensors read before, after and meanwhile.

        What has no counter tells its power at a moment: read between two blocks that would be the power at rest.
        """
        typical = max(1.0, float(np.median(self.rounds[-1][-1].times_ns)))
        calls = max(1, round(min(_ENERGY_BLOCK_NS, seconds * 1e9) / typical))
        blocks: list[Block] = []
        sampler.read()
        with sampler.in_background(period_s=seconds / _ENERGY_READINGS, timed=False):
            while not blocks or _end_of(blocks[-1]) - int(blocks[0].starts_ns[0]) < seconds * 1e9:
                blocks.append(self.living().block(calls))
        sampler.read()
        self.energy_run = EnergyRun(
            began_ns=int(blocks[0].starts_ns[0]), ended_ns=_end_of(blocks[-1]), inferences=calls * len(blocks)
        )

    def living(self) -> Process:
        """The process of this round."""
        assert self.process is not None
        return self.process

    def done(self) -> Sampled:
        """All of it."""
        assert self.check is not None
        blocks = [
            (number, index, block) for number, round_ in enumerate(self.rounds) for index, block in enumerate(round_)
        ]
        sizes = [len(block.times_ns) for _, _, block in blocks]
        return Sampled(
            thing=self.thing,
            inputs=self.living().inputs,
            times_ns=np.concatenate([block.times_ns for _, _, block in blocks]),
            starts_ns=np.concatenate([block.starts_ns for _, _, block in blocks]),
            process=np.repeat([number for number, _, _ in blocks], sizes),
            block=np.repeat([index for _, index, _ in blocks], sizes),
            place=np.concatenate([np.arange(size) for size in sizes]),
            steady=tuple(self.steady),
            cold=tuple(self.cold),
            timer_ns=self.living().timer_ns,
            check=self.check,
            uses=tuple(block.use for _, _, block in blocks) if all(block.use for _, _, block in blocks) else (),
            engine_ms=tuple(block.engine_ms for _, _, block in blocks),
            energy_run=self.energy_run,
        )


def _end_of(block: Block) -> int:
    """When its last call was over, in ns on the monotonic clock."""
    return int(block.starts_ns[-1] + block.times_ns[-1])


def _round(
    takings: list[_Taking],
    feeds: Feeds,
    plan: Plan,
    order: random.Random,
    number: int,
    progress: Progress | None,
    sampler: Sampler | None,
) -> None:
    """One fresh process of each thing."""
    wanted = -(-plan.samples // plan.processes)
    passes = -(-(plan.warmup + wanted) // plan.block)
    with ExitStack() as stack:
        for taking in order.sample(takings, len(takings)):
            taking.process = stack.enter_context(started(taking.thing, feeds, threads=plan.threads))
            taking.cold.append(taking.process.cold)
            taking.rounds.append([])
        done = 0
        while done < passes or (done < _PATIENCE * passes and not all(taking.enough(wanted) for taking in takings)):
            for taking in order.sample(takings, len(takings)):
                taking.rounds[-1].append(taking.living().block(SETTLING + plan.block))
                if sampler:
                    sampler.poll()
            done += 1
            if progress:
                progress(number * passes + min(done, passes), plan.processes * passes)
        for taking in takings:
            taking.steady.append(taking.look())
            if number == plan.processes - 1 and plan.energy_s > 0 and sampler and sampler.knows_energy:
                taking.run_for_energy(plan.energy_s, sampler)
        for taking in takings:
            if number == plan.processes - 1:
                taking.check = taking.living().check()
