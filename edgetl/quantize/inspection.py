"""What statistics look like: histograms with the ends of each estimator's range, and what moved between two of them."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import UnknownNameError
from edgetl.quantize.ranges import QuantParams, activation_params, noise_power
from edgetl.quantize.recipes import candidates, label
from edgetl.quantize.schemes import IntegerType
from edgetl.quantize.sketch import Sketch
from edgetl.quantize.statistics import Statistics
from edgetl.specs import Estimator, Recipe
from edgetl.tomlfile import did_you_mean

_CLIPPED_FROM = 0.501
"""Steps beyond the last integer's value: from there the error is larger than any that rounding makes. A little more
than half, because a zero point is rounded to half a step and a scale to its type."""
_LISTED = 12


@dataclass(frozen=True, kw_only=True, eq=False)
class Histogram:
    """Values by bins of equal width."""

    edges: NDArray[np.float64]
    """Shape (bins + 1,): from the smallest value to the largest; (2,) and both the same for a constant tensor."""
    counts: NDArray[np.float64]
    """Shape (bins,): values in each bin; fractions, where a bucket of the sketch lies in several."""


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """The range that an estimator reads from the statistics of a tensor, and what it costs."""

    estimator: str
    """A label of :func:`estimators`."""
    low: float
    """Smallest real value that is represented."""
    high: float
    """Largest real value that is represented."""
    scale: float
    zero_point: int
    clipped_share: float
    """Share of the values (0 to 1) that lie more than half a step outside."""
    sqnr_db: float | None
    """Mean square of the values over the mean squared quantization error, in decibels; None without any error."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TensorView:
    """One activation and its ranges."""

    name: str
    values: int
    """How many values were seen."""
    low: float
    high: float
    mean: float
    histogram: Histogram
    thresholds: tuple[Threshold, ...]
    """One per estimator, in the order of the estimators."""

    @property
    def spread(self) -> float:
        """Largest scale over smallest: how much the estimators differ; at least 1."""
        return _spread(self.thresholds)


@dataclass(frozen=True, kw_only=True)
class Moved:
    """An activation that is quantized otherwise than before."""

    name: str
    ratio: float
    """New scale over old."""
    old_scale: float
    new_scale: float
    old_zero_point: int
    new_zero_point: int
    old_range: tuple[float, float]
    """Smallest and largest real value that was represented."""
    new_range: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class RangesMoved:
    """What moved with one estimator."""

    estimator: str
    moved: tuple[Moved, ...]
    """By ratio, the largest change of a scale, up or down, first."""
    unmoved: int
    """How many activations have the same scale and zero point as before."""


