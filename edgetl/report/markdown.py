"""The report in Markdown (GitHub's dialect): verdict, findings and tables, for summaries and comments."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from edgetl.numbers import (
    DASH,
    TIMES,
    confidence_percent,
    counted,
    fixed,
    integer,
    megabytes,
    percent,
    signed_points,
    significant,
)
from edgetl.report import gates
from edgetl.report.findings import Finding, findings
from edgetl.report.markup import clean
from edgetl.report.model import Baseline, Engine, Gate, Latency, Report
from edgetl.report.tables import budget_text, percentile_names, percentiles, span, speed_up

_SIGNS = {"error": "❌", "warning": "⚠️", "note": "▫️"}
_OUTCOMES = {"passed": "passed", "failed": "**failed**", "undecided": "**undecided**", "waived": "not met, not needed"}
_DECISIONS = {"ready": "**shipped**", "built": "in the bundle, not run here", "build-on-device": "build on device"}
_ACTIVE = re.compile(r"([\\`*_\[\]<>|~&@$#]|:(?=\S))")
"""Where emphasis, code, links, HTML, cells, mathematics, mentions, emoji or bare addresses could begin."""
_FINDINGS = 50


def render_markdown(report: Report) -> str:
    """The report as one Markdown document.

    Text from users is escaped: names with pipes, brackets, HTML or line breaks stay names.

    Args:
        report: What it tells; parts that are None or empty are left out.

    Returns:
        Markdown, to be written as UTF-8.
    """
    verdict = report.verdict
    head = "✅ published" if verdict.published else "❌ not published"
    blocks = [
        f"## edgetl: {escape(report.project)} {escape(report.version)}",
        f"**{head}** {DASH} {escape(verdict.reason)}",
        findings_list(findings(report)),
        engines_table(report),
        parity_note(report),
        figures_list(report),
        latency_table(report),
        conditions(report),
        f"configuration `{code(report.config_digest[:16])}`, edgetl {escape(report.edgetl_version)}, "
        f"{escape(report.created)}, {_signature(report)}",
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def escape(text: str) -> str:
    """Text as one line that Markdown shows as it is, in a paragraph as in a table's cell."""
    return _ACTIVE.sub(r"\\\1", " ".join(clean(text).split()))


def code(text: str) -> str:
    """Text for between backticks: a digest or a name, whose own backticks and pipes would end it."""
    return " ".join(clean(text).split()).replace("`", "'").replace("|", "/") or DASH


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[int] = ()) -> str:
    """A table; heads and cells are Markdown already.

    Args:
        heads: Of the columns.
        rows: As many cells each.
        right: Indices of columns with numbers.
    """
    rule = ["---:" if index in right else "---" for index in range(len(heads))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rule, *rows))


def findings_list(found: Sequence[Finding]) -> str:
    """The findings as a list, errors first; empty where there is none."""
    lines = [f"- {_SIGNS[each.level]} `{each.rule.id}` {escape(each.message)}" for each in found[:_FINDINGS]]
    left = len(found) - len(lines)
    return "\n".join([*lines, *([f"- … and {integer(left)} more"] if left > 0 else [])])


def engines_table(report: Report) -> str:
    """Every engine with its parity, or why it has none."""
    if not report.engines:
        return ""
    sure = confidence_percent(report.confidence)
    heads = (
        "engine", f"{escape(report.metric)}, %", "drop, points", f"{sure} % interval", f"{sure} % bound", "parity",
        "p50, ms", "size, MB", "decision",
    )  # fmt: skip
    rows = [
        ("PyTorch", percent(report.reference.score, report.test_samples), DASH, DASH, DASH, "the reference",
         _median(report.reference.latency), megabytes(report.reference.size_bytes), ""),
        *(_engine_row(report, engine) for engine in report.engines),
    ]  # fmt: skip
    return "### Engines\n\n" + table(heads, rows, right=(1, 2, 3, 4, 6, 7))


def parity_note(report: Report) -> str:
    """What the gate asks, in a sentence."""
    return gates.asked(report, escape(report.metric))


