"""Training: phases on a network, with early stopping and the best weights restored."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgetl.backends.torch import cuda_available
from edgetl.errors import MissingExtraError, ModelError, ProviderError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.utils.data import DataLoader

LabelledImages = Sequence[tuple[NDArray[np.float32], int]]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What one epoch came to."""

    epoch: int
    """From 1."""
    train_loss: float
    val_top1: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class PhaseResult:
    """What one phase came to."""

    train: str
    epochs: tuple[Epoch, ...]
    best_epoch: int
    """The epoch whose weights were kept; 0: those from before the phase were never beaten."""
    best_val_top1: float
    device: str
    images_per_s: float
    """Of training steps, without validation."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a phase is told."""

    train: str
    """head or all."""
    epochs: int
    lr: float
    batchnorm: str
    """train, frozen-statistics or frozen; see :func:`_train_mode`."""
    patience: int
    batch_size: int
    weight_decay: float
    label_smoothing: float
    seed: int
    device: str
    """cpu or cuda."""
    workers: int


def pick_device(asked: str) -> str:
    """The device of ``finetune.device``: cpu or cuda.

    Raises:
        ProviderError: cuda was asked for and is not there.
    """
    if asked == "cuda" and not cuda_available():
        raise ProviderError("finetune.device is cuda, and PyTorch sees no CUDA device", hint="edgetl doctor")
    return "cuda" if asked != "cpu" and cuda_available() else "cpu"


def pick_workers(asked: int | None, device: str) -> int:
    """Processes that decode images: with a GPU one per core up to 8; on a CPU they would take its cores."""
    if asked is not None:
        return asked
    return min(8, os.cpu_count() or 1) if device == "cuda" else 0


def train_phase(
    module: nn.Module,
    train: LabelledImages,
    val: LabelledImages,
    settings: Settings,
    *,
    progress: Progress | None = None,
) -> PhaseResult:
    """Train a network in place.

    "head" computes the frozen backbone's features once and trains the classifier on them; "all" trains every
    parameter, with bfloat16 autocast and channels_last on a GPU.

    Args:
        module: A timm classifier. On return it has the best weights, in eval mode, on the CPU.
        train: Pairs of float32 (3, H, W) and a class index.
        val: The same; its top-1 decides which epoch is best, and when to stop.
        settings: Hyper-parameters.
        progress: Called with what is being done, how much is done, and of how much.

    Raises:
        MissingExtraError: torch is not installed.
        ModelError: The loss became NaN or infinite.
    """
    try:
        import torch
    except ImportError:
        raise MissingExtraError("torch", extra="train", needed_for="fine-tuning") from None
    torch.manual_seed(settings.seed)
    module.to(settings.device)
    if settings.train == "head":
        result = _train_head(module, train, val, settings, progress)
    else:
        result = _train_all(module, train, val, settings, progress)
    module.to("cpu").eval()
    return result


def _train_head(
    module: nn.Module, train: LabelledImages, val: LabelledImages, settings: Settings, progress: Progress | None
) -> PhaseResult:
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    head: nn.Module = module.get_classifier()  # type: ignore[operator]
    data = [
        TensorDataset(*_features(module, samples, settings, name, progress))
        for name, samples in (("train", train), ("val", val))
    ]
    generator = torch.Generator().manual_seed(settings.seed)
    loaders = [
        DataLoader(data[0], batch_size=settings.batch_size, shuffle=True, generator=generator),
        DataLoader(data[1], batch_size=1024),
    ]
    return _fit(head, head, loaders[0], loaders[1], settings, progress)


