"""Into engines of OpenVINO: see :mod:`edgetl.backends.inside`.

What is read is the engine's file, OpenVINO's own form of the graph that was compiled. A pair of QuantizeLinear and
DequantizeLinear is there a FakeQuantize with what restores its integers behind it (Convert, Subtract, Multiply).
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

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
from edgetl.errors import ModelError
from edgetl.runtime.openvino import core

_RESTORES = frozenset({"Convert", "Subtract", "Multiply", "Reshape"})
"""Behind a FakeQuantize, and behind integer weights."""
_OWN = "edgetl_output"


def look_into(folder: Path, record: EngineRecord, wanted: Collection[str], workplace: Path) -> InsideOpenVino:
    """See :func:`edgetl.backends.inside.look_into`."""
    precision = str(record.options.get("inference_precision", "f32"))
    return InsideOpenVino(
        folder / record.files[0], wanted, workplace, device=record.provider, inference_precision=precision
    )


class InsideOpenVino:
    """An OpenVINO model; see :class:`edgetl.backends.inside.Inside`.

    Args:
        model: The file.
        wanted: Tensors of the float graph.
        workplace: Where files with more outputs go.
        device: Of the engine; the promise is always computed on the processor.
        inference_precision: Of the engine; the promise is computed in float32.
    """

    together = TOGETHER

    def __init__(
        self, model: Path, wanted: Collection[str], workplace: Path, *, device: str, inference_precision: str
    ) -> None:
        self._model, self._workplace = model, workplace
        self._device, self._precision = device, inference_precision
        graph = self._read()
        self._own = graph.outputs[0].get_any_name()
        self._ports = dict(_ports(graph, set(wanted) - {self._own}))
        result = graph.outputs[0].get_node().input_value(0)
        chosen = {_key(port): name for name, port in self._ports.items()}
        self.places: tuple[Place, ...] = places_of(_nodes(graph), chosen, _key(result), self._own)
        self.quantizers: tuple[Quantizer, ...] = tuple(_quantizers(graph))
        self.restored: tuple[Restored, ...] = tuple(_restored(graph))

    def engine(self, names: Sequence[str]) -> Looking:
        """See :class:`edgetl.backends.inside.Inside`."""
        return self._open(self._read(), names, device=self._device, precision=self._precision)

    def promise(self, names: Sequence[str]) -> Looking:
        """See :class:`edgetl.backends.inside.Inside`."""
        graph = self._read()
        return self._open(graph, names, device="CPU", precision="f32", in_float=True)

    def _open(
        self,
        graph: Any,
        names: Sequence[str],
        *,
        device: str,
        precision: str,
        in_float: bool = False,
    ) -> Looking:
        import openvino

        from edgetl.runtime.openvino import OpenVinoRunner

        ports = dict(_ports(graph, set(names)))
        outputs: dict[str, tuple[str, Callable[[NDArray[np.generic]], NDArray[np.float64]]]] = {}
        for place, name in enumerate(names):
            if name == self._own:
                outputs[name] = self._own, plain
                continue
            port = ports[name]
            outputs[name] = f"edgetl_{place}", partial(_without, _offset(port))
            port.set_names({f"edgetl_{place}"})
            graph.add_outputs(port)
        if in_float:
            _in_float(graph)
        path = self._workplace / f"{uuid.uuid4().hex}.xml"
        openvino.save_model(graph, path, compress_to_fp16=False)
        runner = OpenVinoRunner(path, device=device, inference_precision=precision)
        return Outputs(runner, self._own, outputs)

    def _read(self) -> Any:
        try:
            return core().read_model(self._model)
        except RuntimeError as error:
            raise ModelError(f"OpenVINO cannot read {self._model.name}: {error}") from error


def _key(port: Any) -> str:
    return f"{port.get_node().get_friendly_name()}:{port.get_index()}"


def _ports(graph: Any, wanted: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Tensors of the float graph → the port with what the engine keeps of them, as real values."""
    for op in graph.get_ordered_ops():
        for port in op.outputs():
            names = port.get_names() & wanted if op.get_type_name() != "Parameter" else port.get_names()
            quantizer = _quantizer_behind(port)
            for name in sorted(names)[:1]:
                if quantizer is not None:
                    yield name, _restored_port(quantizer)
                elif op.get_type_name() != "Parameter" and _is_kept(port):
                    yield name, port


def _quantizer_behind(port: Any) -> Any:
    for target in port.get_target_inputs():
        op = target.get_node()
        if op.get_type_name() == "FakeQuantize" and target.get_index() == 0:
            return op
    return None


def _restored_port(quantizer: Any) -> Any:
    """The end of what restores the integers of a FakeQuantize; the first, where each reader has one of its own."""
    restoring = _restoring(quantizer)[0]
    return (restoring[-1] if restoring else quantizer).output(0)


def _restoring(op: Any) -> list[list[Any]]:
    """The operators that restore the integers of a FakeQuantize, once for each end; what multiplies is the last."""
    readers = [target.get_node() for target in op.output(0).get_target_inputs()]
    if op.get_type_name() == "Multiply" or not readers or not all(map(_restores, readers)):
        return [[]]
    return [[reader, *behind] for reader in readers for behind in _restoring(reader)]


