"""Results that cannot be: what is refused instead of being reported."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise

from edgetl.benchmark.ceilings import Ceilings
from edgetl.benchmark.process import Check
from edgetl.benchmark.summary import PERCENTILES, Latency
from edgetl.numbers import apart

_TIMER = 3.0
"""A call shorter than so many times what timing nothing takes was not measured."""
_SLACK = 2.0
_FASTEST_CLOCK_HZ = 7e9
"""No processor runs faster."""
_CORE_PRODUCTS = {"int8": 1024, "bf16": 512, "fp16": 512, "fp32": 256, "fp64": 64}
"""Precision → multiply-adds per cycle of a core with tiles of 512 bits by 512 (Intel's AMX, ARM's SME, Apple's own): no
core of today has more."""


def most_multiply_adds(threads: int, measured: Ceilings | None = None) -> dict[str, float]:
    """Multiply-adds per second that no engine on the processor exceeds, by precision.

    Args:
        threads: That the engine has.
        measured: This machine's own ceilings. A processor whose clock rose meanwhile does more; twice as much is no
            clock's doing. Those that were measured while others used the machine say nothing.
    """
    found = {precision: threads * _FASTEST_CLOCK_HZ * number for precision, number in _CORE_PRODUCTS.items()}
    for precision, ceiling in (measured.products if measured and not measured.disturbed else {}).items():
        found[precision] = min(_SLACK * ceiling.multiply_adds_per_s, found.get(precision, math.inf))
    return found


def implausible(
    latency: Latency, check: Check, *, timer_ns: int, ceilings: Mapping[str, float] | None = None
) -> tuple[str, ...]:
    """Why a result cannot be true.

    Args:
        latency: Of one thing.
        check: What its process found out about it.
        timer_ns: What timing nothing takes.
        ceilings: Precision → multiply-adds per second that the machine cannot exceed; None: nothing is known of it, as
            of a GPU.

    Returns:
        Clauses; none for a plausible result.
    """
    found = []
    if latency.p50_ms * 1e6 < _TIMER * timer_ns:
        found.append(f"a call takes {latency.p50_ms * 1e6:.0f} ns, and timing nothing takes {timer_ns} ns")
    if not check.finite:
        found.append("its outputs are NaN or infinite, all of them")
    elif check.depends_on_input is False:
        found.append("its outputs are the same whatever it is fed")
    found += _disorder(latency)
    least_s = sum(
        number / ceilings[precision] for precision, number in check.multiply_adds.items() if precision in ceilings
    ) if ceilings else 0.0  # fmt: skip
    if latency.p50_ms < least_s * 1e3:
        total = sum(check.multiply_adds.values())
        takes, least = apart(latency.p50_ms, least_s * 1e3, 4)
        found.append(
            f"a call takes {takes} ms, and this machine needs at least {least} ms for"
            f" {total / 1e6:.1f} million multiply-adds"
        )
    return tuple(found)


def _disorder(latency: Latency) -> list[str]:
    """Percentiles that are not in order."""
    named = [(name, latency.percentile(name)) for name in PERCENTILES]
    known = [("least", latency.min_ms), *((name, value) for name, value in named if value is not None)]
    known.append(("greatest", latency.max_ms))
    return [
        f"its {first} ({texts[0]} ms) is above its {second} ({texts[1]} ms)"
        for (first, low), (second, high) in pairwise(known)
        if low > high and (texts := apart(low, high, 4))
    ]
