"""What the drop of a metric of pairs varies by: the drop as a mean over people, whose spread is that of the drop.

Of faces, people were drawn independently, and the metric is one of their pairs. Drawing people with replacement
overstates its variance, for two reasons. First, what two people have in common and neither has with others counts once
in the variance of a mean over pairs, twice in that of the people's own means (Efron and Stein 1981, Annals of
Statistics 9, 586-596: the jackknife is too large by it) and three times in resamples, where weights of people are
multiplied (Owen 2007, Annals of Applied Statistics 1, 386-411; Cattaneo, Crump and Jansson 2014, Econometric Theory
30, 1135-1164). Second, the threshold is a quantile: in every resample it is somewhere else, and there the steps of the
genuine scores are others (Hall and Martin 1988, Probability Theory and Related Fields 80, 261-268).

So it is not the metric that is resampled here but its linear part (:mod:`edgetl.metrics.influences`), a mean over
people; and what pairs have for themselves, which is what sums over people do not explain, is taken off its variance as
often as it is there too often.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.metrics import Influences, Metric

_LEAST_LEFT = 0.5
"""Of the variance: were there nothing but what pairs have for themselves, half would be left."""


@dataclass(frozen=True)
class LinearDrop:
    """A drop as a function of the weights of people."""

    value: float
    """With equal weights."""
    influence: NDArray[np.float64]
    """Of each person, (people,), in units of one over their number; their mean is 0."""

    def __call__(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Drops with weights (people, b): (b,)."""
        drops: NDArray[np.float64] = self.value + self.influence @ weights / weights.sum(0)
        return drops


def mean_influences(metric: Metric, runs: NDArray[np.floating], labels: NDArray[Any]) -> Influences | None:
    """How much each identity, and each two, move the mean of a metric over runs.

    Args:
        metric: Any.
        runs: Outputs of each run, (runs, n, k).
        labels: Of the samples, (n,).

    Returns:
        None where there is no linear part: of a metric that is none of identities, of outputs that are not finite, and
        where a run has too few pairs.
    """
    if metric.influences is None or not np.isfinite(runs).all():
        return None
    marks = np.asarray(labels, dtype=np.int64)
    told = [metric.influences(np.asarray(run, dtype=np.float64), marks) for run in runs]
    there = [each for each in told if each is not None]
    if len(there) < len(told):
        return None
    return Influences(*(np.mean(each, axis=0) for each in zip(*there, strict=True)))


def linear_drop(drop: float, reference: Influences | None, outputs: Influences | None) -> LinearDrop | None:
    """A drop that varies with people as it would with other people.

    Args:
        drop: Metric of the reference less that of the engine.
        reference: Of each person on the metric of the reference, from :func:`mean_influences`.
        outputs: On that of the engine, in the same order.

    Returns:
        None where one of the two has no linear part: samples are drawn then, or people, and the metric is taken of each
        draw.
    """
    if reference is None or outputs is None:
        return None
    own, shared = reference.own - outputs.own, reference.shared - outputs.shared
    people = len(own)
    # Hoeffding's decomposition of a mean over pairs: what each person has, and what two have for themselves.
    each = shared.sum(1) / max(people - 2, 1)
    influence = own + 2.0 * each
    variance = float(influence @ influence) / (people * (people - 1))
    if people > 3 and variance > 0.0:
        apart = float(np.square(shared).sum()) / 2.0 - (people - 2) * float(each @ each)
        twice = apart / (people * (people - 3) / 2.0) / (people * (people - 1) / 2.0)
        influence = influence * np.sqrt(max(1.0 - twice / variance, _LEAST_LEFT))
    return LinearDrop(drop, influence)
