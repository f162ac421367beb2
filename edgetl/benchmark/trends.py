"""Steps and drifts in a series that is correlated with itself: the statistics behind "this measurement is unstable".

Where a step or a line lies is decided by ranks and medians, so that a few extreme values decide nothing. How certain it
is counts how many *independent* values the series is worth: blocks of a measurement resemble their neighbours, and a
test that takes them for independent finds steps in plain noise.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]

_MOST_CORRELATED = 0.97

STEP_BIAS = (3.0, 12.0)
"""Of the autocorrelation after the best step is taken out; found by simulation of AR(1) noise, 20 to 150 values."""
LINE_BIAS = (2.0, 4.0)
"""After a line is taken out; to first order (Marriott and Pope 1954 have (1, 3) for a mean)."""

_BETTER_FIT = 0.8
"""Where two medians leave less than this share of the misfit that the place by ranks leaves, the step lies there."""

_EFFICIENCY = 1.05
"""Standard error of the Theil-Sen slope against that of least squares, in normal noise."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """The best place to cut a series into two levels."""

    index: int
    """How many values lie before the step."""
    size: float
    """Median after it against median before it, relative: 0.1 is 10% more."""
    p: float
    """Probability of a cut as good in a series without a step."""
    misfit: float
    """Mean absolute distance of the values from the two medians."""


@dataclass(frozen=True, kw_only=True)
class Drift:
    """The straight line through a series."""

    size: float
    """Change from its first to its last value, relative to the median."""
    p: float
    """Probability of a trend as clear in a series without one."""
    misfit: float
    """Mean absolute distance of the values from the line."""


def median(values: Floats) -> float:
    """Median of a few values: NumPy's own checks take longer than the work. Shape (n,), n ≥ 1."""
    low, high = (len(values) - 1) // 2, len(values) // 2
    parted = np.partition(values, (low, high))
    return float(parted[low] + parted[high]) / 2


@functools.lru_cache(maxsize=64)
def _pairs(count: int) -> tuple[Ints, Ints]:
    first, second = np.triu_indices(count, 1)
    return first, second


def ranks(values: Floats) -> Floats:
    """Ranks from 1; equal values share the mean of theirs. Shape (n,) to (n,)."""
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts + 1 + last) / 2.0)[where]


def autocorrelation(residuals: Floats, bias: tuple[float, float]) -> float:
    """Correlation of residuals with themselves one value later, in [0, 0.97].

    The larger of two estimates: the usual one, and that by the variances of first and second differences, which a
    level that moved hardly touches: Var(x[t+2] - x[t]) / Var(x[t+1] - x[t]) = 1 + r.

    Args:
        residuals: Shape (n,), what is left after a step or a line was taken out.
        bias: (a, b): the estimate lies about (a + b r)/n too low because a step or a line was fitted first.
    """
    count = len(residuals)
    centred = residuals - residuals.mean()
    whole = float(centred @ centred)
    if count < 4 or whole <= 0:
        return 0.0
    usual = float(centred[1:] @ centred[:-1]) / whole
    one, two = np.diff(residuals), residuals[2:] - residuals[:-2]
    first = float(one @ one) / len(one)
    found = max(usual, float(two @ two) / len(two) / first - 1 if first > 0 else 1.0)
    return float(np.clip(found + (bias[0] + bias[1] * max(found, 0.0)) / count, 0.0, _MOST_CORRELATED))


def inflation(residuals: Floats, bias: tuple[float, float]) -> float:
    """How much more the mean of a series varies than that of independent values: (1 + r)/(1 - r), at least 1."""
    r = autocorrelation(residuals, bias)
    return (1 + r) / (1 - r)


def kolmogorov(distance: float) -> float:
    """P(sup |B| > distance) of a Brownian bridge B (Kolmogorov 1933), to 1e-12."""
    if distance < 0.2:
        return 1.0
    terms = ((-1) ** (k - 1) * math.exp(-2 * (k * distance) ** 2) for k in range(1, 30))
    return min(1.0, max(0.0, 2 * math.fsum(terms)))


def _noise(residuals: Floats) -> Floats:
    """Residuals without their extremes: cut at four robust standard deviations. Shape (n,) to (n,)."""
    limit = 4 * 1.4826 * median(np.abs(residuals))
    return np.clip(residuals, -limit, limit)


