"""Worker processes that read samples: they end with the process that they read for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from edgetl.errors import TrainingError
from edgetl.finetune.feeding import fed, readers_alive

TRAINING = """
import multiprocessing, sys, threading, time
import torch
from edgetl.finetune.feeding import fed

class Samples:
    def __getitem__(self, key):
        return torch.zeros(3, 8, 8), 0

    def __len__(self):
        return 1000

feed = fed(Samples(), torch.device("cpu"), workers=2, batch_size=4)
if sys.argv[1] == "reading":
    next(feed)
else:
    torch.set_num_threads = lambda _: time.sleep(3)  # what a worker does first takes as long as on a busy machine
    threading.Thread(target=next, args=(feed,), daemon=True).start()
while len(workers := multiprocessing.active_children()) < 2:
    time.sleep(0.01)
print(*(worker.pid for worker in workers), flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("when", ["reading", "starting"])
def test_workers_of_a_killed_training_end(tmp_path: Path, when: str) -> None:
    """Those that were just starting never did: torch's take for their parent whoever is when they have started."""
    script = tmp_path / "training.py"
    script.write_text(TRAINING, encoding="utf-8")
    with subprocess.Popen([sys.executable, str(script), when], stdout=subprocess.PIPE, text=True) as training:
        assert training.stdout is not None
        workers = [Path("/proc") / number for number in training.stdout.readline().split()]
        training.kill()
    assert len(workers) == 2
    end = time.monotonic() + 30
    while left := [worker for worker in workers if _lives(worker)]:
        assert time.monotonic() < end, left
        time.sleep(0.1)


class Dying:
    """Samples that end whatever process reads them ahead."""

    def __getitem__(self, key: int) -> tuple[torch.Tensor, int]:
        assert torch.utils.data.get_worker_info() is not None
        os.kill(os.getpid(), signal.SIGKILL)
        return torch.zeros(3, 8, 8), 0

    def __len__(self) -> int:
        return 8


def test_a_worker_that_dies_ends_the_training_with_what_to_do() -> None:
    died = r"^a process that reads samples died: DataLoader worker \(pid"
    with pytest.raises(TrainingError, match=died) as ended, readers_alive():
        list(fed(Dying(), torch.device("cpu"), workers=1, batch_size=2))
    assert ended.value.hint is not None and "finetune.workers" in ended.value.hint


def test_other_errors_while_samples_are_read_stay_as_they_are() -> None:
    with pytest.raises(RuntimeError, match=r"^another$"), readers_alive():
        raise RuntimeError("another")


def _lives(process: Path) -> bool:
    """Whether there is one that has not ended; what nobody waited for yet has."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
