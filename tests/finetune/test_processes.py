"""Trainings in processes of their own: killed at any moment, or two that share the work."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgetl.finetune import state

pytestmark = pytest.mark.slow
SCRIPT = str(Path(__file__).resolve().with_name("killed.py"))


@pytest.fixture(scope="module")
def whole(fork: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a training in one process, from its beginning to its end."""
    folder = tmp_path_factory.mktemp("whole")
    ended(fork([folder / "whole.pt", folder / "state"], program=SCRIPT))
    return folder / "whole.pt"


def ended(process: Any) -> None:
    """It came to its end."""
    with process.stderr:
        _, said = process.communicate()
    assert process.returncode == 0, said


def together() -> list[dict[str, str]]:
    """The environments of two processes that train together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    return [{**both, "RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]


def test_after_kill_nine(fork: Callable[..., Any], whole: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(int(time.time()))
    end, kept, kills = tmp_path / "end.pt", tmp_path / "state" / state.FILE, 0
    while kills < 3 and not end.exists():
        process = fork([end, kept.parent, "slowly"], program=SCRIPT)
        for _ in range(random.integers(1, 4)):  # so many saves, and then a moment in the middle of something
            before = kept.stat().st_mtime_ns if kept.exists() else 0
            while process.poll() is None and (kept.stat().st_mtime_ns if kept.exists() else 0) == before:
                time.sleep(0.01)
        time.sleep(float(random.uniform(0, 0.3)))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        process.stderr.close()
    ended(fork([end, kept.parent], program=SCRIPT))
    assert kills, "it was never killed: the test shows nothing"
    one, other = torch.load(whole), torch.load(end)
    assert one.keys() == other.keys()
    assert [name for name, tensor in one.items() if not torch.equal(tensor, other[name])] == []


def test_two_processes_come_to_what_one_comes_to(fork: Callable[..., Any], whole: Path, tmp_path: Path) -> None:
    """With the variables that torchrun sets; tests/pipeline/test_processes.py runs it."""
    two = [
        fork([tmp_path / "two.pt", tmp_path / "state"], program=SCRIPT, env=environment) for environment in together()
    ]
    for process in two:
        ended(process)
    found = torch.load(tmp_path / "two.pt")
    for name, tensor in torch.load(whole).items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)


def test_two_processes_compile_where_the_first_finds_that_faster(fork: Callable[..., Any], tmp_path: Path) -> None:
    """Each measures for itself, and here they disagree: half of a step would be another network's."""
    script = str(Path(SCRIPT).with_name("compiled.py"))
    files = [tmp_path / "first.json", tmp_path / "second.json"]
    both = zip(files, together(), strict=True)
    for process in [fork([file], program=script, env=environment) for file, environment in both]:
        ended(process)
    assert [json.loads(file.read_text(encoding="utf-8")) for file in files] == [{"eager": 2.0, "compiled": 1.0}] * 2
