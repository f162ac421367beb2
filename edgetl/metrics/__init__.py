"""What results are measured with: top-1, macro-F1, AUC, mean average precision, and true accepts of faces.

Every metric is written once, with a weight for each sample: with weights of one it is the metric, with the numbers of
times that samples were drawn it is the metric of a bootstrap resample, thousands of them at a time. scikit-learn takes
one resample per call and sorts for each of them again; the tests hold each metric to its value there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import DataError, UnknownNameError
from edgetl.metrics.influences import Influences, true_accept_influences
from edgetl.metrics.verification import (
    CELLS,
    FAR,
    NEEDS,
    Floats,
    Verification,
    Weighted,
    checked,
    ratio,
    true_accepts,
    verification,
)
from edgetl.runtime.decision import sigmoid, softmax
from edgetl.tomlfile import did_you_mean

__all__ = [
    "CELLS", "FAR", "Influences", "Metric", "Verification", "Weighted", "allowed_metrics", "brier", "default_metric",
    "expected_calibration_error", "metric", "resample_block", "resample_units", "resample_weights", "verification",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric: larger is better, from 0 to 1.

    Outputs that hold NaN or infinite values have the metric 0, the worst there is: training then keeps the weights from
    before them and reports the loss that became NaN, and an engine that returns them has lost everything.
    """

    name: str
    """In configuration and reports."""
    title: str
    """For people."""
    needs: str
    """What there must be among the samples, for the message where it has no value."""
    by_identity: bool = False
    """Of pairs: the labels are identities, all samples of an identity have one weight, and identities are drawn."""
    by_class: bool = False
    """A mean over classes of figures of decisions: a class with few samples counts as much as one with many."""
    by_rank: bool = False
    """Of how samples of a class rank among others: few of them seldom show what moves them."""
    prepare: Callable[[Floats, NDArray[np.int64]], Weighted] = field(repr=False)
    influences: Callable[[Floats, NDArray[np.int64]], Influences | None] | None = field(default=None, repr=False)
    """Of outputs and labels, of a metric of identities: how much each of these, and each two, move it, or None where
    there are too few pairs to tell. None of others, whose samples can be drawn."""

    def weighted(self, outputs: NDArray[np.floating], labels: NDArray[Any]) -> Weighted:
        """The metric of these samples as a function of their weights.

        Args:
            outputs: Of the model, float (n, k).
            labels: Integers (n,); with several labels per sample 0 and 1, (n, k).

        Raises:
            DataError: Shapes or labels do not fit the metric.
        """
        values, marks = checked(outputs, labels)
        if not np.isfinite(values).all():
            return lambda weights: np.zeros(weights.shape[1])
        return self.prepare(values, marks)

    def __call__(self, outputs: NDArray[np.floating], labels: NDArray[Any]) -> float:
        """The metric; see :meth:`weighted`.

        Raises:
            DataError: Shapes or labels do not fit the metric, or it has no value for these samples.
        """
        value = float(self.weighted(outputs, labels)(np.ones((len(outputs), 1)))[0])
        if math.isnan(value):
            raise DataError(f"{self.title} has no value for these {len(outputs)} samples: it needs {self.needs}")
        return value


def metric(name: str, *, thresholds: Sequence[float] | None = None) -> Metric:
    """A metric by its name.

    Args:
        name: top1, macro-f1, auc, map or tar.
        thresholds: With macro-f1 and several labels per sample: of the probabilities, one per class. None: 0.5.

    Raises:
        UnknownNameError: There is no metric of that name.
    """
    if name not in _METRICS:
        raise UnknownNameError(f"there is no metric '{name}'; {did_you_mean(name, _METRICS)}")
    found = _METRICS[name]
    if thresholds is None:
        return found
    if name != "macro-f1":
        raise DataError(f"the metric '{name}' takes no thresholds")
    return replace(found, prepare=partial(_macro_f1, thresholds=tuple(thresholds)))


def default_metric(task: str) -> str:
    """The metric of a task that names none.

    Raises:
        UnknownNameError: There is no such task.
    """
    return allowed_metrics(task)[0]


def allowed_metrics(task: str) -> tuple[str, ...]:
    """The names of the metrics that a task can be measured with, its default first.

    Raises:
        UnknownNameError: There is no such task.
    """
    if task not in _TASKS:
        raise UnknownNameError(f"there is no task '{task}'; {did_you_mean(task, _TASKS)}")
    return _TASKS[task]


def expected_calibration_error(probabilities: NDArray[np.floating], labels: NDArray[Any], bins: int = 15) -> float:
    """Mean distance of confidence and accuracy over bins of equal width (Guo et al. 2017, arXiv:1706.04599).

    Args:
        probabilities: Float (n, classes); the largest of a row is its confidence.
        labels: Integers (n,).
        bins: Number of bins.

    Raises:
        DataError: Shapes or labels do not fit, or a probability is outside 0 to 1.
    """
    values, marks = _probabilities(probabilities, labels)
    confidence, right = values.max(1), values.argmax(1) == marks
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)  # a bin is open below, closed above
    gap = np.bincount(place, weights=confidence - right, minlength=bins)
    return float(np.abs(gap).sum() / len(marks))


