"""The reference: what PyTorch says of the test split, how its outputs become answers, and a few golden inputs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgetl.backends import torch as torch_backend
from edgetl.backends.checkpoint import Deploy, read_deploy
from edgetl.config import Config
from edgetl.data.dataset import Dataset, digest_of_samples
from edgetl.data.loader import Samples, batches
from edgetl.metrics import figures
from edgetl.pipeline import tasks
from edgetl.pipeline.session import Session
from edgetl.runtime.decision import Decision, Largest, MultiLabel, Similarity, Threshold
from edgetl.runtime.decision import from_json as read_decision
from edgetl.store import Artifact, code_digest, versions_of

if TYPE_CHECKING:
    from torch import nn

_GOLDEN = 8
_FAR = 1e-2
"""False accept rate at which the threshold of a verification is set."""
_CHOICE = "choice.txt"
_SUFFIXES = {"text": ".txt", "table": ".json"}
"""Kind of preprocessing contract → suffix of a golden input that is not a file of its own."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What PyTorch says of the test split."""

    outputs: NDArray[np.float32]
    """Logits of shape (n, classes), or embeddings (n, d)."""
    labels: NDArray[np.int64]
    """Shape (n,), or (n, classes) where a sample may have several."""


def ask_reference(session: Session, dataset: Dataset, checkpoint: Artifact) -> tuple[Artifact, Reference]:
    """Run the PyTorch model on the test split, and keep a few raw inputs with its answers."""
    deploy = read_deploy(checkpoint.folder)
    inputs = {
        "checkpoint": checkpoint.digest,
        "test": digest_of_samples(dataset.test),
        "code": code_digest("backends", "data/loader.py", "runtime", "pipeline/reference.py"),
        "versions": versions_of("torch", "timm", "transformers", "tokenizers", "pillow", "numpy"),
    }

    def make(folder: Path) -> None:
        module, _ = torch_backend.read_checkpoint(checkpoint.folder)
        samples = Samples(dataset.test, deploy.preprocessing)
        outputs, labels = answers(session, module, deploy, samples, "test samples")
        np.savez(folder / "reference.npz", outputs=outputs, labels=labels)
        _write_golden(folder / "golden", samples, outputs, deploy.classes)

    artifact = session.stage("reference", "ask PyTorch about the test split", inputs, make)
    with np.load(artifact / "reference.npz", allow_pickle=False) as arrays:
        return artifact, Reference(outputs=arrays["outputs"], labels=arrays["labels"])


def score_of(config: Config, reference: Reference, decision: Decision) -> float:
    """The metric of PyTorch's outputs on test; top-1 by the decision that is shipped, as engines are measured."""
    metric = tasks.metric_of(config)
    if metric.name == "top1":
        return float((decision.decide(reference.outputs) == reference.labels).mean())
    return metric(reference.outputs, reference.labels)


def figures_of(config: Config, reference: Reference) -> tuple[figures.Figure, ...]:
    """What is told of PyTorch's outputs on test beside the metric; nothing of outputs that are not finite."""
    objective = tasks.TASKS[config.data.task].objective
    if not np.isfinite(reference.outputs).all():
        return ()
    if objective == "embedding":
        return (figures.strict_true_accepts(reference.outputs, reference.labels),)
    if objective == "one-label":
        return (figures.calibration_error(reference.outputs, reference.labels),)
    return ()


