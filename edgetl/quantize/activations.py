"""The activations of a graph on samples, in groups that memory holds at once."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import ModelError
from edgetl.quantize.graph import add_initializer, name_output
from edgetl.runtime.runner import OpenRunner, Runner

if TYPE_CHECKING:
    import onnx_ir as ir

_COPIES = 3
"""Of every activation alive at once: the engine's own buffer, the array that it hands over, and the one that is being
counted meanwhile."""

_LONGER = 1.25
"""How many times as large as the sample that the groups were made for another one may be without new groups."""

_TOGETHER = 64
"""Steps for which a group's engine stays open, where there are several groups."""

_ROOM = 1 / 4
"""How much of the memory the samples of these steps may take."""

_SMALL = 1024
"""Bytes of constants that stay in the graph's file; engines read shapes and axes there and nowhere else."""

Feeds = Mapping[str, NDArray[np.generic]]
"""Input name → array; the leading dimension is the batch."""


@dataclass(frozen=True)
class Computed:
    """Some activations on one step."""

    names: list[str]
    feeds: Feeds
    first: int
    """Which of all samples is the first of this step."""
    count: int
    """Samples of this step; what is more is copies that fill a batch."""
    last: bool
    """Whether the step's other activations were there before."""
    values: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)
    """Of the activations, inputs not among them, and the model's outputs."""


def computed(
    model: ir.Model, names: list[str], steps: Iterable[tuple[Feeds, int]], *, open_runner: OpenRunner, memory: int
) -> Generator[Computed, None, None]:
    """Compute activations, one step ahead: the engine works while the caller counts.

    Args:
        model: Not changed.
        names: Of its activations.
        steps: From :func:`steps`.
        open_runner: Opens an ONNX file.
        memory: Bytes of activations that may be alive at once. Where a step has more, they are computed in several
            groups, for some steps at a time: an engine has all the model's weights, and only one is open.
    """
    pending = iter(steps)
    planned = seen = 0
    with (
        tempfile.TemporaryDirectory(prefix="edgetl-") as folder,
        closing(_Engine(model, names, Path(folder), open_runner)) as engine,
        ThreadPoolExecutor(max_workers=1) as pool,
    ):
        ready: tuple[Computed, Future[dict[str, NDArray[np.generic]]]] | None = None

        def finished() -> Iterator[Computed]:
            nonlocal ready
            if ready is not None:
                step, values = ready
                ready = None
                yield replace(step, values=values.result())

        while block := _block(pending, _TOGETHER if len(engine.groups) > 1 else 1, memory * _ROOM):
            longest = max((feeds for feeds, _ in block), key=_bytes)
            if _bytes(longest) > _LONGER * planned:
                yield from finished()
                engine.plan(longest, memory // _COPIES)
                planned = _bytes(longest)
            for place, group in enumerate(engine.groups):
                if place != engine.opened:
                    yield from finished()  # before its engine is closed
                first = seen
                run = engine.open(place).run
                for feeds, count in block:
                    future = pool.submit(run, feeds)
                    yield from finished()
                    ready = Computed(group, feeds, first, count, place == len(engine.groups) - 1), future
                    first += count
            seen = first
        yield from finished()


def _block(pending: Iterator[tuple[Feeds, int]], most: int, room: float) -> list[tuple[Feeds, int]]:
    """The next steps: so many, or as many as there is room for, and one at least where there is one."""
    block: list[tuple[Feeds, int]] = []
    for step in islice(pending, most):
        block.append(step)
        room -= _bytes(step[0])
        if room <= 0:
            break
    return block


def _bytes(feeds: Feeds) -> int:
    return sum(array.nbytes for array in feeds.values())


class _Engine:
    """The engine of one group of activations after another."""

    def __init__(self, model: ir.Model, names: list[str], folder: Path, open_runner: OpenRunner) -> None:
        self.groups: list[list[str]] = []
        self.opened: int | None = None
        """Which group's is open."""
        self._model, self._names, self._folder, self._open = model, names, folder, open_runner
        self._weightless: ir.Model | None = None
        self._stack = ExitStack()
        self._runner: Runner | None = None

    def plan(self, feeds: Feeds, budget: int) -> None:
        """Divide the activations into groups that each fit the budget in bytes on such feeds."""
        groups = split(self._names, sizes(self._model, feeds, self._names, open_runner=self._open), budget)
        if groups != self.groups:
            self.close()
            self.groups = groups

    def open(self, place: int) -> Runner:
        """The engine of a group, and no other; of a single one it stays open."""
        if self._runner is None or self.opened != place:
            self.close()
            path = self._save(self.groups[place])
            # The memory that is allowed is that of one step: an engine that keeps what it once had takes more.
            self._runner = self._stack.enter_context(self._open(path, frugal=len(self.groups) > 1))
            self.opened = place
        return self._runner

    def _save(self, group: list[str]) -> Path:
        """Several groups share one file of weights."""
        import onnx_ir as ir

        if self._weightless is None and len(self.groups) > 1:
            copy = self._model.clone()
            self._weightless = ir.external_data.unload_from_model(
                copy, self._folder, "weights.data", size_threshold_bytes=_SMALL
            )
        return with_outputs(self._weightless or self._model, group, self._folder / "group.onnx", apart=self._names)

    def close(self) -> None:
        """Close what is open."""
        self._runner = self.opened = None
        self._stack.close()


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


def split(names: list[str], known: Mapping[str, int], budget: int) -> list[list[str]]:
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
