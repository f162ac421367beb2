"""Where an engine is worse than the reference: for each class, and for each value of a column that the user names.

An engine may keep its accuracy and lose one class. Every slice is tested by itself, and the p values are raised so that
the chance of any false alarm among all of them is what it would be with one (:func:`edgetl.parity.paired.holm`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import DataError
from edgetl.parity.paired import holm, worse_by_samples

CLASS = "class"
"""The column that every data set has."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Some of the decisions."""

    column: str
    """:data:`CLASS`, or a column of the manifest."""
    value: str
    """Name of the class, or what stands in the column."""
    decisions: int
    """On samples; where a sample may have several classes, of a class on all samples."""
    score_reference: float
    """Share that the reference gets right."""
    score: float
    """Share that the engine gets right."""
    worse: int
    """Decisions that only the reference gets right."""
    better: int
    """Decisions that only the engine gets right."""
    p_value: float
    """One-sided and exact: how often chance alone would take so many away. A sample's decisions count together."""
    p_adjusted: float
    """For the number of slices."""
    regressed: bool
    """Whether p_adjusted is below 1 - confidence."""

    @property
    def drop(self) -> float:
        """score_reference - score."""
        return self.score_reference - self.score

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def slices(
    reference_right: NDArray[np.bool_],
    right: NDArray[np.bool_],
    columns: Mapping[str, Sequence[str]],
    confidence: float,
    *,
    classes: Sequence[str] = (),
) -> tuple[Slice, ...]:
    """Compare two models on every value of every column.

    Args:
        reference_right: Whether the reference's decisions are right, (n,), or (n, k) where a sample may have several
            of k classes.
        right: The engine's, of the same shape.
        columns: Column → what stands in it, for each sample. An empty text: the sample is in no slice of the column.
        confidence: That no regression is named where there is none.
        classes: Of decisions (n, k), the names of the k classes: a slice each.

    Returns:
        The likeliest regression first.

    Raises:
        DataError: Shapes do not fit.
    """
    if reference_right.shape != right.shape:
        raise DataError(f"decisions {list(reference_right.shape)} and {list(right.shape)} do not fit together")
    found: list[tuple[str, str, NDArray[np.bool_], NDArray[np.bool_]]] = []
    if classes and right.ndim > 1:
        found += [(CLASS, name, reference_right[:, k], right[:, k]) for k, name in enumerate(classes)]
    for column, values in columns.items():
        if len(values) != len(right):
            raise DataError(f"column '{column}' has {len(values)} values for {len(right)} samples")
        members = np.asarray(values, dtype=object)
        for value in sorted({value for value in values if value}):
            inside = members == value
            found.append((column, value, reference_right[inside], right[inside]))
    p_values = [worse_by_samples(_losses(first, second)) for *_, first, second in found]
    adjusted = holm(p_values)
    listed = [
        Slice(
            column=column,
            value=value,
            decisions=first.size,
            score_reference=float(first.mean()),
            score=float(second.mean()),
            worse=int((first & ~second).sum()),
            better=int((second & ~first).sum()),
            p_value=p_value,
            p_adjusted=p_adjusted,
            regressed=p_adjusted < 1.0 - confidence,
        )
        for (column, value, first, second), p_value, p_adjusted in zip(found, p_values, adjusted, strict=True)
        if first.size
    ]
    return tuple(sorted(listed, key=lambda each: (each.p_adjusted, each.p_value)))


def _losses(reference_right: NDArray[np.bool_], right: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Of each sample, the decisions that only the reference gets right, less those that only the engine does, (n,)."""
    losses = reference_right.astype(np.int64) - right.astype(np.int64)
    balances: NDArray[np.int64] = losses.reshape(len(losses), -1).sum(1)
    return balances
