"""ONNX Runtime as a :class:`edgetl.runtime.runner.Runner`."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import MissingExtraError, ModelError, ProviderError
from edgetl.runtime import cuda_wheels, products
from edgetl.runtime.runner import EngineNode, FeedsCheck, Placement, Tensors, TensorSpec, check_feeds

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}


_KERNEL_TIME = "_kernel_time"
_END_OF_RUN = "model_run"
"""The event that follows those of an inference's nodes."""

_PRECISIONS = {
    "float": "fp32",
    "double": "fp64",
    "float16": "fp16",
    "bfloat16": "bf16",
    "uint8": "int8",
    "int8": "int8",
}

_INTEGER_KINDS = re.compile(r"QLinear|QGemm|QAttention|DynamicQuantize(MatMul|LSTM)|MatMulInteger|ConvInteger")
"""Operators that compute in 8-bit integers although some, or all, of their inputs are float."""

_REPEATABLE = {"CUDAExecutionProvider": {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}}
"""Options of a provider with which every session computes the same. By default the CUDA provider times the algorithms
of a convolution in each session and takes the fastest, and rounds the factors of float32 products to TF32."""

_ADDED_SUFFIX = re.compile(r"(_token_\d+|_nchwc)+$")
"""What the passes that change the layout of tensors append to a node's name."""
_BLOCKED = "_nchwc"
"""That of the pass that pads channels to the width of the processor's registers, on x86-64."""
_REGISTERS = (8, 16)
"""Channels of float32 that one of them holds: AVX2, AVX-512."""

# An ONNX file, written here because the runtime has no onnx: IR 8, operator set 13, y = Identity(x), float32[1].
_IDENTITY = bytes.fromhex(
    "08083a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a02080162"
    "0f0a0179120a0a08080112040a02080142040a00100d"
)


_SPIN_US = 1000
"""How long threads wait awake for the next call, in microseconds: calls in a row find them so, and a device that is
idle for longer spends no power on them. edgetl.benchmark._worker.RUN_OUT_S is longer."""


