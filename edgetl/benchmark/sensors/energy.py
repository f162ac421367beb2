"""Energy: counters of it (RAPL, NVML), powers to be integrated (INA3221, tegrastats), and joules per inference."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgetl.benchmark.sensors.linux import ROOT
from edgetl.benchmark.sensors.reading import Reading, number_of, read_number, reason_of, shown, text_of, unknown
from edgetl.errors import UsageError

Floats: TypeAlias = NDArray[np.float64]
Times: TypeAlias = NDArray[np.int64]


# --- sensors ---------------------------------------------------------------------------------------------------------


def rapl(root: Path = ROOT) -> list[Reading]:
    """Energy counters of Intel's and AMD's processors (powercap), J since some moment; they wrap around.

    Since CVE-2020-8694 only root may read them; then each is unknown and says so.
    """
    base = root / "sys/class/powercap"
    readings = []
    for zone in sorted(base.glob("intel-rapl:*")):
        name = f"energy.rapl.{_zone_name(zone)}"
        try:
            wraps_at = number_of(zone / "max_energy_range_uj") / 1e6
        except (OSError, ValueError) as problem:
            why = f"where the counter wraps around is not known: {reason_of(problem)}"
            readings.append(unknown(name, why, source=shown(zone, root), unit="J", kind="counter"))
            continue
        file = zone / "energy_uj"
        readings.append(read_number(name, file, root=root, unit="J", scale=1e-6, kind="counter", wraps_at=wraps_at))
    if not readings:
        why = "this machine shows no RAPL counter"
        return [unknown("energy.rapl", why, source="/sys/class/powercap/intel-rapl:*", unit="J", kind="counter")]
    return readings


def _zone_name(zone: Path) -> str:
    """ "package-0", "package-0.dram": the names of a zone and of the one that it is part of."""
    parts = zone.name.split(":")
    names = []
    for end in range(2, len(parts) + 1):
        try:
            names.append(text_of(zone.parent / ":".join(parts[:end]) / "name"))
        except OSError:
            names.append(parts[end - 1])
    return ".".join(names)


def hwmon_power(root: Path = ROOT) -> list[Reading]:
    """Power of each rail that hwmon knows, W: a Jetson's INA3221 (volts × amperes), or a sensor of power itself."""
    readings = []
    for chip in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        for path in sorted(chip.glob("power*_input")):
            label = _label(chip, path.name.replace("_input", "_label"), path.name.removesuffix("_input"))
            readings.append(read_number(f"power.{label}", path, root=root, unit="W", scale=1e-6, kind="level"))
        for current in sorted(chip.glob("curr*_input")):
            number = current.name.removeprefix("curr").removesuffix("_input")
            volts, label_file = chip / f"in{number}_input", chip / f"in{number}_label"
            if volts.exists() and label_file.exists():
                name = f"power.{_label(chip, label_file.name, number)}"
                readings.append(_volts_amperes(name, volts, current, root))
    return readings


def _volts_amperes(name: str, volts: Path, amperes: Path, root: Path) -> Reading:
    source = f"{shown(volts, root)} × {amperes.name}"
    try:
        watts = number_of(volts) * number_of(amperes) / 1e6  # mV × mA
    except (OSError, ValueError) as problem:
        return unknown(name, reason_of(problem), source=source, unit="W", kind="level")
    return Reading(name=name, value=watts, unit="W", source=source, kind="level")


def _label(chip: Path, file: str, default: str) -> str:
    try:
        return text_of(chip / file) or default
    except OSError:
        try:
            return f"{text_of(chip / 'name')}.{default}"
        except OSError:
            return f"{chip.name}.{default}"


# --- arithmetic ------------------------------------------------------------------------------------------------------

_UNCOVERED = 0.5
"""Share of a time, at most, that is before the first reading of it or after the last: it counts as what is between."""


def unwrapped(values: Floats, wraps_at: float | None) -> Floats:
    """A counter without its wrap-arounds, from zero.

    Args:
        values: Shape (n,), as read.
        wraps_at: The highest value that it can have; None for one that never wraps.

    Returns:
        Shape (n,), non-decreasing, first value 0.

    Raises:
        ValueError: A counter without wrap-around went back: it was reset, and what it counted is not known.
    """
    steps = np.diff(np.asarray(values, np.float64))
    if wraps_at is None:
        if np.any(steps < 0):
            raise ValueError("the counter went back: it was reset")
        return np.concatenate([[0.0], np.cumsum(steps)])
    return np.concatenate([[0.0], np.cumsum(np.where(steps < 0, steps + wraps_at, steps))])


