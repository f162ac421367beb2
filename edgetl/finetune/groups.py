"""The optimizer and its parameter groups: which weights decay, and which learn more slowly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgetl.backends.backbones import Stage
from edgetl.config import Finetune, Phase

if TYPE_CHECKING:
    import torch
    from torch import nn


def parameter_groups(
    module: nn.Module, chosen: frozenset[str], phase: Phase, finetune: Finetune, stages: Sequence[Stage]
) -> list[dict[str, Any]]:
    """The groups of the trained parameters, by stage and by whether they decay.

    Stage k of n, counted from the input, has the learning rate peak · layer_decay^(n - 1 - k) (as in ELECTRA, Clark et
    al. 2020, arXiv:2003.10555); the head, the last one, has the peak.

    Args:
        module: The network.
        chosen: From :func:`edgetl.finetune.selectors.selected`.
        phase: Its learning rate and layer_decay are read.
        finetune: Its weight_decay is read.
        stages: Of the network.

    Returns:
        For a torch optimizer: params, weight_decay, lr, and peak_lr, which a schedule multiplies; and "stage" for the
        record. Groups without parameters are left out.
    """
    parameters = dict(module.named_parameters())
    groups = []
    for place, stage in enumerate(stages):
        peak = phase.peak_lr * phase.layer_decay ** (len(stages) - 1 - place)
        for decays in (True, False):
            own = [
                parameters[name] for name in stage.parameters if name in chosen and _decays(parameters[name]) == decays
            ]
            if own:
                decay = finetune.weight_decay if decays else 0.0
                groups.append({"params": own, "weight_decay": decay, "lr": peak, "peak_lr": peak, "stage": stage.name})
    return groups


@dataclass(frozen=True, kw_only=True)
class Group:
    """A group of trained parameters, for the record."""

    stage: str
    """Of the network."""
    lr: float
    """The peak of its learning rate."""
    weight_decay: float
    tensors: int
    parameters: int
    """Numbers in these tensors."""


def recorded(groups: Sequence[dict[str, Any]]) -> tuple[Group, ...]:
    """What is written down of groups of :func:`parameter_groups`."""
    return tuple(
        Group(
            stage=group["stage"],
            lr=group["peak_lr"],
            weight_decay=group["weight_decay"],
            tensors=len(group["params"]),
            parameters=sum(parameter.numel() for parameter in group["params"]),
        )
        for group in groups
    )


def optimizer_of(finetune: Finetune, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The optimizer of ``[finetune]`` for groups of :func:`parameter_groups`."""
    import torch

    if finetune.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=groups[0]["lr"], momentum=finetune.momentum)
    # One kernel for all of a step: by itself PyTorch makes a dozen passes over every parameter.
    return torch.optim.AdamW(groups, lr=groups[0]["lr"], fused=True)


def decaying(module: nn.Module, chosen: frozenset[str]) -> list[torch.Tensor]:
    """The trained parameters that decay: neither biases nor normalisation, which all have one dimension."""
    return [parameter for name, parameter in module.named_parameters() if name in chosen and _decays(parameter)]


def _decays(parameter: torch.Tensor) -> bool:
    return parameter.ndim > 1
