"""Verification: whether two embeddings are of one identity, at a false accept rate, over all pairs of samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import DataError

Floats = NDArray[np.float64]
Weighted = Callable[[Floats], Floats]
"""Weights of the samples, (n, b): b sets of them → the metric with each set, (b,); NaN where it has no value."""

FAR = 1e-2
"""Share of impostor pairs that the metric "tar" may accept."""
NEEDS = "two samples of one identity, and two identities"
CELLS = 200_000
"""Array elements that are worked on at a time: what fits into a core's cache."""


class Verification(NamedTuple):
    """How well embeddings tell whether two samples are of one identity."""

    tar: float
    """Share of genuine pairs that are accepted."""
    threshold: float
    """Cosine from which on a pair is accepted."""
    genuine: int
    """Pairs of one identity."""
    impostors: int
    """Pairs of two identities."""


def verification(embeddings: NDArray[np.floating], identities: NDArray[Any], far: float) -> Verification:
    """True accept rate at a false accept rate, over all pairs (ISO/IEC 19795-1; Klare et al. 2015, IJB-A).

    The threshold is the lowest that accepts no more than ``far`` of the impostor pairs, halfway between the best
    impostor that is refused and the next score above. With fewer than 1 / far impostor pairs it accepts none of them.

    Args:
        embeddings: Float (n, d), of any length other than zero.
        identities: Integers (n,).
        far: Share of impostor pairs that may be accepted, between 0 and 1.

    Raises:
        DataError: A value is not finite, or there is no genuine or no impostor pair.
    """
    values, marks = checked(embeddings, identities)
    if not np.isfinite(values).all():
        raise DataError("embeddings hold NaN or infinite values: no threshold can be found from them")
    pairs = pairs_of(values, marks)
    genuine, impostors = np.concatenate(pairs.genuine), pairs.impostors
    allowed = allowed_accepts(far, len(impostors))
    if not len(genuine) or not len(impostors):
        raise DataError(f"verification needs {NEEDS}")
    refused = -float(np.partition(-impostors, allowed)[allowed])
    above = np.concatenate([genuine[genuine > refused], impostors[impostors > refused]])
    if not len(above):
        return Verification(0.0, float(np.nextafter(refused, 2.0)), len(genuine), len(impostors))
    threshold = (refused + float(above.min())) / 2
    if threshold <= refused:  # the two are neighbours among floating-point numbers
        threshold = float(above.min())
    return Verification(float((genuine >= threshold).mean()), threshold, len(genuine), len(impostors))


class Pairs(NamedTuple):
    """Cosines of all pairs."""

    genuine: list[Floats]
    """Of each identity."""
    impostors: Floats
    """Of two identities."""
    places: NDArray[np.int64]
    """Of each impostor pair, the one identity's place times the number of identities, plus the other's."""


def pairs_of(embeddings: Floats, identities: NDArray[np.int64]) -> Pairs:
    """Cosines of all pairs of embeddings (n, d) with identities (n,)."""
    if identities.ndim != 1:
        raise DataError(f"identities are one number per sample; they have the shape {list(identities.shape)}")
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    units = embeddings / np.where(lengths > 0, lengths, 1.0)
    names, codes = np.unique(identities, return_inverse=True)
    order = np.argsort(codes, kind="stable")  # an identity's samples side by side: no pair needs to be looked up
    units, codes = units[order], codes[order]
    ends = np.searchsorted(codes, np.arange(len(names)), side="right")
    genuine, impostors, places = [], [np.empty(0)], [np.empty(0, dtype=np.int64)]
    for name, (start, end) in enumerate(zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True)):
        cosines = units[start:end] @ units[start:].T
        genuine.append(cosines[:, : end - start][np.triu_indices(end - start, 1)])
        impostors.append(cosines[:, end - start :].ravel())
        places.append(np.tile(name * len(names) + codes[end:], end - start))
    return Pairs(genuine, np.concatenate(impostors), np.concatenate(places))


def allowed_accepts(far: float, impostors: int) -> int:
    """How many of so many impostor pairs may be accepted."""
    if not 0.0 < far < 1.0:
        raise DataError(f"a false accept rate is between 0 and 1, not {far}")
    return math.floor(far * impostors + 1e-9)  # 0.29 times 100 is 28.999…


