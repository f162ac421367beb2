"""What Linux says of the processors: what they are, how fast they run now, how warm they are, what holds them back.

Every function takes the machine's top folder, so that a recorded tree can stand in for it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from edgetl.benchmark.sensors.reading import (
    Reading,
    number_of,
    read_number,
    read_text,
    reason_of,
    shown,
    text_of,
    unknown,
)

ROOT = Path("/")

FLAGS = (
    "avx", "avx2", "fma", "f16c", "avx_vnni", "avx_vnni_int8", "avx512f", "avx512bw", "avx512vl", "avx512_vnni",
    "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "amx_fp16",
    "asimd", "asimdhp", "asimddp", "asimdfhm", "i8mm", "bf16", "sve", "sve2", "svei8mm", "svebf16", "sme", "sme2",
)  # fmt: skip
"""Instructions that decide how fast a network runs, as /proc/cpuinfo spells them (x86-64, then ARM)."""

_SANE_CELSIUS = (-55.0, 150.0)
"""Outside of this a sensor is switched off or broken: Tegra says -256 °C for a block without power."""

_DUMMY_ZONES = {"pmic", "pmic-die"}
"""A Tegra's PMIC zone is a constant 100 °C."""

_COOLING = re.compile(r"cpu|gpu|processor|devfreq|throttl", re.IGNORECASE)
_CPU_HWMON = {"coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu"}


def cpu_list(text: str) -> tuple[int, ...]:
    """The processors in a list of the kernel's: "0-2,5" → (0, 1, 2, 5).

    Raises:
        ValueError: It is no such list.
    """
    found: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return tuple(found)


def cpu_ranges(cpus: Collection[int]) -> str:
    """The other way round: (0, 1, 2, 5) → "0-2,5"."""
    parts = []
    for _, run in groupby(enumerate(sorted(cpus)), lambda pair: pair[1] - pair[0]):
        numbers = [number for _, number in run]
        parts.append(str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}")
    return ",".join(parts)


def allowed_cpus() -> tuple[int, ...]:
    """Processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


# --- facts -----------------------------------------------------------------------------------------------------------


def parse_cpuinfo(text: str) -> dict[str, str]:
    """Keys and values of /proc/cpuinfo; where processors differ, those of the first one."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon and value.strip():
            found.setdefault(key.strip(), value.strip())
    return found


def cpu_facts(root: Path = ROOT, cpus: Sequence[int] | None = None) -> list[Reading]:
    """Model, instructions, affinity, governor, limits of the frequency, turbo, SMT, whether it is a virtual machine.

    Args:
        root: The machine's top folder.
        cpus: Processors that the measurement may use; those of this process without it.
    """
    cpus = allowed_cpus() if cpus is None else cpus
    source = "/proc/cpuinfo"
    try:
        info = parse_cpuinfo(text_of(root / "proc/cpuinfo"))
        why = ""
    except OSError as problem:
        info, why = {}, reason_of(problem)
    flags = set((info.get("flags") or info.get("Features") or "").split())
    readings = [
        _model(info, why, root),
        Reading(
            name="cpu.flags", value=" ".join(flag for flag in FLAGS if flag in flags) or "none of note", source=source
        )
        if flags
        else unknown("cpu.flags", why or "it names no flags", source=source),
        Reading(name="cpu.virtual", value="hypervisor" in flags, source=source)
        if "flags" in info
        else unknown("cpu.virtual", why or "this architecture does not tell", source=source),
        Reading(name="cpu.affinity", value=cpu_ranges(cpus), source="sched_getaffinity(0)"),
        read_text("cpu.online", root / "sys/devices/system/cpu/online", root=root),
        read_text("cpu.isolated", root / "sys/devices/system/cpu/isolated", root=root, empty="none"),
        read_text("cpu.smt", root / "sys/devices/system/cpu/smt/control", root=root),
        _turbo(root),
    ]
    per_cpu = {
        "cpu.governor": ("scaling_governor", None),
        "cpu.frequency.driver": ("scaling_driver", None),
        "cpu.frequency.min": ("scaling_min_freq", 1e-3),
        "cpu.frequency.max": ("scaling_max_freq", 1e-3),
        "cpu.frequency.hardware_max": ("cpuinfo_max_freq", 1e-3),
    }
    for name, (file, scale) in per_cpu.items():
        found = {
            cpu: read_text(name, path, root=root)
            if scale is None
            else read_number(name, path, root=root, unit="MHz", scale=scale)
            for cpu in cpus
            for path in (root / f"sys/devices/system/cpu/cpu{cpu}/cpufreq/{file}",)
        }
        readings += grouped(found)
    return readings


