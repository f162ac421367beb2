"""edgetl bench: latency of models and bundles, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgetl.cli.options import Json
from edgetl.cli.terminal import TerminalReporter, print_json, print_table, print_text


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command(name="bench", help="Time models and bundles, interleaved in one process.")(_bench)


def _bench(
    things: Annotated[list[Path], typer.Argument(help="Bundles, .onnx, .xml and .engine files.", show_default=False)],
    against: Annotated[list[Path] | None, typer.Option("--against", help="Compare with this; may be repeated.")] = None,
    samples: Annotated[int, typer.Option("--samples", min=20, help="Timed calls each.")] = 700,
    warmup: Annotated[int, typer.Option("--warmup", min=1, help="Calls each before the first timed one.")] = 20,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Per engine [default: one per core].")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="For dynamic batches.")] = 1,
    size: Annotated[int | None, typer.Option("--size", min=1, help="For other dynamic dimensions.")] = None,
    provider: Annotated[
        str, typer.Option("--provider", help="ONNX Runtime's execution provider for .onnx files.")
    ] = "CPUExecutionProvider",
    json: Json = False,
) -> None:
    from edgetl.benchmark import environment
    from edgetl.pipeline import own_model

    used = threads or environment.usable_cores()
    measured = own_model.bench_things(
        [*things, *(against or [])],
        samples=samples,
        warmup=warmup,
        threads=used,
        batch_size=batch_size,
        size=size,
        provider=provider,
        reporter=TerminalReporter(),
    )
    first = measured[0].latency.p50_ms
    facts = {**environment.environment(), "threads": used, "load_average": environment.load_average()}
    if json:
        found = [
            {"name": item.name, "inputs": list(item.inputs), "ratio_p50": item.latency.p50_ms / first,
             **item.latency.to_json()}
            for item in measured
        ]  # fmt: skip
        print_json("bench", {"environment": facts, "measured": found})
        return
    print_table(
        ["", "p50 ms", "p90 ms", "p99 ms", "calls", "p50 / first"],
        [
            [
                item.name,
                f"{item.latency.p50_ms:.3f}",
                f"{item.latency.p90_ms:.3f}",
                f"{item.latency.p99_ms:.3f}" + ("" if item.latency.p99_backed else " (few calls)"),
                str(item.latency.samples),
                f"{item.latency.p50_ms / first:.2f}×",
            ]
            for item in measured
        ],
        right=(1, 2, 3, 4, 5),
    )
    print_text(f"\n{facts['cpu']}, {used} threads, load {facts['load_average']}; {', '.join(measured[0].inputs)}")
