"""All formats of a report: which there are, what their files are called, and what makes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgetl.report.model import Report


@dataclass(frozen=True, kw_only=True)
class Format:
    """One format."""

    file: str
    """Name of its file in a bundle's ``reports`` folder."""
    what: str
    """What it is, for people."""
    of_bundles: bool = False
    """Whether a build that is not published has none."""
    render: Callable[[Report], str]
    """Makes the file's text, to be written as UTF-8."""


def _html(report: Report) -> str:
    from edgetl.report.html import render

    return render(report)


def _json(report: Report) -> str:
    from edgetl.report.document import render_json

    return render_json(report)


def _junit(report: Report) -> str:
    from edgetl.report.junit import render_junit

    return render_junit(report)


def _sarif(report: Report) -> str:
    from edgetl.report.sarif import render_sarif

    return render_sarif(report)


def _codequality(report: Report) -> str:
    from edgetl.report.codequality import render_codequality

    return render_codequality(report)


def _markdown(report: Report) -> str:
    from edgetl.report.markdown import render_markdown

    return render_markdown(report)


def _card(report: Report) -> str:
    from edgetl.report.card import render_card

    return render_card(report)


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "html": Format(file="report.html", what="a page for people", render=_html),
        "json": Format(file="report.json", what="all of it, for programs", render=_json),
        "junit": Format(file="junit.xml", what="gates as test cases", render=_junit),
        "sarif": Format(file="report.sarif", what="findings, for code scanning", render=_sarif),
        "codequality": Format(file="codequality.json", what="findings, for GitLab", render=_codequality),
        "markdown": Format(file="report.md", what="a summary for comments", render=_markdown),
        "card": Format(file="model-card.md", what="a model card", of_bundles=True, render=_card),
    }
)
"""By the name that ``edgetl report --format`` takes."""
