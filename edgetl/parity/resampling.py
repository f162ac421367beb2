"""Resamples of a paired test set, and what each of its units moves: what bounds by the bootstrap are made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import DataError
from edgetl.metrics import Metric, Weighted, resample_block, resample_weights

Drops = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Weights (n, b): b sets of them → the drop with each set, (b,); NaN where it has no value."""

_TRIES = 50
"""Resamples drawn, at most, for each one that is wanted."""
UNSEEN = 1.0
"""Samples added to a resample on average, in each direction."""
_LESS = 0.5
"""Share of a unit's weight that is taken away to see its influence: not all, or a class might have nobody left."""
_MOST_UNITS = 2000
"""Whose influences are looked at one by one."""


@dataclass(frozen=True)
class Pair:
    """The metric of both models as a function of weights."""

    reference: Weighted
    outputs: Weighted

    def __call__(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Drops with weights (n, b): (b,)."""
        drops: NDArray[np.float64] = self.reference(weights) - self.outputs(weights)
        return drops


@dataclass(frozen=True, kw_only=True)
class Resamples:
    """What came of resamples."""

    units: NDArray[np.int64]
    """Of each sample, (n,)."""
    influence: NDArray[np.float64]
    """Of each unit, (units,)."""
    drops: NDArray[np.float64]
    """(resamples,)"""
    influences: NDArray[np.float64]
    """Sum over the units that were drawn, (resamples,)."""
    size: float
    """Influence of a sample that nobody saw."""


def units_of(metric: Metric, labels: NDArray[Any], groups: NDArray[Any] | None) -> NDArray[np.int64]:
    """Which unit of the draw every sample belongs to, (n,), from 0 on."""
    if metric.by_identity:
        identities = np.unique(labels, return_inverse=True)[1]
        if groups is not None and not _same_partition(np.asarray(groups), identities):
            raise DataError(f"{metric.title} is resampled by identity; other groups cannot be drawn")
        units = identities
    elif groups is None:
        units = np.arange(len(labels))
    else:
        units = np.unique(groups, return_inverse=True)[1]
    if len(units) != len(labels):
        raise DataError(f"there are {len(units)} groups for {len(labels)} samples")
    if not units.max():
        raise DataError("a bootstrap needs two groups of samples or more; all samples are of one")
    return units.astype(np.int64)


def _same_partition(groups: NDArray[Any], identities: NDArray[np.int64]) -> bool:
    if groups.shape != identities.shape:
        return False
    codes = np.unique(groups, return_inverse=True)[1]
    pairs = len(set(zip(codes.tolist(), identities.tolist(), strict=True)))
    return bool(pairs == codes.max() + 1 == identities.max() + 1)


def gathered(units: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.int64]:
    """Units, or where there are very many, groups of them at random: each is looked at by itself."""
    many = int(units.max()) + 1
    if many <= _MOST_UNITS:
        return units
    found: NDArray[np.int64] = random.permutation(np.arange(many) % _MOST_UNITS)[units]
    return found


def rarest_class(labels: NDArray[Any], units: NDArray[np.int64]) -> tuple[int, int]:
    """In how many units the rarest class is, of those that are there, and how many classes these are."""
    samples, classes = np.nonzero(labels == 1) if labels.ndim > 1 else (np.arange(len(labels)), labels)
    there = np.unique(np.stack([classes, units[samples]]), axis=1)[0]
    counts = np.unique(there, return_counts=True)[1]
    return (int(counts.min()), len(counts)) if len(counts) else (1, 1)


def influence_of(pair: Drops, units: NDArray[np.int64]) -> NDArray[np.float64]:
    """By how much the drop rises with a unit's weight, (units,), in units of one over their number; with mean 0."""
    many, block = int(units.max()) + 1, resample_block(len(units))
    whole = float(pair(np.ones((len(units), 1)))[0])
    found = np.empty(many)
    for start in range(0, many, block):
        chosen = np.arange(start, min(start + block, many))
        weights = np.where(units[:, None] == chosen[None, :], 1.0 - _LESS, 1.0)
        found[chosen] = (whole - pair(weights)) * many / _LESS
    if np.abs(found).max() < 1e-9 * many:  # equal numbers that were added up in another order
        return np.zeros(many)
    influence: NDArray[np.float64] = found - found.mean()
    return influence


def size_of(influence: NDArray[np.float64]) -> float:
    """Of the influences that matter: the root of their mean square, each counting by its own square."""
    squares = np.square(influence)
    return math.sqrt(float(squares @ squares) / float(squares.sum())) if squares.any() else 0.0


def resampled(
    pair: Drops,
    units: NDArray[np.int64],
    resamples: int,
    random: np.random.Generator,
    *,
    unseen: float = 0.0,
) -> Resamples:
    """Resamples with what nobody saw added, at least of some size; where the metric has no value, another is drawn."""
    block = resample_block(len(units))
    influence = influence_of(pair, units)
    # Of their own, so that the size of a block changes nothing.
    others = np.random.default_rng(random.integers(0, 2**63))
    each = influence[units] / np.bincount(units)[units]  # of a sample's share in its unit
    size, many = max(size_of(influence), unseen), len(influence)
    drops: list[NDArray[np.float64]] = []
    influences: list[NDArray[np.float64]] = []
    drawn, have = 0, 0
    while have < resamples:
        if drawn >= _TRIES * resamples:
            raise DataError(
                f"of {drawn} resamples only {have} had a value: too few samples of a class",
                hint="more test samples of the rarest class",
            )
        count = min(block, resamples - have)
        weights = resample_weights(random, units, count)
        worse, better = others.poisson(UNSEEN, (count, 2)).T
        added = (worse - better) * size
        values = pair(weights) + added / many
        there = ~np.isnan(values)
        drops.append(values[there])
        influences.append((each @ weights + added)[there])
        drawn, have = drawn + count, have + len(drops[-1])
    return Resamples(
        units=units,
        influence=influence,
        drops=np.concatenate(drops),
        influences=np.concatenate(influences),
        size=size,
    )
