"""Who used the processors: this measurement, other processes, the hypervisor; and who was made to wait."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from edgetl.benchmark.sensors.linux import ROOT, allowed_cpus, cpu_ranges
from edgetl.benchmark.sensors.reading import Reading, reason_of, shown, text_of, unknown

_TICKS_PER_S = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100

_BUSY = (0, 1, 2, 5, 6)
"""Columns of /proc/stat: user, nice, system, irq, softirq. Guests are in user and nice already."""
_IDLE, _IOWAIT, _STEAL = 3, 4, 7


def parse_stat(text: str, cpus: Collection[int]) -> dict[str, float]:
    """Seconds that some processors were busy, idle, waiting for a disk and stolen by the hypervisor, since the start.

    Args:
        text: Of /proc/stat.
        cpus: The processors to add up.

    Returns:
        "busy", "idle", "iowait", "steal", in seconds.

    Raises:
        ValueError: A line is not what proc(5) says, or one of the processors is not there.
    """
    wanted = {f"cpu{cpu}" for cpu in cpus}
    total = dict.fromkeys(("busy", "idle", "iowait", "steal"), 0.0)
    for line in text.splitlines():
        name, *fields = line.split()[:9] or [""]
        if name in wanted:
            wanted.remove(name)
            columns = [int(field) for field in fields]
            if len(columns) <= _IDLE:
                raise ValueError(repr(line[:40]))
            columns += [0] * (8 - len(columns))  # kernels before 2.6.11 have no steal
            total["busy"] += sum(columns[index] for index in _BUSY)
            total["idle"] += columns[_IDLE]
            total["iowait"] += columns[_IOWAIT]
            total["steal"] += columns[_STEAL]
    if wanted:
        raise ValueError(f"it has no line for {', '.join(sorted(wanted))}")
    return {key: ticks / _TICKS_PER_S for key, ticks in total.items()}


def processor_times(root: Path = ROOT, cpus: Sequence[int] | None = None) -> list[Reading]:
    """Busy, idle, waiting and stolen seconds of the processors that may be used; counters."""
    cpus = allowed_cpus() if cpus is None else cpus
    source = f"/proc/stat (cpu {cpu_ranges(cpus)})"
    try:
        found = parse_stat(text_of(root / "proc/stat"), cpus)
    except (OSError, ValueError) as problem:
        why = reason_of(problem) if isinstance(problem, OSError) else f"it is not as expected: {problem}"
        return [
            unknown(f"cpu.{key}", why, source=source, unit="s", kind="counter")
            for key in ("busy", "idle", "iowait", "steal")
        ]
    return [
        Reading(name=f"cpu.{key}", value=value, unit="s", source=source, kind="counter") for key, value in found.items()
    ]


def own_times(root: Path = ROOT, pid: int | None = None) -> list[Reading]:
    """CPU seconds of a process, of every process that it started, and of those that have ended; a counter.

    Args:
        root: The machine's top folder.
        pid: The process; this one without it.
    """
    pid = os.getpid() if pid is None else pid
    source = "/proc/PID/stat of this process and its children"
    try:
        total = sum(_process_seconds(root, one, needed=one == pid) for one in _family(root, pid))
    except (OSError, ValueError, IndexError) as problem:
        why = reason_of(problem) if isinstance(problem, OSError) else f"it is not as expected: {problem}"
        return [unknown("cpu.own", why, source=source, unit="s", kind="counter")]
    return [Reading(name="cpu.own", value=total, unit="s", source=source, kind="counter")]


def _family(root: Path, pid: int) -> list[int]:
    """The process and all that descend from it.

    Raises:
        OSError: The kernel does not tell the children (CONFIG_PROC_CHILDREN).
    """
    found = [pid]
    for one in found:  # it grows while it is walked
        try:
            tasks = sorted((root / f"proc/{one}/task").iterdir())
        except OSError:
            if one == pid:
                raise
            continue  # it ended just now
        for task in tasks:
            try:
                found += map(int, text_of(task / "children").split())
            except OSError:
                if one == pid and task.name == str(pid):
                    raise
    return found


def _process_seconds(root: Path, pid: int, *, needed: bool) -> float:
    try:
        text = text_of(root / f"proc/{pid}/stat")
    except OSError:
        if needed:
            raise
        return 0.0
    # The name is in brackets and may hold any character, brackets too; utime is field 14 of proc(5).
    fields = text.rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15]) / _TICKS_PER_S if len(fields) > 14 else _short(text)


def _short(text: str) -> float:
    raise ValueError(repr(text[:40]))


def pressure(root: Path = ROOT) -> list[Reading]:
    """Seconds in which at least one task had to wait for a processor, memory or a disk (PSI); counters."""
    readings = []
    for part in ("cpu", "memory", "io"):
        path, name = root / f"proc/pressure/{part}", f"pressure.{part}"
        try:
            value = parse_pressure(text_of(path))
            found = Reading(name=name, value=value, unit="s", source=f"/proc/pressure/{part}", kind="counter")
        except (OSError, ValueError) as problem:
            why = reason_of(problem) if isinstance(problem, OSError) else f"it is not as expected: {problem}"
            found = unknown(name, why, source=f"/proc/pressure/{part}", unit="s", kind="counter")
        readings.append(found)
    return readings


def parse_pressure(text: str) -> float:
    """Seconds in the "some" line of a PSI file.

    Raises:
        ValueError: There is none.
    """
    for line in text.splitlines():
        if line.startswith("some "):
            for field in line.split():
                key, _, value = field.partition("=")
                if key == "total":
                    return int(value) / 1e6
    raise ValueError(repr(text[:40]))


def control_group(root: Path = ROOT) -> list[Reading]:
    """How often and how long quotas held this process back; counters. Both versions of cgroups.

    A group tells of its own quota alone, so those of the groups around it are added.
    """
    names = {"cgroup.periods_throttled": "count", "cgroup.throttled": "s"}
    path, why = _cpu_stat(root)
    source = _named(path, root)
    found: dict[str, float] = {}
    if path is not None:
        try:
            found = parse_cpu_stat(text_of(path))
            why = "this group has no quota of processor time"
            for folder in _around(path.parent, root):
                for name, value in _throttled_in(folder).items():
                    found[name] = found.get(name, 0.0) + value
        except (OSError, ValueError) as problem:
            why = reason_of(problem) if isinstance(problem, OSError) else f"it is not as expected: {problem}"
    return [
        Reading(name=name, value=found[name], unit=unit, source=source, kind="counter")
        if name in found
        else unknown(name, why, source=source, unit=unit, kind="counter")
        for name, unit in names.items()
    ]


def _throttled_in(folder: Path) -> dict[str, float]:
    """What a group's cpu.stat says of throttling; nothing where there is none, as in the top one."""
    try:
        return parse_cpu_stat(text_of(folder / "cpu.stat"))
    except (OSError, ValueError):
        return {}


