"""Training in several processes, by torchrun or accelerate launch: the same configuration, and the same result."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

# With --multi_gpu it starts processes as torchrun does; without, on CPUs, it needs MPI, or starts a single one.
ACCELERATE = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
ACCELERATE += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m", "edgetl"]
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--local-addr", "127.0.0.1"]
TORCHRUN += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "-m", "edgetl"]
LAUNCHERS = {"torchrun": TORCHRUN, "accelerate launch": ACCELERATE}


@pytest.fixture(scope="module")
def alone(edgetl: Any, make_project: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of the same training in one process."""
    project = make_project(tmp_path_factory.mktemp("one") / "alone")
    project.edit(SHORT)
    done = edgetl("train", project.folder, "--json")
    assert done.code == 0, done.err
    return Path(done.document["result"]["artifacts"]["train"]) / "model.safetensors"


# Statistics of a batch differ where it is shared: they are kept as they are.
SHORT = ('epochs = 10, lr = 5e-3, batchnorm = "train"', "epochs = 2, lr = 5e-3")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def launchers(how: str) -> list[list[str]]:
    """The command lines to start, one on each machine."""
    if how != "torchrun on two nodes":
        return [LAUNCHERS[how]]
    meet = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    return [["-m", "torch.distributed.run", *meet, "--node-rank", node, "-m", "edgetl"] for node in "01"]


@pytest.mark.slow
@pytest.mark.parametrize("how", [*LAUNCHERS, "torchrun on two nodes"])
def test_edgetl_train_in_two_processes(
    how: str, alone: Path, make_project: Callable[..., Any], environment: dict[str, str], tmp_path: Path
) -> None:
    """Two nodes are two launchers that meet at an address; here both are this machine, with one store."""
    together = make_project(tmp_path / "together")
    together.edit(SHORT)
    started = [
        subprocess.Popen(
            [sys.executable, *command, "train", str(together.folder), "--json"],
            env=environment,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command in launchers(how)
    ]
    try:
        said = [process.communicate(timeout=240) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * len(started), said
    spoken = "".join(out for out, _ in said)
    (line,) = [line for line in spoken.splitlines() if line.startswith("{")]  # the first process alone speaks
    found = json.loads(line)["result"]
    assert found["phases"][1]["processes"] == 2
    one, two = load_file(alone), load_file(Path(found["artifacts"]["train"]) / "model.safetensors")
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-5)
    together.assert_clean()
