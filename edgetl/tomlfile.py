"""TOML files of the user's: read them, find a key's line, suggest the name that was meant."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from edgetl.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_HEADER = re.compile(r"^\s*(\[\[?)\s*([^\]]+?)\s*\]\]?")


def read(path: Path) -> dict[str, Any]:
    """The content of a TOML file.

    Raises:
        ConfigError: The file is not there, cannot be read, is not UTF-8 or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no file {path}", hint="edgetl init --example digits") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error


def parse_value(text: str) -> Any:
    """A TOML value on its own, as ``1``, ``"a"`` or ``[1, 2]``; a bare word is a string.

    So that ``--set model.weights=none`` and ``EDGETL_MODEL_WEIGHTS=none`` need no second pair of quotes.
    """
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question with the nearest known name, or the list of all names: the end of an error message."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f"did you mean '{near[0]}'?"
    return f"known: {', '.join(names)}" if names else "none is known"


def line_of(path: Path, key: Sequence[str | int]) -> int | None:
    """The line on which a key stands, counted from 1; the nearest enclosing table's where it is not found.

    Args:
        path: A TOML file that parses.
        key: Tables, array indices and the key itself, as ``("finetune", "phases", 0, "epohs")``.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    for length in range(len(key), 0, -1):
        found = _find(lines, key[:length])
        if found is not None:
            return found
    return None


def _find(lines: list[str], key: Sequence[str | int]) -> int | None:
    """Line of exactly ``key``: as a header, as ``name =`` under its header, or inside an inline table."""
    names = [part for part in key if isinstance(part, str)]
    if not names:
        return None
    wanted = {index: part for index, part in enumerate(key) if isinstance(part, int)}
    counts: dict[str, int] = {}
    table: list[str] = []
    inside = False
    for number, line in enumerate(lines, 1):
        header = _HEADER.match(line)
        if header:
            table = [part.strip().strip("\"'") for part in header[2].split(".")]
            name = ".".join(table)
            if header[1] == "[[":
                counts[name] = counts.get(name, -1) + 1
            position = wanted.get(len(table), 0)
            inside = header[1] == "[" or counts[name] == position
            if inside and table == names:
                return number
            continue
        if table and not inside:
            continue
        rest = names[len(table) :] if names[: len(table)] == table else None
        if rest and _line_has(lines, number, rest, key):
            return number
    return None


def _line_has(lines: list[str], number: int, names: list[str], key: Sequence[str | int]) -> bool:
    """Whether the last of ``names`` is assigned on this line, directly or inside its parent's inline table."""
    line = lines[number - 1].split("#", 1)[0]
    last = re.escape(names[-1])
    if len(names) == 1:
        return re.match(rf"\s*[\"']?{last}[\"']?\s*=", line) is not None
    if not re.search(rf"(?<![\w.-])[\"']?{last}[\"']?\s*=", line):
        return False
    for before in range(number, 0, -1):
        text = lines[before - 1].split("#", 1)[0]
        if _HEADER.match(text) and "=" not in text.split("[", 1)[0]:
            return False
        if re.match(rf"\s*{re.escape(names[0])}\s*=", text):
            index = next((part for part in key if isinstance(part, int)), 0)
            tables = "\n".join(lines[before - 1 : number]).count("{")
            return before != number or tables <= 1 or _nth_table_has(line, index, names[-1])
    return False


def _nth_table_has(line: str, index: int, name: str) -> bool:
    tables = re.findall(r"\{([^}]*)\}", line)
    return index >= len(tables) or re.search(rf"(?<![\w-]){re.escape(name)}\s*=", tables[index]) is not None
