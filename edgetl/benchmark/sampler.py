"""Reads the machine's sensors around and during a measurement, while nothing is being timed.

Why the sampler has no thread of its own by default: on a device with two cores a thread that wakes up within a timed
call is a disturbance that it would then report. The driver of a measurement calls :meth:`Sampler.poll` between two
blocks, when no call is timed; it reads when the period is over and otherwise returns at once. Counters (energy,
processor time, throttling) lose nothing by that; levels (clocks, temperatures) are those at the end of a block. Where
one block lasts long, :meth:`Sampler.in_background` reads from a thread.
"""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np

from edgetl.benchmark.conditions import Conditions, Series
from edgetl.benchmark.sensors import energy, jetson, linux, load, nvidia
from edgetl.benchmark.sensors.linux import ROOT
from edgetl.benchmark.sensors.reading import Reading, Source, read_text, unknown
from edgetl.errors import UsageError


def facts(root: Path = ROOT, cpus: Sequence[int] | None = None) -> tuple[Reading, ...]:
    """What does not change while it is measured: processor, limits, power mode, clock source, trip points.

    Args:
        root: The machine's top folder.
        cpus: Processors that the measurement may use; those of this process without it.
    """
    clock = root / "sys/devices/system/clocksource/clocksource0/current_clocksource"
    return (
        *linux.cpu_facts(root, cpus),
        load.quota(root),
        read_text("system.clock_source", clock, root=root),
        *linux.trip_points(root),
        *jetson.facts(),
    )


def linux_sources(root: Path = ROOT, cpus: Sequence[int] | None = None) -> list[Source]:
    """Everything that Linux has to sample: processor time, waiting, throttling, frequency, temperature, energy."""
    return [
        lambda: load.processor_times(root, cpus),
        lambda: load.own_times(root),
        lambda: load.pressure(root),
        lambda: load.control_group(root),
        lambda: linux.frequency(root, cpus),
        lambda: linux.temperatures(root),
        lambda: linux.throttling(root, cpus),
        lambda: jetson.gpu_frequency(root),
        lambda: energy.rapl(root),
        lambda: energy.hwmon_power(root),
    ]


@dataclass(kw_only=True)
class _Recorded:
    reading: Reading
    times_ns: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    why: str = ""


