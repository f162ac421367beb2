"""From a build's record to the values that its report is rendered from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgetl import __version__
from edgetl.backends.checkpoint import WEIGHTS, read_deploy
from edgetl.benchmark.reasons import OF_THE_MACHINE
from edgetl.benchmark.stability import Stability
from edgetl.config import Config
from edgetl.data.dataset import Sample
from edgetl.numbers import chosen
from edgetl.parity.slices import Slice
from edgetl.pipeline import learning, origin, precisions, quantized, reference, spread, tasks, transfer
from edgetl.pipeline.choice import Decision
from edgetl.pipeline.gates import is_unstable
from edgetl.pipeline.proof import Proven, accepted
from edgetl.pipeline.record import Record
from edgetl.pipeline.timing import FP32, PYTORCH, Timings
from edgetl.quantize import statistics as artifact
from edgetl.quantize.sketch import Sketch
from edgetl.report import model
from edgetl.runtime.preprocessing import described

_LEAK_CHECKS = {
    "image": model.LeakCheck(method="SHA-256 of the decoded pixels", pairs=0),
    "text": model.LeakCheck(method="SHA-256 of the text", pairs=0),
    "table": None,
}
"""By the kind of inputs; the rows of a table may be equal by chance."""
_TENSORS = 12
_BINS = 64


def report(record: Record, verdict: model.Verdict, signer: str | None) -> model.Report:
    """The report of a build.

    Args:
        record: The build.
        verdict: Whether it is published.
        signer: Fingerprint of the signing key; None for a build that is not published.
    """
    config = record.session.config
    float_engine = next(
        (
            item
            for item in record.decisions
            if item.proven.engine.record.backend == "onnxruntime"
            and item.proven.engine.record.provider == "CPUExecutionProvider"
            and item.proven.engine.candidate.precision == "fp32"
        ),
        None,
    )
    deploy = read_deploy(record.checkpoint.folder)
    return model.Report(
        project=config.project.name,
        version=config.project.version,
        edgetl_version=__version__,
        created=record.timings.created,
        config_digest=record.session.config_digest(),
        verdict=verdict,
        signed_by=signer,
        backbone=config.model.backbone,
        test_samples=len(record.dataset.test),
        metric=tasks.metric_of(config).title,
        figures=tuple(
            model.Figure(title=each.title, value=each.value, note=each.note)
            for each in reference.figures_of(config, record.reference)
        ),
        max_drop=config.parity.max_drop,
        confidence=config.parity.confidence,
        sequential=config.parity.sequential,
        reference=model.Baseline(
            name=PYTORCH,
            score=reference.score_of(record.session.config, record.reference, record.decision),
            latency=latency(record.timings, PYTORCH),
            size_bytes=(record.checkpoint / WEIGHTS).stat().st_size,
        ),
        fp32=model.Baseline(
            name=FP32,
            score=float_engine.proven.comparison.score if float_engine and float_engine.proven.comparison else None,
            latency=latency(record.timings, FP32),
            size_bytes=(record.exported / "model.onnx").stat().st_size,
            same_as=float_engine.proven.engine.candidate.name if float_engine else "",
        ),
        engines=tuple(_engine(record, item) for item in record.decisions),
        confusions=_confusions(record),
        start=_start(record),
        training=tuple(_phase(phase) for phase in record.history),
        calibration=_calibration(record),
        quantizations=quantized.operators(record),
        fusions=quantized.fusions(record),
        layers=quantized.layers(record),
        data=_data(record),
        preprocessing=tuple(
            model.Fact(name=name, value=value) for name, value in described(deploy.preprocessing.to_json()).items()
        ),
        labels=record.dataset.classes,
        environment=_environment(record),
        transfer=_transfer(record),
        distributions=spread.distributions(record.timings.details),
        conditions=spread.conditions(record.timings.details),
        ceilings=spread.ceilings(record.timings.details),
        rooflines=spread.rooflines(record.timings.details),
        task=config.data.task,
        dataset=origin.dataset_name(record.session),
        dataset_id=origin.hub_id(config),
        weights=config.model.weights.rsplit("/", 1)[-1],
        config_file=origin.config_name(record.session.config_file),
        settings=origin.settings(record.session),
    )


def _engine(record: Record, item: Decision) -> model.Engine:
    engine, comparison = item.proven.engine, item.proven.comparison
    budget = engine.candidate.entry.budget
    return model.Engine(
        target=engine.candidate.target.name,
        backend=engine.record.backend,
        provider=engine.record.provider,
        precision=engine.candidate.precision,
        status=engine.record.status,
        shipped=item.shipped,
        reason=item.reason,
        size_bytes=engine.size_bytes,
        **placed(item.proven),
        parity=model.ParityFigures(
            samples=comparison.samples,
            score=comparison.score,
            agreement=comparison.agreement,
            drop=comparison.drop,
            drop_upper=comparison.drop_upper,
            interval=comparison.interval,
            detectable_drop=comparison.detectable_drop,
            regressions=tuple(_change(each) for each in comparison.slices if each.regressed),
            slices=tuple(_change(each) for each in comparison.slices),
            max_abs_error=comparison.max_abs_error,
            mean_abs_error=comparison.mean_abs_error,
            groups=comparison.groups,
            cosine=comparison.cosine,
            sqnr_db=comparison.sqnr_db,
        )
        if comparison
        else None,
        latency=latency(record.timings, engine.candidate.name),
        budget=model.Budget(p50_ms=budget.p50_ms, p90_ms=budget.p90_ms, p99_ms=budget.p99_ms),
        parity_gate=_parity_gate(item, waived=_waived(record, item)),
        budget_gate=budget_gate(record.session.config, record.timings, item),
    )


def placed(proven: Proven) -> dict[str, Any]:
    """What the report says of where an engine's nodes run: its share is of the provider that it was counted for."""
    found, record = proven.placement, proven.engine.record
    if found is None:
        return {}
    return {
        "placement_share": found["share"],
        "placement_provider": found["provider"] if found["provider"] != record.provider else "",
        "fallback_allowed": proven.engine.candidate.target.dla_fallback,
    }


