"""The zoo's image models: trained on digits or small photographs, or published with ImageNet's head."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import imagenet
import numpy as np
from numpy.typing import NDArray
from zoo_training import CALIBRATION, OPSET, SEED, Arrays, Made, fit

from edgetl.backends.backbones import build
from edgetl.config import Data
from edgetl.data.dataset import Dataset, Sample
from edgetl.data.examples.digits import materialise_digits
from edgetl.data.load import load_dataset
from edgetl.data.loader import Samples, batches
from edgetl.data.splits import draw_calibration
from edgetl.errors import DataError
from edgetl.export.onnx import export
from edgetl.finetune.weights import load_pretrained
from edgetl.runtime.preprocessing import ImagePreprocessing
from edgetl.specs import BatchRange

if TYPE_CHECKING:
    import torch
    from torch import nn

PHOTOS10 = Path(__file__).resolve().parents[2] / "shared" / "data" / "photos10"


@dataclass(frozen=True, kw_only=True)
class ImageNet:
    """A published network with its own head, on crops of photographs that come out of Python packages."""

    backbone: str
    weights: str
    size: int
    crop_pct: float
    calibration_photographs: tuple[str, ...] = imagenet.CALIBRATION_PHOTOGRAPHS
    test_photographs: tuple[str, ...] = imagenet.TEST_PHOTOGRAPHS
    """None of the calibration's."""
    test: int = 200
    """Crops."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A network that is trained on train and val together."""

    backbone: str
    weights: str = "none"
    size: int = 64
    """Height and width, in pixels."""
    epochs: int
    lr: float
    """Peak of a one-cycle schedule, which ends near zero: BatchNorm's statistics settle on weights that rest."""
    batch_size: int = 32
    weight_decay: float = 1e-4
    seed: int = SEED
    """Of the first weights, the order of samples and how they are moved."""
    options: tuple[tuple[str, Any], ...] = ()
    """For timm.create_model."""
    flips: ClassVar[bool]
    """Whether a mirrored picture is of the same class."""
    task: ClassVar[str]


@dataclass(frozen=True, kw_only=True)
class Digits(Trained):
    """A network trained on 4,000 digits."""

    flips = False
    task = "the ten digits of MNIST"


@dataclass(frozen=True, kw_only=True)
class Photos10(Trained):
    """A network trained on 3,000 photographs of 32 pixels: ten classes that are hard to learn from so few."""

    flips = True
    task = "ten classes of photographs of 32 pixels"


def published(spec: ImageNet) -> Made:
    """Take a network over and cut its samples out of photographs; no photograph is in both calibration and test.

    Raises:
        SetupError: A package that weights or photographs come out of is missing.
    """
    module = build(spec.backbone, 1000)
    load_pretrained(module, spec.weights, backbone=spec.backbone)
    contract = ImagePreprocessing(height=spec.size, width=spec.size, crop_pct=spec.crop_pct)

    def crops(names: tuple[str, ...], count: int) -> Arrays:
        return {"input": np.stack([contract.apply(picture) for picture in imagenet.crops(names, count, SEED)])}

    return Made(
        module=module.eval(),
        task=f"1,000 classes of ImageNet, on crops of {len(spec.test_photographs)} photographs, at {spec.size} pixels",
        training_s=0.0,
        calibration=crops(spec.calibration_photographs, CALIBRATION),
        test=crops(spec.test_photographs, spec.test),
        labels=None,
        write=partial(_write, module, contract, tuple(str(index) for index in range(1000))),
    )


