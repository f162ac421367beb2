"""What the NVIDIA driver says of a GPU: through NVML (package nvidia-ml-py), else once through nvidia-smi."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from types import TracebackType
from typing import Any, TypeAlias

from edgetl.benchmark.sensors.reading import Kind, Reading, Value, unknown

NVML = "NVML (nvidia-ml-py)"

REASONS = {
    "power_cap": 0x04,
    "hw_slowdown": 0x08,
    "sync_boost": 0x10,
    "sw_thermal": 0x20,
    "hw_thermal": 0x40,
    "power_brake": 0x80,
}
"""Bits of nvmlDeviceGetCurrentClocksEventReasons (before driver 535: …ThrottleReasons) that mean a slower clock."""

_CLOCK_SM, _CLOCK_MEMORY = 1, 2  # nvmlClockType_t
_TEMPERATURE_GPU, _SLOWDOWN = 0, 1  # nvmlTemperatureSensors_t, nvmlTemperatureThresholds_t

SMI_FIELDS = (
    "index", "name", "driver_version", "pstate", "persistence_mode", "temperature.gpu", "power.draw",
    "enforced.power.limit", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem",
)  # fmt: skip

_UNITS = {"MHz": "MHz", "W": "W", "C": "°C", "%": "%", "MiB": "MiB"}
_MISSING = re.compile(r"^\[?(n/a|not supported|unknown error|insufficient permissions|gpu requires reset)\]?$", re.I)


class Nvml(AbstractContextManager["Nvml"]):
    """The driver's own interface, open.

    Args:
        gpus: NVML indices to read; without it those that ``CUDA_VISIBLE_DEVICES`` leaves, or all.
        library: The module, for tests with recorded answers; ``pynvml`` without it.

    ``problem`` says, in a clause, why there is nothing to read; empty otherwise. Nothing here raises.
    """

    def __init__(self, gpus: Sequence[int] | None = None, library: Any = None) -> None:
        self._library, self._wanted = library, gpus
        self._handles: dict[int, Any] = {}
        self.problem = ""

    def __enter__(self) -> Nvml:
        try:
            self._library = self._library or importlib.import_module("pynvml")
        except ImportError:
            self.problem = "the package nvidia-ml-py is not installed"
            return self
        try:
            self._library.nvmlInit()
        except self._library.NVMLError as error:
            self.problem = f"NVML does not start: {error}"
            self._library = None
            return self
        try:
            count = self._library.nvmlDeviceGetCount()
            handles = {index: self._library.nvmlDeviceGetHandleByIndex(index) for index in range(count)}
            self._handles = self._chosen(handles)
            self.problem = "" if self._handles else "NVML shows no GPU to this process"
        except self._library.NVMLError as error:
            self.problem = f"NVML does not list the GPUs: {error}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._library is not None and hasattr(self._library, "nvmlShutdown"):
            with suppress(self._library.NVMLError):  # it was not open
                self._library.nvmlShutdown()
        self._handles, self._library = {}, None

    def _chosen(self, handles: dict[int, Any]) -> dict[int, Any]:
        if self._wanted is not None:
            return {index: handle for index, handle in handles.items() if index in self._wanted}
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is None:
            return handles
        names = [part.strip() for part in visible.split(",") if part.strip()]
        return {
            index: handle
            for index, handle in handles.items()
            if str(index) in names or any(_text(self._uuid(handle)).startswith(name) for name in names if len(name) > 4)
        }

    def _uuid(self, handle: Any) -> Any:
        try:
            return self._library.nvmlDeviceGetUUID(handle)
        except self._library.NVMLError:
            return ""

    def facts(self) -> list[Reading]:
        """Name, driver, limits and modes of each GPU; one unknown reading where there is none."""
        if self.problem:
            return [unknown("gpu", self.problem, source=NVML)]
        readings = [self._ask("gpu.driver", "nvmlSystemGetDriverVersion", lambda call: _text(call()))]
        for index, handle in self._handles.items():
            readings += [self._of(f"gpu{index}", one, handle) for one in _FACTS]
        return readings

    def sample(self) -> list[Reading]:
        """Clocks, power, energy, temperature, load and what holds the clock back, of each GPU, now."""
        readings: list[Reading] = []
        for index, handle in self._handles.items():
            readings += [self._of(f"gpu{index}", one, handle) for one in _SAMPLED]
            readings += self._reasons(f"gpu{index}", handle)
        return readings

    def _of(self, gpu: str, one: _Call, handle: Any) -> Reading:
        name, function, read, unit, kind = one
        return self._ask(f"{gpu}.{name}", function, lambda call: read(call, handle), unit, kind)

    def _reasons(self, gpu: str, handle: Any) -> list[Reading]:
        new, old = "nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"
        function = new if hasattr(self._library, new) else old
        bits = self._ask(gpu, function, lambda call: call(handle), kind="level")
        if bits.value is None:
            return [unknown(f"{gpu}.throttle.{name}", bits.why, source=bits.source, kind="level") for name in REASONS]
        active = int(bits.value)
        return [
            Reading(name=f"{gpu}.throttle.{name}", value=bool(active & bit), source=bits.source, kind="level")
            for name, bit in REASONS.items()
        ]

    def _ask(
        self, name: str, function: str, read: Callable[[Any], Value], unit: str = "", kind: Kind = "fact"
    ) -> Reading:
        source = f"{NVML}: {function}"
        call = getattr(self._library, function, None)
        if call is None:
            return unknown(
                name, "this version of nvidia-ml-py does not have the call", source=source, unit=unit, kind=kind
            )
        try:
            return Reading(name=name, value=read(call), unit=unit, source=source, kind=kind)
        except self._library.NVMLError as error:
            return unknown(name, f"the driver says: {error}", source=source, unit=unit, kind=kind)


_Call: TypeAlias = tuple[str, str, Callable[[Any, Any], Value], str, Kind]
"""Name, NVML's function, how it is called with a GPU's handle, unit, kind."""

_FACTS: tuple[_Call, ...] = (
    ("name", "nvmlDeviceGetName", lambda call, handle: _text(call(handle)), "", "fact"),
    ("clock.sm.max", "nvmlDeviceGetMaxClockInfo", lambda call, handle: int(call(handle, _CLOCK_SM)), "MHz", "fact"),
    ("clock.memory.max", "nvmlDeviceGetMaxClockInfo", lambda call, one: int(call(one, _CLOCK_MEMORY)), "MHz", "fact"),
    ("power.limit", "nvmlDeviceGetEnforcedPowerLimit", lambda call, handle: call(handle) / 1e3, "W", "fact"),
    (
        "temperature.slowdown",
        "nvmlDeviceGetTemperatureThreshold",
        lambda call, one: int(call(one, _SLOWDOWN)),
        "°C",
        "fact",
    ),
    ("persistence", "nvmlDeviceGetPersistenceMode", lambda call, handle: bool(call(handle)), "", "fact"),
    ("processes", "nvmlDeviceGetComputeRunningProcesses", lambda call, handle: len(call(handle)), "count", "fact"),
)
_SAMPLED: tuple[_Call, ...] = (
    ("clock.sm", "nvmlDeviceGetClockInfo", lambda call, handle: int(call(handle, _CLOCK_SM)), "MHz", "level"),
    ("clock.memory", "nvmlDeviceGetClockInfo", lambda call, handle: int(call(handle, _CLOCK_MEMORY)), "MHz", "level"),
    ("power", "nvmlDeviceGetPowerUsage", lambda call, handle: call(handle) / 1e3, "W", "level"),
    ("energy", "nvmlDeviceGetTotalEnergyConsumption", lambda call, handle: call(handle) / 1e3, "J", "counter"),
    (
        "temperature",
        "nvmlDeviceGetTemperature",
        lambda call, handle: int(call(handle, _TEMPERATURE_GPU)),
        "°C",
        "level",
    ),
    ("load", "nvmlDeviceGetUtilizationRates", lambda call, handle: int(call(handle).gpu), "%", "level"),
    ("pstate", "nvmlDeviceGetPerformanceState", lambda call, handle: int(call(handle)), "level", "level"),
)


def _text(value: Any) -> str:
    """Older versions of the package answer in bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


