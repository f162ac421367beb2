"""The calls of the CUDA runtime that an engine of TensorRT needs, through cuda-python."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import MissingExtraError, ProviderError


class Cuda:
    """The calls of the CUDA runtime that a runner needs, each with its return code checked.

    Args:
        device: CUDA device ordinal.
        extra: The extra of edgetl that installs cuda-python.

    Raises:
        MissingExtraError: cuda-python is not installed.
        ProviderError: The CUDA runtime refuses the device, or there is no driver.
    """

    def __init__(self, device: int, *, extra: str) -> None:
        try:
            self._api = importlib.import_module("cuda.bindings.runtime")
        except ModuleNotFoundError:
            raise MissingExtraError("cuda-python", extra=extra, needed_for="running an engine on a GPU") from None
        self._device = device
        self.use_device()

    def call(self, name: str, *args: Any) -> Any:
        """Call a function of ``cuda.bindings.runtime``.

        Args:
            name: The function, as "cudaMalloc".
            args: Its arguments.

        Returns:
            What the function returns beside its code; None where that is nothing.

        Raises:
            ProviderError: The code is not ``cudaSuccess``, or there is no driver.
        """
        try:
            code, *values = getattr(self._api, name)(*args)
        except RuntimeError as error:  # cuda-python 12 cannot open the driver's library
            raise ProviderError(f"{name} on GPU {self._device} failed: {error}") from None
        if int(code) != 0:
            _, text = self._api.cudaGetErrorString(code)
            raise ProviderError(f"{name} on GPU {self._device} failed: {code.name} ({text.decode()})")
        return values[0] if values else None

    def use_device(self) -> None:
        """Make the device the calling thread's current one: CUDA keeps that per thread."""
        self.call("cudaSetDevice", self._device)

    def runtime_version(self) -> str:
        """The version of the CUDA runtime, as "13.0"."""
        version: int = self.call("cudaRuntimeGetVersion")
        return f"{version // 1000}.{version % 1000 // 10}"

    def to_device(self, pointer: int, array: NDArray[np.generic], stream: Any) -> None:
        """Queue a copy of a contiguous array to device memory."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.call("cudaMemcpyAsync", pointer, array.ctypes.data, array.nbytes, kind, stream)

    def to_host(self, array: NDArray[np.generic], pointer: int, stream: Any) -> None:
        """Queue a copy of device memory into a contiguous array."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.call("cudaMemcpyAsync", array.ctypes.data, pointer, array.nbytes, kind, stream)

    def elapsed_ns(self, first: Any, second: Any) -> int:
        """Nanoseconds between two events that the stream has passed; CUDA resolves about half a microsecond."""
        milliseconds: float = self.call("cudaEventElapsedTime", first, second)
        return round(milliseconds * 1e6)


def stream_handle(stream: Any) -> int:
    """The address that TensorRT wants of a ``cudaStream_t``.

    cuda-python has a function for it since 12.9.1 and will drop ``int(stream)``, which older ones need.
    """
    try:
        utils = importlib.import_module("cuda.bindings.utils")
    except ModuleNotFoundError:
        return int(stream)
    return int(utils.get_cuda_native_handle(stream))
