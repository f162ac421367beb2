"""edgetl init: a project to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgetl.cli.options import Json
from edgetl.cli.terminal import print_json, print_text


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command(name="init", help="Write an example project: its data and a commented edgetl.toml.")(_init)


def _init(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Made where it is not there.")] = Path(),
    example: Annotated[
        str,
        typer.Option("--example", help="Which example: digits, multilabel, reviews, credit, lending, photos or faces."),
    ] = "digits",
    source: Annotated[
        Path | None,
        typer.Option(
            "--source",
            help="Of photos and faces: a folder with one sub-folder of images per class or person [default: download].",
        ),
    ] = None,
    json: Json = False,
) -> None:
    from edgetl.pipeline import start

    started = start.init(folder, example, source)
    if json:
        print_json("init", {"config": str(started.config), "data": str(started.data)})
        return
    print_text(f"wrote {started.config} and {started.data}")
    print_text(f"next: edgetl build {started.config}")
