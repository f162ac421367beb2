"""What a comparison came to, as a sentence."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgetl.metrics import Metric
from edgetl.parity import bounds
from edgetl.parity.bootstrap import Drop
from edgetl.parity.paired import Outcome

_DIGITS = 10
"""Of a share; what is less is no finding of any number of samples."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a comparison is to show."""

    metric: Metric
    samples: int
    groups: int | None
    """In how many groups they belong together, which are drawn as a whole; None: each is by itself."""
    max_drop: float
    """Largest accepted drop, as a share."""
    confidence: float
    sequential: bool
    """Whether samples were looked at one by one until it was decided."""

    @property
    def by_decisions(self) -> bool:
        """Whether the metric is the share of right decisions."""
        return self.metric.name == "top1"


def statement(asked: Asked, found: Drop, outcome: Outcome, to_decide: int | None) -> str:
    """Of a test with a fixed number of samples.

    Args:
        asked: What it was to show.
        found: The drop and its bounds.
        outcome: What it showed.
        to_decide: Samples that would probably decide it, where it showed neither.
    """
    title, n, sure = asked.metric.title, asked.samples, _sure(asked)
    if outcome == "passed":
        bound, allowed = _points(found.upper, asked.max_drop)
        if found.upper < 0.0:
            return f"with {sure} {title} rises by at least {bound[1:]} points (a drop of {allowed} is allowed)"
        return f"with {sure} {title} drops by less than {bound} points (allowed {allowed})"
    if outcome == "failed":
        value, bound, allowed = _points(found.value, found.lower, asked.max_drop)
        return f"{title} drops by {value} points, with {sure} by at least {bound}, and {allowed} are allowed"
    needed = bounds.samples_needed(asked.max_drop, asked.confidence)
    if (asked.groups or n) < needed:
        (allowed,) = _points(asked.max_drop)
        what = f"{n} test samples" + (f" in {asked.groups} groups" if asked.groups else "")
        of = f"{needed} groups" if asked.groups else f"{needed}"
        return f"{what} cannot show a drop below {allowed} points with {sure}: at least {of} are needed"
    bound, allowed = _points(found.upper, asked.max_drop)
    enough = f"some {_rounded(to_decide)} samples would decide it" if to_decide else "it may be just that"
    within = f" in {asked.groups} groups" if asked.groups else ""
    return (
        f"undecided: {title} {_moves(found.value)} points on these {n} samples{within}; with {sure} it may drop by"
        f" up to {bound}, and {allowed} are allowed; {enough}"
    )


def sequential_statement(asked: Asked, found: Drop, outcome: Outcome) -> str:
    """Of a test that stopped when it was decided; see :func:`statement`."""
    title, n, sure = asked.metric.title, asked.samples, _sure(asked)
    (allowed,) = _points(asked.max_drop)
    if outcome == "passed":
        return f"after {n} test samples it is sure, with {sure}, that {title} drops by less than {allowed} points"
    if outcome == "failed":
        return f"after {n} test samples it is sure, with {sure}, that {title} drops by more than {allowed} points"
    return (
        f"undecided: {title} {_moves(found.value)} points on these {n} test samples, and {allowed} points"
        " are allowed; a test with a fixed number of samples needs fewer (parity.sequential = false)"
    )


def _sure(asked: Asked) -> str:
    """The confidence as it was asked for: nothing is sure to 100%."""
    return f"{100 * asked.confidence:.12g}% confidence"


def _points(*shares: float) -> list[str]:
    """Shares as points: with two decimals, or as many more as it takes to tell them from 0 and from one another."""
    exact = [_exact(share) for share in shares]
    for decimals in range(2, 9):
        texts = [f"{100 * share:.{decimals}f}" for share in exact]
        shown = [float(text) for text in texts]
        told = all((one == 0.0) == (share == 0.0) for one, share in zip(shown, exact, strict=True))
        if told and len(set(shown)) == len(set(exact)):
            break
    return texts


def _moves(drop: float) -> str:
    """How a metric moves, without its unit."""
    (size,) = _points(abs(drop))
    return f"rises by {size}" if _exact(drop) < 0.0 else f"drops by {size}"


def _exact(share: float) -> float:
    """A share without what its last bits got by rounding: two metrics of the same counts may differ in these."""
    return round(share, _DIGITS) + 0.0


def _rounded(samples: int) -> str:
    """A forecast has two digits, not five."""
    step = 10 ** max(0, len(str(samples)) - 2)
    return f"{math.ceil(samples / step) * step:,}"
