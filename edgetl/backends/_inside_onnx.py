"""Into engines of ONNX Runtime, and into ONNX graphs: see :mod:`edgetl.backends.inside`."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from edgetl.backends.base import EngineRecord
from edgetl.backends.inside import (
    TOGETHER,
    WEIGHTED,
    Looking,
    Node,
    Outputs,
    Place,
    Quantizer,
    Restored,
    furthest,
    places_of,
    plain,
)
from edgetl.backends.onnx_file import read_onnx
from edgetl.runtime.runner import Runner

if TYPE_CHECKING:
    import onnx_ir as ir

_RESTORES = frozenset({"DequantizeLinear", "Cast", "Transpose", "Reshape", "Identity"})
"""Between the constants of an engine's graph and the layer that reads them."""
_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_CONSTANTS = ((1, "weights"), (2, "bias"))


def look_into(folder: Path, record: EngineRecord, wanted: Collection[str], workplace: Path) -> InsideOnnx:
    """See :func:`edgetl.backends.inside.look_into`."""
    return InsideOnnx(folder / record.files[0], wanted, workplace, provider=record.provider)


class InsideOnnx:
    """An ONNX file on ONNX Runtime; see :class:`edgetl.backends.inside.Inside`.

    Args:
        model: The file.
        wanted: Tensors of the float graph.
        workplace: Where files with more outputs go.
        provider: Execution provider of the engine; the promise is always computed on the processor.

    Attributes:
        tensors: Names of all float tensors.
        constants: Name of a layer (of one that computes an output also that output's) and "weights" or "bias" → what
            it reads, float64, scales applied.
    """

    together = TOGETHER

    def __init__(
        self, model: Path, wanted: Collection[str], workplace: Path, *, provider: str = "CPUExecutionProvider"
    ) -> None:
        self._workplace, self._provider = workplace, provider
        self._model = _read(model)
        graph = self._model.graph
        self._own = str(graph.outputs[0].name)
        self._fetched = {name: fetch for name, fetch in _fetches(graph, wanted) if name != self._own}
        self.tensors: tuple[str, ...] = tuple(str(value.name) for value in _values(graph) if _is_float(value))
        self.constants = dict(_constants(graph))
        chosen = {key: name for name, (key, _) in self._fetched.items()}
        self.places: tuple[Place, ...] = places_of(_nodes(graph), chosen, self._own, self._own)
        self.quantizers: tuple[Quantizer, ...] = tuple(_quantizers(graph))
        self.restored: tuple[Restored, ...] = tuple(_restored(graph))

    def engine(self, names: Sequence[str]) -> Looking:
        """See :class:`edgetl.backends.inside.Inside`."""
        return self._open(names, self._engine)

    def promise(self, names: Sequence[str]) -> Looking:
        """See :class:`edgetl.backends.inside.Inside`."""

        def unoptimised(graph: Path, *, more: bool) -> Runner:
            del more
            return _session(graph, "CPUExecutionProvider", optimise=False)

        return self._open(names, unoptimised)

    def _engine(self, graph: Path, *, more: bool) -> Runner:
        """Open the engine.

        Args:
            graph: The engine's, with the outputs that are asked for; it is deleted afterwards.
            more: Whether there are more than its own.
        """
        del more
        return _session(graph, self._provider, optimise=True)

    def _open(self, names: Sequence[str], opens: _Opens) -> Looking:
        import onnx_ir as ir

        model = self._model.clone()
        values = {str(value.name): value for value in _values(model.graph)}
        places: dict[str, tuple[str, Callable[[NDArray[np.generic]], NDArray[np.float64]]]] = {}
        for name in names:
            key, real = self._fetched.get(name, (name, plain))
            places[name] = key, real
            if not values[key].is_graph_output():
                model.graph.outputs.append(values[key])
        path = self._workplace / f"{uuid.uuid4().hex}.onnx"
        ir.save(model, path)
        try:
            runner = opens(path, more=len(model.graph.outputs) > len(self._model.graph.outputs))
        finally:
            path.unlink()  # whatever opens it has read all of it
        return Outputs(runner, self._own, places)


