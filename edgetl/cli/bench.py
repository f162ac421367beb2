"""edgetl bench: latency of models, bundles and checkpoints, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgetl.cli import scenario as one
from edgetl.cli.options import Json, Key
from edgetl.cli.terminal import TerminalReporter, print_error, print_json, print_table, print_text
from edgetl.errors import BudgetError, EdgetlError, MeasurementError, UsageError
from edgetl.numbers import counted

if TYPE_CHECKING:
    from edgetl.benchmark.roofline import Roofline
    from edgetl.pipeline.bench import Benchmark, Measured

_PERCENT = 100.0
_MOST_CALLS = 10_000_000
"""Every call is kept."""
_MOST_PROCESSES = 1000
"""Each takes about half a second to start."""
_MOST_THREADS = 1024
"""More than any machine has cores: a slip of the finger, which would keep the machine busy for minutes."""
_SHOWN = {"p999": "p99.9"}
"""Names of percentiles that print in another way."""


class Undecided(str, Enum):
    """What becomes of a gate that the measurement does not decide, or of a measurement that is UNSTABLE."""

    fail = "fail"
    allow = "allow"


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command(name="bench", help="Time models, bundles and checkpoints, interleaved, in fresh processes.")(_bench)


def _bench(
    context: typer.Context,
    things: Annotated[
        list[Path],
        typer.Argument(
            help="Bundles, .onnx, .xml and .engine files, PyTorch checkpoints, engines' folders.", show_default=False
        ),
    ],
    against: Annotated[list[Path] | None, typer.Option("--against", help="Compare with this; may be repeated.")] = None,
    baseline: Annotated[Path | None, typer.Option("--baseline", help="Fail where a THING is slower than this.")] = None,
    max_slowdown: Annotated[
        str | None, typer.Option("--max-slowdown", help='By so much it may be slower, as "3%" [default: 0%].')
    ] = None,
    undecided: Annotated[
        Undecided, typer.Option("--undecided", help="What a slowdown that is not decided does.")
    ] = Undecided.fail,
    unstable: Annotated[
        Undecided, typer.Option("--unstable", help="What one that is UNSTABLE does to --baseline or --bound-ms.")
    ] = Undecided.fail,
    samples: Annotated[
        int, typer.Option("--samples", min=20, max=_MOST_CALLS, help="Calls each that count, over all processes.")
    ] = 700,
    processes: Annotated[
        int, typer.Option("--processes", min=1, max=_MOST_PROCESSES, help="Fresh processes each.")
    ] = 5,
    warmup: Annotated[
        int,
        typer.Option(
            "--warmup", min=0, max=_MOST_CALLS, help="Calls per process planned for warming up; its end is found out."
        ),
    ] = 20,
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, max=_MOST_THREADS, help="Per engine [default: one per usable core]."),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="For dynamic batches.")] = 1,
    size: Annotated[int | None, typer.Option("--size", min=1, help="For other dynamic dimensions.")] = None,
    target: Annotated[str | None, typer.Option("--target", help="Of bundles: this target's engine.")] = None,
    precision: Annotated[str | None, typer.Option("--precision", help="Of bundles: the engine in this.")] = None,
    key: Key = None,
    provider: Annotated[
        str, typer.Option("--provider", help="ONNX Runtime's execution provider for .onnx files.")
    ] = "CPUExecutionProvider",
    confidence: Annotated[float, typer.Option("--confidence", min=0.5, max=0.9999, help="Of all intervals.")] = 0.95,
    seed: Annotated[int, typer.Option("--seed", help="Of the order in which things take turns.")] = 0,
    roofline: Annotated[
        bool, typer.Option("--roofline/--no-roofline", help="Measure the machine's ceilings, too: some seconds.")
    ] = True,
    layers: Annotated[
        int, typer.Option("--layers", min=0, help="Print so many layers of each, those that lose most time.")
    ] = 0,
    output: Annotated[Path | None, typer.Option("--output", help="Write every single call here, as JSON.")] = None,
    scenario: one.ScenarioName = None,
    rate: one.Rate = None,
    bound_ms: one.BoundMs = None,
    percentile: one.Percentile = None,
    per_query: one.PerQuery = None,
    duration: one.Duration = None,
    queries: one.Queries = None,
    driver: one.DriverName = None,
    find_rate: one.FindRate = False,
    stages: one.StagesApart = False,
    json: Json = False,
) -> None:
    asked = one.Asked(
        scenario=scenario, stages=stages, rate=rate, bound_ms=bound_ms, percentile=percentile, per_query=per_query,
        duration=duration, queries=queries, driver=driver, find_rate=find_rate,
    )  # fmt: skip
    if asked.anything(context):
        answers = one.given_samples(context, samples)
        one.bench_bundle(
            things, asked, target=target, precision=precision, key=key, threads=threads, seed=seed, samples=answers,
            unstable=unstable.value, json=json,
        )  # fmt: skip
        return
    from edgetl.benchmark import environment
    from edgetl.benchmark.feeds import Feeds
    from edgetl.benchmark.sampling import Plan
    from edgetl.pipeline import bench

    if layers and not roofline:
        raise UsageError("--layers shows what each layer loses against the machine's ceilings", hint="--roofline")
    if max_slowdown is not None and baseline is None:
        raise UsageError("--max-slowdown is slower than what?", hint="--baseline BUNDLE")
    found = bench.bench_things(
        things,
        against=against or [],
        baseline=baseline,
        max_slowdown=_share(max_slowdown or "0"),
        target=target,
        precision=precision,
        key=key,
        provider=provider,
        feeds=Feeds(batch_size=batch_size, size=size),
        plan=Plan(
            samples=samples,
            processes=processes,
            warmup=warmup,
            threads=threads or environment.usable_cores(),
            seed=seed,
        ),
        confidence=confidence,
        roofline=roofline,
        output=output,
        reporter=TerminalReporter(),
    )
    error: EdgetlError | None = None
    try:
        bench.gate(found, undecided=undecided.value, unstable=unstable.value)
    except (BudgetError, MeasurementError) as raised:
        error = raised
    if json:
        outcome = None if baseline is None else "failed" if error else "passed"
        print_json("bench", {**found.to_json(), "gate": outcome})
    else:
        _print(found, layers)
    if error is not None:  # told on stderr alone: the result, with what became of the gate, is on stdout
        print_error(error, as_json=False)
        raise typer.Exit(error.exit_code)


def _share(text: str) -> float:
    """0.03 of "3%" or "0.03".

    Raises:
        UsageError: It is neither, or may be meant as a percentage: "3" as a share is 300%, which lets anything pass.
    """
    percent = text.endswith("%")
    try:
        value = float(text.removesuffix("%")) / (_PERCENT if percent else 1.0)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise UsageError(f"--max-slowdown {text}: write a percentage, as 3%")
    if value >= 1 and not percent:
        raise UsageError(
            f"--max-slowdown {text} is {value:.0%} as a share: write a percentage",
            hint=f"--max-slowdown {text}%, or {_PERCENT * value:g}%",
        )
    return value


def _print(found: Benchmark, layers: int) -> None:
    from edgetl.benchmark import telling
    from edgetl.benchmark.comparison import sure_of
    from edgetl.benchmark.summary import PERCENTILES

    first = found.measured[0].latency
    names = [name for name in PERCENTILES if name != "p999" or any(item.latency.p999_ms for item in found.measured)]
    interval = f"{sure_of(first.confidence)} interval"
    columns = ["ms", *(word for name in names for word in (_SHOWN.get(name, name), interval)), "calls"]
    print_table(columns, [_percentiles(item, names) for item in found.measured], right=tuple(range(1, len(columns))))
    print_text()
    columns = ["", "warm-up", "import ms", "load ms", "first ms", "of ceiling", "p50 / first"]
    print_table(columns, [_row(item, first.p50_ms) for item in found.measured], right=tuple(range(1, len(columns))))
    facts = found.environment
    processes = counted(facts["processes"], "process", "processes")
    print_text(
        f"\n{facts['cpu']}, {counted(facts['threads'], 'thread')}, load {facts['load_average']}; {processes} each;"
        f" {', '.join(found.measured[0].sampled.inputs)}"
    )
    if found.conditions is not None:
        print_text(f"conditions: {telling.line(found.conditions.to_json(values=False))}; all of them with --json")
    for item in found.measured:
        for reason in item.steadiness["reasons"]:
            unsteady = f"{item.steadiness['not_steady']} of {processes}"
            print_text(f"{item.name} was not steady in {unsteady}: {reason}")
    for name, because in found.unstable.items():
        print_text(f"{name} is UNSTABLE: {because}")
    for item in found.measured:
        if item.sampled.engine_clock_p50_ms is not None:
            print_text(
                f"{item.name}: {item.sampled.engine_clock_p50_ms:.3f} ms of p50 are the engine's by its own clock"
            )
    for line in found.energy_lines:
        print_text(line)
    for statement in [*(each.statement for each in found.comparisons), *(each.statement for each in found.slowdowns)]:
        print_text(statement)
    for note in found.notes:
        print_text(f"note: {note}")
    _print_ceilings(found)
    for item in found.measured:
        if layers and item.roofline is not None:
            _print_layers(item.name, item.roofline, layers)


def _print_ceilings(found: Benchmark) -> None:
    """What the machine can do at most, and what limits each thing there."""
    for ceilings in found.ceilings.values():
        rates = [f"{each.multiply_adds_per_s / 1e9:.0f} ({name})" for name, each in ceilings.products.items()]
        slowest = f", {ceilings.bandwidth[-1][1] / 1e9:.0f} GB/s of memory" if ceilings.bandwidth else ""
        print_text(
            f"ceilings of {ceilings.device}: billions of multiply-adds/s {', '.join(rates) or 'unknown'}{slowest}"
        )
        if ceilings.disturbed:
            print_text(f"note: they are too low: others used {ceilings.others:.0%} of the processors meanwhile")
    for item in found.measured:
        if item.roofline is None:
            continue
        if item.roofline.least_ms is None:
            print_text(f"{item.name}: how near it is to the ceiling is not known: {item.roofline.reason}")
        else:
            limits = ", ".join(f"{name} {share:.0%}" for name, share in item.roofline.limits.items())
            print_text(f"{item.name} needs at least {item.roofline.least_ms:.3f} ms here, limited by {limits}")


def _print_layers(name: str, found: Roofline, most: int) -> None:
    """Those that take longest beyond what the machine needs for them."""
    timed = [(each, each.layer.time_ms) for each in found.layers if each.layer.time_ms is not None]
    timed.sort(key=lambda entry: entry[0].least_ms - entry[1])
    columns = [name, "operator", "precision", "ms", "least ms", "of ceiling", "limited by"]
    rows = [
        [
            each.layer.name,
            each.layer.kind,
            each.layer.precision,
            f"{time_ms:.4f}",
            f"{each.least_ms:.4f}",
            _of_ceiling(each.share),
            each.limit,
        ]
        for each, time_ms in timed[:most]
    ]
    print_text("")
    print_table(columns, rows, right=(3, 4, 5))


def _of_ceiling(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _percentiles(item: Measured, names: Sequence[str]) -> list[str]:
    """Each with its interval."""
    cells = []
    for name in names:
        interval = item.latency.interval(name)
        cells += [
            _milliseconds(item.latency.percentile(name)),
            f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else "-",
        ]
    return [item.name, *cells, str(item.latency.samples)]


def _row(item: Measured, first_ms: float) -> list[str]:
    latency, cold = item.latency, item.cold
    return [
        item.name,
        str(item.steadiness["warmup_samples"]),
        f"{cold.import_ms:.0f}",
        f"{cold.load_ms:.0f}",
        f"{cold.first_ms:.1f}",
        _of_ceiling(item.roofline.share(latency.p50_ms) if item.roofline else None),
        f"{latency.p50_ms / first_ms:.2f}×",
    ]


def _milliseconds(value: float | None) -> str:
    """A dash for a percentile that there are too few calls for."""
    return "-" if value is None else f"{value:.3f}"
