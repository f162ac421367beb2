"""What a phase is given to learn from and where it runs, and what its epochs come to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgetl.finetune.losses import Loss

if TYPE_CHECKING:
    import torch

Progress = Callable[[str, int, int], None]
"""Is told what is being done, how much of it is done, and of how much."""


class Score(Protocol):
    """What decides which epoch is best, as :class:`edgetl.metrics.Metric`."""

    @property
    def name(self) -> str:
        """In records."""

    def __call__(self, outputs: NDArray[np.floating], labels: NDArray[Any]) -> float:
        """Outputs (n, k) and labels → what is better where it is larger."""


Mix = Callable[["torch.Tensor", "torch.Tensor", int], "tuple[torch.Tensor, torch.Tensor]"]
"""Inputs, int64 labels (n,) and a seed → inputs and targets (n, classes)."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """What a phase learns from."""

    train: Any
    """By key (epoch, index): an input and a label; it can be pickled where workers read it. Where it has ``collate``,
    batches are put together by that."""
    labels: Sequence[Any]
    """Of the training samples."""
    val: Any
    """By key, as train."""
    val_labels: Sequence[Any]
    classes: int
    loss: Loss | None = None
    """One value per sample; None: of single-label classification, as ``[finetune]`` says."""
    mix: Mix | None = None
    """MixUp or CutMix of a batch."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a phase runs, and where it keeps what it needs to go on after it was killed."""

    device: str = "cpu"
    """cpu or cuda."""
    workers: int = 0
    """Processes that read samples."""
    threads: int | None = None
    """Of PyTorch on a CPU; None: as they are."""
    state: Path | None = None
    """A folder; None: nothing is kept."""
    run: str = "finetune"
    """Name of the run in logs."""


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What one epoch came to."""

    epoch: int
    """From 1."""
    train_loss: float
    val_score: float
    """The metric on val."""
    seconds: float
