"""The stages up to the checkpoint: data, pretrained weights, fine-tuning, and the reference's answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgetl.backends import backbones
from edgetl.backends import torch as torch_backend
from edgetl.benchmark import environment
from edgetl.config import Augment, Phase
from edgetl.data import load as loading
from edgetl.data.augment import AugmentedSamples, mixed
from edgetl.data.dataset import Dataset, Sample
from edgetl.data.loader import ImageSamples, batches
from edgetl.errors import ModelError
from edgetl.finetune import weights as pretrained
from edgetl.finetune.cached import CachedFeatures
from edgetl.finetune.trainer import Data, Mix, Place
from edgetl.pipeline import features
from edgetl.pipeline.session import Session
from edgetl.runtime.preprocessing import ImagePreprocessing
from edgetl.store import Artifact, code_digest, digest_of, file_digest, versions_of

if TYPE_CHECKING:
    import torch
    from torch import nn

_GOLDEN = 8
_NOT_A_RESULT = {"phases", "device", "workers", "save_every_s"}
"""What of [finetune] changes nothing in the weights, or is in a phase's key by itself."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What PyTorch says of the test split."""

    logits: NDArray[np.float32]
    """Shape (n, classes)."""
    labels: NDArray[np.int64]
    """Shape (n,)."""


def prepare_data(session: Session) -> tuple[Artifact, Dataset]:
    """Read, check and split the data set."""
    config = session.config.data
    inputs = {
        "files": loading.source_digest(config),
        "config": session.config_digest("data"),
        "code": code_digest("data", "runtime/preprocessing.py", "pipeline/learning.py"),
        "versions": versions_of("pillow"),
    }

    def make(folder: Path) -> None:
        dataset = loading.load_dataset(
            config, progress=lambda done, total: session.reporter.progress("images checked", done, total)
        )
        (folder / "dataset.json").write_text(json.dumps(dataset.to_json(), ensure_ascii=False), encoding="utf-8")

    artifact = session.stage("data", "read and check the data set", inputs, make)
    return artifact, Dataset.from_json(json.loads((artifact / "dataset.json").read_text(encoding="utf-8")))


def train(session: Session, dataset: Dataset) -> tuple[Artifact, list[dict[str, Any]]]:
    """Pretrained weights, then one stage per phase.

    Returns:
        The checkpoint, and what each phase came to (:class:`edgetl.finetune.loop.PhaseResult` as JSON).
    """
    checkpoint = _by_content(_pretrained(session, dataset))
    history = []
    for number, phase in enumerate(session.config.finetune.phases, 1):
        checkpoint = _by_content(_phase(session, dataset, checkpoint, phase, number))
        history.append(json.loads((checkpoint / "training.json").read_text(encoding="utf-8")))
    return checkpoint, history


def ask_reference(session: Session, dataset: Dataset, checkpoint: Artifact) -> tuple[Artifact, Reference]:
    """Run the PyTorch model on the test split, and keep a few raw inputs with its answers."""
    deploy = torch_backend.read_deploy(checkpoint.folder)
    inputs = {
        "checkpoint": checkpoint.digest,
        "test": samples_digest(dataset.test),
        "code": code_digest("backends/torch.py", "data/loader.py", "runtime", "pipeline/learning.py"),
        "versions": versions_of("torch", "timm", "pillow", "numpy"),
    }

    def make(folder: Path) -> None:
        module, _ = torch_backend.read_checkpoint(checkpoint.folder)
        samples = ImageSamples(dataset.test, deploy.preprocessing)
        found, labels = [], []
        with torch_backend.TorchRunner(module, deploy.input_shape) as runner:
            for images, targets in batches(samples, 64):
                found.append(runner.run({"input": images})["logits"])
                labels.append(targets)
                session.reporter.progress("test samples", sum(map(len, labels)), len(samples))
        logits = np.concatenate(found)
        np.savez(folder / "reference.npz", logits=logits, labels=np.concatenate(labels))
        _write_golden(folder / "golden", samples, dataset.test, logits)

    artifact = session.stage("reference", "ask PyTorch about the test split", inputs, make)
    with np.load(artifact / "reference.npz", allow_pickle=False) as arrays:
        return artifact, Reference(logits=arrays["logits"], labels=arrays["labels"])