def decide(session: Session, dataset: Dataset, checkpoint: Artifact) -> Decision:
    """How the network's outputs become answers: rules and thresholds are found on val or train, never on test."""
    task, rule = tasks.task_of(session.config), session.config.data.decision
    if task.objective == "one-label" and rule == "largest":
        return Largest()
    splits = {"mean-threshold": ("train",), "auto": ("val", "train")}.get(rule, ("val",))
    sources = {"val": dataset.val, "train": dataset.train}
    inputs = {
        "checkpoint": checkpoint.digest,
        "samples": [digest_of_samples(sources[name]) for name in splits],
        "metric": tasks.metric_of(session.config).name,
        "task": task.name,
        "rule": rule,
        "code": code_digest(
            "backends", "data/loader.py", "finetune/thresholds.py", "metrics", "runtime", "pipeline/reference.py"
        ),
        "versions": versions_of("torch", "timm", "transformers", "scikit-learn", "numpy"),
    }

    def make(folder: Path) -> None:
        module, deploy = torch_backend.read_checkpoint(checkpoint.folder)
        found = {
            name: answers(session, module, deploy, Samples(sources[name], deploy.preprocessing), f"{name} samples")
            for name in splits
        }
        outputs, labels = found[splits[0]]
        if rule == "auto":
            decision, statement = _chosen(outputs, labels, found["train"][0], tasks.metric_of(session.config).name)
            (folder / _CHOICE).write_text(statement, encoding="utf-8")
        else:
            decision = _decision(task, rule, outputs, labels)
        (folder / "decision.json").write_text(json.dumps(decision.to_json()), encoding="utf-8")

    artifact = session.stage("decision", "thresholds on samples outside test", inputs, make)
    if rule == "auto":
        session.reporter.note((artifact / _CHOICE).read_text(encoding="utf-8"))
    return read_decision(json.loads((artifact / "decision.json").read_text(encoding="utf-8")))


def _decision(task: tasks.Task, rule: str, outputs: NDArray[np.float32], labels: NDArray[np.int64]) -> Decision:
    from edgetl.finetune import thresholds

    if task.objective == "several-labels":
        return MultiLabel(thresholds=tuple(float(value) for value in thresholds.per_class(outputs, labels)))
    if task.embeds:
        return Similarity(threshold=thresholds.similarity(outputs, labels, far=_FAR))
    if rule == "mean-threshold":
        return Threshold(threshold=thresholds.mean_probability(outputs))
    return Threshold(threshold=thresholds.best(outputs, labels))


def _chosen(
    outputs: NDArray[np.float32], labels: NDArray[np.int64], train: NDArray[np.float32], metric: str
) -> tuple[Decision, str]:
    """The best of the rules on val, and what it was chosen from. No rule changes an AUC: macro-F1 judges then."""
    from edgetl.finetune import thresholds

    choice = thresholds.choose(outputs, labels, train, by="top1" if metric == "top1" else "macro-f1")
    decision = Largest() if choice.rule == "largest" else Threshold(threshold=choice.threshold)
    return decision, choice.statement


def answers(
    session: Session, module: nn.Module, deploy: Deploy, samples: Samples, what: str
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """What PyTorch says of samples, and their labels.

    Args:
        session: Is told how it goes.
        module: In eval mode.
        deploy: Of its checkpoint.
        samples: With its preprocessing contract.
        what: They are, for people.
    """
    found, labels = [], []
    with torch_backend.TorchRunner(module, deploy.input, deploy.output) as runner:
        for arrays, targets in batches(samples, 64):
            found.append(runner.run({deploy.input.name: arrays})[deploy.output.name])
            labels.append(targets)
            session.progress(what, sum(map(len, labels)), len(samples))
    return np.concatenate(found).astype(np.float32, copy=False), np.concatenate(labels)


def _write_golden(folder: Path, samples: Samples, outputs: NDArray[np.float32], classes: tuple[str, ...]) -> None:
    """Raw inputs as they are, with the arrays and outputs that were made of them, and the names of the outputs."""
    folder.mkdir()
    step = max(1, len(samples) // _GOLDEN)
    chosen = list(range(0, len(samples), step))[:_GOLDEN]
    names = []
    for number, index in enumerate(chosen):
        raw = samples.samples[index].raw
        suffix = _SUFFIXES[samples.preprocessing.kind] if isinstance(raw, str) else raw.suffix.lower()
        names.append(f"{number}{suffix}")
        (folder / names[-1]).write_bytes(raw.encode() if isinstance(raw, str) else raw.read_bytes())
    arrays = samples.preprocessing.together([samples[index][0] for index in chosen])
    np.savez(
        folder / "golden.npz",
        names=np.asarray(names),
        inputs=arrays,
        outputs=outputs[chosen],
        classes=np.asarray(classes, dtype=np.str_),
    )
