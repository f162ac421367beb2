"""New projects from examples."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from edgetl import tomlfile
from edgetl.data.examples import materialise_digits
from edgetl.errors import UnknownNameError, UsageError
from edgetl.store import storage_errors

_EXAMPLES = {"digits": materialise_digits}


@dataclass(frozen=True, kw_only=True)
class Started:
    """What was written."""

    config: Path
    data: Path


def examples() -> tuple[str, ...]:
    """Names of the examples."""
    return tuple(_EXAMPLES)


def init(folder: Path, example: str) -> Started:
    """Write an example's data and its commented edgetl.toml into a folder.

    Args:
        folder: Made where it is not there.
        example: Of :func:`examples`.

    Raises:
        UnknownNameError: There is no such example.
        UsageError: The folder has an edgetl.toml with other content.
        MissingExtraError: The package with the example's data is not installed.
        StorageError: The folder cannot be written.
    """
    if example not in _EXAMPLES:
        raise UnknownNameError(f"there is no example '{example}'; {tomlfile.did_you_mean(example, _EXAMPLES)}")
    text = (files("edgetl") / "data" / "projects" / f"{example}.toml").read_text(encoding="utf-8")
    path = folder / "edgetl.toml"
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise UsageError(f"{path} is there already, with other content", hint="edgetl init ANOTHER_FOLDER")
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        data = _EXAMPLES[example](folder / "data")
        path.write_text(text, encoding="utf-8")
    return Started(config=path, data=data)
