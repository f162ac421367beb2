"""Tables: a builder, the three tables over all engines, and what learned in each phase."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from edgetl.numbers import (
    CHOSEN,
    DASH,
    TIMES,
    aligned,
    confidence_percent,
    fixed,
    integer,
    is_number,
    megabytes,
    percent,
    plain,
    share_floor,
    signed_points,
    significant,
)
from edgetl.report.markup import Markup, el, join
from edgetl.report.model import Baseline, Budget, Engine, Gate, Latency, Report, TrainingPhase

_STATUS = {"ready": "ran here", "built": "built, not run", "build-on-device": "build on device"}
_OUTCOME = {
    "passed": ("✓", "passed"),
    "failed": ("✕", "failed"),
    "undecided": ("?", "undecided"),
    "waived": ("○", "not met"),
    "not-run": (DASH, "not checked"),
}


@dataclass(frozen=True)
class Column:
    """The head of a column."""

    name: str
    unit: str = ""
    numeric: bool = False
    wide: bool = False
    """Takes a whole line where rows are stacked in a narrow window."""

    @property
    def label(self) -> str:
        """Name and unit in one line."""
        comma = "," if self.unit and not self.unit.startswith("over ") else ""
        return f"{self.name}{comma} {self.unit}" if self.unit else self.name


def table(
    columns: Sequence[Column], rows: Iterable[Sequence[str]], *, caption: str | None = None, stack: bool = False
) -> Markup:
    """A table whose first column names its rows.

    Args:
        columns: Heads; a numeric column is set flush right with its decimal points in line.
        rows: One cell per column: markup, or text that is escaped.
        caption: Above the table.
        stack: In a narrow window every row becomes a block of named values; else the table scrolls.
    """
    body = _aligned_columns(columns, [list(row) for row in rows])
    head = [
        el("th", column.name, el("span", column.unit, class_="unit") if column.unit else "",
           scope="col", class_="num" if column.numeric else None)
        for column in columns
    ]  # fmt: skip
    lines = [el("tr", join([_cell(*cell, i) for i, cell in enumerate(zip(columns, row, strict=True))])) for row in body]
    content = el(
        "table", el("caption", caption) if caption else "", el("thead", el("tr", join(head))), el("tbody", join(lines)),
        class_="stack" if stack else None,
    )  # fmt: skip
    return el("div", content, class_="scroll", tabindex=None if stack else 0)


def engines_table(report: Report) -> Markup:
    """What there is, where it stands and what was decided."""
    columns = (
        Column("engine"), Column("backend, provider"), Column("status"), Column("size", "MB", numeric=True),
        Column(report.metric, "%", numeric=True), Column("p50", "ms", numeric=True),
        Column("placed", "%", numeric=True), Column("decision", wide=True),
    )  # fmt: skip
    rows: list[Sequence[str]] = [_baseline_row(base) + _baseline_figures(report, base) for base in _baselines(report)]
    for engine in report.engines:
        rows.append((
            engine_name(engine),
            join([el("span", engine.backend), Markup(" "), el("span", engine.placed_on, class_="muted")]),
            _STATUS[engine.status],
            megabytes(engine.size_bytes),
            percent(engine.parity.score if engine.parity else None, report.test_samples),
            significant(engine.latency.p50_ms if engine.latency else None),
            share_floor(engine.placement_share),
            decision(engine, published=report.verdict.published),
        ))  # fmt: skip
    return table(columns, rows, stack=True)


def parity_table(report: Report) -> Markup | None:
    """Every engine that ran against the reference; None where none did."""
    shown = [
        engine for engine in report.engines if engine.parity is not None or engine.parity_gate.outcome != "not-run"
    ]
    if not shown:
        return None
    sure = f"{confidence_percent(report.confidence)} %"
    bound = f"{sure} bound"
    columns = (
        Column("engine"), Column(report.metric, "%", numeric=True), Column("agreement", "%", numeric=True),
        Column("drop", "points", numeric=True), Column(f"{sure} interval", "points"),
        Column(bound, "points", numeric=True), Column("gate"),
    )  # fmt: skip
    rows = []
    for engine in shown:
        figures, samples = engine.parity, report.test_samples
        numbers = [DASH] * 5 if figures is None else [
            percent(figures.score, figures.samples), percent(figures.agreement, figures.samples),
            signed_points(figures.drop, samples), _interval(figures.interval),
            _bound(figures.drop_upper, report.max_drop),
        ]  # fmt: skip
        rows.append([engine_name(engine), *numbers, gate(replace(engine.parity_gate, message=""))])
    said = [
        el("li", engine_name(engine), Markup(": "), gate(engine.parity_gate))
        for engine in shown
        if engine.parity_gate.message
    ]
    return join([table(columns, rows, stack=True), *([el("ul", join(said), class_="said")] if said else [])])


def outputs_table(report: Report) -> Markup:
    """The outputs of every engine that ran, as numbers."""
    columns = (
        Column("outputs as numbers"), Column("largest error", numeric=True), Column("mean error", numeric=True),
        Column("cosine", numeric=True), Column("SQNR", "dB", numeric=True),
    )  # fmt: skip
    rows = [
        (
            engine_name(engine),
            significant(engine.parity.max_abs_error, 2),
            significant(engine.parity.mean_abs_error, 2),
            cosine_text(engine.parity.cosine),
            fixed(engine.parity.sqnr_db, 1),
        )
        for engine in report.engines
        if engine.parity
    ]
    return table(columns, rows, stack=True)


def cosine_text(cosine: float | None) -> str:
    """A cosine: near 1 with its distance from 1 to two digits, so that no engine seems to be exact which is not."""
    if cosine is None or not is_number(cosine):
        return DASH
    apart = 1.0 - cosine
    return fixed(cosine, 4) if apart >= 1e-3 or apart <= 0.0 else f"1 − {significant(apart, 2)}"


def regressions_table(report: Report) -> Markup | None:
    """Classes and slices on which an engine is worse than PyTorch; None where there is none."""
    columns = (
        Column("engine"), Column("where"), Column("decisions", numeric=True),
        Column("only PyTorch right", numeric=True),
        Column("only the engine right", numeric=True), Column("drop", "points", numeric=True),
        Column("p, adjusted", numeric=True),
    )  # fmt: skip
    rows = [
        [
            engine_name(engine), f"{each.column} {each.value}", integer(each.decisions), integer(each.worse),
            integer(each.better), fixed(100.0 * each.drop, 1), significant(each.p_adjusted, 2),
        ]
        for engine in report.engines
        if engine.parity
        for each in engine.parity.regressions
    ]  # fmt: skip
    return table(columns, rows, stack=True) if rows else None


def latency_table(report: Report) -> Markup | None:
    """Percentiles and speed-ups of everything that was timed; None where nothing was."""
    shown = [engine for engine in report.engines if engine.latency is not None]
    # Speed-ups are over them, so that they are told also where an engine is of the same graph.
    baselines = [base for base in (report.reference, report.fp32) if base is not None and base.latency is not None]
    if not shown and not baselines:
        return None
    timed = [base.latency for base in baselines] + [engine.latency for engine in shown]
    names = percentile_names([latency for latency in timed if latency is not None])
    columns = [Column("engine")]
    for name in names:
        columns += [Column(name, "ms", numeric=True), Column("95 % interval", f"of {name}, ms")]
    columns += [
        Column("calls", numeric=True), Column("cold start", "ms"),
        Column("speed-up", f"over {report.reference.name}", numeric=True),
    ]  # fmt: skip
    references = [report.reference]
    if report.fp32 is not None:
        columns.append(Column("speed-up", f"over {report.fp32.name}", numeric=True))
        references.append(report.fp32)
    columns.append(Column("budget", wide=True))
    role = el("span", "baseline", class_="muted")
    rows = [
        [
            _marked(el("span", base.name, class_="target"), base.latency),
            *_latency_cells(base.latency, names, references),
            role,
        ]
        for base in baselines
    ]
    for engine in shown:
        name = _marked(engine_name(engine), engine.latency)
        rows.append([name, *_latency_cells(engine.latency, names, references), _budget_cell(engine)])
    return table(columns, rows, stack=True)


def _marked(name: Markup, latency: Latency | None) -> Markup:
    """A name, with a mark where its measurement is unstable."""
    if latency is None or not latency.unstable:
        return name
    return join([name, Markup(" "), el("span", "UNSTABLE", class_="bad")])


def speed_up(latency: Latency | None, baseline: Baseline | None) -> float | None:
    """The baseline's median latency over this one's; None where either is missing or not positive."""
    if latency is None or baseline is None or baseline.latency is None:
        return None
    ours, theirs = latency.p50_ms, baseline.latency.p50_ms
    if not (is_number(ours) and is_number(theirs) and ours > 0 and theirs > 0):
        return None
    return theirs / ours


def times(factor: float | None) -> str:
    """A speed-up as a factor."""
    text = significant(factor)
    return text if text == DASH else f"{text}{TIMES}"


def engine_name(engine: Engine) -> Markup:
    """Target and precision."""
    return join(
        [el("span", engine.target, class_="target"), Markup(" "), el("span", engine.precision, class_="precision")]
    )


def decision(engine: Engine, *, published: bool = True) -> Markup:
    """Shipped or not, and why; of a build that is not published, what would be."""
    why = [Markup(" "), el("span", engine.reason, class_="muted")] if engine.reason else []
    if engine.shipped and not published:
        return join([el("span", "would be shipped", class_="plain"), *why])
    if engine.shipped and engine.status == "ready":
        return join([el("span", "✓ shipped", class_="good"), *why])
    if engine.shipped:
        return join([el("span", "in the bundle, unproven", class_="plain"), *why])
    return join([el("span", "not shipped", class_="plain"), *why])


def gate(result: Gate) -> Markup:
    """A sign, a word and the sentence."""
    sign, word = _OUTCOME[result.outcome]
    head = el("span", f"{sign} {word}" if sign != DASH else word, class_=f"outcome {result.outcome}")
    return join([head, Markup(" "), el("span", result.message, class_="muted")]) if result.message else head


def budget_text(budget: Budget) -> str:
    """The limits in words; empty where there is none."""
    limits = (("p50", budget.p50_ms), ("p90", budget.p90_ms), ("p99", budget.p99_ms))
    return ", ".join(f"{name} ≤ {plain(limit, CHOSEN)} ms" for name, limit in limits if limit is not None)


def _budget_cell(engine: Engine) -> Markup | str:
    if engine.budget == Budget() and engine.budget_gate.outcome == "not-run":
        return "none set"
    result = engine.budget_gate
    return gate(result if result.message else replace(result, message=budget_text(engine.budget)))


def _interval(interval: tuple[float, float]) -> str:
    return f"{fixed(100.0 * interval[0], 2)} to {fixed(100.0 * interval[1], 2)}"


def _bound(drop_upper: float, limit: float) -> str:
    """An upper bound of a drop, in points: it is compared with a limit, not counted in samples."""
    text = fixed(drop_upper * 100.0, 2, beside=limit * 100.0)
    return f"+{text}" if drop_upper > 0 and text not in ("0.00", DASH) else text


def _baselines(report: Report) -> list[Baseline]:
    known = {engine.name for engine in report.engines}
    candidates = [report.reference] if report.fp32 is None else [report.reference, report.fp32]
    return [base for base in candidates if base.same_as not in known]


def _baseline_row(base: Baseline) -> list[str]:
    return [el("span", base.name, class_="target")]


def _baseline_figures(report: Report, base: Baseline) -> list[str]:
    role = "the reference of parity" if base is report.reference else "the float graph, for comparison"
    return [
        DASH, "ran here" if base.latency or base.score is not None else "not run", megabytes(base.size_bytes),
        percent(base.score, report.test_samples), significant(base.latency.p50_ms if base.latency else None),
        DASH, el("span", role, class_="muted"),
    ]  # fmt: skip


def percentiles(latency: Latency) -> tuple[tuple[str, float | None, tuple[float, float] | None], ...]:
    """The name, the value and the interval of each, in ms, from the median on."""
    return (
        ("p50", latency.p50_ms, latency.interval_ms), ("p90", latency.p90_ms, latency.p90_interval_ms),
        ("p99", latency.p99_ms, latency.p99_interval_ms), ("p99.9", latency.p999_ms, latency.p999_interval_ms),
    )  # fmt: skip


def percentile_names(timed: Sequence[Latency]) -> tuple[str, ...]:
    """The percentiles that a table of these shows: p99.9 only where one of them has calls enough for it."""
    rare = {name for each in timed for name, value, _ in percentiles(each) if value is not None}
    return tuple(name for name in ("p50", "p90", "p99", "p99.9") if name != "p99.9" or name in rare)


def span(interval: tuple[float, float] | None) -> str:
    """An interval of milliseconds; a dash where it is not known."""
    known = interval is not None and all(is_number(bound) for bound in interval)
    return " to ".join(significant(bound) for bound in interval or ()) if known else DASH


def _latency_cells(latency: Latency | None, names: Sequence[str], references: Sequence[Baseline]) -> list[str]:
    if latency is None:
        return [DASH] * (2 * len(names) + 2 + len(references))
    cells = []
    for name, value, interval in percentiles(latency):
        if name in names:
            cells += [significant(value), span(interval)]
    cold = " + ".join(significant(part) for part in latency.cold_ms) if latency.cold_ms else DASH
    ups = [times(speed_up(latency, base)) for base in references]
    return [*cells, integer(latency.samples), cold, *ups]


def _aligned_columns(columns: Sequence[Column], rows: list[list[str]]) -> list[list[str]]:
    for index, column in enumerate(columns):
        if column.numeric:
            for row, text in zip(rows, aligned([row[index] for row in rows]), strict=True):
                row[index] = text
    return rows


def _cell(column: Column, content: str, index: int) -> Markup:
    if index == 0:
        return el("th", content, scope="row")
    classes = " ".join(
        word
        for word, wanted in (("num", column.numeric), ("half", column.unit.startswith("over ")), ("whole", column.wide))
        if wanted
    )
    return el("td", content, data_label=column.label, class_=classes or None)


def groups_table(phases: Sequence[TrainingPhase]) -> Markup:
    """What learned in each phase, how fast, and what held it back."""
    columns = (
        Column("phase"), Column("stage"), Column("peak learning rate", numeric=True),
        Column("weight decay", numeric=True), Column("tensors", numeric=True), Column("parameters", numeric=True),
    )  # fmt: skip
    rows = [
        [
            phase.name,
            group.stage,
            plain(group.lr),
            plain(group.weight_decay),
            integer(group.tensors),
            integer(group.parameters),
        ]
        for phase in phases
        for group in phase.groups
    ]
    if not rows:
        return Markup()
    said = [
        el("p", f"Phase “{phase.name}”: {settings}.", class_="note") for phase in phases if (settings := _how(phase))
    ]
    return join([table(columns, rows), *said])


def _how(phase: TrainingPhase) -> str:
    """Optimizer, loss and regularisation, as far as they are known and not nothing."""
    given = (
        ("label smoothing", phase.label_smoothing),
        ("L1", phase.l1),
        ("dropout", phase.dropout),
    )
    words = [{"adamw": "AdamW", "sgd": "SGD"}.get(phase.optimizer, phase.optimizer), phase.loss]
    words += [f"{name} {plain(value)}" for name, value in given if value]
    return ", ".join(word for word in words if word)
