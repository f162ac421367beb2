"""Percentiles of all processes that there could be, from the few that were measured.

Where processes differ, a high percentile of all calls is that of the slow processes. A handful of them has likely not
shown the slowest that there are: their own percentile is too low, and the less they happen to differ, the lower it is
and the narrower an interval of resamples. So the spread of processes is taken for what it is, an estimate of a variance
from a handful of values. Logarithms of times are what their process has, normal between processes, plus what the call
has, as it was seen within them (a random-effects model; only what processes differ by is taken for normal). The
percentile of the mixture is worked out for the variance that was seen, and for the least and the largest that it is
compatible with (chi-squared). The distances of these and those of the resampled percentile are added as squares: the
method of variance estimates recovery (Zou and Donner 2008, Statistics in Medicine 27, 1693-1702; tolerance bounds of
such models by Liao, Lin and Iyer 2005, Technometrics 47, 323-335, are for calls that are normal, too).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edgetl.distributions import chi_square_quantile

_OFFSETS = np.linspace(-4.5, 4.5, 91)
_SHARES = np.exp(-np.square(_OFFSETS) / 2.0) / np.exp(-np.square(_OFFSETS) / 2.0).sum()
"""The normal distribution on a grid: of so many standard deviations, its share."""
_HALVINGS = 60


def mixture_interval(
    times_ns: NDArray[np.integer],
    process: NDArray[np.integer],
    share: float,
    *,
    width: float,
    confidence: float,
) -> tuple[float, float]:
    """Where a percentile of all processes is, in the unit of the times.

    Args:
        times_ns: (n,) of the calls.
        process: (n,) which process made each; two of them or more.
        share: Of the percentile, between 0 and 1.
        width: Half the width of the interval that resampling gives, on the logarithm.
        confidence: Of the two-sided interval. Both limits of the variance hold with this confidence, each by itself;
            with half of the doubt, as a limit alone would need it, the interval held in 97 to 98 of 100 cases.

    Returns:
        Both ends; infinite where no number is large enough.
    """
    logs = np.log(np.maximum(times_ns, 1).astype(np.float64))
    _, members = np.unique(process, return_inverse=True)
    places = np.array([np.median(logs[members == one]) for one in range(int(members.max()) + 1)])
    calls, freedom = np.sort(logs - places[members]), len(places) - 1
    variance = float(places.var(ddof=1))
    least, seen, most = (
        _percentile(calls, math.sqrt(variance * ratio), share)
        for ratio in (
            freedom / chi_square_quantile(confidence, freedom),
            1.0,
            freedom / chi_square_quantile(1.0 - confidence, freedom),
        )
    )
    middle = float(places.mean()) + seen
    with np.errstate(over="ignore"):
        # Of a lower percentile, or of few calls, a larger variance may be the smaller one's side.
        down, up = max(seen - least, seen - most, 0.0), max(most - seen, least - seen, 0.0)
        ends = np.exp([middle - math.hypot(width, down), middle + math.hypot(width, up)])
    return float(ends[0]), float(ends[1])


def _percentile(calls: NDArray[np.float64], spread: float, share: float) -> float:
    """Of calls, sorted, to each of which a normal number of a standard deviation is added."""
    offsets = spread * _OFFSETS
    low, high = float(calls[0] + offsets[0]), float(calls[-1] + offsets[-1])
    for _ in range(_HALVINGS):
        middle = (low + high) / 2.0
        below = float(_SHARES @ np.searchsorted(calls, middle - offsets, side="right")) / len(calls)
        low, high = (middle, high) if below < share - 1e-12 else (low, middle)
    return high
