"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgetl.errors import UsageError

if TYPE_CHECKING:
    from edgetl.config import Config

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
ConfigPath = Annotated[Path, typer.Argument(help="edgetl.toml, or the folder that holds it.", show_default=False)]
StorePath = Annotated[
    Path | None,
    typer.Option(
        "--store", envvar="EDGETL_STORE", help="Where results are kept [default: .edgetl beside edgetl.toml]."
    ),
]
Key = Annotated[Path | None, typer.Option("--key", help="Public key that must have signed a bundle.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a value: --set finetune.seed=1")
]


def refuse(options: Mapping[str, object], why: str, hint: str) -> None:
    """Refuse options that were given and have no place.

    Args:
        options: Name → value; what is false was not given.
        why: What is said of them.
        hint: What to type instead.

    Raises:
        UsageError: One was given.
    """
    there = [name for name, value in options.items() if value]
    if there:
        raise UsageError(f"{', '.join(there)} {why}", hint=hint)


def load_config(path: Path, assignments: list[str] | None) -> Config:
    """The configuration with ``--set`` applied.

    Raises:
        UsageError: An assignment without "=", or two to one key.
        ConfigError: See :func:`edgetl.config.load`.
    """
    from edgetl import config

    overrides = {}
    for text in assignments or []:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {text}: write KEY=VALUE, as finetune.seed=1")
        if key.strip() in overrides:
            raise UsageError(f"--set {key.strip()}: given more than once, and only one value can hold")
        overrides[key.strip()] = value.strip()
    return config.load(path, overrides)


def store_folder(path: Path, store: Path | None) -> Path:
    """The store of a project."""
    return store or (path if path.is_dir() else path.parent) / ".edgetl"