def step(values: Floats) -> Step:
    """Find the likeliest step, where the cumulated sum of centred ranks is extreme (Pettitt 1979), and test it.

    The cumulated sum of the centred values is, without a step, a Brownian bridge once it is divided by √(n · long-run
    variance). That variance is taken after the step is removed, so that a step does not hide itself. The outermost
    tenths are left out: a level of few values is no level.

    Args:
        values: Shape (n,), n ≥ 4, all positive, in order of time.
    """
    count = len(values)
    index = _place(values)
    level = _levels(values, index)
    noise = _noise(values - level)
    cleaned = level + noise
    height = abs(float(cleaned[:index].sum() - index * cleaned.mean()))
    variance = float(noise @ noise) / max(count - 2, 1) * inflation(noise, STEP_BIAS)
    exact = 0.0 if height > 0 else 1.0
    p = kolmogorov(height / math.sqrt(count * variance)) if variance > 0 else exact
    return Step(index=index, size=float(level[-1] / level[0]) - 1, p=p, misfit=_misfit(values, index))


def _place(values: Floats) -> int:
    """Where the likeliest step of a series is.

    Ranks lose it where few values lie on one side: any large one among the many on the other side counts as much as
    the step itself. There two medians fit far better at another place. In noise they fit hardly better anywhere else,
    so that this finds no more steps where there are none.
    """
    count = len(values)
    sums = np.cumsum(ranks(values) - (count + 1) / 2)[:-1]
    edge = max(2, count // 10)
    by_rank = int(np.argmax(np.abs(sums[edge - 1 : count - edge]))) + edge
    fit, by_fit = min((_misfit(values, cut), cut) for cut in range(edge, count - edge + 1))
    return by_fit if fit < _BETTER_FIT * _misfit(values, by_rank) else by_rank


def _levels(values: Floats, index: int) -> Floats:
    """The median of what lies before a cut, then of what lies after it. Shape (n,)."""
    return np.where(np.arange(len(values)) < index, median(values[:index]), median(values[index:]))


def _misfit(values: Floats, index: int) -> float:
    return float(np.abs(values - _levels(values, index)).mean())


def slope(at: Floats, values: Floats) -> float:
    """The median of the slopes between all pairs (Theil 1950, Sen 1968).

    Args:
        at: Shape (n,), moments, strictly increasing.
        values: Shape (n,).
    """
    first, second = _pairs(len(values))
    return median((values[second] - values[first]) / (at[second] - at[first]))


def drift(at: Floats, values: Floats, groups: Ints | None = None) -> Drift:
    """Find a trend: the Theil-Sen line against its standard error.

    The error is that of a line through noise which is correlated with itself, estimated from what the line leaves over.
    With groups there is a line in each; their slopes are averaged by how much each group can tell, so that differences
    between groups are no trend.

    Args:
        at: Shape (n,), moments, strictly increasing.
        values: Shape (n,), all positive.
        groups: Shape (n,), a number per value; one group without it. Groups of fewer than 4 values are left out.

    Returns:
        With groups, the size is the median over groups of the change within one.
    """
    centre = median(values)
    groups = np.zeros(len(values), np.int64) if groups is None else groups
    slopes: list[float] = []
    weights: list[float] = []
    sizes: list[float] = []
    residuals: list[Floats] = []
    for group in np.unique(groups):
        inside = groups == group
        x, y = at[inside], values[inside]
        if len(y) < 4:
            continue
        slopes.append(slope(x, y))
        weights.append(float(np.square(x - x.mean()).sum()))
        sizes.append(slopes[-1] * float(x[-1] - x[0]) / centre)
        left = y - slopes[-1] * (x - x[0])
        residuals.append(left - median(left))
    if not sizes:
        return Drift(size=0.0, p=1.0, misfit=math.inf)
    left = np.concatenate(residuals)
    noise = _noise(left)
    variance = float(noise @ noise) / max(len(left) - 2 * len(sizes), 1) * inflation(noise, LINE_BIAS)
    common = abs(float(np.average(slopes, weights=weights)))
    error = _EFFICIENCY * math.sqrt(variance / sum(weights))
    exact = 0.0 if common > 0 else 1.0
    p = math.erfc(common / error / math.sqrt(2)) if error > 0 else exact
    return Drift(size=median(np.array(sizes)), p=p, misfit=float(np.abs(left).mean()))


def group_medians(groups: Ints, values: Floats, count: int) -> Floats:
    """Median of each group.

    Args:
        groups: Shape (n,), numbers in [0, count); every group has a value.
        values: Shape (n,).
        count: How many groups there are.

    Returns:
        Shape (count,).
    """
    order = np.lexsort((values, groups))
    sizes = np.bincount(groups, minlength=count)
    starts = np.cumsum(sizes) - sizes
    ordered = values[order]
    return np.asarray((ordered[starts + (sizes - 1) // 2] + ordered[starts + sizes // 2]) / 2, np.float64)
