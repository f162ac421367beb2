"""edgetl inspect: what is inside a bundle or a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from edgetl.cli.options import Json, Key, refuse
from edgetl.cli.terminal import print_json, print_table, print_text
from edgetl.errors import BundleError
from edgetl.numbers import milliseconds
from edgetl.report.markup import one_line


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command(name="inspect", help="Inputs, outputs, labels, precision, operators, size, provenance.")(_inspect)


def _inspect(
    thing: Annotated[Path, typer.Argument(help="A bundle's folder or an ONNX file.", show_default=False)],
    key: Key = None,
    json: Json = False,
) -> None:
    if thing.is_dir():
        _bundle(thing, key, json)
    else:
        refuse({"--key": key}, f"of a bundle: {thing} is no bundle", "edgetl inspect BUNDLE …")
        _model(thing, json)


def _bundle(folder: Path, key: Path | None, json: bool) -> None:
    from edgetl.runtime.bundle import open_bundle

    bundle = open_bundle(folder, key=key)
    manifest = bundle.manifest
    if json:
        print_json("inspect", {**manifest, "signed_by": bundle.verified.signed_by})
        return
    try:
        _manifest(manifest, bundle.verified.signed_by)
    except (KeyError, TypeError, AttributeError) as error:
        raise BundleError(
            f"{folder}: the manifest lacks what a build writes: {error!r}", hint=f"edgetl inspect {folder} --json"
        ) from None


def _manifest(manifest: Mapping[str, Any], signed_by: str | None) -> None:
    print_text(f"{manifest['name']} {manifest['version']}: {manifest['task']}, built by edgetl {manifest['edgetl']}")
    print_text(f"created {manifest['created']}, signed by {signed_by or 'nobody'}")
    for kind in ("inputs", "outputs"):
        for port in manifest[kind]:
            print_text(f"{kind[:-1]}: {port['name']} {port['dtype']}{port['shape']}")
    print_text(f"labels: {_short(manifest['labels'])}")
    print_text(f"preprocessing: {_contract(manifest['preprocessing'])}")
    print_text("provenance: " + ", ".join(f"{k} {v}" for k, v in manifest["provenance"].items() if isinstance(v, str)))
    print_text()
    rows = [
        [
            engine["target"],
            engine["precision"],
            engine["backend"],
            engine["status"],
            f"{engine['size_bytes'] / 1e6:.1f}",
            f"{engine['parity']['score']:.4f}" if engine["parity"] else "-",
            milliseconds(engine["latency"]["p50_ms"]) if engine["latency"] else "-",
            engine["note"],
        ]
        for engine in manifest["engines"]
    ]
    from edgetl.metrics import metric

    names = [engine["parity"]["metric"] for engine in manifest["engines"] if engine["parity"]]
    measured = metric(names[0]).title if names else "metric"
    columns = ["target", "precision", "backend", "status", "MB", measured, "p50 ms", "note"]
    print_table(columns, rows, right=(4, 5, 6))


def _model(path: Path, json: bool) -> None:
    from edgetl.pipeline.describe import describe_model

    found = describe_model(path)
    if json:
        print_json("inspect", found)
        return
    _lines(found)


def _lines(found: dict[str, Any]) -> None:
    print_text(f"{found['path']}: {found['size_bytes'] / 1e6:.1f} MB, operator set {found['opset']}")
    for kind in ("inputs", "outputs"):
        for port in found[kind]:
            print_text(f"{kind[:-1]}: {port['name']} {port['dtype']}{port['shape']}")
    print_text(f"parameters: {found['parameters']:,}; weights by type: " + _counts(found["weights"]))
    print_text(f"operators: {_counts(found['operators'])}")
    print_text(f"quantized activations: {found['quantized_activations']}")
    if found["labels"]:
        print_text(f"labels: {_short(found['labels'])}")
    if found["preprocessing"]:
        print_text(f"preprocessing: {_contract(found['preprocessing'])}")


def _contract(values: dict[str, Any]) -> str:
    from edgetl.runtime.preprocessing import described

    return ", ".join(f"{name} {value}" for name, value in described(values).items())


def _counts(values: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in values.items())


def _short(labels: list[str]) -> str:
    return ", ".join(map(one_line, labels[:12])) + (f" … ({len(labels)})" if len(labels) > 12 else "")
