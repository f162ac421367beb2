"""Processes that time: what they tell, how they fail, and that none is left."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from edgetl.benchmark import process as process_module
from edgetl.benchmark._frames import read_frame, write_frame
from edgetl.benchmark.child import Child, spawned
from edgetl.benchmark.feeds import Feeds
from edgetl.benchmark.process import started
from edgetl.benchmark.things import Thing, engine_thing, thing_at
from edgetl.errors import BundleError, MeasurementError, MissingExtraError, ModelError, UsageError

FEEDS = Feeds(batch_size=1)


@pytest.fixture
def engine(tmp_path: Path) -> Thing:
    """An engine that computes nothing."""
    folder = tmp_path / "engine"
    folder.mkdir()
    record = {"schema": 1, "backend": "null", "provider": "none", "precision": "fp32", "status": "ready",
              "files": ["null.json"]}  # fmt: skip
    (folder / "engine.json").write_text(json.dumps(record), encoding="utf-8")
    ports = {"inputs": [{"name": "x", "shape": ["batch", 4], "dtype": "float32"}],
             "outputs": [{"name": "y", "shape": ["batch", 2], "dtype": "float32"}]}  # fmt: skip
    (folder / "null.json").write_text(json.dumps(ports), encoding="utf-8")
    return engine_thing(folder, name="nothing")


def lives(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone_within(pid: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while lives(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not lives(pid)


def test_an_engines_own_clock_is_told_beside_the_calls(tmp_path: Path) -> None:
    """OpenVINO's benchmark_app tells that clock: what Python waits for is longer."""
    openvino = pytest.importorskip("openvino")
    from openvino import opset13 as ops

    x = ops.parameter([1, 8, 64, 64], np.float32, name="x")
    weights = ops.constant(np.random.default_rng(0).normal(size=(8, 8, 3, 3)).astype(np.float32))
    y = ops.convolution(x, weights, [1, 1], [1, 1], [1, 1], [1, 1])
    openvino.save_model(openvino.Model([y], [x], "net"), str(tmp_path / "m.xml"))
    with started(thing_at(tmp_path / "m.xml"), FEEDS, threads=1) as process:
        for _ in range(3):
            block = process.block(5)
            assert block.engine_ms is not None
            assert 0 < block.engine_ms <= block.times_ns[-1] / 1e6


def test_an_engine_without_a_clock_tells_none(engine: Thing) -> None:
    with started(engine, FEEDS, threads=1) as process:
        assert process.block(2).engine_ms is None


def test_a_process_tells_its_cold_start_and_every_time(engine: Thing) -> None:
    before = time.perf_counter_ns()
    with started(engine, FEEDS, threads=1) as process:
        pid = process.pid
        assert pid != os.getpid() and lives(pid)
        assert process.inputs == ("x float32[1, 4]",)
        parts = process.cold.to_json()
        assert set(parts) == {"start_ms", "import_ms", "load_ms", "first_ms"}
        assert all(value > 0 for value in parts.values())
        assert parts["import_ms"] > parts["first_ms"]  # numpy
        assert 0 < process.timer_ns < 1_000_000
        blocks = [process.block(50), process.block(1)]
        check = process.check()
    assert not lives(pid)
    for block, calls in zip(blocks, (50, 1), strict=True):
        assert block.times_ns.shape == block.starts_ns.shape == (calls,)
        assert block.times_ns.dtype == np.int64
        assert (block.times_ns > 0).all()
        assert set(block.use) == {"wall_ns", "cpu_ns", "waiting_ns", "involuntary"}
        assert (block.use["wall_ns"] or 0) >= block.times_ns.sum()
        assert (np.diff(block.starts_ns) >= block.times_ns[:-1]).all()
    # One clock for all processes.
    assert before < blocks[0].starts_ns[0] < blocks[1].starts_ns[0] < time.perf_counter_ns()
    assert (check.depends_on_input, check.multiply_adds) == (False, {})  # zeros, whatever it is fed