class _Opens(Protocol):
    def __call__(self, graph: Path, *, more: bool) -> Runner: ...


def _session(graph: Path, provider: str, *, optimise: bool) -> Runner:
    from edgetl.runtime.onnxruntime import OnnxRuntimeRunner

    return OnnxRuntimeRunner(graph, provider=provider, optimise=optimise)


def _read(path: Path) -> ir.Model:
    model = read_onnx(path)
    import onnx_ir.passes.common as passes

    passes.ShapeInferencePass()(model)
    model.graph.sort()
    return model


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    for node in graph:
        yield from node.outputs


def _fetches(
    graph: ir.Graph, wanted: Collection[str]
) -> Iterator[tuple[str, tuple[str, Callable[[NDArray[np.generic]], NDArray[np.float64]]]]]:
    """Tensors of the float graph that the engine keeps: name → what is put out, and what makes real values of it."""
    names = set(wanted)
    for value in _values(graph):
        name = str(value.name)
        quantize = next((node for node in value.consumers() if _is_pair(node)), None)
        if quantize is not None and (name in names or value.is_graph_input()):
            yield name, (str(quantize.outputs[0].name), _real(quantize))
        elif name in names and not value.is_graph_input() and _is_float(value) and _is_kept(value):
            yield name, (name, plain)


def _is_pair(node: ir.Node) -> bool:
    """Whether it quantizes with one scale, and something restores it."""
    if node.op_type != "QuantizeLinear" or not node.outputs[0].consumers():
        return False
    scale = _array(node.inputs[1])
    return scale is not None and scale.size == 1


def _is_float(value: ir.Value) -> bool:
    import onnx_ir as ir

    return value.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def _is_kept(value: ir.Value) -> bool:
    """Whether an engine has it in memory anyway: an output, or read by a layer with weights."""
    readers = list(value.consumers())
    for node in list(readers):
        if node.op_type in ("DynamicQuantizeLinear", "Cast"):
            readers += node.outputs[0].consumers()
    return value.is_graph_output() or any(node.op_type in WEIGHTED for node in readers)


def _real(quantize: ir.Node) -> Callable[[NDArray[np.generic]], NDArray[np.float64]]:
    """From the integers behind a QuantizeLinear to what its DequantizeLinear makes of them."""
    back = next((node for node in quantize.outputs[0].consumers() if node.op_type == "DequantizeLinear"), quantize)
    scale = float(np.asarray(_array(back.inputs[1])).reshape(-1)[0])
    # Of the quantizer: where a bias behind the pair holds its zero point, there is none in the DequantizeLinear.
    zero = _array(quantize.inputs[2]) if len(quantize.inputs) > 2 else None
    offset = float(zero.reshape(-1)[0]) if zero is not None else 0.0
    return lambda integers: (integers.astype(np.float64) - offset) * scale


def _nodes(graph: ir.Graph) -> Iterator[Node]:
    alive = {str(value.name) for value in graph.inputs}
    for node in graph:
        inputs = tuple(str(value.name) for value in node.inputs if value is not None and str(value.name) in alive)
        if inputs:
            outputs = tuple(str(value.name) for value in node.outputs)
            alive.update(outputs)
            yield Node(name=node.name or outputs[0], operator=node.op_type, inputs=inputs, outputs=outputs)


def _quantizers(graph: ir.Graph) -> Iterator[Quantizer]:
    for node in graph:
        source = node.inputs[0] if node.inputs else None
        if source is None or not _is_pair(node) or _array(source) is not None:
            continue
        scale = float(np.asarray(_array(node.inputs[1])).reshape(-1)[0])
        backs = [other for other in node.outputs[0].consumers() if other.op_type == "DequantizeLinear"]
        scales = [float(array.reshape(-1)[0]) for other in backs if (array := _array(other.inputs[1])) is not None]
        back = furthest(scales, scale)
        zero, least = _zero_point(node)
        shifts = [zero - _zero_point(other)[0] for other in backs]
        yield Quantizer(
            tensor=_float_name(source),
            scale=scale,
            back=back,
            low=(least - zero) * scale,
            shift=max(shifts, key=abs, default=0),
        )


