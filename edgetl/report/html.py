"""The report as one HTML page: no script, no resource from anywhere, readable on a telephone and on paper."""

from __future__ import annotations

from importlib import resources

from edgetl.numbers import DASH, TIMES, counted, megabytes, percent
from edgetl.report.markup import Markup, el, join
from edgetl.report.model import Engine, Report
from edgetl.report.sections import Section, sections
from edgetl.report.tables import speed_up, times

# The page needs nothing but its own style: a browser refuses the rest even where an escape were missing.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def render(report: Report) -> str:
    """The whole page.

    Args:
        report: What stands on it; parts that are None or empty are left out.

    Returns:
        A complete HTML document, to be written as UTF-8.
    """
    made = sections(report)
    title = f"{report.project} {report.version}: edgetl report"
    head = el(
        "head", el("meta", charset="utf-8"),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("title", title), el("style", Markup(_style())),
    )  # fmt: skip
    body = el(
        "body", _header(report), _contents(made), el("main", _summary(report), join([_section(each) for each in made]))
    )
    return f"<!DOCTYPE html>\n{el('html', head, body, lang='en')}\n"


def _style() -> str:
    return resources.files("edgetl.report").joinpath("style.css").read_text(encoding="utf-8")


def _header(report: Report) -> Markup:
    verdict = report.verdict
    word, class_ = ("✓ Published", "good") if verdict.published else ("✕ Not published", "bad")
    facts = (
        ("created", report.created),
        ("edgetl", report.edgetl_version),
        (
            "configuration",
            f"sha256 {report.config_digest[:16]}…" if len(report.config_digest) > 16 else report.config_digest,
        ),
        ("signed by", report.signed_by or "unsigned"),
    )
    items = [el("div", el("dt", name), el("dd", value)) for name, value in facts]
    return el(
        "header", el("p", "edgetl build report", class_="kicker"),
        el("h1", report.project, Markup(" "), el("span", report.version, class_="version")),
        el("p", el("strong", word, class_=class_), Markup(" "), el("span", verdict.reason), class_=f"verdict {class_}"),
        el("dl", join(items), class_="origin"),
    )  # fmt: skip


def _contents(made: list[Section]) -> Markup:
    items = [el("li", el("a", each.title, href=f"#{each.slug}")) for each in made]
    return el("nav", el("ol", join(items)), aria_label="Contents")


def _section(each: Section) -> Markup:
    return el("section", el("h2", each.title, id=each.slug), each.body, aria_labelledby=each.slug)


def _summary(report: Report) -> Markup:
    best = _best(report)
    cards = [_card(f"PyTorch test {report.metric}", percent(report.reference.score, report.test_samples), "%",
                   f"{counted(report.test_samples, 'test sample')}")]  # fmt: skip
    if best is not None and best.latency is not None:
        name = f"{best.name}, {best.backend}"
        for base in (report.reference, report.fp32):
            if base is not None and base.latency is not None:
                factor = times(speed_up(best.latency, base)).rstrip(TIMES)
                cards.append(_card(f"Speed-up over {base.name}", factor, TIMES if factor != DASH else "", name))
    smallest = best or next((engine for engine in report.engines if engine.shipped), None)
    before = report.fp32 or report.reference
    if smallest is not None and smallest.size_bytes is not None and before.size_bytes is not None:
        value = f"{megabytes(before.size_bytes)} → {megabytes(smallest.size_bytes)}"
        cards.append(_card("Size, fp32 → shipped", value, "MB", smallest.name))
    counts = [
        sum(engine.status == status for engine in report.engines) for status in ("ready", "built", "build-on-device")
    ]
    what = f"run here; {counts[1]} more built, {counts[2]} left for the device"
    cards.append(_card("Engines", f"{counts[0]} of {len(report.engines)}", "", what))
    return el("dl", join(cards), class_="cards")


def _best(report: Report) -> Engine | None:
    """The shipped engine with the lowest median latency."""
    timed = [engine for engine in report.engines if engine.shipped and speed_up(engine.latency, report.reference)]
    return min(timed, key=lambda engine: engine.latency.p50_ms if engine.latency else 0.0, default=None)


def _card(name: str, value: str, unit: str, note: str) -> Markup:
    figure = el("span", value, class_="figure")
    shown = el("dd", figure, el("span", f" {unit}", class_="unit") if unit and value != DASH else "")
    return el("div", el("dt", name), shown, el("dd", note, class_="muted"))
