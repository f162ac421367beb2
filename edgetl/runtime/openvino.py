"""OpenVINO as a :class:`edgetl.runtime.runner.Runner`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import MissingExtraError, ModelError, ProviderError
from edgetl.runtime.runner import Placement, Tensors, TensorSpec, check_feeds

_DTYPES = {"f32": "float32", "f16": "float16", "u8": "uint8", "i8": "int8", "i32": "int32", "i64": "int64"}


_CAPABILITIES = {"f32": "FP32", "bf16": "BF16", "f16": "FP16"}


class OpenVinoRunner:
    """A model file that OpenVINO reads (.xml or .onnx), compiled for one device.

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
        core = _library().Core()
        self._device = device
        reason = why_no_device(device, inference_precision)
        if reason:
            raise ProviderError(reason, hint="edgetl doctor")
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": inference_precision,
            "NUM_STREAMS": "1",
        }
        if threads:
            settings["INFERENCE_NUM_THREADS"] = str(threads)
        try:
            self._compiled: Any = core.compile_model(core.read_model(model), device, settings)
        except RuntimeError as error:
            raise ModelError(f"OpenVINO cannot compile {model.name}: {error}") from error
        self._request: Any = self._compiled.create_infer_request()
        self._inputs = tuple(_spec(port) for port in self._compiled.inputs)
        self._outputs = tuple(_spec(port) for port in self._compiled.outputs)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The model's inputs."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The model's outputs."""
        return self._outputs

    def run(self, feeds: Tensors) -> dict[str, NDArray[np.generic]]:
        """One synchronous inference; see :meth:`edgetl.runtime.runner.Runner.run`."""
        check_feeds(feeds, self._inputs)
        results = self._request.infer(dict(feeds), share_inputs=True)
        return {spec.name: np.array(results[spec.name]) for spec in self._outputs}

    def placement(self) -> Placement:
        """The nodes of OpenVINO's own executed graph, by operator and the precision that it really runs in."""
        kinds: Counter[str] = Counter()
        for node in self._compiled.get_runtime_model().get_ordered_ops():
            info = node.get_rt_info()
            kind = str(info["layerType"].value) if "layerType" in info else node.get_type_name()
            if kind in ("Const", "Constant", "Input", "Parameter", "Output", "Result"):
                continue
            precision = str(info["runtimePrecision"].value) if "runtimePrecision" in info else "?"
            kinds[f"{kind}:{precision}"] += 1
        return Placement(provider=self._device, nodes={self._device: sum(kinds.values())}, kinds=dict(kinds))

    def __enter__(self) -> OpenVinoRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._request = None
        self._compiled = None


def why_no_device(device: str, inference_precision: str) -> str | None:
    """Why OpenVINO cannot run on a device in that precision here, in a clause; None where it can."""
    core = _library().Core()
    if inference_precision not in _CAPABILITIES:
        return f"OpenVINO has no inference precision {inference_precision}; it has {', '.join(_CAPABILITIES)}"
    if device not in core.available_devices:
        return f"OpenVINO has no device {device} here; it has {', '.join(core.available_devices) or 'none'}"
    capabilities = {str(name) for name in core.get_property(device, "OPTIMIZATION_CAPABILITIES")}
    if _CAPABILITIES[inference_precision] not in capabilities:
        return f"this {device} does not run {inference_precision}; OpenVINO lists {', '.join(sorted(capabilities))}"
    return None


def _library() -> Any:
    try:
        import openvino
    except ImportError:
        raise MissingExtraError("openvino", extra="openvino", needed_for="running an OpenVINO engine") from None
    return openvino


def _spec(port: Any) -> TensorSpec:
    shape = tuple(
        int(size.get_length()) if size.is_static else ("batch" if axis == 0 else f"dim{axis}")
        for axis, size in enumerate(port.get_partial_shape())
    )
    kind = port.get_element_type().get_type_name()
    return TensorSpec(name=port.get_any_name(), shape=shape, dtype=_DTYPES.get(kind, kind))
