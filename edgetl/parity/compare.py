"""An engine against the reference: on decisions, on numbers, and with a stated confidence."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import DataError, ParityError
from edgetl.metrics import Metric
from edgetl.metrics import metric as metric_of
from edgetl.parity.bootstrap import paired_drop
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
    """Upper confidence bound of the drop, one-sided, paired."""
    confidence: float
    max_drop: float
    max_abs_error: float
    """Largest absolute difference of an output."""
    mean_abs_error: float
    """Mean absolute difference of the outputs."""
    sqnr_db: float
    """Signal-to-quantization-noise ratio of the outputs, in dB; 200 where they are the same."""
    passed: bool
    statement: str
    """The finding as a sentence."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def compare(
    reference: NDArray[np.floating],
    outputs: NDArray[np.floating],
    labels: NDArray[np.integer],
    *,
    max_drop: float,
    confidence: float,
    metric: Metric | None = None,
    decision: Decision | None = None,
) -> Comparison:
    """Compare an engine's outputs with the reference's, sample by sample.

    The engine passes where the upper confidence bound of its drop is at most ``max_drop``: a test of non-inferiority.
    Not seeing a difference is not enough; there must be samples enough to rule one out. For top-1 the bound is Tango's
    (:func:`paired_upper_bound`), for other metrics it comes from a paired bootstrap (:mod:`edgetl.parity.bootstrap`).

    Args:
        reference: The PyTorch model's outputs, shape (n, k).
        outputs: The engine's, of the same shape and order.
        labels: The right class of each sample, shape (n,); or 0 and 1 per class, (n, k).
        max_drop: Largest accepted drop, as a share.
        confidence: Of the one-sided bound.
        metric: What must not drop; None: top-1.
        decision: How outputs become answers; None: the largest logit names the class.

    Raises:
        DataError: There is no sample, or the shapes differ.
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
    n = len(labels)
    whole = np.asarray(np.isfinite(got).all(1))
    finite = bool(whole.all())
    wanted, truth = _decided(decision, expected), _truth(decision, labels)
    decided = _decided(decision, np.where(whole[:, None], got, 0.0))
    right, expected_right = np.equal(decided, truth), np.equal(wanted, truth)
    if decided.shape == (n,):
        right = right & whole
    worse, better = int((expected_right & ~right).sum()), int((right & ~expected_right).sum())
    if metric.name == "top1":
        score_reference, score = float(expected_right.mean()), float(right.mean())
        upper = paired_upper_bound(worse, better, n, confidence)
    else:
        score_reference = metric(expected, labels)
        score = metric(got, labels) if finite else 0.0
        upper = 1.0
        if finite:
            upper = paired_drop(
                metric, expected, got, labels, confidence=confidence, groups=labels if metric.name == "tar" else None
            )[1]
    difference = np.abs(got - expected) if finite else np.full_like(expected, np.inf)
    passed = finite and upper <= max_drop
    return Comparison(
        samples=n,
        metric=metric.name,
        score_reference=score_reference,
        score=score,
        agreement=float((decided == wanted).mean()),
        worse=worse,
        better=better,
        drop=(worse - better) / n if metric.name == "top1" else score_reference - score,
        drop_upper=upper,
        confidence=confidence,
        max_drop=max_drop,
        max_abs_error=_finite(float(difference.max())),
        mean_abs_error=_finite(float(difference.mean())),
        sqnr_db=sqnr_db(expected, got) if finite else -200.0,
        passed=passed,
        statement=_statement(
            metric, score_reference - score, n, upper, max_drop, confidence, finite=finite, passed=passed
        ),
    )


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


def paired_upper_bound(worse: int, better: int, n: int, confidence: float) -> float:
    """Upper bound of a difference of two paired proportions: Tango's score interval.

    Tango, T. (1998), Equivalence test and confidence interval for the difference in proportions for the paired-sample
    design, Statistics in Medicine 17, 891-908. It holds its level for few discordant pairs, where Wald's does not.

    Args:
        worse: Pairs in which only the first is right.
        better: Pairs in which only the second is right.
        n: All pairs.
        confidence: One-sided, as 0.95.

    Returns:
        The largest difference (first minus second) that the data do not reject.
    """
    z = NormalDist().inv_cdf(confidence)
    low, high = (worse - better) / n, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _score(middle, worse, better, n) > -z:
            low = middle
        else:
            high = middle
    return high


def samples_needed(max_drop: float, confidence: float) -> int:
    """How many samples show a drop below ``max_drop`` where engine and reference never disagree.

    The bound without discordant pairs is z² / (n + z²).
    """
    z = NormalDist().inv_cdf(confidence)
    return math.ceil(z * z * (1.0 - max_drop) / max_drop)


def sqnr_db(expected: NDArray[np.floating], got: NDArray[np.floating]) -> float:
    """10 · log10 of the power of the reference over the power of the difference; at most 200."""
    noise = float(np.square(got.astype(np.float64) - expected).sum())
    signal = float(np.square(expected.astype(np.float64)).sum())
    if noise <= signal * 1e-20:
        return 200.0
    return 10.0 * math.log10(signal / noise) if signal > 0 else -200.0


def _score(delta: float, worse: int, better: int, n: int) -> float:
    """The score statistic of the hypothesis that the difference is ``delta``."""
    a = 2.0 * n
    b = -worse - better + (2.0 * n - worse + better) * delta
    c = -better * delta * (1.0 - delta)
    only_second = (math.sqrt(max(b * b - 4.0 * a * c, 0.0)) - b) / (2.0 * a)
    variance = n * (2.0 * only_second + delta * (1.0 - delta))
    if variance <= 0.0:
        return 0.0
    return (worse - better - n * delta) / math.sqrt(variance)


def _statement(
    metric: Metric,
    drop: float,
    n: int,
    upper: float,
    max_drop: float,
    confidence: float,
    *,
    finite: bool,
    passed: bool,
) -> str:
    if not finite:
        return "the engine returned NaN or infinite values"
    share, sure = f"{100 * upper:.2f} points", f"{100 * confidence:g}% confidence"
    if passed:
        return f"with {sure} {metric.title} drops by less than {share} (allowed {100 * max_drop:.2f})"
    needed = samples_needed(max_drop, confidence)
    if metric.name == "top1" and n < needed:
        return (
            f"{n} test samples cannot show a drop below {100 * max_drop:.2f} points with {sure}: "
            f"at least {needed} are needed"
        )
    return (
        f"{metric.title} drops by {100 * drop:.2f} points; with {sure} the drop may be up to {share}, "
        f"and {100 * max_drop:.2f} are allowed"
    )


def _finite(value: float) -> float:
    """JSON has no infinity."""
    return value if math.isfinite(value) else float(np.finfo(np.float64).max)
