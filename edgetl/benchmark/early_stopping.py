"""How many queries a statement about a tail latency needs: MLPerf LoadGen's early stopping.

That a share ``p`` of all queries keeps a bound is shown at confidence ``c`` by ``n`` queries of which ``t`` did not,
where P(X ≤ t) < 1 - c for X binomial (n, 1 - p): were the share smaller, so few would be improbable (MLPerf Inference
Rules, "Early stopping criterion"; ``loadgen/early_stopping.cc``). With t = 1 that takes 64 queries for p90, 662 for p99
and 6,636 for p99.9. It takes queries for independent of each other, which those that wait in one queue are not quite.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import UsageError

CONFIDENCE = 0.99
"""LoadGen's."""


def most_over(queries: int, percentile: float, confidence: float = CONFIDENCE) -> int | None:
    """How many of some queries may be over a bound that still counts as kept.

    Args:
        queries: That were answered, at least 0.
        percentile: Share that has to keep the bound, between 0 and 1.
        confidence: Of the statement.

    Returns:
        The largest t; None where the queries are too few even for t = 0.

    Raises:
        UsageError: The percentile is not between 0 and 1, or the confidence not between 0.5 and 1.
    """
    _check(percentile, confidence)
    if queries < 1 or queries * math.log(percentile) >= math.log(1.0 - confidence):
        return None
    # P(X = k + 1) / P(X = k) = (n - k) / (k + 1) · (1 - p) / p; the sum passes 1 - c before the mean is reached, or
    # within one of it (the median of a binomial).
    last = min(queries, math.ceil(queries * (1.0 - percentile)) + 1)
    k = np.arange(last, dtype=np.float64)
    steps = np.log(queries - k) - np.log(k + 1.0) + math.log1p(-percentile) - math.log(percentile)
    logs = queries * math.log(percentile) + np.concatenate([[0.0], np.cumsum(steps)])
    return int(np.searchsorted(np.cumsum(np.exp(logs)), 1.0 - confidence, side="left")) - 1


def queries_needed(percentile: float, over: int = 1, confidence: float = CONFIDENCE) -> int:
    """The fewest queries of which so many may be over a bound.

    Args:
        percentile: Share that has to keep the bound, between 0 and 1.
        over: Queries over it; 1 is what an estimate of the percentile needs.
        confidence: Of the statement.

    Raises:
        UsageError: The percentile is not between 0 and 1, the confidence not between 0.5 and 1, or ``over`` negative.
    """
    _check(percentile, confidence)
    if over < 0:
        raise UsageError(f"{over} queries cannot be over a bound")

    def enough(queries: int) -> bool:
        found = most_over(queries, percentile, confidence)
        return found is not None and found >= over

    low, high = over, over + 1  # so few queries as those that are over it never suffice
    while not enough(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def estimate(latencies: NDArray[np.int64], percentile: float, confidence: float = CONFIDENCE) -> int | None:
    """An upper estimate of a percentile that holds at the confidence, however few the queries.

    Args:
        latencies: Of all queries, in any order and unit, shape (n,).
        percentile: Between 0 and 1.
        confidence: Of the statement.

    Returns:
        One of the latencies, at or above the measured percentile; None where there are too few.
    """
    over = most_over(len(latencies), percentile, confidence)
    if not over:
        return None
    return int(np.partition(latencies, len(latencies) - over)[len(latencies) - over])


def percentile_of(ordered: NDArray[np.int64], percentile: float) -> int:
    """The measured percentile as LoadGen takes it: the latency at the place ``floor(n · p)``, counted from 0.

    :func:`edgetl.benchmark.summary.nearest_rank` takes the place ``ceil(n · p) - 1``, the usual definition; here
    figures have to be LoadGen's, to the nanosecond. The two are one rank apart at most.

    Args:
        ordered: Latencies, sorted, shape (n,), n at least 1.
        percentile: At least 0, below 1.
    """
    return int(ordered[int(len(ordered) * percentile)])


def _check(percentile: float, confidence: float) -> None:
    if not (0.0 < percentile < 1.0 and 0.5 <= confidence < 1.0):
        raise UsageError(
            f"a percentile is a share between 0 and 1, and a confidence one from 0.5 on; given were {percentile} and"
            f" {confidence}",
            hint="0.99 is the 99th percentile",
        )
