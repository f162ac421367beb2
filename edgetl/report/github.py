"""What a build tells GitHub Actions: workflow commands that annotate edgetl.toml, and a step summary.

Escaping is that of the runner: in a message percent sign, carriage return and line feed; in a property colon and comma,
too. A step may show ten annotations of a level, and a summary of 1 MiB; more would be dropped without a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from edgetl.report.findings import DEFAULT_FILE, Finding, findings
from edgetl.report.markdown import render_markdown
from edgetl.report.markup import clean
from edgetl.report.model import Report

_PER_LEVEL = 10
_LARGEST = 1024 * 1024 - 4096
"""Bytes of a summary; what is left of a mebibyte is for what other commands of the step write."""
_COMMANDS: dict[str, Literal["error", "warning", "notice"]] = {
    "error": "error",
    "warning": "warning",
    "note": "notice",
}


def render_commands(report: Report) -> str:
    """Workflow commands, one line each: at most ten of a level, and then the tenth says how many more there are.

    Args:
        report: Its findings are the annotations.

    Returns:
        Lines for stdout or stderr, the runner reads both; empty where nothing was found.
    """
    found = findings(report)
    path = report.config_file or DEFAULT_FILE
    lines = []
    for level in _COMMANDS:
        lines += _of_level([each for each in found if each.level == level], path)
    return "".join(f"{line}\n" for line in lines)


def render_summary(report: Report) -> str:
    """The report in Markdown, cut at a line where it would be too large for a step.

    Args:
        report: What it tells.

    Returns:
        Markdown, to be appended to the file that GITHUB_STEP_SUMMARY names, as UTF-8.
    """
    text = render_markdown(report)
    if len(text.encode("utf-8")) <= _LARGEST:
        return text
    kept = text.encode("utf-8")[:_LARGEST].decode("utf-8", errors="ignore").rpartition("\n")[0]
    return f"{kept}\n\n… and more: this summary is cut; the whole report is among the artifacts.\n"


def command(name: Literal["error", "warning", "notice"], message: str, **properties: str | int | None) -> str:
    """One workflow command.

    Args:
        name: Of the command.
        message: Any text.
        properties: As file, line and title; None is left out.
    """
    inside = ",".join(f"{key}={_property(str(value))}" for key, value in properties.items() if value is not None)
    return f"::{name}{' ' if inside else ''}{inside}::{_data(message)}"


def _of_level(found: Sequence[Finding], path: str) -> list[str]:
    shown = found if len(found) <= _PER_LEVEL else found[: _PER_LEVEL - 1]
    lines = [
        command(_COMMANDS[each.level], each.message, file=path, line=each.line or 1, title=each.rule.short)
        for each in shown
    ]
    left = len(found) - len(shown)
    if left:
        text = f"and {left} more: they are in the step summary and in the SARIF report"
        lines.append(command(_COMMANDS[found[0].level], text, title="edgetl"))
    return lines


def _data(text: str) -> str:
    return clean(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
