"""Did transfer help? Fine-tuning, a linear probe and training from scratch at an equal budget, with several seeds.

What differs from one trial to the next is on two levels: which samples the test split happens to hold, and which seed
the training had. Both are in the interval of a difference, which is paired on both: every method is measured on the
same samples, and seed i of one method is compared with seed i of the other.

Samples are drawn with replacement (Efron and Tibshirani 1993, chapter 8). Seeds are few, and drawing three values with
replacement gives no interval wider than from the least to the greatest of them, which holds the mean of further seeds
three times in four; for the mean over seeds Student's t with seeds - 1 degrees of freedom is drawn in its place, scaled
by the standard error over seeds (Student 1908, Biometrika 6, 1-25). docs/metrics.md has the measured coverage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import DataError, UnknownNameError
from edgetl.metrics import CELLS, Influences, Metric, Weighted, resample_units, resample_weights
from edgetl.metrics.identities import linear_drop, mean_influences
from edgetl.numbers import chosen, counted, fixed
from edgetl.tomlfile import did_you_mean

Outcome = Literal["helped", "neutral", "negative"]

TUNED, PROBE, SCRATCH = "fine-tuned", "linear-probe", "scratch"
SPOKEN = {TUNED: "fine-tuning", PROBE: "the linear probe", SCRATCH: "training from scratch"}
"""Each method in a sentence."""
LEAST_SEEDS = 3
_RESAMPLES = 4000


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Two methods compared."""

    first: str
    second: str
    value: float
    """The first's mean minus the second's."""
    lower: float
    """Of the two-sided confidence interval."""
    upper: float
    outcome: Outcome
    """helped: the interval is above 0, the first is ahead; negative: it is below 0; neutral: 0 is in it."""
    statement: str
    """The finding as a sentence."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether transfer helped."""

    outcome: Outcome
    """Of fine-tuning against training from scratch."""
    confidence: float
    seeds: int
    samples: int
    means: dict[str, float]
    """Of each method, over seeds."""
    differences: tuple[Difference, ...]
    """fine-tuned against scratch first, then against the linear probe, and the linear probe against scratch."""
    statement: str
    """The verdict as a sentence."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "differences": [asdict(each) for each in self.differences]}


@dataclass(frozen=True, kw_only=True)
class Forgetting:
    """What fine-tuning did to the task that the network came from."""

    before: float
    """The network's mean score on the source task before."""
    after: float
    """And after fine-tuning, over seeds."""
    change: float
    """after - before; below 0 something was forgotten."""
    lower: float
    """Of the two-sided confidence interval of the change."""
    upper: float
    confidence: float
    seeds: int
    samples: int
    statement: str
    """The finding as a sentence."""

    @property
    def largest_drop(self) -> float:
        """The drop of the score that the samples leave open, as a share, from 0.

        It is the lower end of the interval, but never less than z² / (n + z²): so much is left open by n samples that
        both answer alike (as in :mod:`edgetl.parity`; z of the two-sided interval).
        """
        z2 = NormalDist().inv_cdf((1.0 + self.confidence) / 2.0) ** 2
        return max(-self.lower, z2 / (self.samples + z2))

    def refusal(self, drop: float) -> str | None:
        """Why a drop of so much, as a share, is not excluded; None where it is: a test of non-inferiority."""
        if self.largest_drop < drop:
            return None
        few = "; so few samples exclude no less" if self.largest_drop > -self.lower else ""
        largest = fixed(100 * self.largest_drop, 2, beside=100 * drop)
        return (
            f"a drop of {chosen(100 * drop)} points on the source task is not excluded: with {100 * self.confidence:g}%"
            f" confidence it may be {largest}{few} ({_counted(self.seeds, self.samples)}; the score changes by"
            f" {100 * self.change:+.2f} points)"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def verdict(scores: Mapping[str, NDArray[Any]], confidence: float, *, seed: int = 0) -> Verdict:
    """Whether transfer helped, from the score of each test sample.

    Args:
        scores: Under "fine-tuned", "scratch" and, where there was one, "linear-probe": scores (seeds, n) of the same
            test samples, as whether an answer is right; their mean is what is compared.
        confidence: Of the two-sided intervals, as 0.95.
        seed: Of the resamples.

    Raises:
        DataError: There are fewer than three seeds, or scores that do not belong together.
        UnknownNameError: A method has another name.
    """
    values = {name: _scores(name, each) for name, each in scores.items()}
    samples = _same_shape({name: each.shape for name, each in values.items()})
    runs = {name: _Runs([_mean(row) for row in each]) for name, each in values.items()}
    return _verdict(runs, np.arange(samples), confidence, seed)


def verdict_by(
    metric: Metric,
    outputs: Mapping[str, NDArray[Any]],
    labels: NDArray[Any],
    confidence: float,
    *,
    groups: Sequence[str | None] | None = None,
    seed: int = 0,
) -> Verdict:
    """Whether transfer helped, by a metric that is no mean over samples, as AUC.

    Args:
        metric: Which; one of identities is resampled by identity, by its linear part where there are pairs enough.
        outputs: As :func:`verdict`'s scores, but outputs (seeds, n, k).
        labels: Of the test samples, as the metric takes them.
        confidence: Of the two-sided intervals.
        groups: What each sample belongs to, None or empty: to nothing; samples of one are drawn together. Not looked at
            where the metric is of identities.
        seed: Of the resamples.

    Raises:
        DataError: As :func:`verdict`, or the metric has no value for these samples.
        UnknownNameError: A method has another name.
    """
    for name, each in outputs.items():
        if np.ndim(each) != 3:
            raise DataError(f"outputs of '{name}' have the shape {list(np.shape(each))}, not (seeds, samples, k)")
    samples = _same_shape({name: each.shape[:2] for name, each in outputs.items()})
    if samples != len(labels):
        raise DataError(f"there are {len(labels)} labels for {samples} test samples")
    runs = {name: _runs(metric, each, labels) for name, each in outputs.items()}
    _ = [metric(run, labels) for each in outputs.values() for run in each[:1]]  # an error where it has no value
    return _verdict(runs, _units(metric, labels, groups), confidence, seed)


def forgetting(before: NDArray[Any], after: NDArray[Any], confidence: float = 0.95, *, seed: int = 0) -> Forgetting:
    """The change on the source task.

    Args:
        before: Score of each source test sample before fine-tuning, (n,), as whether the answer is right.
        after: And after it, (seeds, n), or (n,) for a single run. One run tells nothing of other seeds: its interval is
            over samples alone.
        confidence: Of the two-sided interval.
        seed: Of the resamples.

    Raises:
        DataError: Scores do not belong together or are not finite.
    """
    first, second = _scores("before", np.atleast_2d(before)), _scores("after", np.atleast_2d(after))
    if len(first) != 1 or first.shape[1] != second.shape[1]:
        raise DataError(f"scores before {list(np.shape(before))} and after {list(np.shape(after))} do not fit together")
    pair = _Runs([_mean(first[0])]), _Runs([_mean(row) for row in second])
    return _forgetting(*pair, np.arange(first.shape[1]), confidence, seed)


def forgetting_by(
    metric: Metric,
    before: NDArray[Any],
    after: NDArray[Any],
    labels: NDArray[Any],
    confidence: float = 0.95,
    *,
    groups: Sequence[str | None] | None = None,
    seed: int = 0,
) -> Forgetting:
    """The change on the source task, by a metric that is no mean over samples, as AUC.

    Args:
        metric: Which; one of identities is resampled by identity, by its linear part where there are pairs enough.
        before: Outputs for the source test samples before fine-tuning, (n, k).
        after: And after it, (seeds, n, k).
        labels: Of the samples, as the metric takes them.
        confidence: Of the two-sided interval.
        groups: As :func:`verdict_by`'s.
        seed: Of the resamples.

    Raises:
        DataError: Outputs do not belong together, or the metric has no value for these samples.
    """
    if np.ndim(before) != 2 or np.ndim(after) != 3 or not len(labels) == len(before) == np.shape(after)[1]:
        raise DataError(
            f"outputs before {list(np.shape(before))} and after {list(np.shape(after))} do not fit together, or not the"
            f" {len(labels)} labels"
        )
    metric(before, labels)  # an error where it has no value
    pair = _runs(metric, before[None], labels), _runs(metric, after, labels)
    return _forgetting(*pair, _units(metric, labels, groups), confidence, seed)


# --- checks ---------------------------------------------------------------------------------------------------------


def _units(metric: Metric, labels: NDArray[Any], groups: Sequence[str | None] | None) -> NDArray[np.int64]:
    """Which unit of the draw a sample belongs to, (n,)."""
    if groups is not None and len(groups) != len(labels):
        raise DataError(f"there are {len(groups)} groups for {len(labels)} test samples")
    units = np.unique(labels, return_inverse=True)[1] if metric.by_identity else resample_units(groups)
    return np.arange(len(labels)) if units is None else units.astype(np.int64)


def _scores(name: str, scores: NDArray[Any]) -> NDArray[np.float64]:
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 2 or not values.size:
        raise DataError(f"scores of '{name}' have the shape {list(values.shape)}, not (seeds, samples)")
    if not np.isfinite(values).all():
        raise DataError(f"scores of '{name}' hold NaN or infinite values")
    return values


def _same_shape(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The number of samples that all methods share."""
    for name in shapes:
        if name not in SPOKEN:
            raise UnknownNameError(f"there is no method '{name}' in a verdict; {did_you_mean(name, SPOKEN)}")
    missing = [name for name in (TUNED, SCRATCH) if name not in shapes]
    if missing:
        raise DataError(f"a verdict needs scores of '{TUNED}' and '{SCRATCH}'; there are none of '{missing[0]}'")
    if len(set(shapes.values())) != 1:
        told = ", ".join(f"{name} {shape[0]} × {shape[1]}" for name, shape in shapes.items())
        raise DataError(f"a verdict needs the same seeds and test samples of every method, and has {told}")
    seeds, samples = shapes[TUNED]
    if seeds < LEAST_SEEDS:
        raise DataError(
            f"a verdict needs {LEAST_SEEDS} seeds of each method or more, and has {seeds}: one run may be lucky"
        )
    if not samples:
        raise DataError("a verdict needs at least one test sample")
    return samples


# --- statistics -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Runs:
    """The runs of a method, one of each seed."""

    weighted: list[Weighted]
    """What each scores, as a function of the samples' weights."""
    influences: Influences | None = None
    """Of a metric of identities: how much each of them moves the mean over runs; None of others, and of few pairs."""


def _runs(metric: Metric, outputs: NDArray[Any], labels: NDArray[Any]) -> _Runs:
    """Of outputs (seeds, n, k)."""
    return _Runs([metric.weighted(run, labels) for run in outputs], mean_influences(metric, outputs, labels))


def _mean(scores: NDArray[np.float64]) -> Weighted:
    return lambda weights: (scores @ weights) / weights.sum(0)


def _verdict(runs: Mapping[str, _Runs], units: NDArray[np.int64], confidence: float, seed: int) -> Verdict:
    once = np.ones((len(units), 1))
    seeds, samples = len(runs[TUNED].weighted), len(units)
    means = {name: float(np.mean([run(once)[0] for run in each.weighted])) for name, each in runs.items()}
    differences = []
    for first, second in ((TUNED, SCRATCH), (TUNED, PROBE), (PROBE, SCRATCH)):
        if first in runs and second in runs:
            value, lower, upper = _interval(runs[first], runs[second], units, confidence, seed)
            outcome: Outcome = "helped" if lower > 0 else "negative" if upper < 0 else "neutral"
            differences.append(
                Difference(
                    first=first,
                    second=second,
                    value=value,
                    lower=lower,
                    upper=upper,
                    outcome=outcome,
                    statement=_compared(SPOKEN[first], SPOKEN[second], value, lower, upper, confidence),
                )
            )
    main = differences[0]
    return Verdict(
        outcome=main.outcome,
        confidence=confidence,
        seeds=seeds,
        samples=samples,
        means=means,
        differences=tuple(differences),
        statement=f"{main.outcome}: {main.statement} ({_counted(seeds, samples)})",
    )


def _forgetting(before: _Runs, after: _Runs, units: NDArray[np.int64], confidence: float, seed: int) -> Forgetting:
    once = np.ones((len(units), 1))
    first, second = (float(np.mean([run(once)[0] for run in each.weighted])) for each in (before, after))
    change, lower, upper = _interval(after, before, units, confidence, seed)
    sure = f"with {100 * confidence:g}% confidence"
    if upper < 0:
        found = f"something was forgotten: {sure} the score on the source task falls by {_range(-upper, -lower)} points"
    elif lower > 0:
        found = f"nothing was forgotten: {sure} the score on the source task rises by {_range(lower, upper)} points"
    else:
        found = (
            f"the score on the source task changes by {100 * change:+.2f} points; {sure} by"
            f" {100 * lower:+.2f} to {100 * upper:+.2f}"
        )
    return Forgetting(
        before=first,
        after=second,
        change=change,
        lower=lower,
        upper=upper,
        confidence=confidence,
        seeds=len(after.weighted),
        samples=len(units),
        statement=f"{found} ({_counted(len(after.weighted), len(units))})",
    )


def _interval(
    first: _Runs, second: _Runs, units: NDArray[np.int64], confidence: float, seed: int
) -> tuple[float, float, float]:
    """The mean over seeds of first minus second, and the ends of its two-sided interval.

    Args:
        first: One of each seed.
        second: Likewise, or a single one for all.
        units: Which unit of the draw a sample belongs to, (n,).
        confidence: Of the interval.
        seed: Of the draws.
    """
    if not 0.5 <= confidence < 1.0:
        raise DataError(f"an interval needs a confidence from 0.5 to 1, not {confidence}")
    random, seeds = np.random.default_rng(seed), len(first.weighted)
    pairs = list(zip(first.weighted, second.weighted * (seeds // len(second.weighted)), strict=True))
    once = np.ones((len(units), 1))
    each = np.array([one(once)[0] - other(once)[0] for one, other in pairs])
    value = float(each.mean())
    linear = linear_drop(value, first.influences, second.influences)
    if linear is not None:  # people drawn again would spread too much
        units = np.arange(len(linear.influence))
    drawn: list[NDArray[np.float64]] = []
    block = max(1, CELLS // len(units))
    for start in range(0, _RESAMPLES, block):
        weights = resample_weights(random, units, min(block, _RESAMPLES - start))
        drawn.append(
            linear(weights) if linear else np.mean([one(weights) - other(weights) for one, other in pairs], axis=0)
        )
    resampled = np.concatenate(drawn)
    # A resample without a second class has no value; it is left out, as if another had been drawn.
    resampled = resampled[~np.isnan(resampled)]
    if len(resampled) < _RESAMPLES // 4:
        raise DataError("too few test samples of a class: the metric has no value in most resamples")
    if seeds > 1:
        spread = float(each.std(ddof=1)) / np.sqrt(seeds)
        resampled = resampled + spread * random.standard_t(seeds - 1, len(resampled))
    tail = (1.0 - confidence) / 2.0
    lower, upper = np.quantile(resampled, [tail, 1.0 - tail])
    return value, min(float(lower), value), max(float(upper), value)


def _compared(first: str, second: str, value: float, lower: float, upper: float, confidence: float) -> str:
    sure = f"with {100 * confidence:g}% confidence"
    if lower > 0:
        return f"{sure} {first} is ahead of {second} by {_range(lower, upper)} points"
    if upper < 0:
        return f"{sure} {first} is behind {second} by {_range(-upper, -lower)} points"
    return (
        f"{first} and {second} differ by {100 * value:+.2f} points; {sure} by"
        f" {100 * lower:+.2f} to {100 * upper:+.2f}, which may be nothing"
    )


def _range(low: float, high: float) -> str:
    return f"{100 * low:.2f} to {100 * high:.2f}"


def _counted(seeds: int, samples: int) -> str:
    return f"{counted(seeds, 'seed')}, {counted(samples, 'test sample')}"
