"""Bounds of the drop of paired right and wrong answers that err no more often than they say.

``worse`` counts samples that only the reference gets right, ``better`` those that only the engine does, ``n`` all.
The drop is (worse - better) / n. Score bounds (Tango 1998) that are to err in 5% of all cases err in about 5%: of a few
samples now in 4%, now in 7%. The order in which they put what can be seen is kept here, and probabilities are worked
out: of an engine with some drop, how probable is it to see what has no higher a score bound, in the worst case that the
share of disagreements leaves open. The bound is the least drop of which that is no more than is allowed (Buehler 1957,
Confidence intervals for the product of two binomial parameters, JASA 52, 482-493; for paired answers Lloyd and Moldovan
2007, Exact one-sided confidence limits for the difference between two correlated proportions, Statistics in Medicine
26, 3369-3384), or the score bound where that is higher. One loss more never lowers it: what was as low before is still.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

_SHARES = 48
"""Shares of wins that are tried: the worst of them is within 1.5% of the worst of hundreds."""
_MOST_WINS = 100.0
"""Shares with more wins than this are not tried: there score bounds err by a twentieth more than is allowed at most."""
_AGREED = 0.02
"""Of the samples that a drop leaves, both get this part right or wrong at least. An engine that never agrees is none of
this model: to allow for it, as wins and losses are then even or odd together, would raise bounds by up to a sample."""
_SIGMAS = 7.0
"""Standard deviations from the mean beyond which nothing is counted: a chance of 1e-11."""
_NEAR = 1e-4
"""As a part of the bound: to this it is found."""
_COUNTLESS = 10**9
"""Of so many samples and more, what is needed is told to a ten-thousandth: no test set has them."""
_ROUNDING = 1.0 + 1e-9

Floats = NDArray[np.float64]


@lru_cache(maxsize=4096)
def upper_bound(worse: int, better: int, n: int, confidence: float) -> float:
    """Upper bound of the drop: Tango's score bound, raised where that would err more often than it says.

    Args:
        worse: Pairs in which only the first is right.
        better: Pairs in which only the second is right.
        n: All pairs.
        confidence: One-sided, as 0.95.

    Returns:
        The largest difference (first minus second) that the data do not reject, between -1 and 1. It is no lower for
        another loss, and no higher for another win.
    """
    low = score_bound(worse, better, n, confidence)
    most = _no_higher(low, worse, better, n)

    def holds(drop: float) -> bool:
        return drop >= 1.0 or _worst_chance(drop, most, n) <= (1.0 - confidence) * _ROUNDING

    if holds(low):
        return low
    high, step = low, max(1e-3 * abs(low), 0.02 / n)
    while not holds(high):
        low, high, step = high, min(1.0, high + step), 2.0 * step
    return _least(holds, low, high)


def rules_out(drop: float, worse: int, better: int, n: int, confidence: float) -> bool:
    """Whether a drop, or a larger one, is improbable: :func:`upper_bound` is below it. Some ten times as fast.

    Args:
        drop: Above -1 and below 1.
        worse: Pairs in which only the first is right.
        better: Pairs in which only the second is right.
        n: All pairs.
        confidence: One-sided.
    """
    score = score_bound(worse, better, n, confidence)
    return (
        score < drop and _worst_chance(drop, _no_higher(score, worse, better, n), n) <= (1.0 - confidence) * _ROUNDING
    )


def score_bound(worse: int, better: int, n: int, confidence: float) -> float:
    """Upper bound of the drop by Tango's score interval; arguments and result as those of :func:`upper_bound`.

    Tango, T. (1998), Equivalence test and confidence interval for the difference in proportions for the paired-sample
    design, Statistics in Medicine 17, 891-908. It holds its level for few discordant pairs, where Wald's does not.
    """
    z = NormalDist().inv_cdf(confidence)
    low, high = (worse - better) / n, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if float(_score(middle, worse, better, n)) > -z:
            low = middle
        else:
            high = middle
    return high


def interval(worse: int, better: int, n: int, confidence: float) -> tuple[float, float]:
    """The two-sided interval of the drop: Tango's, which holds the drop about as often as it says.

    Exact ends would hold it more often, of few samples in 99% instead of 95%. It encloses the one-sided bounds of the
    same confidence all the same.
    """
    one_sided = (1.0 + confidence) / 2.0
    low, high = -score_bound(better, worse, n, one_sided), score_bound(worse, better, n, one_sided)
    return (
        min(low, -upper_bound(better, worse, n, confidence)),
        max(high, upper_bound(worse, better, n, confidence)),
    )


def least_bound(n: int, confidence: float) -> float:
    """The drop that n samples without a single difference do not rule out: :func:`upper_bound` of them."""
    return upper_bound(0, 0, n, confidence)


def samples_needed(max_drop: float, confidence: float) -> int:
    """How many samples show a drop below ``max_drop`` where engine and reference never disagree.

    The number whose :func:`least_bound` is not above it, while that of one less is.
    """
    if max_drop >= 1.0:
        return 0  # nothing drops further
    # What the score bound takes, z² / (n + z²), and the chance of no loss, (1 - max_drop)^n; a few more at times.
    z = NormalDist().inv_cdf(confidence)
    exact = math.log1p(-confidence) / math.log1p(-max_drop)
    found = max(1, math.ceil(z * z * (1.0 - max_drop) / max_drop - 1e-9), math.ceil(exact - 1e-9))
    low, high, step = found - 1, found, 1
    while high < _COUNTLESS and least_bound(high, confidence) > max_drop * _ROUNDING:
        low, high, step = high, high + step, 2 * step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if least_bound(middle, confidence) > max_drop * _ROUNDING else (low, middle)
    return high


def worst_chance(drop: float, worse: int, better: int, n: int, confidence: float) -> float:
    """How probable it is at most, if the drop is this, to see what has no higher a score bound than what was seen.

    Whatever the share of disagreements. It falls as the drop rises: losses take the place of samples both get right.

    Args:
        drop: No smaller than the score bound, and below 1.
        worse: Pairs in which only the first is right.
        better: Pairs in which only the second is right.
        n: All pairs.
        confidence: Of the score bounds, one-sided.

    Returns:
        A probability: at the least drop where it is 1 - confidence or less lies the bound.
    """
    return _worst_chance(drop, _no_higher(score_bound(worse, better, n, confidence), worse, better, n), n)


def _no_higher(score: float, worse: int, better: int, n: int) -> NDArray[np.int64]:
    """What has no higher a score bound than ``score``, which is that of ``worse`` and ``better``.

    Returns:
        Shape (wins,): for each number of wins, as far as they are probable, the most losses; -1: not even none.
    """
    # Score bounds are where the score is -z: they are no higher where, at this drop, it is no higher.
    clear = float(_score(score, worse, better, n)) + 1e-9
    wins = np.arange(_within(n, _most_shared(score, n) + max(-score, 0.0))[1] + 1)
    return _most_losses(score, wins, n, clear)


def _worst_chance(drop: float, most: NDArray[np.int64], n: int) -> float:
    more_losses, more_wins = max(drop, 0.0), max(-drop, 0.0)
    # Steps of about a standard deviation each, at both ends; the chances wave with the share, most where wins are few.
    whole = (1.0 - abs(drop)) / 2.0
    last = math.asin(math.sqrt(_most_shared(drop, n) / whole))
    shares = (whole * np.sin(last * np.linspace(0.0, 1.0, _SHARES) ** 1.4) ** 2).tolist()
    return max(_chance(share + more_losses, share + more_wins, most, n) for share in shares)


def _most_shared(drop: float, n: int) -> float:
    """The largest share of wins, beside as many losses, that is tried."""
    return min((1.0 - _AGREED) * (1.0 - abs(drop)) / 2.0, _MOST_WINS / n)


def _chance(losing: float, winning: float, most: NDArray[np.int64], n: int) -> float:
    """Probability of no more losses than ``most`` allows for the wins that there are.

    Args:
        losing: Share of samples that only the reference gets right.
        winning: Of those that only the engine does.
        most: Shape (wins,): the losses.
        n: All samples.
    """
    first, last = _within(n, winning)
    wins = np.arange(first, min(last, len(most) - 1) + 1)[:, None]
    allowed = most[wins]
    first, last = _within(n, losing)
    losses = np.arange(first, min(last, int(allowed.max(initial=-1))) + 1)[None, :]
    different = wins + losses
    counted = (losses <= allowed) & (different <= n)
    factorials, ways = _logs(n, int(wins.max(initial=0)) + int(losses.max(initial=0)))
    chances = ways[np.minimum(different, n)] - factorials[losses] - factorials[wins]
    for count, chance in ((losses, losing), (wins, winning)):
        chances = chances + (count * math.log(chance) if chance > 0.0 else np.where(count > 0, -np.inf, 0.0))
    chances = chances + (n - different) * math.log1p(-losing - winning)
    return float(np.exp(chances[counted]).sum())


def _most_losses(drop: float, wins: NDArray[np.int64], n: int, clear: float) -> NDArray[np.int64]:
    """For each number of wins the most losses with which the score is not above ``clear``; -1: not even none."""
    low, high = np.full(len(wins), -1), n - wins + 1
    while (open_ := high - low > 1).any():
        middle = (low + high) // 2
        within = open_ & (_score(drop, middle, wins, n) <= clear)
        low, high = np.where(within, middle, low), np.where(open_ & ~within, middle, high)
    return low


def _within(n: int, share: float) -> tuple[int, int]:
    """Counts of n between which all but a chance of 1e-11 lies."""
    spread = _SIGMAS * math.sqrt(n * share * (1.0 - share)) + (8.0 if share > 0.0 else 0.0)
    return max(0, math.floor(n * share - spread)), min(n, math.ceil(n * share + spread))


def _least(holds: Callable[[float], bool], low: float, high: float) -> float:
    """The end of an interval from which on something holds."""
    while high - low > _NEAR * abs(high):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _logs(n: int, most: int) -> tuple[Floats, Floats]:
    """Logarithms of k! and of n! / (n - k)!, k from 0 up to so many, or more: n may be billions, and k thousands."""
    return _logs_of(n, min(n, 1 << most.bit_length()))


@lru_cache(maxsize=8)
def _logs_of(n: int, most: int) -> tuple[Floats, Floats]:
    counts = np.arange(most, dtype=np.float64)
    factorials, ways = (np.concatenate([[0.0], np.cumsum(np.log(each))]) for each in (counts + 1.0, n - counts))
    return factorials, ways


def _score(drop: float, worse: ArrayLike, better: ArrayLike, n: int) -> Floats:
    """Tango's score statistic of the hypothesis that the difference is ``drop``; counts broadcast."""
    losses, wins = np.asarray(worse, np.float64), np.asarray(better, np.float64)
    spread = variance(drop, losses, wins, n)
    there = spread > 0.0
    found: Floats = np.where(there, (losses - wins - n * drop) / np.sqrt(np.where(there, spread, 1.0)), 0.0)
    return found


def variance(drop: float, worse: ArrayLike, better: ArrayLike, n: float) -> Floats:
    """Of worse - better, if the difference is ``drop``: by the likeliest shares among those with that difference."""
    losses, wins = np.asarray(worse, np.float64), np.asarray(better, np.float64)
    a = 2.0 * n
    b = -losses - wins + (2.0 * n - losses + wins) * drop
    c = -wins * drop * (1.0 - drop)
    only_second = (np.sqrt(np.maximum(b * b - 4.0 * a * c, 0.0)) - b) / (2.0 * a)
    return np.asarray(n * (2.0 * only_second + drop * (1.0 - drop)), np.float64)
