"""The machine of a benchmark, as the report shows it: its conditions, what it can do at most, how near engines come."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Something that was read about the machine around or during the benchmark."""

    name: str
    """As in bench.json: "cpu.governor"."""
    value: str | None
    """In words, with its unit; None where it is unknown."""
    source: str
    """The file or the call that was read."""
    rate_hz: float | None = None
    """Readings per second; None of what was read once."""
    why: str = ""
    """Why it is unknown; empty where it is not."""


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """What the machine of the benchmark can do at most, measured."""

    device: str
    """"cpu" or "cuda"."""
    products: tuple[tuple[str, float, str], ...]
    """Precision, multiply-adds per second, and what reached them."""
    bandwidth: tuple[tuple[int, float], ...]
    """Bytes that are gone through again and again, ascending, and bytes per second."""


@dataclass(frozen=True, kw_only=True)
class Energy:
    """What one sensor says about the energy of one call. Sensors may contain one another."""

    sensor: str
    per_call_mj: float | None
    """Millijoules, with what the machine takes at rest; None where the sensor does not know."""
    above_rest_mj: float | None
    """What the call added; None where the power at rest is not known."""
    why: str = ""
    """Why a figure is not known."""


@dataclass(frozen=True, kw_only=True)
class RooflineLayer:
    """A node of an engine's own graph, beside what the machine needs for it at least."""

    name: str
    kind: str
    """Operator, in the engine's words."""
    precision: str
    multiply_adds: int
    bytes: int
    """Weights and activations, each read or written once."""
    time_ms: float | None
    """In a profile; None where the engine does not tell."""
    least_ms: float
    limit: str
    """What keeps it from being faster: a precision, or "memory"."""


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """How near one engine or baseline comes to what the machine could do."""

    name: str
    """:attr:`edgetl.report.model.Engine.name`, or that of a baseline."""
    least_ms: float | None
    """Of one call; None where it is not known."""
    share: float | None
    """Of the machine's ceiling that the median reached."""
    device: str = "cpu"
    """:attr:`Ceilings.device` that does most of its multiply-adds."""
    limits: tuple[tuple[str, float], ...] = ()
    """What limits, and its share of the least time, largest first."""
    layers: tuple[RooflineLayer, ...] = ()
    reason: str = ""
    """Why the least time is not known."""
