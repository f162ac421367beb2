"""Intervals from resampling: of processes, and of blocks of calls within processes.

Calls that follow each other are alike, and so are the calls of one process beside those of another: memory lands
elsewhere, threads meet other cores. What was drawn independently are the processes (T. Kalibera and R. Jones, "Rigorous
Benchmarking in Reasonable Time", ISMM 2013), and within one, about, the blocks (H. R. Künsch, 1989). Both levels are
resampled, each by itself. The bootstrap of a few processes is too narrow by its missing degree of freedom and by the
tails of Student's distribution, so its standard error is corrected and multiplied with Student's quantile. Processes
that agree by chance make that too narrow: it is never narrower than half of what the blocks within processes make it.
It is taken on the logarithm, as times are positive and their errors relative.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import NDArray

from edgetl.distributions import MANY, student_quantile
from edgetl.errors import UsageError

DRAWS = 1000
"""Resamples per level."""
_AT_ONCE = 1 << 23
"""Numbers that a resampling holds at once."""
_LISTED = 6
"""Processes up to which all resamples of them are listed: 462 of six."""
_LEAST = 0.5
"""An interval is at least so wide, as a share of what blocks alone make it."""

Weights = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Grouping:
    """Which calls belong together."""

    cells: NDArray[np.int64]
    """(n,): the block of each call, counted over all processes."""
    processes: NDArray[np.int64]
    """(cells,): the process of each block, from 0."""

    @classmethod
    def of(cls, process: NDArray[np.integer], block: NDArray[np.integer]) -> Grouping:
        """From the process and the block within it of each call, both (n,)."""
        pairs, cells = np.unique(np.stack([process, block], axis=1), axis=0, return_inverse=True)
        _, processes = np.unique(pairs[:, 0], return_inverse=True)
        return cls(cells=cells.reshape(-1), processes=processes.reshape(-1))

    @property
    def blocks(self) -> NDArray[np.int64]:
        """(processes,): how many blocks each has."""
        return np.bincount(self.processes)


def relative_interval(
    statistics: Callable[[Weights], NDArray[np.float64]],
    grouping: Grouping,
    *,
    confidence: float,
    draws: int = DRAWS,
    seed: int = 0,
) -> NDArray[np.float64]:
    """How far statistics may be off, as factors.

    Args:
        statistics: Weights of the blocks (draws, cells) → positive values (draws, k), nan where there is none.
        grouping: The blocks.
        confidence: Of the two-sided intervals.
        draws: Resamples per level.
        seed: Of the resampling.

    Returns:
        (k,) factors of at least 1: a value v lies between v / factor and v · factor. nan where one process with one
        block tells nothing.
    """
    generator = np.random.default_rng(seed)
    counts = grouping.blocks
    within = _spread(statistics(_within(grouping, draws, generator)))
    least = int(counts.min())
    within *= math.sqrt(least / (least - 1)) if least > 1 else math.nan
    across = np.full_like(within, math.nan)
    if len(counts) > 1:
        weights, chances = _across(grouping, draws, generator)
        across = _spread(statistics(weights), chances) * math.sqrt(len(counts) / (len(counts) - 1))
    widths = [half_width(*pair, len(counts), confidence, blocks=least) for pair in zip(across, within, strict=True)]
    with np.errstate(over="ignore"):  # infinite: two processes that differ, and a confidence near 1
        return np.exp(widths)


def half_width(across: float, within: float, processes: int, confidence: float, *, blocks: int = MANY) -> float:
    """Half the width of an interval from the standard errors of both levels.

    Args:
        across: Standard error by what processes differ by; not looked at where there is but one.
        within: By what blocks within them differ by; nan where nothing is known.
        processes: How many there are.
        confidence: Of the two-sided interval.
        blocks: Of the one process.

    Returns:
        nan where nothing is known.

    Raises:
        UsageError: The confidence is not between 0 and 1.
    """
    if not 0.0 < confidence < 1.0:
        raise UsageError(f"a confidence is a share between 0 and 1; given was {confidence}", hint="0.95")
    if processes == 1:
        return student_quantile(confidence, max(1, min(blocks, MANY) - 1)) * within
    between = student_quantile(confidence, processes - 1) * across
    return float(np.fmax(between, _LEAST * student_quantile(confidence, MANY) * within))


def weighted_percentiles(
    values: NDArray[np.integer], cells: NDArray[np.int64], weights: Weights, shares: Sequence[float]
) -> NDArray[np.float64]:
    """Percentiles by nearest rank of resampled values.

    Args:
        values: (n,).
        cells: (n,) the block of each.
        weights: (draws, cells): how often each block was drawn.
        shares: Between 0 and 1.

    Returns:
        (draws, shares); nan where nothing was drawn.
    """
    order = np.argsort(values, kind="stable")
    ordered, places = np.asarray(values)[order].astype(np.float64), cells[order]
    found = np.full((len(weights), len(shares)), np.nan)
    rows = max(1, _AT_ONCE // max(1, len(ordered)))
    for first in range(0, len(weights), rows):
        sums = np.cumsum(weights[first : first + rows].astype(np.int32)[:, places], axis=1, dtype=np.int32)
        totals = sums[:, -1]
        for column, share in enumerate(shares):
            # Nearest rank: the smallest value that at least that share of the calls does not exceed.
            ranks = np.maximum(1, np.ceil(share * totals - 1e-9))
            index = np.minimum((sums < ranks[:, None]).sum(axis=1), len(ordered) - 1)
            found[first : first + rows, column] = np.where(totals > 0, ordered[index], np.nan)
    return found


def _across(
    grouping: Grouping, draws: int, generator: np.random.Generator
) -> tuple[Weights, NDArray[np.float64] | None]:
    """Whole processes with replacement: weights, and the probability of each; None: every one is as probable.

    Of a few processes these are all the resamples that there are, so that chance plays no part.
    """
    number = len(grouping.blocks)
    if number > _LISTED:
        drawn = generator.multinomial(number, np.full(number, 1 / number), size=draws)
        return np.asarray(drawn[:, grouping.processes]), None
    everyone = combinations_with_replacement(range(number), number)
    listed = np.array([np.bincount(chosen, minlength=number) for chosen in everyone])
    ways = [math.factorial(number) / math.prod(map(math.factorial, row)) for row in listed.tolist()]
    return listed[:, grouping.processes], np.array(ways) / number**number


def _within(grouping: Grouping, draws: int, generator: np.random.Generator) -> Weights:
    """Blocks with replacement, in every process as many as it has."""
    weights = np.zeros((draws, len(grouping.processes)), dtype=np.int64)
    for process, count in enumerate(grouping.blocks):
        mine = grouping.processes == process
        weights[:, mine] = generator.multinomial(count, np.full(count, 1 / count), size=draws)
    return weights


def _spread(values: NDArray[np.float64], chances: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Standard deviation of the logarithms over the resamples, (k,); of each its probability, where they differ."""
    logs = np.log(np.maximum(values, 1e-300))
    known = np.isfinite(logs) * (1.0 if chances is None else chances[:, None])
    logs = np.where(known > 0, logs, 0.0)
    shares = known / known.sum(axis=0)
    return np.asarray(np.sqrt((shares * (logs - (shares * logs).sum(axis=0)) ** 2).sum(axis=0)))
