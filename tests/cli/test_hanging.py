"""Engines that hang while a scenario or stages run: told which, in what phase and after how long; nothing is left."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgetl.benchmark import process, watched
from edgetl.cli.app import run

pytest.importorskip("onnxruntime")
SCENARIO = ("--scenario", "single-stream", "--threads", "1")
SHORT = (*SCENARIO, "--duration", "0.05", "--queries", "64")


@pytest.fixture
def bundle(sealed: Callable[..., Path], answers: Callable[[Path], None], tmp_path: Path) -> Path:
    return sealed(tmp_path / "tiny-1.0.0", answers)


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Neither a process nor a temporary file."""
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    yield
    assert workers() == [] and list(place.iterdir()) == []


def workers() -> list[int]:
    """Processes that this one has begun for a run; pytest has others."""
    tasks = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    begun = [int(pid) for task in tasks for pid in task.read_text(encoding="utf-8").split()]
    return [pid for pid in begun if b"edgetl.benchmark._worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def bench(*arguments: str | Path) -> int:
    return run(["bench", *map(str, arguments)])


def send(number: int, after_s: float) -> None:
    """A signal to the process of the run that begins."""

    def when_it_is_there() -> None:
        end = time.monotonic() + 60
        while not (found := workers()) and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(after_s)
        os.kill(found[0], number)

    threading.Thread(target=when_it_is_there, daemon=True).start()


@pytest.mark.parametrize("asked", [SHORT, ("--stages", "--threads", "1")])
def test_a_real_engine_that_never_answers(
    asked: tuple[str, ...], sealed: Callable[..., Path], never_answers: Callable[[Path], None], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(process, "OPEN_S", 8.0)
    began = time.monotonic()
    assert bench(sealed(tmp_path / "tiny-1.0.0", never_answers), *asked, "--json") == 5
    assert time.monotonic() - began < 40
    said = capsys.readouterr()
    words = "the engine x86-64-cpu fp32 hangs: opening and warming up has not ended after 8 s"
    assert words in said.err and "a driver that hangs" in said.err
    assert json.loads(said.out)["result"]["type"] == "MeasurementError"


@pytest.mark.slow
def test_an_engine_that_hangs_in_the_middle_of_a_scenario(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The deadline follows from the duration that was asked for."""
    monkeypatch.setattr(process, "ANSWER_S", 0.5)
    monkeypatch.setattr(watched, "_TIMES_LONGER", 1.5)
    send(signal.SIGSTOP, after_s=5.0)
    assert bench(bundle, *SCENARIO, "--duration", "8") == 5
    words = "the engine x86-64-cpu fp32 hangs: single-stream, which should have taken 8 s, has not ended after 13 s"
    assert words in capsys.readouterr().err


def test_an_engine_that_is_only_held_up_is_waited_for(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    send(signal.SIGSTOP, after_s=0.5)
    send(signal.SIGCONT, after_s=2.0)
    assert bench(bundle, *SCENARIO, "--duration", "1", "--json") == 0
    assert json.loads(capsys.readouterr().out)["result"]["scenario"]["queries"] >= 100


@pytest.mark.parametrize(
    ("number", "words"), [(signal.SIGSEGV, "SIGSEGV"), (signal.SIGRTMIN + 2, f"signal {signal.SIGRTMIN + 2}")]
)
def test_an_engine_that_crashes_is_told_with_its_signal(
    number: int, words: str, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    send(number, after_s=1.0)
    assert bench(bundle, *SCENARIO, "--duration", "30") == 5
    assert f"the process that timed x86-64-cpu fp32 was killed by {words}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("scenario", "more"),
    [
        ("single-stream", ()),
        ("multi-stream", ()),
        ("offline", ("--per-query", "3")),
        ("fixed-rate", ("--rate", "500")),
        ("server", ("--rate", "500", "--bound-ms", "1000", "--percentile", "90", "--unstable", "allow")),
    ],
)
def test_what_a_process_of_its_own_finds_comes_back_whole(
    scenario: str, more: tuple[str, ...], bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--scenario", scenario, "--threads", "1", "--duration", "0.05", "--queries", "80", "--seed", "7", *more)
    assert bench(bundle, *given, "--json") == 0
    found = json.loads(capsys.readouterr().out)["result"]
    assert found["scenario"]["plan"]["seed"] == 7 and found["scenario"]["plan"]["samples"] == 3
    assert found["scenario"]["samples"] >= 80 and found["conditions"]["series"]


def test_an_error_of_the_engine_stays_the_same_error(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ("--scenario", "server", "--rate", "9", "--bound-ms", "3", "--find-rate", "--driver", "loadgen")
    assert bench(bundle, *given) == 2
    assert "the highest rate is searched in the scenario server, by edgetl's own driver" in capsys.readouterr().err


def test_a_search_is_watched_rate_by_rate(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search = ("--scenario", "server", "--rate", "100", "--bound-ms", "1000", "--percentile", "90", "--find-rate")
    short = ("--duration", "0.05", "--queries", "64", "--threads", "1", "--unstable", "allow")
    assert bench(bundle, *search, *short, "--json") == 0
    assert json.loads(capsys.readouterr().out)["result"]["peak_rate"]["runs"]
