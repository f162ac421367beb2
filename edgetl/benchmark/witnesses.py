"""What the sensors of the machine say against a measurement: load of others, throttling, clocks that changed."""

from __future__ import annotations

import numpy as np

from edgetl.benchmark.conditions import Conditions, Series
from edgetl.benchmark.reasons import Limits, Reason
from edgetl.benchmark.sensors.nvidia import REASONS
from edgetl.numbers import counted

_CLOCKS = ("cpu.frequency", "jetson.frequency.gpu", "jetson.frequency.gr3d", "jetson.frequency.cpu")
_FEWEST_CLOCKS = 6
"""Readings of a clock with fewer than which nothing is said about it."""
_CAPPED_SHARE = 0.2
"""Share of readings with the power cap active from which on it is a reason; a GPU touches it now and then."""
_HELD_SHARE = 0.01
"""Share of the time in which the control group's quota held the process back from which on it is a reason."""


def load(conditions: Conditions, limits: Limits, unknown: list[str]) -> list[Reason]:
    """Other processes and the hypervisor.

    Args:
        conditions: What the sensors said.
        limits: ``others`` and ``stolen``.
        unknown: Grows by what could not be asked.
    """
    shares = conditions.load()
    found = []
    if shares.others is None:
        unknown.append("load of other processes")
    elif shares.others >= limits.others:
        found.append(Reason(
            kind="neighbour",
            text=f"other processes used {shares.others:.0%} of the processors that the measurement may use",
            figures={"others": shares.others},
            advice="stop them, or pin the measurement to processors that they do not use",
        ))  # fmt: skip
    if shares.stolen is None:
        unknown.append("time stolen by the hypervisor")
    elif shares.stolen >= limits.stolen:
        found.append(Reason(
            kind="neighbour",
            text=f"the hypervisor gave {shares.stolen:.0%} of the processors' time to other machines",
            figures={"stolen": shares.stolen},
            advice="measure on a machine of its own; nothing inside this one can change it",
        ))  # fmt: skip
    return found


def throttling(conditions: Conditions, unknown: list[str]) -> list[Reason]:
    """Processors and GPUs that slowed themselves down, and control groups that held the process back.

    Args:
        conditions: What the sensors said.
        unknown: Grows by what could not be asked.
    """
    told = [one for one in conditions.series if one.known and _tells_throttling(one.name)]
    if not told:
        unknown.append("throttling")
    found = [reason for one in told if (reason := _throttled(one)) is not None]
    found += _too_warm(conditions)
    held = conditions.get("cgroup.throttled")
    if held is not None and len(held.times_ns) > 1:
        seconds = (int(held.times_ns[-1]) - int(held.times_ns[0])) / 1e9
        lost = (held.increase() or 0.0) / seconds
        if lost >= _HELD_SHARE:
            found.append(Reason(
                kind="throttling",
                text=f"the control group's quota of processor time held its processes back for {lost:.0%} of the time",
                figures={"held_back": lost},
                advice="raise the quota of the container (cpu.max, docker --cpus), or measure outside of it",
            ))  # fmt: skip
    return found


def _tells_throttling(name: str) -> bool:
    return name.startswith(("throttle.", "cooling.")) or ".throttle." in name


def _throttled(series: Series) -> Reason | None:
    _, values = series.finite()
    cooler = "cool the machine, give it more power, or lock its clocks to what it can hold"
    if series.kind == "counter":
        times = series.increase()
        if not times:
            return None
        text = (
            f"the processor throttled itself {counted(round(times), 'time')} ({series.name.removeprefix('throttle.')})"
        )
        return Reason(kind="throttling", text=text, figures={"times": times}, advice=cooler)
    share = float((values > 0).mean())
    if series.name.startswith("cooling."):
        if share == 0:
            return None
        text = f"the kernel held back {series.name.removeprefix('cooling.')} in {share:.0%} of the readings"
        return Reason(kind="throttling", text=text, figures={"share": share}, advice=cooler)
    cause = series.name.rpartition(".")[2]
    if cause not in REASONS or cause == "sync_boost" or share == 0 or (cause == "power_cap" and share < _CAPPED_SHARE):
        return None
    gpu = series.name.partition(".")[0]
    text = f"the driver slowed {gpu} down in {share:.0%} of the readings ({cause.replace('_', ' ')})"
    advice = "lock the clock below it (nvidia-smi --lock-gpu-clocks)" if cause == "power_cap" else cooler
    return Reason(kind="throttling", text=text, figures={"share": share}, advice=advice)


def _too_warm(conditions: Conditions) -> list[Reason]:
    found = []
    for limit in conditions.facts:
        if not limit.name.endswith(".passive") or not isinstance(limit.value, float):
            continue
        zone = conditions.get(limit.name.removesuffix(".passive"))
        if zone is not None and (highest := float(zone.finite()[1].max())) >= limit.value:
            found.append(Reason(
                kind="throttling",
                text=f"{zone.name} reached {highest:.0f} °C: the kernel slows the machine down at {limit.value:.0f} °C",
                figures={"celsius": highest, "limit_celsius": limit.value},
                advice="cool the machine, or measure at a clock that it can hold",
            ))  # fmt: skip
    return found


def frequency(conditions: Conditions, measured_ns: tuple[int, int], limits: Limits, unknown: list[str]) -> list[Reason]:
    """Clocks that were lower at the end of a measurement than at its beginning, or higher.

    Args:
        conditions: What the sensors said.
        measured_ns: Start of the first call and end of the last one: what was read outside is at rest.
        limits: ``clocks``.
        unknown: Grows by what could not be asked.
    """
    found, asked = [], False
    for one in conditions.series:
        if one.name not in _CLOCKS and not one.name.endswith(".clock.sm"):
            continue
        times, values = one.finite()
        values = values[(times >= measured_ns[0]) & (times <= measured_ns[1])]
        if len(values) < _FEWEST_CLOCKS:
            continue
        asked = True
        third = len(values) // 3
        first, last = float(np.median(values[:third])), float(np.median(values[-third:]))
        if first > 0 and abs(last / first - 1) >= limits.clocks:
            found.append(Reason(
                kind="frequency",
                text=f"{one.name} went from {first:.0f} to {last:.0f} {one.unit} between the first and the last third",
                figures={"first": first, "last": last},
                advice="lock the clocks (cpupower frequency-set, nvidia-smi --lock-gpu-clocks, jetson_clocks)",
            ))  # fmt: skip
    if not asked:
        unknown.append("clock frequencies")
    return found
