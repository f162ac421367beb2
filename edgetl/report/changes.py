"""Dot plots of the change on each class and slice: which of them an engine is worse on, and which only by chance."""

from __future__ import annotations

from collections.abc import Sequence

from edgetl.numbers import integer, is_number, plain, significant
from edgetl.report.markup import Markup, el, join
from edgetl.report.model import Engine, Regression, Report
from edgetl.report.svg import Scale, both_widths, drawing, label, line, linear, shortened, text_width, tick_texts, ticks

_ROWS = 12
_ENGINES = 6


def figures(report: Report) -> Markup | None:
    """One dot plot per engine whose answers changed on a class or slice; None where no engine's did."""
    tested = [engine for engine in report.engines if engine.parity and engine.parity.slices]
    changed = [engine for engine in tested if _moved(engine)]
    if not tested:
        return None
    drawn = [_figure(engine) for engine in changed[:_ENGINES]]
    same = [engine.name for engine in tested if engine not in changed]
    parts = [_legend(report), el("div", join(drawn), class_="phases")] if drawn else []
    if same:
        parts.append(el("p", f"No decision of any class changed: {', '.join(same)}.", class_="note"))
    if len(changed) > _ENGINES:
        left = ", ".join(engine.name for engine in changed[_ENGINES:])
        parts.append(el("p", f"Not drawn: {left}; see reports/parity.json.", class_="note"))
    return join(parts)


def _moved(engine: Engine) -> list[Regression]:
    """The slices on which an answer changed: the likeliest regressions first, then the largest changes."""
    slices = engine.parity.slices if engine.parity else ()
    moved = [each for each in slices if each.worse + each.better > 0 and is_number(each.drop) and abs(each.drop) <= 1.0]
    return sorted(moved, key=lambda each: (not each.regressed, -abs(each.drop)))


def _legend(report: Report) -> Markup:
    beyond = f"worse, beyond chance (adjusted p below {plain(1.0 - report.confidence)})"
    signs = ((_dot(8, 8, True), beyond), (_dot(8, 8, False), "may be chance"))
    items = [el("li", el("svg", sign, width=16, height=16, aria_hidden="true"), f" {text}") for sign, text in signs]
    return el("ul", join(items), class_="legend")


def _figure(engine: Engine) -> Markup:
    moved = _moved(engine)
    total = len(engine.parity.slices) if engine.parity else 0
    shown = moved[:_ROWS]
    said = f"{integer(len(moved))} of {integer(total)} classes and slices changed"
    if len(shown) < len(moved):
        said += f"; the {len(shown)} most telling are drawn"
    caption = el("figcaption", el("strong", engine.name), Markup(" "), el("span", said, class_="muted"))
    return el("figure", caption, both_widths(lambda width: _plot(engine, shown, width), 920))


def _plot(engine: Engine, shown: Sequence[Regression], width: int) -> Markup:
    wide = width > 500
    names = [shortened(_name(each), 30 if wide else 26) for each in shown]
    name_room = max(text_width(name, 11.5) for name in names) + 14 if wide else 0.0
    figures_ = [_figures(each) for each in shown]
    number_room = max(text_width(text, 11.5) for text in figures_) + 18 if wide else 0.0
    row, top = (26.0, 22.0) if wide else (44.0, 8.0)
    left, right = name_room + 8, width - 10.0 - number_room
    bottom = top + row * len(shown)
    x_scale = linear([0.0, *(-100.0 * each.drop for each in shown)], left, right, pad=0.08, least=2.0)
    # In a narrow window texts stand between the rows: no line may run through them.
    spans = [(top, bottom)] if wide else [(top + row * (at + 0.56), top + row * (at + 1)) for at in range(len(shown))]
    parts = [_axis(x_scale, spans, bottom, 6 if wide else 4)]
    if wide:
        parts.append(label(width - 8.0, 14, "lost / won of decisions, adjusted p", anchor="end", class_="note"))
    for index, (each, name, text) in enumerate(zip(shown, names, figures_, strict=True)):
        y = top + row * (index + 0.5) + (0 if wide else 9)
        x = x_scale(-100.0 * each.drop)
        kind = "stem bad" if each.regressed else "stem"
        tip = el("title", f"{_name(each)}: {text}")
        parts.append(el("g", tip, line(x_scale(0.0), y, x, y, kind), _dot(x, y, each.regressed)))
        text_y = y + 4 if wide else y - 12
        parts.append(label(name_room if wide else 8, text_y, name, anchor="end" if wide else "start", class_="name"))
        parts.append(label(width - 8.0, text_y, text, anchor="end", class_="number"))
    return drawing(width, bottom + 40, f"Change by class and slice of {shortened(engine.name, 60)}", *parts)


def _axis(x_scale: Scale, spans: Sequence[tuple[float, float]], bottom: float, wanted: int) -> Markup:
    parts = []
    values = ticks(x_scale, wanted)
    for value, text in zip(values, tick_texts(values), strict=True):
        x = x_scale(value)
        parts += [line(x, upper, x, lower, "axis" if value == 0 else "grid") for upper, lower in spans]
        parts.append(label(x, bottom + 15, text, anchor="middle"))
    middle = (x_scale.start + x_scale.end) / 2
    parts.append(label(middle, bottom + 32, "change against PyTorch, percentage points", anchor="middle"))
    return join(parts)


def _dot(x: float, y: float, regressed: bool) -> Markup:
    """Filled and square where it is beyond chance, hollow and round where it is not: told apart without colours."""
    if regressed:
        return el("rect", x=x - 4.5, y=y - 4.5, width=9, height=9, class_="change regressed")
    return el("circle", cx=x, cy=y, r=4, class_="change")


def _name(each: Regression) -> str:
    return each.value if each.column == "class" else f"{each.column} {each.value}"


def _figures(each: Regression) -> str:
    of = f"{integer(each.worse)} / {integer(each.better)} of {integer(each.decisions)}"
    return f"{of}, p {significant(each.p_adjusted, 2)}"
