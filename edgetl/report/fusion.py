"""What engines made of quantized graphs: the share that runs in int8, and what was left of the Q/DQ pairs."""

from __future__ import annotations

from collections.abc import Sequence

from edgetl.numbers import DASH, integer, percent, share_floor
from edgetl.report.markup import Markup, el, escaped, join
from edgetl.report.model import Report
from edgetl.report.quantized import Fusion, Unfused
from edgetl.report.tables import Column, table

_ROWS = 30
_EXACT = 2000
"""As many samples let a percentage have two decimals."""


def body(report: Report) -> Markup | None:
    """The section; None where nothing is known of any engine."""
    if not report.fusions:
        return None
    parsed = any(found.view == "parser" for found in report.fusions)
    note = (
        "Read from the graph that each engine really runs, after its own optimisations. A pair is fused where it has "
        "vanished into a node that computes in integers; every quantizer or dequantizer that is left costs a pass over "
        "memory at each inference."
    )
    if parsed:
        note += (
            " Of engines that did not run here it is what TensorRT's parser sees: products with integers on both "
            "sides, before the builder on the device fuses them."
        )
    fallen_back = [_fallen_back(found) for found in report.fusions]
    tables = [_unfused(report.fusions), _float_products(report.fusions)]
    return join([_summary(report.fusions), *fallen_back, el("p", note, class_="note"), *tables])


def _summary(fusions: Sequence[Fusion]) -> Markup:
    columns = (
        Column("engine"), Column("read from", wide=True), Column("multiply-adds in int8", "%", numeric=True),
        Column("pairs left", "all", numeric=True), Column("pairs left", "at inputs and outputs", numeric=True),
        Column("pairs left", "should have fused", numeric=True),
    )  # fmt: skip
    return table(columns, [_row(found) for found in fusions], stack=True)


def _row(found: Fusion) -> list[str]:
    if found.refused:
        return [found.engine, el("span", f"refused: {found.refused}", class_="bad"), *[DASH] * 4]
    source = "the graph before fusion" if found.view == "parser" else "the engine's own graph"
    told = found.view == "engine" and found.int8_share is not None
    counts = (
        len(found.unfused),
        sum(pair.needed for pair in found.unfused),
        sum(pair.defect for pair in found.unfused),
    )
    return [
        found.engine,
        join([el("span", found.library), Markup(" "), el("span", source, class_="muted")]),
        share_floor(found.int8_share),
        *(integer(count) if told else DASH for count in counts),
    ]


def _fallen_back(found: Fusion) -> Markup:
    lines = [
        el("p", el("span", "✕ not in int8", class_="bad"), Markup(" "), el("code", each.node),
           f" of {found.engine} was to run in int8 and runs in {each.precision}.", class_="defect")
        for each in found.fallen_back[:_ROWS]
    ]  # fmt: skip
    return join(lines)


def _unfused(fusions: Sequence[Fusion]) -> Markup:
    rows: list[Sequence[str]] = []
    for found in fusions:
        # What should not be there comes first, what an engine with a float interface needs comes last.
        ordered = sorted(found.unfused, key=lambda pair: (not pair.defect, pair.needed))
        rows += [(found.engine, _name(pair.name), pair.kind, _reason(pair)) for pair in ordered[:_ROWS]]
        rows += _more(found.engine, len(ordered))
    columns = (Column("engine"), Column("node"), Column("operator"), Column("reason", wide=True))
    return _titled("What is left of the pairs, and why", columns, rows)


def _float_products(fusions: Sequence[Fusion]) -> Markup:
    rows: list[Sequence[str]] = []
    for found in fusions:
        rows += [
            (found.engine, _name(each.name), each.kind, each.precision, percent(each.share, _EXACT))
            for each in found.float_products[:_ROWS]
        ]
        rows += [(*row, "") for row in _more(found.engine, len(found.float_products))]
    columns = (
        Column("engine"), Column("node"), Column("operator"), Column("runs in"),
        Column("multiply-adds", "% of all", numeric=True),
    )  # fmt: skip
    made = _titled("Convolutions and matrix products that do not run in int8", columns, rows)
    note = "Left in float by the scheme or the recipe, unless marked ✕ above."
    return join([made, el("p", note, class_="note")]) if rows else made


def _titled(title: str, columns: Sequence[Column], rows: list[Sequence[str]]) -> Markup:
    if not rows:
        return Markup()
    return join([el("h3", title), el("div", table(columns, rows, stack=True), class_="names")])


def _name(name: str) -> Markup:
    return el("code", name, class_="tensor")


def _reason(pair: Unfused) -> Markup:
    return join([el("span", "✕ ", class_="bad"), el("span", pair.reason)]) if pair.defect else escaped(pair.reason)


def _more(engine: str, count: int) -> list[tuple[str, str, str, str]]:
    """A row that says what is left out, where something is."""
    left = count - _ROWS
    text = f"… and {integer(left)} more: reports/quantization.json"
    return [(engine, "", "", text)] if left > 0 else []
