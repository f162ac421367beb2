"""Which parameters of a network a phase trains, and in which mode its modules are meanwhile.

Both are pure functions of the configuration. They are applied again whenever a network goes back to training, so that
no call of ``train()`` in between, and no resume, can thaw a BatchNorm or freeze a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from edgetl.backends.backbones import Stage
from edgetl.config import Phase
from edgetl.errors import ModelError
from edgetl.tomlfile import did_you_mean

if TYPE_CHECKING:
    from torch import nn

_SHOWN = 3
"""Names of parameters in a message, of hundreds."""


def selected(module: nn.Module, phase: Phase, stages: Sequence[Stage]) -> frozenset[str]:
    """Names of the parameters that a phase trains.

    Args:
        module: The network; not changed.
        phase: Its train, stages, names and batchnorm are read.
        stages: Of the network, from :func:`edgetl.backends.backbones.stages`; the head is the last.

    Raises:
        ModelError: There are not so many stages, or a pattern matches no parameter.
    """
    everything = [name for name, _ in module.named_parameters()]
    head = set(stages[-1].parameters)
    if phase.train == "all":
        chosen = set(everything)
    elif phase.train == "biases":
        chosen = head | {name for name in everything if name.rpartition(".")[2] == "bias"}
    elif phase.train == "names":
        chosen = _matching(everything, phase.names)
    else:
        chosen = head | _of_stages(phase, stages[:-1])
    if phase.batchnorm == "frozen":
        chosen -= {name for norm in _norms(module) for name in norm}
    if not chosen:
        raise ModelError(f'train = "{phase.train}" with batchnorm = "frozen" leaves nothing to train')
    return frozenset(chosen)


def prepare(module: nn.Module, chosen: frozenset[str], *, batchnorm: str) -> None:
    """Bring a network into the state that training some of its parameters wants; the same however often it is called.

    Only those parameters have gradients. A part of the network of which nothing is trained is in eval mode, so that
    neither its statistics nor its dropout take part; so is a BatchNorm whose statistics are to stay.

    Args:
        module: Changed in place.
        chosen: From :func:`selected`.
        batchnorm: train, frozen-statistics or frozen.
    """
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in chosen)
    module.train()
    for part in module.modules():
        own = list(part.parameters())
        rests = bool(own) and not any(parameter.requires_grad for parameter in own)
        if rests or (has_statistics(part) and batchnorm != "train"):
            part.eval()


def learns_statistics(module: nn.Module) -> bool:
    """Whether a BatchNorm of a network that was prepared learns its statistics."""
    return any(part.training and has_statistics(part) for part in module.modules())


def _of_stages(phase: Phase, body: Sequence[Stage]) -> set[str]:
    """The parameters of the stages that train, without the head."""
    count = phase.stages or 0
    if count > len(body):
        listed = ", ".join(stage.name for stage in body)
        raise ModelError(
            f'train = "{phase.train}" with stages = {count}: the network has {len(body)} stages before its head',
            hint=f"they are {listed}",
        )
    trained = {"head": [], "last-stages": body[len(body) - count :], "all-but-first": body[count:]}[phase.train]
    return {name for stage in trained for name in stage.parameters}


def _matching(everything: Sequence[str], patterns: Sequence[str]) -> set[str]:
    chosen: set[str] = set()
    for pattern in patterns:
        matched = {name for name in everything if fnmatchcase(name, pattern)}
        if not matched:
            near = did_you_mean(pattern, everything)
            listed = f"it has {', '.join(everything[:_SHOWN])} … {everything[-1]}, {len(everything)} in all"
            raise ModelError(
                f"no parameter of the network matches '{pattern}'; {near if near.startswith('did') else listed}",
                hint='patterns are matched whole: "blocks.5.*" matches what begins with "blocks.5."',
            )
        chosen |= matched
    return chosen


def _norms(module: nn.Module) -> list[list[str]]:
    """The parameter names of every BatchNorm."""
    return [
        [f"{prefix}.{name}" if prefix else name for name, _ in part.named_parameters(recurse=False)]
        for prefix, part in module.named_modules()
        if has_statistics(part)
    ]


def has_statistics(part: nn.Module) -> bool:
    """Whether it is a normalisation that keeps statistics of what it has seen, as BatchNorm does."""
    from torch.nn.modules.batchnorm import _NormBase

    return isinstance(part, _NormBase) and part.running_mean is not None
