"""Run an engine of TensorRT 10, TensorRT 11 or TensorRT-RTX on an NVIDIA GPU.

The three libraries share one API; what differs is the name under which they are imported. Device memory and the stream
are held through cuda-python. An engine is executable code: check its hash and signature before it comes here.
"""

from __future__ import annotations

import importlib
import re
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import replace
from math import prod
from pathlib import Path
from types import MappingProxyType, ModuleType, TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import MissingExtraError, ProviderError, TargetError, UsageError
from edgetl.runtime.cuda import Cuda, stream_handle
from edgetl.runtime.nvidia import this_machine
from edgetl.runtime.runner import EngineNode, Placement, Tensors, TensorSpec, check_feeds
from edgetl.runtime.trt_layers import layer_kinds, layer_nodes

Library = Literal["tensorrt", "tensorrt_rtx"]
TITLES: dict[Library, str] = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
_EXTRAS: dict[Library, str] = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}

# trt.DataType → NumPy. BF16, FP8, INT4 and FP4 have no NumPy type: an engine with such an input is refused.
_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}
_PROVIDER = re.compile(r"(?:gpu|cuda)(?::(\d+))?", re.IGNORECASE)
_LOGGERS: dict[str, Any] = {}


def device_index(provider: str) -> int:
    """The CUDA device that a target's provider names.

    Args:
        provider: "gpu", "gpu:1", "cuda" or "cuda:1".

    Returns:
        The CUDA device ordinal, 0 where none is named.

    Raises:
        TargetError: The provider is something else, such as a DLA core.
    """
    match = _PROVIDER.fullmatch(provider)
    if match is None:
        raise TargetError(
            f"TensorRT engines are made for a GPU; the target asks for the provider '{provider}'",
            hint='write provider = "gpu" (or "gpu:1" for the second one) in the target\'s file',
        )
    return int(match.group(1) or 0)


def import_library(library: Library, *, needed_for: str) -> ModuleType:
    """Import TensorRT or TensorRT-RTX; loading it needs no driver, most of what it does needs one.

    Args:
        library: Which of the two.
        needed_for: What is being done, for the message.

    Returns:
        The module with ``Builder``, ``Runtime`` and the rest.

    Raises:
        MissingExtraError: It is not installed.
        ProviderError: It is installed, and its shared libraries cannot be loaded.
    """
    try:
        if library == "tensorrt":
            return importlib.import_module("tensorrt")
        # The wheels keep the shared libraries in a package of their own, which loads them when imported.
        importlib.import_module("tensorrt_rtx_libs")
        return importlib.import_module("tensorrt_rtx_bindings")
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or library, extra=_EXTRAS[library], needed_for=needed_for) from None
    except (ImportError, OSError) as error:
        raise ProviderError(f"{TITLES[library]} is installed, but cannot be loaded: {error}") from error


def logger_of(trt: ModuleType) -> Any:
    """The one logger of a library in this process; it keeps warnings and errors, and prints nothing.

    One for the process, because TensorRT registers the first logger globally, ignores later ones while any object
    lives, and may call it for as long.

    Args:
        trt: The imported library.

    Returns:
        An ``ILogger`` with ``drain() -> list[tuple[str, str]]``: severity name and message, since the last call.
    """
    if trt.__name__ not in _LOGGERS:

        class MessageLog(trt.ILogger):  # type: ignore[name-defined, misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)
                self.messages: deque[tuple[str, str]] = deque(maxlen=200)

            def log(self, severity: Any, message: str) -> None:
                if severity.name in ("INTERNAL_ERROR", "ERROR", "WARNING"):
                    self.messages.append((severity.name, message))

            def drain(self) -> list[tuple[str, str]]:
                messages = list(self.messages)
                self.messages.clear()
                return messages

        _LOGGERS[trt.__name__] = MessageLog()
    return _LOGGERS[trt.__name__]


