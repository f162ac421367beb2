from __future__ import annotations

import contextlib
import os
import signal
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


def swallowing(folder: Path) -> None:
    with contextlib.suppress(KeyboardInterrupt):  # as a destructor or a callback does
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(5)
    (folder / "done").touch()


def test_an_interruption_that_a_library_swallowed_ends_the_next_stage(tmp_path: Path) -> None:
    made = []
    with pytest.raises(KeyboardInterrupt), interruptible():
        session(tmp_path).stage("data", "", {"n": 1}, swallowing)
        session(tmp_path).stage("train", "", {"n": 2}, lambda folder: made.append(folder))
    assert made == []
    assert session(tmp_path).stage("data", "", {"n": 1}, swallowing).cached  # what was finished is kept


def test_one_in_the_last_stage_is_not_lost_either(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), interruptible():
        session(tmp_path).stage("data", "", {"n": 1}, swallowing)


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
