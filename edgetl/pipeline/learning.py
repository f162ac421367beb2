"""The stages up to the checkpoint: data, pretrained weights, fine-tuning, and the reference's answers."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.backends import torch as torch_backend
from edgetl.benchmark import environment
from edgetl.config import Phase
from edgetl.data import load as loading
from edgetl.data.dataset import Dataset, Sample
from edgetl.data.loader import ImageSamples, batches
from edgetl.errors import ModelError
from edgetl.finetune import weights as pretrained
from edgetl.pipeline.session import Session
from edgetl.runtime.preprocessing import ImagePreprocessing
from edgetl.store import Artifact, code_digest, digest_of, file_digest, versions_of

_GOLDEN = 8
_DEFAULT_LR = {"head": 1e-2, "all": 1e-3}


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
    inputs = {
        "backbone": config.model.backbone,
        "weights": file_digest(path) if path else source,
        "seed": config.finetune.seed,
        "classes": list(dataset.classes),
        "preprocessing": {name: value for name, value in config.data.model_dump(mode="json").items() if name in _INPUT},
        "code": code_digest(
            "finetune/weights.py", "backends/torch.py", "runtime/preprocessing.py", "pipeline/learning.py"
        ),
        "versions": versions_of("torch", "timm", "safetensors"),
    }

    def make(folder: Path) -> None:
        import torch

        torch.manual_seed(config.finetune.seed)
        module = torch_backend.build(config.model.backbone, len(dataset.classes))
        copied = pretrained.load_pretrained(module, source, backbone=config.model.backbone)
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
        facts = {"source": copied.source, "tensors": copied.tensors, "head_kept": copied.head_kept}
        (folder / "weights.json").write_text(json.dumps(facts), encoding="utf-8")

    return session.stage("backbone", f"{config.model.backbone} with weights from {source}", inputs, make)


_INPUT = ("image_size", "resize", "crop_pct", "interpolation", "mean", "std", "max_pixels")


def _preprocessing(session: Session, module: Any) -> ImagePreprocessing:
    """The contract: the configuration's, with mean and standard deviation of the backbone where it gives none."""
    data = session.config.data
    own = getattr(module, "pretrained_cfg", {})
    return ImagePreprocessing(
        height=data.image_size,
        width=data.image_size,
        resize=data.resize,
        crop_pct=data.crop_pct,
        interpolation=data.interpolation,
        mean=data.mean or tuple(own.get("mean", (0.5, 0.5, 0.5))),
        std=data.std or tuple(own.get("std", (0.5, 0.5, 0.5))),
        max_pixels=data.max_pixels,
    )


def _phase(session: Session, dataset: Dataset, before: Artifact, phase: Phase, number: int) -> Artifact:
    from edgetl.finetune import loop

    config = session.config.finetune
    settings_of: dict[str, Any] = {
        "train": phase.train,
        "epochs": phase.epochs,
        "lr": phase.lr or _DEFAULT_LR[phase.train],
        "batchnorm": phase.batchnorm,
        "patience": phase.patience,
        "batch_size": config.batch_size,
        "weight_decay": config.weight_decay,
        "label_smoothing": config.label_smoothing,
        "seed": config.seed + number,
    }
    inputs = {
        "checkpoint": before.digest,
        "train": samples_digest(dataset.train),
        "val": samples_digest(dataset.val),
        "settings": settings_of,
        # What "auto" means here, found out without importing torch: a result of the CPU is not one of the GPU.
        "device": config.device if config.device != "auto" else ["auto", *environment.gpu_names()],
        "code": code_digest(
            "finetune/loop.py",
            "backends/torch.py",
            "data/loader.py",
            "runtime/preprocessing.py",
            "pipeline/learning.py",
        ),
        "versions": versions_of("torch", "timm", "pillow", "numpy"),
    }

    def make(folder: Path) -> None:
        device = loop.pick_device(config.device)
        session.reporter.note(f"training on {device}")
        module, deploy = torch_backend.read_checkpoint(before.folder)
        settings = loop.Settings(**settings_of, device=device, workers=loop.pick_workers(config.workers, device))
        result = loop.train_phase(
            module,
            ImageSamples(dataset.train, deploy.preprocessing),
            ImageSamples(dataset.val, deploy.preprocessing),
            settings,
            progress=session.reporter.progress,
        )
        made_with = session.config_digest("data", "model", "finetune")
        torch_backend.write_checkpoint(folder, module, replace(deploy, config_digest=made_with))
        (folder / "training.json").write_text(json.dumps(result.to_json()), encoding="utf-8")

    return session.stage("finetune", f"phase {number}: {phase.train}, up to {phase.epochs} epochs", inputs, make)


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
