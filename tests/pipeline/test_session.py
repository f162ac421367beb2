from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgetl.pipeline.session import Session, interruptible
from edgetl.store import Store


@pytest.fixture(autouse=True)
def heed_interruptions() -> Iterator[None]:
    """Python's own handler of Ctrl-C, which the workers of pytest-xdist take away."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def session(tmp_path: Path) -> Session:
    return Session(config=None, store=Store(tmp_path))  # type: ignore[arg-type]  # stages do not read it


_SWALLOWED = """
import contextlib, os, signal, sys, threading
from pathlib import Path
from edgetl.pipeline.session import Session, interruptible
from edgetl.store import Store, digest_of

def end(number, frame):
    raise KeyboardInterrupt

number = signal.Signals[sys.argv[3]]
signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in the background of a script
signal.signal(number, signal.default_int_handler if number == signal.SIGINT else end)
session = Session(config=None, store=Store(Path(sys.argv[1])))

def swallowing(folder):
    with contextlib.suppress(KeyboardInterrupt):  # as a destructor or a callback does
        os.kill(os.getpid(), number)
        threading.Event().wait(5)
    if sys.argv[2] == "progress":
        session.progress("steps", 1, 2)
    (folder / "done").touch()

made = []
try:
    with interruptible():
        session.stage("data", "", {"n": 1}, swallowing)
        if sys.argv[2] == "next":
            session.stage("train", "", {"n": 2}, made.append)
except KeyboardInterrupt:
    print(made, session.store.find("data", digest_of({"n": 1})) is not None)
"""


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize(("then", "kept"), [("progress", False), ("next", True), ("last", True)])
def test_an_interruption_that_a_library_swallowed_is_raised_again(
    tmp_path: Path, then: str, kept: bool, number: str
) -> None:
    """In a process of its own: an interruption may end the one that it is sent in. What was finished is kept."""
    done = subprocess.run(
        [sys.executable, "-c", _SWALLOWED, tmp_path, then, number],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, f"[] {kept}"), done.stderr


def test_afterwards_everything_is_as_before(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    with interruptible():
        session(tmp_path).stage("data", "", {"n": 3}, lambda folder: (folder / "x").touch())
    assert signal.getsignal(signal.SIGINT) is before


def test_in_another_thread_nothing_is_handled(tmp_path: Path) -> None:
    seen = []

    def run() -> None:
        with interruptible():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]
