"""Signals that end a command: what it has open is closed, as after Ctrl-C, and its exit code says which it was."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

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

    Their usual effect would leave temporary folders, and drafts in a store, behind. Nothing changes outside the main
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
        yield ending
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)
