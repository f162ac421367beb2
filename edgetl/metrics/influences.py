"""How much each identity, and each two of them, move the true accept rate at a false accept rate.

The rate is a step function of its threshold, and the threshold a quantile of scores of pairs. Resamples of such a
figure spread more than the figure itself does: each moves the threshold to where other steps are, and what two people
have in common is drawn three times instead of once (:mod:`edgetl.metrics.identities` says what is made of that).
What is worked out here is the rate's linear part, by the delta method: the genuine pairs at the threshold that was
found, less the rate's slope times what the impostor pairs do to the false accept rate there (Hsieh and Turnbull 1996,
Annals of Statistics 24, 25-40, for a point of an ROC curve; Lehmann 1999, Elements of Large-Sample Theory, chapter 6,
for means over pairs). The slope is that between two rates that are far enough apart for steps not to matter.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgetl.metrics.verification import FAR, Floats, Pairs, allowed_accepts, pairs_of

_AROUND = 1.5
"""The slope is that between so many times the false accept rate and the same part of it. With 1.3 it varies more, and
with 2 or 3 what it leaves out of a curve is seen in the coverage of the interval."""
_LEAST = 5
"""Impostor pairs, at least, between the rate and either end of the slope."""
_LEAST_ACCEPTED = 5
"""Impostor pairs that may be accepted, at least, for a linear part. With two (8 people with 3 samples each)
the 95% interval held in 90.7% of 300 simulated test sets; docs/parity.md has more of it."""


class Influences(NamedTuple):
    """The linear part of a figure of pairs: its value, plus the mean of ``own``, plus the mean of ``shared``."""

    own: Floats
    """Of each identity, by its genuine pairs, (identities,); their mean is 0."""
    shared: Floats
    """Of each two identities, by the impostor pairs between them, (identities, identities), symmetric; 0 on the
    diagonal, and the mean of the others is 0."""


def true_accept_influences(outputs: Floats, labels: NDArray[np.int64]) -> Influences | None:
    """Of TAR at a FAR of :data:`~edgetl.metrics.verification.FAR`, in units of one over the number of identities.

    Args:
        outputs: Embeddings (n, d), finite, with a genuine and an impostor pair among them.
        labels: Identities (n,).

    Returns:
        None where fewer than five impostor pairs may be accepted: too few for a slope.
    """
    pairs = pairs_of(outputs, labels)
    people, everyone = len(pairs.genuine), len(pairs.impostors)
    allowed = allowed_accepts(FAR, everyone)
    if allowed < _LEAST_ACCEPTED:
        return None
    refused = -float(np.partition(-pairs.impostors, allowed)[allowed])
    sizes = np.array([len(part) for part in pairs.genuine], dtype=np.float64)
    accepted = np.array([(part > refused).sum() for part in pairs.genuine], dtype=np.float64)
    own = (accepted - accepted.sum() / sizes.sum() * sizes) / sizes.mean()

    taken = pairs.impostors > refused
    rate = float(taken.mean())
    counts = np.bincount(pairs.places[taken], minlength=people**2).reshape(people, people)
    shared = (counts + counts.T).astype(np.float64)  # each two identities were counted in one half of it
    samples = np.unique(labels, return_counts=True)[1]
    for row, some in zip(shared, samples.tolist(), strict=True):  # in place: of thousands of people it is large
        row -= rate * some * samples
    np.fill_diagonal(shared, 0.0)
    shared *= -_slope(pairs, allowed) / (everyone / (people * (people - 1) / 2.0))
    return Influences(own=own, shared=shared)


def _slope(pairs: Pairs, allowed: int) -> float:
    """By how much the true accept rate rises with the false accept rate."""
    everyone = len(pairs.impostors)
    most = min(max(math.ceil(allowed * _AROUND), allowed + _LEAST), everyone - 1)
    fewest = max(min(math.floor(allowed / _AROUND), allowed - _LEAST), 0)
    if most <= fewest:
        return 0.0
    ends = -np.partition(-pairs.impostors, [fewest, most])[[fewest, most]]
    genuine = np.concatenate(pairs.genuine)
    fewer, more = ((genuine > end).mean() for end in ends)
    return float(more - fewer) * everyone / (most - fewest)