def _around(group: Path, root: Path) -> Iterator[Path]:
    """The groups around one, from the inside out, to the top one."""
    top = root / "sys/fs/cgroup"
    for folder in group.parents:
        if folder == top.parent:
            return
        yield folder


def parse_cpu_stat(text: str) -> dict[str, float]:
    """What a cpu.stat says of throttling: times in µs in version 2 (``throttled_usec``), ns in version 1.

    Raises:
        ValueError: A line holds no number.
    """
    table = dict(line.split(None, 1) for line in text.splitlines() if len(line.split()) == 2)
    found = {}
    if "nr_throttled" in table:
        found["cgroup.periods_throttled"] = float(int(table["nr_throttled"]))
    if "throttled_usec" in table:
        found["cgroup.throttled"] = int(table["throttled_usec"]) / 1e6
    elif "throttled_time" in table:
        found["cgroup.throttled"] = int(table["throttled_time"]) / 1e9
    return found


def quota(root: Path = ROOT) -> Reading:
    """How many processors' time the control group of this process, or one around it, may use at most; a fact."""
    path, why = _cpu_stat(root)
    least: float | None = None
    source = _named(path, root)
    for folder in (path.parent, *_around(path.parent, root)) if path is not None else ():
        found = _quota_of(folder)
        if found is not None and (least is None or found < least):
            least, source = found, shown(folder, root)
    if least is None:
        return unknown(
            "cgroup.quota", why or "no group has a quota of processor time", source=source, unit="processors"
        )
    return Reading(name="cgroup.quota", value=least, unit="processors", source=source)


def _quota_of(folder: Path) -> float | None:
    """Of one group: cpu.max in version 2 of control groups, cpu.cfs_quota_us and its period in version 1."""
    try:
        part, period = text_of(folder / "cpu.max").split()
    except (OSError, ValueError):
        try:
            part, period = (text_of(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        except OSError:
            return None
    try:
        share = int(part) / int(period)
    except (ValueError, ZeroDivisionError):  # "max"
        return None
    return share if share > 0 else None  # -1: none


def _named(path: Path | None, root: Path) -> str:
    """The file as the machine calls it, or where it was looked for."""
    return "/proc/self/cgroup" if path is None else "/" + path.relative_to(root).as_posix()


def _cpu_stat(root: Path) -> tuple[Path | None, str]:
    """The cpu.stat of the group that this process is in; else why there is none."""
    try:
        lines = text_of(root / "proc/self/cgroup").splitlines()
    except OSError as problem:
        return None, reason_of(problem)
    groups = {}
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        groups[controllers] = group.lstrip("/")
    for controllers, group in groups.items():
        if "cpu" in controllers.split(","):
            for mount in (controllers, "cpu", "cpu,cpuacct"):
                for inner in (group, ""):  # inside a container the group's own folder is the top one
                    path = root / "sys/fs/cgroup" / mount / inner / "cpu.stat"
                    if path.is_file():
                        return path, ""
    for mount in ("", "unified"):
        for inner in (groups.get("", ""), ""):
            path = root / "sys/fs/cgroup" / mount / inner / "cpu.stat"
            if path.is_file():
                return path, ""
    return None, "no cpu.stat was found for this process's group"
