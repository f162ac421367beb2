"""The conditions of a measurement: facts read once, and series sampled while nothing is being timed.

Each reading has a unit and its source; what cannot be read is unknown and says why, and is never a zero.

Why the sampler has no thread of its own by default: on a device with two cores a thread that wakes up within a timed
call is a disturbance that it would then report. The driver of a measurement calls :meth:`Sampler.poll` between two
blocks, when no call is timed; it reads when the period is over and otherwise returns at once. Counters (energy,
processor time, throttling) lose nothing by that; levels (clocks, temperatures) are those at the end of a block. Where
one block lasts long, :meth:`Sampler.in_background` reads from a thread.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from edgetl.benchmark.sensors import energy, jetson, linux, load, nvidia
from edgetl.benchmark.sensors.energy import Energy, Floats, Times
from edgetl.benchmark.sensors.linux import ROOT
from edgetl.benchmark.sensors.reading import Kind, Reading, Source, read_text
from edgetl.errors import UsageError


@dataclass(frozen=True, kw_only=True, eq=False)
class Series:
    """One sensor over time."""

    name: str
    unit: str
    source: str
    kind: Kind
    times_ns: Times
    """Shape (n,), on the monotonic clock (``time.perf_counter_ns``)."""
    values: Floats
    """Shape (n,); NaN where the sensor did not answer. A flag is 0 or 1."""
    wraps_at: float | None = None
    why: str = ""
    """Why values are missing; empty where none is."""

    @property
    def known(self) -> bool:
        """Whether it has any value."""
        return bool(np.isfinite(self.values).any())

    @property
    def rate_hz(self) -> float | None:
        """Readings per second, by the median distance between two; None with fewer than two."""
        if len(self.times_ns) < 2:
            return None
        return float(1e9 / max(np.median(np.diff(self.times_ns)), 1.0))

    def finite(self) -> tuple[Times, Floats]:
        """Times and values of the readings that have one."""
        there = np.isfinite(self.values)
        return self.times_ns[there], self.values[there]

    def increase(self) -> float | None:
        """Of a counter: what it counted between its first and its last reading; None where unknown or reset."""
        _, values = self.finite()
        if len(values) < 2:
            return None
        try:
            return float(energy.unwrapped(values, self.wraps_at)[-1])
        except ValueError:
            return None

    def to_json(self, *, values: bool = True) -> dict[str, Any]:
        """Plain values; with the whole series, or its summary alone."""
        _, known = self.finite()
        found: dict[str, Any] = {
            "name": self.name,
            "unit": self.unit,
            "source": self.source,
            "kind": self.kind,
            "rate_hz": _rounded(self.rate_hz),
            "readings": len(self.values),
            "unknown": int(len(self.values) - len(known)),
        }
        if self.why:
            found["why"] = self.why
        if len(known):
            numbers = (known.min(), np.median(known), known.max()) if self.kind == "level" else ()
            found |= {key: _rounded(float(one)) for key, one in zip(("min", "median", "max"), numbers, strict=False)}
            if self.kind == "counter":
                found["increase"] = _rounded(self.increase())
        if values:
            found["times_ns"] = self.times_ns.tolist()
            found["values"] = [_rounded(one) if one == one else None for one in self.values.tolist()]
        return found


@dataclass(frozen=True, kw_only=True)
class Load:
    """Who used the processors that the measurement may use; shares of their whole time, None where unknown."""

    own: float | None
    others: float | None
    idle: float | None
    stolen: float | None
    """Taken by the hypervisor for other machines."""


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Everything that was read about the machine around and during a measurement."""

    facts: tuple[Reading, ...]
    series: tuple[Series, ...]
    period_s: float
    """How often the sampler wanted to read."""
    reading_ms: float | None
    """Median cost of one round of readings; none of it lies within a timed call unless ``background``."""
    background: bool
    """Whether a thread read while calls were timed."""
    idle_ns: tuple[int, int] | None = None
    """When the machine was left alone to read its power at rest."""

    def get(self, name: str) -> Series | None:
        """The series of a name, where it has any value."""
        return next((one for one in self.series if one.name == name and one.known), None)

    def fact(self, name: str) -> Reading | None:
        """The fact of a name, known or not."""
        return next((one for one in self.facts if one.name == name), None)

    def unknown(self) -> dict[str, str]:
        """Name → why, of everything that could not be read at all."""
        found = {one.name: one.why for one in self.facts if one.value is None}
        return found | {one.name: one.why for one in self.series if not one.known}

    def load(self) -> Load:
        """Who used the processors between the first and the last reading."""
        parts = {name: self._increase(f"cpu.{name}") for name in ("busy", "idle", "iowait", "steal", "own")}
        busy, idle, iowait, steal, own = parts.values()
        if busy is None or idle is None or iowait is None or steal is None:
            return Load(own=None, others=None, idle=None, stolen=None)
        whole = busy + idle + iowait + steal
        if whole <= 0:
            return Load(own=None, others=None, idle=None, stolen=None)
        return Load(
            own=None if own is None else own / whole,
            # The kernel counts in ticks: a difference of two such sums can be a little below zero.
            others=None if own is None else max(0.0, busy - own) / whole,
            idle=(idle + iowait) / whole,
            stolen=steal / whole,
        )

    def _increase(self, name: str) -> float | None:
        found = self.get(name)
        return None if found is None else found.increase()

    def to_json(self, *, values: bool = True) -> dict[str, Any]:
        """Plain values: facts, series, load, and how it was sampled."""
        return {
            "facts": [one.to_json() for one in self.facts],
            "series": [one.to_json(values=values) for one in self.series],
            "load": {key: _rounded(value) for key, value in vars(self.load()).items()},
            "period_s": self.period_s,
            "reading_ms": _rounded(self.reading_ms),
            "background": self.background,
        }


