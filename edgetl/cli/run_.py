"""edgetl run: what a bundle says of images, texts or rows."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgetl.cli.options import Json, Key
from edgetl.cli.terminal import print_json, print_text
from edgetl.errors import UsageError
from edgetl.report.markup import one_line

if TYPE_CHECKING:
    from edgetl.runtime.bundle import Likeness
    from edgetl.runtime.decision import Prediction


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command(name="run", help="Predict with a bundle: label and probability of each input.")(_run)


def _run(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder.", show_default=False)],
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="Image files; text files; files with a row as a JSON object. Of faces two or more: the first is"
            " compared with the others.",
            show_default=False,
        ),
    ],
    text: Annotated[
        bool, typer.Option("--text", help="The inputs are texts, or rows as JSON objects, and not files.")
    ] = False,
    target: Annotated[str | None, typer.Option("--target", help="Whose engine [default: the fastest here].")] = None,
    precision: Annotated[str | None, typer.Option("--precision", help="Of the engine.")] = None,
    key: Key = None,
    replay: Annotated[
        bool, typer.Option("--replay/--no-replay", help="Try the engine on the bundle's golden inputs first.")
    ] = True,
    json: Json = False,
) -> None:
    from edgetl.runtime.bundle import open_bundle

    opened = open_bundle(bundle, key=key, replay=replay)
    if text and opened.preprocessing.kind == "image":
        raise UsageError("--text is for bundles that take texts or rows; this one takes images")
    sources: list[Path | bytes | str] = [item if text else Path(item) for item in inputs]
    compares = opened.decision.kind == "similarity"
    if compares and len(inputs) < 2:
        raise UsageError("this bundle compares inputs, and was given one", hint="edgetl run BUNDLE FIRST SECOND …")
    found: list[Any] = []
    with opened.open(target=target, precision=precision) as model:
        found += model.compare(sources[0], sources[1:]) if compares else model.predict(sources)
        engine = f"{model.engine.target} {model.engine.precision}"
    named = inputs[1:] if compares else inputs
    if json:
        items = [{"input": name, **asdict(item)} for name, item in zip(named, found, strict=True)]
        print_json("run", {"engine": engine, "comparisons" if compares else "predictions": items})
        return
    for name, item in zip(named, found, strict=True):
        print_text(_likeness(inputs[0], name, item) if compares else _prediction(name, item))


def _likeness(first: str, second: str, item: Likeness) -> str:
    return f"{first} and {second}: {'the same' if item.same else 'not the same'} (cosine {item.cosine:.3f})"


def _prediction(name: str, item: Prediction) -> str:
    if item.present:
        return f"{name}: " + ", ".join(f"{one_line(label)} {share:.3f}" for label, share in item.present)
    others = ", ".join(f"{one_line(label)} {share:.3f}" for label, share in item.top[:3] if label != item.label)
    nothing = one_line(item.label) or "nothing"
    return f"{name}: {nothing} ({item.probability:.3f})" + (f"; then {others}" if others else "")
