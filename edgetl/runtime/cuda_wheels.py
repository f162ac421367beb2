"""CUDA and cuDNN out of NVIDIA's Python packages, for a library that finds neither on its path."""

from __future__ import annotations

import ctypes
import importlib.util
import io
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

_WANTED = ("cudart", "nvrtc", "cublasLt", "cublas", "curand", "cufft", "cudnn*")
"""In an order in which each finds those that it needs loaded."""


def preload(onnxruntime: Any) -> None:
    """Load what ONNX Runtime's CUDA provider needs; never raises, since the provider itself tells what is missing.

    ONNX Runtime looks beside its own package. Where that was installed into another folder than PyTorch, which brings
    CUDA, its packages are those on Python's path.

    Args:
        onnxruntime: The imported module.
    """
    if hasattr(onnxruntime, "preload_dlls"):
        with redirect_stdout(io.StringIO()):  # it prints what it does not find, into the JSON of a command
            onnxruntime.preload_dlls()
    if (Path(onnxruntime.__file__).parent.parent / "nvidia").is_dir():
        return
    found = importlib.util.find_spec("nvidia")
    for place in (found.submodule_search_locations or ()) if found else ():
        for name in _WANTED:
            for library in sorted(Path(place).glob(f"*/lib/lib{name}.so.*")):
                with suppress(OSError):
                    ctypes.CDLL(str(library))
