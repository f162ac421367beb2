"""The sections of the page, each left out where the report has nothing for it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgetl.numbers import DASH, counted, integer, percent, points_of, significant
from edgetl.report import (
    changes,
    conditions,
    distributions,
    energy,
    fusion,
    gates,
    heatmap,
    layers,
    panels,
    plots,
    roofline,
)
from edgetl.report.markup import Markup, el, escaped, join
from edgetl.report.model import Budget, Fact, Quantization, Report, SourceTask
from edgetl.report.tables import (
    Column,
    engines_table,
    groups_table,
    latency_table,
    outputs_table,
    parity_table,
    regressions_table,
    table,
)
from edgetl.report.unstable import joined, told_once

_HISTOGRAMS = 12
_CLASS_ROWS = 30
_LABELS = 200
_NAMES = 20


@dataclass(frozen=True)
class Section:
    """One numbered section."""

    slug: str
    """The id of its heading: fixed words, never the user's."""
    title: str
    body: Markup


def sections(report: Report) -> list[Section]:
    """All sections that have something to show, in their order."""
    makers: tuple[tuple[str, str, Callable[[Report], Markup | None]], ...] = (
        ("engines", "Engines", _engines),
        ("accuracy", "Accuracy against latency", _accuracy),
        ("parity", "Parity with PyTorch", _parity),
        ("figures", "Beside the metric", _figures),
        ("latency", "Latency", _latency),
        ("roofline", "How near the machine's ceiling", roofline.body),
        ("confusion", "Confusion", _confusion),
        ("weights", "Pretrained weights", _weights),
        ("training", "Fine-tuning", _training),
        ("transfer", "Did transfer help?", _transfer),
        ("calibration", "Calibration", _calibration),
        ("quantization", "Quantization", _quantization),
        ("fusion", "What runs in int8", fusion.body),
        ("layers", "Layers", layers.body),
        ("data", "Data", _data),
        ("input", "Preprocessing and labels", _preprocessing),
        ("environment", "Environment", _environment),
        ("conditions", "Conditions of the benchmark", conditions.body),
        ("use", "How to use the bundle", _use),
    )
    made = ((slug, title, make(report)) for slug, title, make in makers)
    return [Section(slug, title, body) for slug, title, body in made if body]


def _engines(report: Report) -> Markup | None:
    if not report.engines:
        return None
    note = (
        "“Placed” is the share of the optimised graph's nodes that run on the provider that was asked for. "
        "An engine marked “build on device” is in the bundle as its source graph and is compiled on the device itself."
    )
    return join([engines_table(report), el("p", note, class_="note")])


def _accuracy(report: Report) -> Markup | None:
    plot = plots.scatter(report)
    if plot is None:
        return None
    return el("figure", plots.scatter_legend(report), plot, el("figcaption", _UP_LEFT, class_="below"))


_UP_LEFT = (
    "Up and to the left is better. The front is that of the figures as they were measured: points whose intervals "
    "overlap may change places."
)


def _parity(report: Report) -> Markup | None:
    rows = parity_table(report)
    if rows is None:
        return None
    note = f"{gates.asked(report, report.metric)} A negative drop means that the engine was better."
    least = gates.detectable(report)
    if least is not None:
        note += f" A drop of {points_of(least, 4)} or more would probably have shown on these samples, of every engine."
    regressed = regressions_table(report)
    parts = [rows, el("p", note.lstrip(), class_="note")]
    parts += [outputs_table(report)] if any(engine.parity for engine in report.engines) else []
    by_class = changes.figures(report)
    if by_class:
        parts += [el("h3", "Change by class"), by_class]
    if regressed:
        parts += [el("h3", "Where an engine is worse"), regressed, el("p", _REGRESSED, class_="note")]
    return join(parts)


_REGRESSED = (
    "Each class, and each value of the manifest's columns that were asked for, is tested by itself (McNemar's exact "
    "test, one-sided; the labels of one sample count together); p is adjusted for their number (Holm)."
)


