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
    groups: NDArray[np.int64] | None = None,
) -> tuple[Slice, ...]:
    """Compare two models on every value of every column.

    Args:
        reference_right: Whether the reference's decisions are right, (n,), or (n, k) where a sample may have several
            of k classes.
        right: The engine's, of the same shape.
        columns: Column → what stands in it, for each sample. An empty text: the sample is in no slice of the column.
        confidence: That no regression is named where there is none.
        classes: Of decisions (n, k), the names of the k classes: a slice each.
        groups: Which of the samples belong together, (n,): their decisions count together. None: each is by itself.

    Returns:
        The likeliest regression first.

    Raises:
        DataError: Shapes do not fit.
    """
    if reference_right.shape != right.shape:
        raise DataError(f"decisions {list(reference_right.shape)} and {list(right.shape)} do not fit together")
    units = np.arange(len(right)) if groups is None else groups
    found: list[tuple[str, str, NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]] = []
    if classes and right.ndim > 1:
        found += [(CLASS, name, units, reference_right[:, k], right[:, k]) for k, name in enumerate(classes)]
    for column, values in columns.items():
        if len(values) != len(right):
            raise DataError(f"column '{column}' has {len(values)} values for {len(right)} samples")
        members = np.asarray(values, dtype=object)
        for value in sorted({value for value in values if value}):
            inside = members == value
            found.append((column, value, units[inside], reference_right[inside], right[inside]))
    p_values = [worse_by_samples(losses_of(first, second, unit)) for _, _, unit, first, second in found]
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
        for (column, value, _, first, second), p_value, p_adjusted in zip(found, p_values, adjusted, strict=True)
        if first.size
    ]
    return tuple(sorted(listed, key=lambda each: (each.p_adjusted, each.p_value)))


def losses_of(
    reference_right: NDArray[np.bool_], right: NDArray[np.bool_], units: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Of each sample or group, the decisions that only the reference gets right, less those that only the engine does.

    Args:
        reference_right: Whether the reference's decisions are right, (n,) or (n, k).
        right: The engine's, of the same shape.
        units: Which unit a sample belongs to, (n,).

    Returns:
        One for each unit that there is.
    """
    losses = reference_right.astype(np.int64) - right.astype(np.int64)
    balances = losses.reshape(len(losses), -1).sum(1) if len(losses) else np.zeros(0, np.int64)
    places = np.unique(units, return_inverse=True)[1]
    found = np.zeros(int(places.max(initial=-1)) + 1, dtype=np.int64)
    np.add.at(found, places, balances)
    return found
