"""An engine against the reference: on decisions, on numbers, and with a stated confidence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import DataError, ParityError
from edgetl.metrics import Metric, resample_units
from edgetl.metrics import metric as metric_of
from edgetl.parity import bounds, paired
from edgetl.parity.answers import Answers, answers_of, differences
from edgetl.parity.bootstrap import Drop, grouped_drop, paired_drop
from edgetl.parity.numeric import Numeric, Tolerance, numeric
from edgetl.parity.paired import Outcome
from edgetl.parity.sequential import Sequential
from edgetl.parity.slices import CLASS, Slice, losses_of, slices
from edgetl.parity.statements import Asked, sequential_statement, statement
from edgetl.runtime.decision import Decision, Largest, MultiLabel, Similarity


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a comparison on labelled samples came to."""

    samples: int
    groups: int | None
    """In how many groups they belong together: a group counts as one. None: each is by itself."""
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
    """Of the hypothesis that both are equally often right, two-sided, by McNemar's exact test, or of groups by
    Fisher's randomization (:func:`edgetl.parity.paired.worse_by_samples`); None for metrics that are no share of right
    decisions."""
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
    groups: Sequence[str | None] | None = None,
    sequential: bool = False,
) -> Comparison:
    """Compare an engine's outputs with the reference's, sample by sample.

    The engine passes where the upper confidence bound of its drop is at most ``max_drop``: a test of non-inferiority.
    Not seeing a difference is not enough; there must be samples enough to rule one out. It fails where the lower bound
    is above ``max_drop``. For top-1 the bounds are exact (:func:`edgetl.parity.bounds.upper_bound`), for others they
    come from a paired bootstrap (:mod:`edgetl.parity.bootstrap`), and so for top-1 where samples belong together.

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
        groups: What each sample belongs to, as frames to a video; None or empty: to nothing. What errs together is no
            evidence of its own: a group counts as one. Not looked at where the metric is of identities.
        sequential: The samples are as many of a test split in random order as were looked at until it was decided
            (:mod:`edgetl.parity.sequential`), which then decides here. Bounds and intervals are those of a test with a
            fixed number of samples, and no more than a description.

    Raises:
        DataError: There is no sample, or the shapes differ; or a metric that is no share of right decisions, or
            samples that belong together, were to be compared sequentially.
        ParityError: The reference itself returned NaN or infinite values: nothing can be compared with it.
    """
    if groups is not None and len(groups) != len(labels):
        raise DataError(f"there are {len(groups)} groups for {len(labels)} samples")
    units = None if metric is not None and metric.by_identity else resample_units(groups)
    asked = Asked(
        metric=_with_thresholds(metric or metric_of("top1"), decision or Largest()),
        samples=len(labels),
        groups=None if units is None else int(units.max()) + 1,
        max_drop=max_drop,
        confidence=confidence,
        sequential=sequential,
    )
    expected, got = _checked(asked, reference, outputs, labels)
    answers = answers_of(decision or Largest(), expected, got, labels)
    counts = (answers.worse, answers.better, asked.samples) if asked.by_decisions and units is None else None
    score_reference, score, found = _measured(asked, expected, got, labels, answers, units)
    numbers = numeric(expected, got)
    verdict = _judged(asked, found, counts, answers, _refused(got, tolerance, numbers))
    return Comparison(
        samples=asked.samples,
        groups=asked.groups,
        metric=asked.metric.name,
        score_reference=score_reference,
        score=score,
        agreement=answers.agreement,
        worse=answers.worse,
        better=answers.better,
        drop=found.value,
        drop_upper=found.upper,
        drop_lower=found.lower,
        interval=found.interval,
        p_value=_p_value(answers, units) if asked.by_decisions else None,
        detectable_drop=_detectable(found, counts, confidence),
        samples_to_decide=verdict.samples_to_decide,
        confidence=confidence,
        max_drop=max_drop,
        **asdict(numbers),
        slices=_slices(decision or Largest(), answers, labels, classes, columns or {}, confidence, units),
        outcome=verdict.outcome,
        statement=verdict.statement,
    )


