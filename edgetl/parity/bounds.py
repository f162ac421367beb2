"""Bounds of the drop of paired right and wrong answers that err no more often than they say.

``worse`` counts samples that only the reference gets right, ``better`` those that only the engine does, ``n`` all.
The drop is (worse - better) / n. Score bounds (Tango 1998) that are to err in 5% of all cases err in about 5%: of a few
samples now in 4%, now in 7%. What they order samples by is kept here, and probabilities are worked out: of all that
could have been seen of an engine with some drop, how much speaks for a smaller one as clearly as what was seen, in the
worst case that the share of disagreements leaves open (Hsueh, Liu and Chen 2001, Unconditional exact tests for
equivalence or noninferiority for paired binary endpoints, Biometrics 57, 478-483; Lloyd and Moldovan 2008, Statistics
in Medicine 27, 3540-3549). Where that is more than is allowed, the bound is raised until it is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

_SHARES = 24
"""Shares of wins that are tried. The probabilities wave with them, the less the more wins there are."""
_MOST_WINS = 100.0
"""Shares with more wins than this are not tried: there score bounds err by a thirtieth more than is allowed at most."""
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

    By how much differs from table to table, so that one loss more may have a lower bound. Of tables with about as many
    wins as losses so many had: at 60 and 80% confidence 8 of 561, where a fifth to nine of ten samples disagreed, at
    90% and more none of 865; where more than nine of ten did, 29 of 994 at 60 to 90%, at 95 and 99% none of 638.

    Args:
        worse: Pairs in which only the first is right.
        better: Pairs in which only the second is right.
        n: All pairs.
        confidence: One-sided, as 0.95.

    Returns:
        The largest difference (first minus second) that the data do not reject, between -1 and 1.
    """
    low = score_bound(worse, better, n, confidence)

    def holds(drop: float) -> bool:
        return drop >= 1.0 or _improbable(drop, worse, better, n, confidence)

    if holds(low):
        return low
    high, step = low, max(1e-3 * abs(low), 0.02 / n)
    while not holds(high):
        low, high, step = high, min(1.0, high + step), 2.0 * step
    return _least(holds, low, high)


def rules_out(drop: float, worse: int, better: int, n: int, confidence: float) -> bool:
    """Whether a drop, or a larger one, is improbable: by the same test as :func:`upper_bound`, some ten times as fast.

    They agree but for few tables with a bound less than a sample or two from the drop: what is as clear as what was
    seen changes with the drop, by leaps.

    Args:
        drop: Above -1 and below 1.
        worse: Pairs in which only the first is right.
        better: Pairs in which only the second is right.
        n: All pairs.
        confidence: One-sided.
    """
    return score_bound(worse, better, n, confidence) < drop and _improbable(drop, worse, better, n, confidence)


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


def worst_chance(drop: float, worse: int, better: int, n: int) -> float:
    """How probable it is at most to see what speaks for a smaller drop than this one as clearly, or more clearly.

    Of engines with this drop, whatever the share of disagreements; what is seen is ordered by the score statistic.

    Args:
        drop: Above (worse - better) / n, and below 1.
        worse: Pairs in which only the first is right.
        better: Pairs in which only the second is right.
        n: All pairs.

    Returns:
        A probability: the exact one-sided p of the hypothesis that the drop is this one or larger.
    """
    clear = float(_score(drop, worse, better, n)) + 1e-9
    more_losses, more_wins = max(drop, 0.0), max(-drop, 0.0)
    largest = min(0.49 * (1.0 - abs(drop)), _MOST_WINS / n)
    wins = np.arange(_within(n, largest + more_wins)[1] + 1)
    most = _most_losses(drop, wins, n, clear)
    shares = (largest * np.linspace(0.0, 1.0, _SHARES) ** 3).tolist()
    return max(_chance(share + more_losses, share + more_wins, most, n) for share in shares)


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


def _improbable(drop: float, worse: int, better: int, n: int, confidence: float) -> bool:
    return worst_chance(drop, worse, better, n) <= (1.0 - confidence) * _ROUNDING


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
