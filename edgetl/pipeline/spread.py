"""The times of single calls, for the report: as many of them as a curve needs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from edgetl.report import model

_LEAST = 20
"""Times that make a distribution worth drawing."""
_MOST = 400
"""Of a distribution that are kept."""


def distributions(details: Mapping[str, Any]) -> tuple[model.Distribution, ...]:
    """Of everything that was timed, where the benchmark kept its histogram, and it can be read here.

    Args:
        details: Of bench.json; "histogram" has by name an HdrHistogram of the times in nanoseconds, or None where the
            package hdrhistogram was not there.
    """
    histograms = details.get("histogram") or {}
    made = []
    for name, text in histograms.items():
        counts = dict(_recorded(text)) if text else {}
        samples = sum(counts.values())
        if samples >= _LEAST:
            made.append(model.Distribution(name=name, times_ms=_at_even_ranks(counts, samples), samples=samples))
    return tuple(made)


def _recorded(text: str) -> Iterator[tuple[int, int]]:
    """Time in nanoseconds (to three digits) and calls that took it, ascending; none without the package."""
    try:
        from hdrh.histogram import HdrHistogram
    except ImportError:  # the report has its percentiles all the same
        return
    for found in HdrHistogram.decode(text).get_recorded_iterator():
        yield found.value_iterated_to, found.count_at_value_iterated_to


def _at_even_ranks(counts: Mapping[int, int], samples: int) -> tuple[float, ...]:
    """Times in milliseconds, ascending; the first and the last of all are among them."""
    kept = min(samples, _MOST)
    ranks = sorted({round(step * (samples - 1) / (kept - 1)) for step in range(kept)})
    ends = list(itertools.accumulate(counts.values()))
    values = iter(zip(counts, ends, strict=True))
    value, end = next(values)
    times = []
    for rank in ranks:
        while rank >= end:
            value, end = next(values)
        times.append(value / 1e6)
    return tuple(times)
