"""One streaming pass over calibration samples: every activation becomes a sketch, none is kept."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import DataError, ModelError
from edgetl.quantize.activations import Feeds, computed, steps
from edgetl.quantize.graph import axis_of_channels, fixed_batch
from edgetl.quantize.sketch import SketchBuilder
from edgetl.quantize.statistics import Statistics
from edgetl.runtime.runner import OpenRunner

if TYPE_CHECKING:
    import onnx_ir as ir

Progress = Callable[[int], None]


def calibrate(
    model: ir.Model,
    names: list[str],
    batches: Iterable[Feeds],
    *,
    open_runner: OpenRunner,
    memory_mb: int = 512,
    progress: Progress | None = None,
    describe: Callable[[int], str] = str,
) -> Statistics:
    """Collect the statistics of activations.

    The model computes one sample at a time, unless its batch is fixed: kernels may add in another order for another
    batch size, and the result would then depend on how samples are batched. So it depends on nothing but the samples.

    Args:
        model: From :func:`edgetl.quantize.graph.prepare`; not changed.
        names: Float activations of the model, from :func:`edgetl.quantize.placement.points`.
        batches: Arrays of shape (N, ...) for every input, N arbitrary and changing.
        open_runner: Opens an ONNX file that outputs the activations.
        memory_mb: How many MB of activations may be alive at once. Where a single sample has more, the activations
            are computed in several groups; of samples of different shapes, a longer one makes more groups.
        progress: Called with the number of samples after each step.
        describe: Names the sample of an index, for the message about a bad one.

    Raises:
        DataError: There is no sample, or a sample makes an activation NaN or infinite; both are named.
        ModelError: The samples are for other inputs than the model has.
    """
    fixed = fixed_batch(model)
    axes = _channel_axes(model, names)
    unknown = [name for name in names if name not in axes]
    if unknown:
        raise ModelError(f"the model has no activation '{unknown[0]}'")
    found = {name: SketchBuilder() for name in names}
    seen = 0
    each = steps(model, batches, fixed or 1)
    work = computed(model, names, each, open_runner=open_runner, memory=memory_mb * 1_000_000)
    with closing(work), ThreadPoolExecutor(max_workers=_workers()) as workers:
        for step in work:
            # The model's own outputs come of every group, and are counted with one.
            arrays = [step.values[name] if name in step.values else step.feeds[name] for name in step.names]
            bad = workers.map(
                _count,
                [found[name] for name in step.names],
                [_own(array, step.count, fixed or 1) for array in arrays],
                [axes[name] for name in step.names],
            )
            for name, index in zip(step.names, bad, strict=True):
                if index is not None:
                    raise _not_finite(name, describe(step.first + index))
            if step.last:
                seen += step.count
                if progress:
                    progress(seen)
    if not seen:
        raise DataError("there is no calibration sample", hint="give at least one; some hundred are usual")
    return Statistics(sketches={name: builder.sketch() for name, builder in found.items()}, samples=seen)


def _workers() -> int:
    """Threads that count: as many as this process has cores, each with its own activations."""
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 8)


def _count(builder: SketchBuilder, samples: Iterable[NDArray[np.float32]], channel_axis: int | None) -> int | None:
    """Count the samples of one activation; which of them is the first that is not finite."""
    for index, sample in enumerate(samples):
        if not builder.add(sample, channel_axis=channel_axis):
            return index
    return None


def _own(values: NDArray[np.generic], count: int, size: int) -> Iterator[NDArray[np.float32]]:
    """The samples of an activation without those that only fill a batch; one whole where it has no batch axis."""
    floats = np.asarray(values, dtype=np.float32)
    if floats.ndim and len(floats) % size == 0:  # windows and heads may be folded into the leading dimension
        yield from floats.reshape(size, len(floats) // size, *floats.shape[1:])[:count]
    else:
        yield floats


def _not_finite(name: str, sample: str) -> DataError:
    return DataError(
        f"calibration sample {sample} makes the activation '{name}' NaN or infinite",
        hint="look at that sample, and at the model's weights: one of them holds NaN or an overflow",
    )


def _channel_axes(model: ir.Model, names: list[str]) -> dict[str, int | None]:
    """The channel axis of each activation, from the end; None where it is as long as the sample."""
    axes: dict[str, int | None] = {}
    for value in [*model.graph.inputs, *(output for node in model.graph for output in node.outputs)]:
        if value.name in names:
            axis = axis_of_channels(value)
            axes[str(value.name)] = None if _changes(value, axis) else axis
    return axes


def _changes(value: ir.Value, axis: int) -> bool:
    """Whether an axis has a name instead of a size: what attention weighs by is as long as the sample."""
    import onnx_ir as ir

    if value.shape is None or not -len(value.shape) <= axis < len(value.shape):
        return False
    size = value.shape[axis]
    return isinstance(size, ir.SymbolicDim) and size.value is not None
