"""What a scenario asks of an engine: how many queries, of which samples, and when."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import cycle
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from edgetl.benchmark.early_stopping import queries_needed
from edgetl.errors import UsageError

Scenario = Literal["single-stream", "multi-stream", "offline", "server", "fixed-rate"]
SCENARIOS: tuple[Scenario, ...] = get_args(Scenario)
OPEN_LOOP: tuple[Scenario, ...] = ("server", "fixed-rate")
"""Queries arrive when the schedule says so, whether or not the engine is ready for them."""

_PERCENTILES: dict[Scenario, float] = {"single-stream": 0.9}
_LEAST_QUERIES = 100
_MOST_QUERIES = 20_000_000
_DRAWN = 4096
_SEEDS = 2**63


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A scenario with its numbers; those that MLPerf LoadGen knows have its meaning and its defaults.

    Raises:
        UsageError: A number is missing, has no place in the scenario, or makes no sense.
    """

    scenario: Scenario
    samples: int = 1
    """Different samples that the caller has; queries name them by their index, from 0."""
    per_query: int = 1
    """Samples of one query: of multi-stream (MLPerf: 8); offline, of one call of the engine."""
    rate_per_s: float | None = None
    """Queries per second: the mean of server's Poisson arrivals, the frame rate of fixed-rate."""
    bound_ms: float | None = None
    """Latency that the percentile must keep: of server; of fixed-rate, where it is the period if not given."""
    percentile: float = 0.0
    """Which the scenario is about; 0: LoadGen's of the scenario (0.90 of single-stream, else 0.99)."""
    min_duration_s: float = 10.0
    """The run lasts at least so long, and ..."""
    min_queries: int = 0
    """... has at least so many queries; offline: samples. 0: LoadGen's 100, or 662 where p99 needs them."""
    max_duration_s: float = 600.0
    """The run ends after that, whatever it still lacks, and says so. A call that has begun is not interrupted."""
    seed: int = 0
    """Of arrivals and of the order of the samples."""

    def __post_init__(self) -> None:
        self._check_scenario()
        if not self.percentile:
            object.__setattr__(self, "percentile", _PERCENTILES.get(self.scenario, 0.99))
        if not 0.0 < self.percentile < 1.0:
            raise UsageError(f"a percentile is a share between 0 and 1, as 0.99; given was {self.percentile}")
        if not self.min_queries:
            needed = 1 if self.scenario == "offline" else queries_needed(self.percentile)
            if needed > _MOST_QUERIES:
                raise UsageError(
                    f"p{100 * self.percentile:.12g} takes {needed:,} queries to speak of; a run has at most"
                    f" {_MOST_QUERIES:,}",
                    hint="--percentile 99.9",
                )
            object.__setattr__(self, "min_queries", max(_LEAST_QUERIES, needed))
        if self.scenario == "fixed-rate" and self.bound_ms is None and self.rate_per_s:
            object.__setattr__(self, "bound_ms", 1e3 / self.rate_per_s)
        for name in ("samples", "per_query", "min_queries"):
            if getattr(self, name) < 1:
                raise UsageError(f"a scenario needs {name} of at least 1; given was {getattr(self, name)}")
        for name in ("min_duration_s", "max_duration_s"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise UsageError(f"{name} is a time of at least 0 seconds; given was {getattr(self, name)}")
        if not 0 <= self.seed < _SEEDS:
            raise UsageError(f"a seed is a whole number from 0 to 2^63 - 1; given was {self.seed}")
        if self.max_duration_s < self.min_duration_s or self.max_duration_s == 0:
            raise UsageError(f"a run of at least {self.min_duration_s} s cannot end after {self.max_duration_s} s")
        if self.bound_ms is not None and not 0.0 < self.bound_ms < math.inf:
            raise UsageError(f"a latency bound is a time above 0 ms; given was {self.bound_ms}")

    def _check_scenario(self) -> None:
        if self.scenario not in SCENARIOS:
            raise UsageError(f"there is no scenario '{self.scenario}'; there are {', '.join(SCENARIOS)}")
        if self.scenario in OPEN_LOOP:
            if self.rate_per_s is None or not 0.0 < self.rate_per_s < math.inf:
                given = "none was given" if self.rate_per_s is None else f"given was {self.rate_per_s:g}"
                raise UsageError(
                    f"{self.scenario} needs a rate above 0 queries per second; {given}",
                    hint="--rate 30",
                )
            if self.per_query != 1:
                raise UsageError(f"queries of {self.scenario} have one sample; given were {self.per_query}")
        elif self.rate_per_s is not None:
            raise UsageError(
                f"{self.scenario} has no rate: its next query begins when the one before has ended",
                hint=f"--scenario {' or '.join(OPEN_LOOP)}",
            )
        if self.scenario == "server" and self.bound_ms is None:
            raise UsageError("server needs a latency bound", hint="--bound-ms 15")
        if self.scenario not in OPEN_LOOP and self.bound_ms is not None:
            raise UsageError(f"{self.scenario} has no latency bound", hint=f"--scenario {' or '.join(OPEN_LOOP)}")
        if self.scenario == "single-stream" and self.per_query != 1:
            raise UsageError(f"queries of single-stream have one sample; given were {self.per_query}")

    @property
    def bound_ns(self) -> int | None:
        """The bound in whole nanoseconds; None where there is none."""
        return None if self.bound_ms is None else round(self.bound_ms * 1e6)

    @property
    def least_s(self) -> float:
        """Seconds that the run takes at least: its duration, or until the last of its queries has come."""
        return max(self.min_duration_s, (self.min_queries - 1) / self.rate_per_s if self.rate_per_s else 0.0)

    def to_json(self) -> dict[str, Any]:
        """Plain values, without those that the scenario does not have."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def arrivals(plan: Plan) -> NDArray[np.int64]:
    """When the queries of an open-loop scenario arrive.

    The first at 0; as LoadGen does, they go on until one arrives at or after ``min_duration_s`` and there are
    ``min_queries``. Gaps of server are exponential (a Poisson process), drawn from the seed and scaled by the rate:
    the same seed gives the same pattern at every rate.

    Returns:
        Nanoseconds since the start, shape (n,), never falling.

    Raises:
        UsageError: The scenario has no arrivals, or there would be more than memory should hold.
    """
    if plan.rate_per_s is None:
        raise UsageError(f"{plan.scenario} has no arrivals of its own")
    expected = max(plan.min_duration_s * plan.rate_per_s, plan.min_queries)
    if expected > _MOST_QUERIES:
        raise UsageError(
            f"{plan.rate_per_s:g} queries per second for {plan.min_duration_s:g} s are {expected:,.0f} queries",
            hint=f"a lower rate or a shorter run: at most {_MOST_QUERIES:,} queries",
        )
    duration_ns = plan.min_duration_s * 1e9
    if plan.scenario == "fixed-rate":
        count = max(math.ceil(plan.min_duration_s * plan.rate_per_s) + 1, plan.min_queries)
        frames: NDArray[np.int64] = np.rint(np.arange(count) * (1e9 / plan.rate_per_s)).astype(np.int64)
        return frames
    generator = np.random.default_rng(plan.seed)
    drawn = math.ceil(expected + 6.0 * math.sqrt(expected))  # enough nearly always, else once more
    gaps = np.zeros(1)
    while gaps.sum() / plan.rate_per_s * 1e9 < duration_ns or len(gaps) < plan.min_queries:
        gaps = np.concatenate([gaps, generator.standard_exponential(drawn)])
    times = np.cumsum(gaps) * (1e9 / plan.rate_per_s)
    count = max(int(np.searchsorted(times, duration_ns, side="left")) + 1, plan.min_queries)
    return times[:count].astype(np.int64)


def queries(plan: Plan) -> Iterator[tuple[int, ...]]:
    """The samples of one query after the other, without end.

    As in LoadGen: drawn at random, each with the same probability; in multi-stream a query takes the samples that
    follow the drawn one, and offline they come in their order.
    """
    if plan.scenario == "offline":
        until_repeated = math.lcm(plan.per_query, plan.samples) // plan.per_query
        firsts = np.arange(min(until_repeated, _DRAWN)) * plan.per_query
    else:
        firsts = np.random.default_rng([plan.seed, 1]).integers(0, plan.samples, size=_DRAWN)
    drawn = [tuple(int(first + more) % plan.samples for more in range(plan.per_query)) for first in firsts]
    return cycle(drawn)