def joules_counted(times_ns: Times, joules: Floats, wraps_at: float | None, began_ns: int, ended_ns: int) -> float:
    """Energy between two moments from a counter, interpolated between its readings, and as much per second around them.

    Raises:
        ValueError: The readings do not cover the time, or the counter was reset.
    """
    covered = _covered(times_ns, began_ns, ended_ns)
    total = unwrapped(joules, wraps_at)
    first, last = np.interp([began_ns - int(times_ns[0]), ended_ns - int(times_ns[0])], times_ns - times_ns[0], total)
    return float(last - first) / covered


def joules_integrated(times_ns: Times, watts: Floats, began_ns: int, ended_ns: int) -> float:
    """Energy between two moments from sampled powers, by the trapezoidal rule; around them, they stay what they are.

    Raises:
        ValueError: The readings do not cover the time.
    """
    _covered(times_ns, began_ns, ended_ns)
    origin = int(times_ns[0])
    inside = (times_ns > began_ns) & (times_ns < ended_ns)
    at = np.concatenate([[began_ns - origin], times_ns[inside] - origin, [ended_ns - origin]]).astype(np.float64)
    power = np.interp(at, times_ns - origin, watts)
    return float(np.sum((power[1:] + power[:-1]) / 2 * np.diff(at)) / 1e9)


def _covered(times_ns: Times, began_ns: int, ended_ns: int) -> float:
    """Share of a time that lies between the first and the last reading."""
    if len(times_ns) < 2:
        raise ValueError("there are fewer than two readings")
    if began_ns >= ended_ns:
        raise ValueError("the time is empty")
    share = (min(ended_ns, int(times_ns[-1])) - max(began_ns, int(times_ns[0]))) / (ended_ns - began_ns)
    if share < 1.0 - _UNCOVERED:
        raise ValueError("the readings do not cover the time")
    return share


@dataclass(frozen=True, kw_only=True)
class Energy:
    """What one sensor says about the energy of a measurement."""

    sensor: str
    """As "energy.rapl.package-0" or "power.VDD_IN"."""
    source: str
    joules: float | None
    """Everything that the sensor's part of the machine took while it was measured."""
    seconds: float
    inferences: int
    per_inference_j: float | None
    """``joules / inferences``: with what the machine takes at rest."""
    idle_w: float | None
    """Power of the same sensor while nothing ran."""
    above_idle_per_inference_j: float | None
    """What an inference added: ``(joules - idle_w · seconds) / inferences``."""
    why: str = ""
    """Why a figure is unknown."""

    @property
    def statement(self) -> str:
        """What an inference takes, in words."""
        if self.per_inference_j is None:
            return f"unknown by {self.sensor}: {self.why}"
        above = self.above_idle_per_inference_j
        rest = f", {1e3 * above:.3g} mJ of it above rest" if above is not None else f" ({self.why})"
        return f"{1e3 * self.per_inference_j:.3g} mJ by {self.sensor}{rest}"

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is unknown is null."""
        return asdict(self)


def without_sensor(sensor: str, source: str, why: str) -> Energy:
    """What a sensor that knows no energy says.

    Args:
        sensor: Its name.
        source: File or call.
        why: It does not know.
    """
    return Energy(
        sensor=sensor, source=source, joules=None, seconds=0.0, inferences=0, per_inference_j=None, idle_w=None,
        above_idle_per_inference_j=None, why=why,
    )  # fmt: skip


def per_inference(
    *,
    sensor: str,
    source: str,
    joules: float | None,
    seconds: float,
    inferences: int,
    idle_w: float | None,
    why: str = "",
) -> Energy:
    """Joules per inference, and how many of them are not the machine's rest.

    Args:
        sensor: Its name.
        source: File or call.
        joules: Over the whole measurement; None where unknown.
        seconds: How long it was.
        inferences: How many ran in it.
        idle_w: Power at rest; None where it was not measured.
        why: Why ``joules`` is unknown.

    Raises:
        UsageError: No inference, or no time.
    """
    if inferences < 1 or not seconds > 0:
        raise UsageError("energy per inference needs at least one inference and some time")
    reasons = [why] if why else []
    if idle_w is None and joules is not None:
        reasons.append("the power at rest was not measured")
    above = None if joules is None or idle_w is None else (joules - idle_w * seconds) / inferences
    return Energy(
        sensor=sensor,
        source=source,
        joules=joules,
        seconds=seconds,
        inferences=inferences,
        per_inference_j=None if joules is None else joules / inferences,
        idle_w=idle_w,
        above_idle_per_inference_j=above,
        why="; ".join(reasons),
    )