def brier(probabilities: NDArray[np.floating], labels: NDArray[Any]) -> float:
    """Mean squared error of the probabilities (Brier 1950, Monthly Weather Review 78, 1-3); 0 is best.

    Summed over the classes; with two classes that of the second class alone, as is usual: half of the sum.

    Args:
        probabilities: Float (n, classes).
        labels: Integers (n,).

    Raises:
        DataError: Shapes or labels do not fit, or a probability is outside 0 to 1.
    """
    values, marks = _probabilities(probabilities, labels)
    squares = np.square(values - np.eye(values.shape[1])[marks]).sum(1)
    return float(squares.mean()) / (2.0 if values.shape[1] == 2 else 1.0)


def resample_weights(random: np.random.Generator, units: NDArray[np.int64], count: int) -> Floats:
    """How many times each sample is in each of ``count`` bootstrap resamples; (n, count).

    Args:
        random: Where the draws come from.
        units: Which unit a sample belongs to, (n,), from 0 on without gaps; units are drawn with replacement.
        count: Number of resamples.
    """
    many = int(units.max()) + 1
    drawn = random.integers(0, many, (count, many))
    drawn += np.arange(count)[:, None] * many
    times = np.bincount(drawn.ravel(), minlength=many * count).reshape(count, many)
    result: Floats = np.ascontiguousarray(times.T, dtype=np.float64)[units]
    return result


def resample_units(groups: Sequence[str | None] | None) -> NDArray[np.int64] | None:
    """Which unit of the draw every sample belongs to, (n,), from 0 on without gaps.

    Args:
        groups: What each sample belongs to; None or empty: to nothing.

    Returns:
        None where every sample is by itself.
    """
    if groups is None:
        return None
    found: dict[str, int] = {}
    units, free = [], 0
    for group in groups:
        if group and group in found:
            units.append(found[group])
            continue
        if group:
            found[group] = free
        units.append(free)
        free += 1
    return None if free == len(units) else np.asarray(units, dtype=np.int64)


