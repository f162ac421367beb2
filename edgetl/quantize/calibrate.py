"""One streaming pass over calibration samples: every activation becomes a sketch, none is kept."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import DataError, ModelError
from edgetl.quantize.graph import add_initializer, axis_of_channels, fixed_batch, name_output
from edgetl.quantize.sketch import SketchBuilder
from edgetl.quantize.statistics import Statistics
from edgetl.runtime.runner import OpenRunner, Runner

if TYPE_CHECKING:
    import onnx_ir as ir

_COPIES = 3
"""Of every activation alive at once: the engine's own buffer, the array that it hands over, and the one that is being
counted meanwhile."""

_LONGER = 1.25
"""How many times as large as the sample that the groups were made for another one may be without new groups."""

Feeds = Mapping[str, NDArray[np.generic]]
"""Input name → array; the leading dimension is the batch."""
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
    with tempfile.TemporaryDirectory(prefix="edgetl-") as folder, ExitStack() as stack:
        workers = stack.enter_context(ThreadPoolExecutor(max_workers=_workers()))
        sessions = stack.enter_context(ExitStack())
        there: list[tuple[list[str], Runner]] = []

        def opened(feeds: Feeds) -> list[tuple[list[str], Runner]]:
            known = sizes(model, feeds, names, open_runner=open_runner)
            groups = _groups(names, known, memory_mb * 1_000_000 // _COPIES)
            if groups != [group for group, _ in there]:
                sessions.close()
                paths = [
                    with_outputs(model, group, Path(folder) / f"group{number}.onnx", apart=names)
                    for number, group in enumerate(groups)
                ]
                there[:] = [
                    (group, sessions.enter_context(open_runner(path, frugal=len(groups) > 1)))
                    for group, path in zip(groups, paths, strict=True)
                ]
            return list(there)

        for feeds, count, group, values, last in _computed(steps(model, batches, fixed or 1), opened):
            # The model's own outputs come of every group, and are counted with one.
            arrays = [values[name] if name in values else feeds[name] for name in group]
            bad = workers.map(
                _count,
                [found[name] for name in group],
                [_own(array, count, fixed or 1) for array in arrays],
                [axes[name] for name in group],
            )
            for name, index in zip(group, bad, strict=True):
                if index is not None:
                    raise _not_finite(name, describe(seen + index))
            if last:
                seen += count
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


def _computed(
    steps: Iterable[tuple[Feeds, int]], opened: Callable[[Feeds], list[tuple[list[str], Runner]]]
) -> Iterator[tuple[Feeds, int, list[str], Feeds, bool]]:
    """What each group of activations is on each step, one ahead: the engine computes while the caller counts.

    Args:
        steps: Feeds, and how many of their samples are real.
        opened: Gives the groups for feeds of such shapes, each with its session; those of before are closed.

    Yields:
        The step's feeds and its number of real samples; the group's names, their values and the model's outputs; and
        whether the group is the step's last.
    """
    runners: list[tuple[list[str], Runner]] = []
    planned = 0
    ready: tuple[Feeds, int, list[str], Future[dict[str, NDArray[np.generic]]], bool] | None = None
    with ThreadPoolExecutor(max_workers=1) as pool:
        for feeds, count in steps:
            size = sum(array.size for array in feeds.values())
            if not runners or size > _LONGER * planned:
                if ready is not None:
                    yield *ready[:3], ready[3].result(), ready[4]
                    ready = None
                runners, planned = opened(feeds), size
            for place, (group, runner) in enumerate(runners):
                future = pool.submit(runner.run, feeds)
                if ready is not None:
                    yield *ready[:3], ready[3].result(), ready[4]
                ready = feeds, count, group, future, place == len(runners) - 1
        if ready is not None:
            yield *ready[:3], ready[3].result(), ready[4]


def with_outputs(model: ir.Model, names: Iterable[str], path: Path, *, apart: Iterable[str] = ()) -> Path:
    """Save a copy of a model that outputs the named activations too.

    Args:
        model: Not changed.
        names: Values of its graph.
        path: Of the copy.
        apart: Values that an engine is to compute as if they were outputs: an engine that adds a residual within the
            convolution before it rounds otherwise, and then statistics would depend on which values are asked for
            together. One element of each becomes an output.

    Returns:
        The path.
    """
    import onnx_ir as ir

    copy = model.clone()
    graph = copy.graph
    there = {value.name for value in graph.outputs}
    found = {output.name: output for node in graph for output in node.outputs}
    for name in names:
        if name not in there and name in found:
            value = found[name]
            if value.dtype is None:
                value.dtype = ir.DataType.FLOAT
            graph.outputs.append(value)
    for name in reversed(list(apart)):  # so that each runs as soon as it can: see magnitudes._probed
        if name in found and not found[name].is_graph_output():
            _keep_apart(graph, found[name])
    ir.save(copy, path)
    return path


def _keep_apart(graph: ir.Graph, value: ir.Value) -> None:
    """Let a second node read a value, so that no engine fuses over it; a Slice that no engine folds into a constant."""
    import onnx_ir as ir

    if value.shape is None or not len(value.shape):
        return
    rank = len(value.shape)
    bounds = [
        add_initializer(graph, f"{value.name}_{what}", np.asarray(list(content), dtype=np.int64))
        for what, content in (("from", [0] * rank), ("to", [1] * rank), ("axes", range(rank)))
    ]
    node = ir.node("Slice", [value, *bounds], name=f"{value.name}_apart")
    name_output(node, f"{value.name}_corner", like=value, shape=ir.Shape([None] * rank))
    graph.append(node)
    graph.outputs.append(node.outputs[0])


def steps(model: ir.Model, batches: Iterable[Feeds], size: int) -> Iterator[tuple[Feeds, int]]:
    """Samples in steps of a size, and how many of each step are real: the last is filled up with copies.

    Raises:
        ModelError: The samples are for other inputs than the model has, or of different numbers.
    """
    wanted = [str(value.name) for value in model.graph.inputs]
    waiting: dict[str, NDArray[np.generic]] | None = None
    for batch in batches:
        if set(batch) != set(wanted):
            raise ModelError(f"the model's inputs are {', '.join(wanted)}; the samples are for {', '.join(batch)}")
        lengths = {len(array) for array in batch.values()}
        if len(lengths) != 1:
            raise ModelError(f"the arrays of a batch have different lengths: {sorted(lengths)}")
        joined = {
            name: array if waiting is None else np.concatenate([waiting[name], array]) for name, array in batch.items()
        }
        total = len(joined[wanted[0]])
        for start in range(0, total - size + 1, size):
            yield {name: np.ascontiguousarray(array[start : start + size]) for name, array in joined.items()}, size
        rest = total % size
        waiting = {name: array[total - rest :] for name, array in joined.items()} if rest else None
    if waiting is not None:
        rest = len(waiting[wanted[0]])
        indices = np.minimum(np.arange(size), rest - 1)
        yield {name: array[indices] for name, array in waiting.items()}, rest


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


def _groups(names: list[str], known: Mapping[str, int], budget: int) -> list[list[str]]:
    """Activations in groups that each fit the budget for one step."""
    groups: list[list[str]] = [[]]
    filled = 0
    for name in names:
        if groups[-1] and filled + known[name] > budget:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += known[name]
    return groups


def sizes(
    model: ir.Model, feeds: Feeds, names: Collection[str] | None = None, *, open_runner: OpenRunner
) -> dict[str, int]:
    """Bytes of activations as arrays of float32, inputs among them.

    The model is run once, and puts out shapes alone. Inferring them would take no run, and fails where a shape is
    computed in the graph, as in texts of any length: then nearly all would be unknown.

    Args:
        model: Not changed.
        feeds: Of the shapes that are asked about.
        names: Of the activations; None: all that are known to be floats.
        open_runner: Opens an ONNX file.
    """
    import onnx_ir as ir

    copy = model.clone()
    graph = copy.graph
    outputs = [output for node in graph for output in node.outputs if output.name]
    outputs = [output for output in outputs if output.type is None or isinstance(output.type, ir.TensorType)]
    if names is None:
        floats = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}
        values = [output for output in outputs if output.dtype in floats]
    else:
        values = [output for output in outputs if output.name in names]
    graph.outputs.clear()
    shape_of = {}
    for number, value in reversed(list(enumerate(values))):  # as in _keep_apart's case
        node = ir.node("Shape", [value], name=f"edgetl_shape_{number}")
        output = node.outputs[0]
        output.name, output.dtype, output.shape = f"edgetl_shape_{number}_of", ir.DataType.INT64, ir.Shape([None])
        graph.append(node)
        graph.outputs.append(output)
        shape_of[output.name] = str(value.name)
    found = {name: 4 * array.size for name, array in feeds.items() if names is None or name in names}
    if not shape_of:
        return found
    with tempfile.TemporaryDirectory(prefix="edgetl-") as folder:
        path = Path(folder) / "shapes.onnx"
        ir.save(copy, path)
        with open_runner(path) as runner:
            shapes = runner.run(feeds)
    return found | {name: 4 * math.prod(int(size) for size in shapes[output]) for output, name in shape_of.items()}
