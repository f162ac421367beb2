"""edgetl quantize: bring your own ONNX."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgetl.cli.options import Json
from edgetl.cli.terminal import TerminalReporter, print_json, print_table, print_text
from edgetl.errors import UsageError
from edgetl.numbers import counted

if TYPE_CHECKING:
    from edgetl.pipeline.own_model import QuantizedModel

_FEW, _MANY = 5, 1_000_000
"""Layers that are shown."""


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    what = "Quantize any ONNX model to int8, or put it into float16, for a target; no training."
    app.command(name="quantize", help=what)(_quantize)


def _quantize(
    model: Annotated[Path, typer.Argument(help="The float graph.", show_default=False)],
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            help="To calibrate with: images (a folder or a manifest), or a .npz file with an array for each input.",
        ),
    ],
    target: Annotated[str, typer.Option("--target", help="A target by name or file: edgetl targets.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The quantized graph.")],
    samples: Annotated[int, typer.Option("--samples", min=1, help="Of the data, at most.")] = 256,
    recipe: Annotated[str, typer.Option("--recipe", help="A recipe by name or file: edgetl recipes.")] = "int8-mse",
    seed: Annotated[int, typer.Option("--seed", help="Of the draw of samples.")] = 0,
    size: Annotated[int | None, typer.Option("--size", min=8, max=4096, help="Where the input is dynamic.")] = None,
    resize: Annotated[str | None, typer.Option("--resize", help="crop, stretch or pad.")] = None,
    crop_pct: Annotated[
        float | None, typer.Option("--crop-pct", min=0.1, max=1.0, help="Kept share of the shorter side.")
    ] = None,
    interpolation: Annotated[str | None, typer.Option("--interpolation", help="bicubic, bilinear, nearest.")] = None,
    mean: Annotated[str | None, typer.Option("--mean", help="Per channel on the scale 0 to 1: 0.5,0.5,0.5")] = None,
    std: Annotated[str | None, typer.Option("--std", help="Per channel on the scale 0 to 1: 0.5,0.5,0.5")] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Show all layers, not the worst five alone.")] = False,
    json: Json = False,
) -> None:
    from edgetl.pipeline import own_model, quantized

    given: dict[str, Any] = {
        "height": size,
        "width": size,
        "resize": resize,
        "crop_pct": crop_pct,
        "interpolation": interpolation,
        "mean": _triple("--mean", mean),
        "std": _triple("--std", std),
    }
    contract = {name: value for name, value in given.items() if value is not None}
    if data.suffix == ".npz" and contract:
        raise UsageError(
            f"{', '.join(sorted(contract))} say how images are made into an input; {data.name} is fed as it is",
            hint="leave out --size, --resize, --crop-pct, --interpolation, --mean and --std",
        )
    done = own_model.quantize_model(
        model,
        data,
        output,
        target=target,
        recipe=recipe,
        samples=samples,
        seed=seed,
        preprocessing=contract,
        reporter=TerminalReporter(),
    )
    if json:
        print_json("quantize", *quantized.without_nan([{**asdict(done), "output": str(done.output)}]))
        return
    print_text(f"wrote {done.output}: {_mb(done.size_before_bytes)} → {_mb(done.size_after_bytes)}")
    print_text(f"scheme {done.scheme}, recipe {done.recipe}, {counted(done.samples, 'sample')}")
    fewer, rest = ("float16", "float32") if done.scheme == "float16" else ("int8", "float")
    for bits, counts in ((fewer, done.quantized), (rest, done.left_in_float)):
        if counts:
            print_text(f"in {bits}: " + ", ".join(f"{count} {name}" for name, count in counts.items()))
    print_text(f"against the float graph: SQNR {done.sqnr_db:.1f} dB, top-1 agreement {done.agreement:.3f}")
    _print_layers(done, _MANY if layers else _FEW)


def _print_layers(done: QuantizedModel, most: int) -> None:
    """The layers that lose most, and what corrections did."""
    from edgetl.pipeline.quantized import remarks

    for remark in remarks(done.notes, done.notes):
        print_text(remark)
    if done.layers is None or not done.layers["layers"]:
        return
    found, before = done.layers["layers"], done.notes.get("before_corrections", {})
    shown = found[:most]
    what = f"the {len(shown)} layers of {len(found)} that lose most" if len(shown) < len(found) else "all layers"
    rest = "; --layers shows all" if len(shown) < len(found) else ""
    print_text()
    print_text(f"{what}, SQNR in dB on {counted(done.layers['samples'], 'sample')}, worst first{rest}")
    columns = ["layer", "operator", "alone", *(["before corrections"] if before else []), "in the graph"]
    rows = [
        [
            loss["node"],
            loss["operator"],
            _decibel(loss["isolated_db"]),
            *([_decibel(before.get(loss["node"]))] if before else []),
            _decibel(loss["accumulated_db"]),
        ]
        for loss in shown
    ]
    print_table(columns, rows, right=(2, 3, 4))


def _decibel(value: float | None) -> str:
    from edgetl.quantize.decibels import NO_NOISE_DB

    if value is None:
        return ""
    if math.isnan(value):
        return "overflow"
    return f"{value:.1f}" if value < NO_NOISE_DB else "no loss"


def _triple(flag: str, text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != 3 or not all(map(math.isfinite, values)):
        raise UsageError(f"{flag} {text}: write three numbers, as 0.5,0.5,0.5")
    return values


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
