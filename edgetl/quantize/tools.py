"""What recipes are carried out with: samples, engines, and the memory that they may take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import DataError
from edgetl.quantize.activations import sizes
from edgetl.quantize.graph import fixed_batch
from edgetl.quantize.walk import batches_of
from edgetl.runtime.runner import OpenRunner

if TYPE_CHECKING:
    import onnx_ir as ir

_STEP = 8
_TRIED = 16
"""Samples of different shapes that are looked at for the size of their activations."""
_GRAPHS = 8
"""Whose activations may be alive at once: the float graph's, the quantized one's, and those of layers by themselves."""

Samples = Callable[[], Iterable[Mapping[str, NDArray[np.generic]]]]
"""Gives the calibration samples anew each time: feeds of any batch sizes."""
Progress = Callable[[str, int, int], None]
"""Is told what is done, how much of it, and of how much."""


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What a recipe is carried out with."""

    samples: Samples
    open_runner: OpenRunner
    memory_mb: int = 512
    """For activations alive at once, in MB."""
    progress: Progress | None = None
    describe: Callable[[int], str] = str
    """Names the sample of an index, for the message about a bad one."""


def feeds_of(
    model: ir.Model, tools: Tools, most: int, *, outputs_only: bool = False
) -> list[dict[str, NDArray[np.generic]]]:
    """Some of the samples, as many as the memory for activations allows, in batches that fit the model.

    A batch is small enough that the activations of some graphs side by side fit that memory.

    Args:
        model: Float graph.
        tools: Give the samples and the memory.
        most: Samples.
        outputs_only: Whether nothing is kept of a batch but what goes in and comes out; else one activation of each
            batch is alive twice at a time.
    """
    room = room_for(model, tools)
    affordable = room.size * (room.looked_at if outputs_only else room.walked)  # no more are read
    filled = fixed_batch(model) is not None
    return batches_of(tools.samples(), size=room.size, most=max(room.size, min(most, affordable)), fill=filled)


@dataclass(frozen=True, kw_only=True)
class Room:
    """What the memory for activations allows."""

    size: int
    """Samples in a batch."""
    walked: int
    """Batches of which one activation may be alive twice."""
    looked_at: int
    """Batches whose inputs take no more than a quarter of it."""


def room_for(model: ir.Model, tools: Tools) -> Room:
    """How many samples fit the memory at once, by the activations of the longest of some.

    Raises:
        DataError: There is no calibration sample.
    """
    fixed = fixed_batch(model)
    ragged = any(not isinstance(side, int) for value in model.graph.inputs for side in tuple(value.shape or ())[1:])
    # Of samples of different shapes, a long one tells what memory they take.
    parts = batches_of(tools.samples(), size=fixed or 1, most=_TRIED if ragged else 1)
    if not parts:
        raise DataError("there is no calibration sample", hint="give at least one; some hundred are usual")
    longest = max(parts, key=lambda feeds: sum(array.size for array in feeds.values()))
    activations = sizes(model, longest, open_runner=tools.open_runner).values()
    budget = tools.memory_mb * 1_000_000
    size = fixed or 1 if ragged else fixed or max(1, min(_STEP, budget // max(1, _GRAPHS * sum(activations))))
    copies = 1 if fixed else size
    largest = max(activations, default=0) * copies
    inputs = sum(array.nbytes for array in longest.values()) * copies
    return Room(size=size, walked=max(1, budget // max(1, 4 * largest)), looked_at=max(1, budget // max(1, 4 * inputs)))
