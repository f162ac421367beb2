"""The whole route: data → finetune → export → calibrate → compile → verify → bench → bundle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgetl.bundle import sign
from edgetl.config import Config
from edgetl.errors import BudgetError, ConfigError, EdgetlError, MeasurementError, ParityError, UnknownNameError
from edgetl.pipeline import (
    choice,
    engines,
    gates,
    learning,
    precisions,
    preflight,
    proof,
    publish,
    tasks,
    timing,
    transfer,
)
from edgetl.pipeline.record import Record
from edgetl.pipeline.reference import ask_reference, decide
from edgetl.pipeline.session import Reporter, Session, Silent, WouldRun, interruptible, rank
from edgetl.store import Store
from edgetl.tomlfile import did_you_mean

STAGES = ("data", "train", "export", "calibrate", "compile", "verify", "bench", "bundle")
"""Where a build can be told to stop."""
FORCEABLE = (
    *(
        "data",
        "backbone",
        "feature-engine",
        "features",
        "finetune",
        "export",
        "calibrate",
        "equalize",
        "quantize",
        "half",
    ),
    *("compile", "decision", "reference", "verify", "bench", "verdict", "bundle"),
)
"""What the store keeps results of, and ``force`` can name: what a build's output calls them."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a build came to."""

    stopped_after: str
    """One of :data:`STAGES`."""
    bundle: Path | None = None
    """The published bundle."""
    artifacts: dict[str, Path] = field(default_factory=dict)
    """Stage → folder of its result."""
    summary: dict[str, Any] = field(default_factory=dict)
    """For ``--json``: engines with their figures, as in the bundle's manifest."""
    would_run: str | None = None
    """Of a dry run: the first stage without a result; None where every stage has one."""


def build(
    config: Config,
    store: Store,
    *,
    reporter: Reporter | None = None,
    targets: tuple[str, ...] = (),
    until: str = "bundle",
    force: frozenset[str] = frozenset(),
    dry_run: bool = False,
    config_file: Path | None = None,
    on_report: Callable[[Path], None] | None = None,
) -> Outcome:
    """Build a project, or the first part of it.

    Args:
        config: From :func:`edgetl.config.load`.
        store: Keeps the results of stages; what is there already is not made again.
        reporter: Is told how it goes.
        targets: Of the configuration's targets, the ones to build for, by name or file; all where empty.
        until: The last stage to run, of :data:`STAGES`.
        force: Stages of the store to make again.
        dry_run: Make nothing; find out what would be made.
        config_file: Where the configuration was read from: reports point at its lines, and files of targets may be
            named relative to its folder.
        on_report: Is called with the folder of the reports, of a published bundle as of one that is refused.

    Raises:
        EdgetlError: See :mod:`edgetl.errors`; nothing is published then.
    """
    told = Silent() if rank() or reporter is None else reporter
    session = Session(config=config, store=store, reporter=told, force=force, dry_run=dry_run, config_file=config_file)
    unknown = sorted(force - set(FORCEABLE))
    if unknown:
        raise UnknownNameError(f"there is no stage '{unknown[0]}' to force; {did_you_mean(unknown[0], FORCEABLE)}")
    tasks.task_of(config)
    preflight.check_gate(config)
    folder = config_file.resolve().parent if config_file else None
    candidates = engines.candidates(config, targets, folder=folder)
    last = STAGES.index(until)
    reached = {stage: last >= STAGES.index(stage) for stage in STAGES}
    engines.check_tools(config, candidates, exported=reached["export"], compiled=reached["compile"])
    if until == "calibrate" or (reached["calibrate"] and any(each.precision == "int8" for each in candidates)):
        precisions.check_device(config)
    if config.bench.batch_size > config.export.batch.max or config.bench.batch_size < config.export.batch.min:
        raise ConfigError(
            f"bench.batch_size is {config.bench.batch_size}; engines accept {config.export.batch.min} to"
            f" {config.export.batch.max}",
            hint="export.batch or bench.batch_size in edgetl.toml",
        )
    if reached["bench"]:
        preflight.check_budgets(config, candidates)
    if reached["bundle"] and not rank():  # of several machines that train together, the first one signs
        sign.check_key(config.bundle.key)
    try:
        with interruptible():
            return _route(session, candidates, until, on_report or _nobody)
    except WouldRun as stop:
        return Outcome(stopped_after=stop.stage, would_run=f"{stop.stage}: {stop.what}")


def judge(
    config: Config,
    store: Store,
    *,
    seeds: int,
    confidence: float = 0.95,
    reporter: Reporter | None = None,
) -> transfer.Comparison:
    """Whether transfer helps a project: see :func:`edgetl.pipeline.transfer.plan` and ``compare``.

    Args:
        config: From :func:`edgetl.config.load`.
        store: Keeps every trial.
        seeds: Of every method.
        confidence: Of the intervals.
        reporter: Is told how it goes.

    Raises:
        EdgetlError: See :mod:`edgetl.errors`.
    """
    session = Session(config=config, store=store, reporter=Silent() if rank() or reporter is None else reporter)
    tasks.task_of(config)
    engines.check_tools(config, [], exported=False, compiled=False)
    with interruptible():
        _, dataset = learning.prepare_data(session)
        return transfer.compare(session, dataset, transfer.plan(session, dataset, seeds=seeds), confidence=confidence)


