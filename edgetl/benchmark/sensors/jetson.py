"""What a Jetson says: power mode (nvpmodel), locked clocks (jetson_clocks), tegrastats, and jetson-stats (jtop).

The formats are those of JetPack 4 to 7, from NVIDIA's developer guides and recorded lines; tests hold them.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

from edgetl.benchmark.sensors.linux import ROOT
from edgetl.benchmark.sensors.reading import Reading, read_number, unknown

_SANE_CELSIUS = (-55.0, 150.0)
_PERCENT = 100.0

_GPU_DEVFREQ = re.compile(r"\.(gpu|gm20b|gp10b|gv11b|ga10b|gb10b)$|^gpu")
"""Names of the GPU's folder: 57000000.gpu (Nano), 17000000.gv11b (Xavier), 17000000.ga10b or .gpu (Orin)."""

_MODE = re.compile(r"NV Power Mode:\s*(.*\S)")
_RAM = re.compile(r"\bRAM (\d+)/(\d+)MB")
_CPUS = re.compile(r"\bCPU \[([^\]]*)\](?:@(\d+))?", re.IGNORECASE)
_LOADS = re.compile(
    r"\b(EMC_FREQ|EMC|GR3D_FREQ|GR3D2_FREQ|GR3D|VIC_FREQ) (?=\d+%|@)(?:(\d+)%)?(?:@(\d+|\[[^\]\s]*\]))?(?!\S)"
)
"""A block's load, its clock, or both; of a GPU with several clusters (GPC) a clock of each."""
_TEMPERATURE = re.compile(r"(?<![\w.])([A-Za-z][\w-]*)@(-?\d+(?:\.\d+)?)C\b")
_POWER = re.compile(r"\b([A-Z][A-Za-z0-9_]*) (\d+)(?:mW)?/(\d+)(?:mW)?(?![\dMk(])")
_CLOCK = re.compile(r"^(cpu\d+|GPU|EMC|DLA\d\w*):?\s.*?MinFreq=(\d+)\s+MaxFreq=(\d+)\s+CurrentFreq=(\d+)", re.MULTILINE)


# --- nvpmodel, jetson_clocks -----------------------------------------------------------------------------------------


def parse_nvpmodel(text: str) -> str:
    """The power mode that ``nvpmodel -q`` names, with its number: "MAXN (0)", "25W (1)", "MODE_15W_6CORE (2)".

    Raises:
        ValueError: The text names none.
    """
    lines = [line.strip() for line in text.splitlines()]
    for index, line in enumerate(lines):
        if found := _MODE.search(line):
            number = next((after for after in lines[index + 1 :] if after), "")
            return f"{found[1]} ({number})" if number.isdigit() else found[1]
    raise ValueError(repr(text.strip()[:60]))


def parse_jetson_clocks(text: str) -> bool:
    """Whether ``jetson_clocks --show`` says that the clocks are locked: minimum = maximum on every CPU and the GPU.

    Raises:
        ValueError: The text names neither CPUs nor a GPU.
    """
    offline = set(re.findall(r"^(cpu\d+):\s+Online=0", text, re.MULTILINE))
    ranges = [
        (int(low), int(high))
        for name, low, high, _ in _CLOCK.findall(text)
        if not name.startswith(("EMC", "DLA")) and name not in offline
    ]
    if not ranges:
        raise ValueError(repr(text.strip()[:60]))
    return all(low == high for low, high in ranges)


def facts() -> list[Reading]:
    """Power mode and locked clocks; unknown, with the reason, where the programs are not there or need root."""
    return [
        _from_program("jetson.power_mode", ["nvpmodel", "-q"], parse_nvpmodel),
        _from_program("jetson.clocks_locked", ["jetson_clocks", "--show"], parse_jetson_clocks),
    ]


def _from_program(name: str, command: list[str], parse: Callable[[str], str | bool]) -> Reading:
    source = " ".join(command)
    program = shutil.which(command[0]) or shutil.which(command[0], path="/usr/sbin:/usr/bin")
    if program is None:
        return unknown(name, f"there is no {command[0]} on this machine", source=source)
    try:
        done = subprocess.run(
            [program, *command[1:]], capture_output=True, text=True, timeout=20, check=False, errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired) as problem:
        return unknown(name, f"{command[0]} did not answer: {type(problem).__name__}", source=source)
    try:
        return Reading(name=name, value=parse(done.stdout), source=source)
    except ValueError:
        said = (done.stderr or done.stdout).strip().splitlines()
        return unknown(name, f"{command[0]} says: {said[0] if said else 'nothing'}", source=source)


