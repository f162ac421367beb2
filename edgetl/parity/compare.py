"""An engine against the reference: on decisions, on numbers, and with a stated confidence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import DataError, ParityError
from edgetl.metrics import Metric
from edgetl.metrics import metric as metric_of
from edgetl.parity import paired
from edgetl.parity.bootstrap import Drop, paired_drop
from edgetl.parity.numeric import Tolerance, numeric
from edgetl.parity.paired import Outcome
from edgetl.parity.sequential import Sequential
from edgetl.parity.slices import CLASS, Slice, slices
from edgetl.runtime.decision import Decision, Largest, MultiLabel, Similarity

_PAIRED = 1500
"""Samples whose pairs are decided on, at most: 1.1 million pairs."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a comparison on labelled samples came to."""

    samples: int
    metric: str
    """What is compared, by its name in :mod:`edgetl.metrics`."""
    score_reference: float
    """The metric of the reference's outputs."""
    score: float
    """Of the engine's."""
    agreement: float
    """Share of decisions on which both agree: on samples; on every class of a sample where it may have several; on
    pairs of samples where outputs are embeddings."""
    worse: int
    """Decisions that only the reference gets right."""
    better: int
    """Decisions that only the engine gets right."""
    drop: float
    """score_reference - score."""
    drop_upper: float
    """Upper confidence bound of the drop, one-sided, paired: what the gate looks at."""
    drop_lower: float
    """Lower confidence bound of the drop, one-sided."""
    interval: tuple[float, float]
    """Two-sided confidence interval of the drop."""
    p_value: float | None
    """Of the hypothesis that both are equally often right, two-sided, by McNemar's exact test; None for metrics that
    are no share of right decisions."""
    detectable_drop: float
    """The smallest drop that this test set would probably (:data:`edgetl.parity.paired.POWER`) have told from none."""
    samples_to_decide: int | None
    """Where nothing is decided: samples that probably would, in all; None where it is, or where no number would."""
    confidence: float
    max_drop: float
    max_abs_error: float
    """Largest absolute difference of an output."""
    mean_abs_error: float
    """Mean absolute difference of the outputs."""
    cosine: float
    """Mean cosine between both output vectors of a sample."""
    sqnr_db: float
    """Signal-to-quantization-noise ratio of the outputs, in dB; 200 where they are the same."""
    slices: tuple[Slice, ...]
    """Each class, and each value of the columns that were asked for; the likeliest regression first."""
    outcome: Outcome
    """passed: the drop is below max_drop, with the stated confidence; failed: it is above, or numbers are beyond their
    tolerance; undecided: these samples show neither."""
    statement: str
    """The finding as a sentence."""

    @property
    def passed(self) -> bool:
        """Whether the drop was shown to be below max_drop."""
        return self.outcome == "passed"

    def to_json(self) -> dict[str, Any]:
        """Plain values, with "passed" among them."""
        values = {**asdict(self), "passed": self.passed, "interval": list(self.interval)}
        return {**values, "slices": [each.to_json() for each in self.slices]}


