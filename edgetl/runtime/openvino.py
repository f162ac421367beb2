"""OpenVINO as a :class:`edgetl.runtime.runner.Runner`."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import ModelError, ProviderError, not_imported
from edgetl.runtime import products
from edgetl.runtime._ov_request import Request
from edgetl.runtime.runner import EngineNode, Placement, Tensors, TensorSpec, check_feeds

_DTYPES = {"f32": "float32", "f16": "float16", "u8": "uint8", "i8": "int8", "i32": "int32", "i64": "int64"}

_PRECISIONS = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "u8": "int8", "i8": "int8"}

_NOT_EXECUTED = "not_executed"

_FEW_ROWS, _NARROW = 16, 256
"""Of a product of matrices: fewer rows, and no more columns of either, than where OpenVINO joins such products."""

_CAPABILITIES = {"f32": "FP32", "bf16": "BF16", "f16": "FP16"}


class OpenVinoRunner:
    """A model file that OpenVINO reads (.xml or .onnx), compiled for one device.

    A graph of which the batch alone is dynamic is compiled for a batch of one, which runs some percent faster than
    where every node has to ask for its shape; for other batches it is compiled once more when the first one comes. One
    that makes no sense of a single sample is compiled for every batch.

    Args:
        model: The file.
        device: OpenVINO's name, as "CPU" or "GPU".
        inference_precision: "f32", "bf16" or "f16": what float layers run in. Without it OpenVINO takes bf16
            wherever the processor can, and says nothing.
        threads: Inference threads; None: OpenVINO's choice.

    Raises:
        MissingExtraError: openvino is not installed.
        ProviderError: The device is not on this machine, or cannot run the precision.
        ModelError: OpenVINO cannot read or compile the file.
    """

    def __init__(
        self, model: Path, *, device: str = "CPU", inference_precision: str = "f32", threads: int | None = None
    ) -> None:
        self._device = device
        reason = why_no_device(device, inference_precision)
        if reason:
            raise ProviderError(reason, hint="edgetl doctor")
        self._settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": inference_precision,
            "NUM_STREAMS": "1",
        }
        if threads:
            self._settings["INFERENCE_NUM_THREADS"] = str(threads)
        self._core, self._model = core(), model
        graph = self._read()
        self._operators = {op.get_friendly_name(): op.get_type_name() for op in graph.get_ops()}
        self._inputs = tuple(_spec(port) for port in graph.inputs)
        self._outputs = tuple(_spec(port) for port in graph.outputs)
        self._single = _batch_of_one(self._inputs)
        try:
            compiled = self._compiled(graph, bool(self._single), {})
        except ModelError:
            if not self._single:
                raise
            self._single = {}
            compiled = self._compiled(self._read(), False, {})
        self._engines = {bool(self._single): (compiled, self._request_of(compiled))}
        self._output_names = tuple(spec.name for spec in self._outputs)
        self._recent: Request | None = None
        """Of the last inference."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The model's inputs."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The model's outputs."""
        return self._outputs

    def run(self, feeds: Tensors) -> dict[str, NDArray[np.generic]]:
        """One synchronous inference; see :meth:`edgetl.runtime.runner.Runner.run`.

        Whatever Python does here, it does right after a network swept the caches, at several times the price of an idle
        call: what was checked once is not checked again while the same arrays come.
        """
        request = self._recent
        if request is None or not request.holds(feeds):
            check_feeds(feeds, self._inputs)
            request = self._recent = self._engine(feeds)[1]
        return dict(zip(self._output_names, self._infer(request, feeds), strict=True))

    @property
    def latency_ms(self) -> float:
        """What OpenVINO's own clock says of the last :meth:`run`: without checks, the call, and copies of the outputs.

        It is what OpenVINO's benchmark_app tells. NaN before the first one.
        """
        return self._recent.latency_ms if self._recent is not None else math.nan

    def placement(self) -> Placement:
        """The nodes of OpenVINO's own executed graph, by operator and the precision that it really runs in."""
        executed = self._executed(self._zeros())
        kinds = Counter(f"{_info(op, 'layerType')}:{_info(op, 'runtimePrecision')}" for op in executed)
        return Placement.of(self._device, self._nodes(executed), kinds=kinds)

    def nodes(self) -> tuple[EngineNode, ...]:
        """The nodes of OpenVINO's own executed graph, in the order of their execution.

        Found after one inference on zeros, with every dynamic dimension 1: until then a graph with a dynamic batch has
        no shapes.
        """
        return self._nodes(self._executed(self._zeros()))

    def profile(self, feeds: Tensors, *, runs: int) -> tuple[EngineNode, ...]:
        """The nodes as they run on some inputs; see :meth:`edgetl.runtime.runner.Profiled.profile`."""
        check_feeds(feeds, self._inputs)
        compiled = self._compiled(self._read(), self._is_single(feeds), {"PERF_COUNT": True})
        request = self._request_of(compiled)
        nodes = self._nodes(self._executed(feeds, (compiled, request)))
        times: dict[str, list[float]] = defaultdict(list)
        for turn in range(runs // 2 + 1 + runs):
            self._infer(request, feeds)
            if turn > runs // 2:
                for found in request.profile():
                    times[found.node_name].append(found.real_time.total_seconds() * 1e3)
        return tuple(
            replace(node, time_ms=float(np.median(times[node.name]))) if node.name in times else node for node in nodes
        )

    def _read(self) -> Any:
        try:
            return self._core.read_model(self._model)
        except RuntimeError as error:
            raise ModelError(f"OpenVINO cannot read {self._model.name}: {error}") from error

    def _is_single(self, feeds: Tensors) -> bool:
        single = self._single
        return bool(single) and all(feeds[name].shape == shape for name, shape in single.items())

    def _engine(self, feeds: Tensors) -> tuple[Any, Request]:
        """What the graph is compiled to for inputs of these shapes, and its request."""
        single = self._is_single(feeds)
        if single not in self._engines:
            compiled = self._compiled(self._read(), single, {})
            self._engines[single] = compiled, self._request_of(compiled)
        return self._engines[single]

    def _compiled(self, graph: Any, single: bool, settings: dict[str, Any]) -> Any:
        """A graph of the file, compiled for a batch of one, which changes it, or for every shape."""
        try:
            if single:
                graph.reshape({name: list(shape) for name, shape in self._single.items()})
            if self._device == "CPU" and _joins_products(graph):
                settings = {"SNIPPETS_MODE": "DISABLE", **settings}
            return self._core.compile_model(graph, self._device, {**self._settings, **settings})
        except RuntimeError as error:
            raise ModelError(f"OpenVINO cannot compile {self._model.name}: {error}") from error

    def _infer(self, request: Request, feeds: Tensors) -> tuple[NDArray[np.generic], ...]:
        """Outputs in the model's order, copied out of the request's memory."""
        try:
            return request.infer(feeds)
        except RuntimeError as error:
            raise ModelError(f"OpenVINO failed on {self._model.name}: {error}") from error

    def _request_of(self, compiled: Any) -> Request:
        return Request(compiled, [spec.name for spec in self._inputs])

    def _zeros(self) -> dict[str, NDArray[np.generic]]:
        return {
            spec.name: np.zeros([size if isinstance(size, int) else 1 for size in spec.shape], dtype=spec.dtype)
            for spec in self._inputs
        }

    def _executed(self, feeds: Tensors, engine: tuple[Any, Request] | None = None) -> list[Any]:
        """Operators of the executed graph, without constants, and without what only constants are fed to."""
        compiled, request = engine or self._engine(feeds)
        self._infer(request, feeds)
        found: dict[str, Any] = {}
        inputs = {"Input", "Parameter"}
        alive: set[str] = set()
        for op in compiled.get_runtime_model().get_ordered_ops():
            name, kind = op.get_friendly_name(), _info(op, "layerType")
            if kind in inputs or alive & set(_sources(op)):
                alive.add(name)
                if kind not in inputs and kind not in ("Output", "Result"):
                    found[name] = op
        return list(found.values())

    def _nodes(self, executed: list[Any]) -> tuple[EngineNode, ...]:
        inputs = {spec.name for spec in self._inputs}
        alive = {op.get_friendly_name() for op in executed} | inputs
        return tuple(self._node(op, alive) for op in executed)

    def _node(self, op: Any, alive: set[str]) -> EngineNode:
        name = op.get_friendly_name()
        origins = tuple(part for part in _info(op, "originalLayersNames").split(",") if part)
        written = _info(op, "outputPrecisions").split(",")[0]
        precision = _info(op, "runtimePrecision")
        return EngineNode(
            name=name,
            kind=_info(op, "layerType"),
            precision=_PRECISIONS.get(precision, precision),
            multiply_adds=_multiply_adds(op),
            provider=self._device,
            inputs=tuple(source for source in _sources(op) if source in alive),
            outputs=(name,),
            output_precision=_PRECISIONS.get(written, written),
            origins=origins,
            operators=tuple(self._operators[part] for part in origins if part in self._operators),
            **_traffic(op, alive),
        )

    def __enter__(self) -> OpenVinoRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._engines, self._recent = {}, None


def why_no_device(device: str, inference_precision: str) -> str | None:
    """Why OpenVINO cannot run on a device in that precision here, in a clause; None where it can."""
    if inference_precision not in _CAPABILITIES:
        return f"OpenVINO has no inference precision {inference_precision}; it has {', '.join(_CAPABILITIES)}"
    devices = core().available_devices
    if device not in devices:
        return f"OpenVINO has no device {device} here; it has {', '.join(devices) or 'none'}"
    capabilities = {str(name) for name in core().get_property(device, "OPTIMIZATION_CAPABILITIES")}
    if _CAPABILITIES[inference_precision] not in capabilities:
        return f"this {device} does not run {inference_precision}; OpenVINO lists {', '.join(sorted(capabilities))}"
    return None


def _batch_of_one(inputs: Sequence[TensorSpec]) -> dict[str, tuple[int, ...]]:
    """Shapes of the inputs with a batch of one; none where the batch is fixed, or something else is dynamic, too."""
    if any(not spec.shape or isinstance(spec.shape[0], int) for spec in inputs):
        return {}
    if any(not isinstance(size, int) for spec in inputs for size in spec.shape[1:]):
        return {}
    return {spec.name: (1, *(int(size) for size in spec.shape[1:])) for spec in inputs}


def _joins_products(graph: Any) -> bool:
    """Whether the CPU plugin may make one kernel of several products of few rows with narrow weights.

    OpenVINO 2026.4 does that where few rows meet few threads, and with what stands between the products (a sum with an
    earlier tensor) the kernel writes where it must not: of a small network with two residual blocks the answers were
    wrong in int8, and compiling it in fp32 ended the process (with one thread and a batch of one; with two and a batch
    of eight).
    """
    found = 0
    for op in graph.get_ops():
        if op.get_type_name() == "MatMul" and op.get_output_partial_shape(0).is_static:
            rows = math.prod(_shape(op.output(0))[:-1])
            weights = op.get_input_partial_shape(1)
            narrow = weights.is_static and len(weights) == 2 and max(_shape(op.input(1))) <= _NARROW
            found += rows < _FEW_ROWS and narrow
    return found > 1


def core() -> Any:
    """The process's one ``openvino.Core``, which is there to stay.

    Every other one brings a CPU plugin that gives the thread a stack for signals, and takes it back when it goes: where
    two go in another order than they came, the next signal, Ctrl-C for one, is handled on memory that is gone, and ends
    the process (seen with OpenVINO 2026.4).

    Raises:
        MissingExtraError: openvino is not installed.
    """
    try:
        import openvino
    except ImportError as error:
        raise not_imported(error, "openvino", extra="openvino", needed_for="running an OpenVINO engine") from None
    return _core(openvino)


@cache
def _core(library: Any) -> Any:
    return library.Core()


def _spec(port: Any) -> TensorSpec:
    shape = tuple(
        int(size.get_length()) if size.is_static else ("batch" if axis == 0 else f"dim{axis}")
        for axis, size in enumerate(port.get_partial_shape())
    )
    kind = port.get_element_type().get_type_name()
    return TensorSpec(name=port.get_any_name(), shape=shape, dtype=_DTYPES.get(kind, kind))


def _info(op: Any, key: str) -> str:
    """An entry of a runtime graph's node; where a plugin leaves it out, the operator's type or "?"."""
    info = op.get_rt_info()
    if key in info:
        return str(info[key].value)
    return str(op.get_type_name()) if key == "layerType" else ("" if key == "originalLayersNames" else "?")


def _sources(op: Any) -> list[str]:
    return [port.get_source_output().get_node().get_friendly_name() for port in op.inputs()]


def _shape(port: Any) -> list[int]:
    """A shape after inference; what is dynamic even then counts as 1."""
    return [int(size.get_length()) if size.is_static else 1 for size in port.get_partial_shape()]


def _bytes(port: Any) -> int:
    """Of a tensor; of one that is not there, whose type is dynamic, none."""
    return math.prod(_shape(port)) * int(port.get_element_type().size)


def _traffic(op: Any, alive: set[str]) -> products.Traffic:
    """Bytes of a node of the runtime graph; none of one that the plugin does without."""
    if _info(op, "execTimeMcs") == _NOT_EXECUTED:
        return {"weight_bytes": 0, "activation_bytes": 0}
    read, constants = 0, 0
    for port in op.inputs():
        if port.get_source_output().get_node().get_friendly_name() in alive:
            read += _bytes(port)
        else:
            constants += _bytes(port)
    written = sum(_bytes(port) for port in op.outputs())
    return products.traffic(_info(op, "layerType"), constants=constants, read=read, written=written)


def _multiply_adds(op: Any) -> int:
    """Of a node of the runtime graph, whose inputs are the data and the weights."""
    kind = _info(op, "layerType").lower()
    shapes = [_shape(port) for port in op.inputs()]
    if len(shapes) < 2:
        return 0
    output = _shape(op.outputs()[0])
    if kind in ("convolution", "groupconvolution"):
        return products.convolution(output, shapes[1])
    if kind == "deconvolution":
        return products.transposed_convolution(shapes[0], shapes[1])
    if kind in ("fullyconnected", "matmul", "gemm"):
        return products.matrix_product(shapes[0], output)
    if kind == "scaleddotproductattention" and len(shapes) > 2:
        return products.attention(shapes[0], shapes[1], shapes[2])
    if kind in ("rnncell", "rnnseq", "grucell", "gruseq", "lstmcell", "lstmseq"):
        # Both have as many dimensions as the data: of a sequence one for the directions, of a cell none.
        weights = [shape for shape in shapes[1:] if len(shape) == len(shapes[0])][-2:]
        return products.recurrent(shapes[0], *weights) if len(weights) == 2 else 0
    return 0
