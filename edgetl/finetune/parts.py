"""The parts in which a step is computed, and what is said where one is too small for a BatchNorm that learns."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import TYPE_CHECKING

from edgetl.config import Finetune
from edgetl.errors import ModelError

if TYPE_CHECKING:
    import torch

_TOO_FEW = "Expected more than 1 value per channel when training"
"""PyTorch's words: a BatchNorm that learns is given one sample of (1, channels), or of one pixel."""


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
            hint='a larger batch_size or a smaller accumulate in [finetune], or batchnorm = "frozen-statistics"',
        ) from None