def _change(each: Slice) -> model.Regression:
    return model.Regression(
        column=each.column,
        value=each.value,
        decisions=each.decisions,
        worse=each.worse,
        better=each.better,
        drop=each.drop,
        p_adjusted=each.p_adjusted,
        regressed=each.regressed,
    )


def _waived(record: Record, item: Decision) -> bool:
    """Whether a parity that was not shown does no harm.

    Another precision of the target passed, and one is enough; or it is undecided, and the user lets that do.
    """
    if accepted(record.session.config.parity, item.proven.comparison):
        return True
    target = item.proven.engine.candidate.target.name
    return record.session.config.parity.require == "any" and any(
        accepted(record.session.config.parity, other.proven.comparison)
        for other in record.decisions
        if other.proven.engine.candidate.target.name == target
    )


def _parity_gate(item: Decision, *, waived: bool) -> model.Gate:
    comparison = item.proven.comparison
    if comparison is None:
        return model.Gate(outcome="not-run", message=item.reason)
    if comparison.passed:
        return model.Gate(outcome="passed", message=comparison.statement)
    return model.Gate(outcome="waived" if waived else comparison.outcome, message=comparison.statement)


def budget_gate(config: Config, timings: Timings, item: Decision) -> model.Gate:
    """What became of an engine's latency budget; of one that is not shipped the build does not depend on it."""
    limits = item.proven.engine.candidate.entry.budget.model_dump(exclude_none=True)
    if not limits or item.latency is None:
        return model.Gate(outcome="not-run", message="there is no budget" if not limits else item.reason)
    if item.missed:
        return model.Gate(outcome="failed" if item.shipped else "waived", message="; ".join(item.missed))
    if is_unstable(config, timings, item):
        unstable = "every limit is met, but the measurement is UNSTABLE"
        return model.Gate(outcome="undecided" if item.shipped else "waived", message=unstable)
    return model.Gate(outcome="passed", message="every limit is met")


def latency(timings: Timings, name: str) -> model.Latency | None:
    """The figures of one thing that was timed; None where it was not."""
    found, cold, stability = timings.latencies.get(name), timings.cold.get(name), timings.stability.get(name)
    if found is None:
        return None
    return model.Latency(
        p50_ms=found.p50_ms,
        p90_ms=found.p90_ms,
        p99_ms=found.p99_ms,
        samples=found.samples,
        interval_ms=found.p50_interval_ms,
        p90_interval_ms=found.p90_interval_ms,
        p99_interval_ms=found.p99_interval_ms,
        p999_ms=found.p999_ms,
        p999_interval_ms=found.p999_interval_ms,
        cold_ms=(cold.import_ms, cold.load_ms, cold.first_ms) if cold else None,
        unstable=tuple(reason.text for reason in stability.against) if stability else (),
        unstable_by_machine=_by_machine(stability) if stability else (),
        energy=spread.energies(timings.details, name),
    )


def _by_machine(stability: Stability) -> tuple[str, ...]:
    return tuple(reason.text for reason in stability.against if reason.kind in OF_THE_MACHINE)


def _confusions(record: Record) -> tuple[model.Confusion, ...]:
    """Of PyTorch, and of the fastest shipped engine that ran; none where a sample may have several classes, or none."""
    labels = record.dataset.classes
    if tasks.task_of(record.session.config).objective != "one-label":
        return ()
    answers = [(PYTORCH, record.decision.decide(record.reference.outputs))]
    ran = [item for item in record.decisions if item.shipped and item.latency and item.proven.decided is not None]
    if ran:
        fastest = min(ran, key=lambda item: item.latency.p50_ms if item.latency else float("inf"))
        answers.append((fastest.proven.engine.candidate.name, np.asarray(fastest.proven.decided)))
    found = []
    for name, predicted in answers:
        counts = np.zeros((len(labels), len(labels)), dtype=int)
        np.add.at(counts, (record.reference.labels, predicted), 1)
        rows = tuple(tuple(int(count) for count in row) for row in counts)
        found.append(model.Confusion(name=name, labels=labels, counts=rows))
    return tuple(found)


