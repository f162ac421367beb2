"""edgetl train: fine-tune, and say whether transfer helped."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgetl.cli.build import Force, show_artifacts
from edgetl.cli.build import run_until as run
from edgetl.cli.options import ConfigPath, Json, Set, StorePath, load_config, store_folder
from edgetl.cli.terminal import TerminalReporter, print_json, print_table, print_text
from edgetl.errors import ParityError, UsageError
from edgetl.numbers import chosen

if TYPE_CHECKING:
    from edgetl.pipeline.source_task import SourceChange
    from edgetl.pipeline.transfer import Comparison


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command(name="train", help="Fine-tune, and stop at the checkpoint; or judge whether transfer helps.")(_train)


def _train(
    path: ConfigPath = Path("edgetl.toml"),
    verdict: Annotated[
        bool,
        typer.Option("--verdict", help="Compare with a linear probe and with training from scratch, on several seeds."),
    ] = False,
    seeds: Annotated[int, typer.Option("--seeds", help="With --verdict: of each method, at least 3.")] = 3,
    confidence: Annotated[float, typer.Option("--confidence", help="With --verdict: of the intervals.")] = 0.95,
    require: Annotated[
        bool, typer.Option("--require-helped", help="With --verdict: fail (exit 4) where transfer did not help.")
    ] = False,
    source_test: Annotated[
        Path | None,
        typer.Option(
            "--source-test",
            metavar="PATH",
            help="With --verdict: test split of the task that model.weights came from; tells what was forgotten.",
        ),
    ] = None,
    max_forgetting: Annotated[
        float | None,
        typer.Option(
            "--max-forgetting", help="With --source-test: fail (exit 4) unless such a drop, as 0.02, is excluded."
        ),
    ] = None,
    assignments: Set = None,
    store: StorePath = None,
    force: Force = None,
    json: Json = False,
) -> None:
    if not verdict:
        asked = {
            "--require-helped": require,
            "--source-test": source_test is not None,
            "--max-forgetting": max_forgetting is not None,
        }
        for option in (option for option, given in asked.items() if given):
            raise UsageError(f"{option} judges a verdict", hint=f"edgetl train --verdict {option} …")
        show_artifacts("train", run(path, None, assignments, store, until="train", force=force), json)
        return
    if not 0.5 <= confidence < 1.0:
        raise UsageError(f"the confidence is {chosen(confidence)}; it is from 0.5 to below 1, as 0.95")
    given = list(assignments or [])
    if source_test is not None:
        given.append(f"finetune.source_test={dumps(str(source_test.resolve()), ensure_ascii=False)}")
    if max_forgetting is not None:
        given.append(f"finetune.max_forgetting={max_forgetting}")
    config = load_config(path, given)
    from edgetl.pipeline import judge
    from edgetl.store import Store

    found = judge(
        config, Store(store_folder(path, store)), seeds=seeds, confidence=confidence, reporter=TerminalReporter()
    )
    if json:
        print_json("verdict", found.to_json())
    else:
        _print(found)
    if require and found.verdict.outcome != "helped":
        raise ParityError(
            f"transfer did not help: {found.verdict.statement}",
            hint="another backbone or source of weights, more training data, or other finetune.phases",
        )
    refusal = found.refusal(config.finetune.max_forgetting)
    if refusal:
        raise ParityError(
            refusal,
            hint="fewer epochs, a smaller lr, fewer layers that learn, or more samples in --source-test",
        )


def _print(found: Comparison) -> None:
    rows = [
        [name, str(found.epochs[name]), f"{found.verdict.means[name]:.4f}", " ".join(f"{value:.4f}" for value in each)]
        for name, each in found.scores.items()
    ]
    print_table(["method", "epochs", f"test {found.metric}", "per seed"], rows, right=(1, 2))
    print_text(found.verdict.statement)
    for difference in found.verdict.differences[1:]:
        print_text(difference.statement)
    if found.source:
        _print_source(found.source)


def _print_source(source: SourceChange) -> None:
    scores = " ".join(f"{value:.4f}" for value in source.scores)
    rows = [
        ["before", f"{source.forgetting.before:.4f}", ""],
        ["fine-tuned", f"{source.forgetting.after:.4f}", scores],
    ]
    print_table(["source task", f"test {source.metric}", "per seed"], rows, right=(1,))
    print_text(source.forgetting.statement)
    print_text(source.how)
