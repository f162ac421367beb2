"""The last stage: everything that was found out becomes a bundle with its reports."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from edgetl import __version__
from edgetl.backends.checkpoint import read_deploy
from edgetl.bundle import sign
from edgetl.bundle import write as bundles
from edgetl.errors import BundleError, EdgetlError, ParityError
from edgetl.numbers import counted
from edgetl.pipeline import check, origin, present, quantized, reference, schemas, tasks, timing
from edgetl.pipeline.choice import Decision
from edgetl.pipeline.record import Record
from edgetl.pipeline.session import Session
from edgetl.report.formats import FORMATS
from edgetl.report.model import Report, Verdict
from edgetl.runtime import replay
from edgetl.runtime.runner import TensorSpec
from edgetl.store import Artifact, code_digest, digest_of, versions_of


def summary(record: Record) -> dict[str, Any]:
    """What a build came to, as plain JSON: for ``--json`` and the manifest."""
    metric = tasks.metric_of(record.session.config)
    return {
        "name": record.session.config.project.name,
        "version": record.session.config.project.version,
        "metric": metric.name,
        "score_reference": reference.score_of(record.session.config, record.reference, record.decision),
        "figures_reference": [
            dataclasses.asdict(each) for each in reference.figures_of(record.session.config, record.reference)
        ],
        "baselines": {
            name: found.to_json()
            for name, found in record.timings.latencies.items()
            if name not in {item.proven.engine.candidate.name for item in record.decisions}
        },
        "engines": [_engine(item) for item in record.decisions],
        "transfer": record.judged.to_json() if record.judged else None,
    }


def bundle(record: Record) -> tuple[Artifact, Path]:
    """Seal the bundle in the store, and publish it where the configuration says.

    Returns:
        The sealed bundle, and the folder that was published.

    Raises:
        StorageError: The output folder cannot be written.
        BundleError: The signing key cannot be used.
        ParityError: The sealed bundle does not pass what `edgetl verify` checks: preprocessing, labels, golden inputs,
            batches, lengths, scales. Nothing is kept of it.
    """
    session = record.session
    configured = session.config.bundle.key
    key = (configured or sign.user_key()) if session.dry_run else sign.signing_key(configured, session.reporter.note)
    signer = sign.public_fingerprint(key) if key.exists() or configured else ""
    inputs = {
        "summary": summary(record),
        "artifacts": [item.proven.engine.artifact.digest for item in record.decisions],
        "parts": [record.dataset.digest(), record.checkpoint.digest, record.exported.digest, record.golden.digest],
        "statistics": record.statistics.digest if record.statistics else "",
        "decision": record.decision.to_json(),
        "graphs": {name: graph.digest for name, graph in record.graphs.items()},
        "config": session.config_digest(),
        "signer": signer,
        "origin": _origin(record),
        "code": code_digest(
            "bundle", "report", "pipeline", "parity", "metrics", "distributions.py", "numbers.py", "backends", "runtime"
        ),
        "version": __version__,
    }

    def make(folder: Path) -> None:
        _fill(folder, record, signer)
        manifest = _manifest(record, folder)
        replay.write_contract(folder, manifest)
        bundles.seal(folder, manifest, key)
        _replay(session, folder)

    sealed = session.stage("bundle", record.name, inputs, make)
    destination = session.config.bundle.output / record.name
    bundles.publish(sealed.folder, destination)
    return sealed, destination


def _replay(session: Session, folder: Path) -> None:
    """Do to a sealed bundle what its readers will do to it, before anybody can have it."""
    try:
        checked = check.verify_bundle(folder, told=session.reporter.note)
    except (ParityError, BundleError) as error:
        raise ParityError(
            f"the finished bundle is not what was proven:\n  {error.message.replace(f'{folder}: ', '')}",
            hint=error.hint,
        ) from error
    for item in checked.engines:
        agreeing = item.graph_agreeing if item.skipped else item.agreeing
        golden = f"{agreeing} of {counted(checked.golden, 'golden input')} as PyTorch"
        said = f"{golden}, batches of 1 to {item.largest_batch}"
        if item.skipped:
            said = f"its graph, on the processor: {golden}; " if agreeing is not None else ""
            said += f"not run: {item.skipped}"
        session.reporter.note(f"{item.name} in the bundle: {said}")


def report_failure(record: Record, error: EdgetlError) -> Path:
    """Write the reports of a build that must not be published, and return their folder.

    It lies in the store, beside what was made: nothing that was measured is lost.
    """
    inputs = {
        "summary": summary(record),
        "error": error.message,
        "config": record.session.config_digest(),
        "parts": [record.dataset.digest(), record.checkpoint.digest, record.exported.digest],
        "graphs": {name: graph.digest for name, graph in record.graphs.items()},
        "origin": _origin(record),
        "code": code_digest("report", "pipeline", "numbers.py"),
    }

    def make(folder: Path) -> None:
        head, *details = (line.strip() for line in error.message.splitlines())
        reason = head.rstrip(":")
        report = present.report(record, Verdict(published=False, reason=reason), None)
        if details and not any(
            gate.refuses for each in report.engines for gate in (each.parity_gate, each.budget_gate)
        ):
            told = Verdict(published=False, reason=f"{reason}: {'; '.join(details)}")
            report = dataclasses.replace(report, verdict=told)
        _reports(folder, record, report)

    return record.session.stage("report", "of a build that is not published", inputs, make).folder


def _origin(record: Record) -> list[object]:
    """What reports tell of the configuration's file, which moves where its content does not."""
    found = origin.settings(record.session)
    return [origin.config_name(record.session.config_file), *([each.key, each.target, each.line] for each in found)]


