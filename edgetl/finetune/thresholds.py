"""Thresholds of decisions. They are chosen on validation outputs alone: none of these functions may see test samples.

All of them belong to decisions that accept where a value is at least the threshold (:mod:`edgetl.runtime.decision`).
Between two values of the validation split the threshold lies halfway, so that rounding in an engine changes little.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import DataError
from edgetl.metrics import metric, verification
from edgetl.runtime.decision import second_probability, sigmoid

Rule = Literal["largest", "mean-threshold", "best-threshold"]
RULES: tuple[Rule, ...] = ("largest", "mean-threshold", "best-threshold")
"""Of two classes; the simplest first."""
_NEUTRAL = 0.5
"""Where nothing can be learnt: the more probable answer."""
_FOLDS = 5


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A rule that was chosen among :data:`RULES`."""

    rule: Rule
    threshold: float
    """Of the second class's probability; 0.5 for "largest"."""
    metric: str
    """By which it was chosen: top1 or macro-f1."""
    scores: dict[str, float]
    """Of every rule on validation samples."""

    @property
    def statement(self) -> str:
        """The choice and what it was chosen from, in one sentence."""
        others = ", ".join(f"{rule} {score:.4f}" for rule, score in self.scores.items())
        return f"decision: {self.rule}, the best on val by {metric(self.metric).title} of the answers ({others})"


def per_class(outputs: NDArray[np.floating], labels: NDArray[np.integer]) -> NDArray[np.float64]:
    """For each class of several labels per sample, the threshold with the best F1 (Lipton et al. 2014).

    Of thresholds that are equally good, the one nearest to 0.5 is taken. A class without a positive has 0.5: every
    threshold has the same F1, and the one that refuses everything would forget the class. arXiv:1402.1892.

    Args:
        outputs: Logits on validation samples, (n, classes).
        labels: 0 and 1, (n, classes).

    Returns:
        Thresholds of the sigmoid, float64 (classes,).

    Raises:
        DataError: The shapes do not fit, labels are other than 0 and 1, or a value is not finite.
    """
    flags = np.asarray(labels)
    _check(outputs)
    if flags.shape != outputs.shape or not np.isin(flags, (0, 1)).all():
        raise DataError(
            f"thresholds per class need labels of 0 and 1 for each of the outputs {list(outputs.shape)}; they have"
            f" labels {list(flags.shape)}"
        )
    probabilities = sigmoid(outputs)
    chosen = [_best_f1(probabilities[:, index], flags[:, index] == 1) for index in range(flags.shape[1])]
    return np.array(chosen, dtype=np.float64)