@dataclass(frozen=True, kw_only=True)
class SourceChange:
    """A fact about the origin of statistics that is not the same in both."""

    fact: str
    old: Any
    """A JSON value; None where it is not there."""
    new: Any


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two calibrations side by side."""

    ranges: tuple[RangesMoved, ...]
    """One per estimator."""
    only_old: tuple[str, ...]
    """Activations that only the old one has values of."""
    only_new: tuple[str, ...]
    source: tuple[SourceChange, ...]
    """The number of samples, and digests of model, samples and preprocessing, where they differ."""
    recorded: bool
    """Whether both say what they were taken of."""

    @property
    def same(self) -> bool:
        """Whether no activation is quantized otherwise than before, and none came or went."""
        return not (any(item.moved for item in self.ranges) or self.only_old or self.only_new)


def estimators(recipes: Iterable[Recipe]) -> dict[str, Estimator]:
    """The distinct estimators of activations of some recipes, each under a label, as "mse" or "percentile 99.99".

    Args:
        recipes: Ones that estimate no range are passed over; "search" counts as all that it chooses from.
    """
    found: dict[str, Estimator] = {}
    for recipe in recipes:
        for estimator in candidates(recipe.activations):
            found.setdefault(label(estimator), estimator)
    return found


def histogram(sketch: Sketch, bins: int) -> Histogram:
    """A sketch in bins of equal width from its smallest to its largest value.

    Args:
        sketch: Of at least one value, all finite. Values are taken to lie evenly within their bucket.
        bins: At least 1. A constant tensor has one bin without width.
    """
    lower, upper, counts = sketch.pieces()
    low, high = sketch.low, sketch.high
    edges = np.linspace(low, high, bins + 1)
    if not (np.diff(edges) > 0).all():
        return Histogram(edges=np.asarray([low, high]), counts=np.asarray([counts.sum()], dtype=np.float64))
    wide = lower < upper
    result = np.zeros(bins)
    if wide.any():
        ends = np.stack([lower[wide], upper[wide]], axis=1).reshape(-1)
        steps = np.stack([np.zeros(int(wide.sum())), counts[wide]], axis=1).reshape(-1)
        result += np.diff(np.interp(edges, ends, np.cumsum(steps)))
    places = np.searchsorted(edges, lower[~wide], side="right") - 1
    np.add.at(result, np.clip(places, 0, bins - 1), counts[~wide])
    return Histogram(edges=edges, counts=result)


def threshold(sketch: Sketch, name: str, estimator: Estimator, type_: IntegerType) -> Threshold:
    """The range that an estimator reads from a sketch.

    Args:
        sketch: Of at least one value, all finite.
        name: The estimator's label.
        estimator: Not "search", which no statistics alone can answer.
        type_: The integers of the scheme's activations.
    """
    params = activation_params(sketch, estimator, type_)
    noise = noise_power(sketch, params)
    return Threshold(
        estimator=name,
        low=params.low,
        high=params.high,
        scale=params.scale,
        zero_point=params.zero_point,
        clipped_share=_clipped(sketch, params),
        sqnr_db=float(10 * np.log10(sketch.mean_square / noise)) if noise > 0 and sketch.mean_square > 0 else None,
    )


def select(known: Iterable[str], wanted: Iterable[str]) -> list[str]:
    """Names of activations, by name or by pattern.

    Args:
        known: All names.
        wanted: Names, or patterns with ``*``, ``?`` and ``[…]``; a name that is there is never taken for a pattern.

    Returns:
        What is meant, without repetition, in the order of ``wanted`` and then of ``known``.

    Raises:
        UnknownNameError: Nothing has such a name or fits such a pattern.
    """
    names = list(known)
    there = set(names)
    found: dict[str, None] = {}
    for want in wanted:
        fitting = [want] if want in there else [name for name in names if fnmatch.fnmatchcase(name, want)]
        if not fitting:
            raise UnknownNameError(_unknown(want, names), hint="--tensor '*' shows all; quote a pattern for the shell")
        found.update(dict.fromkeys(fitting))
    return list(found)


def views(
    statistics: Statistics,
    found: Mapping[str, Estimator],
    type_: IntegerType,
    *,
    wanted: Sequence[str] = (),
    top: int | None = None,
    bins: int = 60,
    progress: Callable[[int, int], None] | None = None,
) -> list[TensorView]:
    """Activations with their histograms and ranges.

    Args:
        statistics: Activations without any value are left out.
        found: From :func:`estimators`.
        type_: The integers of the scheme's activations.
        wanted: See :func:`select`; all where empty.
        top: Only so many: those whose scales differ most between the estimators, these first. None: all that are
            wanted, in their order.
        bins: Of a histogram.
        progress: Is told how many activations are done, and of how many.

    Raises:
        UnknownNameError: See :func:`select`.
    """
    names = select(statistics.sketches, wanted) if wanted else list(statistics.sketches)
    ranges: dict[str, tuple[Threshold, ...]] = {}
    for number, name in enumerate(names, 1):
        sketch = statistics.sketches[name]
        if sketch.total:
            ranges[name] = tuple(threshold(sketch, key, item, type_) for key, item in found.items())
        if progress:
            progress(number, len(names))
    chosen = list(ranges)
    if top is not None:
        chosen = sorted(chosen, key=lambda name: -_spread(ranges[name]))[:top]
    return [_view(name, statistics.sketches[name], ranges[name], bins) for name in chosen]


def compare(old: Statistics, new: Statistics, found: Mapping[str, Estimator], type_: IntegerType) -> Comparison:
    """What moved between two calibrations.

    Args:
        old: The earlier one.
        new: The later one.
        found: From :func:`estimators`.
        type_: The integers of the scheme's activations.
    """
    before, after = ({name: item for name, item in each.sketches.items() if item.total} for each in (old, new))
    both = [name for name in before if name in after]
    differing = [name for name in both if not _alike(before[name], after[name])]
    ranges = []
    for key, estimator in found.items():
        pairs = [
            (name, activation_params(before[name], estimator, type_), activation_params(after[name], estimator, type_))
            for name in differing
        ]
        moved = [_moved(name, was, now) for name, was, now in pairs if was != now]
        moved.sort(key=lambda item: -abs(np.log(item.ratio)))
        ranges.append(RangesMoved(estimator=key, moved=tuple(moved), unmoved=len(both) - len(moved)))
    return Comparison(
        ranges=tuple(ranges),
        only_old=tuple(name for name in before if name not in after),
        only_new=tuple(name for name in after if name not in before),
        source=_source_changes(old, new),
        recorded=bool(old.source and new.source),
    )


def _view(name: str, sketch: Sketch, thresholds: tuple[Threshold, ...], bins: int) -> TensorView:
    return TensorView(
        name=name,
        values=sketch.total,
        low=sketch.low,
        high=sketch.high,
        mean=sketch.mean,
        histogram=histogram(sketch, bins),
        thresholds=thresholds,
    )


def _spread(thresholds: Sequence[Threshold]) -> float:
    scales = [item.scale for item in thresholds]
    return max(scales) / min(scales) if scales else 1.0


def _clipped(sketch: Sketch, params: QuantParams) -> float:
    """Share of the values more than half a step outside a range."""
    lower, upper, counts = sketch.pieces()
    reach = _CLIPPED_FROM * params.scale
    above = _share_above(lower, upper, params.high + reach)
    below = _share_above(-upper, -lower, reach - params.low)
    return float(counts @ (above + below) / counts.sum())


def _share_above(lower: NDArray[np.float64], upper: NDArray[np.float64], limit: float) -> NDArray[np.float64]:
    """Which share of each piece lies above a limit; shape (n,)."""
    width = upper - lower
    inside = np.clip((upper - limit) / np.where(width > 0, width, 1.0), 0.0, 1.0)
    result: NDArray[np.float64] = np.where(width > 0, inside, lower > limit)
    return result


def _alike(one: Sketch, other: Sketch) -> bool:
    """Whether every estimator must read the same ranges from both."""
    return one.low == other.low and one.high == other.high and np.array_equal(one.counts, other.counts)


def _moved(name: str, was: QuantParams, now: QuantParams) -> Moved:
    return Moved(
        name=name,
        ratio=now.scale / was.scale,
        old_scale=was.scale,
        new_scale=now.scale,
        old_zero_point=was.zero_point,
        new_zero_point=now.zero_point,
        old_range=(was.low, was.high),
        new_range=(now.low, now.high),
    )


def _source_changes(old: Statistics, new: Statistics) -> tuple[SourceChange, ...]:
    before = {"number of samples": old.samples, **old.source}
    after = {"number of samples": new.samples, **new.source}
    return tuple(
        SourceChange(fact=fact, old=before.get(fact), new=after.get(fact))
        for fact in {**before, **after}
        if before.get(fact) != after.get(fact)
    )


def _unknown(want: str, names: list[str]) -> str:
    nearest = did_you_mean(want, names)
    if nearest.startswith("known: "):
        more = f" … ({len(names)} in all)" if len(names) > _LISTED else ""
        nearest = f"known: {', '.join(names[:_LISTED])}{more}"
    return f"there is no activation '{want}' in this calibration; {nearest}"
