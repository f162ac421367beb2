"""Loss terms, one value per sample, so that any split of a step's samples adds up to the same loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgetl.config import Finetune

if TYPE_CHECKING:
    import torch

Loss = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]
"""Logits (n, classes) and targets, int64 (n,) or float32 (n, classes), → (n,)."""


def classification(finetune: Finetune, weights: torch.Tensor | None = None) -> Loss:
    """The loss of single-label classification.

    Args:
        finetune: Its loss, focal_gamma and label_smoothing are read.
        weights: Of the classes, (classes,); None: all alike.
    """
    from torch.nn.functional import cross_entropy, one_hot

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = logits.float()
        each = cross_entropy(logits, targets, reduction="none", label_smoothing=finetune.label_smoothing)
        soft = one_hot(targets, logits.shape[1]).float() if targets.ndim == 1 else targets
        if finetune.loss == "focal":  # Lin et al. 2017: (1 - p of the right class)^gamma times the cross-entropy
            right = (logits.softmax(1) * soft).sum(1)
            each = each * (1 - right) ** finetune.focal_gamma
        if weights is not None:
            each = each * (soft * weights).sum(1)
        return each

    return loss


def class_weights(labels: Sequence[int], classes: int) -> NDArray[np.float32]:
    """Weights proportional to 1 / (class size), with mean 1 over the samples; (classes,).

    Classes without a sample have weight 0.
    """
    counts = np.bincount(np.asarray(labels, dtype=np.int64), minlength=classes).astype(np.float64)
    filled = counts > 0
    weights = np.zeros(classes)
    weights[filled] = len(labels) / (filled.sum() * counts[filled])
    return weights.astype(np.float32)