def _restores(op: Any) -> bool:
    """Whether it is one of them: a constant operation on one tensor."""
    constants = (_array(op.input_value(place)) for place in range(1, op.get_input_size()))
    return op.get_type_name() in ("Convert", "Subtract", "Multiply") and all(each is not None for each in constants)


def _offset(port: Any) -> float:
    """What is added to a tensor on its way through a pair, a multiple of its scale: a zero point in a bias behind it.

    0 where a port is not the end of a pair.
    """
    quantizer, factor, zero = port.get_node(), 1.0, 0.0
    while quantizer.get_type_name() in ("Convert", "Subtract", "Multiply") and quantizer.get_input_size() > 0:
        constant = _array(quantizer.input_value(1)) if quantizer.get_input_size() > 1 else None
        if constant is not None:
            number = float(constant.reshape(-1)[0])
            factor, zero = (factor * number, zero) if quantizer.get_type_name() == "Multiply" else (factor, number)
        quantizer = quantizer.input_value(0).get_node()
    if quantizer.get_type_name() != "FakeQuantize":
        return 0.0
    edges = [_array(quantizer.input_value(place)) for place in range(1, 5)]
    if any(edge is None or edge.size != 1 for edge in edges):
        return 0.0
    low, high, out_low, _ = (float(edge.reshape(-1)[0]) for edge in edges if edge is not None)
    scale = (high - low) / (float(quantizer.get_attributes()["levels"]) - 1.0)
    return _steps((out_low - zero) * factor - low, scale) * scale


def _steps(value: float, scale: float) -> int:
    """So many steps; 0 where it cannot be told, as with a scale that is none."""
    steps = value / scale if scale else math.nan
    return round(steps) if math.isfinite(steps) else 0


def _without(offset: float, array: NDArray[np.generic]) -> NDArray[np.float64]:
    return plain(array) - offset


def _is_kept(port: Any) -> bool:
    readers = [target.get_node().get_type_name() for target in port.get_target_inputs()]
    return any(kind in WEIGHTED or kind == "Result" for kind in readers)


def _nodes(graph: Any) -> Iterator[Node]:
    alive = {_key(op.output(0)) for op in graph.get_parameters()}
    restoring = {
        each.get_friendly_name()
        for op in graph.get_ordered_ops()
        if op.get_type_name() == "FakeQuantize"
        for chain in _restoring(op)
        for each in chain
    }
    for op in graph.get_ordered_ops():
        inputs = tuple(key for key in map(_key, op.input_values()) if key in alive)
        if inputs and op.get_type_name() != "Result":
            outputs = tuple(_key(port) for port in op.outputs())
            alive.update(outputs)
            kind = "DequantizeLinear" if op.get_friendly_name() in restoring else op.get_type_name()
            yield Node(name=_layer_name(op), operator=kind, inputs=inputs, outputs=outputs)


def _layer_name(op: Any) -> str:
    return str(op.get_friendly_name()).removesuffix("/WithoutBiases")


def _quantizers(graph: Any) -> Iterator[Quantizer]:
    for op in graph.get_ordered_ops():
        if op.get_type_name() != "FakeQuantize" or _array(op.input_value(0)) is not None:
            continue
        edges = [_array(op.input_value(place)) for place in range(1, 5)]
        if any(edge is None or edge.size != 1 for edge in edges):
            continue  # with a scale per channel
        low, high, out_low, out_high = (float(edge.reshape(-1)[0]) for edge in edges if edge is not None)
        steps = float(op.get_attributes()["levels"]) - 1.0
        scale = (high - low) / steps
        ends = [(chain[-1] if chain else op) for chain in _restoring(op)]
        backs = [(out_high - out_low) / steps * _factor(end) for end in ends]
        shifts = [_steps(_offset(end.output(0)), scale) for end in ends]
        name = min(op.input_value(0).get_names(), default=op.input_value(0).get_node().get_friendly_name())
        yield Quantizer(
            tensor=str(name),
            scale=scale,
            back=furthest(backs, scale),
            low=low,
            shift=max(shifts, key=abs),
        )


def _factor(end: Any) -> float:
    """By which the last operator that restores integers multiplies."""
    return float(np.asarray(_array(end.input_value(1))).reshape(-1)[0]) if end.get_type_name() == "Multiply" else 1.0


def _restored(graph: Any) -> Iterator[Restored]:
    for op in graph.get_ordered_ops():
        if op.get_type_name() not in WEIGHTED or op.get_input_size() < 2:
            continue
        port = op.input_value(1)
        found = _restored_constant(port)
        if found is not None and port.get_node().get_type_name() != "Constant":
            values, steps = found
            axis = next((place for place, size in enumerate(() if steps is None else steps.shape) if size > 1), None)
            yield Restored(
                node=_layer_name(op),
                operator=op.get_type_name(),
                kind="weights",
                values=values,
                axis=axis,
                steps=steps,
            )
            bias = _bias_behind(op)
            if bias is not None:
                yield Restored(
                    node=_layer_name(op), operator=op.get_type_name(), kind="bias", values=bias, axis=None, steps=None
                )


