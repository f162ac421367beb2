"""A graph's values one after the other, on some samples: each node is computed once, and nothing is kept too long."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import ModelError
from edgetl.runtime.runner import Runner

if TYPE_CHECKING:
    import onnx_ir as ir

Arrays = list[NDArray[np.generic]]
"""A value on all samples, one array per batch."""


class Walk:
    """Stops at values of a graph in their order; what comes later is computed from what was found, or put, there.

    So a layer can be changed when the walk comes to it, and all that follows sees the change. Memory holds the
    activations that nodes further on still read, on all samples.

    Args:
        model: May be changed where the walk stands, and before it; see :meth:`refresh`.
        stops: Names of values, in an order in which the graph can compute them.
        batches: Feeds; each keeps its own arrays throughout, so that shapes computed in the graph stay right.
        open_runner: Opens an ONNX file.
    """

    def __init__(
        self,
        model: ir.Model,
        stops: Sequence[str],
        batches: Sequence[Mapping[str, NDArray[np.generic]]],
        *,
        open_runner: Callable[[Path], Runner],
    ) -> None:
        self._model = model
        self._stops = list(stops)
        self._batches = len(batches)
        self._open = open_runner
        self._values = {str(value.name): value for value in model.graph.inputs}
        self._values.update((str(value.name), value) for node in model.graph for value in node.outputs)
        missing = [name for name in stops if name not in self._values]
        if missing:
            raise ModelError(f"the graph has no value '{missing[0]}'")
        self._constant = _constant_nodes(model.graph)
        self._wanted: set[ir.Node] = set()
        self.refresh()
        self._done: set[ir.Node] = set()
        self._live: dict[str, Arrays] = {name: [np.asarray(batch[name]) for batch in batches] for name in batches[0]}

    def advance(self) -> Arrays:
        """The next stop's value: one array per batch, which the caller may keep.

        Raises:
            IndexError: There is no further stop.
        """
        name = self._stops.pop(0)
        if name not in self._live:
            self._run_to(name)
        found = self._live[name]
        self._drop()
        return found

    def refresh(self) -> None:
        """To be called where nodes were put into the graph, or taken out, at the stop where the walk stands."""
        self._wanted = _ancestors([self._values[name] for name in self._stops])

    def replace(self, name: str, arrays: Arrays) -> None:
        """Go on with another value at a stop; nothing happens where no node further on reads it."""
        if name in self._live:
            self._live[name] = arrays

    def _run_to(self, name: str) -> None:
        import onnx_ir as ir

        fresh = _ancestors([self._values[name]], stop=self._live) - self._done
        self._done |= fresh - self._constant
        frontier = [
            str(value.name)
            for node in fresh - self._constant
            for value in node.outputs
            if value.name != name and self._is_read_later(value)
        ]
        outputs = [name, *sorted(frontier)]
        self._model.graph.sort()
        inputs = sorted(
            {
                str(value.name)
                for node in fresh
                for value in node.inputs
                if value is not None and value.name in self._live
            }
        )
        graph = ir.convenience.extract(self._model.graph, inputs, outputs)
        for value in graph.inputs:
            array = self._live[str(value.name)][0]
            value.dtype = ir.DataType.from_numpy(array.dtype)
            value.shape = ir.Shape([None] * array.ndim)
        for value in graph.outputs:
            value.shape = None
        part = ir.Model(graph, ir_version=self._model.ir_version)
        found: dict[str, Arrays] = {output: [] for output in outputs}
        with tempfile.TemporaryDirectory(prefix="edgetl-") as folder:
            path = Path(folder) / "part.onnx"
            ir.save(part, path)
            with self._open(path) as runner:
                for index in range(self._batches):
                    results = runner.run({key: self._live[key][index] for key in inputs})
                    for output in outputs:
                        found[output].append(results[output])
        self._live.update(found)

    def _is_read_later(self, value: ir.Value) -> bool:
        return any(node in self._wanted and node not in self._done for node in value.consumers()) or (
            value.name in self._stops
        )

    def _drop(self) -> None:
        for name in [name for name in self._live if not self._is_read_later(self._values[name])]:
            del self._live[name]


def batches_of(
    samples: Iterable[Mapping[str, NDArray[np.generic]]], *, size: int, most: int, fill: bool = True
) -> list[dict[str, NDArray[np.generic]]]:
    """At most so many samples, cut into feeds of a size.

    Args:
        samples: Feeds of any batch sizes; with a size of 1, of any shapes.
        size: Of each batch; a last one with fewer is kept only where it is the only one.
        most: Samples in all.
        fill: Whether such a one is filled up with copies, as a model of a fixed batch needs it.
    """
    parts: list[dict[str, NDArray[np.generic]]] = []
    waiting: dict[str, NDArray[np.generic]] = {}
    for feeds in samples:
        waiting = {
            name: np.concatenate([waiting[name], array]) if name in waiting else np.asarray(array)
            for name, array in feeds.items()
        }
        while waiting and len(next(iter(waiting.values()))) >= size:
            parts.append({name: array[:size] for name, array in waiting.items()})
            left = {name: array[size:] for name, array in waiting.items()}
            waiting = left if len(next(iter(left.values()))) else {}  # what comes next may be of another shape
            if len(parts) * size >= most:
                return parts
    rest = len(next(iter(waiting.values()))) if waiting else 0
    if rest and not parts:
        indices = np.minimum(np.arange(size if fill else rest), rest - 1)
        parts.append({name: array[indices] for name, array in waiting.items()})
    return parts


def _ancestors(values: Iterable[ir.Value], stop: Mapping[str, object] | None = None) -> set[ir.Node]:
    """The nodes that compute some values, up to values whose names are given."""
    found: set[ir.Node] = set()
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        node = value.producer()
        if node is None or node in found or (stop is not None and value.name in stop):
            continue
        found.add(node)
        waiting.extend(other for other in node.inputs if other is not None)
    return found


def _constant_nodes(graph: ir.Graph) -> set[ir.Node]:
    """Nodes that read constants alone, as the DequantizeLinear of weights: they may be computed again anywhere."""
    found: set[ir.Node] = set()
    for node in graph:
        if all(
            value is None or value.is_initializer() or (value.producer() is not None and value.producer() in found)
            for value in node.inputs
        ):
            found.add(node)
    return found