def _by_content(checkpoint: Artifact) -> Artifact:
    """The checkpoint with a digest of the network alone.

    Beside it lies how long training took: the same weights, trained again after a kill, must lead to the same results.
    """
    deploy = torch_backend.read_deploy(checkpoint.folder)
    content = {
        "weights": file_digest(checkpoint / torch_backend.WEIGHTS),
        "backbone": deploy.backbone,
        "classes": list(deploy.classes),
        "preprocessing": deploy.preprocessing.to_json(),
    }
    return replace(checkpoint, digest=digest_of(content))


def samples_digest(samples: tuple[Sample, ...]) -> str:
    """SHA-256 of samples' content and labels, in their order."""
    return digest_of([[sample.digest, sample.label] for sample in samples])


def _pretrained(session: Session, dataset: Dataset) -> Artifact:
    config = session.config
    source = config.model.weights
    path = None if source in ("hub", "none") else pretrained.weights_file(source)
    beside = path.parent / torch_backend.DEPLOY if path else None
    inputs = {
        "backbone": config.model.backbone,
        "weights": file_digest(path) if path else source,
        # A checkpoint of edgetl's says which classes its head is for.
        "deploy": file_digest(beside) if beside and beside.is_file() else "",
        "partial": config.model.partial,
        "dropout": config.finetune.dropout,
        "seed": config.finetune.seed,
        "classes": list(dataset.classes),
        "preprocessing": {name: value for name, value in config.data.model_dump(mode="json").items() if name in _INPUT},
        "code": code_digest(
            "finetune/weights.py",
            "finetune/_hub.py",
            "backends/torch.py",
            "backends/backbones.py",
            "runtime/preprocessing.py",
            "pipeline/learning.py",
        ),
        "versions": versions_of("torch", "torchvision", "timm", "safetensors"),
    }

    def make(folder: Path) -> None:
        import torch

        torch.manual_seed(config.finetune.seed)
        module = backbones.build(
            config.model.backbone,
            len(dataset.classes),
            dropout=config.finetune.dropout,
            image_size=config.data.image_size,
        )
        copied = pretrained.load_pretrained(
            module, source, backbone=config.model.backbone, partial=config.model.partial, classes=dataset.classes
        )
        if not copied.head_kept and not config.finetune.phases:
            raise ModelError(
                f"the weights bring no head for {len(dataset.classes)} classes, and finetune.phases is empty",
                hint='phases = [{ train = "head" }] in [finetune]',
            )
        deploy = torch_backend.Deploy(
            backbone=config.model.backbone,
            classes=dataset.classes,
            preprocessing=_preprocessing(session, module),
            config_digest=session.config_digest("data", "model", "finetune"),
        )
        torch_backend.write_checkpoint(folder, module, deploy)
        (folder / "weights.json").write_text(json.dumps(copied.to_json()), encoding="utf-8")

    return session.stage("backbone", f"{config.model.backbone} with weights from {source}", inputs, make)


_INPUT = ("image_size", "resize", "crop_pct", "interpolation", "mean", "std", "max_pixels")


def _preprocessing(session: Session, module: Any) -> ImagePreprocessing:
    """The contract: the configuration's, with mean and standard deviation of the backbone where it gives none."""
    data = session.config.data
    mean, std = data.mean, data.std
    if mean is None or std is None:
        own = backbones.preprocessing_of(module)
        mean, std = mean or own[0], std or own[1]
    return ImagePreprocessing(
        height=data.image_size,
        width=data.image_size,
        resize=data.resize,
        crop_pct=data.crop_pct,
        interpolation=data.interpolation,
        mean=mean,
        std=std,
        max_pixels=data.max_pixels,
    )