def compare(
    reference: NDArray[np.floating],
    outputs: NDArray[np.floating],
    labels: NDArray[np.integer],
    *,
    max_drop: float,
    confidence: float,
    metric: Metric | None = None,
    decision: Decision | None = None,
    tolerance: Tolerance | None = None,
    classes: Sequence[str] = (),
    columns: Mapping[str, Sequence[str]] | None = None,
    sequential: bool = False,
) -> Comparison:
    """Compare an engine's outputs with the reference's, sample by sample.

    The engine passes where the upper confidence bound of its drop is at most ``max_drop``: a test of non-inferiority.
    Not seeing a difference is not enough; there must be samples enough to rule one out. It fails where the lower bound
    is above ``max_drop``. For top-1 the bounds are Tango's (:func:`edgetl.parity.paired.upper_bound`), for others they
    come from a paired bootstrap (:mod:`edgetl.parity.bootstrap`).

    Args:
        reference: The PyTorch model's outputs, shape (n, k).
        outputs: The engine's, of the same shape and order.
        labels: The right class of each sample, shape (n,); or 0 and 1 per class, (n, k).
        max_drop: Largest accepted drop, as a share.
        confidence: Of the one-sided bounds, and of the two-sided interval.
        metric: What must not drop; None: top-1.
        decision: How outputs become answers; None: the largest logit names the class.
        tolerance: What the numbers must keep to besides; None: nothing.
        classes: Names, in the order of the labels: each class is looked at by itself. Empty: none is.
        columns: Column → what stands in it, for each sample: each value is looked at by itself.
        sequential: The samples are as many of a test split in random order as were looked at until it was decided
            (:mod:`edgetl.parity.sequential`), which then decides here. Bounds and intervals are those of a test with a
            fixed number of samples, and no more than a description.

    Raises:
        DataError: There is no sample, or the shapes differ; or a metric that is no share of right decisions was to be
            compared sequentially.
        ParityError: The reference itself returned NaN or infinite values: nothing can be compared with it.
    """
    metric, decision = metric or metric_of("top1"), decision or Largest()
    if metric.name == "macro-f1" and isinstance(decision, MultiLabel):
        metric = metric_of("macro-f1", thresholds=decision.thresholds)
    if reference.shape != outputs.shape or len(reference) != len(labels):
        raise DataError(
            f"the reference has outputs {list(reference.shape)}, the engine {list(outputs.shape)}, "
            f"for {len(labels)} labels"
        )
    if not len(labels):
        raise DataError("parity needs at least one test sample")
    expected, got = reference.astype(np.float64), outputs.astype(np.float64)
    if not np.isfinite(expected).all():
        raise ParityError(
            "the PyTorch model itself returns NaN or infinite values",
            hint="a lower finetune.phases lr, or other weights",
        )
    by_decisions = metric.name == "top1"
    if sequential and not by_decisions:
        raise DataError(f"a sequential comparison is of right decisions one by one, and {metric.title} is none of them")
    n = len(labels)
    whole = np.asarray(np.isfinite(got).all(1))
    finite = bool(whole.all())
    wanted, truth = _decided(decision, expected), _truth(decision, labels)
    decided = _decided(decision, np.where(whole[:, None], got, 0.0))
    right, expected_right = np.equal(decided, truth), np.equal(wanted, truth)
    if decided.shape == (n,):
        right = right & whole
    worse, better = int((expected_right & ~right).sum()), int((right & ~expected_right).sum())
    if by_decisions:
        scores = float(expected_right.mean()), float(right.mean())
        found = _by_decisions(worse, better, n, confidence)
    else:
        scores = metric(expected, labels), metric(got, labels) if finite else 0.0
        found = Drop(value=scores[0] - scores[1], upper=1.0, lower=0.0, interval=(0.0, 1.0))
        if finite:
            groups = labels if metric.name == "tar" else None
            found = paired_drop(metric, expected, got, labels, confidence=confidence, groups=groups)
    numbers = numeric(expected, got)
    beyond = tolerance.missed(numbers) if tolerance else ()
    outcome = _outcome(found, max_drop)
    if sequential:
        outcome = Sequential(max_drop, confidence).add(differences(expected_right, right))
    if not finite or beyond:
        outcome = "failed"
    counts = (worse, better, n) if by_decisions else None
    to_decide = _samples_to_decide(found, counts, n, max_drop, confidence) if outcome == "undecided" else None
    said = _statement(metric, found, n, max_drop, confidence, outcome, to_decide)
    if sequential:
        said = _sequential_statement(metric, found, n, max_drop, confidence, outcome)
    if not finite:
        said = "the engine returned NaN or infinite values"
    elif beyond:
        said = "; ".join(beyond)
    return Comparison(
        samples=n,
        metric=metric.name,
        score_reference=scores[0],
        score=scores[1],
        agreement=float((decided == wanted).mean()),
        worse=worse,
        better=better,
        drop=found.value,
        drop_upper=found.upper,
        drop_lower=found.lower,
        interval=found.interval,
        p_value=paired.mcnemar(worse, better) if by_decisions else None,
        detectable_drop=_detectable(found, counts, confidence),
        samples_to_decide=to_decide,
        confidence=confidence,
        max_drop=max_drop,
        **asdict(numbers),
        slices=_slices(decision, expected_right, right, labels, classes, columns or {}, confidence),
        outcome=outcome,
        statement=said,
    )


def differences(expected_right: NDArray[np.bool_], right: NDArray[np.bool_]) -> list[int]:
    """For each decision 1 where only the reference is right, -1 where only the engine is, else 0."""
    found: list[int] = (expected_right.astype(np.int64) - right.astype(np.int64)).ravel().tolist()
    return found


def _outcome(found: Drop, max_drop: float) -> Outcome:
    """Of all samples of a test split."""
    if found.lower > max_drop:
        return "failed"
    return "passed" if found.upper <= max_drop else "undecided"


def _by_decisions(worse: int, better: int, n: int, confidence: float) -> Drop:
    return Drop(
        value=(worse - better) / n,
        upper=paired.upper_bound(worse, better, n, confidence),
        lower=-paired.upper_bound(better, worse, n, confidence),
        interval=paired.interval(worse, better, n, confidence),
    )


def _detectable(found: Drop, counts: tuple[int, int, int] | None, confidence: float) -> float:
    """See :attr:`Comparison.detectable_drop`."""
    if counts is not None:
        return paired.detectable_drop(*counts, confidence)
    return min(1.0, _standard_error(found, confidence) * _both(confidence))