def gpu_frequency(root: Path = ROOT) -> list[Reading]:
    """Frequency of the built-in GPU now (devfreq), MHz; nothing where there is none. It is 0 only without power."""
    readings = []
    for folder in sorted((root / "sys/class/devfreq").glob("*")):
        if _GPU_DEVFREQ.search(folder.name):
            found = read_number(
                "jetson.frequency.gpu", folder / "cur_freq", root=root, unit="MHz", scale=1e-6, kind="level"
            )
            if found.value == 0:
                why = "the GPU has no power"
                found = unknown(found.name, why, source=found.source, unit="MHz", kind="level")
            readings.append(found)
    return readings


# --- tegrastats ------------------------------------------------------------------------------------------------------


def parse_tegrastats(line: str) -> list[Reading]:
    """One line of tegrastats as readings.

    It knows the lines of JetPack 3 to 7: with and without a date, "POM_5V_IN 4250/4250" and "VDD_IN 5079mW/4900mW",
    "GR3D 3%@76", "GR3D_FREQ 0%@[306,306]", "GR3D_FREQ @[1574,1574,1574]" with the clocks alone, cores that are "off",
    and -256 °C for a block without power.

    Args:
        line: As tegrastats prints it.

    Returns:
        "jetson.frequency.cpu" (the fastest core), "jetson.load.gr3d", "jetson.temperature.tj", "jetson.power.VDD_IN" …
        One unknown reading named "jetson" where the line holds nothing of this.
    """
    readings: list[Reading] = []
    if found := _CPUS.search(line):
        speeds = [int(one) for one in re.findall(r"%@(\d+)", found[1])] or ([int(found[2])] if found[2] else [])
        loads = [int(one) for one in re.findall(r"(\d+)%", found[1])]
        readings += [_level("jetson.frequency.cpu", float(max(speeds)), "MHz")] if speeds else []
        readings += [_level("jetson.load.cpu", sum(loads) / len(loads), "%")] if loads else []
    for name, load, clocks in _LOADS.findall(line):
        short, fastest = name.removesuffix("_FREQ").lower(), max(map(int, re.findall(r"\d+", clocks)), default=0)
        readings += [_level(f"jetson.load.{short}", float(load), "%")] if load else []
        readings += [_level(f"jetson.frequency.{short}", float(fastest), "MHz")] if fastest else []
    readings += _tegra_temperatures(line)
    for name, now, _ in _POWER.findall(line):
        if name not in ("RAM", "SWAP", "IRAM", "NC"):
            readings.append(_level(f"jetson.power.{name}", int(now) / 1e3, "W"))
    if found := _RAM.search(line):
        readings.append(_level("jetson.memory", float(found[1]), "MiB"))
    return readings or [
        unknown("jetson", f"tegrastats printed {line.strip()[:60]!r}", source="tegrastats", kind="level")
    ]


def _tegra_temperatures(line: str) -> list[Reading]:
    readings = []
    for name, text in _TEMPERATURE.findall(line):
        celsius, label = float(text), f"jetson.temperature.{name.lower()}"
        if name.lower() == "pmic":
            continue  # a constant 100 °C
        if _SANE_CELSIUS[0] <= celsius <= _SANE_CELSIUS[1]:
            readings.append(_level(label, celsius, "°C"))
        else:
            why = f"tegrastats says {celsius:g} °C: the block has no power"
            readings.append(unknown(label, why, source="tegrastats", unit="°C", kind="level"))
    return readings


def _level(name: str, value: float, unit: str) -> Reading:
    return Reading(name=name, value=value, unit=unit, source="tegrastats", kind="level")


