"""Samples on their way to the network: read by worker processes, put together, and moved to its device."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from edgetl.errors import TrainingError

if TYPE_CHECKING:
    import torch


def fed(samples: Any, device: torch.device, *, workers: int, **how: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of samples, the inputs on the device and the targets where they were read.

    Args:
        samples: By key (epoch, index): an input and a label. Where it has ``collate``, that puts batches together.
        device: Of the network.
        workers: Processes that read ahead; 0: this one reads.
        how: For torch's DataLoader: which samples, and how many at a time.
    """
    import torch
    from torch.utils.data import DataLoader

    loader: DataLoader[Any] = DataLoader(
        samples,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        collate_fn=getattr(samples, "collate", None),
        worker_init_fn=_end_with_parent,
        **how,
    )
    for inputs, targets in loader:
        # Convolutions are faster with channels last; only images have four dimensions.
        layout = torch.channels_last if inputs.ndim == 4 else torch.preserve_format
        yield inputs.to(device, non_blocking=True, memory_format=layout), targets


@contextmanager
def readers_alive() -> Iterator[None]:
    """Say what died, where a worker process of :func:`fed` did while this was open: torch raises that in any line.

    Raises:
        TrainingError: One died.
    """
    try:
        yield
    except RuntimeError as error:
        said = str(error).strip()
        if not said.startswith("DataLoader worker"):
            raise
        raise TrainingError(
            f"a process that reads samples died: {said}",
            hint="memory may have run out, or shared memory (docker run --shm-size): fewer finetune.workers, or 0",
        ) from None


def _end_with_parent(_: int) -> None:
    """Have a worker end when the process that it reads for does, however that ends and whatever the worker does.

    torch's workers look for it every few seconds themselves, but take for it whoever is their parent once they have
    started: those that a training left behind which was killed before stayed for ever, and kept their memory.
    """
    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_exit_after, args=(parent,), daemon=True).start()


def _exit_after(process: multiprocessing.process.BaseProcess) -> None:
    process.join()
    os._exit(1)
