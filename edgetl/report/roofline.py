"""How near each engine comes to what the machine could do: the roofline plot, and the layers that lose most."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgetl.numbers import DASH, is_number, plain, share_floor, significant
from edgetl.report.machine import Ceilings, Roofline, RooflineLayer
from edgetl.report.markup import Markup, el, join
from edgetl.report.model import Report
from edgetl.report.svg import (
    Axis,
    Box,
    Scale,
    axes,
    both_widths,
    drawing,
    label,
    line,
    logarithmic,
    marker,
    place_labels,
    shortened,
    text_width,
    ticks,
)
from edgetl.report.tables import Column, table

_SLOWEST = 8
"""Layers of an engine that are listed."""
_SANE = (1e-9, 1e18)
_DEVICES = {"cpu": "processor", "cuda": "GPU"}


@dataclass(frozen=True)
class _Point:
    """An engine, or one of its layers, in the plot."""

    name: str
    precision: str
    intensity: float
    """Multiply-adds per byte."""
    rate: float
    """Multiply-adds per second."""


def body(report: Report) -> Markup | None:
    """Plot and tables; None where no ceiling was measured."""
    if not report.ceilings or not report.rooflines:
        return None
    parts: list[Markup] = []
    plots = [(each, plot) for each in report.ceilings if (plot := chart(report, each)) is not None]
    for each, plot in plots:
        if len(plots) > 1:
            parts.append(el("h3", f"On the {_DEVICES.get(each.device, each.device)}"))
        parts.append(el("figure", _legend(report), plot, el("figcaption", _PLOT, class_="below")))
    parts += [_shares(report), el("p", _note(report), class_="note")]
    losing = _losing(report)
    return join([*parts, losing] if losing else parts)


_PLOT = (
    "Large marks: whole engines; small ones: layers of the engines that are shipped. The roofs are what the machine "
    "reached in products of large matrices, the slopes what its memory and its cache deliver. A mark below the roof of "
    "its precision leaves time on the table."
)


def _note(report: Report) -> str:
    by = "; ".join(
        f"{name} {significant(rate / 1e9)} by {how}"
        for ceilings in report.ceilings
        for name, rate, how in ceilings.products
    )
    return (
        "The least time is the sum over the layers of the engine's own graph: the multiply-adds of each at their "
        "precision's ceiling, or its bytes at the memory's, whichever is longer. “Of ceiling” is that time over the "
        f"median that was measured. Ceilings of this machine, in 10⁹ multiply-adds per second: {by or DASH}."
    )


def chart(report: Report, ceilings: Ceilings) -> Markup | None:
    """Multiply-adds per second over multiply-adds per byte on one device; None where nothing can be drawn."""
    ceilings = _drawable(ceilings)
    there = [each for each in report.rooflines if each.device == ceilings.device]
    wholes = [point for each in there if (point := _whole(report, each))]
    if not (ceilings.products and ceilings.bandwidth and wholes):
        return None
    shipped = {engine.name for engine in report.engines if engine.shipped}
    layers = [point for each in there if each.name in shipped for layer in each.layers if (point := _of(layer))]
    return both_widths(lambda width: _chart(ceilings, wholes, layers, shipped, width), 920)


def _drawable(found: Ceilings) -> Ceilings:
    """What of it can be drawn."""
    low, high = _SANE
    return replace(
        found,
        products=tuple(each for each in found.products if low <= each[1] <= high),
        bandwidth=tuple(each for each in found.bandwidth if low <= each[1] <= high),
    )


def _whole(report: Report, found: Roofline) -> _Point | None:
    latency = _medians(report).get(found.name)
    if not latency or found.least_ms is None:
        return None
    kinds = {engine.name: engine.precision for engine in report.engines} | {report.reference.name: "reference"}
    return _sane(
        _Point(
            found.name,
            kinds.get(found.name, "fp32"),
            sum(layer.multiply_adds for layer in found.layers) / max(1, sum(layer.bytes for layer in found.layers)),
            1e3 * sum(layer.multiply_adds for layer in found.layers) / latency,
        )
    )


def _of(layer: RooflineLayer) -> _Point | None:
    if not layer.multiply_adds or not layer.bytes or not layer.time_ms:
        return None
    rate = 1e3 * layer.multiply_adds / layer.time_ms
    return _sane(_Point(layer.name, layer.precision, layer.multiply_adds / layer.bytes, rate))


def _sane(point: _Point) -> _Point | None:
    low, high = _SANE
    return point if low <= point.intensity <= high and low <= point.rate <= high else None


def _medians(report: Report) -> dict[str, float]:
    timed = [(each.name, each.latency) for each in (report.reference, report.fp32) if each is not None]
    timed += [(engine.name, engine.latency) for engine in report.engines]
    return {name: latency.p50_ms for name, latency in timed if latency is not None and is_number(latency.p50_ms)}


def _chart(
    ceilings: Ceilings, wholes: Sequence[_Point], layers: Sequence[_Point], shipped: set[str], width: int
) -> Markup:
    height = 400 if width > 500 else 420
    frame = Box(60.0, 14.0, width - 12.0, height - 44.0)
    every = [*wholes, *layers]
    rates = [rate for _, rate, _ in ceilings.products]
    x_scale = logarithmic([point.intensity for point in every], frame.left, frame.right, pad=0.12)
    y_scale = logarithmic([*(point.rate for point in every), *rates], frame.bottom, frame.top, pad=0.06)
    intensities = [(value, plain(value)) for value in ticks(x_scale, 6 if width > 500 else 4)]
    billions = [(value, plain(value / 1e9)) for value in ticks(y_scale, 5)]
    parts = [
        axes(
            Axis(scale=x_scale, ticks=intensities, name="multiply-adds per byte (logarithmic)"),
            Axis(scale=y_scale, ticks=billions, name="10⁹ multiply-adds per second"),
            frame,
        )
    ]
    roofs, words = _roofs(ceilings, x_scale, y_scale, frame)
    parts += roofs
    parts += [
        el("g", el("title", _told(point)), marker(point.precision, x_scale(point.intensity), y_scale(point.rate),
                                                  filled=False, radius=2.6))
        for point in layers
    ]  # fmt: skip
    places = [(x_scale(point.intensity), y_scale(point.rate)) for point in wholes]
    names = [shortened(point.name, 34 if width > 500 else 22) for point in wholes]
    found = place_labels(places, names, Box(frame.left + 2, 2, width - 2, frame.bottom - 2), 11.5, words)
    for (x, y), place, name in zip(places, found, names, strict=True):
        if place is not None:
            if place.far:
                parts.append(line(x, y, *place.near_end((x, y)), "leader"))
            parts.append(label(place.x, place.y, name, anchor=place.anchor, class_="name"))
    for point, (x, y) in zip(wholes, places, strict=True):
        sign = marker(point.precision, x, y, filled=point.name in shipped or point.precision == "reference")
        parts.append(el("g", el("title", _told(point)), sign))
    return drawing(width, height, "Roofline: multiply-adds per second over multiply-adds per byte", *parts)


def _told(point: _Point) -> str:
    return f"{point.name}: {significant(point.rate / 1e9)}·10⁹ multiply-adds/s, {significant(point.intensity)} per byte"


def _roofs(ceilings: Ceilings, x_scale: Scale, y_scale: Scale, frame: Box) -> tuple[list[Markup], list[Box]]:
    """The lines, each up to where the next one meets it, with their names."""
    (_, cache), (_, memory) = ceilings.bandwidth[0], ceilings.bandwidth[-1]
    highest = max(rate for _, rate, _ in ceilings.products)
    parts: list[Markup] = []
    words: list[Box] = []
    for name, rate, _ in ceilings.products:
        begin = max(x_scale.low, rate / cache)
        if begin >= x_scale.high:
            continue
        y = y_scale(rate)
        parts.append(line(x_scale(begin), y, frame.right, y, f"roof {name}"))
        said = f"{name} {significant(rate / 1e9)}"
        parts.append(label(frame.right - 4, y - 4, said, anchor="end", class_="note"))
        words.append(Box(frame.right - 4 - text_width(said, 11), y - 15, frame.right, y + 2))
    for name, rate in (("cache", cache), ("memory", memory)):
        low, high = max(x_scale.low, y_scale.low / rate), min(x_scale.high, highest / rate)
        if low < high:
            ends = (x_scale(low), y_scale(low * rate), x_scale(high), y_scale(high * rate))
            parts.append(line(*ends, f"roof {name}"))
            middle = (low * high) ** 0.5
            at = (x_scale(middle), y_scale(middle * rate) - 8)
            said = f"{name} {significant(rate / 1e9)} GB/s"
            parts.append(label(*at, said, anchor="end", class_="note"))
            words.append(Box(at[0] - text_width(said, 11), at[1] - 11, at[0], at[1] + 2))
    return parts, words


def _legend(report: Report) -> Markup:
    kinds = list(dict.fromkeys(engine.precision for engine in report.engines if engine.latency))
    entries = [(marker("reference", 8, 8, filled=True), report.reference.name)]
    entries += [(marker(kind, 8, 8, filled=True), kind) for kind in ("int8", "fp16", "bf16", "fp32") if kind in kinds]
    items = [el("li", el("svg", sign, width=16, height=16, aria_hidden="true"), f" {text}") for sign, text in entries]
    return el("ul", join(items), class_="legend")


def _shares(report: Report) -> Markup:
    columns = (
        Column("engine"), Column("p50", "ms", numeric=True), Column("least", "ms", numeric=True),
        Column("of ceiling", "%", numeric=True), Column("limited by", wide=True),
    )  # fmt: skip
    medians = _medians(report)
    rows = []
    for each in report.rooflines:
        limits = ", ".join(f"{name} {share_floor(share)} %" for name, share in each.limits)
        rows.append([
            each.name,
            significant(medians.get(each.name)),
            significant(each.least_ms),
            share_floor(each.share),
            limits or each.reason or DASH,
        ])  # fmt: skip
    return table(columns, rows, stack=True)


def _losing(report: Report) -> Markup | None:
    """The layers of the fastest shipped engine that take longest beyond their least time."""
    medians = _medians(report)
    shipped = [engine.name for engine in report.engines if engine.shipped and engine.name in medians]
    known = {each.name: each for each in report.rooflines if each.layers}
    fastest = min((name for name in shipped if name in known), key=lambda name: medians[name], default=None)
    if fastest is None:
        return None
    timed = [
        (layer, layer.time_ms)
        for layer in known[fastest].layers
        if layer.time_ms is not None and is_number(layer.time_ms) and layer.time_ms > 0 and is_number(layer.least_ms)
    ]
    timed.sort(key=lambda entry: entry[0].least_ms - entry[1])
    if not timed:
        return None
    columns = (
        Column("layer"), Column("operator"), Column("precision"), Column("ms", numeric=True),
        Column("least", "ms", numeric=True), Column("of ceiling", "%", numeric=True), Column("limited by"),
    )  # fmt: skip
    rows = [
        [
            shortened(layer.name, 60),
            layer.kind,
            layer.precision,
            significant(time_ms),
            significant(layer.least_ms),
            share_floor(layer.least_ms / time_ms),
            layer.limit,
        ]
        for layer, time_ms in itertools.islice(timed, _SLOWEST)
    ]
    note = "Times are of a profile, which makes each layer a little slower: they tell layers apart."
    return join([
        el("h3", f"Layers of {fastest} that lose most"), table(columns, rows), el("p", note, class_="note")
    ])  # fmt: skip
