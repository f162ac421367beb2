"""edgetl run: what a bundle says of images."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from edgetl.cli.options import Json
from edgetl.cli.terminal import print_json, print_text


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command(name="run", help="Predict with a bundle: label and probability of each image.")(_run)


def _run(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder.", show_default=False)],
    images: Annotated[list[Path], typer.Argument(help="Image files.", show_default=False)],
    target: Annotated[str | None, typer.Option("--target", help="Whose engine [default: the fastest here].")] = None,
    precision: Annotated[str | None, typer.Option("--precision", help="Of the engine.")] = None,
    key: Annotated[Path | None, typer.Option("--key", help="Public key that must have signed the bundle.")] = None,
    json: Json = False,
) -> None:
    from edgetl.runtime.bundle import open_bundle

    with open_bundle(bundle, key=key).open(target=target, precision=precision) as model:
        predictions = model.predict(images)
        engine = f"{model.engine.target} {model.engine.precision}"
    if json:
        found = [{"input": str(path), **asdict(item)} for path, item in zip(images, predictions, strict=True)]
        print_json("run", {"engine": engine, "predictions": found})
        return
    for path, item in zip(images, predictions, strict=True):
        others = ", ".join(f"{label} {share:.3f}" for label, share in item.top[1:3])
        print_text(f"{path}: {item.label} ({item.probability:.3f})" + (f"; then {others}" if others else ""))