def _bias_behind(op: Any) -> NDArray[np.float64] | None:
    """The bias that a layer reads, zeros where it reads none; None where that cannot be told for certain.

    ONNX has it as an input of the layer; here it is added behind it. Where the zero point of what the layer reads went
    into it, it is another one on purpose.
    """
    shape = op.get_output_partial_shape(0)
    if shape.rank.is_dynamic or _offset(op.input_value(0)) != 0.0:
        return None
    channels = shape[-1 if op.get_type_name() == "MatMul" else 1]
    if channels.is_dynamic:
        return None
    behind, added = op, None
    while (reader := _only_reader(behind)) is not None:
        other = reader.input_value(1) if reader.get_input_size() == 2 else None
        if other is None or reader.get_type_name() not in ("Multiply", "Add"):
            break
        if reader.get_type_name() == "Add":
            added = _row(other)
            break
        if not _is_one(other):
            return None
        behind = reader  # Gemm's alpha
    if str(op.get_friendly_name()) == _layer_name(op):
        # An Add of its own behind a layer without a bias may be one that a tool took off it.
        return np.zeros(channels.get_length()) if added is None else None
    if added is None or added.size not in (1, channels.get_length()):
        return None
    return np.broadcast_to(added, channels.get_length())


def _only_reader(op: Any) -> Any:
    """What reads the values of an operator, at the first place; None where that is more than one."""
    readers = [each for each in op.output(0).get_target_inputs() if each.get_node().get_type_name() != "ShapeOf"]
    return readers[0].get_node() if len(readers) == 1 and readers[0].get_index() == 0 else None


def _row(port: Any) -> NDArray[np.float64] | None:
    """A constant as one row, also in another shape or multiplied by 1 (Gemm's beta)."""
    op = port.get_node()
    kind = op.get_type_name()
    if kind == "Constant":
        return np.asarray(op.data).astype(np.float64).ravel()
    if kind in ("Reshape", "Unsqueeze", "Convert"):
        return _row(op.input_value(0))
    if kind == "Multiply":
        one, other = op.input_values()
        return _row(other) if _is_one(one) else _row(one) if _is_one(other) else None
    return None


def _is_one(port: Any) -> bool:
    array = _array(port)
    return array is not None and array.size == 1 and float(array.reshape(-1)[0]) == 1.0


def _restored_constant(port: Any) -> tuple[NDArray[np.float64], NDArray[np.float64] | None] | None:
    """What constants come to behind Convert, Subtract, Multiply and Reshape, and their scales, if there are any."""
    op = port.get_node()
    kind = op.get_type_name()
    if kind == "Constant":
        return np.asarray(op.data).astype(np.float64), None
    if kind not in _RESTORES:
        return None
    inner = _restored_constant(op.input_value(0))
    if inner is None or kind == "Convert":
        return inner
    values, steps = inner
    if kind == "Reshape":
        # Behind the scales it makes groups, (o, i, …) → (g, o / g, i, …): channels are easier to find before it.
        static = steps is None and port.get_partial_shape().is_static
        return (values.reshape(tuple(port.get_shape())) if static else values), steps
    other = _array(op.input_value(1))
    if other is None:
        return None
    if kind == "Subtract":
        return values - other.astype(np.float64), steps
    return values * other.astype(np.float64), other.astype(np.float64)


def _array(port: Any) -> NDArray[Any] | None:
    """The value of a constant, also behind a Convert or a Reshape."""
    op = port.get_node()
    kind = op.get_type_name()
    if kind == "Constant":
        return np.asarray(op.data)
    if kind not in ("Convert", "Reshape") or not port.get_partial_shape().is_static:
        return None
    array = _array(op.input_value(0))
    return None if array is None else array.reshape(tuple(port.get_shape()))


def _in_float(graph: Any) -> None:
    """Replace what OpenVINO would compute in integers: each FakeQuantize by its formula, integer weights by real ones.

    Without a FakeQuantize none of its low-precision transformations runs.
    """
    from openvino import opset13 as opset

    for op in graph.get_ordered_ops():
        kind = op.get_type_name()
        if kind == "FakeQuantize":
            value, low, high, out_low, out_high = op.input_values()
            steps = opset.constant(np.float32(op.get_attributes()["levels"] - 1))
            kept = opset.minimum(opset.maximum(value, low), high)
            width = opset.subtract(high, low)
            stepped = opset.round(
                opset.divide(opset.multiply(opset.subtract(kept, low), steps), width), mode="half_to_even"
            )
            out_width = opset.divide(opset.subtract(out_high, out_low), steps)
            _replace(op, opset.add(opset.multiply(stepped, out_width), out_low))
        elif kind == "Multiply" and op.get_output_element_type(0).get_type_name() == "f32":
            found = _restored_constant(op.output(0))
            if found is not None:
                _replace(op, opset.constant(found[0].astype(np.float32)))


def _replace(op: Any, new: Any) -> None:
    new.output(0).set_names(op.output(0).get_names())
    for target in op.output(0).get_target_inputs():
        target.replace_source_output(new.output(0))
