"""The stage that proves: parity of every engine that runs here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl import backends
from edgetl.backends.checkpoint import read_deploy
from edgetl.benchmark import environment
from edgetl.config import Parity
from edgetl.config.sections import Batch
from edgetl.data.dataset import Dataset, Sample, digest_of_samples
from edgetl.data.loader import Samples, batches
from edgetl.parity.answers import differences
from edgetl.parity.compare import Comparison, compare
from edgetl.parity.numeric import TOLERANCES, Tolerance
from edgetl.parity.sequential import Sequential
from edgetl.pipeline import fused, tasks
from edgetl.pipeline.engines import Engine
from edgetl.pipeline.reference import Reference
from edgetl.pipeline.session import Session
from edgetl.runtime.decision import Decision as Answering
from edgetl.runtime.decision import Similarity
from edgetl.runtime.preprocessing import Preprocessing
from edgetl.runtime.runner import Runner, run_batch
from edgetl.specs import Precision
from edgetl.store import Artifact, code_digest, versions_of


@dataclass(frozen=True, kw_only=True)
class Proven:
    """An engine with what was found out about it."""

    engine: Engine
    comparison: Comparison | None
    """None where it could not run here."""
    placement: dict[str, Any] | None
    """provider, share, nodes, kinds; None where it could not run here."""
    decided: NDArray[np.integer] | None = None
    """Decisions on the test samples, (n,) or (n, classes); None where nothing is decided on single samples."""
    fusion: dict[str, Any] | None = None
    """What became of the Q/DQ pairs, from :mod:`edgetl.pipeline.fused`; None where nothing is known."""


def tolerance_of(gate: Parity, precision: Precision) -> Tolerance | None:
    """What the numbers of an engine must keep to.

    Args:
        gate: Whose own tolerances come before those of the precision.
        precision: Of the engine.
    """
    if precision in gate.tolerances:
        return Tolerance(**gate.tolerances[precision].model_dump())
    return TOLERANCES.get(precision)


def accepted(gate: Parity, comparison: Comparison | None) -> bool:
    """Whether an engine may be shipped: it passed, or nothing was decided and the user lets that do."""
    if comparison is None:
        return False
    return comparison.passed or (comparison.outcome == "undecided" and gate.undecided == "allow")


def verify(
    session: Session,
    dataset: Dataset,
    checkpoint: Artifact,
    engine: Engine,
    reference: Reference,
    graph: Artifact,
    decision: Answering,
) -> Proven:
    """Run an engine on the test split and compare it with PyTorch; an engine that cannot run here stays unproven.

    Args:
        session: The build.
        dataset: Its data.
        checkpoint: The trained network.
        engine: To be proved.
        reference: PyTorch's answers.
        graph: That the engine was compiled from.
        decision: How outputs become answers.
    """
    if engine.record.status != "ready":
        found = _parsed(session, engine, graph)
        _tell(session, engine, found)
        return Proven(engine=engine, comparison=None, placement=None, fusion=found)
    trial = _Trial(
        session=session,
        dataset=dataset,
        engine=engine,
        reference=reference,
        graph=graph,
        decision=decision,
        preprocessing=read_deploy(checkpoint.folder).preprocessing,
        order=_order(dataset.test, shuffled=session.config.parity.sequential),
    )
    artifact = session.stage("verify", engine.candidate.name, _key(trial, checkpoint), partial(_answer, trial))
    with np.load(artifact / "outputs.npz", allow_pickle=False) as arrays:
        outputs = arrays["outputs"]
    comparison = _compared(trial, outputs)
    placement = json.loads((artifact / "placement.json").read_text(encoding="utf-8"))
    fusion = placement.pop("int8")
    _tell(session, engine, fusion)
    on_samples = not isinstance(decision, Similarity) and not session.config.parity.sequential
    return Proven(
        engine=engine,
        comparison=comparison,
        placement=placement,
        decided=decision.decide(outputs) if on_samples else None,
        fusion=fusion,
    )


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """An engine before the test split."""

    session: Session
    dataset: Dataset
    engine: Engine
    reference: Reference
    graph: Artifact
    decision: Answering
    preprocessing: Preprocessing
    order: NDArray[np.int64]
    """In which the samples are looked at, (n,)."""


def _key(trial: _Trial, checkpoint: Artifact) -> dict[str, Any]:
    """Everything that an engine's answers depend on."""
    gate = trial.session.config.parity
    return {
        # What is looked at ends where it is decided.
        "until": [gate.max_drop, gate.confidence, checkpoint.digest, trial.decision.to_json(), code_digest("parity")]
        if gate.sequential
        else [],
        "engine": trial.engine.artifact.digest,
        "graph": trial.graph.digest,
        "test": digest_of_samples(trial.dataset.test),
        "preprocessing": trial.preprocessing.digest(),
        "batch": trial.session.config.export.batch.model_dump(),
        "machine": [environment.cpu_name(), *environment.gpu_names()],
        "versions": versions_of("pillow", "numpy", "onnx-ir"),
        "code": code_digest("runtime", "backends", "data/loader.py", "pipeline/proof.py", *fused.CODE),
    }