# --- nvidia-smi ------------------------------------------------------------------------------------------------------


def smi_facts() -> list[Reading]:
    """What nvidia-smi says of each GPU, once: for machines with a driver and without nvidia-ml-py.

    It takes a tenth of a second to seconds, so nothing is sampled through it.
    """
    source = "nvidia-smi --query-gpu"
    program = shutil.which("nvidia-smi")
    if program is None:
        return [unknown("gpu", "there is no nvidia-smi on this machine", source=source)]
    try:
        done = subprocess.run(
            [program, f"--query-gpu={','.join(SMI_FIELDS)}", "--format=csv"],
            capture_output=True, text=True, timeout=20, check=False, errors="replace",
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as problem:
        return [unknown("gpu", f"nvidia-smi did not answer: {type(problem).__name__}", source=source)]
    if done.returncode != 0:
        said = (done.stdout + done.stderr).strip().splitlines()
        return [unknown("gpu", f"nvidia-smi failed: {said[0] if said else done.returncode}", source=source)]
    return parse_smi(done.stdout)


def parse_smi(text: str) -> list[Reading]:
    """Readings of ``nvidia-smi --query-gpu=… --format=csv``: a heading line with units, a line per GPU.

    Args:
        text: What it printed; fields may be missing, "[N/A]", "[Not Supported]" or "[Unknown Error]".

    Returns:
        "gpu0.clocks.sm" and so on; one unknown reading named "gpu" where the text is something else.
    """
    source = "nvidia-smi --query-gpu"
    lines = [line for line in text.splitlines() if line.strip()]
    heading = [field.strip() for field in lines[0].split(",")] if lines else []
    names = [field.split(" [")[0] for field in heading]
    if "index" not in names or len(lines) < 2:
        return [unknown("gpu", f"nvidia-smi printed no table: {text.strip()[:60]!r}", source=source)]
    readings = []
    for line in lines[1:]:
        fields = [field.strip() for field in line.split(",")]
        if len(fields) != len(names):
            readings.append(unknown("gpu", f"nvidia-smi printed a broken line: {line[:60]!r}", source=source))
            continue
        row = dict(zip(names, fields, strict=True))
        readings += [_smi_field(f"gpu{row['index']}.{name}", row[name], source) for name in names if name != "index"]
    return readings


def _smi_field(name: str, text: str, source: str) -> Reading:
    if _MISSING.match(text) or not text:
        return unknown(name, f"nvidia-smi says {text or 'nothing'}", source=source)
    number, _, unit = text.partition(" ")
    if unit in _UNITS or name.endswith(("temperature.gpu",)):
        try:
            return Reading(name=name, value=float(number), unit=_UNITS.get(unit, "°C"), source=source)
        except ValueError:
            return unknown(name, f"nvidia-smi says {text!r}", source=source)
    return Reading(name=name, value=text, source=source)