def figures_list(report: Report) -> str:
    """What is told of PyTorch beside the metric; empty where nothing is."""
    lines = [
        f"- PyTorch, {escape(each.title)}: {percent(each.value, report.test_samples)} % ({escape(each.note)})"
        for each in report.figures
    ]
    return "\n".join(lines)


def latency_table(report: Report) -> str:
    """Percentiles of what was timed, with budgets; empty where nothing was."""
    baselines = [each for each in (report.reference, report.fp32) if each is not None and each.latency is not None]
    timed = [(each.name, each.latency, DASH) for each in baselines]
    timed += [(engine.name, engine.latency, _budget(engine)) for engine in report.engines]
    shown = [(name, latency, budget) for name, latency, budget in timed if latency is not None]
    if not shown:
        return ""
    names = percentile_names([latency for _, latency, _ in shown])
    rows = [_latency_row(report, name, latency, budget, names) for name, latency, budget in shown]
    heads = ("timed", *(f"{name} (95 % interval), ms" for name in names), "calls", "cold start, ms",
             "speed-up over PyTorch", "budget")  # fmt: skip
    return "### Latency\n\n" + table(heads, rows, right=tuple(range(1, len(heads) - 1)))


def conditions(report: Report) -> str:
    """The machine of the measurement, in a sentence; empty where none is known."""
    machine = report.environment
    if machine is None:
        return ""
    parts = [machine.cpu, f"{counted(machine.threads, 'thread')} per engine", f"batch {integer(machine.batch_size)}"]
    parts += [f"GPU {machine.gpu}"] if machine.gpu else []
    parts += [f"load {significant(machine.load_average, 2)}"] if machine.load_average is not None else []
    libraries = ", ".join(f"{each.name} {each.value}" for each in machine.libraries)
    return "Measured on: " + "; ".join(escape(part) for part in [*parts, machine.system, libraries] if part)


def _engine_row(report: Report, engine: Engine) -> tuple[str, ...]:
    figures = engine.parity
    numbers = (DASH, DASH, DASH, DASH) if figures is None else (
        percent(figures.score, report.test_samples),
        signed_points(figures.drop, report.test_samples),
        f"{fixed(100.0 * figures.interval[0], 2)} to {fixed(100.0 * figures.interval[1], 2)}",
        fixed(100.0 * figures.drop_upper, 2, beside=100.0 * report.max_drop),
    )  # fmt: skip
    decision = _DECISIONS[engine.status] if engine.shipped else "not shipped"
    if engine.shipped and not report.verdict.published:
        decision = "would be shipped"
    why = f": {escape(engine.reason)}" if engine.reason else ""
    return (
        escape(engine.name), *numbers, _outcome(engine.parity_gate), _median(engine.latency),
        megabytes(engine.size_bytes), decision + why,
    )  # fmt: skip


def _latency_row(report: Report, name: str, latency: Latency, budget: str, shown: Sequence[str]) -> tuple[str, ...]:
    reference: Baseline = report.reference
    factor = speed_up(latency, reference)
    times = DASH if factor is None else f"{significant(factor)}{TIMES}"
    cells = [
        significant(value) + (f" ({found})" if value is not None and (found := span(interval)) != DASH else "")
        for name, value, interval in percentiles(latency)
        if name in shown
    ]
    start = significant(sum(latency.cold_ms)) if latency.cold_ms else DASH
    mark = f"{escape(name)} **UNSTABLE**" if latency.unstable else escape(name)
    return (mark, *cells, integer(latency.samples), start, times, budget)


def _budget(engine: Engine) -> str:
    limits = escape(budget_text(engine.budget))
    return f"{limits}: {_outcome(engine.budget_gate)}" if limits else "none"


def _outcome(gate: Gate) -> str:
    return _OUTCOMES.get(gate.outcome, "not checked")


def _median(latency: Latency | None) -> str:
    return significant(latency.p50_ms if latency else None)


def _signature(report: Report) -> str:
    return f"signed by `{code(report.signed_by)}`" if report.signed_by else "unsigned"
