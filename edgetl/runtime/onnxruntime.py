"""ONNX Runtime as a :class:`edgetl.runtime.runner.Runner`."""

from __future__ import annotations

import re
import tempfile
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import ModelError, ProviderError, not_imported
from edgetl.runtime import _ort_profile, cuda_wheels
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


_REPEATABLE = {"CUDAExecutionProvider": {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}}
"""Options of a provider with which every session computes the same. By default the CUDA provider times the algorithms
of a convolution in each session and takes the fastest, and rounds the factors of float32 products to TF32."""

_PROVIDER_HINT = "check the driver and the CUDA and cuDNN libraries with `edgetl doctor`"

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

    def _unpadded(self, events: list[_ort_profile.Event], feeds: Tensors) -> tuple[EngineNode, ...]:
        """Nodes with the multiply-adds of the model's channels, where the engine's shapes have them padded.

        These are from a session without the pass that pads.
        """
        if not any(_ort_profile.is_blocked(event) for event in events):
            return tuple(_ort_profile.node(event) for event in events)
        (others,) = self._events(feeds, warmup=0, runs=1, packed=False, blocked=False)
        return _ort_profile.unpadded(events, others)

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
    ) -> list[list[_ort_profile.Event]]:
        """Per inference that counts, the events of its nodes' kernels in their order."""
        with tempfile.TemporaryDirectory() as folder:
            session = self._open(profile=Path(folder) / "profile", packed=packed, blocked=blocked, optimised=optimised)
            for _ in range(warmup + runs):
                self._infer(session, feeds)
            return _ort_profile.inferences(Path(session.end_profiling()))[warmup : warmup + runs]

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
        providers = [(self._provider, self._provider_options), *behind]
        try:
            session = self._start(options, providers)
        except Exception as error:  # its errors have no base of their own, and no public names
            if behind and self._loads_on_cpu():
                raise ProviderError(
                    f"ONNX Runtime could not start {self._provider}: {error}", hint=_PROVIDER_HINT
                ) from error
            hint = f"{ort.__version__} has no kernel for it: a newer one may, or export to an older operator set"
            missing = "NOT_IMPLEMENTED" in str(error)
            raise ModelError(
                f"ONNX Runtime cannot load {self._model.name}: {error}", hint=hint if missing else None
            ) from error
        if self._provider not in session.get_providers():
            raise ProviderError(
                f"ONNX Runtime could not start {self._provider} and would have used {session.get_providers()} instead",
                hint=_PROVIDER_HINT,
            )
        return session

    def _start(self, options: Any, providers: list[Any]) -> Any:
        if self._provider == "CUDAExecutionProvider":
            cuda_wheels.preload(_library())
        # Its fallback would print a banner into what a command prints, and leave out providers.
        how: dict[str, Any] = {"providers": providers, "enable_fallback": 0}
        try:
            return _library().InferenceSession(str(self._model), options, **how)
        except Exception as error:  # its errors have no base of their own, and no public names
            if "graph_utils::RemoveNode" not in str(error):
                raise
            # Before 1.24 it takes out what clips ahead of a QuantizeLinear, and fails where that reads an input.
            how["disabled_optimizers"] = ["ClipQuantRewrite", "ReluQuantRewrite"]
            return _library().InferenceSession(str(self._model), options, **how)

    def _loads_on_cpu(self) -> bool:
        """Whether there is nothing wrong with the model."""
        try:
            OnnxRuntimeRunner(self._model)
        except ModelError:
            return False
        return True


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
        except ProviderError as error:
            _, told, reason = error.message.partition(f"could not start {provider}: ")
            return f"{provider} does not start here: " + (reason if told else "no device, or its libraries are missing")
    return None


def _library() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise not_imported(error, "onnxruntime", extra="ort", needed_for="running an ONNX Runtime engine") from None
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