class OnnxRuntimeRunner:
    """An ONNX file in an ONNX Runtime session.

    Args:
        model: The file.
        provider: ONNX Runtime's name of the execution provider; the CPU provider stands behind every other one for
            the nodes that it leaves, which :meth:`placement` counts.
        threads: Threads inside an operator; None: ONNX Runtime's choice (one per core).
        optimise: False: every node of the file is computed by itself, as it stands there; nothing is fused.
        repeatable: On a GPU, take kernels that are the same in every session, and float32 as it is; slower.
        frugal: Keep no memory for activations between inferences; slower where they are small.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        ProviderError: This build or this machine does not have the provider.
        ModelError: The file is not a model that ONNX Runtime can load.
    """

    def __init__(
        self,
        model: Path,
        *,
        provider: str = "CPUExecutionProvider",
        threads: int | None = None,
        optimise: bool = True,
        repeatable: bool = False,
        frugal: bool = False,
    ) -> None:
        self._model = model
        self._provider = provider
        self._provider_options = _REPEATABLE.get(provider, {}) if repeatable else {}
        self._threads = threads
        self._optimise = optimise
        self._frugal = frugal
        self._session: Any = self._open(profile=None)
        self._inputs = tuple(_spec(node) for node in self._session.get_inputs())
        self._outputs = tuple(_spec(node) for node in self._session.get_outputs())
        self._names = [spec.name for spec in self._outputs]
        self._check = FeedsCheck(self._inputs)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The model's inputs."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The model's outputs."""
        return self._outputs

    def metadata(self) -> dict[str, str]:
        """The model's metadata_props."""
        return dict(self._session.get_modelmeta().custom_metadata_map)

    def run(self, feeds: Tensors) -> dict[str, NDArray[np.generic]]:
        """One synchronous inference; see :meth:`edgetl.runtime.runner.Runner.run`."""
        self._check(feeds)
        return dict(zip(self._names, self._infer(self._session, feeds), strict=True))

    def placement(self) -> Placement:
        """Count the nodes of the optimised graph by provider, from the profile of one inference on zeros."""
        return Placement.of(self._provider, self.nodes())

    def nodes(self, feeds: Tensors | None = None, *, optimised: Path | None = None) -> tuple[EngineNode, ...]:
        """The nodes of the optimised graph in the order of their execution, from the profile of one inference.

        A node in the body of a loop stands there once for every time that it ran. Which tensors a node reads and writes
        is in the optimised graph alone: :mod:`edgetl.backends.onnxruntime` reads it.

        Args:
            feeds: Its inputs; None: zeros, with every dynamic dimension 1.
            optimised: Where to write the optimised graph, as ONNX; None: nowhere.

        Raises:
            ModelError: ONNX Runtime failed on these inputs.
        """
        given = feeds or {spec.name: _zeros(spec) for spec in self._inputs}
        (events,) = self._events(given, warmup=0, runs=1, packed=False, optimised=optimised)
        return self._unpadded(events, given)

    def profile(self, feeds: Tensors, *, runs: int) -> tuple[EngineNode, ...]:
        """The nodes as they run on some inputs; see :meth:`edgetl.runtime.runner.Profiled.profile`.

        Facts and times come from two sessions: only one that leaves weights as they are tells their shapes, and only
        one that packs them computes as fast as :meth:`run`.
        """
        check_feeds(feeds, self._inputs)
        nodes = self.nodes(feeds)
        timed = self._events(feeds, warmup=runs // 2 + 1, runs=runs, packed=True)
        if any(len(events) != len(nodes) for events in timed):  # a loop that ends elsewhere; not the same inferences
            return nodes
        times = np.median([[event["dur"] for event in events] for events in timed], axis=0) / 1e3
        # On a GPU a kernel's time is that of its launch: it computes while the next ones are launched.
        return tuple(
            replace(node, time_ms=float(time)) if node.provider == "CPUExecutionProvider" else node
            for node, time in zip(nodes, times, strict=True)
        )

    def _unpadded(self, events: list[dict[str, Any]], feeds: Tensors) -> tuple[EngineNode, ...]:
        """Nodes with the multiply-adds of the model's channels, where the engine's shapes have them padded.

        These are from a session without that pass. A product is found there by its shapes. What is not is a scaling
        that the pass made a convolution of, which counts as nothing. Where one of that session is not found here, the
        counts stay as they are.
        """
        nodes = tuple(_node(event) for event in events)
        if not any(node.name.endswith(_BLOCKED) for node in nodes):
            return nodes
        (others,) = self._events(feeds, warmup=0, runs=1, packed=False, blocked=False)
        left = [(_shapes(event), count) for event in others if (count := _node(event).multiply_adds)]
        found = []
        for node, event in zip(nodes, events, strict=True):
            place = None
            if node.multiply_adds:
                mine = _shapes(event)
                place = next((at for at, (shapes, _) in enumerate(left) if _is_padded(mine, shapes)), None)
            found.append(replace(node, multiply_adds=0 if place is None else left.pop(place)[1]))
        return nodes if left else tuple(found)

    def _infer(self, session: Any, feeds: Tensors) -> list[NDArray[np.generic]]:
        try:
            found: list[NDArray[np.generic]] = session.run(self._names, feeds if type(feeds) is dict else dict(feeds))
            return found
        except Exception as error:  # its errors have no base of their own, and no public names
            raise ModelError(f"ONNX Runtime failed on {self._model.name}: {error}") from error

    def _events(
        self,
        feeds: Tensors,
        *,
        warmup: int,
        runs: int,
        packed: bool,
        blocked: bool = True,
        optimised: Path | None = None,
    ) -> list[list[dict[str, Any]]]:
        """Per inference that counts, the events of its nodes' kernels in their order."""
        with tempfile.TemporaryDirectory() as folder:
            session = self._open(profile=Path(folder) / "profile", packed=packed, blocked=blocked, optimised=optimised)
            for _ in range(warmup + runs):
                self._infer(session, feeds)
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        found: list[list[dict[str, Any]]] = [[]]
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith(_KERNEL_TIME):
                found[-1].append(event)
            elif event.get("name") == _END_OF_RUN:
                found.append([])
        return found[warmup : warmup + runs]

    def __enter__(self) -> OnnxRuntimeRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session = None

    def _open(
        self, *, profile: Path | None, packed: bool = True, blocked: bool = True, optimised: Path | None = None
    ) -> Any:
        ort = _library()
        ort.set_default_logger_severity(4)  # a provider that cannot start is our error, not a line on the terminal
        there = ort.get_available_providers()
        if self._provider not in there:
            raise ProviderError(
                f"ONNX Runtime has no {self._provider} here; it has {', '.join(there)}",
                hint="pip install 'edgetl[ort-gpu]' brings the CUDA provider, on a machine with an NVIDIA GPU",
            )
        options = ort.SessionOptions()
        options.log_severity_level = 4
        if self._threads:
            options.intra_op_num_threads = self._threads
        options.enable_cpu_mem_arena = not self._frugal
        if not self._optimise:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        elif not blocked:  # every pass but those of the layout
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.add_session_config_entry(*_spinning(ort.__version__))
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        if not packed:
            # Kernels that pack their weights drop the originals, and then the profile does not tell their shapes.
            options.add_session_config_entry("session.disable_prepacking", "1")
        if optimised is not None:
            options.optimized_model_filepath = str(optimised)
        behind = [] if self._provider == "CPUExecutionProvider" else ["CPUExecutionProvider"]
        try:
            # What these two print of libraries and providers that do not start would stand in the middle of our output.
            with redirect_stdout(sys.stderr):
                if self._provider == "CUDAExecutionProvider":
                    cuda_wheels.preload(ort)
                first = (self._provider, self._provider_options)
                session = ort.InferenceSession(str(self._model), options, providers=[first, *behind])
        except Exception as error:  # its errors have no base of their own, and no public names
            raise ModelError(f"ONNX Runtime cannot load {self._model.name}: {error}") from error
        if self._provider not in session.get_providers():
            raise ProviderError(
                f"ONNX Runtime could not start {self._provider} and would have used {session.get_providers()} instead",
                hint="check the driver and the CUDA and cuDNN libraries with `edgetl doctor`",
            )
        session.disable_fallback()
        return session


def why_no_provider(provider: str) -> str | None:
    """Why ONNX Runtime cannot start a provider on this machine, in a clause; None where it can.

    Tried on a graph of one node, because a provider that is compiled in may still miss its libraries or its device.
    """
    ort = _library()
    if provider not in ort.get_available_providers():
        return f"ONNX Runtime has no {provider} here"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "identity.onnx"
        path.write_bytes(_IDENTITY)
        try:
            OnnxRuntimeRunner(path, provider=provider)
        except ProviderError:
            return f"{provider} does not start here: no device, or its libraries are missing"
        except ModelError as error:  # a driver that is too old, a device that fails: the graph is not to blame
            return f"{provider} does not start here: {error.message.partition(': ')[2]}"
    return None


def _library() -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtraError("onnxruntime", extra="ort", needed_for="running an ONNX Runtime engine") from None
    return onnxruntime


def _spinning(version: str) -> tuple[str, str]:
    """A session's setting for threads with nothing to do, which otherwise spin for tens of milliseconds after a call.

    They would take the cores from whatever runs next. ONNX Runtime before 1.26 cannot limit the time; there they stop
    at once, and waking them again costs each call some percent.
    """
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) >= (1, 26):
        return "session.intra_op.spin_duration_us", str(_SPIN_US)
    return "session.force_spinning_stop", "1"


