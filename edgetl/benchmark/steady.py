"""Where the steady state begins in a series of times, instead of a warm-up of fixed length.

The rule is that of E. Barrett et al., "Virtual Machine Warmup Blows Hot and Cold" (OOPSLA 2017): the series is cut
where its level changes, levels that differ by less than matters count as one, and the steady state begins where the
level first appears that the series ends with. The cuts are those of optimal partitioning (B. Jackson et al., 2005;
PELT, R. Killick et al., 2012, finds the same ones) of medians of batches, with squared error and a penalty per cut. Two
changes make it robust for latencies: a batch's median stands for its calls, so that a single slow one is no level, and
what is farther from the middle than :data:`_FARTHEST` is brought there (P. Fearnhead and G. Rigaill, 2019). Only the
search for cuts sees those; no time is changed or left out.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import UsageError
from edgetl.numbers import counted

_FEWEST = 20
"""Calls below which nothing is said."""
_BATCH = 5
"""Calls per batch, as in MSER-5 (K. P. White, 1997); fewer in a short series, more in a long one."""
_MOST_BATCHES = 400
_SHORTEST = 2
"""Batches of a level, at least."""
_FARTHEST = 5.0
"""Standard deviations of the noise."""
_PENALTY = 4.0
"""Times log(batches), per cut: that of the Bayesian criterion is 2 (Y.-C. Yao, 1988), for noise that has no memory."""
_SAME = 0.02
"""Levels that differ by so much, relative, count as one."""
_FINEST = 1e-3
"""Noise is taken for at least so much, relative: a clock that ticks coarsely shows none."""


@dataclass(frozen=True, kw_only=True)
class Steady:
    """Where a series becomes steady."""

    outcome: Literal["steady", "never", "unknown"]
    """never: its level still changed in its second half; unknown: too few calls to tell."""
    start: int | None
    """Index of the first steady call; None unless there is a steady state."""
    samples: int
    """Calls of the series."""
    reason: str
    """Why there is no steady state, or why nothing is known; empty where there is one."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def steady_state(times_ns: NDArray[np.integer]) -> Steady:
    """Find where the steady state begins.

    Args:
        times_ns: (n,) in the order of the calls, positive.

    Raises:
        UsageError: A time is negative, or not in one row.
    """
    times = np.asarray(times_ns)
    if times.ndim != 1 or (times < 0).any():
        raise UsageError("a series of times is one row of numbers that are not negative")
    count = len(times)
    if count < _FEWEST:
        return _unsettled(
            "unknown", count, f"{counted(count, 'call is', 'calls are')} too few to tell; {_FEWEST} are needed"
        )
    size = max(min(_BATCH, count // 10), math.ceil(count / _MOST_BATCHES))
    medians = np.median(times[: count // size * size].reshape(-1, size), axis=1)
    logs = np.log(np.maximum(medians, 1.0))
    cuts = _cuts(_standardised(logs))
    levels = [float(np.median(part)) for part in np.split(logs, cuts[1:])]
    same = [abs(level - levels[-1]) <= math.log1p(_SAME) for level in levels]
    start = cuts[same.index(True)]
    if start > len(logs) / 2:
        change = math.expm1(levels[-1] - levels[0])
        return _unsettled(
            "never", count, f"the level still changed at call {start * size} of {count} ({change:+.1%} over all)"
        )
    return Steady(outcome="steady", start=start * size, samples=count, reason="")


def _unsettled(outcome: Literal["never", "unknown"], count: int, reason: str) -> Steady:
    return Steady(outcome=outcome, start=None, samples=count, reason=reason)


def _standardised(logs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distances from the median in standard deviations of the noise, at most :data:`_FARTHEST` away.

    The noise is the smaller one of two robust estimates: the spread around the median, which changes of level enlarge,
    and twice that of the differences of neighbours, which noise with a memory (correlation up to 3/4) makes small.
    """
    to_sigma = 1.4826
    middle = np.median(logs)
    around = to_sigma * float(np.median(np.abs(logs - middle)))
    steps = to_sigma * float(np.median(np.abs(np.diff(logs)))) / math.sqrt(2)
    noise = max(min(around, 2 * steps), _FINEST)
    return np.asarray(np.clip((logs - middle) / noise, -_FARTHEST, _FARTHEST))


def _cuts(values: NDArray[np.float64]) -> list[int]:
    """Where each level begins, the first at 0: the partition of least squared error plus penalty, by dynamic
    programming over all places for the last cut."""
    count = len(values)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    squares = np.concatenate([[0.0], np.cumsum(values**2)])
    penalty = _PENALTY * math.log(count)
    best = np.full(count + 1, np.inf)
    best[0] = -penalty
    last = np.zeros(count + 1, dtype=int)
    for end in range(_SHORTEST, count + 1):
        begins = np.arange(end - _SHORTEST + 1)
        error = squares[end] - squares[begins] - (sums[end] - sums[begins]) ** 2 / (end - begins)
        costs = best[begins] + error + penalty
        last[end] = int(np.argmin(costs))
        best[end] = costs[last[end]]
    cuts: list[int] = []
    end = count
    while end > 0:
        end = int(last[end])
        cuts.insert(0, end)
    return cuts
