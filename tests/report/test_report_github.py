from __future__ import annotations

import dataclasses
import re

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgetl.report import model
from edgetl.report.findings import findings
from edgetl.report.github import command, render_commands, render_summary
from edgetl.report.markup import clean

COMMAND = re.compile(r"::(error|warning|notice) (.*?)::(.*)")


def read(line: str) -> tuple[str, dict[str, str], str]:
    """A workflow command as the runner reads it: split first, unescaped then, percent signs last."""
    match = COMMAND.fullmatch(line)
    assert match, line
    properties = dict(pair.split("=", 1) for pair in match[2].split(","))

    def plain(text: str) -> str:
        for code, character in (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ","), ("%25", "%")):
            text = text.replace(code, character)
        return text

    return match[1], {key: plain(value) for key, value in properties.items()}, plain(match[3])


def test_findings_become_annotations_at_their_lines(bad):
    lines = render_commands(bad).splitlines()
    assert len(lines) == len(findings(bad))
    level, properties, message = read(lines[0])
    assert level == "error"
    assert properties == {"file": "models/edgetl.toml", "line": "21", "title": "An engine is worse than PyTorch"}
    assert message == "x86-64-cpu int8: top-1 drops by 2.40 points, and 1.00 are allowed"
    assert render_commands(dataclasses.replace(bad, config_file="")).startswith("::error file=edgetl.toml,")


def test_more_than_ten_of_a_level_are_counted_in_the_tenth(good):
    engines = tuple(
        model.Engine(target=f"t{index}", backend="b", provider="p", precision="int8", status="ready", shipped=False,
                     parity_gate=model.Gate(outcome="failed", message="m"))
        for index in range(23)
    )  # fmt: skip
    found = [
        read(line) for line in render_commands(dataclasses.replace(good, engines=engines, fusions=())).splitlines()
    ]
    assert [level for level, *_ in found] == ["error"] * 10
    assert found[-1][2].startswith("and 14 more")


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters(), max_size=60), st.text(alphabet=st.characters(), max_size=60))
def test_commands_are_one_line_and_read_back(message, title):
    line = command("error", message, title=title, line=3, col=None)
    assert "\n" not in line and "\r" not in line
    level, properties, said = read(line)
    assert level == "error"
    assert said == clean(message)
    assert properties == {"title": clean(title), "line": "3"}


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.text(alphabet=st.characters(), max_size=30))
def test_no_name_can_begin_a_command_of_its_own(sample, bad, text):
    hostile = sample.replaced(bad, f"x\n::stop-commands::{text}\r::add-mask::y")
    lines = re.split("[\r\n]+", render_commands(hostile).rstrip("\n"))
    assert lines and all(line.startswith(("::error ", "::warning ", "::notice ")) for line in lines)


def test_the_summary_is_the_markdown_report_and_never_too_large(good):
    assert render_summary(good).startswith("## edgetl: digits 1.0.0\n")
    engine = good.engines[0]
    many = tuple(dataclasses.replace(engine, target=f"t{index}", reason="é" * 2000) for index in range(400))
    text = render_summary(dataclasses.replace(good, engines=many))
    assert 900_000 < len(text.encode("utf-8")) <= 1024 * 1024
    assert text.endswith("the whole report is among the artifacts.\n")