class Sampler(AbstractContextManager["Sampler"]):
    """Reads the machine's sensors around and during a measurement.

    It reads when it is entered and left, and whenever :meth:`poll` finds that the period is over.

    Args:
        period_s: Least time between two readings.
        root: The machine's top folder.
        cpus: Processors that the measurement may use; those of this process without it.
        gpus: NVML indices; without it those of ``CUDA_VISIBLE_DEVICES``, or all.
        sources: What to sample instead of everything that this machine has.

    Raises:
        UsageError: The period is not positive.
    """

    def __init__(
        self,
        *,
        period_s: float = 0.5,
        root: Path = ROOT,
        cpus: Sequence[int] | None = None,
        gpus: Sequence[int] | None = None,
        sources: Sequence[Source] | None = None,
    ) -> None:
        if not period_s > 0:
            raise UsageError(f"the sensors cannot be read every {period_s} s", hint="a period is a positive number")
        self._period_s, self._root, self._cpus, self._gpus = period_s, root, cpus, gpus
        self._given = None if sources is None else list(sources)
        self._sources: list[Source] = []
        self._facts: tuple[Reading, ...] = ()
        self._recorded: dict[str, _Recorded] = {}
        self._costs_ms: list[float] = []
        self._last_ns = 0
        self._background = False
        self._idle_ns: tuple[int, int] | None = None
        self._lock = threading.Lock()
        self._open = ExitStack()

    def __enter__(self) -> Sampler:
        with ExitStack() as opened:
            self._sources = self._start(opened) if self._given is None else self._given
            self._open = opened.pop_all()
        self.read()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.read()
        finally:
            self._open.close()

    def _start(self, opened: ExitStack) -> list[Source]:
        found = linux_sources(self._root, self._cpus)
        about = [*facts(self._root, self._cpus)]
        gpu = opened.enter_context(nvidia.Nvml(self._gpus))
        about += _without_nvml(gpu.problem) if gpu.problem else gpu.facts()
        if not gpu.problem:
            found.append(gpu.sample)
        tegra = opened.enter_context(jetson.Tegrastats(interval_ms=max(100, int(self._period_s * 1000))))
        if not tegra.problem:
            found.append(tegra.sample)
        else:
            jtop = opened.enter_context(jetson.Jtop())
            if not jtop.problem:
                found.append(jtop.sample)
                about = _known(about, jtop.facts())
            else:
                about += [*tegra.sample(), *jtop.sample()]
        self._facts = tuple(about)
        return found

    @property
    def knows_energy(self) -> bool:
        """Whether a sensor of energy or power has answered so far."""
        return any(one.known for one in self.conditions().energy_sensors())

    def poll(self, spare_s: float = math.inf) -> bool:
        """Read if the period is over. For the driver of a measurement, between two blocks.

        Args:
            spare_s: Until the next call that is timed; where four times the quickest reading so far would not fit, it
                does not read. The first one opens what later ones find open.

        Returns:
            Whether it read.
        """
        if (time.perf_counter_ns() - self._last_ns) / 1e9 < self._period_s:
            return False
        if spare_s < 4 * min(self._costs_ms, default=0.0) / 1e3:
            return False
        self.read()
        return True

    def read(self) -> None:
        """Read every sensor now."""
        with self._lock:
            began = time.perf_counter_ns()
            found = [reading for source in self._sources for reading in source()]
            for reading in found:
                self._record(reading, began)
            self._last_ns = time.perf_counter_ns()
            self._costs_ms.append((self._last_ns - began) / 1e6)

    def _record(self, reading: Reading, now_ns: int) -> None:
        kept = self._recorded.setdefault(reading.name, _Recorded(reading=reading))
        value = reading.value
        if kept.times_ns and kept.times_ns[-1] == now_ns:
            return  # two sensors of one name in one round: the first one counts
        kept.times_ns.append(now_ns)
        kept.values.append(float(value) if isinstance(value, int | float) else float("nan"))
        kept.why = kept.why or reading.why
        if value is not None and kept.reading.value is None:
            kept.reading = reading

    def idle(self, seconds: float) -> None:
        """Leave the machine alone and read its power at rest, for the idle part of the energy.

        Raises:
            UsageError: ``seconds`` is not positive.
        """
        if not seconds > 0:
            raise UsageError(f"the machine cannot rest for {seconds} s")
        self.read()
        began = self._last_ns
        end = began + int(seconds * 1e9)
        while (left := (end - time.perf_counter_ns()) / 1e9) > 0:
            time.sleep(min(left, self._period_s))
            self.read()
        self._idle_ns = (began, self._last_ns)

    @contextmanager
    def in_background(self, *, period_s: float | None = None, timed: bool = True) -> Iterator[None]:
        """Read from a thread, for a block that lasts long. It can disturb what is timed meanwhile.

        Args:
            period_s: Between readings; None: the sampler's own.
            timed: Whether the times of what happens meanwhile count, so that conditions have to tell of the thread.
        """
        stop, period = threading.Event(), self._period_s if period_s is None else period_s

        def loop() -> None:
            while not stop.wait(period):
                self.read()

        thread = threading.Thread(target=loop, name="edgetl-sensors", daemon=True)
        self._background = self._background or timed
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def conditions(self) -> Conditions:
        """What was read so far."""
        with self._lock:
            series = tuple(
                Series(
                    name=name,
                    unit=kept.reading.unit,
                    source=kept.reading.source,
                    kind=kept.reading.kind,
                    times_ns=np.array(kept.times_ns, np.int64),
                    values=np.array(kept.values, np.float64),
                    wraps_at=kept.reading.wraps_at,
                    why=kept.why,
                )
                for name, kept in self._recorded.items()
            )
            return Conditions(
                facts=self._facts,
                series=series,
                period_s=self._period_s,
                reading_ms=statistics.median(self._costs_ms) if self._costs_ms else None,
                background=self._background,
                idle_ns=self._idle_ns,
            )


def _known(found: list[Reading], others: list[Reading]) -> list[Reading]:
    """Facts, and in the place of those that are unknown what others say of them."""
    told = {one.name: one for one in others if one.value is not None}
    return [told.get(one.name, one) if one.value is None else one for one in found]


def _without_nvml(problem: str) -> list[Reading]:
    """What nvidia-smi says instead; one reading with both reasons where that does not answer either."""
    found = nvidia.smi_facts()
    source = f"{nvidia.NVML}, nvidia-smi"
    return [unknown("gpu", f"{problem}; {one.why}", source=source) if one.name == "gpu" else one for one in found]