def grouped(per_cpu: Mapping[int, Reading]) -> list[Reading]:
    """One reading where all processors say the same, else one per group of them: "cpu.governor[0-3]"."""
    groups: dict[tuple[object, str], list[int]] = {}
    for cpu, reading in per_cpu.items():
        groups.setdefault((reading.value, reading.why), []).append(cpu)
    if len(groups) <= 1:
        return [next(iter(per_cpu.values()))] if per_cpu else []
    found = []
    for members in groups.values():
        one = per_cpu[members[0]]
        found.append(Reading(
            name=f"{one.name}[{cpu_ranges(members)}]", value=one.value, unit=one.unit, source=one.source, why=one.why
        ))  # fmt: skip
    return found


def _model(info: Mapping[str, str], why: str, root: Path) -> Reading:
    if "model name" in info:
        return Reading(name="cpu.model", value=info["model name"], source="/proc/cpuinfo")
    board = read_text("cpu.model", root / "proc/device-tree/model", root=root)
    if board.value is not None:
        return board
    for key in ("Model", "Hardware"):
        if key in info:
            return Reading(name="cpu.model", value=info[key], source="/proc/cpuinfo")
    if "CPU part" in info:
        named = f"implementer {info.get('CPU implementer', '?')} part {info['CPU part']}"
        return Reading(name="cpu.model", value=named, source="/proc/cpuinfo")
    return unknown("cpu.model", why or "it names no model", source="/proc/cpuinfo")


def _turbo(root: Path) -> Reading:
    intel = root / "sys/devices/system/cpu/intel_pstate/no_turbo"
    if intel.exists():
        off = read_number("cpu.turbo", intel, root=root, unit="")
        return off if off.value is None else Reading(name="cpu.turbo", value=off.value == 0, source=off.source)
    boost = read_number("cpu.turbo", root / "sys/devices/system/cpu/cpufreq/boost", root=root, unit="")
    return boost if boost.value is None else Reading(name="cpu.turbo", value=boost.value != 0, source=boost.source)


# --- frequency, temperature, throttling ------------------------------------------------------------------------------