def best(outputs: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """For two classes, the threshold with the best balanced accuracy: Youden's J (1950, Cancer 3, 32-35).

    It does not depend on how many of the samples are of the second class, which a validation split need not share
    with the field, and a rare class is not given up, as it is where accuracy is maximised. Of thresholds that are
    equally good, the one nearest to 0.5 is taken.

    Args:
        outputs: Logits on validation samples, (n, 2).
        labels: 0 and 1, (n,).

    Returns:
        A threshold of the second class's softmax probability.

    Raises:
        DataError: The shapes do not fit, a class has no sample, or a value is not finite.
    """
    _check(outputs, two=True)
    marks = np.asarray(labels)
    if marks.shape != (len(outputs),) or not np.isin(marks, (0, 1)).all():
        raise DataError(f"a threshold between two classes needs labels of 0 and 1, (n,), not {list(marks.shape)}")
    positive = marks == 1
    if positive.all() or not positive.any():
        raise DataError(
            "the best threshold cannot be found: all validation samples are of one class",
            hint='data.decision = "largest", or validation samples of both classes',
        )
    candidates, hits, accepted = _cuts(second_probability(outputs), positive)
    rate = hits / positive.sum() - (accepted - hits) / (~positive).sum()
    return _nearest(candidates[_equal(rate)])


def mean_probability(outputs: NDArray[np.floating]) -> float:
    """For two classes, the mean probability of the second class: the averaged-probability rule.

    Args:
        outputs: Logits on training or validation samples, (n, 2). It needs no labels.

    Returns:
        A threshold of the second class's softmax probability.

    Raises:
        DataError: There is no sample, the shape is another, or a value is not finite.
    """
    _check(outputs, two=True)
    return float(second_probability(outputs).mean())


def choose(
    outputs: NDArray[np.floating], labels: NDArray[np.integer], train: NDArray[np.floating], *, by: str
) -> Choice:
    """For two classes, the rule with the best answers on validation samples.

    No rule is judged on samples that its threshold comes from: the mean probability is that of train, and the best
    threshold is found on four fifths of the validation samples and judged on the fifth that is left, five times; where
    it is chosen, it is found on all of them. Of rules that are equally good the simplest is taken.

    Args:
        outputs: Logits on validation samples, (n, 2).
        labels: 0 and 1, (n,).
        train: Logits on training samples, (m, 2).
        by: Metric of the answers: top1 or macro-f1.

    Raises:
        DataError: The shapes do not fit, a class has fewer than two validation samples, or a value is not finite.
    """
    _check(outputs, two=True)
    marks = np.asarray(labels)
    if marks.shape != (len(outputs),) or not np.isin(marks, (0, 1)).all():
        raise DataError(f"a rule for two classes needs labels of 0 and 1, (n,), not {list(marks.shape)}")
    fewest = min(int((marks == 0).sum()), int((marks == 1).sum()))
    if fewest < 2:
        raise DataError(
            f"a rule cannot be chosen on val: of one class it has {fewest} of {len(marks)} samples, and needs two",
            hint='data.decision = "largest", or more validation samples',
        )
    mean = mean_probability(train)
    # Classes apart, in the order of the samples: each fold has its share of both.
    rank = np.where(marks == 1, np.cumsum(marks == 1), np.cumsum(marks == 0))
    fold = rank % min(_FOLDS, fewest)
    left_out = np.empty(len(marks))
    for number in np.unique(fold):
        left_out[fold == number] = best(outputs[fold != number], marks[fold != number])
    second = second_probability(outputs)
    answers = {
        "largest": np.asarray(outputs).argmax(1),
        "mean-threshold": second >= mean,
        "best-threshold": second >= left_out,
    }
    judged = metric(by)
    scores = {rule: judged(np.eye(2)[found.astype(np.int64)], marks) for rule, found in answers.items()}
    rule = max(RULES, key=lambda each: scores[each])  # of equals the first
    thresholds = {"largest": _NEUTRAL, "mean-threshold": mean, "best-threshold": best(outputs, marks)}
    return Choice(rule=rule, threshold=thresholds[rule], metric=by, scores=scores)


def similarity(embeddings: NDArray[np.floating], identities: NDArray[Any], far: float) -> float:
    """The cosine from which on two embeddings are of one identity, at a false accept rate.

    Args:
        embeddings: Of validation samples, (n, d).
        identities: Integers (n,); none of them may be among the test samples.
        far: Share of impostor pairs that may be accepted; see :func:`edgetl.metrics.verification`.

    Raises:
        DataError: A value is not finite, or there is no genuine or no impostor pair.
    """
    return verification(embeddings, identities, far).threshold


def _check(outputs: NDArray[np.floating], *, two: bool = False) -> None:
    if outputs.ndim != 2 or not len(outputs) or (two and outputs.shape[1] != 2):
        raise DataError(f"a threshold needs outputs (n, {2 if two else 'classes'}), not {list(outputs.shape)}")
    if not np.isfinite(outputs).all():
        raise DataError("outputs hold NaN or infinite values: no threshold can be found from them")


def _best_f1(probabilities: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    if not positive.any():
        return _NEUTRAL
    candidates, hits, accepted = _cuts(probabilities, positive)
    return _nearest(candidates[_equal(2.0 * hits / (accepted + positive.sum()))])


def _cuts(
    probabilities: NDArray[np.float64], positive: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Thresholds that differ in what they accept, each at least accepting one; of each, accepted positives and all."""
    order = np.argsort(-probabilities, kind="stable")
    falling = probabilities[order]
    last = np.flatnonzero(np.append(falling[1:] < falling[:-1], True))  # of equal values the last
    upper, lower = falling[last], np.append(falling[last[1:]], 0.0)
    middle = (upper + lower) / 2
    middle = np.where(middle > lower, middle, upper)  # neighbours among floating-point numbers, or 0 itself
    hits: NDArray[np.int64] = np.cumsum(positive[order], dtype=np.int64)[last]
    return middle, hits, last.astype(np.int64) + 1


def _equal(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which are the best, but for rounding."""
    result: NDArray[np.bool_] = values >= values.max() - 1e-12
    return result


def _nearest(candidates: NDArray[np.float64]) -> float:
    return float(candidates[np.abs(candidates - _NEUTRAL).argmin()])
