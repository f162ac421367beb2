"""What is printed commands nobody."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgetl.cli.terminal import TerminalReporter, harmless, print_error, print_json, print_text
from edgetl.errors import DataError

NAME = "\x1b[2Jcat\n  ::error file=x::stop\u202e"


@example("a\r::b")
@example("a\r\n \u2028::b")
@given(st.text(alphabet=st.sampled_from("a:\n\r \t\x0b\x1b\x85\u2028\u202e")))
def test_no_line_begins_a_command(text: str) -> None:
    assert not any(line.lstrip().startswith("::") for line in harmless(text).splitlines())
    assert not set(harmless(text)) & {"\x1b", "\u202e", "\x85", "\x0b"}


def test_nothing_in_a_line_is_a_command_of_the_older_kind(capsys: pytest.CaptureFixture[str]) -> None:
    """GitHub's runner takes ``##[add-mask]`` for a command wherever it stands, in JSON, too."""
    name = 'seven ##[add-mask]7 ###[error]"'
    print_json("run", {"label": name})
    out, _ = capsys.readouterr()
    assert "##[" not in out and json.loads(out)["result"] == {"label": name}
    reporter = TerminalReporter()
    reporter.started("build", name)
    reporter.finished("build", name, cached=True, seconds=0.0)
    reporter.note(name)
    print_text(name)
    print_error(DataError(name, hint=name), as_json=True)
    out, err = capsys.readouterr()
    assert "##[" not in out + err and err.count("add-mask") == 5


@pytest.mark.parametrize("text", ["", "a::b", "std::vector: 1", "one\n  two", "## [a] #[b]", "Zürich 漢字 10⁻⁴"])
def test_other_text_stays(text: str) -> None:
    assert harmless(text) == text


def test_results_errors_hints_and_notes(capsys: pytest.CaptureFixture[str]) -> None:
    print_text(NAME)
    TerminalReporter().note(NAME)
    print_error(DataError(f"a label is {NAME}", hint=NAME), as_json=False)
    out, err = capsys.readouterr()
    assert out.startswith("\ufffd[2Jcat\n")
    for line in (out + err).splitlines():
        assert not line.lstrip().startswith("::")
    assert err.count(": :error") == 3 and "\x1b" not in out + err
