"""Engines opened up: the tensors that can be looked at without making another engine of it, and the scales in it.

A tensor that is put out can no longer be fused away: an engine with more outputs may be another engine. Looked at are
therefore tensors that an engine keeps anyway, at the borders of what it fuses: the integers of a quantized activation,
and what a convolution or a matrix product reads. Whether that held is for the caller to see, from the outputs: those of
the engine that is looked into must be those of the engine itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgetl.backends.base import EngineRecord
from edgetl.runtime.runner import Runner, Tensors

WEIGHTED = frozenset({
    "Conv", "ConvTranspose", "Gemm", "MatMul", "MatMulInteger", "ConvInteger", "LSTM", "GRU", "DynamicQuantizeLSTM",
    "Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData", "LSTMSequence",
    "GRUSequence",
})  # fmt: skip
"""Operators with weights, in ONNX and in OpenVINO."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """A tensor that can be looked at."""

    name: str
    """In the float graph."""
    layer: str
    """What computes it from the places before, as "Conv 'stem'"."""
    before: tuple[str, ...]
    """The nearest places that it is computed from; empty: the input."""


@dataclass(frozen=True, kw_only=True)
class Quantizer:
    """A pair around an activation."""

    tensor: str
    """What it quantizes, by its name in the float graph."""
    scale: float
    back: float
    """Scale of the DequantizeLinear."""
    low: float
    """The least value that its integers stand for."""
    shift: int
    """Steps by which the zero point of the DequantizeLinear lies below that of the QuantizeLinear: so much more is
    restored."""


@dataclass(frozen=True, kw_only=True)
class Restored:
    """Weights or a bias, with their scales applied."""

    node: str
    """Name of the layer in the float graph."""
    operator: str
    kind: str
    """weights or bias"""
    values: NDArray[np.float64]
    axis: int | None
    """Of the channels that have a scale each; None: there is one scale."""
    steps: NDArray[np.float64] | None
    """What one step of the integers is worth; broadcasts to the values. None where no scale restores them."""

    @property
    def what(self) -> str:
        """For people, as "the weights of 'stem'"."""
        return f"the {'biases' if self.kind == 'bias' else self.kind} of '{self.node}'"


class Looking(Protocol):
    """An engine, or what its graph promises, with some more outputs: a context manager."""

    def run(self, feeds: Tensors) -> dict[str, NDArray[np.float64]]:
        """One inference: the tensors that were asked for, by their names in the float graph, as real values."""

    @property
    def outputs(self) -> NDArray[np.generic]:
        """The engine's own first output in the last inference."""

    def __enter__(self) -> Looking:
        """Itself."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give back its memory."""


TOGETHER = 4
"""Places that are best looked at at once where opening an engine with more outputs takes seconds."""


class Inside(Protocol):
    """The graph that an engine was made of, and the engine."""

    @property
    def together(self) -> int:
        """Places that are best looked at at once: each look opens another engine, and each place may alter it."""

    @property
    def places(self) -> tuple[Place, ...]:
        """In an order in which they can be computed; the last is the first output."""

    @property
    def quantizers(self) -> tuple[Quantizer, ...]:
        """Of activations, in the graph's order."""

    @property
    def restored(self) -> tuple[Restored, ...]:
        """Weights and biases that are not plain float constants; zeros for a bias that a layer does not have."""

    def engine(self, names: Sequence[str]) -> Looking:
        """The engine, with some places put out.

        Args:
            names: Of places.
        """

    def promise(self, names: Sequence[str]) -> Looking:
        """Its graph computed in float, each operator by itself: quantizers round, and everything else is exact."""


_OPENERS = {
    "onnxruntime": "edgetl.backends._inside_onnx",
    "openvino": "edgetl.backends._inside_openvino",
    "tensorrt": "edgetl.backends._inside_trt",
    "tensorrt_rtx": "edgetl.backends._inside_trt",
}
_OF_A_GRAPH = ("tensorrt", "tensorrt_rtx")
"""Backends whose engines do not hold the graph that they were built from."""


def why_not(record: EngineRecord) -> str | None:
    """Why an engine's graph cannot be read, in a clause; None where it can."""
    if record.backend not in _OPENERS:
        return f"an engine of {record.backend} keeps its graph to itself"
    if record.backend in _OF_A_GRAPH and not record.graph:
        return f"the graph that this engine of {record.backend} was built from is not beside it"
    return None


