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
from edgetl.store import Store

signal.signal(signal.SIGINT, signal.default_int_handler)
session = Session(config=None, store=Store(Path(sys.argv[1])))

def swallowing(folder):
    with contextlib.suppress(KeyboardInterrupt):  # as a destructor or a callback does
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(5)
    (folder / "done").touch()

made = []
try:
    with interruptible():
        session.stage("data", "", {"n": 1}, swallowing)
        if sys.argv[2] == "next":
            session.stage("train", "", {"n": 2}, made.append)
except KeyboardInterrupt:
    print(made, session.stage("data", "", {"n": 1}, swallowing).cached)
"""


@pytest.mark.parametrize("then", ["next", "last"])
def test_an_interruption_that_a_library_swallowed_ends_the_next_stage_or_the_build(tmp_path: Path, then: str) -> None:
    """In a process of its own: an interruption may end the one that it is sent in. What was finished is kept."""
    done = subprocess.run(
        [sys.executable, "-c", _SWALLOWED, tmp_path, then], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[] True"), done.stderr


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
