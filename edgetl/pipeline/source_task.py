"""The change on the source task: what fine-tuning did to the task that the pretrained network came from.

Networks that learn a second task lose the first (McCloskey and Cohen 1989, Psychology of Learning and Motivation 24;
Goodfellow et al. 2013, arXiv:1312.6211). Where both tasks have the same classes, the fine-tuned network answers for
both, and is asked itself. Otherwise its head is for other classes; then the source's own head, as it was, is put back
on the fine-tuned body, as the fine-tuning baseline of Li and Hoiem 2016 (arXiv:1606.09282) is measured. That tells what
the old head still reads out of the new features; a head that is trained anew on source data could read more out of
them (Davari et al. 2022, arXiv:2203.13381).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgetl.backends import networks
from edgetl.backends import torch as torch_backend
from edgetl.backends.checkpoint import Deploy, read_deploy
from edgetl.data.dataset import UNLABELLED, Dataset, Sample, digest_of_samples
from edgetl.data.leaks import check_leaks
from edgetl.data.loader import Samples
from edgetl.errors import ConfigError, DataError, ModelError
from edgetl.finetune import weights
from edgetl.finetune.verdict import Forgetting, forgetting_by
from edgetl.pipeline import reference, tasks
from edgetl.pipeline.session import Session
from edgetl.store import Artifact, code_digest, versions_of

if TYPE_CHECKING:
    from torch import nn

Head = Literal["own", "source"]


@dataclass(frozen=True, kw_only=True)
class SourceTask:
    """The network that fine-tuning starts from, and the test split of its task."""

    folder: Path
    """Of its checkpoint."""
    deploy: Deploy
    samples: tuple[Sample, ...]
    """Labelled in the order of its classes."""
    head: Head
    """Which head the fine-tuned networks are asked with: their own, or the source's."""


