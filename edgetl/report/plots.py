"""Charts over all engines: accuracy against latency, and the spread of the latency."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgetl.numbers import MINUS, confidence_percent, percent, plain, points_of, significant
from edgetl.report.markup import Markup, el, join
from edgetl.report.model import Budget, Engine, Latency, Report
from edgetl.report.pareto import (
    front,
    front_boxes,
    front_line,
    level_whisker,
    median_interval,
    score_intervals,
    whisker,
)
from edgetl.report.svg import (
    Axis,
    Box,
    Scale,
    axes,
    both_widths,
    drawing,
    label,
    line,
    linear,
    logarithmic,
    marker,
    place_labels,
    shortened,
    text_width,
    ticks,
    with_texts,
)

_PLOTTED_MS = (1e-6, 1e9)


@dataclass(frozen=True)
class Contender:
    """An engine or a baseline, as the charts draw it."""

    name: str
    precision: str
    """Of the engine; "reference" for PyTorch."""
    score: float | None
    latency: Latency | None
    shipped: bool
    budget: Budget


def contenders(report: Report) -> tuple[Contender, ...]:
    """The baselines that are no engine themselves, then all engines that were timed."""
    baselines = [report.reference] if report.fp32 is None else [report.reference, report.fp32]
    known = {engine.name for engine in report.engines}
    found = [
        Contender(base.name, sign, base.score, base.latency, False, Budget())
        for base, sign in zip(baselines, ("reference", "fp32"), strict=False)
        if base.same_as not in known
    ]
    found += [_contender(engine) for engine in report.engines]
    return tuple(each for each in found if each.latency is not None and _drawable(each.latency))


def scatter(report: Report) -> Markup | None:
    """The test metric over the median latency; None where fewer than two things have both."""
    shown = [each for each in contenders(report) if each.score is not None and 0.0 <= each.score <= 1.0]
    if len(shown) < 2:
        return None
    return both_widths(lambda width: _scatter(report, shown, width), 920)


def scatter_legend(report: Report) -> Markup:
    """The signs of the scatter plot, in words."""
    present = {each.precision for each in contenders(report)}
    entries = [("reference", True, report.reference.name)] if "reference" in present else []
    entries += [(name, True, name) for name in ("int8", "fp16", "bf16", "fp32") if name in present]
    entries.append(("fp32" if "fp32" in present else "int8", False, "hollow: not shipped"))
    signs = [(marker(sign, 8, 8, filled=filled), text) for sign, filled, text in entries]
    signs.append((line(0, 8, 16, 8, "front"), "Pareto front: nothing is both faster and better"))
    if score_intervals(report):
        bar = join([line(8, 1, 8, 15, "whisker"), line(4, 1, 12, 1, "whisker"), line(4, 15, 12, 15, "whisker")])
        signs.append(
            (bar, f"{confidence_percent(report.confidence)} % interval of the change against {report.reference.name}")
        )
    if any(median_interval(each.latency) for each in contenders(report)):
        bar = join([line(1, 8, 15, 8, "whisker"), line(1, 4, 1, 12, "whisker"), line(15, 4, 15, 12, "whisker")])
        signs.append((bar, "95 % interval of the median"))
    items = [el("li", el("svg", sign, width=16, height=16, aria_hidden="true"), f" {text}") for sign, text in signs]
    return el("ul", join(items), class_="legend")


def ranges(report: Report) -> Markup | None:
    """p50, p90 and p99 of everything that was timed, fastest first; None where nothing was."""
    shown = sorted(contenders(report), key=lambda each: each.latency.p50_ms if each.latency else 0.0)
    if not shown:
        return None
    return both_widths(lambda width: _ranges(shown, width), 920)


def _contender(engine: Engine) -> Contender:
    score = engine.parity.score if engine.parity else None
    budget = engine.budget if engine.shipped else Budget()  # a budget binds what is shipped
    return Contender(engine.name, engine.precision, score, engine.latency, engine.shipped, budget)


def _drawable(latency: Latency) -> bool:
    low, high = _PLOTTED_MS
    return all(low <= value <= high for value in _percentiles(latency))


def _percentiles(latency: Latency) -> list[float]:
    """Those that there were calls enough for, ascending by their share."""
    return [value for value in (latency.p50_ms, latency.p90_ms, latency.p99_ms) if value is not None]


def _scatter(report: Report, shown: list[Contender], width: int) -> Markup:
    height = 400 if width > 500 else 420
    left, right, top, bottom = 52.0, width - 12.0, 14.0, height - 44.0
    accuracies = [each.score for each in shown if each.score is not None]
    gate = (report.reference.score or max(accuracies)) - report.max_drop
    near_gate = [gate] if min(accuracies) - 0.05 < gate < max(accuracies) + 0.05 else []
    intervals = score_intervals(report)
    ends = [bound for each in shown for bound in intervals.get(each.name, ())]
    y_scale = linear([value * 100 for value in accuracies + near_gate + ends], bottom, top, pad=0.09, least=0.5)
    # Room for a name on either side.
    medians = [each.latency.p50_ms for each in shown if each.latency]
    medians += [bound for each in shown for bound in _interval_of(each)]
    x_scale = logarithmic(medians, left, right, pad=0.18)
    medians_at = [(value, plain(value)) for value in ticks(x_scale, 6 if width > 500 else 4)]
    parts = [
        axes(
            Axis(scale=x_scale, ticks=medians_at, name="median latency, ms per call (logarithmic)"),
            Axis(scale=y_scale, ticks=with_texts(ticks(y_scale, 6)), name=f"test {report.metric}, %"),
            Box(left, top, right, bottom),
        )
    ]
    taken = []
    if near_gate:
        y = y_scale(gate * 100)
        text = f"reference {MINUS} {points_of(report.max_drop)}: the gate's limit"
        parts += [line(left, y, right, y, "gate"), label(right - 4, y - 5, text, anchor="end", class_="note")]
        # Names may cross the line, not its words.
        taken.append(Box(right - 4 - text_width(text, 11), y - 17, right, y + 2))
    points = [
        (x_scale(each.latency.p50_ms), y_scale(each.score * 100))
        for each in shown
        if each.latency is not None and each.score is not None
    ]
    best = [points[index] for index in front([(x, -y) for x, y in points])]
    parts.append(front_line(best, right))
    lines = front_boxes(best, right)
    for each, (x, y) in zip(shown, points, strict=True):
        of_median = _interval_of(each)
        if of_median:
            parts.append(level_whisker(y, of_median, x_scale, each.precision))
            lines.append(Box(x_scale(of_median[0]), y - 4, x_scale(of_median[1]), y + 4))
        if each.name in intervals:
            low, high = intervals[each.name]
            parts.append(whisker(x, (low, high), y_scale, each.precision))
            lines.append(Box(x - 4, y_scale(high * 100), x + 4, y_scale(low * 100)))
    parts += _names(shown, points, Box(left + 2, 2, width - 2, bottom - 2), taken, lines)
    parts += [_point(report, each, x, y) for each, (x, y) in zip(shown, points, strict=True)]
    return drawing(width, height, f"Test {report.metric} over median latency, one point per engine", *parts)


def _interval_of(each: Contender) -> tuple[float, float] | tuple[()]:
    """Of the median, where it can be drawn."""
    found = median_interval(each.latency)
    low, high = _PLOTTED_MS
    return found if found is not None and all(low <= bound <= high for bound in found) else ()


def _names(
    shown: Sequence[Contender],
    points: Sequence[tuple[float, float]],
    frame: Box,
    taken: Sequence[Box],
    lines: Sequence[Box],
) -> list[Markup]:
    """The name of each point where there is room, and how many have none."""
    parts = []
    names = [shortened(each.name, 34) for each in shown]
    places = place_labels(points, names, frame, 11.5, taken, lines)
    for (x, y), place, name in zip(points, places, names, strict=True):
        if place is not None:
            if place.far:
                parts.append(line(x, y, *place.near_end((x, y)), "leader"))
            parts.append(label(place.x, place.y, name, anchor=place.anchor, class_="name"))
    nameless = places.count(None)
    if nameless:
        text = f"no room for {nameless} of the names: see the tables"
        parts.append(label(frame.left + 2, frame.bottom - 3, text, class_="note"))
    return parts


def _point(report: Report, each: Contender, x: float, y: float) -> Markup:
    latency = significant(each.latency.p50_ms if each.latency else None)
    tip = el("title", f"{each.name}: {percent(each.score, report.test_samples)} %, p50 {latency} ms")
    filled = each.shipped or each.precision == "reference"
    return el("g", tip, marker(each.precision, x, y, filled=filled))


def _ranges(shown: list[Contender], width: int) -> Markup:
    wide = width > 500
    names = [shortened(each.name, 34 if wide else 30) for each in shown]
    name_room = max(text_width(name, 12) for name in names) + 14 if wide else 0.0
    row, top = (30, 30) if wide else (46, 30)
    number_room = 176.0
    left, right = (24 + name_room, width - number_room) if wide else (8.0, width - 10.0)
    height = top + row * len(shown) + 40
    values = [value for each in shown if each.latency for value in _spread(each)]
    span_is_wide = max(values) > 6 * min(values)
    x_scale = (
        logarithmic(values, left, right, pad=0.04) if span_is_wide else Scale(0.0, max(values) * 1.04, left, right)
    )
    parts = [_range_axis(x_scale, top, height - 36, span_is_wide, wide)]
    header_y = 16.0
    parts.append(label(width - 8.0, header_y, "p50 / p90 / p99, ms", anchor="end", class_="note"))
    for index, (each, name) in enumerate(zip(shown, names, strict=True)):
        y = top + row * (index + 0.5) + (0 if wide else 9)
        text_y = y + 4 if wide else y - 13
        parts.append(marker(each.precision, 8, text_y - 4, filled=each.shipped or each.precision == "reference"))
        parts.append(label(22, text_y, name, class_="name"))
        parts.append(label(width - 8.0, text_y, _figures(each), anchor="end", class_="number"))
        parts += list(_bar(each, x_scale, y))
    return drawing(width, height, "Latency percentiles per engine, fastest first", *parts)


def _spread(each: Contender) -> list[float]:
    latency = each.latency
    limits = [limit for limit in _limits(each.budget) if _PLOTTED_MS[0] <= limit <= _PLOTTED_MS[1]]
    return limits + (_percentiles(latency) if latency else [])


def _limits(budget: Budget) -> list[float]:
    return [limit for limit in (budget.p50_ms, budget.p90_ms, budget.p99_ms) if limit is not None]


def _figures(each: Contender) -> str:
    latency = each.latency
    values = (latency.p50_ms, latency.p90_ms, latency.p99_ms) if latency else ()
    return " / ".join(significant(value) for value in values)


def _range_axis(x_scale: Scale, top: float, bottom: float, log: bool, wide: bool) -> Markup:
    parts = []
    for value in ticks(x_scale, 6 if wide else 4):
        x = x_scale(value)
        parts.append(line(x, top, x, bottom, "grid"))
        parts.append(label(x, bottom + 15, plain(value), anchor="middle"))
    name = "ms per call (logarithmic)" if log else "ms per call"
    parts.append(label((x_scale.start + x_scale.end) / 2, bottom + 31, name, anchor="middle"))
    return join(parts)


def _bar(each: Contender, x_scale: Scale, y: float) -> Iterator[Markup]:
    if each.latency is None:
        return
    places = [x_scale(value) for value in _percentiles(each.latency)]
    p50, kind = places[0], each.precision
    if each.latency.p99_ms is not None:
        p99 = places[-1]
        yield line(min(p50, p99), y, max(p50, p99), y, f"whisker {kind}")
        yield line(p99, y - 5, p99, y + 5, f"whisker {kind}")
    if each.latency.p90_ms is not None:
        p90 = places[1]
        yield el("rect", x=min(p50, p90), y=y - 5, width=max(1.5, abs(p90 - p50)), height=10, class_=f"range {kind}")
    yield line(p50, y - 8, p50, y + 8, f"median {kind}")
    for limit in _limits(each.budget):
        if _PLOTTED_MS[0] <= limit <= _PLOTTED_MS[1]:
            x = x_scale(limit)
            yield el(
                "polygon",
                points=f"{x:.1f},{y - 6:.1f} {x + 5:.1f},{y - 13:.1f} {x - 5:.1f},{y - 13:.1f}",
                class_="limit",
            )
            yield line(x, y - 8, x, y + 8, "limit")
