"""The stages up to the checkpoint: data, pretrained weights, fine-tuning."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgetl.backends import backbones, networks
from edgetl.backends import torch as torch_backend
from edgetl.backends.checkpoint import WEIGHTS, Deploy, read_deploy
from edgetl.benchmark import environment
from edgetl.config import Augment, Finetune, Phase
from edgetl.data.augment import AugmentedSamples, mixed
from edgetl.data.dataset import Dataset, digest_of_samples
from edgetl.data.loader import KeyedSamples, Samples, batches
from edgetl.errors import ModelError
from edgetl.finetune import logs, losses, selectors
from edgetl.finetune.cached import CachedFeatures
from edgetl.finetune.copied import Copied
from edgetl.finetune.oversampling import Rows, oversampled
from edgetl.finetune.parts import check_batchnorm, one_by_one
from edgetl.finetune.phases import Data, Mix, Place
from edgetl.numbers import counted
from edgetl.pipeline import features, tasks
from edgetl.pipeline.session import Session, rank, world
from edgetl.runtime.preprocessing.tables import TablePreprocessing
from edgetl.store import Artifact, code_digest, digest_of, file_digest, versions_of

if TYPE_CHECKING:
    import torch
    from torch import nn

_NOT_A_RESULT = {
    *("phases", "device", "workers", "save_every_s", "log", "log_dir"),
    *("verdict", "verdict_seeds", "source_test", "max_forgetting"),
}
"""What of [finetune] changes nothing in the weights, or is in a phase's key by itself."""
_COPIED = "weights.json"
"""Beside every checkpoint: :class:`edgetl.finetune.copied.Copied`."""


def prepare_data(session: Session) -> tuple[Artifact, Dataset]:
    """Read, check and split the data set."""
    config = session.config.data
    modality = tasks.task_of(session.config).modality
    inputs = {
        "files": modality.source_digest(config),
        "config": session.config_digest("data"),
        "code": code_digest("data", "runtime/preprocessing", "pipeline/learning.py", "pipeline/modalities.py"),
        "versions": versions_of("pillow"),
    }

    def make(folder: Path) -> None:
        dataset = modality.load(config, progress=lambda done, total: session.progress("samples checked", done, total))
        (folder / "dataset.json").write_text(json.dumps(dataset.to_json(), ensure_ascii=False), encoding="utf-8")

    artifact = session.stage("data", "read and check the data set", inputs, make)
    dataset = Dataset.from_json(json.loads((artifact / "dataset.json").read_text(encoding="utf-8")))
    tasks.check_classes(session.config, len(dataset.classes))
    return artifact, dataset


def train(session: Session, dataset: Dataset) -> tuple[Artifact, list[dict[str, Any]]]:
    """Pretrained weights, then one stage per phase.

    Returns:
        The checkpoint, and what each phase came to (:class:`edgetl.finetune.loop.PhaseResult` as JSON).
    """
    checkpoint = _by_content(_pretrained(session, dataset))
    taken = copied(checkpoint)
    session.reporter.note(f"weights from {taken.source}: {taken.statement}")
    config, task = session.config, tasks.task_of(session.config)
    if not task.embeds and not taken.head_kept and not config.finetune.phases:
        raise ModelError(
            f"the weights bring no head for {len(tasks.outputs_of(config, dataset))} classes, and finetune.phases is"
            " empty",
            hint='phases = [{ train = "head" }] in [finetune]',
        )
    history = []
    for number, phase in enumerate(session.config.finetune.phases, 1):
        checkpoint = _by_content(_phase(session, dataset, checkpoint, phase, number))
        history.append(json.loads((checkpoint / "training.json").read_text(encoding="utf-8")))
    return checkpoint, history


def copied(checkpoint: Artifact) -> Copied:
    """What the training that led to a checkpoint took over from pretrained weights."""
    return Copied.from_json(json.loads((checkpoint / _COPIED).read_text(encoding="utf-8")))


def _by_content(checkpoint: Artifact) -> Artifact:
    """The checkpoint with a digest of the network alone.

    Beside it lies how long training took: the same weights, trained again after a kill, must lead to the same results.
    """
    deploy = read_deploy(checkpoint.folder)
    content = {
        "weights": file_digest(checkpoint / WEIGHTS),
        "backbone": deploy.backbone,
        "classes": list(deploy.classes),
        "preprocessing": deploy.preprocessing.to_json(),
        "options": dict(deploy.options),
    }
    return replace(checkpoint, digest=digest_of(content))


