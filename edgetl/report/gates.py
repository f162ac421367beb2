"""What the gate of parity asks, in sentences: the same in every format."""

from __future__ import annotations

from edgetl.numbers import confidence_percent, counted, integer, points_of
from edgetl.report.model import Report


def asked(report: Report, metric: str) -> str:
    """What an engine passes for, and on which samples; empty where none ran.

    Args:
        report: Its engines.
        metric: In the words and escapes of a format.
    """
    figures = [engine.parity for engine in report.engines if engine.parity]
    if not figures:
        return ""
    sure, allowed, all_ = (
        f"{confidence_percent(report.confidence)} %",
        points_of(report.max_drop),
        integer(report.test_samples),
    )
    if not report.sequential:
        return (
            f"An engine passes where the upper {sure} confidence bound of its drop in {metric}, on the same {all_} raw "
            f"test samples as PyTorch, is at most {allowed}.{_together(figures[0].groups)}"
        )
    least, most = min(each.samples for each in figures), max(each.samples for each in figures)
    looked = integer(least) if least == most else f"{integer(least)} to {integer(most)}"
    return (
        f"Each engine was given raw test samples in random order until its parity was decided: {looked} of {all_}. It "
        f"passes where, at whatever sample one looks, it is sure with {sure} confidence that its {metric} drops by "
        f"less than {allowed} against PyTorch on the same samples. Its figures are of these samples, and PyTorch's of "
        "all. Intervals, bounds and p of classes are those of a test with a fixed number of samples: here they "
        "describe, and decide nothing."
    )


def _together(groups: int | None) -> str:
    return f" They belong together in {counted(groups, 'group')}, of which each counts as one." if groups else ""


def detectable(report: Report) -> float | None:
    """The drop that would probably have shown of every engine, as a share.

    It is None where none ran, or where samples were looked at until something showed.
    """
    figures = [engine.parity for engine in report.engines if engine.parity]
    return None if report.sequential else max((each.detectable_drop for each in figures), default=None)