def _figures(report: Report) -> Markup | None:
    if not report.figures:
        return None
    columns = (Column("PyTorch on test"), Column("%", numeric=True), Column("from", wide=True))
    rows = [(each.title, percent(each.value, report.test_samples), each.note) for each in report.figures]
    return join([table(columns, rows), el("p", "No gate asks for these figures.", class_="note")])


def _latency(report: Report) -> Markup | None:
    chart, rows = plots.ranges(report), latency_table(report)
    if rows is None:
        return None
    batch = report.environment.batch_size if report.environment else 1
    limit = any(engine.shipped and engine.latency and engine.budget != Budget() for engine in report.engines)
    words = "Stroke: median; bar: p50 to p90; line: to p99" + ("; triangle: a limit of the budget." if limit else ".")
    note = (
        f"Time of one call with {counted(batch, 'sample')} in the steady state, all engines "
        "interleaved in fresh processes on this machine; a percentile that too few calls back is left out. Intervals "
        "come of resampling processes and blocks of calls: they tell how much processes differ. Cold start: importing "
        "the library, loading the engine, the first inference. Speed-ups are ratios of medians."
    )
    figure = el("figure", chart, el("figcaption", words, class_="below")) if chart else Markup()
    parts = [figure, rows, _unstable(report), el("p", note, class_="note"), energy.figures(report)]
    return join([*parts, _single_calls(report)])


def _unstable(report: Report) -> Markup:
    """Why measurements are marked as unstable; nothing where none is."""
    timed = [(each.name, each.latency) for each in (report.reference, report.fp32) if each is not None]
    timed += [(each.name, each.latency) for each in report.engines]
    known = {name: latency.unstable for name, latency in timed if latency is not None}
    return join([
        el("p", el("span", "UNSTABLE", class_="bad"), f" {joined(names, len(known))}: {'; '.join(reasons)}.")
        for names, reasons in told_once(known)
    ])  # fmt: skip


def _single_calls(report: Report) -> Markup:
    ridges = distributions.ridges(report)
    if ridges is None:
        return Markup()
    return join([el("h3", "The time of single calls"), el("figure", ridges, el("figcaption", _RIDGES, class_="below"))])


_RIDGES = (
    "How often a call took how long: heights are square roots, so that single slow calls show; no call after warm-up "
    "is left out. Strokes, from tall to short: p50, p90 and p99, each only where there were calls enough for it (64 "
    "for p90, 662 for p99)."
)


def _confusion(report: Report) -> Markup | None:
    if not report.confusions:
        return None
    drawn = any(len(matrix.labels) <= heatmap.MAX_CLASSES for matrix in report.confusions)
    note = "Test samples by true and predicted class. Grey: right; coloured: wrong, the deeper the more."
    body = el("div", join([heatmap.confusion(matrix) for matrix in report.confusions]), class_="matrices")
    return join([body, el("p", note, class_="note")] if drawn else [body])


def _training(report: Report) -> Markup | None:
    phases = [phase for phase in report.training if phase.epochs]
    if not phases:
        return None
    of_val = [split.samples for split in report.data.splits if split.name == "val"] if report.data else []
    head = el("p", "Backbone ", el("code", report.backbone), ".") if report.backbone else Markup()
    note = "Best: the epoch whose weights were kept. The scales are the same in all phases."
    panels_ = panels.training_panels(phases, of_val[0] if of_val else report.test_samples, report.metric)
    return join([head, el("div", panels_, class_="phases"), el("p", note, class_="note"), groups_table(phases)])


