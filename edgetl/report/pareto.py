"""What the scatter plot shows besides its points: the interval of each metric, and the Pareto front."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from edgetl.numbers import is_number
from edgetl.report.markup import Markup, el, join
from edgetl.report.model import Latency, Report
from edgetl.report.svg import Box, Scale, line


def score_intervals(report: Report) -> dict[str, tuple[float, float]]:
    """By engine's name: where its metric lies if PyTorch's is taken as it is, from the paired interval of the drop.

    Nothing where samples were looked at until something showed: such an interval does not hold as often as it says.
    """
    score = report.reference.score
    if report.sequential or score is None or not 0.0 <= score <= 1.0:
        return {}
    found = {}
    for engine in report.engines:
        if engine.parity is not None and all(is_number(bound) for bound in engine.parity.interval):
            low, high = sorted(engine.parity.interval)
            found[engine.name] = (min(1.0, max(0.0, score - high)), min(1.0, max(0.0, score - low)))
    return found


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other one beats, by ascending cost: no more costly and no worse, and one of both.

    Args:
        points: (cost, value) each.
    """
    ordered = sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1]))
    kept: list[int] = []
    for index in ordered:
        cost, value = points[index]
        if not kept or value > points[kept[-1]][1] or (cost, value) == points[kept[-1]]:
            kept.append(index)
    return kept


def front_line(points: Sequence[tuple[float, float]], right: float) -> Markup:
    """The front as a line of steps: the best metric that can be had at a latency.

    Args:
        points: Places of the points on the front, from left to right.
        right: Where the last step ends.
    """
    if not points:
        return Markup()
    return el("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in _steps(points, right)), class_="front")


def front_boxes(points: Sequence[tuple[float, float]], right: float) -> list[Box]:
    """What the line of :func:`front_line` covers."""
    if not points:
        return []
    return [
        Box(min(a, c) - 1, min(b, d) - 1, max(a, c) + 1, max(b, d) + 1)
        for (a, b), (c, d) in itertools.pairwise(_steps(points, right))
    ]


def _steps(points: Sequence[tuple[float, float]], right: float) -> list[tuple[float, float]]:
    path = [points[0]]
    for (_, before), (x, y) in itertools.pairwise(points):
        path += [(x, before), (x, y)]
    return [*path, (right, points[-1][1])]


def median_interval(latency: Latency | None) -> tuple[float, float] | None:
    """Of the median, in ms; None where it is not known."""
    found = latency.interval_ms if latency else None
    if found is None or not all(is_number(bound) and bound > 0 for bound in found):
        return None
    return (min(found), max(found))


def level_whisker(y: float, interval: tuple[float, float], x_scale: Scale, precision: str) -> Markup:
    """An interval of a latency, level, with a stroke at each end."""
    low, high = x_scale(interval[0]), x_scale(interval[1])
    ends = [line(x, y - 4, x, y + 4, f"whisker {precision}") for x in (low, high)]
    return join([line(low, y, high, y, f"whisker {precision}"), *ends])


def whisker(x: float, interval: tuple[float, float], y_scale: Scale, precision: str) -> Markup:
    """An interval of a share, upright, with a stroke at each end."""
    low, high = y_scale(interval[0] * 100), y_scale(interval[1] * 100)
    ends = [line(x - 4, y, x + 4, y, f"whisker {precision}") for y in (low, high)]
    return join([line(x, low, x, high, f"whisker {precision}"), *ends])
