"""What a comparison came to, as a sentence."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgetl.metrics import Metric
from edgetl.parity import paired
from edgetl.parity.bootstrap import Drop
from edgetl.parity.paired import Outcome


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a comparison is to show."""

    metric: Metric
    samples: int
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
    title, n = asked.metric.title, asked.samples
    sure, allowed = f"{100 * asked.confidence:g}% confidence", f"{100 * asked.max_drop:.2f}"
    if outcome == "passed":
        return f"with {sure} {title} drops by less than {100 * found.upper:.2f} points (allowed {allowed})"
    if outcome == "failed":
        return (
            f"{title} drops by {100 * found.value:.2f} points, with {sure} by at least"
            f" {100 * found.lower:.2f}, and {allowed} are allowed"
        )
    needed = paired.samples_needed(asked.max_drop, asked.confidence)
    if n < needed:
        return f"{n} test samples cannot show a drop below {allowed} points with {sure}: at least {needed} are needed"
    enough = f"some {_rounded(to_decide)} samples would decide it" if to_decide else "it may be just that"
    return (
        f"undecided: {title} drops by {100 * found.value:.2f} points on these {n} samples; with {sure} it may be"
        f" up to {100 * found.upper:.2f}, and {allowed} are allowed; {enough}"
    )


def sequential_statement(asked: Asked, found: Drop, outcome: Outcome) -> str:
    """Of a test that stopped when it was decided; see :func:`statement`."""
    sure, allowed = f"{100 * asked.confidence:g}% confidence", f"{100 * asked.max_drop:.2f} points"
    title, n = asked.metric.title, asked.samples
    if outcome == "passed":
        return f"after {n} test samples it is sure, with {sure}, that {title} drops by less than {allowed}"
    if outcome == "failed":
        return f"after {n} test samples it is sure, with {sure}, that {title} drops by more than {allowed}"
    return (
        f"undecided: {title} drops by {100 * found.value:.2f} points on these {n} test samples, and {allowed}"
        " are allowed; a test with a fixed number of samples needs fewer (parity.sequential = false)"
    )


def _rounded(samples: int) -> str:
    """A forecast has two digits, not five."""
    step = 10 ** max(0, len(str(samples)) - 2)
    return f"{math.ceil(samples / step) * step:,}"
