"""Decisions of the reference and of an engine on the same samples, and which of them are right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgetl.runtime.decision import Decision, Similarity

_PAIRED = 1500
"""Samples whose pairs are decided on, at most: 1.1 million pairs."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Decisions on samples, or on pairs of them."""

    agreement: float
    """Share of decisions on which both agree."""
    expected_right: NDArray[np.bool_]
    """The reference's, of the shape of :func:`answers_of`'s decisions: (n,) or (n, k), or (pairs,)."""
    right: NDArray[np.bool_]
    """The engine's."""

    @property
    def worse(self) -> int:
        """Decisions that only the reference gets right."""
        return int((self.expected_right & ~self.right).sum())

    @property
    def better(self) -> int:
        """Decisions that only the engine gets right."""
        return int((self.right & ~self.expected_right).sum())


def answers_of(
    decision: Decision, expected: NDArray[np.float64], got: NDArray[np.float64], labels: NDArray[np.integer]
) -> Answers:
    """Decide on the outputs of both, and look which decisions are right.

    Args:
        decision: How outputs become answers.
        expected: The reference's outputs, float64 (n, k), all finite.
        got: The engine's; what is not finite decides nothing, and nothing right.
        labels: The right class of each sample, (n,); or 0 and 1 per class, (n, k).
    """
    whole = np.asarray(np.isfinite(got).all(1))
    wanted, truth = _decided(decision, expected), _truth(decision, labels)
    decided = _decided(decision, np.where(whole[:, None], got, 0.0))
    # What is not finite decides nothing: no class, no label, and nothing about a pair.
    there = whole if decided.ndim == 1 else whole[:, None]
    if isinstance(decision, Similarity):
        first, second = _pairs(len(got))
        there = whole[first] & whole[second]
    return Answers(
        agreement=float(((decided == wanted) & there).mean()) if decided.size else 1.0,
        expected_right=np.equal(wanted, truth),
        right=np.equal(decided, truth) & there,
    )


def differences(expected_right: NDArray[np.bool_], right: NDArray[np.bool_]) -> list[int]:
    """For each decision 1 where only the reference is right, -1 where only the engine is, else 0."""
    found: list[int] = (expected_right.astype(np.int64) - right.astype(np.int64)).ravel().tolist()
    return found


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