def _pretrained(session: Session, dataset: Dataset) -> Artifact:
    config, task = session.config, tasks.task_of(session.config)
    source = config.model.weights
    outputs = tasks.outputs_of(config, dataset)
    inputs = {
        "model": config.model.model_dump(mode="json", exclude={"weights"}),
        "weights": task.modality.weights_digest(config),
        "task": task.name,
        "dropout": config.finetune.dropout,
        "seed": config.finetune.seed,
        "classes": list(outputs),
        "preprocessing": {name: value for name, value in config.data.model_dump(mode="json").items() if name in _INPUT},
        # Contracts of tables, and tokenizers of one's own, are fitted on train.
        "train": digest_of_samples(dataset.train) if task.modality.kind != "image" else "",
        "code": code_digest(
            "finetune/weights.py",
            "finetune/copied.py",
            "finetune/_hub.py",
            "backends",
            "data",
            "runtime/preprocessing",
            "pipeline/learning.py",
            "pipeline/modalities.py",
        ),
        "versions": versions_of("torch", "torchvision", "timm", "transformers", "tokenizers", "safetensors"),
    }

    def make(folder: Path) -> None:
        import torch

        torch.manual_seed(config.finetune.seed)
        started = task.modality.start(config, dataset, outputs, embeds=task.embeds)
        deploy = Deploy(
            backbone=config.model.backbone,
            classes=outputs,
            preprocessing=started.preprocessing,
            config_digest=session.config_digest("data", "model", "finetune"),
            options=started.options,
        )
        torch_backend.write_checkpoint(folder, started.module, deploy)
        (folder / _COPIED).write_text(json.dumps(started.copied.to_json()), encoding="utf-8")

    return session.stage("backbone", f"{config.model.backbone} with weights from {source}", inputs, make)


_INPUT = (
    *("image_size", "resize", "crop_pct", "interpolation", "mean", "std", "max_pixels"),
    *("label", "ignore", "categorical", "max_length"),
)


def _phase(session: Session, dataset: Dataset, before: Artifact, phase: Phase, number: int) -> Artifact:
    from edgetl.finetune import loop

    config = session.config
    finetune, augment = config.finetune.of(phase), config.data.augment
    inputs = {
        "checkpoint": before.digest,
        "train": digest_of_samples(dataset.train),
        "val": digest_of_samples(dataset.val),
        "phase": phase.model_dump(mode="json"),
        "number": number,
        "finetune": finetune.model_dump(mode="json", exclude=_NOT_A_RESULT),
        "metric": tasks.metric_of(config).name,
        "augment": augment.model_dump(mode="json"),
        # What "auto" means here, found out without importing torch: a result of the CPU is not one of the GPU.
        "device": finetune.device if finetune.device != "auto" else ["auto", *environment.gpu_names()],
        "code": code_digest(
            "finetune",
            "backends",
            "data/loader.py",
            "data/augment.py",
            "data/distort.py",
            "metrics",
            "runtime/preprocessing",
            "pipeline/learning.py",
            "pipeline/features.py",
        ),
        "versions": versions_of(
            *("torch", "torchvision", "timm", "transformers", "accelerate", "scikit-learn", "pillow", "numpy"),
            *(("imbalanced-learn", "scipy") if finetune.balance == "smote" else ()),
        ),
    }
    on_features = phase.train == "head"
    if on_features:
        inputs["features"] = features.made_with(config)
    unfinished = session.store.unfinished(digest_of(inputs))

    def make(folder: Path) -> None:
        device = loop.pick_device(finetune.device)
        session.reporter.note(f"training on {device}")
        module, deploy = torch_backend.read_checkpoint(before.folder, dropout=finetune.dropout)
        _check_phases(session, module, deploy, dataset, number)
        place = Place(
            device=device,
            workers=0 if on_features else loop.pick_workers(finetune.workers, device),
            # Steps of a head alone are too small to be shared: threads would wait for each other.
            threads=1 if on_features else None,
            state=unfinished,
            run=f"{config.project.name}-phase-{number}",
        )
        part, stages, data = _material(session, module, deploy, dataset, phase, device)
        result = loop.train_phase(
            part,
            data,
            phase,
            finetune,
            stages,
            seed=finetune.seed + number,
            place=place,
            metric=tasks.metric_of(config),
            progress=session.progress,
        )
        if not result.epochs:
            session.reporter.note(
                f"phase {number} trains nothing: val is at {result.best_val_score:.4f} before it, and until ="
                f" {phase.until} asks for no more"
            )
        elif not result.best_epoch:
            session.reporter.note(f"phase {number} keeps the weights from before it: no epoch was as good on val")
        made_with = session.config_digest("data", "model", "finetune")
        torch_backend.write_checkpoint(folder, module, replace(deploy, config_digest=made_with))
        logs.write_csv(folder / logs.CSV, result.epochs)
        (folder / "training.json").write_text(json.dumps(result.to_json()), encoding="utf-8")
        shutil.copyfile(before / _COPIED, folder / _COPIED)

    what = f"phase {number}: {phase.train}, up to {counted(phase.epochs, 'epoch')}"
    within = features.STAGES if on_features else ()
    found = session.stage("finetune", what, inputs, make, everywhere=True, within=within)
    if not rank():
        shutil.rmtree(unfinished, ignore_errors=True)
    return found


def check(session: Session, dataset: Dataset) -> None:
    """Refuse what :func:`train` would not get through for want of samples that are computed together.

    Raises:
        ModelError: BatchNorm would have to learn from one value per channel in a phase.
    """
    finetune = session.config.finetune
    if not any(one_by_one(phase, finetune, world()) for phase in finetune.phases):
        return  # without a look at the network
    module, deploy = torch_backend.read_checkpoint(_pretrained(session, dataset).folder)
    _check_phases(session, module, deploy, dataset, 1)


