"""Worker processes that read samples: they end with the process that they read for."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

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


def _lives(process: Path) -> bool:
    """Whether there is one that has not ended; what nobody waited for yet has."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
