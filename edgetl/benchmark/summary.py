"""What measured times come to: percentiles that there are enough calls for, each with its interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.benchmark import bootstrap
from edgetl.benchmark.bootstrap import Grouping
from edgetl.benchmark.early_stopping import queries_needed
from edgetl.benchmark.mixture import mixture_interval
from edgetl.errors import UsageError, not_imported

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}
"""Name → share of the calls."""

_TAIL_UP = {"p90": 1.25, "p99": 1.25, "p999": 1.25}
"""Of one process: by so much further than down an interval reaches up, on the logarithm. A handful of calls lie above
such a percentile: most samples hold fewer of the rare slow ones than there are, and then show less spread as well."""
RUN_BLOCKS = 10
"""Of one run in a row, or of one process: blocks at most. Neighbouring ones are alike, and longer ones are less so."""
_RUN_DRAWS = 400
"""Of one run in a row: resamples."""
_LEAST_ABOVE = 1.0
"""Independent calls, at least, that are above a percentile, for an interval from one run or one process."""

_HOUR_NS = 3_600_000_000_000
_DIGITS = 3

Bounds = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Latency of one thing in its steady state, in milliseconds per call."""

    p50_ms: float
    p90_ms: float | None
    """None where there are fewer calls than :func:`queries_needed`."""
    p99_ms: float | None
    """Likewise."""
    p999_ms: float | None
    """Likewise."""
    p50_interval_ms: Bounds | None
    """Two-sided, at ``confidence``; None where one block of calls tells nothing about others, or where the calls of the
    only process are so much alike that none above the percentile is independent."""
    p90_interval_ms: Bounds | None
    p99_interval_ms: Bounds | None
    p999_interval_ms: Bounds | None
    confidence: float
    mean_ms: float
    min_ms: float
    max_ms: float
    samples: int
    """Calls that count."""
    processes: int
    """Fresh processes that they are from. The intervals of one process do not know what another would have measured."""

    def to_json(self) -> dict[str, Any]:
        """Plain values; the inverse of :meth:`from_json`."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Latency:
        """From :meth:`to_json`."""
        made: dict[str, Any] = {
            field.name: tuple(value) if isinstance(value := values[field.name], list) else value
            for field in fields(cls)
        }
        return cls(**made)

    def percentile(self, name: str) -> float | None:
        """One of :data:`PERCENTILES` in milliseconds; None where there are too few calls."""
        found: float | None = getattr(self, f"{name}_ms")
        return found

    def interval(self, name: str) -> Bounds | None:
        """Of one of :data:`PERCENTILES`, in milliseconds."""
        found: Bounds | None = getattr(self, f"{name}_interval_ms")
        return found


def summarise(
    times_ns: NDArray[np.integer],
    process: NDArray[np.integer],
    block: NDArray[np.integer],
    *,
    confidence: float = 0.95,
    draws: int = bootstrap.DRAWS,
) -> Latency:
    """Percentiles of measured times, with their intervals.

    A percentile is the smallest measured time that at least that share of the calls did not exceed (nearest rank). None
    is left out as an outlier.

    Args:
        times_ns: (n,) nanoseconds of the calls that count, those of a process in the order in which it made them.
        process: (n,) which process made each.
        block: (n,) the block of each, within its process.
        confidence: Of the intervals.
        draws: Resamples per level; see :mod:`edgetl.benchmark.bootstrap`.

    Raises:
        UsageError: There are fewer calls than a median needs, the arrays are not of one length, a time is negative or
            no number, or the confidence is not between 0 and 1.
    """
    if not len(times_ns) == len(process) == len(block):
        raise UsageError("every time needs its process and its block")
    if not np.all(np.asarray(times_ns) >= 0):  # nor is a NaN
        raise UsageError("a call cannot take less than nothing")
    least = queries_needed(PERCENTILES["p50"])
    if len(times_ns) < least:
        raise UsageError(f"a median needs at least {least} calls; there are {len(times_ns)}", hint="--samples 100")
    backed = {name: share for name, share in PERCENTILES.items() if len(times_ns) >= queries_needed(share)}
    ordered, shares = np.sort(times_ns), list(backed.values())
    found = dict(zip(backed, [nearest_rank(ordered, share) / 1e6 for share in shares], strict=True))
    grouping, independent = Grouping.of(process, block), math.inf
    if len(grouping.blocks) == 1:  # neighbouring blocks are alike, and no other process says by how much
        independent = independent_calls(times_ns)
        longer = np.arange(len(grouping.processes)) * RUN_BLOCKS // max(RUN_BLOCKS, len(grouping.processes))
        grouping = Grouping.of(process, longer[grouping.cells])
    factors = bootstrap.relative_interval(
        lambda weights: bootstrap.weighted_percentiles(times_ns, grouping.cells, weights, shares),
        grouping,
        confidence=confidence,
        draws=draws,
    )
    values: dict[str, Any] = {f"{name}{end}": None for name in PERCENTILES for end in ("_ms", "_interval_ms")}
    for (name, value), factor in zip(found.items(), factors.tolist(), strict=True):
        values[f"{name}_ms"] = value
        if independent * (1.0 - PERCENTILES[name]) < _LEAST_ABOVE:
            continue
        if name == "p50" or len(grouping.blocks) == 1:
            values[f"{name}_interval_ms"] = _ends(name, value, factor)
        else:
            low, high = mixture_interval(
                times_ns, process, PERCENTILES[name], width=math.log(factor), confidence=confidence
            )
            ends = min(low / 1e6, value), max(high / 1e6, value)
            values[f"{name}_interval_ms"] = ends if math.isfinite(ends[1]) else None
    told = {name: ends for name in PERCENTILES if (ends := values[f"{name}_interval_ms"]) is not None}
    values |= {f"{name}_interval_ms": ends for name, ends in _in_order(told).items()}
    return Latency(
        **values,
        confidence=confidence,
        mean_ms=float(np.mean(times_ns)) / 1e6,
        min_ms=int(ordered[0]) / 1e6,
        max_ms=int(ordered[-1]) / 1e6,
        samples=len(ordered),
        processes=len(grouping.blocks),
    )


def run_intervals(times_ns: NDArray[np.integer], *, confidence: float = 0.95) -> dict[str, Bounds]:
    """Intervals of the percentiles of one run, in ms, by resampling blocks of calls in a row.

    They tell what another stretch of the same run would have shown, and nothing of other processes or other days.

    Args:
        times_ns: (n,) nanoseconds, in the order in which the calls were made.
        confidence: Of the two-sided intervals.

    Returns:
        Of each percentile that there are enough calls for (see :func:`summarise`), but for those that are
        :func:`too_alike`: their intervals held in 80 to 90 of 100 cases. None of fewer than 16 calls.
    """
    count, alike = len(times_ns), too_alike(times_ns)
    backed = {
        name: share for name, share in PERCENTILES.items() if count >= queries_needed(share) and name not in alike
    }
    blocks = min(RUN_BLOCKS, count // 8)
    if not backed or blocks < 2:
        return {}
    cells, ordered = np.arange(count) * blocks // count, np.sort(times_ns)
    factors = bootstrap.relative_interval(
        _percentiles_of_blocks(times_ns, ordered, cells, list(backed.values())),
        Grouping(cells=cells, processes=np.zeros(blocks, dtype=np.int64)),
        confidence=confidence,
        draws=_RUN_DRAWS,
    )
    ends = {
        name: _ends(name, nearest_rank(ordered, share) / 1e6, factor)
        for (name, share), factor in zip(backed.items(), factors.tolist(), strict=True)
    }
    return _in_order({name: found for name, found in ends.items() if found is not None})


def too_alike(times_ns: NDArray[np.integer]) -> frozenset[str]:
    """Those of :data:`PERCENTILES` above which there is less than one independent call of a run: they have no interval.

    Args:
        times_ns: (n,) in the order in which the calls were made.
    """
    independent = independent_calls(times_ns)
    return frozenset(name for name, share in PERCENTILES.items() if independent * (1.0 - share) < _LEAST_ABOVE)


def independent_calls(times_ns: NDArray[np.integer]) -> float:
    """How many independent calls a run is worth, by how much each is like the one before it.

    n · (1 - r) / (1 + r) of a series that remembers by r (Bayley and Hammersley 1946, Supplement to the Journal of the
    Royal Statistical Society 8, 184-197), r being the correlation of the ranks, which a few slow calls do not change.

    Args:
        times_ns: (n,) in the order in which the calls were made.
    """
    ordered, count = np.sort(times_ns), len(times_ns)
    ranks = np.searchsorted(ordered, times_ns, side="left") + np.searchsorted(ordered, times_ns, side="right")
    centred = ranks - ranks.mean()
    square = float(centred @ centred)
    alike = float(centred[1:] @ centred[:-1]) / square if square > 0.0 else 0.0
    return count * (1.0 - max(alike, 0.0)) / (1.0 + max(alike, 0.0))


def _percentiles_of_blocks(
    times_ns: NDArray[np.integer], ordered: NDArray[np.integer], cells: NDArray[np.int64], shares: Sequence[float]
) -> Callable[[bootstrap.Weights], NDArray[np.float64]]:
    """As :func:`edgetl.benchmark.bootstrap.weighted_percentiles`, for millions of calls in few blocks.

    Each block is sorted once. A percentile of a resample is then bisected among the measured times: how many calls did
    not exceed one is a search in each block. That is exact, where a choice of some ranks would not be: the 99th
    percentile of a million calls moves by some hundred ranks from one resample to the next.
    """
    blocks = [np.sort(times_ns[cells == cell]) for cell in range(int(cells[-1]) + 1)]
    sizes = np.array([len(block) for block in blocks])

    def found(weights: bootstrap.Weights) -> NDArray[np.float64]:
        ranks = np.maximum(1, np.ceil(np.multiply.outer(weights @ sizes, np.asarray(shares)) - 1e-9))
        low, high = np.zeros(ranks.shape, dtype=np.int64), np.full(ranks.shape, len(ordered) - 1)
        while (low < high).any():
            middle = (low + high) // 2
            values, below = ordered[middle], np.zeros(ranks.shape, dtype=np.int64)
            for block, drawn in zip(blocks, weights.T, strict=True):
                below += drawn[:, None] * np.searchsorted(block, values, side="right")
            low, high = np.where(below < ranks, middle + 1, low), np.where(below < ranks, high, middle)
        return ordered[low].astype(np.float64)

    return found


def _in_order(intervals: dict[str, Bounds]) -> dict[str, Bounds]:
    """Intervals of which none begins below that of a lower percentile: the percentile itself cannot lie there.

    Args:
        intervals: By the names of ascending percentiles.
    """
    found: dict[str, Bounds] = {}
    least = 0.0
    for name, (low, high) in intervals.items():
        least = max(least, low)
        found[name] = least, high
    return found


def _ends(name: str, value: float, factor: float) -> Bounds | None:
    return (value / factor, value * factor ** _TAIL_UP.get(name, 1.0)) if math.isfinite(factor) else None


def nearest_rank(ordered: NDArray[np.integer], share: float) -> int:
    """The smallest value that at least a share of them does not exceed.

    Args:
        ordered: (n,) ascending, n ≥ 1.
        share: Between 0 and 1.
    """
    return int(ordered[max(0, math.ceil(share * len(ordered) - 1e-9) - 1)])


def histogram(times_ns: NDArray[np.integer]) -> str:
    """All times as an HdrHistogram in its V2 encoding, compressed, base64: from 1 ns to an hour, to three digits.

    Args:
        times_ns: (n,) nanoseconds.

    Raises:
        MissingExtraError: The package hdrhistogram is not installed.
    """
    try:
        from hdrh.histogram import HdrHistogram
    except ImportError as error:
        raise not_imported(error, "hdrh", extra="bench", needed_for="writing an HdrHistogram") from None
    made = HdrHistogram(1, _HOUR_NS, _DIGITS)
    for value, count in zip(*(found.tolist() for found in np.unique(times_ns, return_counts=True)), strict=True):
        made.record_value(min(max(1, value), _HOUR_NS), count)
    return str(made.encode().decode("ascii"))
