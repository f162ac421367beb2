"""What a measurement was made on."""

from __future__ import annotations

import math
import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from edgetl.benchmark.sensors import load
from edgetl.benchmark.sensors.linux import allowed_cpus

_PACKAGES = (
    "torch", "timm", "onnx", "onnx-ir", "onnxruntime-gpu", "onnxruntime", "openvino", "tensorrt",
    "tensorrt_rtx_cu13_bindings", "numpy",
)  # fmt: skip


def environment() -> dict[str, Any]:
    """Processor, memory, system, GPU and library versions of this machine; plain JSON values."""
    return {
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "architecture": platform.machine(),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "gpu": gpu_names(),
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def load_average() -> float:
    """Processes that wanted to run in the last minute; measurements on a busy machine are worth less."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else 0.0


def usable_cores() -> int:
    """Processors that this process may use: fewer than the machine has, in a container or by its affinity.

    A quota of processor time counts as so many processors as it takes to use it up: with more threads the kernel would
    hold all of them back for the rest of each period.
    """
    most = len(allowed_cpus())
    quota = load.quota().value
    return most if not isinstance(quota, float) else max(1, min(most, math.ceil(quota - 1e-9)))


def cpu_name() -> str:
    """The processor in its maker's words."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(("model name", "Model")):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def gpu_names() -> list[str]:
    """NVIDIA GPUs with their driver, as nvidia-smi names them; empty without one."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        done = subprocess.run(
            [program, "--query-gpu=name,driver_version", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