class Tegrastats(AbstractContextManager["Tegrastats"]):
    """tegrastats as a process of its own; its lines are fetched when somebody asks, so no thread runs here.

    Args:
        interval_ms: How often it prints.
        command: The program and its arguments before ``--interval``; found on the path without it.
    """

    def __init__(self, interval_ms: int = 1000, command: list[str] | None = None) -> None:
        self._interval_ms, self._command = interval_ms, command
        self._process: subprocess.Popen[bytes] | None = None
        self._rest = b""
        self.problem = ""

    def __enter__(self) -> Tegrastats:
        program = shutil.which("tegrastats") or shutil.which("tegrastats", path="/usr/bin")
        command = self._command or ([program] if program else None)
        if command is None:
            self.problem = "there is no tegrastats on this machine"
            return self
        try:
            self._process = subprocess.Popen(
                [*command, "--interval", str(self._interval_ms)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        except OSError as error:
            self.problem = f"tegrastats does not start: {error.strerror}"
            return self
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()

    def lines(self) -> list[tuple[int, str]]:
        """Lines since the last call, each with its time on the monotonic clock (ns), to within the interval."""
        if self._process is None or self._process.stdout is None:
            return []
        chunks = []
        while chunk := self._process.stdout.read(65536):
            chunks.append(chunk)
        *whole, self._rest = (self._rest + b"".join(chunks)).split(b"\n")
        now, step = time.perf_counter_ns(), self._interval_ms * 1_000_000
        texts = [line.decode("utf-8", "replace") for line in whole if line.strip()]
        return [(now - (len(texts) - 1 - index) * step, text) for index, text in enumerate(texts)]

    def sample(self) -> list[Reading]:
        """Readings of the newest line; unknown where none has come yet or the program is not there."""
        if self.problem:
            return [unknown("jetson", self.problem, source="tegrastats", kind="level")]
        lines = self.lines()
        return parse_tegrastats(lines[-1][1]) if lines else []


# --- jetson-stats ----------------------------------------------------------------------------------------------------


class Jtop(AbstractContextManager["Jtop"]):
    """jetson-stats, where the package and its service are there: power, temperatures, fans; power mode and clocks.

    Args:
        client: An open ``jtop.jtop()``, or what answers like one; the package's without it.
    """

    def __init__(self, client: Any = None) -> None:
        self._client = client
        self._own = client is None
        self.problem = ""

    def __enter__(self) -> Jtop:
        if self._client is None:
            try:
                package = importlib.import_module("jtop")
            except ImportError:
                self.problem = "the package jetson-stats is not installed"
                return self
            try:
                self._client = package.jtop()
                self._client.start()
            except (package.JtopException, OSError) as error:
                self._client, self.problem = None, f"the jtop service does not answer: {error}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._own and self._client is not None:
            self._client.close()

    def facts(self) -> list[Reading]:
        """Power mode and whether the clocks are locked, by the names that :func:`facts` has; it takes no root."""
        return [
            self._fact("jetson.power_mode", "nvpmodel", lambda found: f"{found.name} ({found.id})"),
            self._fact("jetson.clocks_locked", "jetson_clocks", bool),
        ]

    def _fact(self, name: str, attribute: str, read: Callable[[Any], str | bool]) -> Reading:
        source = f"jtop.{attribute}"
        if self._client is None:
            return unknown(name, self.problem or "it is not open", source=source)
        try:
            found = getattr(self._client, attribute, None)
            if found is None:
                return unknown(name, "jtop knows none on this board", source=source)
            return Reading(name=name, value=read(found), source=source)
        except (AttributeError, LookupError, TypeError, ValueError, OSError) as problem:
            return unknown(name, f"jtop did not tell: {type(problem).__name__}", source=source)

    def sample(self) -> list[Reading]:
        """Power of each rail and of the board (W), temperatures (°C), and speeds of fans (share of the highest)."""
        if self._client is None:
            return [unknown("jtop", self.problem or "it is not open", source="jtop", kind="level")]
        readings = []
        power = getattr(self._client, "power", None) or {}
        rails = {**(power.get("rail") or {}), "total": power.get("tot") or {}}
        for name, rail in rails.items():
            if isinstance(rail.get("power"), int | float):
                watts = rail["power"] / 1e3
                readings.append(
                    Reading(name=f"jtop.power.{name}", value=watts, unit="W", source="jtop.power", kind="level")
                )
        for name, zone in (getattr(self._client, "temperature", None) or {}).items():
            celsius = zone.get("temp") if zone.get("online", True) else None
            label, source = f"jtop.temperature.{name}", "jtop.temperature"
            if isinstance(celsius, int | float) and _SANE_CELSIUS[0] <= celsius <= _SANE_CELSIUS[1]:
                readings.append(Reading(name=label, value=float(celsius), unit="°C", source=source, kind="level"))
            else:
                readings.append(unknown(label, "the sensor is off", source=source, unit="°C", kind="level"))
        for name, fan in (getattr(self._client, "fan", None) or {}).items():
            for place, speed in enumerate(fan.get("speed") or ()):
                label, source = f"jtop.fan.{name}.{place}", "jtop.fan"
                if isinstance(speed, int | float) and 0 <= speed <= _PERCENT:
                    readings.append(
                        Reading(name=label, value=speed / _PERCENT, unit="share", source=source, kind="level")
                    )
                else:
                    readings.append(unknown(label, "jtop tells no speed", source=source, unit="share", kind="level"))
        return readings or [unknown("jtop", "jtop has no power rails and no temperatures", source="jtop", kind="level")]