def _nobody(reports: Path) -> None:
    """Is told of reports, and does nothing."""


def _route(
    session: Session, candidates: list[engines.Candidate], until: str, on_report: Callable[[Path], None]
) -> Outcome:
    """The stages one after the other, as far as they were asked for."""
    config = session.config
    artifacts: dict[str, Path] = {}
    data, dataset = learning.prepare_data(session)
    artifacts["data"] = data.folder
    if until == "data":
        return Outcome(stopped_after=until, artifacts=artifacts)
    few = preflight.too_few_samples(config, len(dataset.test)) or preflight.too_few_of_a_class(config, dataset)
    together = preflight.samples_in_groups(config, [sample.group for sample in dataset.test])
    if until not in ("train", "export", "calibrate", "compile"):
        for said in filter(None, (few, together)):
            session.reporter.note(said)

    planned = None
    if until != "train" and (config.finetune.verdict != "off" or config.finetune.max_forgetting is not None):
        planned = transfer.plan(session, dataset, seeds=config.finetune.verdict_seeds)
    checkpoint, history = learning.train(session, dataset)
    artifacts["train"] = checkpoint.folder
    if until == "train" or rank():  # what follows is the first process's alone
        return Outcome(stopped_after="train", artifacts=artifacts, summary={"phases": history})

    judged = None
    if planned:
        judged = transfer.compare(session, dataset, planned)
        session.reporter.note(judged.verdict.statement)
        if judged.source:
            session.reporter.note(judged.source.forgetting.statement)
    elif config.finetune.source_test is not None:
        session.reporter.note('the source task is left out: finetune.verdict is "off", and there is no max_forgetting')

    exported = engines.export(session, dataset, checkpoint)
    artifacts["export"] = exported.folder
    if until == "export":
        return Outcome(stopped_after=until, artifacts=artifacts)

    quantized = any(candidate.precision == "int8" for candidate in candidates) or until == "calibrate"
    statistics = precisions.calibrate(session, dataset, checkpoint, exported) if quantized else None
    if statistics:
        artifacts["calibrate"] = statistics.folder
    if until == "calibrate":
        return Outcome(stopped_after=until, artifacts=artifacts)

    prepared = precisions.equalize(session, dataset, checkpoint, exported, statistics) if statistics else None
    graphs = {
        item.name: precisions.graph_for(session, dataset, checkpoint, item, exported, prepared) for item in candidates
    }
    made = [engines.compile_engine(session, checkpoint, item, graphs[item.name]) for item in candidates]
    artifacts.update({f"compile {engine.candidate.name}": engine.artifact.folder for engine in made})
    if until == "compile":
        return Outcome(stopped_after=until, artifacts=artifacts)

    decision = decide(session, dataset, checkpoint)
    asked, reference = ask_reference(session, dataset, checkpoint)
    artifacts["reference"] = asked.folder
    proven = [
        proof.verify(session, dataset, checkpoint, engine, reference, graphs[engine.candidate.name], decision)
        for engine in made
    ]
    timings = timing.NO_TIMINGS
    if until != "verify":
        timings = timing.bench(session, dataset, checkpoint, exported, made)
    record = Record(
        session=session,
        data=data,
        dataset=dataset,
        checkpoint=checkpoint,
        history=tuple(history),
        exported=exported,
        statistics=prepared.statistics if prepared else None,
        graphs=graphs,
        golden=asked,
        reference=reference,
        decision=decision,
        judged=judged,
        timings=timings,
        decisions=tuple(choice.decide(proven, timings, config.parity)),
    )
    _gate(record, on_report)
    summary = {**publish.summary(record), "phases": history}
    if until in ("verify", "bench"):
        return Outcome(stopped_after=until, artifacts=artifacts, summary=summary)

    try:
        sealed, bundle = publish.bundle(record)
    except ParityError as error:
        _refuse(record, error, on_report)
        raise
    on_report(bundle / "reports")
    artifacts["bundle"] = sealed.folder
    return Outcome(stopped_after="bundle", bundle=bundle, artifacts=artifacts, summary=summary)


def _gate(record: Record, on_report: Callable[[Path], None]) -> None:
    """Stop a build whose engines are not good enough, with reports that show why."""
    try:
        gates.gate(record.session.config, list(record.decisions), record.judged)
        gates.refuse_implausible(record.timings, list(record.decisions))
        gates.refuse_unstable(record.session.config, record.timings, list(record.decisions))
    except (ParityError, BudgetError, MeasurementError) as error:
        _refuse(record, error, on_report)
        raise


def _refuse(record: Record, error: EdgetlError, on_report: Callable[[Path], None]) -> None:
    """Write and deliver the reports of a build that is not published."""
    reports = publish.report_failure(record, error)
    record.session.reporter.note(f"nothing was published; the report of this build is {reports / 'report.html'}")
    try:
        on_report(reports)
    except EdgetlError as trouble:  # the build fails because of its gates, and with their exit code
        record.session.reporter.note(f"the reports were not delivered: {trouble.message}")