@pytest.mark.parametrize(
    ("mine", "expected"),
    [
        ({}, {"GOMP_SPINCOUNT": "30000", "KMP_BLOCKTIME": "1"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
        ({"KMP_BLOCKTIME": "200"}, {"KMP_BLOCKTIME": "200"}),
    ],
)
def test_openmp_spins_for_a_moment_unless_the_user_chose(
    engine: Thing, monkeypatch: pytest.MonkeyPatch, mine: dict[str, str], expected: dict[str, str]
) -> None:
    names = ("GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_WAIT_POLICY")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    for name, value in mine.items():
        monkeypatch.setenv(name, value)
    with started(engine, FEEDS, threads=1) as process:
        words = Path(f"/proc/{process.pid}/environ").read_bytes().decode().split("\0")
    found = dict(word.split("=", 1) for word in words if "=" in word)
    assert {name: found[name] for name in names if name in found} == expected


def test_it_imports_only_what_the_thing_needs(tmp_path: Path, engine: Thing) -> None:
    """Told by a module that stands in for one of the libraries."""
    words = tmp_path / "loaded.json"
    (tmp_path / "telling.py").write_text(
        f"import sys, json; open({str(words)!r}, 'w').write(json.dumps(sorted(sys.modules)))", encoding="utf-8"
    )
    thing = Thing(name="n", opener="engine", path=engine.path, imports=("telling",))
    sys.path.append(str(tmp_path))
    try:
        with started(thing, FEEDS, threads=1):
            pass
    finally:
        sys.path.remove(str(tmp_path))
    loaded = {name.partition(".")[0] for name in json.loads(words.read_text(encoding="utf-8"))}
    assert not loaded & {"numpy", "torch", "onnxruntime", "openvino", "pydantic", "typer", "PIL", "subprocess"}


def test_a_strangers_module_in_the_working_folder_is_not_imported(
    tmp_path: Path, engine: Thing, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "project"
    place.mkdir()
    (place / "numpy.py").write_text("raise SystemExit('a stranger')", encoding="utf-8")
    monkeypatch.chdir(place)
    with started(engine, FEEDS, threads=1) as process:
        assert process.inputs


# --- failures --------------------------------------------------------------------------------------------------------


def test_an_error_in_the_process_is_the_same_error_here(tmp_path: Path, engine: Thing) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no graph")
    with (
        pytest.raises(ModelError, match=r"ONNX Runtime cannot load broken\.onnx"),
        started(thing_at(broken), FEEDS, threads=1),
    ):
        pass
    with (
        pytest.raises(UsageError, match="input 'x' is float32"),
        started(engine, Feeds(file=_saved(tmp_path, np.zeros((1, 9), np.float32))), threads=1),
    ):
        pass
    (engine.path / "engine.json").write_text("{}", encoding="utf-8")
    with (
        pytest.raises(BundleError, match="holds no engine that this version can open"),
        started(engine, FEEDS, threads=1),
    ):
        pass


def _saved(folder: Path, array: np.ndarray) -> Path:  # type: ignore[type-arg]
    np.save(folder / "feeds.npy", array)
    return folder / "feeds.npy"


def test_a_missing_package_keeps_its_hint(tmp_path: Path, engine: Thing, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ModuleNotFoundError", encoding="utf-8")
    (tmp_path / "m.onnx").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MissingExtraError) as caught, started(thing_at(tmp_path / "m.onnx"), FEEDS, threads=1):
        pass
    assert caught.value.hint == "pip install 'edgetl[ort]'"
    assert caught.value.exit_code == 8


def test_memory_that_is_not_there_is_told_as_such(engine: Thing) -> None:
    with pytest.raises(MemoryError), started(engine, Feeds(batch_size=10**14), threads=1):
        pass


def test_any_other_failure_is_a_model_error_with_its_trace(engine: Thing) -> None:
    (engine.path / "null.json").write_text('{"inputs": 3}', encoding="utf-8")
    with (
        pytest.raises(ModelError, match="nothing failed while it was timed: TypeError") as caught,
        started(engine, FEEDS, threads=1),
    ):
        pass
    assert "Traceback" in caught.value.message


def test_a_killed_process_names_its_signal(engine: Thing) -> None:
    with (
        pytest.raises(MeasurementError, match="timed nothing was killed by SIGKILL") as caught,
        started(engine, FEEDS, threads=1) as process,
    ):
        threading.Timer(0.2, os.kill, (process.pid, signal.SIGKILL)).start()
        process.block(10**7)
    assert "memory" in (caught.value.hint or "")
    assert caught.value.exit_code == 5


def test_an_engine_that_hangs_is_not_waited_for_forever(engine: Thing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "ANSWER_S", 0.3)
    began = time.monotonic()
    with (
        pytest.raises(MeasurementError, match=r"timed nothing has not answered for .* s: its engine hangs"),
        started(engine, FEEDS, threads=1) as process,
    ):
        monkeypatch.setattr(process, "_slowest_s", 0.0)  # of which fifty times ten are waited for besides
        pid = process.pid
        os.kill(pid, signal.SIGSTOP)
        process.block(10)
    assert time.monotonic() - began < 20 and not lives(pid)


def test_an_engine_that_is_slow_is_waited_for(engine: Thing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "ANSWER_S", 0.3)
    with started(engine, FEEDS, threads=1) as process:
        monkeypatch.setattr(process, "_slowest_s", 1.0)  # its calls take a second: ten may take some minutes
        os.kill(process.pid, signal.SIGSTOP)
        threading.Timer(1.0, os.kill, (process.pid, signal.SIGCONT)).start()
        assert len(process.block(10).times_ns) == 10


def test_a_process_that_ends_by_itself_repeats_its_last_words(tmp_path: Path, engine: Thing) -> None:
    (tmp_path / "leaving.py").write_text(
        "import os, sys\nprint('out of ideas', flush=True)\nos._exit(3)", encoding="utf-8"
    )
    thing = Thing(name="n", opener="engine", path=engine.path, imports=("leaving",))
    sys.path.append(str(tmp_path))
    try:
        with (
            pytest.raises(MeasurementError, match="ended with code 3; it said:\nout of ideas"),
            started(thing, FEEDS, threads=1),
        ):
            pass
    finally:
        sys.path.remove(str(tmp_path))


def test_what_is_asked_after_its_death_is_an_error_too(engine: Thing) -> None:
    with pytest.raises(MeasurementError, match="SIGTERM"), started(engine, FEEDS, threads=1) as process:
        os.kill(process.pid, signal.SIGTERM)
        time.sleep(0.2)
        process.block(1)


# --- nothing is left -------------------------------------------------------------------------------------------------


def test_an_exception_ends_the_process_at_once(engine: Thing) -> None:
    pids = []
    with pytest.raises(ZeroDivisionError), started(engine, FEEDS, threads=1) as process:
        pids.append(process.pid)
        raise ZeroDivisionError
    assert not lives(pids[0])


PARENT = """
import sys
from pathlib import Path
from edgetl.benchmark.feeds import Feeds
from edgetl.benchmark.process import started
from edgetl.benchmark.things import engine_thing

with started(engine_thing(Path(sys.argv[1]), name="n"), Feeds(), threads=1) as process:
    print(process.pid, flush=True)
    process.block(10**8)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_it_dies_with_its_parent_even_in_the_middle_of_a_block(engine: Thing, number: signal.Signals) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(engine.path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert parent.stdout
    pid = int(parent.stdout.readline())
    time.sleep(0.2)
    assert lives(pid)
    parent.send_signal(number)
    assert parent.wait(timeout=20) != 0
    assert gone_within(pid, 5)
    parent.stdout.close()


# --- frames ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", [b"", b"\x00\xff" * 1000])
def test_frames_come_back_as_they_were_sent(payload: bytes) -> None:
    stream = io.BytesIO()
    for number in range(3):
        write_frame(stream, {"number": number, "text": "ü"}, payload)
    stream.seek(0)
    assert [read_frame(stream) for _ in range(3)] == [({"number": n, "text": "ü"}, payload) for n in range(3)]
    assert read_frame(stream) is None


def test_a_frame_that_is_cut_is_the_end() -> None:
    whole = io.BytesIO()
    write_frame(whole, {"a": 1}, b"12345678")
    for length in range(len(whole.getvalue())):
        assert read_frame(io.BytesIO(whole.getvalue()[:length])) is None


def test_an_answer_that_came_with_the_one_before_it_is_heard() -> None:
    """As after Ctrl-Z, or on a busy machine: it was in a buffer, where nobody who waits sees it."""
    with spawned({}) as (process, words):
        child = Child("nothing", process, words)
        try:
            child.read(60.0)
            for _ in range(2):
                child.send(do="nothing")
            time.sleep(1.0)
            for _ in range(2):
                with pytest.raises(ModelError, match="AttributeError"):
                    child.read(5.0)
        finally:
            child.end(at_once=True)


def test_what_is_printed_while_python_starts_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('a library says hello')", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    with spawned({}) as (process, words):
        child = Child("nothing", process, words)
        try:
            assert child.read(60.0) == ({"ready": True}, b"")
        finally:
            child.end(at_once=True)