def _spec(node: Any) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) else str(size or "?") for size in node.shape)
    return TensorSpec(name=node.name, shape=shape, dtype=_DTYPES.get(node.type, node.type))


def _zeros(spec: TensorSpec) -> NDArray[np.generic]:
    return np.zeros([size if isinstance(size, int) else 1 for size in spec.shape], dtype=spec.dtype)


def _node(event: dict[str, Any]) -> EngineNode:
    """A node from the event of its execution."""
    facts = event["args"]
    kind = facts.get("op_name", "unknown")
    inputs, outputs = _tensors(facts.get("input_type_shape", [])), _tensors(facts.get("output_type_shape", []))
    types = [name for name, _ in inputs] or [name for name, _ in outputs] or ["unknown"]
    name = event["name"][: -len(_KERNEL_TIME)]
    return EngineNode(
        name=name,
        kind=kind,
        precision="int8" if _INTEGER_KINDS.match(kind) else _PRECISIONS.get(types[0], types[0]),
        multiply_adds=_multiply_adds(kind, [shape for _, shape in inputs], [shape for _, shape in outputs]),
        provider=facts.get("provider", "unknown"),
        output_precision=_PRECISIONS.get(outputs[0][0], outputs[0][0]) if outputs else "",
        origins=(_ADDED_SUFFIX.sub("", name),),
        **products.traffic(
            kind,
            constants=int(facts.get("parameter_size", 0)),
            read=int(facts.get("activation_size", 0)),
            written=int(facts.get("output_size", 0)),
        ),
    )


