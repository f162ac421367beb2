"""The parts in which a step is computed, and what is said, before and while training, where one is too small for a
BatchNorm that learns."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from itertools import accumulate
from typing import TYPE_CHECKING

from edgetl.config import Finetune, Phase
from edgetl.errors import ModelError
from edgetl.finetune.selectors import has_statistics, prepare

if TYPE_CHECKING:
    import torch
    from torch import nn

_TOO_FEW = "Expected more than 1 value per channel when training"
"""PyTorch's words: a BatchNorm that learns is given one sample of (1, channels), or of one pixel."""
_FROZEN = 'batchnorm = "frozen-statistics"'


def at_once(finetune: Finetune, processes: int) -> int:
    """Samples that a process computes at a time: its share of a step, in ``finetune.accumulate`` parts."""
    return math.ceil(math.ceil(finetune.batch_size / processes) / finetune.accumulate)


def cut(
    inputs: torch.Tensor, targets: torch.Tensor, most: int, *, learns: bool
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """A process's share of a step in parts that are alike in size.

    Args:
        inputs: (n, …).
        targets: (n, …).
        most: Samples of a part. Where a BatchNorm learns, a single sample that is left over goes with the part before
            it, which then has one more: one sample can have one value per channel, and has no statistics.
        learns: Whether a BatchNorm learns its statistics.
    """
    count = max(1, math.ceil(len(inputs) / most))
    sizes = [len(part) for part in inputs.tensor_split(count)]
    if learns and most > 1 and count > 1 and sizes[-1] == 1:
        sizes[-2:] = [sizes[-2] + 1]
    ends = list(accumulate(sizes[:-1]))
    return list(zip(inputs.tensor_split(ends), targets.tensor_split(ends), strict=True))


def one_by_one(phase: Phase, finetune: Finetune, processes: int) -> bool:
    """Whether BatchNorm is to learn in a phase whose steps some process computes one sample at a time.

    A head has no BatchNorm. A last batch that is smaller has two samples of every process (:class:`Batches`).
    """
    alone = at_once(finetune, processes) == 1 or finetune.batch_size < 2 * processes
    return phase.batchnorm == "train" and phase.train != "head" and alone


def check_batchnorm(
    module: nn.Module, chosen: frozenset[str], finetune: Finetune, sample: torch.Tensor, *, processes: int
) -> None:
    """Refuse a phase that is computed one sample at a time, where BatchNorm would learn from one value per channel.

    Whether it would depends on the network and its input: of maps larger than one pixel a sample has several.

    Args:
        module: The network; not changed.
        chosen: The parameters that learn, from :func:`edgetl.finetune.selectors.selected`.
        finetune: Of the phase, of which :func:`one_by_one` is true.
        sample: As the network takes it, (1, ...).
        processes: That train together.

    Raises:
        ModelError: It would.
    """
    import torch

    network = deepcopy(module)
    prepare(network, chosen, batchnorm="train")
    learning = {part: name for name, part in network.named_modules() if part.training and has_statistics(part)}
    single: list[str] = []

    def note(part: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if inputs[0].numel() == inputs[0].shape[1]:
            single.append(learning[part])

    for part in learning:
        part.register_forward_pre_hook(note)
    if learning:
        with torch.inference_mode():
            network.eval()(sample)
    if not single:
        return
    others = f" and {len(single) - 1} more" if len(single) > 1 else ""
    if finetune.batch_size < 2 * processes:
        cause = f"finetune.batch_size = {finetune.batch_size} in {processes} processes"
        change = f"finetune.batch_size = {2 * processes} or more"
        if finetune.accumulate > 1:
            change += ", with finetune.accumulate = 1"
    else:
        cause = f"finetune.accumulate = {finetune.accumulate} of finetune.batch_size = {finetune.batch_size}"
        enough = math.ceil(math.ceil(finetune.batch_size / processes) / 2)
        change = f"finetune.accumulate = {enough} or less"
    raise ModelError(
        f"{cause} leaves a single sample at a time, from which BatchNorm cannot learn: '{single[0]}'{others} would be"
        " given one value per channel",
        hint=f"{change}; in a phase of your own also {_FROZEN}",
    )


@contextmanager
def enough_for_batchnorm(when: str) -> Iterator[None]:
    """Say what to do where a BatchNorm is to learn from one value per channel.

    Whether it is depends on the network and its input: of maps larger than one pixel a sample has several.

    Args:
        when: "in step 7", for the message.

    Raises:
        ModelError: It is.
    """
    try:
        yield
    except ValueError as error:
        if _TOO_FEW not in str(error):
            raise
        raise ModelError(
            f"a BatchNorm learns from two values per channel at least, and is given a single one {when}",
            hint=f"a larger batch_size or a smaller accumulate in [finetune], or {_FROZEN}",
        ) from None
