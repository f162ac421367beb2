"""Confusion matrices: a heat map with numbers for few classes, the worst pairs for many."""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgetl.numbers import counted, fixed, integer
from edgetl.report.markup import Markup, el, join
from edgetl.report.model import Confusion
from edgetl.report.svg import drawing, label, shortened, text_width
from edgetl.report.tables import Column, table

MAX_CLASSES = 30
_PAIRS = 20
_DEEPEST = 0.55  # ink on a cell of this strength still has a contrast above 4.5 in both colour schemes


def confusion(matrix: Confusion) -> Markup:
    """The matrix as a figure, or its most confused pairs as a table where there are more than thirty classes."""
    if len(matrix.labels) > MAX_CLASSES:
        return _worst_pairs(matrix)
    errors = sum(count for i, row in enumerate(matrix.counts) for j, count in enumerate(row) if i != j)
    total = sum(map(sum, matrix.counts))
    caption = el(
        "figcaption", el("strong", matrix.name), Markup(" "),
        el("span", f"{integer(errors)} of {counted(total, 'sample')} wrong", class_="muted"),
    )  # fmt: skip
    return el("figure", caption, el("div", _map(matrix), class_="scroll"))


def _map(matrix: Confusion) -> Markup:
    labels = [shortened(name, 16) for name in matrix.labels]
    count = len(labels)
    cell = 34.0 if count <= 12 else 30.0 if count <= 20 else 26.0
    size = 11.5 if count <= 20 else 10.5
    longest = max((text_width(name, size) for name in labels), default=0.0)
    turned = longest > cell - 4
    left, top = longest + 30, (longest * 0.75 + 34 if turned else 42.0)
    # A turned label leans out over the last column.
    width, height = left + cell * count + (longest * 0.75 if turned else 4), top + cell * count + 4
    worst = max((n for i, row in enumerate(matrix.counts) for j, n in enumerate(row) if i != j), default=0)
    parts = [
        label(left + cell * count / 2, 13, "predicted class", anchor="middle", class_="note"),
        el("text", "true class", text_anchor="middle", class_="note",
           transform=f"translate(11 {top + cell * count / 2:.0f}) rotate(-90)"),
    ]  # fmt: skip
    for i, name in enumerate(labels):
        parts.append(label(left - 7, top + cell * (i + 0.5) + 4, name, anchor="end"))
        x = left + cell * (i + 0.5)
        if turned:
            parts.append(el("text", name, transform=f"translate({x + 3:.1f} {top - 7:.1f}) rotate(-45)"))
        else:
            parts.append(label(x, top - 7, name, anchor="middle"))
    parts += _cells(matrix, left, top, cell, worst)
    return drawing(
        width,
        height,
        f"Confusion matrix of {shortened(matrix.name, 60)}",
        *parts,
        class_="matrix" if count <= 12 else "matrix large",
    )


def _cells(matrix: Confusion, left: float, top: float, cell: float, worst: int) -> list[Markup]:
    parts = []
    for i, row in enumerate(matrix.counts):
        for j, count in enumerate(row):
            x, y = left + cell * j, top + cell * i
            strength = (
                None if i == j or not count else 0.10 + (_DEEPEST - 0.10) * math.sqrt(max(0, count) / max(1, worst))
            )
            kind = "right" if i == j else "wrong" if count else "none"
            parts.append(
                el("rect", x=x + 0.5, y=y + 0.5, width=cell - 1, height=cell - 1, class_=kind, fill_opacity=strength)
            )
            if count or i == j:
                text = integer(count) if count < 10_000 else f"{count // 1000}k"
                class_ = "count diagonal" if i == j else "count"
                if len(text) > 4:
                    class_ += " long"
                parts.append(label(x + cell / 2, y + cell / 2 + 4, text, anchor="middle", class_=class_))
    return parts


def _worst_pairs(matrix: Confusion) -> Markup:
    pairs = sorted(
        ((count, i, j) for i, row in enumerate(matrix.counts) for j, count in enumerate(row) if i != j and count > 0),
        key=lambda pair: (-pair[0], pair[1], pair[2]),
    )[:_PAIRS]
    rows: list[Sequence[str]] = []
    for count, i, j in pairs:
        of_class = sum(matrix.counts[i])
        share = fixed(100 * count / of_class if of_class > 0 else None, 1)
        rows.append((matrix.labels[i], matrix.labels[j], integer(count), integer(of_class), share))
    columns = (
        Column("true class"), Column("predicted class"), Column("samples", numeric=True),
        Column("of the class", numeric=True), Column("share", "%", numeric=True),
    )  # fmt: skip
    caption = join(
        [el("strong", matrix.name), Markup(f" the {len(rows)} most confused pairs of {len(matrix.labels)} classes")]
    )
    return table(columns, rows, caption=caption) if rows else el("p", f"{matrix.name}: no sample was confused.")
