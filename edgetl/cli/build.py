"""edgetl build, and its stages one at a time."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgetl.cli.options import ConfigPath, Json, Key, Set, StorePath, load_config, refuse, store_folder
from edgetl.cli.report import GitHub, handler
from edgetl.cli.terminal import TerminalReporter, print_json, print_table, print_text
from edgetl.numbers import counted, milliseconds

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgetl.pipeline import Outcome

Target = Annotated[
    list[str] | None,
    typer.Option("--target", help="Only this target of edgetl.toml, by name or file; may be repeated."),
]
Force = Annotated[list[str] | None, typer.Option("--force", metavar="STAGE", help="Make this stage again.")]

_VERBS = {
    "export": ("export", "Everything up to the ONNX graph."),
}


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command(name="build", help="Fine-tune, export, quantize, compile, prove, time and bundle a project.")(_build)
    for verb, (until, text) in _VERBS.items():
        app.command(name=verb, help=text)(_stage_command(until))
    app.command(
        name="compile",
        help="Everything up to the engines, unproven; of a bundle, the engines that wait for this device.",
    )(_compile)


def _compile(
    path: Annotated[Path, typer.Argument(help="edgetl.toml or its folder, or a bundle.")] = Path("edgetl.toml"),
    target: Target = None,
    assignments: Set = None,
    store: StorePath = None,
    force: Force = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Of a bundle: the new one [default: beside it].")
    ] = None,
    key: Key = None,
    json: Json = False,
) -> None:
    if not (path / "manifest.json").is_file():
        refuse({"--key": key, "--output": output}, f"of a bundle: {path} is no bundle", "edgetl compile BUNDLE …")
        show_artifacts("compile", run_until(path, target, assignments, store, until="compile", force=force), json)
        return
    project = {"--set": assignments, "--force": force}
    refuse(project, f"of a project: {path} is a bundle", "EDGETL_BUNDLE_KEY names the private key that signs")
    from edgetl import config
    from edgetl.pipeline import on_device

    done = on_device.compile_bundle(
        path,
        targets=tuple(target or ()),
        output=output,
        key=key,
        signer=config.signing_key(),
        reporter=TerminalReporter(),
    )
    if json:
        print_json("compile", {**asdict(done), "bundle": str(done.bundle)})
        return
    for item in done.checked.engines:
        result = item.skipped or f"{item.agreeing} of {counted(item.golden, 'golden input')} as PyTorch"
        print_text(f"{item.name}: {result}")
    print_text(f"bundle: {done.bundle}")


def _build(
    path: ConfigPath = Path("edgetl.toml"),
    target: Target = None,
    assignments: Set = None,
    store: StorePath = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be made, and make nothing.")] = False,
    force: Force = None,
    reports: Annotated[
        Path | None,
        typer.Option("--reports", help="Folder for copies of all reports, also where nothing is published."),
    ] = None,
    github: GitHub = None,
    json: Json = False,
) -> None:
    told = handler(reports, github, dry_run=dry_run)
    outcome = run_until(path, target, assignments, store, until="bundle", dry_run=dry_run, force=force, on_report=told)
    if json:
        print_json("build", _document(outcome))
        return
    if dry_run:
        print_text(f"would run from: {outcome.would_run}" if outcome.would_run else "nothing to do: all is there")
        return
    if outcome.bundle is None:  # not the first of several processes that train together
        return
    _print_summary(outcome.summary)
    print_text(f"\nbundle: {outcome.bundle}")
    print_text(f"report: {outcome.bundle}/reports/report.html")


def _stage_command(until: str) -> Any:
    def command(
        path: ConfigPath = Path("edgetl.toml"),
        target: Target = None,
        assignments: Set = None,
        store: StorePath = None,
        force: Force = None,
        json: Json = False,
    ) -> None:
        show_artifacts(until, run_until(path, target, assignments, store, until=until, force=force), json)

    return command


def show_artifacts(until: str, outcome: Outcome, json: bool) -> None:
    """Print where the results of stages are."""
    if json:
        print_json(until, _document(outcome))
        return
    for name, folder in outcome.artifacts.items():
        print_text(f"{name}: {folder}")


def run_until(
    path: Path,
    target: list[str] | None,
    assignments: list[str] | None,
    store: Path | None,
    *,
    until: str,
    dry_run: bool = False,
    force: list[str] | None,
    on_report: Callable[[Path], None] | None = None,
) -> Outcome:
    """Build a project until after a stage; see :func:`edgetl.pipeline.build`."""
    config = load_config(path, assignments)
    from edgetl.pipeline import build
    from edgetl.store import Store

    return build(
        config,
        Store(store_folder(path, store)),
        reporter=TerminalReporter(),
        targets=tuple(target or ()),
        until=until,
        force=frozenset(force or ()),
        dry_run=dry_run,
        config_file=path / "edgetl.toml" if path.is_dir() else path,
        on_report=on_report,
    )


def _document(outcome: Outcome) -> dict[str, Any]:
    return {
        **outcome.summary,
        "stopped_after": outcome.stopped_after,
        "would_run": outcome.would_run,
        "bundle": str(outcome.bundle) if outcome.bundle else None,
        "artifacts": {name: str(folder) for name, folder in outcome.artifacts.items()},
    }


def _print_summary(summary: dict[str, Any]) -> None:
    rows = [
        [name, "", f"{summary['score_reference']:.4f}" if name == "PyTorch eager" else "", "", "",
         *_latency(found), ""]
        for name, found in summary["baselines"].items()
    ]  # fmt: skip
    for engine in summary["engines"]:
        parity = engine["parity"]
        rows.append(
            [
                engine["target"],
                engine["precision"],
                f"{parity['score']:.4f}" if parity else "-",
                f"{parity['agreement']:.4f}" if parity else "-",
                f"{100 * parity['drop_upper']:.2f}" if parity else "-",
                *_latency(engine["latency"]),
                ("shipped" if engine["status"] == "ready" else engine["status"])
                if engine["shipped"]
                else f"not shipped: {engine['note']}",
            ]
        )
    from edgetl.metrics import metric

    measured = metric(summary["metric"]).title
    columns = ["target", "precision", measured, "agreement", "drop ≤ points", "p50 ms", "p99 ms", "result"]
    print_table(columns, rows, right=(2, 3, 4, 5, 6))
    whole = f"{summary['score_reference']:.4f}"
    for engine in summary["engines"]:
        parity = engine["parity"]
        if parity and f"{parity['score_reference']:.4f}" != whole:  # parity.sequential: PyTorch's row is of all samples
            print_text(
                f"{engine['target']} {engine['precision']} was given {counted(parity['samples'], 'test sample')};"
                f" PyTorch has {parity['score_reference']:.4f} on them"
            )
    for figure in summary["figures_reference"]:
        print_text(f"PyTorch, {figure['title']}: {figure['value']:.4f} ({figure['note']})")


def _latency(found: dict[str, Any]) -> list[str]:
    values = (found.get("p50_ms"), found.get("p99_ms"))
    return ["-" if value is None else milliseconds(value) for value in values]