def _start(record: Record) -> model.Weights:
    found = learning.copied(record.checkpoint)
    return model.Weights(
        statement=found.statement,
        mismatched=tuple(map(str, found.mismatched)),
        skipped=found.skipped if found.copied else (),  # the statement says that all are
        unused=found.unused,
    )


def _phase(phase: dict) -> model.TrainingPhase:  # type: ignore[type-arg]
    epochs = phase["epochs"]
    return model.TrainingPhase(
        name=phase["train"],
        epochs=tuple(
            model.Epoch(number=item["epoch"], train_loss=item["train_loss"], val_score=item["val_score"])
            for item in epochs
        ),
        best_epoch=phase["best_epoch"] or None,
        seconds=sum(item["seconds"] for item in epochs),
        groups=tuple(model.ParameterGroup(**group) for group in phase["groups"]),
        **{name: phase[name] for name in ("optimizer", "loss", "label_smoothing", "l1", "dropout")},
    )


def _calibration(record: Record) -> model.Calibration | None:
    """The tensors that lose most of their observed range first."""
    graph = next((item for item in record.graphs.values() if (item / "quantize.json").exists()), None)
    if record.statistics is None or graph is None:
        return None
    facts = json.loads((graph / "quantize.json").read_text(encoding="utf-8"))
    statistics = artifact.load(record.statistics.folder)
    tensors = [
        _histogram(name, statistics.sketches[name], *facts["params"][name])
        for name in facts["params"]
        if name in statistics.sketches
    ]
    tensors.sort(key=lambda item: -item.clipped_share)
    return model.Calibration(
        recipe=facts["recipe"],
        samples=statistics.samples,
        tensors=tuple(tensors[:_TENSORS]),
        tensors_total=len(facts["params"]),
    )


def _histogram(
    name: str, sketch: Sketch, scale: float, zero_point: int, low: float, high: float
) -> model.TensorHistogram:
    lower, upper, counts = sketch.pieces()
    values = (lower + upper) / 2
    edges = np.linspace(sketch.low, max(sketch.high, sketch.low + 1e-12), _BINS + 1)
    bins, _ = np.histogram(values, bins=edges, weights=counts.astype(np.float64))
    # Half a step beyond the ends is still rounded to them.
    outside = (values < low - scale / 2) | (values > high + scale / 2)
    return model.TensorHistogram(
        name=name,
        edges=tuple(float(edge) for edge in edges),
        counts=tuple(int(count) for count in bins),
        low=low,
        high=high,
        scale=scale,
        zero_point=int(zero_point),
        clipped_share=float(counts[outside].sum() / max(1, counts.sum())),
    )


def _data(record: Record) -> model.DataSummary:
    dataset = record.dataset
    splits: dict[str, Sequence[Sample]] = {"train": dataset.train, "val": dataset.val, "test": dataset.test}
    if record.statistics:
        splits["calibration"] = precisions.calibration_samples(record.session, dataset, record.checkpoint)
    return model.DataSummary(
        splits=tuple(
            model.Split(
                name=name,
                per_class=_per_class(samples, len(dataset.classes)),
                samples=len(samples),
            )
            for name, samples in splits.items()
        ),
        leak_check=_LEAK_CHECKS[tasks.task_of(record.session.config).modality.kind],
    )


def _transfer(record: Record) -> model.Transfer | None:
    if record.judged is None:
        return None
    found = record.judged
    return model.Transfer(
        methods=tuple(
            model.Method(name=name, epochs=found.epochs[name], scores=tuple(scores))
            for name, scores in found.scores.items()
        ),
        statements=(found.verdict.statement, *(each.statement for each in found.verdict.differences[1:])),
        source=_source_task(found, record.session.config.finetune.max_forgetting),
    )


def _source_task(found: transfer.Comparison, max_forgetting: float | None) -> model.SourceTask | None:
    if found.source is None:
        return None
    change = found.source.forgetting
    statements = [change.statement, found.source.how]
    if max_forgetting is not None:
        passed = f"the gate is passed: a drop of {chosen(100 * max_forgetting)} points is excluded"
        statements.append(found.refusal(max_forgetting) or passed)
    return model.SourceTask(
        before=change.before, scores=tuple(found.source.scores), samples=change.samples, statements=tuple(statements)
    )


def _per_class(samples: Sequence[Sample], classes: int) -> tuple[int, ...]:
    counts = Counter(index for sample in samples for index in sample.present)
    return tuple(counts[index] for index in range(classes))


def _environment(record: Record) -> model.Environment | None:
    facts = record.timings.environment
    if not facts:
        return None
    return model.Environment(
        cpu=facts["cpu"],
        cores=facts["cores"],
        threads=facts["threads"],
        system=f"{facts['system']}, Python {facts['python']}",
        gpu=", ".join(facts["gpu"]) or None,
        load_average=facts["load_average"],
        libraries=tuple(model.Fact(name=name, value=version) for name, version in facts["versions"].items()),
        batch_size=facts["batch_size"],
    )
