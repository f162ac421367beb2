"""The documentation and the command line name the same options, and its Python runs as it stands."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import typer

from edgetl.cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)


def options() -> list[tuple[str, tuple[str, ...]]]:
    """Every verb's options, each with all its names."""
    group: Any = typer.main.get_command(app)
    return [
        (verb, (*parameter.opts, *parameter.secondary_opts))
        for verb, command in group.commands.items()
        for parameter in command.params
        if parameter.param_type_name == "option" and "--help" not in parameter.opts
    ]


def test_every_option_is_documented() -> None:
    missing = [f"edgetl {verb} {names[0]}" for verb, names in options() if not any(map(named, names))]
    assert missing == []


def named(option: str) -> bool:
    """Whether a page names an option, and not only a longer one."""
    return re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", TEXT) is not None


def test_every_option_on_a_command_line_exists() -> None:
    """In consoles; prose names options of other programs, too."""
    known: dict[str, set[str]] = {}
    for verb, names in options():
        known.setdefault(verb, set()).update(names)
    lines = re.findall(r"^\$ (edgetl (?:.*\\\n)*.*)$", TEXT, re.MULTILINE)
    assert len(lines) > 20
    wrong = []
    for line in lines:
        verb = line.split()[1]
        given = set(re.findall(r"(?<=\s)--?[a-z][a-z-]*", line.partition("#")[0]))
        wrong += [f"edgetl {verb} {option}" for option in given - known[verb]]
    assert wrong == []


def test_the_python_of_the_page_on_conditions_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "conditions.md").read_text(encoding="utf-8")
    (code,) = [block for block in re.findall(r"(?:^    .*\n|^\n)+", page, re.MULTILINE) if "Sampler()" in block]
    exec(textwrap.dedent(code).replace("idle(2.0)", "idle(0.2)"), {})
    said = capsys.readouterr().out
    assert "Load(" in said
    assert "energy.rapl" in said