def _check_phases(session: Session, module: nn.Module, deploy: Deploy, dataset: Dataset, number: int) -> None:
    """Look at this phase and those behind it: hours of training are no time to find that one of them cannot train.

    Raises:
        ModelError: One selects nothing, or more stages than there are, or its BatchNorm would have to learn from one
            value per channel.
    """
    finetune = session.config.finetune
    for place, phase in enumerate(finetune.phases[number - 1 :], number):
        try:
            chosen = selectors.selected(module, phase, networks.stages(module))
            if one_by_one(phase, finetune, world()):
                check_batchnorm(module, chosen, finetune, _first(dataset, deploy), processes=world())
        except ModelError as error:
            raise ModelError(f"phase {place}: {error.message}", hint=error.hint) from None


def _first(dataset: Dataset, deploy: Deploy) -> torch.Tensor:
    """The first training sample, as the network takes it, (1, …)."""
    import torch

    return torch.from_numpy(next(batches(Samples(dataset.train[:1], deploy.preprocessing), 1))[0])


def _material(
    session: Session, module: nn.Module, deploy: Deploy, dataset: Dataset, phase: Phase, device: str
) -> tuple[nn.Module, Sequence[backbones.Stage], Data]:
    """What a phase trains, its stages, and what with: the head on cached features, or the network on images."""
    config, task = session.config, tasks.task_of(session.config)
    augment, seed = config.data.augment, config.finetune.seed
    splits = {
        "train": Samples(dataset.train, deploy.preprocessing),
        "val": Samples(dataset.val, deploy.preprocessing),
    }
    labels = {name: [sample.label for sample in samples.samples] for name, samples in splits.items()}
    train: Any = (
        AugmentedSamples(splits["train"], augment, seed) if augment.per_image else KeyedSamples(splits["train"])
    )
    val: Any = KeyedSamples(splits["val"])
    mix: Mix | None = partial(_mixed, classes=len(deploy.classes), augment=augment) if _mixes(augment) else None
    rows = _oversampled(session, splits["train"], deploy) if config.finetune.balance == "smote" else None
    if rows is not None:
        train, labels["train"] = rows, rows.labels.tolist()
    part, stages = module, networks.stages(module)
    if phase.train == "head":
        name, part = networks.head_of(module)
        stages = (
            backbones.Stage(name="head", parameters=tuple(parameter for parameter, _ in part.named_parameters())),
        )
        wanted = (
            features.split_of(
                "train", splits["train"], augment=augment, seed=seed, views=phase.views if augment.per_image else 1
            )
            if rows is None
            else features.split_of_arrays("train", rows.vectors, rows.labels),
            features.split_of("val", splits["val"]),
        )
        found = features.features(session, module, deploy, wanted, head=name, device=device)
        train, val = (CachedFeatures.read(artifact.folder) for artifact in found)
        mix = None  # a mixture of features is not the features of a mixture
    return (
        part,
        stages,
        Data(
            train=train,
            labels=labels["train"],
            val=val,
            val_labels=labels["val"],
            classes=len(deploy.classes),
            loss=_loss(task, config.finetune.of(phase), labels["train"], len(deploy.classes)),
            mix=mix,
        ),
    )


def _oversampled(session: Session, samples: Samples, deploy: Deploy) -> Rows:
    """The rows of train with synthetic ones; every phase and every process has the same."""
    assert isinstance(deploy.preprocessing, TablePreprocessing)  # task_of refuses other inputs
    ((vectors, labels),) = batches(samples, len(samples))
    given = Rows(vectors=vectors, labels=labels)
    found = oversampled(given, deploy.preprocessing, deploy.classes, session.config.finetune.seed)
    session.reporter.note(
        f"train: {counted(len(given), 'row')} and {counted(len(found) - len(given), 'synthetic one')}"
    )
    return found


def _loss(task: tasks.Task, finetune: Finetune, labels: Sequence[Any], classes: int) -> losses.Loss:
    """One value per sample, for what the task is to learn."""
    import torch

    several = task.objective == "several-labels"
    weights = None
    if finetune.balance == "loss":
        found = losses.positive_weights(np.asarray(labels)) if several else losses.class_weights(labels, classes)
        weights = torch.from_numpy(found)
    if several:
        return losses.multi_label(finetune, weights)
    if task.embeds:
        return losses.margin(
            finetune, classes, weights, scale=finetune.margin_scale, margin=finetune.margin, on=finetune.margin_on
        )
    return losses.classification(finetune, weights)


def _mixes(augment: Augment) -> bool:
    return augment.mixup > 0 or augment.cutmix > 0


def _mixed(
    images: torch.Tensor, labels: torch.Tensor, seed: int, *, classes: int, augment: Augment
) -> tuple[torch.Tensor, torch.Tensor]:
    return mixed(images, labels, classes, augment, seed)
