"""torch.compile, where measuring shows that it is faster."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from edgetl.config import Finetune

if TYPE_CHECKING:
    import torch
    from torch import nn

EAGER, COMPILED = "eager", "compiled"
_STEPS, _FIRST = 20, 3


def candidates(model: nn.Module, finetune: Finetune) -> dict[str, nn.Module]:
    """The network as it is and, where ``finetune.compile`` wants that measured, compiled; it compiles when it runs."""
    if finetune.compile == "off":
        return {EAGER: model}
    import torch

    return {EAGER: model, COMPILED: torch.compile(model)}  # type: ignore[dict-item]


def measured(
    models: Mapping[str, nn.Module], step: Callable[[nn.Module], None], device: torch.device
) -> dict[str, float]:
    """Seconds that each takes for 20 steps.

    Args:
        models: By name.
        step: Does on a network what a step of training does, without changing its weights.
        device: Of the networks.
    """
    seconds = {}
    for name, model in models.items():
        for number in range(_FIRST + _STEPS):  # the first ones compile, and choose algorithms
            if number == _FIRST:
                _finish(device)
                began = time.perf_counter()
            step(model)
        _finish(device)
        seconds[name] = round(time.perf_counter() - began, 3)
    return seconds


def faster(seconds: Mapping[str, float]) -> str:
    """The name of the faster one; of eager where nothing was measured."""
    return min(seconds, key=lambda name: seconds[name], default=EAGER)


def _finish(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
