"""TOML files of the user's: read them, find a key's line, suggest the name that was meant."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from edgetl.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_CLOSINGS = ("", "\n]", "\n]]", "\n]]]", '\n"""', "\n'''")


def read(path: Path) -> dict[str, Any]:
    """The content of a TOML file.

    Raises:
        ConfigError: The file is not there, cannot be read, is not UTF-8 or is not TOML.
    """
    try:
        return tomllib.loads(_text(path))
    except FileNotFoundError:
        raise ConfigError(f"there is no file {path}", hint="edgetl init --example digits") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    except ValueError as error:  # TOMLDecodeError, and int()'s own for a number of thousands of digits
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    except RecursionError:
        raise ConfigError(f"{path}: not valid TOML: it is nested too deeply") from None


def parse_value(text: str) -> Any:
    """A TOML value on its own, as ``1``, ``"a"`` or ``[1, 2]``; a bare word is a string.

    So that ``--set model.weights=none`` and ``EDGETL_MODEL_WEIGHTS=none`` need no second pair of quotes.
    """
    document = _parsed(f"value = {text}")
    return document["value"] if document is not None and list(document) == ["value"] else text


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
    return lines_of(path, [key])[0]


def lines_of(path: Path, keys: Iterable[Sequence[str | int]]) -> list[int | None]:
    """The line of each of several keys, as :func:`line_of` tells it.

    Args:
        path: A TOML file that parses; it is read once.
        keys: Each as for :func:`line_of`.
    """
    documents = list(_prefixes(_text(path).split("\n")))
    return [_line_in(documents, key) for key in keys]


def _line_in(documents: Sequence[dict[str, Any] | None], key: Sequence[str | int]) -> int | None:
    for length in range(len(key), 0, -1):
        for number, document in enumerate(documents, 1):
            if document is not None and holds(document, key[:length]):
                return number
    return None


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8-sig")  # some editors put a byte order mark in front


def _prefixes(lines: list[str]) -> Iterator[dict[str, Any] | None]:
    """What the first line says, the first two, and so on: a key stands on the line with which it appears.

    A cut inside a list or a long string is closed for the purpose; None where that does not give TOML either.
    """
    for number in range(1, len(lines) + 1):
        text = "\n".join(lines[:number])
        yield next((found for closing in _CLOSINGS if (found := _parsed(text + closing)) is not None), None)


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        return tomllib.loads(text)
    except ValueError:
        return None


def holds(document: Any, key: Sequence[str | int]) -> bool:
    """Whether a parsed document has a key, given as for :func:`line_of`."""
    for part in key:
        if isinstance(part, int):
            if not isinstance(document, list) or part >= len(document):
                return False
        elif not isinstance(document, dict) or part not in document:
            return False
        document = document[part]
    return True