def _zero_point(node: ir.Node) -> tuple[int, int]:
    """The zero point of a quantizer, and the least integer of its type: without one, ONNX quantizes to uint8."""
    array = _array(node.inputs[2]) if len(node.inputs) > 2 else None
    return (0, 0) if array is None else (int(array.reshape(-1)[0]), int(np.iinfo(array.dtype).min))


def _float_name(value: ir.Value) -> str:
    """The name in the float graph: an output of the graph that is quantized gave its name to what is restored."""
    for node in value.consumers():
        for back in node.outputs[0].consumers() if node.op_type == "QuantizeLinear" else ():
            if back.op_type == "DequantizeLinear" and back.outputs[0].is_graph_output():
                return str(back.outputs[0].name)
    return str(value.name)


def _restored(graph: ir.Graph) -> Iterator[Restored]:
    for node, kind, value in _weighted_inputs(graph):
        found = _constant(value) if value.producer() is not None else None
        if found is not None:
            yield Restored(
                node=str(node.name),
                operator=node.op_type,
                kind=kind,
                values=found.values,
                axis=found.axis,
                steps=found.steps,
            )
        if found is not None and kind == "weights" and found.axis is not None and len(node.inputs) == 2:
            # Where the float graph has one, it is zero here.
            none = np.zeros(found.values.shape[found.axis])
            yield Restored(node=str(node.name), operator=node.op_type, kind="bias", values=none, axis=None, steps=None)


def _constants(graph: ir.Graph) -> Iterator[tuple[tuple[str, str], NDArray[np.float64]]]:
    found = [(node, kind, _constant(value)) for node, kind, value in _weighted_inputs(graph)]
    # OpenVINO calls the layer that computes an output by the name of that.
    names = {(str(node.outputs[0].name), kind): one for node, kind, one in found if node.outputs[0].is_graph_output()}
    names.update({(str(node.name), kind): one for node, kind, one in found})
    yield from ((key, one.values) for key, one in names.items() if one is not None)


def _weighted_inputs(graph: ir.Graph) -> Iterator[tuple[ir.Node, str, ir.Value]]:
    for node in graph:
        for place, kind in _CONSTANTS if node.op_type in _PRODUCTS else ():
            value = node.inputs[place] if len(node.inputs) > place else None
            if value is not None:
                yield node, kind, value


class _Constant(NamedTuple):
    """What constants come to."""

    values: NDArray[np.float64]
    axis: int | None = None
    """Of the scales, where there are several."""
    steps: NDArray[np.float64] | None = None
    """Scales of a DequantizeLinear, as they broadcast to the values."""


def _constant(value: ir.Value) -> _Constant | None:
    """What constants come to behind a DequantizeLinear."""
    node = value.producer()
    if node is None:
        array = _array(value)
        return None if array is None else _Constant(array.astype(np.float64))
    if node.op_type not in _RESTORES or node.inputs[0] is None:
        return None
    inner = _constant(node.inputs[0])
    if inner is None or node.op_type in ("Cast", "Identity"):
        return inner
    if node.op_type != "DequantizeLinear":
        return None  # its channels would be elsewhere
    scale = _array(node.inputs[1])
    zero = _array(node.inputs[2]) if len(node.inputs) > 2 else None
    if scale is None or scale.ndim > 1:
        return None  # in blocks
    integers = inner.values
    axis = _axis(node) % max(integers.ndim, 1) if scale.size > 1 else None
    shape = [-1 if place == axis else 1 for place in range(integers.ndim)]
    offset = zero.astype(np.float64).reshape(shape) if zero is not None else 0.0
    steps = scale.astype(np.float64).reshape(shape)
    return _Constant((integers - offset) * steps, axis, steps)


def _axis(node: ir.Node) -> int:
    given = node.attributes.get("axis")
    return given.as_int() if given is not None else 1


def _array(value: ir.Value | None) -> NDArray[Any] | None:
    if value is None or value.const_value is None:
        return None
    return value.const_value.numpy()
