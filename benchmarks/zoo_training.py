"""What the models of the zoo have in common: how one is trained, and what comes of making it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
    from torch import nn

Arrays = dict[str, NDArray[Any]]

OPSET = 20
SEED = 0
CALIBRATION = 300
"""Calibration samples of every model."""


class Schedule(Protocol):
    """Hyper-parameters of :func:`fit`."""

    @property
    def epochs(self) -> int: ...
    @property
    def lr(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Made:
    """A model as it was made, before it is written."""

    module: nn.Module
    task: str
    training_s: float
    calibration: Arrays
    test: Arrays
    labels: NDArray[np.int64] | None
    write: Callable[[Path], None]


def fit(
    module: nn.Module,
    loss_of: Callable[[torch.Tensor], torch.Tensor],
    epoch: Callable[[], list[torch.Tensor]],
    spec: Schedule,
) -> float:
    """AdamW with a one-cycle schedule (Smith and Topin 2018, arXiv:1708.07120); the last epoch is kept.

    Args:
        module: Trained in place; in eval mode on return.
        loss_of: Sample numbers (n,) → mean loss.
        epoch: The batches of sample numbers of one epoch; as many every time.
        spec: Hyper-parameters.

    Returns:
        Seconds.
    """
    import torch

    began = time.perf_counter()
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": spec.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=spec.lr)
    steps = spec.epochs * len(epoch())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, spec.lr, total_steps=steps, pct_start=0.2)
    module.train()
    for number in range(1, spec.epochs + 1):
        losses = []
        for chosen in epoch():
            loss = loss_of(chosen)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
        spent = time.perf_counter() - began
        print(f"  epoch {number} of {spec.epochs}: loss {np.mean(losses):.4f}, {spent:.0f} s", flush=True)
    module.eval()
    return time.perf_counter() - began