def trained(spec: Trained, cache: Path) -> Made:
    """Train a network.

    Args:
        spec: Which, and on what.
        cache: Folder that digits are written to as files.

    Raises:
        EdgetlError: Data or a package that it is made of are missing.
    """
    import timm
    import torch

    data = load_dataset(_data(spec, cache))
    contract = ImagePreprocessing(height=spec.size, width=spec.size)
    torch.manual_seed(spec.seed)
    name = spec.backbone.partition(":")[2]
    module = timm.create_model(name, pretrained=False, num_classes=len(data.classes), **dict(spec.options))
    load_pretrained(module, spec.weights, backbone=spec.backbone)
    seconds = _train(module, data, contract, spec)
    test, labels = _arrays(data.test, contract)
    return Made(
        module=module,
        task=f"{spec.task} at {spec.size} pixels",
        training_s=seconds,
        calibration=_arrays(draw_calibration(data.train, CALIBRATION, SEED), contract)[0],
        test=test,
        labels=labels,
        write=partial(_write, module, contract, data.classes),
    )


def _data(spec: Trained, cache: Path) -> Data:
    if isinstance(spec, Digits):
        return Data(manifest=materialise_digits(cache / "digits"))
    if not PHOTOS10.is_dir():
        raise DataError(f"there are no photographs at {PHOTOS10}", hint="it lies in shared/, beside the repository")
    return Data(train=PHOTOS10 / "train", test=PHOTOS10 / "val")


def _arrays(samples: tuple[Sample, ...], contract: ImagePreprocessing) -> tuple[Arrays, NDArray[np.int64]]:
    """float32 (N, 3, H, W) under the input's name, and int64 (N,)."""
    parts = list(batches(Samples(samples, contract), 64))
    return {"input": np.concatenate([images for images, _ in parts])}, np.concatenate([labels for _, labels in parts])


def _write(module: nn.Module, contract: ImagePreprocessing, labels: tuple[str, ...], path: Path) -> None:
    export(
        module.cpu().eval(),
        path,
        batch=BatchRange(min=1, max=1024),
        opset=OPSET,
        labels=labels,
        preprocessing=contract,
    )


def _train(module: nn.Module, data: Dataset, contract: ImagePreprocessing, spec: Trained) -> float:
    """Every parameter, BatchNorm included, on train and val with small random shifts, turns and scales.

    Returns:
        Seconds.
    """
    import torch

    feeds, classes = _arrays(data.train + data.val, contract)
    images, labels = torch.from_numpy(feeds["input"]), torch.from_numpy(classes)
    generator = torch.Generator().manual_seed(spec.seed)
    module.to(memory_format=torch.channels_last)

    def loss(chosen: torch.Tensor) -> torch.Tensor:
        batch = _moved(images[chosen], generator, flips=spec.flips).to(memory_format=torch.channels_last)
        return torch.nn.functional.cross_entropy(module(batch), labels[chosen])

    def order(count: int) -> list[torch.Tensor]:
        # The ragged rest of an epoch is left out: BatchNorm learns badly from a few samples.
        shuffled = torch.randperm(count, generator=generator)
        return list(torch.split(shuffled[: count // spec.batch_size * spec.batch_size], spec.batch_size))

    seconds = fit(module, loss, lambda: order(len(labels)), spec)
    module.to(memory_format=torch.contiguous_format)
    return seconds


def _moved(images: torch.Tensor, generator: torch.Generator, *, flips: bool) -> torch.Tensor:
    """Turned by up to 10°, scaled by up to a tenth, shifted by up to 8% of the side, and mirrored or not."""
    import torch
    from torch.nn.functional import affine_grid, grid_sample

    angle, scale, x, y = (torch.rand(4, len(images), generator=generator) * 2 - 1).unbind()
    angle, scale = angle * (torch.pi / 18), 1 + scale / 10
    cosine, sine = angle.cos() * scale, angle.sin() * scale
    side = 1 - 2 * torch.randint(2, (len(images),), generator=generator) if flips else torch.ones(len(images))
    rows = (torch.stack((cosine * side, -sine, x * 0.16), 1), torch.stack((sine * side, cosine, y * 0.16), 1))
    grid = affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return grid_sample(images, grid, padding_mode="border", align_corners=False)