def _phase(session: Session, dataset: Dataset, before: Artifact, phase: Phase, number: int) -> Artifact:
    from edgetl.finetune import loop

    config = session.config
    finetune, augment = config.finetune, config.data.augment
    inputs = {
        "checkpoint": before.digest,
        "train": samples_digest(dataset.train),
        "val": samples_digest(dataset.val),
        "phase": phase.model_dump(mode="json"),
        "number": number,
        "finetune": finetune.model_dump(mode="json", exclude=_NOT_A_RESULT),
        "augment": augment.model_dump(mode="json"),
        # What "auto" means here, found out without importing torch: a result of the CPU is not one of the GPU.
        "device": finetune.device if finetune.device != "auto" else ["auto", *environment.gpu_names()],
        "code": code_digest(
            "finetune",
            "backends/torch.py",
            "backends/backbones.py",
            "data/loader.py",
            "data/augment.py",
            "data/distort.py",
            "runtime/preprocessing.py",
            "pipeline/learning.py",
            "pipeline/features.py",
        ),
        "versions": versions_of("torch", "torchvision", "timm", "accelerate", "pillow", "numpy"),
    }
    unfinished = session.store.unfinished(digest_of(inputs))

    def make(folder: Path) -> None:
        device = loop.pick_device(finetune.device)
        session.reporter.note(f"training on {device}")
        module, deploy = torch_backend.read_checkpoint(before.folder, dropout=finetune.dropout)
        on_features = phase.train == "head"
        place = Place(
            device=device,
            workers=0 if on_features else loop.pick_workers(finetune.workers, device),
            # Steps of a head alone are too small to be shared: threads would wait for each other.
            threads=1 if on_features else None,
            state=unfinished,
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
            progress=session.reporter.progress,
        )
        made_with = session.config_digest("data", "model", "finetune")
        torch_backend.write_checkpoint(folder, module, replace(deploy, config_digest=made_with))
        (folder / "training.json").write_text(json.dumps(result.to_json()), encoding="utf-8")

    found = session.stage("finetune", f"phase {number}: {phase.train}, up to {phase.epochs} epochs", inputs, make)
    shutil.rmtree(unfinished, ignore_errors=True)
    return found


def _material(
    session: Session, module: nn.Module, deploy: torch_backend.Deploy, dataset: Dataset, phase: Phase, device: str
) -> tuple[nn.Module, Sequence[backbones.Stage], Data]:
    """What a phase trains, its stages, and what with: the head on cached features, or the network on images."""
    config = session.config
    augment, seed = config.data.augment, config.finetune.seed
    splits = {
        "train": ImageSamples(dataset.train, deploy.preprocessing),
        "val": ImageSamples(dataset.val, deploy.preprocessing),
    }
    labels = {name: [sample.label for sample in samples.samples] for name, samples in splits.items()}
    train: Any = AugmentedSamples(splits["train"], augment, seed)
    val: Any = AugmentedSamples(splits["val"], Augment(), seed)
    mix: Mix | None = partial(_mixed, classes=len(dataset.classes), augment=augment) if _mixes(augment) else None
    part, stages = module, backbones.stages(module)
    if phase.train == "head":
        name, part = backbones.head_of(module)
        stages = (
            backbones.Stage(name="head", parameters=tuple(parameter for parameter, _ in part.named_parameters())),
        )
        wanted = (
            features.split_of(
                "train", splits["train"], augment=augment, seed=seed, views=phase.views if augment.per_image else 1
            ),
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
            classes=len(dataset.classes),
            mix=mix,
        ),
    )


def _mixes(augment: Augment) -> bool:
    return augment.mixup > 0 or augment.cutmix > 0


def _mixed(
    images: torch.Tensor, labels: torch.Tensor, seed: int, *, classes: int, augment: Augment
) -> tuple[torch.Tensor, torch.Tensor]:
    return mixed(images, labels, classes, augment, seed)


def _write_golden(folder: Path, samples: ImageSamples, test: tuple[Sample, ...], logits: NDArray[np.float32]) -> None:
    """Raw inputs as they are, with the tensors and logits that were made of them."""
    folder.mkdir()
    step = max(1, len(test) // _GOLDEN)
    chosen = list(range(0, len(test), step))[:_GOLDEN]
    names = []
    for number, index in enumerate(chosen):
        name = f"{number}{test[index].path.suffix.lower()}"
        (folder / name).write_bytes(test[index].path.read_bytes())
        names.append(name)
    tensors = np.stack([samples[index][0] for index in chosen])
    np.savez(folder / "golden.npz", names=np.asarray(names), tensors=tensors, logits=logits[chosen])
