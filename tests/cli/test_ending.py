"""Signals that end a command: it cleans up after itself as after Ctrl-C, and says so by its exit code."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgetl.cli.app import run
from edgetl.cli.ending import heeded
from edgetl.errors import MeasurementError
from edgetl.runtime.onnxruntime import _IDENTITY

ENDS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]


def children(pid: int) -> list[int]:
    """Of a process, those that are no zombies."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text(encoding="utf-8").rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == pid and state != "Z":
            found.append(int(path.parent.name))
    return found


def wait_until(true: object, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.002)


def left(place: Path) -> list[str]:
    """What is in a folder of temporary files; ONNX Runtime writes a .ses of its own there, and never removes it."""
    return [path.name for path in place.iterdir() if path.name != ".ses"]


def begin(
    environment: dict[str, str], place: Path, *arguments: str | Path, program: tuple[str, str] = ("-m", "edgetl")
) -> subprocess.Popen[str]:
    """A command whose temporary files are in a place; what is ignored here, as with nohup, is not there."""

    def as_in_a_terminal() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)

    return subprocess.Popen(
        [sys.executable, *program, *map(str, arguments)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env={**environment, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "TMPDIR": str(place)},
        preexec_fn=as_in_a_terminal,
    )  # fmt: skip


def end(command: subprocess.Popen[str], number: signal.Signals) -> str:
    """Send a signal to a command, and wait; what it said."""
    command.send_signal(number)
    try:
        _, said = command.communicate(timeout=60)
    finally:
        command.kill()  # nothing where it has ended
    assert "Traceback" not in said, said
    return said


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), ENDS)
@pytest.mark.parametrize("verb", ["verify", "build"])
def test_a_command_that_is_ended_leaves_no_temporary_folder(  # type: ignore[no-untyped-def]
    environment, built, variant, tmp_path: Path, verb: str, number: signal.Signals, code: int
) -> None:
    place = tmp_path / "tmp"
    place.mkdir()
    if verb == "build":
        variant.forget("calibrate", "quantize")
    given = {"verify": [built.bundle, "--layers"], "build": [variant.folder]}
    with begin(environment, place, verb, *given[verb]) as command:
        wait_until(lambda: left(place) or command.poll() is not None)
        time.sleep(0.05)  # Python lets Ctrl-C come between making a folder and knowing of it
        said = end(command, number)
    assert command.returncode == code, said
    assert left(place) == []
    assert said.splitlines()[-1].endswith("; what was finished is kept")


@pytest.mark.parametrize(("number", "code"), ENDS)
def test_the_processes_of_a_benchmark_end_with_it(
    environment: dict[str, str], tmp_path: Path, number: signal.Signals, code: int
) -> None:
    pytest.importorskip("onnxruntime")
    graph, place = tmp_path / "identity.onnx", tmp_path / "tmp"
    graph.write_bytes(_IDENTITY)
    place.mkdir()
    with begin(environment, place, "bench", graph, "--samples", "10000000", "--processes", "1") as command:
        wait_until(lambda: children(command.pid) or command.poll() is not None)
        begun = children(command.pid)
        time.sleep(0.5)
        said = end(command, number)
    assert command.returncode == code, said
    assert begun and not any(Path(f"/proc/{pid}").exists() for pid in begun)
    assert left(place) == []


def test_a_signal_that_is_ignored_stays_so() -> None:
    """As with nohup; and of Ctrl-C in the background of a script, where SIGTERM ends a command all the same."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN), signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with heeded() as ending:
            os.kill(os.getpid(), signal.SIGHUP)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(1)
            assert (ending.exit_code, ending.words) == (143, "ended by SIGTERM")
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before[0])
        signal.signal(signal.SIGINT, before[1])


@pytest.mark.parametrize(
    "failure", [RuntimeError("DataLoader worker (pid 7) is killed"), MeasurementError("its process was killed")]
)
def test_what_else_fails_where_a_signal_comes_to_all_processes_is_that_end(
    failure: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of a terminal that is closed, or a service that is stopped."""

    def fail() -> None:
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        raise failure

    monkeypatch.setattr("edgetl.pipeline.describe.describe_machine", fail)
    assert run(["doctor", "--json"]) == 143
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "\nended by SIGTERM; what was finished is kept\n")


HANGS = """
import sys
from edgetl.cli import app, ending

ending._PATIENCE_S = 0.5
sys.exit(app.run(sys.argv[1:]))
"""


@pytest.mark.parametrize(("number", "code"), ENDS[1:])
def test_an_engine_that_hangs_holds_up_no_end(
    sealed: Callable[..., Path], never_answers: Callable[[Path], None], environment: dict[str, str], tmp_path: Path,
    number: signal.Signals, code: int,
) -> None:  # fmt: skip
    """Python runs no handler of a signal while its main thread is in a library's call."""
    bundle = sealed(tmp_path / "tiny-1.0.0", never_answers)
    with begin(environment, tmp_path, "run", bundle, bundle / "golden" / "0.png", program=("-c", HANGS)) as command:
        time.sleep(2)
        assert command.poll() is None
        said = end(command, number)
    assert command.returncode == code, said
    assert f"ended by {number.name}; a library's call goes on" in said


def test_an_interruption_within_an_exec_keeps_its_exit_code(environment: dict[str, str], tmp_path: Path) -> None:
    """`python -m` then ended by SIGINT, whatever the exit code: seen once, of a command that was just importing."""
    (tmp_path / "interrupted.py").write_text(
        "import edgetl.cli.app as app, edgetl.__main__ as start\n"
        "def run(arguments):\n"
        "    try: exec('raise KeyboardInterrupt')\n"
        "    except KeyboardInterrupt: return 143\n"
        "app.run = run\n"
        "start.main()\n"
    )
    found = {**environment, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    done = subprocess.run([sys.executable, "-m", "interrupted"], capture_output=True, text=True, env=found, check=False)
    assert done.returncode == 143, done.stderr