class TensorRTRunner:
    """An engine on one GPU. A context manager: leaving it gives all device memory back.

    Args:
        path: The serialized engine, whose hash was checked.
        library: Which library built it.
        provider: "gpu" or "gpu:N", as in the engine's record.
        dla_core: The deep-learning accelerator that it was built for; None: it runs on the GPU alone.
        multiply_adds: Node of the ONNX graph → multiply-adds of one sample, as in the engine's record.

    Raises:
        ProviderError: No driver or GPU, no such accelerator, or the engine belongs to another TensorRT version or GPU.
        MissingExtraError: The library or cuda-python is not installed.
        TargetError: The engine has an input or output that NumPy cannot hold, or shape tensors.
    """

    def __init__(
        self,
        path: Path,
        *,
        library: Library,
        provider: str,
        dla_core: int | None = None,
        multiply_adds: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        device = device_index(provider)
        place = f"'{provider}'" + (f", DLA core {dla_core}" if dla_core is not None else "")
        machine = this_machine()
        if device >= len(machine.gpus):
            reason = machine.problem or f"this machine has {len(machine.gpus)} GPU(s)"
            raise ProviderError(
                f"cannot open {path.name} on {place}: {reason}", hint="edgetl doctor shows what this machine has"
            )
        self._provider, self._device, self._dla_core = provider, device, dla_core
        self._multiply_adds = multiply_adds
        self._trt = import_library(library, needed_for=f"opening {path.name}")
        self._log = logger_of(self._trt)
        self._cuda = Cuda(device, extra=_EXTRAS[library])
        self._buffers: dict[str, tuple[int, int]] = {}  # tensor → device address, bytes
        self._events: list[Any] = []  # made when copies are first told apart
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        with ExitStack() as stack:
            self._stream = self._cuda.call("cudaStreamCreate")
            stack.callback(self._cuda.call, "cudaStreamDestroy", self._stream)
            stack.callback(self._drop_engine)
            stack.callback(self._free_buffers)
            self._handle = stream_handle(self._stream)
            self._deserialize(path, TITLES[library])
            self._inputs, self._outputs = self._describe()
            self._resources: ExitStack | None = stack.pop_all()

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """In the engine's order."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """In the engine's order."""
        return self._outputs

    def run(self, feeds: Tensors) -> dict[str, NDArray[np.generic]]:
        """One synchronous inference: copy in, execute, copy out, wait.

        Args:
            feeds: Input name → array of the input's dtype and shape; the leading dimension is the batch.

        Returns:
            Output name → array, which the caller owns.

        Raises:
            UsageError: The feeds do not fit the inputs or the batch range, or the runner is closed.
            ProviderError: CUDA or TensorRT failed.
        """
        return self._infer(feeds, ())

    def run_apart(self, feeds: Tensors) -> tuple[dict[str, NDArray[np.generic]], dict[str, int]]:
        """One inference as :meth:`run` does it, with the time of its copies, from events in the stream.

        Returns:
            The outputs, and "host-to-device" and "device-to-host" → nanoseconds; nothing is waited for in between.
        """
        if self._resources is None:
            raise UsageError("the engine was closed")
        while len(self._events) < 4:
            self._events.append(self._cuda.call("cudaEventCreate"))
            self._resources.callback(self._cuda.call, "cudaEventDestroy", self._events[-1])
        results = self._infer(feeds, self._events)
        sent, received = (self._cuda.elapsed_ns(*self._events[at : at + 2]) for at in (0, 2))
        return results, {"host-to-device": sent, "device-to-host": received}

    def _infer(self, feeds: Tensors, events: Sequence[Any]) -> dict[str, NDArray[np.generic]]:
        """Copy in, execute, copy out, wait; four events, if any, are recorded around the first three."""
        if self._resources is None:
            raise UsageError("the engine was closed")
        check_feeds(feeds, self._inputs)
        self._cuda.use_device()
        self._log.drain()
        self._record(events[:1])
        # The list keeps contiguous copies alive until the wait below: on integrated GPUs a copy may still read them.
        sent = [self._send(spec.name, np.ascontiguousarray(feeds[spec.name])) for spec in self._inputs]
        self._record(events[1:2])
        results = {spec.name: self._result(spec) for spec in self._outputs}
        if not self._context.execute_async_v3(self._handle):
            raise ProviderError(f"TensorRT could not execute the engine: {self._complaints()}")
        self._record(events[2:3])
        for name, array in results.items():
            self._cuda.to_host(array, self._buffers[name][0], self._stream)
        self._record(events[3:])
        self._cuda.call("cudaStreamSynchronize", self._stream)
        del sent
        return results

    def _record(self, events: Sequence[Any]) -> None:
        for event in events:
            self._cuda.call("cudaEventRecord", event, self._stream)

    def placement(self) -> Placement:
        """Where the layers run: on the GPU, or it would not have been built; for a DLA, as the engine tells it.

        Returns:
            Layers of the engine after fusion; ``kinds`` counts layer type and output type where the engine tells them.
            Of an engine for a DLA each part of the network that runs there is one layer.
        """
        if self._resources is None:
            raise UsageError("the engine was closed")
        text = self._information()
        found = Placement.of(self._asked, self._layers(text, self._provider), kinds=layer_kinds(text))
        if self._dla_core is not None and found.nodes:
            return found
        return replace(found, nodes={self._provider: self._engine.num_layers})

    def nodes(self) -> tuple[EngineNode, ...]:
        """The engine's layers after fusion, from its inspector; empty where the engine was built without details."""
        return self._layers(self._information(), self._provider)

    def profile(self, feeds: Tensors, *, runs: int) -> tuple[EngineNode, ...]:
        """The layers as they run on some inputs; see :meth:`edgetl.runtime.runner.Profiled.profile`.

        They are timed by TensorRT's profiler, in an execution context of their own: with one a context waits for every
        inference, and would be slower from then on.

        Raises:
            UsageError: The feeds do not fit, or the runner is closed.
            ProviderError: CUDA or TensorRT failed.
        """
        self.run(feeds)  # every buffer is large enough from here on, and none moves
        times: dict[str, list[float]] = defaultdict(list)
        kept, self._context = self._context, self._engine.create_execution_context()
        try:
            if self._context is None:
                raise ProviderError(f"TensorRT could not prepare the engine for its profiler: {self._complaints()}")
            for name, (address, _) in self._buffers.items():
                self._context.set_tensor_address(name, address)
            self._context.profiler = _profiler(self._trt, times)
            for turn in range(runs // 2 + 1 + runs):
                if turn == runs // 2 + 1:
                    times.clear()
                self.run(feeds)
            text = self._information(self._context)
        finally:
            self._context = kept
        batch = max(array.shape[0] if array.ndim else 1 for array in feeds.values())
        return tuple(
            replace(node, time_ms=float(np.median(times[node.name]))) if node.name in times else node
            for node in self._layers(text, f"gpu:{self._device}", batch=batch)
        )

    @property
    def _asked(self) -> str:
        """Where the engine was to run, in words."""
        return self._provider if self._dla_core is None else f"DLA:{self._dla_core}"

    def _layers(self, text: str, provider: str, *, batch: int = 1) -> tuple[EngineNode, ...]:
        dla = None if self._dla_core is None else self._asked
        return layer_nodes(text, provider, dla=dla, multiply_adds=self._multiply_adds, batch=batch)

    def _information(self, context: Any = None) -> str:
        """What the inspector tells; with a context, in the shapes of its last inference."""
        inspector = self._engine.create_engine_inspector()
        if context is not None:
            inspector.execution_context = context
        return str(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def close(self) -> None:
        """Free device memory, the context, the engine and the stream; a second call does nothing."""
        resources, self._resources = self._resources, None
        if resources is not None:
            self._cuda.use_device()
            resources.close()

    def __enter__(self) -> TensorRTRunner:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give back the engine's memory; a failure to do so does not hide the error that led here."""
        with suppress(ProviderError) if error is not None else nullcontext():
            self.close()

    def _deserialize(self, path: Path, title: str) -> None:
        self._log.drain()
        self._runtime = self._trt.Runtime(self._log)
        if self._dla_core is not None:
            if self._dla_core >= self._runtime.num_DLA_cores:
                raise ProviderError(
                    f"{path.name} runs on DLA core {self._dla_core}, and {title} {self._trt.__version__} sees"
                    f" {self._runtime.num_DLA_cores} of them here",
                    hint="build it on this device with edgetl compile",
                )
            self._runtime.DLA_core = self._dla_core  # before the engine is deserialized: it is bound to it then
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise ProviderError(
                f"{title} {self._trt.__version__} does not accept {path.name}: {self._complaints()}",
                hint="an engine is bound to TensorRT's version and to the GPU: build it here with edgetl compile",
            )
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise ProviderError(f"{title} could not prepare {path.name} for execution: {self._complaints()}")

    def _describe(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        inputs: list[TensorSpec] = []
        outputs: list[TensorSpec] = []
        for index in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(index)
            kind = self._engine.get_tensor_dtype(name).name
            if kind not in _DTYPES or self._engine.get_tensor_location(name) != self._trt.TensorLocation.DEVICE:
                raise TargetError(f"the engine's tensor '{name}' ({kind}) cannot be exchanged as a NumPy array")
            spec = TensorSpec(
                name=name, shape=_named(tuple(self._engine.get_tensor_shape(name)), name), dtype=_DTYPES[kind]
            )
            is_input = self._engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT
            (inputs if is_input else outputs).append(spec)
        return tuple(inputs), tuple(outputs)

    def _send(self, name: str, array: NDArray[np.generic]) -> NDArray[np.generic]:
        low, _, high = (tuple(shape) for shape in self._engine.get_tensor_profile_shape(name, 0))
        if not all(least <= got <= most for least, got, most in zip(low, array.shape, high, strict=True)):
            raise UsageError(
                f"input '{name}' of this engine is {list(low)} to {list(high)}; given was {list(array.shape)}"
            )
        if not self._context.set_input_shape(name, array.shape):
            raise ProviderError(f"TensorRT refuses {list(array.shape)} for input '{name}': {self._complaints()}")
        self._cuda.to_device(self._reserve(name, array.nbytes), array, self._stream)
        return array

    def _result(self, spec: TensorSpec) -> NDArray[np.generic]:
        shape = tuple(self._context.get_tensor_shape(spec.name))
        if min(shape, default=0) < 0:
            raise TargetError(f"the shape of output '{spec.name}' depends on the data; edgetl runs fixed shapes only")
        dtype = np.dtype(spec.dtype)
        self._reserve(spec.name, prod(shape) * dtype.itemsize)
        return np.empty(shape, dtype)

    def _reserve(self, name: str, size: int) -> int:
        address, capacity = self._buffers.get(name, (0, 0))
        if address and size <= capacity:
            return address
        if address:
            del self._buffers[name]
            self._cuda.call("cudaFree", address)
        size = max(size, 1)  # an address of zero bytes would be null, which TensorRT refuses
        address = int(self._cuda.call("cudaMalloc", size))
        self._buffers[name] = (address, size)
        if not self._context.set_tensor_address(name, address):
            raise ProviderError(f"TensorRT refuses the buffer of '{name}': {self._complaints()}")
        return address

    def _free_buffers(self) -> None:
        with ExitStack() as stack:  # frees the rest even if one cannot be freed
            while self._buffers:
                _, (address, _) = self._buffers.popitem()
                stack.callback(self._cuda.call, "cudaFree", address)

    def _drop_engine(self) -> None:
        self._context = None  # in the order of dependence: context, engine, runtime
        self._engine = None
        self._runtime = None

    def _complaints(self) -> str:
        return "; ".join(message for _, message in self._log.drain()) or "it does not say why"


def _profiler(trt: ModuleType, times: dict[str, list[float]]) -> Any:
    """An ``IProfiler`` that notes the milliseconds of each layer."""

    class LayerTimes(trt.IProfiler):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            times[layer_name].append(ms)

    return LayerTimes()


def _named(shape: tuple[int, ...], name: str) -> tuple[int | str, ...]:
    # An engine has lost the names of dynamic dimensions; the leading one is the batch.
    return tuple(size if size >= 0 else ("batch" if axis == 0 else f"{name}_{axis}") for axis, size in enumerate(shape))
