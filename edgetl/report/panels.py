"""Small multiples: training curves, and the histograms of calibration."""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgetl.numbers import counted, integer, percent, significant
from edgetl.report.markup import Markup, el, join
from edgetl.report.model import TensorHistogram, TrainingPhase
from edgetl.report.svg import Scale, both_widths, drawing, label, line, linear, shortened, tick_texts, ticks

_WIDTH, _HEIGHT = 300, 176
_LEFT, _TOP, _BOTTOM = 34.0, 8.0, 146.0
_BINS = 96
_NAME = 32
_SANE = 1e30


def training_panels(phases: Sequence[TrainingPhase], val_samples: int, metric: str) -> Markup:
    """Train loss and validation metric by epoch, two panels per phase; the scales are shared between phases."""
    losses = [epoch.train_loss for phase in phases for epoch in phase.epochs if _sane(epoch.train_loss)]
    scores = [epoch.val_score * 100 for phase in phases for epoch in phase.epochs if _sane(epoch.val_score)]
    loss_scale = linear([*losses, 0.0], 164.0, 32.0, pad=0.05)
    score_scale = linear(scores, 164.0, 32.0, pad=0.1, least=1.0)
    figures = []
    for phase in phases:
        panels = [
            _panel(phase, [epoch.train_loss for epoch in phase.epochs], loss_scale, "train loss", "loss"),
            _panel(
                phase,
                [epoch.val_score * 100 for epoch in phase.epochs],
                score_scale,
                f"validation {metric}, %",
                "score",
            ),
        ]
        figures.append(
            el("figure", el("figcaption", _phase_caption(phase, val_samples)), el("div", join(panels), class_="curves"))
        )
    return join(figures)


def histogram_panels(tensors: Sequence[TensorHistogram]) -> Markup:
    """One histogram per tensor with the chosen range and the figures below it."""
    return el("div", join([_histogram(tensor) for tensor in tensors]), class_="panels")


def _sane(value: float) -> bool:
    return math.isfinite(value) and abs(value) < _SANE


def _phase_caption(phase: TrainingPhase, val_samples: int) -> Markup:
    best = next((epoch for epoch in phase.epochs if epoch.number == phase.best_epoch), None)
    count = len(phase.epochs)
    words = [counted(count, "epoch")]
    if best is not None:
        words.append(f"best: epoch {best.number} with {percent(best.val_score, val_samples)}\u00a0%")
    if phase.seconds is not None and _sane(phase.seconds):
        words.append(f"{significant(phase.seconds)}\u00a0s")
    return join([el("strong", f"Phase “{phase.name}”"), Markup(" "), el("span", "; ".join(words), class_="muted")])


def _panel(phase: TrainingPhase, values: list[float], bounds: Scale, name: str, kind: str) -> Markup:
    return both_widths(lambda width: _curve(phase, values, bounds, name, kind, width), 440)


