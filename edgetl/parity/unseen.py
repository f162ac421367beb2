"""What a test set of few samples did not show, of a metric of ranks.

An engine costs AUC where it puts a positive below negatives. Of eight positives, or of thirty that nearly all lie far
above, mostly none or one is put so: what was seen is then smaller than what there is, and so is what it scatters by.
But how far outputs are moved is seen at every sample, and so is where samples lie. Hence copies of the test set are
made in which a sample lies a little elsewhere, as one of its class could (the smoothed bootstrap: Silverman and Young
1987, Biometrika 74, 469-479), and is moved by as much as another one of its class was. What that does to the metric,
sample by sample, tells the size of what other samples of these classes would have shown, and which classes a drop
scatters by: of a few samples, it has few degrees of freedom (Satterthwaite 1946, Biometrics Bulletin 2, 110-114).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgetl.distributions import MANY
from edgetl.metrics import Metric
from edgetl.parity.resampling import Pair, influence_of, size_of

_COPIES, _UNITS = 8, 4000
"""Copies, and units in all of them, at most."""
_KEYS = 4
"""Outputs that samples are put in order by; those that are alike in them stay as they are."""
_SILVERMAN = 0.9
"""Of the standard deviation times n^(-1/5): the width by which samples are moved (Silverman 1986, Density Estimation,
equation 3.31, without its quartiles: where most samples lie together, it is about the others)."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Unseen:
    """What other samples would have shown."""

    size: float
    """How much of the metric such a sample would have moved, as :func:`edgetl.parity.resampling.size_of`."""
    freedom: int
    """Degrees of freedom of what the drop scatters by, at least 1."""


def unseen(
    metric: Metric,
    reference: NDArray[np.floating],
    outputs: NDArray[np.floating],
    labels: NDArray[np.integer],
    units: NDArray[np.int64],
    *,
    together: NDArray[np.int64] | None = None,
) -> Unseen:
    """What other samples of the same classes would have shown of the drop of a metric of ranks.

    Args:
        metric: Of ranks.
        reference: Outputs of the reference, logits (n, k).
        outputs: Of the engine, of the same shape.
        labels: Integers (n,), or 0 and 1, (n, k).
        units: Which unit is looked at with every sample, (n,).
        together: What every sample belongs to, whose samples are moved together, (n,); None: the units.
    """
    order = _order(reference, outputs)
    together = _numbered((units if together is None else together)[order])
    reference, outputs, labels, units = reference[order], outputs[order], labels[order], _numbered(units[order])
    many = int(units.max()) + 1
    random = np.random.default_rng(many)  # the same for every seed of the resamples
    exact, got = reference.astype(np.float64), outputs.astype(np.float64)
    found = []
    for _ in range(max(1, min(_COPIES, _UNITS // many))):
        both = smoothed(exact, got, labels, together, random)
        found.append(influence_of(Pair(*(metric.weighted(each, labels) for each in both)), units))
    influences = np.stack(found)
    return Unseen(size=size_of(influences.ravel()), freedom=_freedom(np.square(influences).sum(0), labels, units))


def _order(reference: NDArray[np.floating], outputs: NDArray[np.floating]) -> NDArray[np.int64]:
    """Samples by what is answered to them: in whatever order a test set is read, it has the same copies, (n,)."""
    found: NDArray[np.int64] = np.lexsort(np.hstack([reference[:, :_KEYS], outputs[:, :_KEYS]]).T)
    return found


def _numbered(units: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same units, numbered from 0 in the order in which they first come, (n,)."""
    firsts, places = np.unique(units, return_index=True, return_inverse=True)[1:]
    numbers = np.empty(len(firsts), dtype=np.int64)
    numbers[np.argsort(firsts)] = np.arange(len(firsts))
    found: NDArray[np.int64] = numbers[places]
    return found


def _freedom(squares: Floats, labels: NDArray[np.integer], units: NDArray[np.int64]) -> int:
    """Satterthwaite's degrees of freedom of a sum over classes.

    Args:
        squares: Of each unit, what the drop scatters by for it, (units,).
        labels: Integers (n,), or 0 and 1, (n, k), of which samples without any 1 are a class of their own.
        units: Of each sample, (n,).
    """
    if labels.ndim == 1:
        samples, classes = np.arange(len(labels)), np.unique(labels, return_inverse=True)[1]
    else:
        samples, classes = np.nonzero(np.column_stack([labels, ~labels.any(axis=1)]))
    members = np.zeros((len(squares), int(classes.max()) + 1))
    np.add.at(members, (units[samples], classes), 1.0)
    scatter = squares @ (members / members.sum(axis=1, keepdims=True))
    if not scatter.any():
        return MANY
    freedom = scatter.sum() ** 2 / (np.square(scatter) / np.maximum((members > 0).sum(axis=0) - 1, 1)).sum()
    return int(np.clip(freedom, 1, MANY))


def smoothed(
    reference: Floats,
    outputs: Floats,
    labels: NDArray[np.integer],
    units: NDArray[np.int64],
    random: np.random.Generator,
) -> tuple[Floats, Floats]:
    """A copy of a test set whose samples lie a little elsewhere, each moved as another one of its class was.

    Args:
        reference: Outputs of the reference, logits (n, k).
        outputs: Of the engine, of the same shape.
        labels: Integers (n,), one class each; or 0 and 1, (n, k), of which every column is dealt by itself.
        units: What samples belong to, (n,): those of one class and unit lie elsewhere together, and are moved as those
            of another unit were.
        random: Where the draws come from.

    Returns:
        The outputs of both in that copy, (n, k) each.
    """
    changes = outputs - reference
    there, moved = reference.copy(), np.empty_like(reference)
    for rows, columns in _strata(labels, reference.shape[1]):
        place = np.ix_(rows, columns)
        unit, sizes = np.unique(units[rows], return_inverse=True, return_counts=True)[1:]
        many = len(sizes)
        width = _SILVERMAN * many**-0.2 * reference[place].std(axis=0) * (many / max(many - 1, 1)) ** 0.5
        there[place] += (width * random.normal(size=(many, len(columns))) if many > 1 else np.zeros((1, 1)))[unit]
        moved[place] = changes[place][_dealt(unit, sizes, random.permutation(many))]
    return there, there + moved


def _dealt(unit: NDArray[np.int64], sizes: NDArray[np.int64], donors: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each sample one of the unit that gives to its own: the first for the first, and round again.

    Args:
        unit: Of each sample, (n,).
        sizes: Of the units, in samples, (units,).
        donors: Of each unit, (units,).
    """
    order, firsts = np.argsort(unit, kind="stable"), np.cumsum(sizes) - sizes
    number = np.empty_like(unit)
    number[order] = np.arange(len(unit)) - np.repeat(firsts, sizes)
    giver = donors[unit]
    found: NDArray[np.int64] = order[firsts[giver] + number % sizes[giver]]
    return found


def _strata(labels: NDArray[np.integer], outputs: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Samples of one class, with the outputs in which they are alike."""
    everyone = np.arange(outputs)
    if labels.ndim == 1:
        for index in np.unique(labels):
            yield np.flatnonzero(labels == index), everyone
        return
    for column in everyone:
        for mark in (0, 1):
            rows = np.flatnonzero(labels[:, column] == mark)
            if len(rows):
                yield rows, everyone[column : column + 1]