def facts(root: Path = ROOT, cpus: Sequence[int] | None = None) -> tuple[Reading, ...]:
    """What does not change while it is measured: processor, limits, power mode, clock source, trip points.

    Args:
        root: The machine's top folder.
        cpus: Processors that the measurement may use; those of this process without it.
    """
    clock = root / "sys/devices/system/clocksource/clocksource0/current_clocksource"
    return (
        *linux.cpu_facts(root, cpus),
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
        about += gpu.facts() if not gpu.problem else [*gpu.facts(), *nvidia.smi_facts()]
        if not gpu.problem:
            found.append(gpu.sample)
        tegra = opened.enter_context(jetson.Tegrastats(interval_ms=max(100, int(self._period_s * 1000))))
        if not tegra.problem:
            found.append(tegra.sample)
        else:
            jtop = opened.enter_context(jetson.Jtop())
            if not jtop.problem:
                found.append(jtop.sample)
            else:
                about += [*tegra.sample(), *jtop.sample()]
        self._facts = tuple(about)
        return found

    def poll(self) -> bool:
        """Read if the period is over. For the driver of a measurement, between two blocks.

        Returns:
            Whether it read.
        """
        if (time.perf_counter_ns() - self._last_ns) / 1e9 < self._period_s:
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
    def in_background(self) -> Iterator[None]:
        """Read from a thread, once per period, for a block that lasts long. It can disturb what is timed meanwhile."""
        stop = threading.Event()

        def loop() -> None:
            while not stop.wait(self._period_s):
                self.read()

        thread = threading.Thread(target=loop, name="edgetl-sensors", daemon=True)
        self._background = True
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


def energies(conditions: Conditions, *, began_ns: int, ended_ns: int, inferences: int) -> tuple[Energy, ...]:
    """Energy per inference by each sensor that has one: counters first, else powers integrated over time.

    Args:
        conditions: Sampled over the whole measurement; with :meth:`Sampler.idle` before it, the idle part is told.
        began_ns: Start of the measurement on the monotonic clock.
        ended_ns: Its end.
        inferences: How many ran in it.

    Returns:
        One per sensor, also where it is unknown and why. Sensors may contain one another (a package and its cores, a
        board and its rails): do not add them up.

    Raises:
        UsageError: No inference, or no time.
    """
    counted = [one for one in conditions.series if one.kind == "counter" and one.unit == "J"]
    have = {one.name.removesuffix(".energy") for one in counted if one.known}
    rails = {one.name.removeprefix("power.") for one in conditions.series if one.name.startswith("power.") and one.known}
    powers = [
        one
        for one in conditions.series
        if one.kind == "level"
        and one.unit == "W"
        and one.name.removesuffix(".power") not in have
        and one.name.removeprefix("jetson.power.") not in rails
    ]
    seconds = (ended_ns - began_ns) / 1e9
    found = []
    for one in [*counted, *powers]:
        joules, why = _joules(one, began_ns, ended_ns)
        idle_w = None
        if conditions.idle_ns is not None:
            rest, _ = _joules(one, *conditions.idle_ns)
            idle_w = None if rest is None else rest / ((conditions.idle_ns[1] - conditions.idle_ns[0]) / 1e9)
        found.append(energy.per_inference(
            sensor=one.name, source=one.source, joules=joules, seconds=seconds, inferences=inferences, idle_w=idle_w, why=why
        ))  # fmt: skip
    return tuple(found)


def _joules(series: Series, began_ns: int, ended_ns: int) -> tuple[float | None, str]:
    if not series.known:
        return None, series.why
    times, values = series.finite()
    try:
        if series.kind == "counter":
            return energy.joules_counted(times, values, series.wraps_at, began_ns, ended_ns), ""
        return energy.joules_integrated(times, values, began_ns, ended_ns), ""
    except ValueError as problem:
        return None, str(problem)


def _rounded(value: float | None) -> float | None:
    """Nine significant digits: a counter keeps its last increase, a JSON file stays readable."""
    return None if value is None else float(f"{value:.9g}")
