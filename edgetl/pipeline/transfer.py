"""Did transfer help? Fine-tuning, a linear probe and training from scratch, side by side, with several seeds."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.config import Config, Model, Phase
from edgetl.data.dataset import Dataset
from edgetl.errors import ConfigError, ModelError
from edgetl.finetune import verdict as statistics
from edgetl.finetune.verdict import PROBE, SCRATCH, TUNED, Verdict
from edgetl.pipeline import learning, source_task, tasks
from edgetl.pipeline.reference import Reference, ask_reference
from edgetl.pipeline.session import Session
from edgetl.pipeline.source_task import SourceChange, SourceTask
from edgetl.store import Artifact, code_digest, versions_of

SEEDS = statistics.LEAST_SEEDS
HINT = (
    "of transfer: another backbone or source of weights, more training data, or other finetune.phases; of forgetting:"
    " fewer epochs, a smaller lr, fewer layers that learn, or more samples in finetune.source_test"
)
"""Of a gate that is not passed."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What the trials of a project came to."""

    verdict: Verdict
    metric: str
    """What is compared, in words."""
    epochs: dict[str, int]
    """Of each method: passes over the training samples, all phases together."""
    scores: dict[str, list[float]]
    """Of each method: the metric on test, per seed."""
    source: SourceChange | None = None
    """The change on the source task; None where no test split of it was given."""

    def refusal(self, max_forgetting: float | None) -> str | None:
        """Why the gate finetune.max_forgetting is not passed; None where it is, or is not asked for."""
        if max_forgetting is None or self.source is None:
            return None
        return self.source.forgetting.refusal(max_forgetting)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "verdict": self.verdict.to_json(),
            "metric": self.metric,
            "epochs": self.epochs,
            "scores": self.scores,
            "source": self.source.to_json() if self.source else None,
        }


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a verdict is to compare."""

    methods: dict[str, Config]
    """From :func:`methods_of`."""
    seeds: int
    """Of each method: finetune.seed and the numbers after it."""
    source: SourceTask | None
    """What forgetting is measured on; None where no test split of it was given."""


def plan(session: Session, dataset: Dataset, *, seeds: int = SEEDS) -> Plan:
    """What there is to compare; nothing is trained yet, and what would keep a method from being trained is an error.

    Args:
        session: Of the project; its configuration is the fine-tuning that is judged.
        dataset: Its data.
        seeds: finetune.seed and the numbers after it.

    Raises:
        ConfigError: There is nothing to compare: no pretrained weights, or no phase; or too few seeds; or, with
            finetune.source_test, see :func:`edgetl.pipeline.source_task.read_source`.
        ModelError: A method cannot be trained; see :func:`edgetl.pipeline.learning.check`.
    """
    methods = methods_of(session.config)
    if seeds < SEEDS:
        raise ConfigError(f"a verdict needs at least {SEEDS} seeds, and {seeds} were asked for: one run may be lucky")
    source = source_task.read_source(session, dataset)
    for name, method in methods.items():
        try:
            learning.check(replace(session, config=method), dataset)
        except ModelError as error:
            raise ModelError(f"{statistics.SPOKEN[name]}: {error.message}", hint=error.hint) from None
    return Plan(methods=methods, seeds=seeds, source=source)


def compare(session: Session, dataset: Dataset, planned: Plan, *, confidence: float = 0.95) -> Comparison:
    """Train every method with every seed, and compare them on the test split.

    Every trial is kept in the store like any other training: a second verdict, or one with more seeds, repeats none.

    Args:
        session: Of the project.
        dataset: Its data.
        planned: From :func:`plan`.
        confidence: Of the intervals.
    """
    config, methods, seeds, source = session.config, planned.methods, planned.seeds, planned.source
    trials: dict[str, list[tuple[Artifact, Reference]]] = {name: [] for name in methods}
    tuned: list[Artifact] = []
    for number in range(seeds):
        for name, method in methods.items():
            seeded = method.finetune.model_copy(update={"seed": method.finetune.seed + number})
            session.reporter.note(f"{name}, seed {seeded.seed} ({number + 1} of {seeds})")
            trial = replace(session, config=method.model_copy(update={"finetune": seeded}))
            checkpoint, _ = learning.train(trial, dataset)
            trials[name].append(ask_reference(trial, dataset, checkpoint))
            if name == TUNED:
                tuned.append(checkpoint)
    answers = source_task.ask(session, source, tuned) if source else {}
    metric = tasks.metric_of(config)
    labels, groups = trials[TUNED][0][1].labels, [sample.group for sample in dataset.test]
    outputs: dict[str, NDArray[Any]] = {
        name: np.stack([reference.outputs for _, reference in found]) for name, found in trials.items()
    }
    inputs = {
        "references": {name: [artifact.digest for artifact, _ in found] for name, found in trials.items()},
        "metric": metric.name,
        "confidence": confidence,
        "groups": groups,
        "source": {name: artifact.digest for name, artifact in answers.items()},
        "code": code_digest(
            "finetune/verdict.py", "numbers.py", "metrics", "pipeline/transfer.py", "pipeline/source_task.py"
        ),
        "versions": versions_of("numpy"),
    }

    def make(folder: Path) -> None:
        found = Comparison(
            verdict=statistics.verdict_by(metric, outputs, labels, confidence, groups=groups),
            metric=metric.title,
            epochs={name: sum(phase.epochs for phase in method.finetune.phases) for name, method in methods.items()},
            scores={name: [float(metric(run, labels)) for run in runs] for name, runs in outputs.items()},
            source=source_task.change(session, source, answers, confidence) if source else None,
        )
        (folder / "verdict.json").write_text(json.dumps(found.to_json()), encoding="utf-8")

    artifact = session.stage("verdict", f"{len(methods)} methods with {seeds} seeds each", inputs, make)
    return read(json.loads((artifact / "verdict.json").read_text(encoding="utf-8")))


def methods_of(config: Config) -> dict[str, Config]:
    """The configuration of every method, at an equal budget.

    The budget is passes over the training samples: the linear probe has all of them for its head, training from scratch
    all of them through the whole network, which is at least the computation of fine-tuning. Scratch learns BatchNorm's
    statistics; batch size, augmentation, optimizer, losses and schedule are those of the project.

    Raises:
        ConfigError: The project has no phase, or nothing pretrained to transfer.
    """
    phases = config.finetune.phases
    if not phases:
        raise ConfigError("finetune.phases is empty: there is no fine-tuning to judge")
    if config.model.weights == "none":
        raise ConfigError(
            "model.weights is none: nothing pretrained is transferred, and there is nothing to judge",
            hint="name pretrained weights, or the checkpoint of another run, in model.weights",
        )
    epochs = sum(phase.epochs for phase in phases)
    deep = next((phase for phase in reversed(phases) if phase.train != "head"), None)
    probe = next((phase for phase in phases if phase.train == "head"), Phase(train="head"))
    methods = {TUNED: config, PROBE: _with(config, probe.model_copy(update={"epochs": epochs}))}
    scratch = (deep or Phase(train="all")).model_copy(
        update={"train": "all", "stages": None, "names": (), "epochs": epochs, "batchnorm": "train", "layer_decay": 1.0}
    )
    methods[SCRATCH] = _with(config.model_copy(update={"model": _untrained(config.model)}), scratch)
    if deep is None:  # a project that trains the head alone is its own probe
        del methods[PROBE]
    return methods


def _untrained(model: Model) -> Model:
    """The same network with random weights; a text encoder's shape and tokenizer still come from where they were."""
    changes = {"weights": "none", "partial": False}
    if model.backbone.startswith("hf:") and model.weights != "hub":
        changes["backbone"] = f"hf:{model.weights}"
    return model.model_copy(update=changes)


def _with(config: Config, phase: Phase) -> Config:
    return config.model_copy(update={"finetune": config.finetune.model_copy(update={"phases": (phase,)})})


def read(values: dict[str, Any]) -> Comparison:
    """From :meth:`Comparison.to_json`."""
    found = values["verdict"]
    differences = tuple(statistics.Difference(**each) for each in found["differences"])
    return Comparison(
        verdict=Verdict(**{**found, "differences": differences}),
        metric=values["metric"],
        epochs=values["epochs"],
        scores=values["scores"],
        source=SourceChange.from_json(values["source"]) if values["source"] else None,
    )
