"""A fresh process that obeys commands, and is watched: it may hang, be killed, or fail, and is told of as such."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from edgetl import errors
from edgetl.benchmark._frames import read_frame, write_frame
from edgetl.errors import EdgetlError, MeasurementError, ModelError

_LEAVE_S = 10.0
"""An engine may take so long to give back its memory before its process is killed."""
_TOLD = 2000
"""Characters of a dead process's last words that are repeated."""


class Child:
    """A living process; made by :func:`spawned`."""

    def __init__(self, name: str, child: subprocess.Popen[bytes], words: IO[bytes]) -> None:
        self._name = name
        self._child = child
        self._words = words

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._child.pid

    def send(self, **command: Any) -> None:
        """Give a command, as JSON values.

        Raises:
            MeasurementError: The process died.
        """
        try:
            write_frame(self._stdin, command)
        except BrokenPipeError:
            raise self._died() from None

    def read(self, patience_s: float, hangs: str = "") -> tuple[dict[str, Any], bytes]:
        """The next answer.

        Args:
            patience_s: So long it may take.
            hangs: What is said where it takes longer; empty: that it has not answered.

        Raises:
            MeasurementError: It took longer, or the process died.
            EdgetlError: What the command raised.
        """
        if not self._answers_within(patience_s):
            said = f"the process that timed {self._name} has not answered for {patience_s:.0f} s: its engine hangs"
            raise MeasurementError(
                hangs or said, hint="leave it out; a driver that hangs may want the machine to be started again"
            )
        frame = read_frame(self._answers)
        if frame is None:
            raise self._died()
        if "error" in frame[0]:
            raise _restored(self._name, frame[0]["error"])
        return frame

    def end(self, *, at_once: bool) -> None:
        """End the process; afterwards there is none.

        Args:
            at_once: Kill it, and do not wait until it has given back its memory.
        """
        if at_once:
            self._child.kill()
        with suppress(OSError):  # it died with something of ours unread
            self._stdin.close()
        try:
            self._child.wait(timeout=_LEAVE_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        finally:
            if self._child.poll() is None:  # a second Ctrl-C came while we waited
                self._child.kill()
                self._child.wait()
            self._answers.close()

    @property
    def _stdin(self) -> BinaryIO:
        return cast(BinaryIO, self._child.stdin)

    @property
    def _answers(self) -> BinaryIO:
        return cast(BinaryIO, self._child.stdout)

    def _answers_within(self, patience_s: float) -> bool:
        """Wait until there is something to read, or the process has ended.

        Seconds are counted one by one: while this process is stopped (Ctrl-Z), no more than one of them goes by.
        """
        with selectors.DefaultSelector() as selector:
            selector.register(self._answers, selectors.EVENT_READ)
            while patience_s > 0:
                if selector.select(min(1.0, patience_s)):
                    return True
                patience_s -= 1.0
        return False

    def _died(self) -> MeasurementError:
        """What to raise for a process that ended by itself."""
        try:
            code = self._child.wait(timeout=_LEAVE_S)
        except subprocess.TimeoutExpired:
            return MeasurementError(f"the process that timed {self._name} answers no more")
        how = f"was killed by {_signal_name(-code)}" if code < 0 else f"ended with code {code}"
        hint = "memory may have run out: a smaller batch, or fewer things at once" if code == -signal.SIGKILL else None
        self._words.seek(0)
        words = self._words.read().decode(errors="replace").strip()[-_TOLD:]
        return MeasurementError(
            f"the process that timed {self._name} {how}" + (f"; it said:\n{words}" if words else ""), hint=hint
        )


@contextmanager
def spawned(environment: Mapping[str, str]) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """Start :mod:`edgetl.benchmark._worker`.

    Args:
        environment: Of the process, besides this one's; it finds modules where this one does.

    Returns:
        The process, which whoever starts it has to end with :meth:`Child.end`, its answers in the place of its stdout;
        and the file of what it says.
    """
    places = os.pathsep.join(str(Path(place).absolute()) for place in sys.path if place)
    with tempfile.TemporaryFile() as words:
        reader, writer = os.pipe()  # not its stdout, on which whatever runs as Python starts may print
        with os.fdopen(reader, "rb", buffering=0) as answers:  # whoever waits for one sees none in a buffer
            try:
                child = subprocess.Popen(
                    [sys.executable, "-m", "edgetl.benchmark._worker", str(os.getpid()), str(writer)],
                    stdin=subprocess.PIPE,
                    stdout=words,
                    stderr=words,
                    pass_fds=(writer,),
                    cwd=os.sep,  # where Python looks for modules first: no folder of a stranger's
                    env={**os.environ, **environment, "PYTHONPATH": places},
                )
            finally:
                os.close(writer)
            child.stdout = answers
            yield child, words


def _signal_name(number: int) -> str:
    """SIGKILL of 9; "signal 36" of one without a name, as most real-time signals are."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _restored(name: str, found: dict[str, Any]) -> Exception:
    """The exception that a process told of."""
    message, hint = str(found["message"]), found["hint"]
    for kind_name in found["kinds"]:
        kind = getattr(errors, kind_name, None)
        if isinstance(kind, type) and issubclass(kind, EdgetlError):
            error = kind.__new__(kind)
            EdgetlError.__init__(error, message, hint=hint)
            return error
        if kind_name == "MemoryError":
            return MemoryError(message)
        if kind_name == "ModuleNotFoundError":
            return ModuleNotFoundError(message, name=found["name"])
    return ModelError(f"{name} failed while it was timed: {found['kinds'][0]}: {message}\n{found['trace']}")
