"""A reading: a value with its unit and where it came from, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

Value: TypeAlias = float | int | str | bool
Kind: TypeAlias = Literal["fact", "level", "counter"]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One value of one sensor at one moment.

    A value that could not be read is None and ``why`` says the reason; it is never a zero.
    """

    name: str
    """As "cpu.governor" or "temperature.x86_pkg_temp"."""
    value: Value | None
    unit: str = ""
    """"MHz", "°C", "W", "J", "s", "count", "share"; empty for texts and flags."""
    source: str
    """The file or the call that was read."""
    why: str = ""
    """Why the value is unknown; empty exactly where there is a value."""
    kind: Kind = "fact"
    """A fact is read once; a level is sampled; a counter is sampled and only its increase means something."""
    wraps_at: float | None = None
    """The value after which a counter starts again from zero, in ``unit``; None where it does not."""

    def __post_init__(self) -> None:
        if (self.value is None) != bool(self.why):
            raise ValueError(f"{self.name}: a reading has a value or a reason why not, and not both")

    def to_json(self) -> dict[str, Any]:
        """Plain values; an unknown value is null and has its reason beside it."""
        found = {key: value for key, value in asdict(self).items() if value not in ("", None) and key != "value"}
        return {"name": found.pop("name"), "value": self.value, **found}


Source: TypeAlias = Callable[[], Sequence[Reading]]
"""Reads some sensors now. It never raises for a sensor that does not answer: that is a reading, too."""


def unknown(name: str, why: str, *, source: str, unit: str = "", kind: Kind = "fact") -> Reading:
    """A reading without a value.

    Args:
        name: Of the sensor.
        why: A clause that says why there is none.
        source: The file or call that was asked.
        unit: That the value would have had.
        kind: Of the sensor.
    """
    return Reading(name=name, value=None, unit=unit, source=source, why=why, kind=kind)


def shown(path: Path, root: Path) -> str:
    """A file as it is called on the machine that ``root`` is the top folder of."""
    return "/" + path.relative_to(root).as_posix()


def reason_of(problem: OSError | ValueError) -> str:
    """Why a file gave no value, in a clause."""
    if isinstance(problem, FileNotFoundError):
        return "this machine has no such file"
    if isinstance(problem, PermissionError):
        return "this user may not read it"
    if isinstance(problem, OSError):
        return f"reading it failed: {(problem.strerror or type(problem).__name__).lower()}"
    return f"what it says is not a number: {problem}"


def text_of(path: Path) -> str:
    """The content of a small file of the kernel's, without the white space and zero bytes around it.

    Raises:
        OSError: It cannot be read.
    """
    return path.read_bytes().decode("utf-8", "replace").strip(" \t\r\n\0")


def number_of(path: Path) -> float:
    """The number that a file of the kernel's holds.

    Raises:
        OSError: The file cannot be read.
        ValueError: It holds something else; the message is what it holds, shortened.
    """
    text = text_of(path)
    try:
        number = float(text)
    except ValueError:
        raise ValueError(repr(text[:40])) from None
    if number != number or number in (float("inf"), float("-inf")):
        raise ValueError(repr(text[:40]))
    return number


def read_number(
    name: str,
    path: Path,
    *,
    root: Path,
    unit: str,
    scale: float = 1.0,
    kind: Kind = "fact",
    wraps_at: float | None = None,
) -> Reading:
    """A number in a file, as a reading; unknown, with the reason, where there is none.

    Args:
        name: Of the reading.
        path: The file.
        root: The machine's top folder.
        unit: Of the reading.
        scale: What the file's number is multiplied with to be in ``unit``.
        kind: Of the sensor.
        wraps_at: Of a counter, in ``unit``.
    """
    source = shown(path, root)
    try:
        value = number_of(path) * scale
    except (OSError, ValueError) as problem:
        return unknown(name, reason_of(problem), source=source, unit=unit, kind=kind)
    return Reading(name=name, value=value, unit=unit, source=source, kind=kind, wraps_at=wraps_at)


def read_text(name: str, path: Path, *, root: Path, empty: str = "") -> Reading:
    """A text in a file, as a reading; unknown, with the reason, where there is none.

    Args:
        name: Of the reading.
        path: The file.
        root: The machine's top folder.
        empty: What an empty file means; without it, that the value is unknown.
    """
    source = shown(path, root)
    try:
        text = text_of(path) or empty
    except OSError as problem:
        return unknown(name, reason_of(problem), source=source)
    return Reading(name=name, value=text, source=source) if text else unknown(name, "it is empty", source=source)