def true_accepts(outputs: Floats, labels: NDArray[np.int64]) -> Weighted:
    """:func:`verification`'s TAR with weights of identities; :mod:`edgetl.parity.bootstrap` says which pairs count.

    Args:
        outputs: Embeddings (n, d).
        labels: Identities (n,).
    """
    pairs = pairs_of(outputs, labels)
    _, one_of, counts = np.unique(labels, return_index=True, return_counts=True)
    genuine = [np.sort(-part) for part in pairs.genuine]
    sizes = np.array([len(part) for part in genuine], dtype=np.float64)

    def weighted(weights: Floats) -> Floats:
        drawn = weights[one_of]
        impostors = (np.square(counts @ drawn) - np.square(counts) @ np.square(drawn)) / 2.0
        refused = _first_refused(pairs, drawn, FAR * impostors + 1e-9)
        accepted = [np.searchsorted(part, -refused, side="left") for part in genuine]
        rate = ratio(np.einsum("ab,ab->b", drawn, np.stack(accepted).astype(np.float64)), sizes @ drawn)
        return np.where(impostors > 0, rate, np.nan)

    return weighted


def _first_refused(pairs: Pairs, drawn: Floats, limits: Floats) -> Floats:
    """The highest impostor score with which more than the limit would be accepted; (b,), 2 where there is none.

    Args:
        pairs: All pairs.
        drawn: Weights of the identities, (identities, b).
        limits: Weights of impostor pairs that may be accepted, (b,).
    """
    result = np.full(drawn.shape[1], 2.0)
    everyone, open_ = len(pairs.impostors), np.arange(drawn.shape[1])
    reach = min(everyone, math.ceil(2 * FAR * everyone) + 100)
    while len(open_) and everyone:
        best = np.argpartition(-pairs.impostors, reach - 1)[:reach]
        best = best[np.argsort(-pairs.impostors[best], kind="stable")]
        place = _place(pairs.places[best], drawn[:, open_], limits[open_])
        inside = place < reach
        result[open_[inside]] = pairs.impostors[best[place[inside]]]
        if reach == everyone:
            break
        open_, reach = open_[~inside], min(everyone, 4 * reach)  # their thresholds lie deeper
    return result


def _place(places: NDArray[np.int64], drawn: Floats, limits: Floats) -> NDArray[np.int64]:
    """How many of the pairs, best first, may be accepted before their weight is above the limit; (b,).

    The weight of a run of pairs is a quadratic form of the identities' weights, dᵀ H d, where H counts the run's pairs
    of every two identities: a matrix product says in which run the limit is passed; pair by pair only that is added.
    """
    identities, sets = drawn.shape
    runs = int(np.clip(12 * math.sqrt(len(places)) / identities, 1, 256))  # both parts then take about as long
    edges = np.linspace(0, len(places), runs + 1).astype(np.int64)
    before = np.zeros((runs + 1, sets))
    for number, (start, end) in enumerate(pairwise(edges.tolist())):
        counts = np.bincount(places[start:end], minlength=identities**2).reshape(identities, identities)
        mass = np.einsum("ab,ab->b", drawn, counts.astype(np.float64) @ drawn)
        before[number + 1] = before[number] + mass
    run = (before[1:] <= limits).sum(0)
    result = np.full(sets, len(places), dtype=np.int64)
    for number in np.unique(run[run < runs]).tolist():
        start, end = int(edges[number]), int(edges[number + 1])
        first, second = np.divmod(places[start:end], identities)
        mine = np.flatnonzero(run == number)
        step = max(1, CELLS // (end - start))
        for part in (mine[at : at + step] for at in range(0, len(mine), step)):
            taken = np.cumsum(drawn[np.ix_(first, part)] * drawn[np.ix_(second, part)], axis=0)
            result[part] = start + (before[number, part] + taken <= limits[part]).sum(0)
    return result


def ratio(above: Floats, below: Floats) -> Floats:
    """Quotients; NaN where there is nothing below."""
    result: Floats = np.divide(above, below, out=np.full(np.shape(below), np.nan), where=below > 0)
    return result


def checked(outputs: NDArray[np.floating], labels: NDArray[Any]) -> tuple[Floats, NDArray[np.int64]]:
    """Outputs as float64 and labels as int64.

    Raises:
        DataError: There is no sample, the shapes do not fit, or the labels are not whole numbers.
    """
    values, marks = np.asarray(outputs), np.asarray(labels)
    if values.ndim != 2 or not len(values) or len(values) != len(marks):
        raise DataError(
            f"a metric needs outputs (n, k) and a label for each; it has outputs {list(values.shape)}"
            f" and labels {list(marks.shape)}"
        )
    if marks.dtype.kind not in "biu" and not (marks.dtype.kind == "f" and (marks == np.floor(marks)).all()):
        raise DataError(f"labels are whole numbers, not {marks.dtype}")
    return values.astype(np.float64), marks.astype(np.int64)
