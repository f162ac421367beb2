"""What calls take in energy, where the machine of the benchmark has a sensor of it."""

from __future__ import annotations

from edgetl.numbers import significant
from edgetl.report.markup import Markup, el, join
from edgetl.report.model import Latency, Report
from edgetl.report.tables import Column, table

_NOTE = (
    "Each ran by itself for some seconds between two readings. A sensor sees its whole part of the machine, and "
    "sensors may contain one another: do not add them up. Above rest: less what the machine took while nothing ran."
)


def figures(report: Report) -> Markup:
    """Millijoules of one call by every sensor that knows; where none does, why; nothing without a benchmark."""
    timed = [(name, latency) for name, latency in _timed(report) if latency.energy]
    rows = [
        [name, one.sensor, significant(one.per_call_mj), significant(one.above_rest_mj)]
        for name, latency in timed
        for one in latency.energy
        if one.per_call_mj is not None
    ]
    if rows:
        columns = (
            Column("timed"), Column("sensor"), Column("of one call", "mJ", numeric=True),
            Column("above rest", "mJ", numeric=True),
        )  # fmt: skip
        return join([el("h3", "Energy"), table(columns, rows, stack=True), el("p", _NOTE, class_="note")])
    why = dict.fromkeys(one.why for _, latency in timed for one in latency.energy)
    return el("p", f"Energy of one call: unknown ({'; '.join(why)}).", class_="note") if why else Markup()


def _timed(report: Report) -> list[tuple[str, Latency]]:
    found = [(each.name, each.latency) for each in (report.reference, report.fp32) if each is not None]
    found += [(each.name, each.latency) for each in report.engines]
    return [(name, latency) for name, latency in found if latency is not None]
