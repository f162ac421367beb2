"""Samples on their way to the network: read by worker processes, put together, and moved to its device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

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
        **how,
    )
    for inputs, targets in loader:
        # Convolutions are faster with channels last; only images have four dimensions.
        layout = torch.channels_last if inputs.ndim == 4 else torch.preserve_format
        yield inputs.to(device, non_blocking=True, memory_format=layout), targets
