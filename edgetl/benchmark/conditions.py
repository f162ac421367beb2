"""The conditions of a measurement: facts read once, series sampled, who used the processors, energy per inference.

Each reading has a unit and its source; what cannot be read is unknown and says why, and is never a zero. What reads it
is :mod:`edgetl.benchmark.sampler`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgetl.benchmark.sensors import energy
from edgetl.benchmark.sensors.energy import Energy, Floats, Times
from edgetl.benchmark.sensors.reading import Kind, Reading

_GPUS = re.compile(r"gpu\d+\.|jetson\.(frequency|load)\.(gpu|gr3d)")
"""Names of what is read of NVIDIA's GPUs."""


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

    def without_gpus(self) -> Conditions:
        """For a measurement that no GPU took part in: an idle one lowers its clock, which says nothing of it."""
        return replace(self, series=tuple(one for one in self.series if not _GPUS.match(one.name)))

    def unknown(self) -> dict[str, str]:
        """Name → why, of everything that could not be read at all."""
        found = {one.name: one.why for one in self.facts if one.value is None}
        return found | {one.name: one.why for one in self.series if not one.known}

    def energy_sensors(self) -> tuple[Series, ...]:
        """Counters of energy, and powers of what has no counter; also those that do not answer."""
        counted = [one for one in self.series if one.kind == "counter" and one.unit == "J"]
        have = {one.name.removesuffix(".energy") for one in counted if one.known}
        rails = {one.name.removeprefix("power.") for one in self.series if one.name.startswith("power.") and one.known}
        powers = [
            one
            for one in self.series
            if one.kind == "level"
            and one.unit == "W"
            and one.name.removesuffix(".power") not in have
            and one.name.removeprefix("jetson.power.") not in rails
        ]
        return (*counted, *powers)

    def load(self) -> Load:
        """Who used the processors between the first and the last reading."""
        busy, idle, steal, own = (self._increase(f"cpu.{name}") for name in ("busy", "idle", "steal", "own"))
        waiting = self.get("cpu.iowait")
        if busy is None or idle is None or waiting is None or steal is None:
            return Load(own=None, others=None, idle=None, stolen=None)
        waited = waiting.finite()[1]
        iowait = max(0.0, float(waited[-1] - waited[0]))  # proc(5): it decreases in certain conditions
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

    def others_s(self) -> float | None:
        """Seconds of the processors that others and the hypervisor took between the first and the last reading."""
        busy, own, steal = (self._increase(f"cpu.{name}") for name in ("busy", "own", "steal"))
        return None if busy is None or own is None or steal is None else max(0.0, busy - own) + steal

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
    seconds = (ended_ns - began_ns) / 1e9
    found = []
    for one in conditions.energy_sensors():
        joules, why = _joules(one, began_ns, ended_ns)
        idle_w = None
        if conditions.idle_ns is not None:
            rest, _ = _joules(one, *conditions.idle_ns)
            idle_w = None if rest is None else rest / ((conditions.idle_ns[1] - conditions.idle_ns[0]) / 1e9)
        found.append(
            energy.per_inference(
                sensor=one.name,
                source=one.source,
                joules=joules,
                seconds=seconds,
                inferences=inferences,
                idle_w=idle_w,
                why=why,
            )
        )
    return tuple(found)


def _joules(series: Series, began_ns: int, ended_ns: int) -> tuple[float | None, str]:
    if not series.known:
        return None, series.why
    times, values = series.finite()
    try:
        if series.kind == "counter":
            return energy.joules_counted(times, values, series.wraps_at, began_ns, ended_ns), ""
        inside = (times > began_ns) & (times < ended_ns)
        if inside.sum() >= 2:  # those around it are of a machine at rest
            times, values = times[inside], values[inside]
        return energy.joules_integrated(times, values, began_ns, ended_ns), ""
    except ValueError as problem:
        return None, str(problem)


def _rounded(value: float | None) -> float | None:
    """Nine significant digits: a counter keeps its last increase, a JSON file stays readable."""
    return None if value is None else float(f"{value:.9g}")
