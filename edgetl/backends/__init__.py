"""Backends by name. Adding one is adding a file and a line here."""

from __future__ import annotations

from importlib import import_module

from edgetl import tomlfile
from edgetl.backends.base import Backend, CompileRequest, EngineRecord
from edgetl.errors import UnknownNameError

_BACKENDS = {
    "onnxruntime": "OnnxRuntimeBackend",
    "openvino": "OpenVinoBackend",
    "tensorrt": "TensorRTBackend",
    "tensorrt_rtx": "TensorRTRTXBackend",
    "torch": "TorchBackend",
    "null": "NullBackend",
}


def names() -> tuple[str, ...]:
    """All backends."""
    return tuple(_BACKENDS)


def backend(name: str) -> Backend:
    """A backend by name; its library is not imported yet.

    Raises:
        UnknownNameError: There is none of that name.
    """
    if name not in _BACKENDS:
        raise UnknownNameError(f"there is no backend '{name}'; {tomlfile.did_you_mean(name, _BACKENDS)}")
    made: Backend = getattr(import_module(f"edgetl.backends.{name}"), _BACKENDS[name])()
    return made


__all__ = ["Backend", "CompileRequest", "EngineRecord", "backend", "names"]