def frequency(root: Path = ROOT, cpus: Sequence[int] | None = None) -> list[Reading]:
    """The highest and the lowest frequency among the processors that may be used, MHz.

    Read between two blocks, the processor that was measured on is the fastest one; the others may sleep.
    """
    cpus = allowed_cpus() if cpus is None else cpus
    source = f"/sys/devices/system/cpu/cpu[{cpu_ranges(cpus)}]/cpufreq/scaling_cur_freq"
    found: list[float] = []
    why = "there is no processor to ask"
    for cpu in cpus:
        try:
            found.append(number_of(root / f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq") / 1e3)
        except (OSError, ValueError) as problem:
            why = reason_of(problem)
    found = [one for one in found if one > 0]
    if not found:
        return [unknown("cpu.frequency", why or "every processor says 0", source=source, unit="MHz", kind="level")]
    names = {"cpu.frequency": max(found), "cpu.frequency.lowest": min(found)}
    return [Reading(name=name, value=value, unit="MHz", source=source, kind="level") for name, value in names.items()]


def temperatures(root: Path = ROOT) -> list[Reading]:
    """Thermal zones, and the processor's own sensors where they are no zone, °C."""
    found: dict[str, Reading] = {}
    for zone in _folders(root / "sys/class/thermal", "thermal_zone"):
        label = _label(zone / "type", zone.name)
        if label.lower() not in _DUMMY_ZONES:
            _add(found, _celsius(f"temperature.{label}", zone / "temp", root))
    for chip in _folders(root / "sys/class/hwmon", "hwmon"):
        if _label(chip / "name", "") in _CPU_HWMON and f"temperature.{_label(chip / 'name', '')}" not in found:
            for path in sorted(chip.glob("temp*_input")):
                label = _label(path.with_name(path.name.replace("_input", "_label")), path.name.removesuffix("_input"))
                _add(found, _celsius(f"temperature.{label}", path, root))
    if not found:
        why = "this machine shows no sensor of temperature"
        return [unknown("temperature", why, source="/sys/class/thermal, /sys/class/hwmon", unit="°C", kind="level")]
    return list(found.values())


def trip_points(root: Path = ROOT) -> list[Reading]:
    """The lowest temperature of each zone at which the kernel starts to slow the machine down ("passive"), °C."""
    readings = []
    for zone in _folders(root / "sys/class/thermal", "thermal_zone"):
        limits = []
        for kind in sorted(zone.glob("trip_point_*_type")):
            path = kind.with_name(kind.name.replace("_type", "_temp"))
            limit = _celsius("", path, root)
            if _label(kind, "") == "passive" and isinstance(limit.value, float) and limit.value > 0:
                limits.append(limit)
        if limits:
            lowest = min(limits, key=lambda one: float(one.value or 0))
            name = f"temperature.{_label(zone / 'type', zone.name)}.passive"
            readings.append(Reading(name=name, value=lowest.value, unit="°C", source=lowest.source))
    return readings


def throttling(root: Path = ROOT, cpus: Sequence[int] | None = None) -> list[Reading]:
    """How often the processors throttled themselves, and how far the kernel's cooling holds them back."""
    cpus = allowed_cpus() if cpus is None else cpus
    readings = []
    for part in ("core", "package"):
        file = f"{part}_throttle_count"
        source = f"/sys/devices/system/cpu/cpu[{cpu_ranges(cpus)}]/thermal_throttle/{file}"
        name = f"throttle.{part}"
        try:
            folders = [root / f"sys/devices/system/cpu/cpu{cpu}" for cpu in _one_of_each(part, root, cpus)]
            total = sum(number_of(folder / "thermal_throttle" / file) for folder in folders)
            readings.append(Reading(name=name, value=total, unit="count", source=source, kind="counter"))
        except (OSError, ValueError) as problem:
            readings.append(unknown(name, reason_of(problem), source=source, unit="count", kind="counter"))
    for device in _folders(root / "sys/class/thermal", "cooling_device"):
        label = _label(device / "type", device.name)
        if _COOLING.search(label):
            name = f"cooling.{label}.{device.name.removeprefix('cooling_device')}"
            readings.append(read_number(name, device / "cur_state", root=root, unit="level", kind="level"))
    firmware = root / "sys/devices/platform/soc/soc:firmware/get_throttled"
    if firmware.exists():
        readings.append(_raspberry(firmware, root))
    return readings


def _one_of_each(part: str, root: Path, cpus: Sequence[int]) -> list[int]:
    """Processors of which no two are of one core, or package: each counts what all of it did. Unknown: all of them."""
    names = ("physical_package_id", "core_id") if part == "core" else ("physical_package_id",)
    found: dict[tuple[str, ...], int] = {}
    for cpu in cpus:
        topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        found.setdefault(tuple(_label(topology / name, f"of cpu{cpu}") for name in names), cpu)
    return list(found.values())


def _raspberry(path: Path, root: Path) -> Reading:
    """Bits 0 to 3 of a Raspberry Pi's firmware: under-voltage, frequency capped, throttled, soft limit, now."""
    source = shown(path, root)
    try:
        return Reading(name="cooling.firmware", value=int(text_of(path), 16) & 0xF, source=source, kind="level")
    except (OSError, ValueError) as problem:
        return unknown("cooling.firmware", reason_of(problem), source=source, kind="level")


def _celsius(name: str, path: Path, root: Path) -> Reading:
    found = read_number(name, path, root=root, unit="°C", scale=1e-3, kind="level")
    low, high = _SANE_CELSIUS
    if isinstance(found.value, float) and not low <= found.value <= high:
        why = f"the sensor says {found.value:g} °C: it is switched off or broken"
        return unknown(name, why, source=found.source, unit="°C", kind="level")
    return found


def _add(found: dict[str, Reading], reading: Reading) -> None:
    """Two sensors of one name become two readings: "temperature.acpitz", "temperature.acpitz#2"."""
    name, number = reading.name, 2
    while name in found:
        name, number = f"{reading.name}#{number}", number + 1
    found[name] = Reading(
        name=name, value=reading.value, unit=reading.unit, source=reading.source, why=reading.why, kind=reading.kind
    )


def _folders(parent: Path, prefix: str) -> list[Path]:
    def number(path: Path) -> int:
        digits = path.name.removeprefix(prefix)
        return int(digits) if digits.isdigit() else -1

    try:
        return sorted((path for path in parent.iterdir() if number(path) >= 0), key=number)
    except OSError:
        return []


def _label(path: Path, default: str) -> str:
    try:
        return text_of(path) or default
    except OSError:
        return default