def _weights(report: Report) -> Markup | None:
    """What was taken over, and the names of what was not."""
    if report.start is None:
        return None
    source = ["From ", el("code", report.weights), ": "] if report.weights else []
    lists = (
        ("of another shape, which stayed as they were drawn", report.start.mismatched),
        ("new", report.start.skipped),
        ("in the weights and not used", report.start.unused),
    )
    items = [el("li", f"{title}: {_some(names)}") for title, names in lists if names]
    said = el("p", *source, f"{report.start.statement}.")
    return join([said, el("ul", join(items))] if items else [said])


def _some(names: Sequence[str]) -> str:
    """As many names as are read, and how many more there are."""
    left = len(names) - _NAMES
    return ", ".join(names[:_NAMES]) + (f" … and {integer(left)} more" if left > 0 else "")


def _transfer(report: Report) -> Markup | None:
    if report.transfer is None:
        return None
    methods = report.transfer.methods
    columns = (
        Column("method"), Column("epochs", numeric=True), Column(f"mean {report.metric}", "%", numeric=True),
        *(Column(f"seed {number}", "%", numeric=True) for number in range(1, len(methods[0].scores) + 1)),
    )  # fmt: skip
    rows = [
        [
            method.name,
            integer(method.epochs),
            percent(sum(method.scores) / len(method.scores), report.test_samples),
            *(percent(score, report.test_samples) for score in method.scores),
        ]
        for method in methods
    ]
    said = [el("p", text) for text in report.transfer.statements]
    note = "Every method had as many passes over the training samples, and was measured on the same test samples."
    source = _source_task(report.transfer.source, report.metric) if report.transfer.source else Markup()
    return join([*said, table(columns, rows), el("p", note, class_="note"), source])


def _source_task(source: SourceTask, metric: str) -> Markup:
    """What fine-tuning did to the task that the network came from."""
    columns = (
        Column("source task"), Column(f"mean {metric}", "%", numeric=True),
        *(Column(f"seed {number}", "%", numeric=True) for number in range(1, len(source.scores) + 1)),
    )  # fmt: skip
    scores = [percent(score, source.samples) for score in source.scores]
    rows = [
        ["before fine-tuning", percent(source.before, source.samples), *(DASH for _ in scores)],
        ["fine-tuned", percent(sum(source.scores) / len(source.scores), source.samples), *scores],
    ]
    said = [el("p", text) for text in source.statements]
    return join([el("h3", "The change on the source task"), *said, table(columns, rows)])


def _calibration(report: Report) -> Markup | None:
    calibration = report.calibration
    if calibration is None:
        return None
    shown = calibration.tensors[:_HISTOGRAMS]
    intro = el(
        "p", "Recipe ", el("code", calibration.recipe), f", {counted(calibration.samples, 'sample')}, "
        f"{counted(calibration.tensors_total, 'tensor')} with a range",
        f"; {counted(len(shown), 'of them is', 'of them are')} shown." if shown else ".",
    )  # fmt: skip
    if not shown:
        return intro
    note = "Number of values per bin on a logarithmic scale; the dashed lines are the ends of the chosen range."
    return join([intro, panels.histogram_panels(shown), el("p", note, class_="note")])


def _quantization(report: Report) -> Markup | None:
    if not report.quantizations:
        return None
    return el("div", join([_operators(graph) for graph in report.quantizations]), class_="side")


def _operators(graph: Quantization) -> Markup:
    ordered = sorted(graph.operators, key=lambda each: (-each.quantized, -each.float_, each.operator))
    rows: list[Sequence[str]] = [(each.operator, _count(each.quantized), _count(each.float_)) for each in ordered]
    totals = (sum(each.quantized for each in ordered), sum(each.float_ for each in ordered))
    rows.append((el("strong", "all"), el("strong", integer(totals[0])), el("strong", integer(totals[1]))))
    columns = (Column("operator"), Column("quantized", numeric=True), Column("left in float", numeric=True))
    for_targets = f" for {', '.join(graph.targets)}" if graph.targets else ""
    caption = join([el("strong", "Scheme "), el("code", graph.scheme), escaped(for_targets)])
    return table(columns, rows, caption=caption)


