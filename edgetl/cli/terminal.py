"""What a person sees: stages, progress and errors on stderr; results on stdout."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import sys
from typing import Any

from edgetl.errors import EdgetlError
from edgetl.report.markup import clean

SCHEMA = 1
_COMMAND = re.compile("((?:^|[\r\u2028\u2029])\\s*)::", re.MULTILINE)
_BAR = 14
"""Columns of a progress bar: with its text, count and times, a line fits into 80."""


def harmless(text: str) -> str:
    """Text that commands neither a terminal nor GitHub's runner, whatever names from data stand in it.

    The runner takes a line that begins with two colons for a command, also behind spaces; and in its older way of
    writing them what begins with ``##[``, anywhere in a line.
    """
    return _COMMAND.sub(r"\1: :", clean(text)).replace("##[", "## [")


def open_streams() -> None:
    """Make stdout and stderr fit to be written to, whatever edgetl was started with.

    What the caller has closed (``>&-``) leads nowhere: the exit code says it all the same. Characters that a terminal's
    encoding lacks are written as ``\\u2026``: a result may not be lost to the locale.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # the next file that is opened would get the number, and what is meant for the stream
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115 - open until the end
        elif stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")


def print_json(kind: str, document: Any) -> None:
    """A result as versioned JSON: the only thing on stdout.

    It is ASCII, and so the same in every locale; half of a character, as in the name of a file that is not UTF-8, is
    valid JSON then. ``##[`` can stand in strings alone, and stays the same string for who reads it; see
    :func:`harmless`.
    """
    text = json.dumps({"schema": SCHEMA, "kind": kind, "result": document})
    sys.stdout.write(text.replace("##[", "#\\u0023[") + "\n")


def print_text(text: str = "") -> None:
    """A line of a result on stdout; names in it cannot command the terminal."""
    sys.stdout.write(harmless(text) + "\n")


def print_document(text: str) -> None:
    """The content of a file on stdout: UTF-8 like the file, as XML and HTML say of themselves, whatever the locale."""
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode("utf-8"))
    sys.stdout.buffer.flush()


def print_table(columns: list[str], rows: list[list[str]], *, right: tuple[int, ...] = ()) -> None:
    """Aligned columns on stdout, which stay readable in a pipe.

    Args:
        columns: Headings.
        rows: As many cells each.
        right: Indices of columns with numbers.
    """
    widths = [max(len(str(row[index])) for row in [columns, *rows]) for index in range(len(columns))]
    for row in [columns, *rows]:
        cells = [
            str(cell).rjust(width) if index in right else str(cell).ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print_text("  ".join(cells).rstrip())


def print_error(error: EdgetlError, *, as_json: bool) -> None:
    """An error for people on stderr; with --json also as JSON on stdout, so that a pipeline need not parse text."""
    sys.stderr.write(f"{_red('error')}: {harmless(error.message)}\n")
    if error.hint:
        sys.stderr.write(f"  {_dim('try')}: {harmless(error.hint)}\n")
    if as_json:
        print_json_error(error)


def print_json_error(error: EdgetlError) -> None:
    """An error as JSON on stdout; where stdout itself is what failed, stderr has told it."""
    with contextlib.suppress(OSError):
        print_json(
            "error",
            {
                "type": type(error).__name__,
                "message": error.message,
                "hint": error.hint,
                "exit_code": error.exit_code,
            },
        )


class TerminalReporter:
    """Tells a person on stderr how a build goes; progress bars only where stderr is a terminal."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None
        self._what = ""

    def started(self, stage: str, what: str) -> None:
        """One line when a stage begins, so that a log shows where a build stands."""
        self._close()
        sys.stderr.write(f"{_bold(stage.ljust(10))} {harmless(what)} …\n")

    def progress(self, what: str, done: int, total: int) -> None:
        """Move the bar, which tells the time that went by and, where the total is known (not 0), the time left."""
        if not sys.stderr.isatty():
            return
        if what != self._what:
            self._close()
            self._open(what, total)
        self._bar.update(self._task, completed=done, total=total or None)
        if total and done >= total:
            self._close()

    def finished(self, stage: str, what: str, *, cached: bool, seconds: float) -> None:
        """One line when a stage is done; what took no work says so."""
        self._close()
        end = "cached" if cached else f"{seconds:.1f} s"
        sys.stderr.write(f"{_bold(stage.ljust(10))} {harmless(what)}: {_dim(end)}\n")

    def note(self, text: str) -> None:
        """An indented line."""
        self._close()
        sys.stderr.write(f"{' ' * 10} {harmless(text)}\n")

    def _open(self, what: str, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
        from rich.text import Text

        class Times(ProgressColumn):
            def render(self, task: Task) -> Text:
                return Text(times(task.elapsed or 0.0, task.time_remaining))

        self._bar = Progress(
            TextColumn("           {task.description}"),
            BarColumn(bar_width=_BAR),
            MofNCompleteColumn(),
            Times(),
            console=Console(stderr=True),
            transient=True,
        )
        self._bar.start()
        atexit.register(self._close)  # an error leaves the bar where it is, and the cursor hidden
        self._task = self._bar.add_task(what, total=total or None)
        self._what = what

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            atexit.unregister(self._close)
        self._bar, self._what = None, ""


def times(elapsed_s: float, left_s: float | None) -> str:
    """The time that went by and the time left, as "0:12 gone, 1:05:10 left"; None: not known."""
    return f"{_clock(elapsed_s)} gone" + (f", {_clock(left_s)} left" if left_s is not None else "")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _styled(text: str, code: str) -> str:
    if not sys.stderr.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\033[{code}m{text}\033[0m"


def _bold(text: str) -> str:
    return _styled(text, "1")


def _dim(text: str) -> str:
    return _styled(text, "2")


def _red(text: str) -> str:
    return _styled(text, "31")
