"""Ridges of the times of single calls on a logarithmic scale, with the percentiles that there are calls enough for."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Sequence

from edgetl.numbers import counted, plain, significant
from edgetl.report.markup import Markup, el, join
from edgetl.report.model import Distribution, Report
from edgetl.report.svg import Scale, both_widths, drawing, label, line, logarithmic, shortened, text_width, ticks

_ENOUGH = {50: 1, 90: 64, 99: 662}
"""Calls that back a percentile with confidence 0.99 (MLPerf LoadGen's early stopping)."""
_SANE_MS = (1e-6, 1e9)
_BINS = 90
_ROWS = 16


def ridges(report: Report) -> Markup | None:
    """The distributions, fastest first; None where none was kept."""
    shown = [each for each in report.distributions if _drawable(each)]
    shown.sort(key=lambda each: each.times_ms[len(each.times_ms) // 2])
    if not shown:
        return None
    kinds = {engine.name: engine.precision for engine in report.engines} | {report.reference.name: "reference"}
    if report.fp32 is not None:
        kinds.setdefault(report.fp32.name, "fp32")
    return both_widths(lambda width: _ridges(shown[:_ROWS], kinds, width), 920)


def _drawable(each: Distribution) -> bool:
    times = each.times_ms
    return len(times) >= 2 and all(_SANE_MS[0] <= value <= _SANE_MS[1] for value in times)


def _ridges(shown: Sequence[Distribution], kinds: dict[str, str], width: int) -> Markup:
    wide = width > 500
    names = [shortened(each.name, 30) for each in shown]
    name_room = max(text_width(name, 12) for name in names) + 14 if wide else 0.0
    row, top = (52.0, 10.0) if wide else (76.0, 6.0)
    left, right = name_room + 8, width - (150.0 if wide else 12.0)
    bottom = top + row * len(shown)
    values = [value for each in shown for value in (min(each.times_ms), max(each.times_ms))]
    x_scale = logarithmic(values, left, right, pad=0.03)
    parts = [_axis(x_scale, top, bottom, 7 if wide else 4)]
    for index, (each, name) in enumerate(zip(shown, names, strict=True)):
        base = top + row * (index + 1) - 6
        kind = kinds.get(each.name, "fp32")
        parts.append(_ridge(each, x_scale, base, row - (14 if wide else 34), kind))
        said = f"{counted(each.samples, 'call')}, longest {significant(max(each.times_ms))} ms"
        if wide:
            parts.append(label(name_room, base - 4, name, anchor="end", class_="name"))
            calls, longest = said.split(", ")
            parts += [label(width - 8.0, base - 18, calls, anchor="end", class_="note"),
                      label(width - 8.0, base - 4, longest, anchor="end", class_="note")]  # fmt: skip
        else:
            parts.append(label(8, base - row + 18, name, class_="name"))
            parts.append(label(width - 8.0, base - row + 32, said, anchor="end", class_="note"))
    return drawing(width, bottom + 40, "Distribution of the time of single calls, fastest first", *parts)


def _ridge(each: Distribution, x_scale: Scale, base: float, height: float, kind: str) -> Markup:
    times = sorted(each.times_ms)
    edges = [x_scale.low * (x_scale.high / x_scale.low) ** (step / _BINS) for step in range(_BINS + 1)]
    cuts = [bisect_left(times, edge) for edge in edges]
    cuts[-1] = len(times)
    counts = [after - before for before, after in itertools.pairwise(cuts)]
    # Roots: a single slow call among thousands is to be seen, too.
    most = math.sqrt(max(counts))
    places = [x_scale.start + (x_scale.end - x_scale.start) * step / _BINS for step in range(_BINS + 1)]
    steps = [f"{places[0]:.1f},{base:.1f}"]
    for step, count in enumerate(counts):
        y = base - height * math.sqrt(count) / most
        steps += [f"{places[step]:.1f},{y:.1f}", f"{places[step + 1]:.1f},{y:.1f}"]
    steps.append(f"{places[-1]:.1f},{base:.1f}")
    parts = [
        el("polygon", points=" ".join(steps), class_=f"ridge {kind}"),
        line(places[0], base, places[-1], base, "axis"),
    ]
    for percent, enough in _ENOUGH.items():
        if each.samples >= enough:
            x = x_scale(times[max(0, -(-percent * len(times) // 100) - 1)])
            tall = {50: 0.0, 90: 0.35, 99: 0.6}[percent]
            tip = el("title", f"{each.name}: p{percent}")
            parts.append(el("g", tip, line(x, base + 4, x, base - height * (1 - tall), f"percentile {kind}")))
    return join(parts)


def _axis(x_scale: Scale, top: float, bottom: float, wanted: int) -> Markup:
    parts = []
    for value in ticks(x_scale, wanted):
        x = x_scale(value)
        parts.append(line(x, top, x, bottom, "grid"))
        parts.append(label(x, bottom + 15, plain(value), anchor="middle"))
    middle = (x_scale.start + x_scale.end) / 2
    parts.append(label(middle, bottom + 32, "ms per call (logarithmic)", anchor="middle"))
    return join(parts)