def _samples_to_decide(
    found: Drop, counts: tuple[int, int, int] | None, n: int, max_drop: float, confidence: float
) -> int | None:
    """See :attr:`Comparison.samples_to_decide`."""
    if counts is not None:
        return paired.samples_to_decide(*counts, max_drop, confidence)
    distance = abs(max_drop - found.value)
    if distance < 1.0 / n:
        return None
    # The standard error falls with the root of the number of samples.
    samples = math.ceil(n * (_both(confidence) * _standard_error(found, confidence) / distance) ** 2)
    return max(samples, paired.samples_needed(max_drop, confidence), n + 1)


def _standard_error(found: Drop, confidence: float) -> float:
    """Of a drop with bootstrapped bounds."""
    return (found.upper - found.value) / NormalDist().inv_cdf(confidence)


def _both(confidence: float) -> float:
    """Standard errors between a drop and what it is told from: for the confidence, and for the power."""
    return NormalDist().inv_cdf(confidence) + NormalDist().inv_cdf(paired.POWER)


def _slices(
    decision: Decision,
    expected_right: NDArray[np.bool_],
    right: NDArray[np.bool_],
    labels: NDArray[np.integer],
    classes: Sequence[str],
    columns: Mapping[str, Sequence[str]],
    confidence: float,
) -> tuple[Slice, ...]:
    if isinstance(decision, Similarity):
        return ()  # decisions are on pairs of samples, which belong to no slice
    every = dict(columns)
    if classes and labels.ndim == 1:
        every = {CLASS: [classes[int(label)] for label in labels], **every}
    return slices(expected_right, right, every, confidence, classes=classes)


def _decided(decision: Decision, outputs: NDArray[np.float64]) -> NDArray[np.integer]:
    """Decisions on samples, (n,) or (n, k); of embeddings on pairs, (pairs,)."""
    if not isinstance(decision, Similarity):
        answers: NDArray[np.integer] = decision.decide(outputs)
        return answers
    first, second = _pairs(len(outputs))
    norms = np.maximum(np.linalg.norm(outputs, axis=1, keepdims=True), 1e-12)
    cosines = (outputs / norms) @ (outputs / norms).T
    same: NDArray[np.integer] = (cosines[first, second] >= decision.threshold).astype(np.int64)
    return same


def _truth(decision: Decision, labels: NDArray[np.integer]) -> NDArray[np.integer]:
    """What would be right, in the shape of :func:`_decided`."""
    if not isinstance(decision, Similarity):
        return labels
    first, second = _pairs(len(labels))
    same: NDArray[np.integer] = (labels[first] == labels[second]).astype(np.int64)
    return same


def _pairs(count: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """All pairs of samples; where there are many, of some at equal distances."""
    chosen = np.unique(np.linspace(0, count - 1, min(count, _PAIRED)).round().astype(np.intp))
    first, second = np.triu_indices(len(chosen), 1)
    return chosen[first], chosen[second]


def _statement(
    metric: Metric,
    found: Drop,
    n: int,
    max_drop: float,
    confidence: float,
    outcome: Outcome,
    to_decide: int | None,
) -> str:
    sure, allowed = f"{100 * confidence:g}% confidence", f"{100 * max_drop:.2f}"
    if outcome == "passed":
        return f"with {sure} {metric.title} drops by less than {100 * found.upper:.2f} points (allowed {allowed})"
    if outcome == "failed":
        return (
            f"{metric.title} drops by {100 * found.value:.2f} points, with {sure} by at least"
            f" {100 * found.lower:.2f}, and {allowed} are allowed"
        )
    needed = paired.samples_needed(max_drop, confidence)
    if n < needed:
        return f"{n} test samples cannot show a drop below {allowed} points with {sure}: at least {needed} are needed"
    enough = f"some {_rounded(to_decide)} samples would decide it" if to_decide else "it may be just that"
    return (
        f"undecided: {metric.title} drops by {100 * found.value:.2f} points on these {n} samples; with {sure} it may be"
        f" up to {100 * found.upper:.2f}, and {allowed} are allowed; {enough}"
    )


def _sequential_statement(
    metric: Metric, found: Drop, n: int, max_drop: float, confidence: float, outcome: Outcome
) -> str:
    sure, allowed = f"{100 * confidence:g}% confidence", f"{100 * max_drop:.2f} points"
    if outcome == "passed":
        return f"after {n} test samples it is sure, with {sure}, that {metric.title} drops by less than {allowed}"
    if outcome == "failed":
        return f"after {n} test samples it is sure, with {sure}, that {metric.title} drops by more than {allowed}"
    return (
        f"undecided: {metric.title} drops by {100 * found.value:.2f} points on these {n} test samples, and {allowed}"
        " are allowed; a test with a fixed number of samples needs fewer (parity.sequential = false)"
    )


def _rounded(samples: int) -> str:
    """A forecast has two digits, not five."""
    step = 10 ** max(0, len(str(samples)) - 2)
    return f"{math.ceil(samples / step) * step:,}"