def why_not_run(record: EngineRecord) -> str | None:
    """Why an engine's tensors cannot be looked at though its graph can be read, in a clause; None where they can."""
    if "dla_core" in record.options:
        return "an engine for a DLA with other outputs is divided otherwise between the DLA and the GPU"
    return None


def look_into(folder: Path, wanted: Collection[str], *, workplace: Path) -> Inside:
    """Open an engine up.

    Args:
        folder: With ``engine.json``, for which :func:`why_not` is None.
        wanted: Tensors of the float graph.
        workplace: A folder for files, which the caller removes.

    Raises:
        MissingExtraError: A library is not installed.
        ModelError: The engine's file cannot be read.
    """
    record = EngineRecord.read(folder)
    opened: Inside = import_module(_OPENERS[record.backend]).look_into(folder, record, wanted, workplace)
    return opened


# --- what both readers share ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Node:
    """An operator that reads more than constants."""

    name: str
    operator: str
    inputs: tuple[str, ...]
    """Keys of tensors, without constants."""
    outputs: tuple[str, ...]


_SILENT = frozenset({
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "FakeQuantize", "Convert", "Subtract", "Cast",
    "Identity",
})  # fmt: skip
"""Operators that name no layer, unless there is no other."""


def places_of(nodes: Iterable[Node], chosen: Mapping[str, str], last: str, output: str) -> tuple[Place, ...]:
    """Places with what lies between them, as far as an output.

    Args:
        nodes: In an order in which they can be computed.
        chosen: Key of a tensor → its name in the float graph.
        last: Key of the output.
        output: Its name.
    """
    chosen = {**chosen, last: output}
    found: dict[str, Place] = {}
    # Of each tensor: the nearest places before it, and the nodes since.
    origins: dict[str, tuple[dict[str, None], dict[str, str]]] = {}
    for node in nodes:
        before: dict[str, None] = {}
        since: dict[str, str] = {}
        for key in node.inputs:
            places, passed = origins.get(key, ({}, {}))
            before.update(places)
            since.update(passed)
        since.setdefault(node.name, node.operator)  # the Add of a bias may have the name of its convolution
        for key in node.outputs:
            if key in chosen and chosen[key] not in found:
                name = chosen[key]
                found[name] = Place(name=name, layer=_layer(since), before=tuple(before))
                origins[key] = ({name: None}, {})
            else:
                origins[key] = (before, since)
        if output in found:
            break
    return tuple(found.values())


def _layer(between: Mapping[str, str]) -> str:
    """The operators between places as one: that with weights, or the last."""
    weighted = [name for name, operator in between.items() if operator in WEIGHTED]
    loud = [name for name, operator in between.items() if operator not in _SILENT]
    name = (weighted or loud or list(between))[-1]
    return f"{between[name]} '{name}'"


def furthest(backs: Iterable[float], scale: float) -> float:
    """Of the scales that restore integers the one that is furthest from the scale that made them.

    That is one which is no scale, where there is one, and the scale itself where nothing restores them.
    """

    def apart(back: float) -> float:
        return abs(math.log(back / scale)) if 0.0 < back < math.inf and 0.0 < scale < math.inf else math.inf

    return max(backs, key=apart, default=scale)


class Outputs:
    """A runner whose further outputs are places; see :class:`Looking`.

    Args:
        runner: Opened.
        own: Name of the engine's first output in it.
        places: Place → name of its output in the runner, and what makes real values of that.
    """

    def __init__(
        self,
        runner: Runner,
        own: str,
        places: Mapping[str, tuple[str, Callable[[NDArray[np.generic]], NDArray[np.float64]]]],
    ) -> None:
        self._runner, self._own, self._places = runner, own, places
        self._last: NDArray[np.generic] = np.empty(0)

    @property
    def outputs(self) -> NDArray[np.generic]:
        """See :class:`Looking`."""
        return self._last

    def run(self, feeds: Tensors) -> dict[str, NDArray[np.float64]]:
        """See :class:`Looking`."""
        results = self._runner.run(feeds)
        self._last = results[self._own]
        return {name: real(results[output]) for name, (output, real) in self._places.items()}

    def __enter__(self) -> Outputs:
        self._runner.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.__exit__(kind, error, trace)


def plain(array: NDArray[np.generic]) -> NDArray[np.float64]:
    """What needs no scale."""
    return np.asarray(array).astype(np.float64)