def _curve(phase: TrainingPhase, values: list[float], scale: Scale, name: str, kind: str, width: int) -> Markup:
    numbers = [epoch.number for epoch in phase.epochs]
    first, last = min(numbers), max(numbers)
    left, right, bottom = 42.0, width - 8.0, scale.start
    x_scale = Scale(first - 0.5, last + 0.5, left, right)
    parts = [label(left, 12, name, class_="name")]
    heights = ticks(scale, 4)
    for value, text in zip(heights, tick_texts(heights), strict=True):
        parts += [
            line(left, scale(value), right, scale(value), "grid"),
            label(left - 6, scale(value) + 4, text, anchor="end"),
        ]
    parts.append(line(left, bottom, right, bottom, "axis"))
    for number in _epoch_ticks(first, last):
        parts.append(label(x_scale(number), bottom + 15, str(number), anchor="middle"))
    parts.append(label(right, bottom + 29, "epoch", anchor="end", class_="note"))
    points = [(x_scale(number), scale(value)) for number, value in zip(numbers, values, strict=True) if _sane(value)]
    if len(points) > 1:
        parts.append(el("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points), class_=f"curve {kind}"))
    if len(points) <= 40:
        parts += [el("circle", cx=x, cy=y, r=2.2, class_=f"dot {kind}") for x, y in points]
    for number, value in zip(numbers, values, strict=True):
        if number == phase.best_epoch and _sane(value):
            x, y = x_scale(number), scale(value)
            parts += [line(x, scale.end, x, bottom, "best"), el("circle", cx=x, cy=y, r=4.5, class_=f"ring {kind}")]
            parts.append(label(min(x, right - 12), scale.end - 4, "best", anchor="middle", class_="note"))
    return drawing(width, bottom + 34, f"{name} by epoch, phase {shortened(phase.name, 40)}", *parts)


def _epoch_ticks(first: int, last: int) -> list[int]:
    if last - first < 6:
        return list(range(first, last + 1))
    step = next((size for size in (2, 5, 10, 20, 50, 100) if (last - first) / size <= 6), last - first)
    return [first, *(number for number in range(step, last + 1, step) if number - first > step // 2)]


def _histogram(tensor: TensorHistogram) -> Markup:
    edges, counts = _rebinned(tensor.edges, tensor.counts)
    bounds = [value for value in (*edges, tensor.low, tensor.high) if _sane(value)]
    x_scale = linear(bounds, _LEFT + 4, _WIDTH - 6.0, pad=0.02)
    top = max([10, *counts])
    y_scale = Scale(0.0, math.log10(top + 1) * 1.05, _BOTTOM, _TOP)
    parts = []
    for exponent in range(1 if top < 1e4 else 2, math.floor(math.log10(top)) + 1, 1 if top < 1e4 else 2):
        y = y_scale(math.log10(10**exponent + 1))
        parts += [line(_LEFT, y, _WIDTH - 2.0, y, "grid"), label(_LEFT - 5, y + 4, _power(exponent), anchor="end")]
    if counts and len(edges) == len(counts) + 1 and all(_sane(edge) for edge in edges):
        parts.append(el("path", d=_steps(edges, counts, x_scale, y_scale), class_="histogram"))
    parts.append(line(_LEFT, _BOTTOM, _WIDTH - 2.0, _BOTTOM, "axis"))
    for value in (tensor.low, tensor.high):
        if _sane(value):
            parts.append(line(x_scale(value), 4.0, x_scale(value), _BOTTOM + 4, "chosen"))
    values = ticks(x_scale, 5)
    for value, text in zip(values, tick_texts(values), strict=True):
        x = x_scale(value)
        parts += [line(x, _BOTTOM, x, _BOTTOM + 4, "axis"), label(x, _BOTTOM + 17, text, anchor="middle")]
    chart = drawing(_WIDTH, _HEIGHT - 6, f"Histogram of {shortened(tensor.name, 60)}", *parts)
    return el(
        "figure",
        el("figcaption", el("code", _tail(tensor.name), class_="tensor", title=tensor.name)),
        chart,
        _histogram_facts(tensor),
    )


def _histogram_facts(tensor: TensorHistogram) -> Markup:
    clipped = tensor.clipped_share * 100
    facts = (
        ("range", f"{significant(tensor.low)} to {significant(tensor.high)}"),
        ("scale", significant(tensor.scale)),
        ("zero point", integer(tensor.zero_point)),
        ("clipped", f"{'< 0.001' if 0 < clipped < 0.001 else significant(clipped, 2)} %"),
    )
    return el("dl", join([el("div", el("dt", name), el("dd", value)) for name, value in facts]), class_="facts")


def _rebinned(edges: tuple[float, ...], counts: tuple[int, ...]) -> tuple[list[float], list[int]]:
    """At most :data:`_BINS` bins, by summing neighbours: more are finer than a pixel."""
    group = math.ceil(len(counts) / _BINS) or 1
    summed = [sum(counts[start : start + group]) for start in range(0, len(counts), group)]
    kept = list(edges[:-1:group])
    return [*kept, *edges[-1:]], summed


def _steps(edges: list[float], counts: list[int], x_scale: Scale, y_scale: Scale) -> str:
    path = [f"M{x_scale(edges[0]):.1f},{_BOTTOM:.1f}"]
    for left, right, count in zip(edges, edges[1:], counts, strict=False):
        y = y_scale(math.log10(max(0, count) + 1))
        path.append(f"L{x_scale(left):.1f},{y:.1f}L{x_scale(right):.1f},{y:.1f}")
    path.append(f"L{x_scale(edges[-1]):.1f},{_BOTTOM:.1f}Z")
    return "".join(path)


def _tail(name: str) -> str:
    """The end of a tensor's name, which tells tensors apart; the whole of it where it is short."""
    return name if len(name) <= _NAME else "…" + name[-_NAME + 1 :]


def _power(exponent: int) -> str:
    return "10" + str(exponent).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
