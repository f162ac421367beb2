"""Latency of several engines, measured side by side."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edgetl.errors import UsageError

_BLOCK = 10
"""Calls in a row per engine and round: long enough for its caches and threads to settle, short against drift."""

ENOUGH_FOR = {"p90": 64, "p99": 662}
"""Samples that back a percentile with confidence 0.99 (MLPerf LoadGen's early stopping)."""


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Latency of one engine, in milliseconds per call."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    min_ms: float
    max_ms: float
    samples: int
    p99_backed: bool
    """Whether there were samples enough to speak of a 99th percentile."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def measure(
    calls: Mapping[str, Callable[[], object]],
    *,
    samples: int,
    warmup: int,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, list[float]]:
    """Time calls, interleaved, so that a machine that slows down slows all of them.

    Rounds of blocks: every round visits all engines in a new random order, with a few calls each; the first call of
    a block is not counted, because it pays for what the engine before it left in caches and threads.

    Args:
        calls: Name → one synchronous inference.
        samples: Counted calls per name.
        warmup: Calls per name before the first round.
        seed: Of the order.
        progress: Called with the counted calls so far, and their final number.

    Returns:
        Name → milliseconds of each counted call, in the order in which they were made.
    """
    if not calls or samples < 1:
        raise UsageError("a measurement needs an engine and at least one sample")
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(warmup):
            call()
    order = random.Random(seed)
    names = list(calls)
    collecting = gc.isenabled()
    gc.disable()  # a collection in the middle of a call is Python's latency, not the engine's
    try:
        while len(times[names[0]]) < samples:
            order.shuffle(names)
            for name in names:
                call, found = calls[name], times[name]
                call()
                for _ in range(min(_BLOCK, samples - len(found))):
                    began = time.perf_counter_ns()
                    call()
                    found.append((time.perf_counter_ns() - began) / 1e6)
            if progress:
                progress(sum(map(len, times.values())), samples * len(calls))
            gc.collect(0)
    finally:
        if collecting:
            gc.enable()
    return times


def summarise(times_ms: Sequence[float]) -> Latency:
    """Percentiles of measured times.

    A percentile is the smallest measured time that at least that share of calls did not exceed (nearest rank).
    """
    if not times_ms:
        raise UsageError("there is no measured time")
    ordered = sorted(times_ms)

    def percentile(percent: int) -> float:
        return ordered[max(0, -(-percent * len(ordered) // 100) - 1)]

    return Latency(
        p50_ms=percentile(50),
        p90_ms=percentile(90),
        p99_ms=percentile(99),
        mean_ms=sum(ordered) / len(ordered),
        min_ms=ordered[0],
        max_ms=ordered[-1],
        samples=len(ordered),
        p99_backed=len(ordered) >= ENOUGH_FOR["p99"],
    )