def _features(
    module: nn.Module, samples: LabelledImages, settings: Settings, name: str, progress: Progress | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the classifier sees of every sample: float32 (n, features), and labels int64 (n,)."""
    import torch

    module.eval()
    features, labels = [], []
    with torch.inference_mode(), _autocast(settings.device):
        for images, targets in _loader(samples, settings, shuffle=False):
            maps = module.forward_features(_to(images, settings.device))  # type: ignore[operator]
            features.append(module.forward_head(maps, pre_logits=True).float().cpu())  # type: ignore[operator]
            labels.append(targets)
            if progress:
                progress(f"features of {name}", sum(len(part) for part in labels), len(samples))
    # Out of inference mode, so that autograd may save them for the head's backward pass.
    return torch.cat(features).clone(), torch.cat(labels)


def _train_all(
    module: nn.Module, train: LabelledImages, val: LabelledImages, settings: Settings, progress: Progress | None
) -> PhaseResult:
    import torch

    module.to(memory_format=torch.channels_last)
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    if settings.batchnorm == "frozen":
        for normalisation in _batchnorms(module):
            for parameter in normalisation.parameters():
                parameter.requires_grad_(False)
    loaders = (_loader(train, settings, shuffle=True), _loader(val, settings, shuffle=False))
    return _fit(module, module, *loaders, settings, progress)


def _fit(
    model: nn.Module,
    trained: nn.Module,
    train: DataLoader[Any],
    val: DataLoader[Any],
    settings: Settings,
    progress: Progress | None,
) -> PhaseResult:
    """AdamW with a one-cycle schedule (Smith and Topin 2018, arXiv:1708.07120), early stopping on val top-1."""
    import time

    import torch

    optimizer = torch.optim.AdamW(_groups(trained, settings.weight_decay), lr=settings.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=settings.lr, total_steps=max(2, settings.epochs * len(train))
    )
    best_top1 = _top1(model, val, settings.device)
    best_state, best_epoch = copy.deepcopy(model.state_dict()), 0
    history: list[Epoch] = []
    steps_s, seen = 0.0, 0
    for epoch in range(1, settings.epochs + 1):
        began = time.perf_counter()
        loss, count = _one_epoch(model, train, optimizer, schedule, settings, epoch, progress)
        steps_s, seen = steps_s + time.perf_counter() - began, seen + count
        top1 = _top1(model, val, settings.device)
        history.append(
            Epoch(epoch=epoch, train_loss=loss, val_top1=top1, seconds=round(time.perf_counter() - began, 3))
        )
        if top1 > best_top1:
            best_top1, best_state, best_epoch = top1, copy.deepcopy(model.state_dict()), epoch
        elif epoch - best_epoch >= settings.patience:
            break
    model.load_state_dict(best_state)
    return PhaseResult(
        train=settings.train,
        epochs=tuple(history),
        best_epoch=best_epoch,
        best_val_top1=best_top1,
        device=settings.device,
        images_per_s=round(seen / steps_s, 1) if steps_s else 0.0,
    )


def _one_epoch(
    model: nn.Module,
    loader: DataLoader[Any],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    settings: Settings,
    epoch: int,
    progress: Progress | None,
) -> tuple[float, int]:
    """Mean loss per sample, and the number of samples."""
    import torch

    criterion = torch.nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing)
    _train_mode(model, settings.batchnorm)
    total, count = 0.0, 0
    for step, (inputs, targets) in enumerate(loader, 1):
        inputs, targets = _to(inputs, settings.device), targets.to(settings.device)
        with _autocast(settings.device):
            loss = criterion(model(inputs), targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        total, count = total + float(loss.detach()) * len(targets), count + len(targets)
        if progress:
            progress(f"{settings.train}: epoch {epoch} of {settings.epochs}", step, len(loader))
    if not np.isfinite(total):
        raise ModelError(
            f"the loss became {total} in epoch {epoch} of the phase '{settings.train}'",
            hint="a smaller lr in finetune.phases, or a look at the data",
        )
    return total / count, count


def _train_mode(model: nn.Module, batchnorm: str) -> None:
    """Train mode, with BatchNorm as the phase wants it; after every validation again, or frozen statistics drift."""
    model.train()
    if batchnorm != "train":
        for normalisation in _batchnorms(model):
            normalisation.eval()


def _batchnorms(module: nn.Module) -> list[nn.Module]:
    import torch

    kinds = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d, torch.nn.SyncBatchNorm)
    return [part for part in module.modules() if isinstance(part, kinds)]


def _top1(model: nn.Module, loader: DataLoader[Any], device: str) -> float:
    import torch

    model.eval()
    right = total = 0
    with torch.inference_mode(), _autocast(device):
        for inputs, targets in loader:
            right += int((model(_to(inputs, device)).argmax(1).cpu() == targets).sum())
            total += len(targets)
    return right / total


def _loader(samples: LabelledImages, settings: Settings, *, shuffle: bool) -> DataLoader[Any]:
    import torch
    from torch.utils.data import DataLoader

    return DataLoader(
        samples,  # type: ignore[arg-type]  # a sequence is a map-style data set
        batch_size=settings.batch_size,
        shuffle=shuffle,
        # BatchNorm cannot learn from a batch of one.
        drop_last=shuffle and len(samples) % settings.batch_size == 1 and len(samples) > 1,
        num_workers=settings.workers,
        pin_memory=settings.device == "cuda",
        generator=torch.Generator().manual_seed(settings.seed),
    )


def _groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters with decay, and those without: biases and normalisation weights (one dimension)."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _autocast(device: str) -> Any:
    import torch

    return torch.autocast("cuda", dtype=torch.bfloat16) if device == "cuda" else nullcontext()


def _to(inputs: torch.Tensor, device: str) -> torch.Tensor:
    import torch

    if inputs.ndim == 4:
        return inputs.to(device, non_blocking=True, memory_format=torch.channels_last)
    return inputs.to(device, non_blocking=True)
