"""Conditions for people: each with its value in words, where it was read and how often, or why it is unknown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_LOADS = {
    "own": "processors used by the measurement",
    "others": "processors used by others",
    "idle": "processors idle",
    "stolen": "processors taken by the hypervisor",
}
_TWO = 2
"""Readings of a counter that tell what it counted."""
_TOLD = {True: "yes", False: "no"}
_SHORT = {
    "governor": re.compile(r"cpu\.governor(\[.*\])?"),
    "clock": re.compile(r"cpu\.frequency"),
    "temperature": re.compile(r"temperature\.(?!.*\.passive$).*"),
    "throttling": re.compile(r"throttle\..*"),
    "power mode": re.compile(r"jetson\.power_mode"),
}
"""What a line in a terminal tells → the names of its conditions. Limits, as the temperature from which on a zone slows
the machine down, are none of them."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """One condition."""

    name: str
    value: str | None
    """With its unit; None where it is unknown."""
    source: str
    """The file or the call that was read."""
    rate_hz: float | None = None
    """Readings per second; None of what was read once."""
    why: str = ""
    """Why it is unknown; empty where it is not."""


def told(conditions: Mapping[str, Any]) -> tuple[Told, ...]:
    """Everything that was read, in the order: who used the processors, facts, series.

    Args:
        conditions: Of :meth:`edgetl.benchmark.conditions.Conditions.to_json`.
    """
    load = [
        Told(
            name=words,
            value=None if (share := conditions["load"].get(name)) is None else f"{share:.1%}",
            source="/proc/stat, /proc/PID/stat",
            why="" if share is not None else "the kernel does not tell whose time it was",
        )
        for name, words in _LOADS.items()
    ]
    facts = [
        Told(
            name=one["name"],
            value=None if one["value"] is None else _with_unit(one["value"], one.get("unit", "")),
            source=one["source"],
            why=one.get("why", ""),
        )
        for one in conditions["facts"]
    ]
    return (*load, *facts, *(_series(one) for one in conditions["series"]))


def line(conditions: Mapping[str, Any]) -> str:
    """The conditions that most often explain a latency, in a line; what is not known is called unknown."""
    found: dict[str, list[str]] = {words: [] for words in _SHORT}
    for one in told(conditions):
        for words, names in _SHORT.items():
            if one.value is not None and names.fullmatch(one.name):
                found[words].append(one.value)
    others = next(one for one in told(conditions) if one.name == _LOADS["others"])
    parts = [f"others used {others.value or 'an unknown share'} of the processors"]
    parts += [f"{words} {' and '.join(dict.fromkeys(values)) or 'unknown'}" for words, values in found.items()]
    return "; ".join(parts)


def _series(one: Mapping[str, Any]) -> Told:
    value, unit = None, one["unit"]
    if "median" in one:
        plain = unit if unit == "share" else ""  # a share is told in percent, which is no unit to leave out
        low, high = _with_unit(one["min"], plain), _with_unit(one["max"], plain)
        value = _with_unit(one["median"], unit) if low == high else f"{low} to {_with_unit(one['max'], unit)}"
    elif one.get("increase") is not None:
        value = f"{_with_unit(one['increase'], unit)} during the measurement"
    few = "there were too few readings" if one["readings"] - one["unknown"] < _TWO else "the counter went back"
    why = "" if value is not None else one.get("why") or few
    return Told(name=one["name"], value=value, source=one["source"], rate_hz=one["rate_hz"], why=why)


def _with_unit(value: float | str | bool, unit: str) -> str:
    if isinstance(value, bool):
        return _TOLD[value]
    if isinstance(value, str):
        return value
    if unit == "share":
        return f"{value:.0%}"
    return f"{value:,.4g}" + (f" {unit}" if unit and unit != "count" else "")
