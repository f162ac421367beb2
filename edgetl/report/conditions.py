"""The section about the conditions of the benchmark: what the machine's sensors said, and what they did not."""

from __future__ import annotations

from edgetl.numbers import significant
from edgetl.report.machine import Condition
from edgetl.report.markup import Markup, el, join
from edgetl.report.model import Report
from edgetl.report.tables import Column, table

_NOTE = (
    "Read around the benchmark, or again and again between its calls: then the lowest and the highest value are told, "
    "and how often it was read. What could not be read is unknown, and says why."
)


def body(report: Report) -> Markup | None:
    """A table of all conditions; None where no sensors were read."""
    if not report.conditions:
        return None
    columns = [Column("condition"), Column("value"), Column("read from"), Column("times per second", numeric=True)]
    rows = [
        [el("span", each.name, class_="target"), _value(each), el("code", each.source), _rate(each)]
        for each in report.conditions
    ]
    return join([table(columns, rows, stack=True), el("p", _NOTE, class_="note")])


def _value(each: Condition) -> Markup:
    if each.value is not None:
        return el("span", each.value)
    return el("span", f"unknown: {each.why}" if each.why else "unknown", class_="muted")


def _rate(each: Condition) -> str:
    return "once" if each.rate_hz is None else significant(each.rate_hz, 2)
