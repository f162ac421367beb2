"""Whether one thing is faster than another, and whether it is slower than it may be."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgetl.benchmark import bootstrap
from edgetl.benchmark.summary import RUN_BLOCKS, nearest_rank
from edgetl.errors import UsageError
from edgetl.numbers import decimals_apart


@dataclass(frozen=True, kw_only=True, eq=False)
class Series:
    """The calls that count of one thing, (n,) each."""

    name: str
    times_ns: NDArray[np.int64]
    process: NDArray[np.int64]
    """The round of each call: processes of the same number lived at the same time."""
    block: NDArray[np.int64]
    """The pass of each call within its round: blocks of the same number were timed shortly after each other."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One thing against another."""

    name: str
    against: str
    ratio: float
    """Median of the first over median of the second: geometric mean over rounds."""
    lower: float
    upper: float
    """Two-sided interval of the ratio."""
    confidence: float
    verdict: Literal["faster", "slower", "no difference"]
    """Of the first; no difference: the interval holds 1."""
    rounds: int
    """Pairs of processes."""

    @property
    def statement(self) -> str:
        """In words."""
        ends = decimals_apart((self.lower, self.upper), 1.0, least=3)
        span = f"{self.lower:.{ends}f} to {self.upper:.{ends}f}"
        sure = f"{sure_of(self.confidence)} interval of the ratio of medians {span}"
        if self.verdict == "faster":
            factor = 1 / self.ratio
            decimals = decimals_apart((factor,), 1.0, least=2)
            return f"{self.name} is {factor:.{decimals}f}× as fast as {self.against} ({sure})"
        if self.verdict == "slower":
            decimals = decimals_apart((self.ratio,), 1.0, least=2)
            return f"{self.name} takes {self.ratio:.{decimals}f}× as long as {self.against} ({sure})"
        return f"no difference between {self.name} and {self.against} was seen ({sure})"

    def to_json(self) -> dict[str, Any]:
        """Plain values; a bound that is not known is None."""
        upper = self.upper if math.isfinite(self.upper) else None
        return {**asdict(self), "upper": upper, "statement": self.statement}


@dataclass(frozen=True, kw_only=True)
class Slowdown:
    """Whether something is slower than a baseline by more than it may be."""

    comparison: Comparison
    allowed: float
    """As a share: 0.03 is 3%."""
    outcome: Literal["passed", "failed", "undecided"]

    @property
    def statement(self) -> str:
        """In words."""
        found = self.comparison
        ends = (100 * (found.lower - 1), 100 * (found.upper - 1))
        decimals = decimals_apart(ends, 100 * self.allowed, least=1)
        low, high = (f"{end:+.{decimals}f}%" for end in ends)
        span = f"{low} to {high} with {sure_of(found.confidence)} confidence"
        verb = {
            "passed": "is slower by no more than",
            "failed": "is slower by more than",
            "undecided": "may or may not be slower by more than",
        }[self.outcome]
        return f"{found.name} {verb} {100 * self.allowed:.{decimals}f}%: {span} beside {found.against}"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "comparison": self.comparison.to_json(),
            "allowed": self.allowed,
            "outcome": self.outcome,
            "statement": self.statement,
        }


def sure_of(confidence: float) -> str:
    """A confidence as it was asked for: nothing is sure to 100%."""
    return f"{100 * confidence:.12g}%"


def compare(first: Series, second: Series, *, confidence: float = 0.95, draws: int = bootstrap.DRAWS) -> Comparison:
    """How many times as long one thing takes as another: the geometric mean over rounds of the ratio of their medians.

    Paired by round, and by pass within a round: what slowed both down at the same time counts for neither. The interval
    is Student's for the logarithms of the rounds' ratios; it is never narrower than half of what blocks within rounds
    make it. Of a single round, blocks are all there is: they are joined to ten, which the interval is Student's for.

    Args:
        first: The calls of one thing.
        second: Those of the other one, from the same rounds.
        confidence: Of the interval.
        draws: Resamples of the blocks; see :mod:`edgetl.benchmark.bootstrap`.

    Raises:
        UsageError: One of them has no call, a median of 0, or a round that the other one does not have.
    """
    both = (first, second)
    rounds = np.unique(first.process)
    if not len(rounds) or not np.array_equal(rounds, np.unique(second.process)):
        raise UsageError(f"{first.name} and {second.name} were not timed in the same rounds")
    most = RUN_BLOCKS if len(rounds) == 1 else None
    logs, spreads, blocks = np.array([_round_ratio(*both, number, draws, most) for number in rounds]).T
    if not np.isfinite(logs).all():
        raise UsageError(f"{first.name} or {second.name} took no time at all")
    within = float(np.sqrt((spreads**2).sum())) / len(rounds)
    across = float(logs.std(ddof=1)) / math.sqrt(len(rounds)) if len(rounds) > 1 else math.nan
    width = bootstrap.half_width(across, within, len(rounds), confidence, blocks=int(blocks.min()))
    ratio, factor = math.exp(logs.mean()), math.exp(width) if math.isfinite(width) else math.inf
    lower, upper = ratio / factor, ratio * factor
    return Comparison(
        name=first.name,
        against=second.name,
        ratio=ratio,
        lower=lower,
        upper=upper,
        confidence=confidence,
        verdict="faster" if upper < 1 else "slower" if lower > 1 else "no difference",
        rounds=len(rounds),
    )


def _round_ratio(first: Series, second: Series, number: int, draws: int, most: int | None) -> tuple[float, float, int]:
    """Logarithm of the ratio of the medians in one round, its standard error from resampling the round's passes, and
    how many were resampled: at most so many, neighbours joined; None: each by itself."""
    parts = [(each.times_ns[each.process == number], each.block[each.process == number]) for each in (first, second)]
    medians = [nearest_rank(np.sort(times), 0.5) for times, _ in parts]
    if not all(medians):
        return math.nan, math.nan, 0
    passes, cells = np.unique(np.concatenate([block for _, block in parts]), return_inverse=True)
    count = len(passes) if most is None else min(len(passes), most)
    if count < 2:
        return math.log(medians[0] / medians[1]), math.nan, count
    weights = np.random.default_rng(int(number)).multinomial(count, np.full(count, 1 / count), draws)
    places = np.split(cells.reshape(-1) * count // len(passes), [len(parts[0][0])])
    top, bottom = (
        np.log(bootstrap.weighted_percentiles(times, mine, weights, [0.5])[:, 0])
        for (times, _), mine in zip(parts, places, strict=True)
    )
    spread = float(np.nanstd(top - bottom)) * math.sqrt(count / (count - 1))
    return math.log(medians[0] / medians[1]), spread, count


def slowdown(comparison: Comparison, allowed: float) -> Slowdown:
    """Hold a comparison with a baseline against what is allowed.

    Args:
        comparison: Of the new thing against the baseline.
        allowed: The largest slowdown that passes, as a share.

    Returns:
        passed where the whole interval is at or below it, failed where the whole interval is above, else undecided.

    Raises:
        UsageError: The share is negative.
    """
    if not allowed >= 0:
        raise UsageError(f"a slowdown of {allowed} cannot be allowed: it is a share of at least 0")
    limit = 1 + allowed
    outcome: Literal["passed", "failed", "undecided"] = "undecided"
    if comparison.upper <= limit:
        outcome = "passed"
    elif comparison.lower > limit:
        outcome = "failed"
    return Slowdown(comparison=comparison, allowed=allowed, outcome=outcome)