@dataclass(frozen=True, kw_only=True)
class _Verdict:
    outcome: Outcome
    samples_to_decide: int | None
    statement: str


def _with_thresholds(metric: Metric, decision: Decision) -> Metric:
    """Macro-F1 of several labels is that of the decisions which will be made."""
    if metric.name == "macro-f1" and isinstance(decision, MultiLabel):
        return metric_of("macro-f1", thresholds=decision.thresholds)
    return metric


def _checked(
    asked: Asked, reference: NDArray[np.floating], outputs: NDArray[np.floating], labels: NDArray[np.integer]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Outputs of the reference and of the engine, float64 (n, k), or why they cannot be compared."""
    if not 0.0 < asked.max_drop <= 1.0 or not 0.5 < asked.confidence < 1.0:
        raise DataError(
            f"parity needs 0 < max_drop <= 1 and 0.5 < confidence < 1, not {asked.max_drop} and {asked.confidence}"
        )
    if reference.ndim != 2 or reference.shape != outputs.shape or len(reference) != len(labels):
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
    if asked.sequential and not asked.by_decisions:
        raise DataError(
            f"a sequential comparison is of right decisions one by one, and {asked.metric.title} is none of them"
        )
    if asked.sequential and asked.groups is not None:
        raise DataError("a sequential comparison takes samples one by one, and these belong together")
    return expected, got


def _measured(
    asked: Asked,
    expected: NDArray[np.float64],
    got: NDArray[np.float64],
    labels: NDArray[np.integer],
    answers: Answers,
    units: NDArray[np.int64] | None,
) -> tuple[float, float, Drop]:
    """The metric of the reference, of the engine, and how much lower the latter is."""
    if asked.by_decisions:
        return float(answers.expected_right.mean()), float(answers.right.mean()), _by_decisions(asked, answers, units)
    score = asked.metric(expected, labels)
    if not np.isfinite(got).all():
        return score, 0.0, Drop(value=score, upper=1.0, lower=-1.0, interval=(-1.0, 1.0))
    engine = asked.metric(got, labels)
    if asked.groups == 1:
        return score, engine, Drop(value=score - engine, upper=1.0, lower=-1.0, interval=(-1.0, 1.0))
    groups = labels if asked.metric.by_identity else units
    found = paired_drop(asked.metric, expected, got, labels, confidence=asked.confidence, groups=groups)
    return score, engine, found


def _p_value(answers: Answers, units: NDArray[np.int64] | None) -> float:
    if units is None:
        return paired.mcnemar(answers.worse, answers.better)
    losses = losses_of(answers.expected_right, answers.right, units)
    return min(1.0, 2.0 * min(paired.worse_by_samples(losses), paired.worse_by_samples(-losses)))


def _refused(got: NDArray[np.float64], tolerance: Tolerance | None, numbers: Numeric) -> str:
    """Why numbers alone fail an engine, whatever it decides; empty where they do not."""
    if not np.isfinite(got).all():
        return "the engine returned NaN or infinite values"
    return "; ".join(tolerance.missed(numbers)) if tolerance else ""


def _judged(asked: Asked, found: Drop, counts: tuple[int, int, int] | None, answers: Answers, refused: str) -> _Verdict:
    if refused:
        return _Verdict(outcome="failed", samples_to_decide=None, statement=refused)
    if asked.sequential:
        test = Sequential(asked.max_drop, asked.confidence)
        outcome = test.add(differences(answers.expected_right, answers.right))
        to_decide = _samples_to_decide(asked, found, counts) if outcome == "undecided" else None
        said = sequential_statement(asked, found, outcome)
    else:
        outcome = _outcome(found, asked.max_drop)
        to_decide = _samples_to_decide(asked, found, counts) if outcome == "undecided" else None
        said = statement(asked, found, outcome, to_decide)
    return _Verdict(outcome=outcome, samples_to_decide=to_decide, statement=said)


def _outcome(found: Drop, max_drop: float) -> Outcome:
    """Of all samples of a test split."""
    if found.lower > max_drop:
        return "failed"
    return "passed" if found.upper <= max_drop else "undecided"


def _by_decisions(asked: Asked, answers: Answers, units: NDArray[np.int64] | None) -> Drop:
    worse, better, n, confidence = answers.worse, answers.better, asked.samples, asked.confidence
    apart = Drop(
        value=(worse - better) / n,
        upper=bounds.upper_bound(worse, better, n, confidence),
        lower=-bounds.upper_bound(better, worse, n, confidence),
        interval=bounds.interval(worse, better, n, confidence),
    )
    if units is None:
        return apart
    if asked.groups == 1:
        return replace(apart, upper=1.0, lower=-1.0, interval=(-1.0, 1.0))
    losses = np.asarray(differences(answers.expected_right, answers.right))
    together = grouped_drop(losses, units, confidence=confidence)
    # Groups are no more evidence than their samples.
    return replace(
        apart,
        upper=max(apart.upper, together.upper),
        lower=min(apart.lower, together.lower),
        interval=(min(apart.interval[0], together.interval[0]), max(apart.interval[1], together.interval[1])),
    )


def _detectable(found: Drop, counts: tuple[int, int, int] | None, confidence: float) -> float:
    """See :attr:`Comparison.detectable_drop`."""
    if counts is not None:
        return paired.detectable_drop(*counts, confidence)
    return min(1.0, _standard_error(found, confidence) * _both(confidence))


def _samples_to_decide(asked: Asked, found: Drop, counts: tuple[int, int, int] | None) -> int | None:
    """See :attr:`Comparison.samples_to_decide`."""
    if counts is not None:
        return paired.samples_to_decide(*counts, asked.max_drop, asked.confidence)
    n, distance = asked.samples, abs(asked.max_drop - found.value)
    if distance < 1.0 / n:
        return None
    # The standard error falls with the root of the number of samples, in groups of the size that there are.
    error = found.apart / NormalDist().inv_cdf(asked.confidence) or _standard_error(found, asked.confidence)
    samples = math.ceil(n * (_both(asked.confidence) * error / distance) ** 2)
    samples = max(samples, math.ceil(n * found.rarest / asked.max_drop))  # and what few samples leave open, with it
    least = bounds.samples_needed(asked.max_drop, asked.confidence)
    return max(samples, math.ceil(least * n / (asked.groups or n)), n + 1)


def _standard_error(found: Drop, confidence: float) -> float:
    """Of a drop with bootstrapped bounds: by the further of them, since the drop itself may stand at the other."""
    return max(found.upper - found.value, found.value - found.lower) / NormalDist().inv_cdf(confidence)


def _both(confidence: float) -> float:
    """Standard errors between a drop and what it is told from: for the confidence, and for the power."""
    return NormalDist().inv_cdf(confidence) + NormalDist().inv_cdf(paired.POWER)


def _slices(
    decision: Decision,
    answers: Answers,
    labels: NDArray[np.integer],
    classes: Sequence[str],
    columns: Mapping[str, Sequence[str]],
    confidence: float,
    units: NDArray[np.int64] | None,
) -> tuple[Slice, ...]:
    if isinstance(decision, Similarity):
        return ()  # decisions are on pairs of samples, which belong to no slice
    every = dict(columns)
    if classes and labels.ndim == 1:
        if labels.min() < 0 or labels.max() >= len(classes):
            raise DataError(f"there are labels from {labels.min()} to {labels.max()} for {len(classes)} classes")
        every = {CLASS: [classes[int(label)] for label in labels], **every}
    return slices(answers.expected_right, answers.right, every, confidence, classes=classes, groups=units)
