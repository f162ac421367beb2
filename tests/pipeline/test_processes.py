"""Training in several processes, started by torchrun: the same configuration, and the same result."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

LAUNCH = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--local-addr", "127.0.0.1"]
LAUNCH += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "-m", "edgetl"]


@pytest.mark.slow
def test_edgetl_train_under_torchrun(
    edgetl: Any, make_project: Callable[..., Any], environment: dict[str, str], tmp_path: Path
) -> None:
    alone, together = (make_project(tmp_path / name) for name in ("alone", "together"))
    for project in (alone, together):
        # Statistics of a batch differ where it is shared: they are kept as they are.
        project.edit(('epochs = 10, lr = 5e-3, batchnorm = "train"', "epochs = 2, lr = 5e-3"))
    done = edgetl("train", alone.folder, "--json")
    assert done.code == 0, done.err
    shared = subprocess.run(
        [sys.executable, *LAUNCH, "train", str(together.folder), "--json"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert shared.returncode == 0, shared.stderr
    (line,) = [line for line in shared.stdout.splitlines() if line.startswith("{")]  # the first process alone speaks
    found = json.loads(line)["result"]
    assert found["phases"][1]["processes"] == 2
    one, two = (
        load_file(Path(document["artifacts"]["train"]) / "model.safetensors")
        for document in (done.document["result"], found)
    )
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-5)
    together.assert_clean()
