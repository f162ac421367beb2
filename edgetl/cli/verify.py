"""edgetl verify: is a bundle what it says?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from edgetl.cli.options import Json, Key
from edgetl.cli.terminal import print_json, print_text
from edgetl.numbers import counted


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command(name="verify", help="Check a bundle's files and signature, and replay its golden inputs.")(_verify)


def _verify(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder.", show_default=False)],
    key: Key = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Labelled samples: measure the metric on them too.")
    ] = None,
    layers: Annotated[
        bool, typer.Option("--layers", help="Find the first layer at which an engine leaves the float graph.")
    ] = False,
    json: Json = False,
) -> None:
    from edgetl.pipeline import check

    found = check.verify_bundle(bundle, key=key, data=data, layers=layers)
    if json:
        print_json("verify", asdict(found))
        return
    print_text(
        f"{counted(found.files, 'file is', 'files are')} as the manifest says; signed by {found.signed_by or 'nobody'}"
    )
    print_text(f"preprocessing: largest difference of a golden tensor {found.preprocessing_difference:.1e}")
    if found.graph_db is not None:
        print_text(f"model.onnx: SQNR {found.graph_db:.1f} dB to PyTorch on the golden inputs")
    else:
        print_text(f"model.onnx: not run: {found.graph_skipped}")
    for item in found.engines:
        if item.skipped:
            print_text(f"{item.name}: not run: {item.skipped}")
            if item.graph_skipped:
                print_text(f"  its graph: not run either: {item.graph_skipped}")
            if item.graph_db is not None:
                print_text(
                    f"  its graph, on the processor: {item.graph_agreeing} of"
                    f" {counted(found.golden, 'golden input')} as PyTorch, SQNR {item.graph_db:.1f} dB"
                )
        else:
            text = (
                f"{item.name}: {item.agreeing} of {counted(item.golden, 'golden input')} as PyTorch,"
                f" SQNR {item.sqnr_db:.1f} dB, alone and in batches up to {item.largest_batch}"
            )
            if item.score is not None:
                text += f"; {item.metric} {item.score:.4f} on {counted(item.samples, 'sample')}"
            print_text(text)
        if item.scales_skipped:
            print_text(f"  scales: not looked at: {item.scales_skipped}")
        if layers and not item.skipped:
            print_text(f"  layers: {item.layers.statement if item.layers else f'not looked at: {item.layers_skipped}'}")
