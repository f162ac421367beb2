"""How far a metric may have dropped: bounds by the paired bootstrap, with tilting.

Samples are drawn with replacement, and both models are measured on the same draw (Efron and Tibshirani 1993, An
Introduction to the Bootstrap, chapter 16), so that what is hard for both cancels. The bound is not the percentile of
the resampled drops: where engines nearly agree, a dozen samples tell them apart, and what these scatter by at the drop
that was seen is less than at the drop that is to be ruled out. Percentiles were below the true drop in 8% of simulated
test sets where 5% were stated. The bound here is the one of bootstrap tilting (Efron 1981, Canadian Journal of
Statistics 9, 139-172; DiCiccio and Romano 1990, International Statistical Review 58, 59-76; its exponential family):
samples that count for the reference get more weight, until a drop as small as the one that was seen comes up in 5% of
resamples only; the drop at that weight is the bound, for a confidence of 95%. For any metric, it is what score
intervals (Tango's) are for proportions. No resamples of other weights are drawn: those that were drawn count more or
less.

A bootstrap knows only of what it saw. To every resample are added, once each on average, a sample that only the
reference gets right and one that only the engine does, of the size of the influences that were seen: as Bonett
and Price 2012, Journal of Educational and Behavioral Statistics 37, 479-488, add one to both counts of paired
proportions. Of a metric of ranks they are of the size that other samples would have had (:mod:`edgetl.parity.unseen`),
and the confidence is Student's for the samples of the classes that matter. And ten samples on which two models agree
altogether would bound the drop by 0: no bound here is therefore below that of top-1 for n samples without a single
difference (:func:`edgetl.parity.bounds.least_bound`). Of a metric that is a mean over classes, none is below what the
rarest class leaves open by itself: what an engine loses there weighs more than a sample, and test sets with few of its
samples rarely show it. The two-sided interval encloses these bounds, and is not held up further: at its own confidence
it would always hold a drop of less than z² / (n + z²).

Verification is measured on pairs, which are not independent; what is drawn there are identities (the subsets bootstrap
of Bolle, Ratha and Pankanti 2004, Computer Vision and Image Understanding 93), and what is measured on a draw is not
the metric but its linear part: :mod:`edgetl.metrics.identities` says why, and where there are too few pairs
for one, it is the metric.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.distributions import MANY, student_quantile
from edgetl.errors import DataError, ParityError
from edgetl.metrics import Metric
from edgetl.metrics.identities import linear_drop, mean_influences
from edgetl.parity.bounds import least_bound
from edgetl.parity.resampling import UNSEEN, Drops, Pair, Resamples, gathered, rarest_class, resampled, units_of
from edgetl.parity.unseen import Unseen, unseen

_MOST_TILT = 50.0
"""Logarithm of the largest factor between the weights of two units."""


@dataclass(frozen=True, kw_only=True)
class Drop:
    """How much lower the metric of an engine is than the reference's."""

    value: float
    """On these samples."""
    upper: float
    """Upper confidence bound, one-sided; never below the value and never above 1."""
    lower: float
    """Lower confidence bound, one-sided; never above the value."""
    interval: tuple[float, float]
    """Two-sided confidence interval."""
    rarest: float = 0.0
    """Of a mean over classes, what few samples of the rarest leave open: the upper bound is not below it."""
    apart: float = 0.0
    """How far the bounds would be from the value without that; 0: as far as they are."""


def paired_drop(
    metric: Metric,
    reference: NDArray[np.floating],
    outputs: NDArray[np.floating],
    labels: NDArray[Any],
    *,
    confidence: float,
    resamples: int = 2000,
    seed: int = 0,
    groups: NDArray[Any] | None = None,
) -> Drop:
    """How much lower the metric of the outputs is than the reference's, and how much it may be.

    Args:
        metric: Which.
        reference: Outputs of the reference, float (n, k).
        outputs: Of the engine, of the same shape and order. NaN or infinite values have the metric 0.
        labels: As the metric takes them.
        confidence: Of the one-sided bounds and of the interval, as 0.95.
        resamples: Number of bootstrap resamples.
        seed: Of the draws.
        groups: Integers or names (n,): samples of one group are drawn together. None: each on its own; of a metric of
            identities, by identity.

    Raises:
        DataError: Shapes do not fit, the metric has no value for these samples, or there is one group only.
        ParityError: The reference returned NaN or infinite values.
    """
    if reference.shape != outputs.shape:
        raise DataError(f"the reference has outputs {list(reference.shape)}, the engine {list(outputs.shape)}")
    if not 0.5 <= confidence < 1.0 or resamples < 1:
        raise DataError(
            f"a bound needs a confidence from 0.5 to 1 and a resample at least, not {confidence} and {resamples}"
        )
    if not np.isfinite(reference).all():
        raise ParityError("the reference returned NaN or infinite values: nothing can be compared with it")
    drop = metric(reference, labels) - metric(outputs, labels)
    if not np.isfinite(outputs).all():
        return Drop(value=drop, upper=1.0, lower=-1.0, interval=(-1.0, 1.0))
    random = np.random.default_rng(seed)
    units = units_of(metric, np.asarray(labels), groups)
    apart = len(labels) if metric.by_identity else int(units.max()) + 1
    rarest = rarest_class(np.asarray(labels), units) if metric.by_class or metric.by_rank else None
    linear = linear_drop(drop, *(mean_influences(metric, each[None], labels) for each in (reference, outputs)))
    if linear is None:
        drops: Drops = Pair(metric.weighted(reference, labels), metric.weighted(outputs, labels))
    else:
        drops, units = linear, np.arange(len(linear.influence))
    together, units = units, gathered(units, random)
    others = Unseen(size=0.0, freedom=MANY)
    if metric.by_rank and rarest is not None:
        few, classes = rarest
        if few < 2 and classes <= 2:  # one sample: its rank may be any
            return Drop(value=drop, upper=1.0, lower=-1.0, interval=(-1.0, 1.0))
        others = unseen(metric, reference, outputs, np.asarray(labels), units, together=together)
        rarest = rarest if few < 2 else None  # of a single one nothing is known
    found = resampled(drops, units, resamples, random, unseen=others.size)
    return _bounds(drops, drop, found, confidence, apart, rarest, freedom=others.freedom)


