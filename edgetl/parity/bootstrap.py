"""How far a metric may have dropped: an upper bound by the paired bootstrap.

Samples are drawn with replacement, and both models are measured on the same draw (Efron and Tibshirani 1993, An
Introduction to the Bootstrap, chapter 16), so that what is hard for both cancels. The bound is the percentile of the
resampled drops, not BCa's: BCa corrects by the share of resamples below the estimate and by a jackknife, and with
engines that nearly agree most resamples equal the estimate, where that share says nothing.

A percentile knows only of what it saw: ten samples on which two models agree would bound the drop by 0. No bound here
is therefore below z² / (n + z²), Tango's score bound for n samples without a single difference, which is what top-1
needs as well (:func:`edgetl.parity.compare.samples_needed`).

Verification is measured on pairs, which are not independent; what is drawn there are identities (the subsets bootstrap
of Bolle, Ratha and Pankanti 2004, Computer Vision and Image Understanding 93). An identity that was drawn c times
brings its own genuine pairs c times. Two identities drawn c and d times bring their impostor pairs c · d times. Copies
of one identity are still one person: pairs between them are not impostors, and they are not counted as genuine either,
since among them would be each sample with itself, and every other pair a second time.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import DataError, ParityError
from edgetl.metrics import Metric, Weighted, resample_block, resample_weights

_TRIES = 50
"""Resamples drawn, at most, for each one that is wanted."""


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
    drops = _resampled(
        metric.weighted(reference, labels),
        metric.weighted(outputs, labels),
        _units(metric, np.asarray(labels), groups),
        resamples,
        resample_block(metric, len(labels)),
        np.random.default_rng(seed),
    )
    drops.sort()
    two_sided = (1.0 + confidence) / 2.0
    return Drop(
        value=drop,
        upper=_upper(drops, drop, confidence, len(labels)),
        lower=_lower(drops, drop, confidence, len(labels)),
        interval=(_lower(drops, drop, two_sided, len(labels)), _upper(drops, drop, two_sided, len(labels))),
    )


def _upper(drops: NDArray[np.float64], drop: float, confidence: float, samples: int) -> float:
    """The upper bound from sorted resampled drops."""
    # Of b values sorted, the one at (b + 1) times the confidence: with few resamples the bound is not too low.
    place = min(int(np.ceil(confidence * (len(drops) + 1))), len(drops)) - 1
    return min(max(float(drops[place]), drop, least_bound(samples, confidence)), 1.0)


def _lower(drops: NDArray[np.float64], drop: float, confidence: float, samples: int) -> float:
    """The lower bound, which stays as far from the drop as these samples without any difference would leave it."""
    place = max(int(np.floor((1.0 - confidence) * (len(drops) + 1))), 1) - 1
    return max(min(float(drops[place]), drop - least_bound(samples, confidence)), -1.0)


def least_bound(samples: int, confidence: float) -> float:
    """The drop that so many samples without a single difference do not rule out: z² / (n + z²)."""
    z = NormalDist().inv_cdf(confidence)
    return z * z / (samples + z * z)


def _units(metric: Metric, labels: NDArray[Any], groups: NDArray[Any] | None) -> NDArray[np.int64]:
    """Which unit of the draw every sample belongs to, (n,), from 0 on."""
    if metric.by_identity:
        identities = np.unique(labels, return_inverse=True)[1]
        if groups is not None and not _same_partition(np.asarray(groups), identities):
            raise DataError(f"{metric.title} is resampled by identity; other groups cannot be drawn")
        units = identities
    elif groups is None:
        units = np.arange(len(labels))
    else:
        units = np.unique(groups, return_inverse=True)[1]
    if len(units) != len(labels):
        raise DataError(f"there are {len(units)} groups for {len(labels)} samples")
    if not units.max():
        raise DataError("a bootstrap needs two groups of samples or more; all samples are of one")
    return units.astype(np.int64)


def _same_partition(groups: NDArray[Any], identities: NDArray[np.int64]) -> bool:
    if groups.shape != identities.shape:
        return False
    codes = np.unique(groups, return_inverse=True)[1]
    pairs = len(set(zip(codes.tolist(), identities.tolist(), strict=True)))
    return bool(pairs == codes.max() + 1 == identities.max() + 1)


def _resampled(
    reference: Weighted,
    outputs: Weighted,
    units: NDArray[np.int64],
    resamples: int,
    block: int,
    random: np.random.Generator,
) -> NDArray[np.float64]:
    """Drops in resamples, (resamples,); where either has no value, another resample is drawn."""
    found: list[NDArray[np.float64]] = []
    drawn, have = 0, 0
    while have < resamples:
        if drawn >= _TRIES * resamples:
            raise DataError(
                f"of {drawn} resamples only {have} had a value: too few samples of a class",
                hint="more test samples of the rarest class",
            )
        count = min(block, resamples - have)
        weights = resample_weights(random, units, count)
        drops = reference(weights) - outputs(weights)
        found.append(drops[~np.isnan(drops)])
        drawn, have = drawn + count, have + len(found[-1])
    return np.concatenate(found)
