"""A reason to distrust a measurement, and the limits from where on something is one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["step", "drift", "processes", "stall", "neighbour", "throttling", "frequency", "few-samples"]
OF_THE_MACHINE: frozenset[Kind] = frozenset({"neighbour", "throttling", "frequency"})
"""Kinds of what the machine did meanwhile; the others are found in the times of what was measured."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """From where on something is a reason. Shares are of 1."""

    clocks: float = 0.05
    """Share by which a clock may differ between the first and the last third."""
    relevant: float = 0.05
    """The smallest step or drift of the latency that matters."""
    alpha: float = 0.003
    """Probability with which each of the three tests of trend may find something where there is nothing."""
    lost: float = 0.10
    """Share of the measured time that calls of more than twice the median may take beyond the median."""
    waiting: float = 0.05
    """Share of its runnable time that the timed process may wait for a processor."""
    others: float = 0.20
    """Share of the usable processors' time that other processes may take."""
    stolen: float = 0.05
    """Share of the usable processors' time that the hypervisor may take."""
    stall_ms: float = 100.0
    """A single call that takes this much longer than the median is a stall."""
    blocks: int = 12
    """With fewer blocks than this nothing can be said."""
    times: int = 64
    """With fewer calls than this nothing can be said."""


@dataclass(frozen=True, kw_only=True)
class Reason:
    """One reason why a measurement is unstable."""

    kind: Kind
    text: str
    """What was seen, in a sentence."""
    figures: Mapping[str, float]
    """The numbers in it, by name."""
    advice: str
    """What to do."""
