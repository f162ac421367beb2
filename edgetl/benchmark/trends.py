"""Steps and drifts in a series that is correlated with itself: the statistics behind "this measurement is unstable".

Everything works on ranks, so that a few extreme values decide nothing, and every significance counts how many
*independent* values the series is worth: blocks of a measurement resemble their neighbours, and a test that takes them
for independent finds steps in plain noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]

_MOST_CORRELATED = 0.9
"""A series that looks more correlated than this is one whose level moves: what is being tested for."""


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


def ranks(values: Floats) -> Floats:
    """Ranks from 1; equal values share the mean of theirs. Shape (n,) to (n,)."""
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts + 1 + last) / 2.0)[where]


def autocorrelation(values: Floats) -> float:
    """Correlation of a series with itself one value later, corrected for its bias in short series, in [0, 0.9].

    The bias of the estimate is about -(1 + 3ρ)/n (Marriott and Pope, Biometrika 41, 1954).
    """
    centred = values - values.mean()
    whole = float(centred @ centred)
    if len(values) < 3 or whole <= 0:
        return 0.0
    found = float(centred[1:] @ centred[:-1]) / whole
    return float(np.clip(found + (1 + 3 * found) / len(values), 0.0, _MOST_CORRELATED))


def inflation(values: Floats) -> float:
    """How much more the mean of a series varies than that of independent values: (1 + ρ)/(1 - ρ), ≥ 1."""
    rho = autocorrelation(values)
    return (1 + rho) / (1 - rho)


def kolmogorov(distance: float) -> float:
    """P(sup |B| > distance) of a Brownian bridge B (Kolmogorov 1933), to 1e-12."""
    if distance < 0.2:
        return 1.0
    terms = ((-1) ** (k - 1) * math.exp(-2 * (k * distance) ** 2) for k in range(1, 30))
    return min(1.0, max(0.0, 2 * math.fsum(terms)))


def step(values: Floats) -> Step:
    """Find the likeliest step: Pettitt's test (1979), with the long-run variance of what the step leaves over.

    The cumulated sum of centred ranks is, without a step, a Brownian bridge once it is divided by √(n · long-run
    variance). That variance is taken after the step is removed, so that a step does not hide itself.

    Args:
        values: Shape (n,), n ≥ 4, all positive, in order of time.
    """
    count = len(values)
    centred = ranks(values) - (count + 1) / 2
    sums = np.cumsum(centred)[:-1]
    edge = max(2, count // 20)
    index = int(np.argmax(np.abs(sums[edge - 1 : count - edge]))) + edge
    left = centred.copy()
    left[:index] -= centred[:index].mean()
    left[index:] -= centred[index:].mean()
    variance = float(left @ left) / max(count - 2, 1) * inflation(left)
    height = abs(float(sums[index - 1]))
    before, after = float(np.median(values[:index])), float(np.median(values[index:]))
    if variance <= 0:
        p = 0.0 if height > 0 else 1.0
    else:
        p = kolmogorov(height / math.sqrt(count * variance))
    misfit = float(np.abs(values[:index] - before).sum() + np.abs(values[index:] - after).sum()) / count
    return Step(index=index, size=after / before - 1, p=p, misfit=misfit)


def slope(at: Floats, values: Floats) -> tuple[float, float]:
    """The median of the slopes between all pairs (Theil 1950, Sen 1968), and Kendall's S.

    Args:
        at: Shape (n,), moments, strictly increasing.
        values: Shape (n,).

    Returns:
        The slope, and how many pairs rise less how many fall.
    """
    first, second = np.triu_indices(len(values), 1)
    rise = values[second] - values[first]
    return float(np.median(rise / (at[second] - at[first]))), float(np.sign(rise).sum())


def drift(at: Floats, values: Floats, groups: Ints | None = None) -> Drift:
    """Find a trend: Mann-Kendall's test with the Theil-Sen line.

    With groups it is the test of Hirsch and Slack (1984): one trend per group, the sums of all of them together, so that
    differences between groups are no trend. Var(S) is multiplied by how much the residuals are correlated (Hamed and
    Rao 1998, with a correlation of first order).

    Args:
        at: Shape (n,), moments, strictly increasing.
        values: Shape (n,), all positive.
        groups: Shape (n,), a number per value; one group without it. Groups of fewer than 4 values are left out.

    Returns:
        With groups, the size is the median over groups of the change within one.
    """
    total, variance = 0.0, 0.0
    sizes: list[float] = []
    residuals: list[Floats] = []
    centre = float(np.median(values))
    groups = np.zeros(len(values), np.int64) if groups is None else groups
    for group in np.unique(groups):
        inside = groups == group
        x, y = at[inside], values[inside]
        n = len(y)
        if n < 4:
            continue
        one, pairs = slope(x, y)
        total += pairs
        variance += n * (n - 1) * (2 * n + 5) / 18
        sizes.append(one * float(x[-1] - x[0]) / centre)
        line = one * (x - np.median(x))
        residuals.append(y - line - np.median(y - line))
    if not sizes:
        return Drift(size=0.0, p=1.0, misfit=math.inf)
    left = np.concatenate(residuals)
    z = max(0.0, abs(total) - 1) / math.sqrt(variance * inflation(ranks(left)))
    return Drift(size=float(np.median(sizes)), p=math.erfc(z / math.sqrt(2)), misfit=float(np.abs(left).mean()))


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