def resample_block(samples: int) -> int:
    """How many resamples of so many samples to work on at a time."""
    return max(1, CELLS // samples)


# --- checks ---------------------------------------------------------------------------------------------------------


def _classes(outputs: Floats, labels: NDArray[np.int64]) -> None:
    """One label per sample, each an output's place."""
    if labels.ndim != 1 or outputs.shape[1] < 2:
        raise DataError(
            f"this metric needs one label per sample and two outputs or more; it has labels {list(labels.shape)}"
            f" and outputs {list(outputs.shape)}"
        )
    if labels.min() < 0 or labels.max() >= outputs.shape[1]:
        wrong = labels[(labels < 0) | (labels >= outputs.shape[1])][0]
        raise DataError(f"there is a label {wrong}, and the outputs are of the classes 0 to {outputs.shape[1] - 1}")


def _flags(outputs: Floats, labels: NDArray[np.int64]) -> None:
    """A 0 or a 1 for each output."""
    if labels.shape != outputs.shape or not np.isin(labels, (0, 1)).all():
        raise DataError(
            f"this metric needs labels of 0 and 1, one for each of the outputs {list(outputs.shape)};"
            f" it has labels {list(labels.shape)}"
        )


def _probabilities(probabilities: NDArray[np.floating], labels: NDArray[Any]) -> tuple[Floats, NDArray[np.int64]]:
    values, marks = checked(probabilities, labels)
    _classes(values, marks)
    if not ((values >= 0.0) & (values <= 1.0)).all():  # NaN is neither
        raise DataError("probabilities are between 0 and 1")
    return values, marks


# --- formulas -------------------------------------------------------------------------------------------------------


def _top1(outputs: Floats, labels: NDArray[np.int64]) -> Weighted:
    """Share of samples whose largest output is their label's."""
    _classes(outputs, labels)
    right = (outputs.argmax(1) == labels).astype(np.float64)
    return lambda weights: ratio(right @ weights, weights.sum(0))


def _macro_f1(outputs: Floats, labels: NDArray[np.int64], thresholds: tuple[float, ...] | None = None) -> Weighted:
    """The mean over classes of F1 = 2 TP / (2 TP + FP + FN) (van Rijsbergen 1979; Opitz and Burst 2019).

    Classes that neither a label nor an answer names are left out.
    """
    if labels.ndim == 1:
        _classes(outputs, labels)
        everyone = np.arange(outputs.shape[1])
        truth, named = labels[:, None] == everyone, outputs.argmax(1)[:, None] == everyone
    else:
        _flags(outputs, labels)
        least = np.full(outputs.shape[1], 0.5) if thresholds is None else np.asarray(thresholds, dtype=np.float64)
        if least.shape != (outputs.shape[1],):
            raise DataError(f"there are {least.size} thresholds for {outputs.shape[1]} classes")
        truth, named = labels == 1, sigmoid(outputs) >= least
    both, either = (truth & named).T.astype(np.float64), truth.T.astype(np.float64) + named.T
    return lambda weights: _mean_of(ratio(2.0 * (both @ weights), either @ weights))


def _auc(outputs: Floats, labels: NDArray[np.int64]) -> Weighted:
    """Area under the ROC curve (Hanley and McNeil 1982); with more classes the mean of one against the rest.

    With more than two, a class's score is its softmax probability (Provost and Domingos 2000, without their weights:
    scikit-learn's multi_class="ovr"), and classes that no sample or every sample has are left out.
    """
    _classes(outputs, labels)
    if outputs.shape[1] == 2:
        return _area(outputs[:, 1] - outputs[:, 0], labels == 1)
    scores = softmax(outputs)
    every = [_area(scores[:, index], labels == index) for index in range(outputs.shape[1])]
    return lambda weights: _mean_of(np.stack([area(weights) for area in every]))


def _area(scores: Floats, positive: NDArray[np.bool_]) -> Weighted:
    """The probability that a positive scores above a negative, ties counting half (Mann and Whitney 1947)."""
    places = np.flatnonzero(positive)
    others = np.flatnonzero(~positive)
    others = others[np.argsort(scores[others], kind="stable")]
    below = np.searchsorted(scores[others], scores[places], side="left")
    upto = np.searchsorted(scores[others], scores[places], side="right")

    def weighted(weights: Floats) -> Floats:
        beaten = np.zeros((len(others) + 1, weights.shape[1]))
        np.cumsum(weights[others], axis=0, out=beaten[1:])
        mine = weights[places]
        won = np.einsum("pb,pb->b", mine, beaten[below]) + np.einsum("pb,pb->b", mine, beaten[upto])
        return ratio(won / 2.0, mine.sum(0) * beaten[-1])

    return weighted


def _mean_average_precision(outputs: Floats, labels: NDArray[np.int64]) -> Weighted:
    """The mean over classes of average precision; classes without a positive are left out."""
    _flags(outputs, labels)
    every = [_average_precision(outputs[:, index], labels[:, index] == 1) for index in range(outputs.shape[1])]
    return lambda weights: _mean_of(np.stack([precision(weights) for precision in every]))


def _average_precision(scores: Floats, positive: NDArray[np.bool_]) -> Weighted:
    """Σ (R_i - R_(i-1)) P_i over the distinct scores, from the highest on (Zhu 2004), without interpolation."""
    order = np.argsort(-scores, kind="stable")
    places = np.flatnonzero(positive[order])
    falling = -scores[order]
    upto = np.searchsorted(falling, falling[places], side="right")  # samples that score as much as this positive
    true_upto = np.searchsorted(places, upto, side="left")

    def weighted(weights: Floats) -> Floats:
        if not len(places):
            return np.full(weights.shape[1], np.nan)
        ordered = weights[order]
        mine = ordered[places]
        found, taken = np.cumsum(mine, axis=0), np.cumsum(ordered, axis=0)[upto - 1]
        precision = found[true_upto - 1] / np.maximum(taken, 1e-300)  # nothing was taken: mine is 0, too
        return ratio(np.einsum("pb,pb->b", mine, precision), found[-1])

    return weighted


def _mean_of(classes: Floats) -> Floats:
    """Means over classes, (k, b) → (b,), of those that have a value; NaN where none has."""
    there = ~np.isnan(classes)
    means: Floats = ratio(np.where(there, classes, 0.0).sum(0), there.sum(0).astype(np.float64))
    return means


_METRICS = {
    each.name: each
    for each in (
        Metric(name="top1", title="top-1", needs="a sample", prepare=_top1),
        Metric(
            name="macro-f1",
            title="macro-F1",
            needs="a sample with a label or an answer",
            by_class=True,
            prepare=_macro_f1,
        ),
        Metric(name="auc", title="AUC", needs="samples of two classes", by_rank=True, prepare=_auc),
        Metric(
            name="map", title="mAP", needs="a class that a sample has", by_rank=True, prepare=_mean_average_precision
        ),
        Metric(
            name="tar",
            title="TAR at FAR 1%",
            needs=NEEDS,
            by_identity=True,
            prepare=true_accepts,
            influences=true_accept_influences,
        ),
    )
}
_SINGLE = ("top1", "macro-f1", "auc")
_TASKS = {
    "image-classification": _SINGLE,
    "multi-label-images": ("map", "macro-f1"),
    "text-classification": _SINGLE,
    "table-classification": ("auc", "top1", "macro-f1"),
    "face-verification": ("tar",),
}
