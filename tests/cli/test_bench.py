"""What edgetl bench prints of a graph that takes microseconds; in process, for speed."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgetl.cli.app import run
from edgetl.runtime.onnxruntime import _IDENTITY

pytest.importorskip("onnxruntime")
QUICK = ("--samples", "20", "--processes", "1", "--threads", "1", "--no-roofline")


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """y = x."""
    path = tmp_path / "identity.onnx"
    path.write_bytes(_IDENTITY)
    return path


def test_one_process_and_one_thread_are_told_as_one(graph: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", str(graph), *QUICK]) == 0
    out = capsys.readouterr().out
    assert ", 1 thread, load " in out and "; 1 process each; " in out
