"""A training that came to NaN or infinity: noticed before such weights are judged or kept, and explained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgetl.errors import DataError, EdgetlError, TrainingError
from edgetl.finetune.samplers import Key

if TYPE_CHECKING:
    import torch
    from torch import nn

_NAMED = 5


def check_weights(module: nn.Module, when: str) -> None:
    """Look at the trained parameters: a step whose loss was finite may still have led to NaN.

    Args:
        module: The network.
        when: "in step 3 of the phase 'all'".

    Raises:
        TrainingError: One is NaN or infinite.
    """
    import torch

    finite = [parameter.isfinite().all() for parameter in module.parameters() if parameter.requires_grad]
    if not bool(torch.stack(finite).all()):
        raise _diverged("weights became NaN or infinite", when)


def of_loss(loss: float, when: str, inputs: torch.Tensor, keys: Sequence[Key]) -> EdgetlError:
    """The error to raise for a loss that is not finite: of the data where samples are not, else of the training.

    Args:
        loss: NaN or infinite.
        when: As of :func:`check_weights`.
        inputs: Of the step, (n, …), before they were mixed.
        keys: Which samples they are, (n,).
    """
    broken = (~inputs.isfinite()).flatten(1).any(1).tolist()
    named = sorted(index for (_, index), bad in zip(keys, broken, strict=True) if bad)
    if not named:
        return _diverged(f"the loss became {loss}", when)
    more = " …" if len(named) > _NAMED else ""
    return DataError(
        f"the loss became {loss} {when}: samples of train hold NaN or infinity, counted from 0:"
        f" {', '.join(map(str, named[:_NAMED]))}{more}",
        hint="look at these samples, and at data.mean and data.std",
    )


def _diverged(what: str, when: str) -> TrainingError:
    return TrainingError(
        f"{what} {when}; what was kept before stays as it was",
        hint="a smaller lr in finetune.phases, or finetune.clip_norm = 1.0, or a look at the data",
    )