def _fill(folder: Path, record: Record, signer: str) -> None:
    shutil.copyfile(record.exported / "model.onnx", folder / "model.onnx")
    shutil.copytree(record.golden / "golden", folder / "golden")
    for item in record.decisions:
        if item.shipped:
            engine = item.proven.engine
            place = folder / _place(item)
            place.mkdir(parents=True)
            for name in dict.fromkeys(("engine.json", *engine.record.files, *filter(None, [engine.record.graph]))):
                shutil.copyfile(engine.artifact / name, place / name)
    (folder / "reports").mkdir()
    verdict = Verdict(published=True, reason="every target has an engine that passed its gates, or awaits its device")
    _reports(folder / "reports", record, present.report(record, verdict, signer))


def _reports(folder: Path, record: Record, report: Report) -> None:
    for form in FORMATS.values():
        if report.verdict.published or not form.of_bundles:
            (folder / form.file).write_text(form.render(report), encoding="utf-8")
    found = {
        item.proven.engine.candidate.name: item.proven.comparison.to_json()
        for item in record.decisions
        if item.proven.comparison
    }
    (folder / "parity.json").write_text(
        json.dumps({"schema": schemas.PARITY, "engines": found}, indent=1), encoding="utf-8"
    )
    latencies = {name: speed.to_json() for name, speed in record.timings.latencies.items()}
    bench = {
        "schema": timing.SCHEMA,
        "created": record.timings.created,
        "environment": record.timings.environment,
        "latency": latencies,
        **record.timings.details,
    }
    (folder / "bench.json").write_text(json.dumps(bench, indent=1), encoding="utf-8")
    found = quantized.document(record)
    if found["graphs"]:
        (folder / "quantization.json").write_text(json.dumps(found, indent=1), encoding="utf-8")


def _manifest(record: Record, folder: Path) -> dict[str, Any]:
    """Of the bundle whose other files are in a folder."""
    config = record.session.config
    deploy = read_deploy(record.checkpoint.folder)
    labels = [] if deploy.embeds else list(deploy.classes)
    batch = [config.export.batch.min, config.export.batch.max]
    return {
        "name": config.project.name,
        "version": config.project.version,
        "task": config.data.task,
        "created": record.timings.created,
        "edgetl": __version__,
        "inputs": [{**_tensor(deploy.input), "batch": batch}],
        "outputs": [_tensor(deploy.output)],
        "labels": labels,
        "labels_sha256": digest_of(labels),
        "decision": record.decision.to_json(),
        "decision_sha256": digest_of(record.decision.to_json()),
        "preprocessing": deploy.preprocessing.to_json(),
        "preprocessing_sha256": deploy.preprocessing.digest(),
        "engines": [
            {**_engine(item), "files_sha256": bundles.engine_digest(folder / _place(item))}
            for item in record.decisions
            if item.shipped
        ],
        "rejected": [_engine(item) for item in record.decisions if not item.shipped],
        "provenance": {
            "backbone": config.model.backbone,
            "weights": config.model.weights.rsplit("/", 1)[-1],
            "config_sha256": record.session.config_digest(),
            "data_sha256": record.dataset.digest(),
            "checkpoint_sha256": record.checkpoint.digest,
            "recipe": config.quantize.recipe.rsplit("/", 1)[-1] if record.statistics else None,
            "versions": versions_of("torch", "timm", "onnx", "onnx-ir", "numpy"),
        },
    }


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "shape": list(spec.shape), "dtype": spec.dtype}


def _engine(item: Decision) -> dict[str, Any]:
    engine = item.proven.engine
    record = engine.record
    return {
        "target": engine.candidate.target.name,
        "precision": engine.candidate.precision,
        "folder": _place(item),
        "backend": record.backend,
        "provider": record.provider,
        "status": record.status,
        "shipped": item.shipped,
        "note": record.note or item.reason,
        "versions": record.versions,
        "size_bytes": engine.size_bytes,
        "placement": quantized.placement(item),
        "parity": item.proven.comparison.to_json() if item.proven.comparison else {},
        "latency": item.latency.to_json() if item.latency else {},
    }


def _place(item: Decision) -> str:
    candidate = item.proven.engine.candidate
    return f"engines/{candidate.target.name}/{candidate.precision}"