def _tensors(found: list[dict[str, list[int]]]) -> list[tuple[str, list[int]]]:
    """Type and shape of each tensor in the profile's ``input_type_shape``; an absent optional one is left out there."""
    return [next(iter(tensor.items())) for tensor in found if tensor]


def _shapes(event: dict[str, Any]) -> tuple[list[int], ...]:
    """Of the weights and the result of a product."""
    facts = event["args"]
    inputs, outputs = (_tensors(facts.get(f"{name}_type_shape", [])) for name in ("input", "output"))
    place = _SECOND_FACTOR.get(facts.get("op_name", ""), 1)
    return tuple(shape for _, shape in (*inputs[place : place + 1], *outputs[:1]))


def _is_padded(larger: tuple[list[int], ...], shapes: tuple[list[int], ...]) -> bool:
    """Whether shapes are others with their channels, the first two dimensions, filled up to whole registers."""
    if [len(shape) for shape in larger] != [len(shape) for shape in shapes]:
        return False
    return all(
        most == size or (axis < 2 and any(most == -(-size // width) * width for width in _REGISTERS))
        for filled, shape in zip(larger, shapes, strict=True)
        for axis, (most, size) in enumerate(zip(filled, shape, strict=True))
    )


_SECOND_FACTOR = {"QLinearConv": 3, "QLinearMatMul": 3, "QGemm": 3}
"""Operator → which input the weights are, where scale and zero point of the first come between; else the second."""


def _multiply_adds(kind: str, inputs: list[list[int]], outputs: list[list[int]]) -> int:
    """Of ONNX Runtime's operators; those of Einsum are not known, because a profile has no attributes."""
    place = _SECOND_FACTOR.get(kind, 1)
    if len(inputs) <= place or not outputs:
        return 0
    first, second, output = inputs[0], inputs[place], outputs[0]
    if kind.endswith(("Conv", "ConvInteger")):
        return products.convolution(output, second)
    if kind.endswith("ConvTranspose"):
        return products.transposed_convolution(first, second)
    if kind == "MatMulNBits":
        return products.matrix_product(first[-1:], output)  # its packed weights tell no shape
    if kind.endswith("Gemm") or "MatMul" in kind:
        return products.matrix_product(first, output)
    if kind in ("RNN", "GRU", "LSTM", "DynamicQuantizeLSTM") and len(inputs) > 2:
        return products.recurrent(first, second, inputs[2])
    if kind.endswith("Attention"):
        if len(second) == 2:
            return products.packed_attention(first, second)
        return products.attention(first, second, inputs[2]) if len(inputs) > 2 else 0
    return 0
