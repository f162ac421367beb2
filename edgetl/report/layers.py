"""The layer report: signal-to-quantization-noise ratio over the depth of the network, and the worst layers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgetl.numbers import DASH, counted, fixed, is_number, significant
from edgetl.report.markup import Markup, el, escaped, join
from edgetl.report.model import Report
from edgetl.report.quantized import LayerLoss, LayerReport, TensorLoss
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
    place_labels,
    ticks,
    with_texts,
)
from edgetl.report.tables import Column, table

_WORST_LAYERS = 20
_WORST_TENSORS = 10
_NAMED = 3
_NAME = 40
_BAR = 110.0
_SANE = 300.0


def body(report: Report) -> Markup | None:
    """The section: one part per quantized graph; None where there is no such report."""
    made = [_graph(found) for found in report.layers if found.layers]
    if not made:
        return None
    note = (
        "Signal-to-quantization-noise ratio (SQNR) of a layer's output against the float graph: 20 dB more is a tenth "
        "of the error. Alone: only this layer's input and weights are quantized, or rounded. In the graph: everything "
        "before it is, too. Error: noise over signal, root mean square. All layers are in reports/quantization.json."
    )
    return join([*made, el("p", note, class_="note")])


def _graph(found: LayerReport) -> Markup:
    for_targets = f" for {', '.join(found.targets)}" if found.targets else ""
    head = el("h3", "Scheme ", el("code", found.scheme), escaped(for_targets))
    activations = counted(len(found.tensors), "activation") if found.tensors else "activations quantized as they come"
    what = f"{counted(len(found.layers), 'layer')} and {activations}"
    if found.half:
        head = el("h3", "float16", escaped(for_targets))
        what = f"{counted(len(found.layers), 'node')} whose inputs, constants and outputs are rounded to float16"
    intro = el(
        "p", "Recipe ", el("code", found.recipe), f", {what}, on {counted(found.samples, 'calibration sample')}.",
    )  # fmt: skip
    notes = el("ul", join([el("li", note) for note in found.notes]), class_="remarks") if found.notes else Markup()
    parts = [head, intro, notes]
    chart = depth_plot(found)
    if chart is not None:
        parts.append(el("figure", _legend(found), chart))
    tables = [_layer_table(found), *([_tensor_table(found.tensors)] if found.tensors else [])]
    return join([*parts, *tables])


def depth_plot(found: LayerReport) -> Markup | None:
    """SQNR by layer, from the input to the output; None for fewer than three layers."""
    if len(found.layers) < 3:
        return None
    return both_widths(lambda width: _depth(found, width), 920)


def _depth(found: LayerReport, width: int) -> Markup:
    left, right, top, bottom = 42.0, width - 10.0, 14.0, 246.0
    ordered = sorted(found.layers, key=lambda each: each.place)
    accumulated = [each.accumulated_db for each in ordered]
    before = [each.before_db for each in ordered]
    drawn = [value for each in ordered for value in (each.isolated_db, each.accumulated_db, each.before_db)]
    y_scale = linear([value for value in drawn if value is not None and _is_ratio(value)], bottom, top, least=6.0)
    x_scale = Scale(0.5, len(ordered) + 0.5, left, right)
    numbers = [(value, str(int(value))) for value in ticks(x_scale, 8) if value == int(value) and value >= 1]
    parts = [
        axes(
            Axis(scale=x_scale, ticks=numbers, name="layer, from input to output"),
            Axis(scale=y_scale, ticks=with_texts(ticks(y_scale, 6)), name="SQNR, dB"),
            Box(left, top, right, bottom),
        )
    ]
    for values, class_ in ((before, "curve before"), (accumulated, "curve accumulated")):
        points = _points(values, x_scale, y_scale)
        if len(points) > 1:
            parts.append(el("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points), class_=class_))
    alone = [
        (each, (x_scale(place + 1), y_scale(each.isolated_db)))
        for place, each in enumerate(ordered)
        if _is_ratio(each.isolated_db)
    ]
    radius = 3.0 if len(ordered) <= 150 else 1.8
    parts += [
        el("g", el("title", _tip(each)), el("circle", cx=x, cy=y, r=radius, class_="dot isolated"))
        for each, (x, y) in alone
    ]
    named = sorted(alone, key=lambda pair: pair[0].isolated_db)[: _NAMED if width > 500 else 1]
    names = [_tail(each.node, _NAME if width > 500 else 26) for each, _ in named]
    taken = [Box(x - 3, y - 3, x + 3, y + 3) for _, (x, y) in alone]
    taken += [Box(x - 5, y - 4, x + 5, y + 4) for x, y in _points(accumulated, x_scale, y_scale)]
    places = place_labels([point for _, point in named], names, Box(left + 2, 2, width - 2, bottom - 2), 11.5, taken)
    for (_, point), place, name in zip(named, places, names, strict=True):
        if place is not None:
            if place.far:
                parts.append(line(*point, *place.near_end(point), "leader"))
            parts.append(label(place.x, place.y, name, anchor=place.anchor, class_="name"))
    title = f"Signal-to-quantization-noise ratio of {counted(len(ordered), 'layer')}, from input to output"
    return drawing(width, bottom + 42, title, *parts)


def _legend(found: LayerReport) -> Markup:
    signs = [
        (el("circle", cx=8, cy=8, r=3, class_="dot isolated"), "layer alone"),
        (line(0, 8, 16, 8, "curve accumulated"), "in the graph"),
    ]
    if any(each.before_db is not None for each in found.layers):
        signs.append((line(0, 8, 16, 8, "curve before"), "in the graph, before corrections"))
    items = [el("li", el("svg", sign, width=16, height=16, aria_hidden="true"), f" {text}") for sign, text in signs]
    return el("ul", join(items), class_="legend")


def _layer_table(found: LayerReport) -> Markup:
    shown = found.layers[:_WORST_LAYERS]
    corrected = any(each.before_db is not None for each in found.layers)
    columns = [
        Column("layer"), Column("operator"), Column("alone", "dB", numeric=True),
        *([Column("before corrections", "dB", numeric=True)] if corrected else []),
        Column("in the graph", "dB", numeric=True), Column("error alone", "% of the signal", wide=True),
    ]  # fmt: skip
    most = max([_error(each.isolated_db) for each in shown])
    rows: list[Sequence[str]] = []
    for each in shown:
        before = [DASH if each.before_db is None else _db(each.before_db)] if corrected else []
        rows.append((
            el("code", _tail(each.node, _NAME), class_="tensor", title=each.node), each.operator, _db(each.isolated_db),
            *before, _db(each.accumulated_db),
            DASH if math.isnan(each.isolated_db) else _bar(_error(each.isolated_db), most),
        ))  # fmt: skip
    what = f"The {len(shown)} layers that lose most" if len(shown) < len(found.layers) else "All layers, worst first"
    return el("div", table(columns, rows, caption=what, stack=True), class_="names")


def _tensor_table(tensors: Sequence[TensorLoss]) -> Markup:
    shown = tensors[:_WORST_TENSORS]
    if not shown:
        return Markup()
    columns = (
        Column("activation"), Column("alone", "dB", numeric=True), Column("in the graph", "dB", numeric=True),
        Column("range"), Column("scale", numeric=True),
    )  # fmt: skip
    rows = [
        (
            el("code", _tail(each.name, _NAME), class_="tensor", title=each.name),
            _db(each.isolated_db),
            _db(each.accumulated_db),
            f"{significant(each.low)} to {significant(each.high)}",
            significant(each.scale),
        )
        for each in shown
    ]
    what = f"The {len(shown)} activations that lose most" if len(shown) < len(tensors) else "All activations"
    return el("div", table(columns, rows, caption=what, stack=True), class_="names")


def _bar(error: float, most: float) -> Markup:
    length = _BAR * error / most if most > 0 else 0.0
    bar = el("rect", x=0, y=2, width=max(length, 1.0 if error > 0 else 0.0), height=9, class_="bar")
    chart = el("svg", bar, viewBox=f"0 0 {_BAR:.0f} 13", width=round(_BAR), height=13, aria_hidden="true")
    return el("span", chart, el("span", f"{significant(error * 100, 2)} %"), class_="bars")


def _error(ratio_db: float) -> float:
    """Root mean square of the noise over that of the signal; 0 where nothing is lost."""
    return 10.0 ** (-ratio_db / 20.0) if _is_ratio(ratio_db) else 0.0


def _is_ratio(value: float) -> bool:
    """Whether a ratio can be drawn: where nothing is lost, there is no place for it on a scale."""
    return is_number(value) and abs(value) <= _SANE


def _points(values: Sequence[float | None], x_scale: Scale, y_scale: Scale) -> list[tuple[float, float]]:
    return [
        (x_scale(place + 1), y_scale(value))
        for place, value in enumerate(values)
        if value is not None and _is_ratio(value)
    ]


def _tip(each: LayerLoss) -> str:
    alone, accumulated = (_db(value) + " dB" * _is_ratio(value) for value in (each.isolated_db, each.accumulated_db))
    return f"{each.node} ({each.operator}): alone {alone}, in the graph {accumulated}"


def _db(value: float) -> str:
    if math.isnan(value):
        return "overflow"
    return "no loss" if value == math.inf else fixed(value, 1)


def _tail(name: str, characters: int) -> str:
    """The end of a name, which tells layers apart; the whole of it where it is short."""
    name = " ".join(name.split())
    return name if len(name) <= characters else "…" + name[-characters + 1 :]
