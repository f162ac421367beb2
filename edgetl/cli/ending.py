"""Signals that end a command: what it has open is closed, as after Ctrl-C, and its exit code says which it was."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import FrameType

_FORKS = hasattr(os, "register_at_fork")
"""Elsewhere (Windows) there is no pipe that could tell of a signal, and nobody sends these."""
_PATIENCE_S = 20.0
"""So long a library's call may hold up the end of a command; Kubernetes kills what has not ended after 30 seconds."""
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Of a service manager, a container, a runner that cancels a job; and of a terminal that was closed."""


@dataclass
class Ending:
    """What ends a command from outside."""

    signal: int = signal.SIGINT
    """The last that came; Ctrl-C's where none did."""
    came: bool = False
    """Whether one came, other than Ctrl-C's."""

    @property
    def exit_code(self) -> int:
        """As a shell says it: 130 of Ctrl-C, 143 of SIGTERM."""
        return 128 + self.signal

    @property
    def words(self) -> str:
        """For people."""
        return "interrupted" if self.signal == signal.SIGINT else f"ended by {signal.Signals(self.signal).name}"


@contextmanager
def heeded() -> Iterator[Ending]:
    """While this is open, signals that end a process do what Ctrl-C does there: they raise KeyboardInterrupt, or are
    remembered where a library would swallow that.

    Their usual effect would leave temporary folders, and drafts in a store, behind. Where a library's call goes on and
    on, as of an engine that hangs, the process ends all the same, and leaves them. Nothing changes outside the main
    thread, nor of a signal that is ignored (nohup) or handled by somebody else.
    """
    ending, mine = Ending(), os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != mine:  # a process that reads samples was forked from this one
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        ending.signal, ending.came = number, True
        interrupt = signal.getsignal(signal.SIGINT)
        if not callable(interrupt):  # it is ignored, as in the background of a shell script
            interrupt = signal.default_int_handler
        interrupt(signal.SIGINT, frame)

    main = threading.current_thread() is threading.main_thread()
    taken = [number for number in SIGNALS if main and signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, end)
    try:
        with _not_held_up(ending) if taken and _FORKS else nullcontext():
            yield ending
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def _not_held_up(ending: Ending) -> Iterator[None]:
    """End this process some time after a signal whose handler could not run: Python does not run it while the main
    thread is in a library's call. The numbers of signals come through a pipe, to a thread that waits for them.
    """
    over, (reader, writer) = threading.Event(), os.pipe()
    os.set_blocking(writer, False)
    others = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def wait() -> None:
        with os.fdopen(reader, "rb", buffering=0) as numbers:
            while number := numbers.read(1):
                if number[0] in SIGNALS and not over.wait(_PATIENCE_S) and not ending.came:
                    _leave(number[0])

    threading.Thread(target=wait, daemon=True).start()
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(others)
        os.close(writer)


def _leave(number: int) -> None:
    """End this process as it is."""
    late = Ending(signal=number)
    left = f"a library's call goes on, so that temporary files may be left in {tempfile.gettempdir()}"
    sys.stderr.write(f"\n{late.words}; {left}\n")
    sys.stderr.flush()
    os._exit(late.exit_code)


if _FORKS:  # what comes to a process that was forked from this one is not for this one
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
