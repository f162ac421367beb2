"""What the caller and the system do to edgetl: closed streams, odd locales, names and files that cannot be read."""

from __future__ import annotations

import errno
import json
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from edgetl.bundle import sign, write
from edgetl.cli import app
from edgetl.report.document import render_json
from edgetl.runtime.onnxruntime import _IDENTITY
from edgetl.runtime.preprocessing import ImagePreprocessing

ROOT = Path(__file__).parents[2]


def shell(line: str, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a line of a shell in which "$0" is Python."""
    return subprocess.run(
        ["sh", "-c", line, sys.executable, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment}, capture_output=True, check=False, timeout=60,
    )  # fmt: skip


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    """A folder with a report for programs alone, of a class whose name is not ASCII."""
    folder = tmp_path / "reports"
    folder.mkdir()
    text = render_json(runpy.run_path(str(ROOT / "tests" / "report" / "sample.py"))["sample_report"]())
    (folder / "report.json").write_text(text.replace('"zero"', '"Zürich"'), encoding="utf-8")
    return folder


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("arguments", ["recipes", "recipes --json", "targets nowhere", "targets nowhere --json"])
def test_a_closed_stream_changes_no_exit_code(closed: str, arguments: str) -> None:
    done = shell(f'"$0" -m edgetl {arguments} {closed}')
    assert done.returncode == (2 if "nowhere" in arguments else 0), done.stderr
    assert b"Traceback" not in done.stderr + done.stdout


def test_no_file_takes_the_place_of_a_closed_stream() -> None:
    code = "import os; from edgetl.cli.terminal import open_streams; open_streams(); os._exit(os.open('/', 0))"
    assert shell(f'"$0" -c "{code}" <&- >&- 2>&-').returncode > 2


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "ascii:surrogateescape"])
def test_text_for_people_is_printed_in_every_encoding(encoding: str) -> None:
    code = "from edgetl.cli.terminal import *; open_streams(); print_text('1.00× Zürich 漢字')"
    done = shell(f'"$0" -c "{code}"', PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"1.00") and done.stdout.endswith(
        "漢字\n".encode() if encoding == "utf-8" else b"\\u6f22\\u5b57\n"
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_documents_are_utf8_in_every_locale(encoding: str, reports: Path) -> None:
    def report(form: str, *more: str) -> bytes:
        done = shell('"$0" -m edgetl report "$@"', reports, "--format", form, *more, PYTHONIOENCODING=encoding)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "Zürich" in report("json").decode("utf-8")
    assert ElementTree.fromstring(report("junit")).tag == "testsuites"
    assert "✅" in report("markdown").decode("utf-8")
    assert "Zürich" in json.loads(report("json", "--json").decode("ascii"))["result"]["text"]


def test_json_of_a_name_that_is_not_utf8_can_be_read(tmp_path: Path) -> None:
    name = os.fsdecode(b"nothing\xff")
    done = shell('"$0" -m edgetl verify "$@" --json', name)
    assert done.returncode == 7
    assert json.loads(done.stdout.decode("utf-8"))["result"]["message"].startswith(f"{name} is not a bundle")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full is Linux's")
@pytest.mark.parametrize("more", ["", "--json"])
def test_an_output_that_is_full_is_told(more: str) -> None:
    done = shell(f'"$0" -m edgetl schema {more} >/dev/full')
    assert done.returncode == 8
    assert done.stderr.startswith(b"error: the disk is full"), done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["inspect"], ["report"], ["bench"], ["bench", "--stages"], ["verify"], ["run"]])
def test_a_name_that_is_too_long_is_no_defect(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    verb, *more = arguments
    code = app.run([verb, "a" * 300, *(["b.png"] if verb == "run" else []), *more])
    said = capsys.readouterr().err
    assert code in (7, 8), said
    assert "File name too long" in said and "Traceback" not in said


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.EMFILE])
def test_what_the_system_refuses_is_no_defect(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(**_: object) -> None:
        raise OSError(number, os.strerror(number), "some/file")

    monkeypatch.setattr(app, "app", refuse)
    assert app.run(["inspect", "x"]) == 8
    assert capsys.readouterr().err == f"error: the system refuses: {os.strerror(number)}: some/file\n"


def test_a_machine_without_a_place_for_temporary_files(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a container whose file system is read-only."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nowhere/at/all"])
    monkeypatch.setattr(app, "app", lambda **_: tempfile.gettempdir())
    assert app.run(["verify", "x"]) == 8
    said = capsys.readouterr().err
    assert "temporary files can be written nowhere: No usable temporary directory" in said and "TMPDIR=" in said


def test_a_pipe_that_nobody_reads_passes_no_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(app, "app", broken)
    assert app.run(["bench", "x"]) == 1


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ("bench x --baseline a --baseline b", "--baseline"),
        ("bench x --samples 30 --samples=30", "--samples"),
        ("bench x --roofline --no-roofline", "--roofline and --no-roofline"),
        ("report x -o a --output b", "--output"),
        ("build x --store a --store b", "--store"),
        ("calibrate --diff a b --diff c d", "--diff"),
        ("build x --set finetune.seed=1 --set finetune.seed=2", "--set finetune.seed"),
    ],
)
def test_a_second_value_does_not_silently_take_the_place_of_the_first(
    arguments: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run([*arguments.split(), "--json"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"error: {name}: given ") and "only one" in said.err
    assert json.loads(said.out)["result"]["type"] == "UsageError"


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["verify", ""], "BUNDLE"),
        (["bench", "", "--samples", "30"], "THINGS"),
        (["bench", "a.onnx", "--against", "b.onnx", "--against", ""], "--against"),
        (["build", ".", "--store", ""], "--store"),
        (["build", ".", "--reports="], "--reports"),
        (["calibrate", "--diff", "a", ""], "--diff"),
    ],
)
def test_an_empty_path_is_not_the_working_folder(
    arguments: list[str], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A variable that is not set: --store "$STORE" kept results in the working folder, --reports "" deleted there."""
    assert app.run(arguments) == 2
    assert capsys.readouterr().err.startswith(f"error: {name}: the path is empty\n")


def test_what_may_be_repeated_may_still_be(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["targets", "--json", "--json"]) == 0
    assert app.run(["bench", "x", "--against", "nowhere", "--against", "b"]) == 2
    assert capsys.readouterr().err == "error: there is no x\n"


@pytest.mark.parametrize("part", ["created", "provenance"])
def test_inspect_of_a_bundle_whose_manifest_lacks_something(
    part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, key = tmp_path / "bundle", tmp_path / "key.pem"
    folder.mkdir()
    whole = {
        "name": "a", "version": "1", "task": "image-classification", "edgetl": "0.1.0", "created": "today",
        "labels": ["x", "y"], "inputs": [{"name": "x", "dtype": "float32", "shape": [1]}], "outputs": [],
        "preprocessing": ImagePreprocessing(height=8, width=8).to_json(), "decision": {"kind": "largest"},
        "engines": [{"target": "t", "precision": "fp32", "folder": "e", "backend": "onnxruntime", "provider": "p",
                     "status": "ready", "latency": {}, "parity": {}, "size_bytes": 1, "note": ""}],
        "provenance": {},
    }  # fmt: skip
    sign.make_key(key)
    write.seal(folder, whole, key)
    assert app.run(["inspect", str(folder)]) == 0, capsys.readouterr().err
    write.seal(folder, {name: value for name, value in whole.items() if name != part}, key)
    assert app.run(["inspect", str(folder)]) == 7
    assert f"the manifest lacks what a build writes: KeyError('{part}')" in capsys.readouterr().err


def test_a_page_that_is_not_there_is_not_named(reports: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["report", str(reports)]) == 7
    assert f"there is no report.html in {reports}" in capsys.readouterr().err


def test_a_report_is_written_whole_or_not_at_all(reports: Path, tmp_path: Path) -> None:
    """The limit of a file's size stands in for a full disk."""
    output = tmp_path / "out" / "report.html"
    output.parent.mkdir()
    output.write_text("of yesterday", encoding="utf-8")
    limited = 'ulimit -f 1; "$0" -m edgetl report "$@"'
    done = shell(limited, reports, "--format", "html", "-o", output)
    assert done.returncode == 8 and b"nothing half-written was left" in done.stderr, done.stderr
    assert [path.name for path in output.parent.iterdir()] == ["report.html"]
    assert output.read_text(encoding="utf-8") == "of yesterday"


PLACES = [
    ("/dev/full", 8, "cannot write to /dev/full: the disk is full"),
    ("/proc/x", 8, "cannot write to /proc: no file or folder can be made there"),
    ("FILE/x", 8, "FILE: a file is in the way"),
    ("FOLDER", 2, "FOLDER is a folder"),
]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full is Linux's")
@pytest.mark.parametrize("verb", ["report", "bench", "quantize"])
@pytest.mark.parametrize(("output", "code", "words"), PLACES)
def test_an_output_that_cannot_be_written_is_told_in_a_line(
    verb: str, output: str, code: int, words: str, reports: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx_ir")
    graph, data, folder = tmp_path / "identity.onnx", tmp_path / "data.npz", tmp_path / "folder"
    graph.write_bytes(_IDENTITY)
    np.savez(data, x=np.zeros((4, 1), np.float32))
    folder.mkdir()
    named = {"FILE": graph, "FOLDER": folder}
    for name, path in named.items():
        output, words = output.replace(name, str(path)), words.replace(name, str(path))
    if verb == "quantize" and output == "/dev/full":
        code, words = 2, "-o /dev/full is a device or a pipe"
    given = {
        "report": (reports, "--format", "json", "-o", output),
        "bench": (graph, "--samples", "20", "--processes", "1", "--no-roofline", "--output", output),
        "quantize": (graph, "--data", data, "--recipe", "fp16", "--target", "jetson-orin-nano", "-o", output),
    }
    assert app.run([verb, *map(str, given[verb])]) == code
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said and len(said.splitlines()) <= 2 + said.count(" …"), said


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="a file system that takes no files")
def test_an_example_that_has_no_place(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["init", "/proc/x"]) == 8
    assert "cannot write to /proc/x: no file or folder can be made there" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="a file system that takes no files")
def test_a_folder_of_reports_that_has_no_place_is_told_before_anything_is_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run(["build", str(tmp_path / "edgetl.toml"), "--reports", "/proc/x"]) == 8
    assert "cannot write to /proc/x: no file or folder can be made there" in capsys.readouterr().err


def test_a_step_summary_that_has_no_place(
    reports: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "nowhere" / "summary.md"))
    assert app.run(["report", str(reports), "--format", "json", "--github"]) == 8
    assert "there is no folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "words"),
    [(MemoryError(), "error: not enough memory\n"), (MemoryError("of 8 GiB"), "error: not enough memory: of 8 GiB\n")],
)
def test_memory_that_runs_out(
    error: MemoryError, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("edgetl.pipeline.describe.describe_machine", fail)
    assert app.run(["doctor"]) == 8
    assert capsys.readouterr().err.startswith(words)