def _count(value: int) -> str:
    return integer(value) if value else DASH


def _data(report: Report) -> Markup | None:
    data = report.data
    if data is None:
        return None
    parts = [_split_table(report)] if data.splits else []
    if data.leak_check is not None:
        check = data.leak_check
        found = (
            "no content stands in two splits"
            if check.pairs == 0
            else f"{counted(check.pairs, 'pair stands', 'pairs stand')} in two splits"
        )
        sign = el("span", "✓ passed", class_="good") if check.pairs == 0 else el("span", "✕ failed", class_="bad")
        parts.append(el("p", "Leak check: ", sign, f" {DASH} {found} ({check.method})."))
    else:
        parts.append(el("p", "Leak check: not run."))
    return join(parts)


def _split_table(report: Report) -> Markup:
    splits = report.data.splits if report.data else ()
    columns = [Column("class"), *(Column(split.name, numeric=True) for split in splits)]
    rows: list[Sequence[str]] = []
    if len(report.labels) <= _CLASS_ROWS:
        for index, name in enumerate(report.labels):
            per_split = (split.per_class[index] if index < len(split.per_class) else None for split in splits)
            rows.append((name, *(integer(count) for count in per_split)))
    else:
        for title, of in (("smallest class", min), ("largest class", max)):
            rows.append((title, *(integer(of(split.per_class, default=0)) for split in splits)))
    title = f"all {integer(len(report.labels))} classes" if report.labels else "all"
    rows.append((el("strong", title), *(el("strong", integer(split.samples)) for split in splits)))
    return el("div", table(columns, rows), class_="compact")


def _preprocessing(report: Report) -> Markup | None:
    parts = []
    if report.preprocessing:
        intro = "From the bytes of an image to the model's input; the same function runs in training and on the device."
        parts += [el("p", intro), el("div", facts(report.preprocessing), class_="compact")]
    if report.labels:
        items = [
            el("li", el("span", str(index), class_="index"), " ", name)
            for index, name in enumerate(report.labels[:_LABELS])
        ]
        left = len(report.labels) - len(items)
        head = f"Labels, by index of the model's output: {integer(len(report.labels))}"
        parts += [el("h3", head), el("ul", join(items), class_="labels")]
        parts += [el("p", f"… and {integer(left)} more.", class_="note")] if left else []
    return join(parts) if parts else None


def _environment(report: Report) -> Markup | None:
    machine = report.environment
    if machine is None:
        return None
    rows = [
        Fact(name="processor", value=machine.cpu),
        Fact(name="processors available", value=integer(machine.cores)),
        Fact(name="threads per engine", value=integer(machine.threads)),
        Fact(name="GPU", value=machine.gpu or "none"),
        Fact(name="system", value=machine.system),
    ]
    if machine.load_average is not None:
        load = f"{significant(machine.load_average, 2)} (average over one minute)"
        rows.append(Fact(name="load when the benchmark began", value=load))
    columns = [facts(rows)] + ([facts(machine.libraries)] if machine.libraries else [])
    return el("div", join(columns), class_="side")


def _use(report: Report) -> Markup:
    bundle = shlex.quote(report.bundle)
    commands = (
        (f"edgetl run {bundle} IMAGE", "classify an image"),
        (f"edgetl inspect {bundle}", "show inputs, labels, engines and where they come from"),
        (f"edgetl verify {bundle}", "check every file against the manifest and its signature"),
    )
    rows = [el("div", el("dt", el("code", command)), el("dd", what)) for command, what in commands]
    return el("dl", join(rows), class_="commands")


def facts(rows: Sequence[Fact]) -> Markup:
    """A two-column table of names and values."""
    lines = [el("tr", el("th", row.name, scope="row"), el("td", row.value)) for row in rows]
    return el("div", el("table", el("tbody", join(lines)), class_="facts-table"), class_="scroll")