def grouped_drop(
    losses: NDArray[np.integer], groups: NDArray[Any], *, confidence: float, resamples: int = 2000, seed: int = 0
) -> Drop:
    """How much lower a share of right decisions is, and how much it may be, where samples belong together.

    As :func:`paired_drop`, of which top-1 is the simplest case: groups are drawn, each with all its samples.

    Args:
        losses: (n,): 1 where only the reference is right, -1 where only the engine is, else 0.
        groups: Integers or names (n,).
        confidence: Of the one-sided bounds and of the interval, as 0.95.
        resamples: Number of bootstrap resamples.
        seed: Of the draws.

    Raises:
        DataError: There is not one group for each loss, or one group in all.
    """
    values, units = np.asarray(losses, dtype=np.float64), np.unique(groups, return_inverse=True)[1].astype(np.int64)
    if len(units) != len(values):
        raise DataError(f"there are {len(units)} groups for {len(values)} samples")
    if not units.max():
        raise DataError("a bootstrap needs two groups of samples or more; all samples are of one")
    random = np.random.default_rng(seed)

    def drops(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        means: NDArray[np.float64] = values @ weights / weights.sum(0)
        return means

    found = resampled(drops, gathered(units, random), resamples, random)
    return _bounds(drops, float(values.mean()), found, confidence, int(units.max()) + 1)


def _bounds(
    drops: Drops,
    drop: float,
    found: Resamples,
    confidence: float,
    n: int,
    rarest: tuple[int, int] | None = None,
    *,
    freedom: int = MANY,
) -> Drop:
    """Of a drop, by its resamples; none closer than n samples without any difference, or the rarest class's samples
    (how many, and of how many classes it is one), would leave it. With few degrees of freedom, further."""
    two_sided = (1.0 + confidence) / 2.0
    upper, lower, high, low = (
        _tilted(drops, found, drop, _students(share, freedom), sign)
        for share in (confidence, two_sided)
        for sign in (1.0, -1.0)
    )
    of_rarest = least_bound(rarest[0], confidence) / rarest[1] if rarest else 0.0
    least = max(least_bound(n, confidence), of_rarest)
    return Drop(
        value=drop,
        upper=_upper(upper, drop, least),
        lower=_lower(lower, drop, least),
        interval=(_lower(low, drop, least), _upper(high, drop, least)),
        rarest=of_rarest,
        apart=max(upper - drop, drop - lower, least_bound(n, confidence)),
    )


def _students(confidence: float, freedom: int) -> float:
    """The confidence at which a normal bound is where Student's is at the given one, both one-sided."""
    if confidence <= 0.5:
        return confidence
    return NormalDist().cdf(student_quantile(2.0 * confidence - 1.0, freedom))


def _tilted(pair: Drops, found: Resamples, drop: float, confidence: float, sign: float) -> float:
    """The bound on one side: upper where the sign is 1, lower where it is -1.

    With weights exp(τ·influence), made to sum up to one, a resample is exp(τ·S - m·log mean exp(τ·influence)) times as
    likely as it was, S being the sum of its influences and m the number of units.
    """
    influence, many = found.influence, len(found.influence)
    size = found.size
    largest = max(float(np.abs(influence).max(initial=0.0)), size)
    if largest <= 0.0:
        return drop
    # Resamples that show no more than was seen; those that show just that count half.
    seen = sign * (found.drops - drop)
    counted = np.where(np.abs(seen) < 1e-12, 0.5, (seen < 0).astype(np.float64))

    def share(tilt: float) -> float:
        steps = tilt * influence
        top = float(steps.max())
        normal = many * (top + math.log(float(np.exp(steps - top).mean())))
        added = 2.0 * UNSEEN * (math.cosh(tilt * size) - 1.0)
        return float((counted * np.exp(np.minimum(tilt * found.influences - normal - added, 500.0))).mean())

    low, high = 0.0, 1.0 / largest
    while share(sign * high) > 1.0 - confidence and high * largest < _MOST_TILT:
        low, high = high, 2.0 * high
    for _ in range(40):
        middle = (low + high) / 2.0
        low, high = (middle, high) if share(sign * middle) > 1.0 - confidence else (low, middle)
    weights = np.exp(sign * high * influence)
    weights *= many / weights.sum()
    bound = float(pair(weights[found.units][:, None])[0])
    added = 2.0 * UNSEEN * math.sinh(sign * high * size) * size / many
    return drop if math.isnan(bound) else bound + added


def _upper(bound: float, drop: float, least: float) -> float:
    return min(max(bound, drop, least), 1.0)


def _lower(bound: float, drop: float, least: float) -> float:
    """The lower bound, which stays as far from the drop as these samples without any difference would leave it."""
    return max(min(bound, drop - least), -1.0)