def _answer(trial: _Trial, folder: Path) -> None:
    """Write an engine's answers to the test split, and where its nodes run."""
    gate, batch = trial.session.config.parity, trial.session.config.export.batch
    test = Sequential(gate.max_drop, gate.confidence) if gate.sequential else None
    samples = Samples(tuple(trial.dataset.test[index] for index in trial.order), trial.preprocessing)
    found: list[NDArray[np.generic]] = []
    with backends.backend(trial.engine.record.backend).open(trial.engine.artifact.folder) as runner:
        for arrays, labels in batches(samples, _batch_size(runner, batch)):
            found.append(run_batch(runner, arrays, smallest=batch.min))
            done = sum(map(len, found))
            trial.session.progress("test samples", done, len(samples))
            if test:
                wanted = trial.reference.outputs[trial.order[done - len(labels) : done]]
                right = [np.equal(trial.decision.decide(each), labels) for each in (wanted, found[-1].astype(float))]
                if test.add(differences(*right)) != "undecided":
                    break
        placement = runner.placement()
    np.savez(folder / "outputs.npz", outputs=np.concatenate(found))
    facts = {**asdict(placement), "share": placement.share, "int8": fused.of_engine(trial.engine, trial.graph)}
    (folder / "placement.json").write_text(json.dumps(facts), encoding="utf-8")


def _batch_size(runner: Runner, batch: Batch) -> int:
    """The smallest one, as a device asks and as is timed; the largest where samples in it are filled up to one length.

    An engine may compute larger batches with other kernels, as OpenVINO's does; `edgetl verify` compares the two.
    """
    filled_up = any(not isinstance(size, int) for spec in runner.inputs for size in spec.shape[1:])
    return batch.max if filled_up else batch.min


def _compared(trial: _Trial, outputs: NDArray[Any]) -> Comparison:
    """Answers to as many samples as were looked at, held against the reference's."""
    config, name = trial.session.config, trial.engine.candidate.name
    order, metric = trial.order[: len(outputs)], tasks.metric_of(config)
    comparison = compare(
        trial.reference.outputs[order],
        outputs,
        trial.reference.labels[order],
        max_drop=config.parity.max_drop,
        confidence=config.parity.confidence,
        metric=metric,
        decision=trial.decision,
        tolerance=tolerance_of(config.parity, trial.engine.candidate.precision),
        classes=trial.dataset.classes,
        columns={
            column: [trial.dataset.test[index].slices[place] for index in order]
            for place, column in enumerate(config.data.slices)
        },
        groups=[trial.dataset.test[index].group for index in order],
        sequential=config.parity.sequential,
    )
    trial.session.reporter.note(
        f"{name}: {metric.title} {comparison.score:.4f}, PyTorch {comparison.score_reference:.4f}, "
        f"agreement {comparison.agreement:.4f}, SQNR {comparison.sqnr_db:.1f} dB; {comparison.statement}"
    )
    return comparison


def _order(samples: Sequence[Sample], *, shuffled: bool) -> NDArray[np.int64]:
    """In which samples are looked at, (n,): as they are, or at random, the same whenever they are the same."""
    if not shuffled:
        return np.arange(len(samples))
    seed = int(digest_of_samples(samples)[:16], 16)
    return np.random.default_rng(seed).permutation(len(samples))


def _parsed(session: Session, engine: Engine, graph: Artifact) -> dict[str, Any] | None:
    """What TensorRT's parser makes of the graph of an engine that does not run here."""
    if not fused.can_parse(engine, graph):
        return None
    inputs = {
        "graph": graph.digest,
        "parser": fused.tensorrt_rtx_version(),
        "code": code_digest("runtime", "backends", "pipeline/proof.py", *fused.CODE),
    }

    def make(folder: Path) -> None:
        facts = {"int8": fused.of_parser(graph)}
        (folder / "placement.json").write_text(json.dumps(facts), encoding="utf-8")

    artifact = session.stage("verify", f"{engine.candidate.name}, its graph alone", inputs, make)
    found: dict[str, Any] | None = json.loads((artifact / "placement.json").read_text(encoding="utf-8"))["int8"]
    return found


def _tell(session: Session, engine: Engine, fusion: dict[str, Any] | None) -> None:
    for line in fused.told(engine.candidate.name, fusion) if fusion else ():
        session.reporter.note(line)
