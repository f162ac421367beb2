"""The stage that proves: parity of every engine that runs here, and what is shipped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl import backends
from edgetl.backends import torch as torch_backend
from edgetl.benchmark import environment
from edgetl.benchmark.summary import Latency
from edgetl.config import Budget, Parity
from edgetl.data.dataset import Dataset, Sample, digest_of_samples
from edgetl.data.loader import Samples, batches
from edgetl.parity.compare import Comparison, compare, differences
from edgetl.parity.sequential import Sequential
from edgetl.pipeline import fused, tasks
from edgetl.pipeline.engines import Engine
from edgetl.pipeline.gates import accepted, tolerance
from edgetl.pipeline.reference import Reference
from edgetl.pipeline.session import Session
from edgetl.pipeline.timing import Timings
from edgetl.runtime.decision import Decision as Answering
from edgetl.runtime.decision import Similarity
from edgetl.runtime.runner import run_batch
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


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What becomes of an engine."""

    proven: Proven
    latency: Latency | None
    shipped: bool
    reason: str
    """Why it is not shipped, or why nothing is known of it here."""
    missed: tuple[str, ...] = ()
    """The limits of its budget that it misses, in words."""


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
    deploy = torch_backend.read_deploy(checkpoint.folder)
    gate, metric = session.config.parity, tasks.metric_of(session.config)
    order = _order(dataset.test, shuffled=gate.sequential)
    inputs = {
        # What is looked at ends where it is decided.
        "until": [gate.max_drop, gate.confidence, checkpoint.digest, decision.to_json(), code_digest("parity")]
        if gate.sequential
        else [],
        "engine": engine.artifact.digest,
        "graph": graph.digest,
        "test": digest_of_samples(dataset.test),
        "preprocessing": deploy.preprocessing.digest(),
        "batch": session.config.export.batch.model_dump(),
        "machine": [environment.cpu_name(), *environment.gpu_names()],
        "versions": versions_of("pillow", "numpy", "onnx-ir"),
        "code": code_digest("runtime", "backends", "data/loader.py", "pipeline/proof.py", *fused.CODE),
    }

    def make(folder: Path) -> None:
        found: list[NDArray[np.generic]] = []
        batch = session.config.export.batch
        test = Sequential(gate.max_drop, gate.confidence) if gate.sequential else None
        with backends.backend(engine.record.backend).open(engine.artifact.folder) as runner:
            samples = Samples(tuple(dataset.test[index] for index in order), deploy.preprocessing)
            for images, labels in batches(samples, batch.max):
                found.append(run_batch(runner, images, smallest=batch.min))
                done = sum(map(len, found))
                session.reporter.progress("test samples", done, len(samples))
                if test:
                    wanted = reference.outputs[order[done - len(labels) : done]]
                    got = found[-1].astype(np.float64)
                    right = [np.equal(decision.decide(each), labels) for each in (wanted, got)]
                    if test.add(differences(*right)) != "undecided":
                        break
            placement = runner.placement()
        np.savez(folder / "outputs.npz", outputs=np.concatenate(found))
        facts = {**asdict(placement), "share": placement.share, "int8": fused.of_engine(engine, graph)}
        (folder / "placement.json").write_text(json.dumps(facts), encoding="utf-8")

    artifact = session.stage("verify", engine.candidate.name, inputs, make)
    with np.load(artifact / "outputs.npz", allow_pickle=False) as arrays:
        outputs = arrays["outputs"]
    order = order[: len(outputs)]
    comparison = compare(
        reference.outputs[order],
        outputs,
        reference.labels[order],
        max_drop=gate.max_drop,
        confidence=gate.confidence,
        metric=metric,
        decision=decision,
        tolerance=tolerance(gate, engine.candidate.precision),
        classes=dataset.classes,
        columns={
            name: [dataset.test[index].slices[place] for index in order]
            for place, name in enumerate(session.config.data.slices)
        },
        sequential=gate.sequential,
    )
    session.reporter.note(
        f"{engine.candidate.name}: {metric.title} {comparison.score:.4f}, PyTorch {comparison.score_reference:.4f}, "
        f"agreement {comparison.agreement:.4f}, SQNR {comparison.sqnr_db:.1f} dB; {comparison.statement}"
    )
    placement = json.loads((artifact / "placement.json").read_text(encoding="utf-8"))
    fusion = placement.pop("int8")
    _tell(session, engine, fusion)
    return Proven(
        engine=engine,
        comparison=comparison,
        placement=placement,
        decided=None if isinstance(decision, Similarity) or gate.sequential else decision.decide(outputs),
        fusion=fusion,
    )


def _order(samples: Sequence[Sample], *, shuffled: bool) -> NDArray[np.int64]:
    """In which samples are looked at, (n,): as they are, or at random, the same whenever they are the same."""
    if not shuffled:
        return np.arange(len(samples))
    seed = int(digest_of_samples(samples)[:16], 16)
    return np.random.default_rng(seed).permutation(len(samples))


def decide(proven: list[Proven], timings: Timings, parity: Parity) -> list[Decision]:
    """Choose per target: of the precisions that pass parity, the fastest; a budget narrows the choice first.

    What could not run here is shipped unproven, and says so.

    Args:
        proven: Every engine.
        timings: Of those that run here.
        parity: What passes.
    """
    decisions = []
    for target in dict.fromkeys(item.engine.candidate.target.name for item in proven):
        items = [item for item in proven if item.engine.candidate.target.name == target]
        decisions += _decide_target(items, timings, parity)
    return decisions


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


def _decide_target(items: list[Proven], timings: Timings, parity: Parity) -> list[Decision]:
    passing = [item for item in items if accepted(parity, item.comparison)]
    found = {id(item): timings.latencies.get(item.engine.candidate.name) for item in items}
    missed = {id(item): _missed(item.engine.candidate.entry.budget, found[id(item)]) for item in items}
    fastest = min(passing, key=lambda item: (bool(missed[id(item)]), _p50(found[id(item)])), default=None)
    decisions = []
    for item in items:
        speed = found[id(item)]
        reason = ""
        if item.comparison is None:
            reason = item.engine.record.note
        elif not accepted(parity, item.comparison):
            reason = f"parity: {item.comparison.statement}"
        elif item is not fastest and fastest is not None:
            reason = f"{fastest.engine.candidate.precision} is faster" + _than(found[id(fastest)], speed)
            if missed[id(item)] and not missed[id(fastest)]:
                reason = f"misses the budget ({'; '.join(missed[id(item)])})"
        decisions.append(
            Decision(
                proven=item,
                latency=speed,
                shipped=item is fastest or item.comparison is None,
                reason=reason,
                missed=missed[id(item)],
            )
        )
    return decisions


def _missed(budget: Budget, found: Latency | None) -> tuple[str, ...]:
    if found is None:
        return ()
    missed = []
    for field, limit in budget.model_dump(exclude_none=True).items():
        name = field.removesuffix("_ms")
        measured = found.percentile(name)
        if measured is None:
            missed.append(f"{name} is not known from {found.samples} calls, allowed {limit:g} ms")
        elif measured > limit:
            missed.append(f"{name} {measured:.2f} ms, allowed {limit:g} ms")
    return tuple(missed)


def _p50(found: Latency | None) -> float:
    return found.p50_ms if found else float("inf")


def _than(fast: Latency | None, slow: Latency | None) -> str:
    return f": {fast.p50_ms:.2f} against {slow.p50_ms:.2f} ms" if fast and slow else ""