@dataclass(frozen=True, kw_only=True)
class SourceChange:
    """What fine-tuning did to the source task."""

    forgetting: Forgetting
    head: Head
    """own: the fine-tuned networks answered as they are. source: with the source's own head put back."""
    how: str
    """What was measured, as a sentence."""
    metric: str
    """In words."""
    scores: list[float]
    """After fine-tuning: the metric on the source task's test split, per seed."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "forgetting": self.forgetting.to_json()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> SourceChange:
        """The inverse of :meth:`to_json`."""
        return cls(**{**values, "forgetting": Forgetting(**values["forgetting"])})


def read_source(session: Session, dataset: Dataset) -> SourceTask | None:
    """The source task of a project; None where ``finetune.source_test`` names no test split of it.

    Args:
        session: Of the project.
        dataset: Its data, which must not hold the source's test samples in train or val.

    Raises:
        ConfigError: The weights are no checkpoint of edgetl's, or one of another kind or backbone.
        DataError: The test split has no labels, labels that the checkpoint does not know, or rows that the fine-tuned
            network cannot read.
        LeakError: A sample of it is in the project's train or val.
    """
    config, task = session.config, tasks.task_of(session.config)
    path = config.finetune.source_test
    if path is None:
        return None
    if not weights.is_checkpoint(config.model.weights):
        raise ConfigError(
            f"finetune.source_test is the test split of the task that model.weights were trained on, and model.weights"
            f" is '{config.model.weights}', which does not say what its classes are",
            hint="model.weights = the folder of another run's checkpoint (edgetl train prints it), or leave out "
            "source_test",
        )
    folder = Path(config.model.weights)
    deploy = read_deploy(folder)
    _check_kind(config.model.backbone, deploy, task, folder)
    names = deploy.classes
    if task.embeds:
        from edgetl.data.load import label_names

        names = label_names(path)  # whoever is there: an embedding needs no classes
    samples = task.modality.load_samples(
        path,
        deploy.preprocessing,
        names,
        progress=lambda done, total: session.progress("source samples checked", done, total),
    )
    if not samples or any(sample.label == UNLABELLED for sample in samples):
        raise DataError(
            f"{path} has no labels of the source task: its classes are {', '.join(names[:10])}",
            hint="finetune.source_test is a folder with one sub-folder per class, or a manifest with a column label",
        )
    if task.modality.kind == "table":
        _check_rows(session, dataset, path, samples)
    else:
        parts = {"train": dataset.train, "val": dataset.val, "source_test": samples}
        check_leaks(parts, allowed=[("train", "val")])
    same = task.embeds or set(deploy.classes) == set(tasks.outputs_of(config, dataset))
    return SourceTask(folder=folder, deploy=deploy, samples=samples, head="own" if same else "source")


def ask(session: Session, source: SourceTask, tuned: Sequence[Artifact]) -> dict[str, Artifact]:
    """Every network's answers to the source task's test split, as results in the store: before, then each seed.

    Args:
        session: Of the project.
        source: From :func:`read_source`.
        tuned: The fine-tuned checkpoints, one per seed.

    Raises:
        ModelError: The source's head does not fit a fine-tuned body.
    """
    start = weights.source_digest(str(source.folder))
    found = {"before": _answers(session, source, None, {"network": start})}
    for number, checkpoint in enumerate(tuned):
        inputs = {"network": checkpoint.digest, "head": start if source.head == "source" else "own"}
        found[f"after {number}"] = _answers(session, source, checkpoint, inputs)
    return found


def change(session: Session, source: SourceTask, answers: dict[str, Artifact], confidence: float) -> SourceChange:
    """The change on the source task, in the project's metric.

    Args:
        session: Of the project.
        source: From :func:`read_source`.
        answers: From :func:`ask`.
        confidence: Of the two-sided interval.

    Raises:
        DataError: The metric has no value for the test split.
    """
    metric = tasks.metric_of(session.config)
    labels = np.asarray([sample.label for sample in source.samples], dtype=np.int64)
    before, *after = (_read(answer) for answer in answers.values())
    return SourceChange(
        forgetting=forgetting_by(
            metric, before, np.stack(after), labels, confidence, groups=[sample.group for sample in source.samples]
        ),
        head=source.head,
        how=_how(source),
        metric=metric.title,
        scores=[float(metric(outputs, labels)) for outputs in after],
    )


def _how(source: SourceTask) -> str:
    if source.deploy.embeds:
        asked = "the fine-tuned networks embedded the source task's test samples"
    elif source.head == "own":
        asked = "the source task has the same classes, and the fine-tuned networks answered as they are"
    else:
        asked = "the source task has other classes: its own head was put back on the fine-tuned bodies"
    return f"{asked}; every network read its inputs by its own preprocessing"


def _check_kind(backbone: str, deploy: Deploy, task: tasks.Task, folder: Path) -> None:
    if task.objective == "several-labels":
        raise ConfigError(
            f"the change on the source task is measured where a sample has one class; data.task is {task.name}",
            hint="leave out finetune.source_test",
        )
    if deploy.preprocessing.kind != task.modality.kind or deploy.embeds != task.embeds:
        kind = "embeds faces" if deploy.embeds else f"classifies {deploy.preprocessing.kind}s"
        raise ConfigError(
            f"the checkpoint in {folder} {kind}, and data.task is {task.name}: neither can answer for the other",
            hint="model.weights = the checkpoint of a run of the same kind, or leave out finetune.source_test",
        )
    if deploy.backbone != backbone:
        raise ConfigError(
            f"the checkpoint in {folder} is of {deploy.backbone}, and model.backbone is {backbone}: neither can answer"
            " for the other",
            hint="the change on the source task needs one backbone for both; or leave out finetune.source_test",
        )


def _check_rows(session: Session, dataset: Dataset, path: Path, samples: Sequence[Sample]) -> None:
    """See that the project's contract, which is fitted on its train, reads the source task's rows."""
    from edgetl.data.tables import fit_table

    contract = fit_table(session.config.data, dataset.train)
    for sample in samples:
        try:
            contract(sample.raw)
        except DataError as error:
            raise DataError(
                f"{path}: the fine-tuned network cannot read the source task's rows: {error.message}",
                hint="both tables must have the same columns; or leave out finetune.source_test",
            ) from None


def _answers(session: Session, source: SourceTask, checkpoint: Artifact | None, inputs: dict[str, Any]) -> Artifact:
    """Outputs for the source's test split, in the order of its classes; of the source itself without a checkpoint."""

    def make(folder: Path) -> None:
        if checkpoint is None:
            module, deploy = torch_backend.read_checkpoint(source.folder)
        elif source.head == "source":
            module, deploy = _with_head(checkpoint.folder, source.folder)
        else:
            module, deploy = torch_backend.read_checkpoint(checkpoint.folder)
        outputs, _ = reference.answers(
            session, module, deploy, Samples(source.samples, deploy.preprocessing), "source samples"
        )
        if not deploy.embeds:
            outputs = outputs[:, [deploy.classes.index(name) for name in source.deploy.classes]]
        np.savez(folder / "source.npz", outputs=outputs)

    content = {
        **inputs,
        "samples": digest_of_samples(source.samples),
        "classes": list(source.deploy.classes),
        "code": code_digest(
            "backends", "data/loader.py", "runtime", "pipeline/reference.py", "pipeline/source_task.py"
        ),
        "versions": versions_of("torch", "timm", "transformers", "tokenizers", "pillow", "numpy"),
    }
    return session.stage("reference", "ask PyTorch about the source task", content, make)


def _with_head(tuned: Path, source: Path) -> tuple[nn.Module, Deploy]:
    """The fine-tuned network with the source's head in the place of its own.

    Raises:
        ModelError: The head takes other features.
    """
    module, deploy = torch_backend.read_checkpoint(tuned)
    old, before = torch_backend.read_checkpoint(source)
    name, head = networks.head_of(old)
    _, own = networks.head_of(module)
    width, there = (part.state_dict()["weight"].shape[1] for part in (own, head))
    if width != there:
        raise ModelError(
            f"the head of the checkpoint in {source} takes {there} features, and the fine-tuned network has {width}",
            hint="the change on the source task needs the source's width; or leave out finetune.source_test",
        )
    whole = networks.build(deploy.backbone, len(before.classes), deploy.preprocessing, options=deploy.options)
    state = {key: value for key, value in module.state_dict().items() if not key.startswith(f"{name}.")}
    whole.load_state_dict({**state, **{f"{name}.{key}": value for key, value in head.state_dict().items()}})
    return whole.eval(), replace(deploy, classes=before.classes)


def _read(answer: Artifact) -> NDArray[np.float32]:
    with np.load(answer / "source.npz", allow_pickle=False) as arrays:
        outputs: NDArray[np.float32] = arrays["outputs"]
    return outputs
