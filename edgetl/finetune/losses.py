"""Loss terms, one value per sample, so that any split of a step's samples adds up to the same loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from edgetl.config import Finetune
from edgetl.errors import DataError, ModelError

if TYPE_CHECKING:
    import torch

Loss = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]
"""Logits (n, classes) and targets, int64 (n,) or float32 (n, classes), → (n,)."""

_NEAREST = 1e-6
"""Smallest squared sine of the angle to the right class: the slope of the margin is that of 1 / sine."""


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
            each = each * (soft * weights.to(logits.device)).sum(1)
        return each

    return loss


def multi_label(finetune: Finetune, weights: torch.Tensor | None = None) -> Loss:
    """The loss where a sample may have several labels: binary cross-entropy of each class, their mean per sample.

    The targets are 0 and 1, or shares between them where samples were mixed. Label smoothing by e makes them
    e / 2 and 1 - e / 2.

    Args:
        finetune: Its loss, focal_gamma and label_smoothing are read.
        weights: Of the positives of each class, (classes,), as :func:`positive_weights` gives; None: as the negatives.
    """
    from torch.nn.functional import binary_cross_entropy_with_logits

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if targets.shape != logits.shape:
            raise ModelError(
                f"logits {list(logits.shape)} of several labels per sample need a target each, not"
                f" {list(targets.shape)}"
            )
        logits, hard = logits.float(), targets.float()
        smooth = hard * (1 - finetune.label_smoothing) + finetune.label_smoothing / 2
        positive = None if weights is None else weights.to(logits.device)
        each = binary_cross_entropy_with_logits(logits, smooth, pos_weight=positive, reduction="none")
        if finetune.loss == "focal":  # Lin et al. 2017: (1 - p of the right answer)^gamma times the cross-entropy
            wrong = hard * (-logits).sigmoid() + (1 - hard) * logits.sigmoid()
            each = each * wrong**finetune.focal_gamma
        return each.mean(1)

    return loss


def margin(
    finetune: Finetune,
    classes: int,
    weights: torch.Tensor | None = None,
    *,
    scale: float = 30.0,
    margin: float = 0.5,
    on: Literal["angle", "cosine"] = "angle",
) -> Loss:
    """The additive margin of ArcFace (Deng et al. 2019, arXiv:1801.07698) or CosFace (Wang et al. 2018,
    arXiv:1801.09414), for embeddings.

    The cosine c = cos t of the right class becomes cos(t + margin), or c - margin; all are multiplied by the scale, and
    then it is :func:`classification`'s loss. Where t + margin is beyond π the cosine would rise again; there it is
    c - margin · sin(margin), as in the authors' code. No acos is taken: cos(t + m) = c cos m - √(1 - c²) sin m.

    Args:
        finetune: Its loss, focal_gamma and label_smoothing are read.
        classes: Number of identities that are trained on.
        weights: Of the classes, (classes,); None: all alike.
        scale: What cosines are multiplied by: 30 where identities are few; the paper has 64 for tens of thousands.
        margin: From 0 to below π; on angles in radians.
        on: Where the margin is added: to angles as in ArcFace, or to cosines as in CosFace.

    Returns:
        A loss whose logits are cosines, (n, classes), with int64 targets (n,).

    Raises:
        ModelError: scale or margin cannot be used; in the loss, the shapes do not fit.
    """
    import torch

    if not (0.0 < scale < math.inf and 0.0 <= margin < math.pi):
        raise ModelError(f"a margin of {margin} radians with the scale {scale} cannot be trained with")
    base = classification(finetune, weights)
    cosine, sine = math.cos(margin), math.sin(margin)

    def loss(cosines: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if cosines.ndim != 2 or cosines.shape[1] != classes or targets.shape != cosines.shape[:1]:
            raise ModelError(
                f"an angular margin needs cosines (n, {classes}) and one label each, not {list(cosines.shape)} and"
                f" {list(targets.shape)}; samples cannot be mixed"
            )
        cosines = cosines.float()
        right = cosines.gather(1, targets[:, None])
        if on == "cosine":
            return base(scale * cosines.scatter(1, targets[:, None], right - margin), targets)
        across = (1 - right * right).clamp(min=_NEAREST).sqrt()
        further = torch.where(right > -cosine, right * cosine - across * sine, right - margin * sine)
        return base(scale * cosines.scatter(1, targets[:, None], further), targets)

    return loss


def positive_weights(labels: NDArray[np.integer]) -> NDArray[np.float32]:
    """Negatives over positives of each class, so that both weigh alike in its binary cross-entropy.

    Classes without a positive or without a negative have weight 1: there is nothing to balance.

    Args:
        labels: 0 and 1, (n, classes).

    Returns:
        float32 (classes,).

    Raises:
        DataError: The labels are not 0 and 1 for each class.
    """
    flags = np.asarray(labels)
    if flags.ndim != 2 or not np.isin(flags, (0, 1)).all():
        raise DataError(
            f"several labels per sample are 0 and 1 for each class, not {list(flags.shape)} of {flags.dtype}"
        )
    positives = flags.sum(0, dtype=np.float64)
    negatives = len(flags) - positives
    weights = np.ones(flags.shape[1])
    np.divide(negatives, positives, out=weights, where=(positives > 0) & (negatives > 0))
    return weights.astype(np.float32)


def class_weights(labels: Sequence[int], classes: int) -> NDArray[np.float32]:
    """Weights proportional to 1 / (class size), with mean 1 over the samples; (classes,).

    Classes without a sample have weight 0.
    """
    counts = np.bincount(np.asarray(labels, dtype=np.int64), minlength=classes).astype(np.float64)
    filled = counts > 0
    weights = np.zeros(classes)
    weights[filled] = len(labels) / (filled.sum() * counts[filled])
    return weights.astype(np.float32)
