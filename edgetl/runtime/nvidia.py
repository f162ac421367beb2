"""What the NVIDIA driver of this machine says, asked through ``libcuda`` itself.

TensorRT's libraries end the process, or answer with a null pointer, where there is no driver. So everything that
needs a GPU asks here first, before a library of NVIDIA's is imported.
"""

from __future__ import annotations

import ctypes
import platform
from dataclasses import dataclass
from pathlib import Path

TEGRA_RELEASE = Path("/etc/nv_tegra_release")
"""A file that every JetPack image has."""

# CUdevice_attribute of cuda.h
_CAPABILITY_MAJOR = 75
_CAPABILITY_MINOR = 76


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """An NVIDIA GPU that this process may use."""

    index: int
    """CUDA device ordinal; ``CUDA_VISIBLE_DEVICES`` is already applied."""
    name: str
    compute_capability: str
    """As "8.7"."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What decides whether an NVIDIA engine can be built or run here."""

    architecture: str
    """``platform.machine()``: x86_64, aarch64 …"""
    is_jetson: bool
    gpus: tuple[Gpu, ...]
    cuda_version: str
    """The newest CUDA that the driver supports, as "13.0"; empty without a driver."""
    problem: str
    """Why there is no GPU to use, in a clause; empty where there is one."""


def this_machine() -> Machine:
    """Ask the operating system and the NVIDIA driver; imports nothing and never raises.

    Returns:
        The machine; ``gpus`` is empty exactly where ``problem`` says why.
    """
    gpus, cuda_version, problem = _ask_driver()
    return Machine(
        architecture=platform.machine(),
        is_jetson=platform.machine() == "aarch64" and TEGRA_RELEASE.exists(),
        gpus=gpus,
        cuda_version=cuda_version,
        problem=problem,
    )


def _ask_driver() -> tuple[tuple[Gpu, ...], str, str]:
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return (), "", "there is no NVIDIA driver on this machine (libcuda.so.1 was not found)"
    code = cuda.cuInit(0)
    if code != 0:
        return (), "", f"the NVIDIA driver does not start (cuInit answered error {code})"
    version = ctypes.c_int()
    count = ctypes.c_int()
    if cuda.cuDriverGetVersion(ctypes.byref(version)) != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return (), "", "the NVIDIA driver does not answer"
    # cudaDriverGetVersion: 1000 * major + 10 * minor
    cuda_version = f"{version.value // 1000}.{version.value % 1000 // 10}"
    gpus = tuple(gpu for index in range(count.value) if (gpu := _gpu(cuda, index)) is not None)
    return gpus, cuda_version, "" if gpus else "the NVIDIA driver shows no GPU to this process"


def _gpu(cuda: ctypes.CDLL, index: int) -> Gpu | None:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    codes = (
        cuda.cuDeviceGet(ctypes.byref(device), index),
        cuda.cuDeviceGetName(name, len(name), device),
        cuda.cuDeviceGetAttribute(ctypes.byref(major), _CAPABILITY_MAJOR, device),
        cuda.cuDeviceGetAttribute(ctypes.byref(minor), _CAPABILITY_MINOR, device),
    )
    if any(codes):
        return None
    return Gpu(
        index=index, name=name.value.decode("utf-8", "replace"), compute_capability=f"{major.value}.{minor.value}"
    )
