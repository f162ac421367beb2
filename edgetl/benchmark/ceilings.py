"""What this machine can do at most, measured: multiply-adds per second by precision, and bytes per second.

A ceiling is the best that any installed library reached, with nothing else to do: large products of matrices for the
arithmetic, reading and copying for the memory. Caches make small tensors faster to reach than large ones, so that the
bandwidth is a table by size.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, Literal

from edgetl.errors import MeasurementError, UsageError

Device = Literal["cpu", "cuda"]

DEVICES: dict[str, Device] = {"cpu": "cpu", "cpuexecutionprovider": "cpu", "cudaexecutionprovider": "cuda",
                              "gpu": "cuda", "cuda": "cuda"}  # fmt: skip
"""How engines call the processor and NVIDIA's GPUs, in lower case, without a number. OpenVINO's "GPU" is Intel's."""

_PATIENCE_S = 180.0
_MUCH = 0.1
"""Of two processors, a program that wants one of them takes up to half."""
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


@dataclass(frozen=True, kw_only=True)
class Ceiling:
    """The most that was reached in one precision."""

    multiply_adds_per_s: float
    by: str
    """What reached it, as "OpenVINO, products of 1024³"."""


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """Of one device."""

    device: Device
    threads: int
    """Of the processor, that were used; of a GPU without meaning."""
    products: Mapping[str, Ceiling]
    """By precision."""
    bandwidth: tuple[tuple[int, float], ...]
    """Bytes that are gone through again and again, ascending, and how many of them per second. Bytes read and bytes
    written both count."""
    unknown: Mapping[str, str] = field(default_factory=dict)
    """Precision → why there is no ceiling of it."""
    others: float | None = None
    """Share of the usable processors that other processes, and the hypervisor, took meanwhile; None where the kernel
    does not tell."""

    @property
    def disturbed(self) -> bool:
        """Whether so much of the machine was taken by others that it can do more than was measured."""
        return self.others is not None and self.others >= _MUCH

    def bytes_per_s(self, size: int) -> float | None:
        """Bandwidth of tensors of a size.

        Args:
            size: Bytes. Between two measured sizes the smaller one's holds, which is faster: a ceiling does not promise
                too little.

        Returns:
            None where the bandwidth was not measured.
        """
        below = list(takewhile(lambda entry: entry[0] <= size, self.bandwidth)) or list(self.bandwidth[:1])
        return below[-1][1] if below else None

    def to_json(self) -> dict[str, Any]:
        """Plain values; the inverse of :meth:`from_json`."""
        return {
            "device": self.device,
            "threads": self.threads,
            "products": {
                name: {"multiply_adds_per_s": found.multiply_adds_per_s, "by": found.by}
                for name, found in self.products.items()
            },
            "bandwidth": [{"bytes": size, "bytes_per_s": rate} for size, rate in self.bandwidth],
            "unknown": dict(self.unknown),
            "others": self.others,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Ceilings:
        """From :meth:`to_json`."""
        return cls(
            device=values["device"],
            threads=values["threads"],
            products={name: Ceiling(**found) for name, found in values["products"].items()},
            bandwidth=tuple((entry["bytes"], entry["bytes_per_s"]) for entry in values["bandwidth"]),
            unknown=dict(values["unknown"]),
            others=values.get("others"),
        )


def no_ceilings(device: Device, *, threads: int, reason: str) -> Ceilings:
    """Of a device that could not be measured."""
    unknown = dict.fromkeys(("fp32", "fp16", "bf16", "int8"), reason)
    return Ceilings(device=device, threads=threads, products={}, bandwidth=(), unknown=unknown)


def device_of(provider: str) -> Device | None:
    """The device that an execution provider computes on; None for one whose ceilings cannot be measured.

    Args:
        provider: In an engine's words: "CPUExecutionProvider", "CPU", "gpu:0".
    """
    if provider.startswith("GPU"):
        return None
    return DEVICES.get(provider.partition(":")[0].lower())


def measure_ceilings(device: Device = "cpu", *, threads: int) -> Ceilings:
    """Measure this machine in a fresh process; takes a few seconds.

    Args:
        device: "cpu", with every library that is installed of NumPy, ONNX Runtime and OpenVINO; "cuda", with PyTorch.
        threads: Of the processor.

    Raises:
        UsageError: ``threads`` is less than 1.
        MeasurementError: The process failed.
    """
    if threads < 1:
        raise UsageError("a ceiling is measured with at least one thread")
    places = os.pathsep.join(os.path.abspath(place) for place in sys.path if place)  # noqa: PTH100 - of zip files, too
    try:
        done = subprocess.run(
            [sys.executable, "-m", "edgetl.benchmark._ceilings", device, str(threads)],
            capture_output=True, text=True, timeout=_PATIENCE_S, check=False, cwd=os.sep,
            env={**os.environ, "PYTHONPATH": places, **dict.fromkeys(_THREADS, str(threads))},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise MeasurementError(f"this machine's ceilings were not measured within {_PATIENCE_S:.0f} s") from None
    if done.returncode:
        raise MeasurementError(f"this machine's ceilings could not be measured: {done.stderr.strip()[-2000:]}")
    return Ceilings.from_json(json.loads(done.stdout.splitlines()[-1]))
