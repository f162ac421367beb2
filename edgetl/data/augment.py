"""Random changes of training images: what happens to a sample is a function of seed, epoch and index alone.

Random numbers come from a counter-based generator (Philox: Salmon et al. 2011, "Parallel random numbers: as easy as 1,
2, 3"), one stream per key: torchvision's own transforms draw from torch's global generator, which every other thread
and the training itself draw from too.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from edgetl.config import Augment
from edgetl.data.distort import Pixels, distorted
from edgetl.data.loader import Label, Samples
from edgetl.errors import DataError, UsageError
from edgetl.runtime.preprocessing import ImagePreprocessing, decode

if TYPE_CHECKING:
    import torch


_OF_SAMPLES, _OF_BATCHES = 0, 1
_WORD = (1 << 64) - 1
_TILE = 96
"""A preview's tiles are at least about so large, in pixels."""


@dataclass(frozen=True)
class AugmentedSamples:
    """Samples that are changed at random when they are asked for; a map-style data set for a torch DataLoader.

    The same key gives the same bits: in any process and thread, in any order, and after a resume. No generator of the
    caller's is read or moved.
    """

    samples: Samples
    augment: Augment
    """mixup and cutmix, which need a batch, are left to :func:`mixed`."""
    seed: int
    """Any; only its low 64 bits count."""

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Pixels, Label]:
        """Decode, change and preprocess a sample.

        Args:
            key: Epoch, from 0, and index of the sample; a negative index counts from the end.

        Returns:
            float32 of shape (3, height, width), and the label, int64. With no change switched on: what ``samples`` has.

        Raises:
            IndexError: There is no such sample.
            TypeError: The key is not a pair of integers.
            UsageError: The epoch is negative.
            ImageError: The image can no longer be decoded.
            MissingExtraError: torchvision is not installed.
        """
        if not isinstance(key, tuple) or len(key) != 2:
            raise TypeError(f"augmented samples are asked for by (epoch, index), not by {key!r}")
        epoch, index = operator.index(key[0]), operator.index(key[1])
        if epoch < 0:
            raise UsageError(f"the epoch of a sample is {epoch}; epochs count from 0")
        if not -len(self) <= index < len(self):
            raise IndexError(f"there is no sample {index}: there are {len(self)}")
        if not self.augment.per_image:
            return self.samples[index]
        index %= len(self)
        sample, contract = self.samples.samples[index], self.samples.preprocessing
        assert isinstance(contract, ImagePreprocessing) and not isinstance(
            sample.raw, str
        )  # [data.augment] is of images
        image = decode(sample.raw, max_pixels=contract.max_pixels)
        random = _generator(self.seed, _OF_SAMPLES, epoch, index)
        return distorted(image, contract, self.augment, random), np.asarray(sample.label, dtype=np.int64)


def mixed(
    images: torch.Tensor, labels: torch.Tensor, classes: int, augment: Augment, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """MixUp or CutMix of a batch: every sample with another one of it, by a share that all have in common.

    With both switched on, either is drawn. The arguments are left as they are, and no generator is read or moved.

    Args:
        images: Floats of shape (n, channels, height, width), on any device.
        labels: Class indices of shape (n,), or targets of shape (n, classes); on the same device.
        classes: How many there are.
        augment: mixup and cutmix are read.
        seed: Of this batch; only its low 64 bits count.

    Returns:
        Images as they came in shape, dtype and device, and float32 targets of shape (n, classes): one-hot where
        nothing is switched on.

    Raises:
        DataError: A label is not one of the classes. Not looked at on a GPU, which would have to be waited for: there
            the process ends with CUDA's assertion.
        UsageError: The shapes do not fit each other.
    """
    import torch

    targets = _targets(images, labels, classes)
    random = _generator(seed, _OF_BATCHES)
    kinds = [(kind, alpha) for kind, alpha in (("mixup", augment.mixup), ("cutmix", augment.cutmix)) if alpha]
    if not kinds or len(images) < 2:
        return images, targets
    kind, alpha = kinds[int(random.integers(len(kinds)))]
    partner = int(random.integers(1, len(images)))  # so many places back: never the sample itself
    share = float(random.beta(alpha, alpha)) if math.isfinite(alpha) else 0.5
    if kind == "mixup":
        images = torch.lerp(images.roll(partner, 0), images, share)
    else:
        top, bottom, left, right = _hole(images.shape[-2], images.shape[-1], 1.0 - share, random)
        other = images.roll(partner, 0)
        images = images.clone()
        images[..., top:bottom, left:right] = other[..., top:bottom, left:right]
        share = 1.0 - (bottom - top) * (right - left) / (images.shape[-2] * images.shape[-1])
    return images, torch.lerp(targets.roll(partner, 0), targets, share)


def preview(samples: Samples, augment: Augment, seed: int, count: int, *, epochs: int = 7) -> Image.Image:
    """A sheet of changed images to look at: a row per sample, the original first, then one column per epoch.

    Args:
        samples: ``count`` of them are taken at equal distances, so that a sorted list shows every class.
        augment: With mixup or cutmix, the samples of a column are mixed as one batch.
        seed: Of everything random.
        count: Rows, at most.
        epochs: Columns beside the original.

    Returns:
        Mode RGB. Tiles of small tensors are enlarged without smoothing.

    Raises:
        UsageError: ``count`` or ``epochs`` is below 1.
        DataError: There are no samples.
        ImageError: An image can no longer be decoded.
        MissingExtraError: torchvision is not installed.
    """
    if count < 1 or epochs < 1:
        raise UsageError(f"a preview has {count} rows and {epochs} changed columns; both must be at least 1")
    if not samples:
        raise DataError("there are no samples to preview")
    changed, contract = AugmentedSamples(samples, augment, seed), samples.preprocessing
    if not isinstance(contract, ImagePreprocessing):
        raise UsageError(f"augmentation is of images; these samples are of the kind {contract.kind}")
    rows = np.linspace(0, len(samples) - 1, min(count, len(samples))).round().astype(int).tolist()
    columns = [np.stack([samples[row][0] for row in rows])]
    for epoch in range(epochs):
        batch = np.stack([changed[epoch, row][0] for row in rows])
        columns.append(_mixed_pixels(batch, augment, seed + epoch))
    mean, std = (np.asarray(values, np.float32)[:, None, None] for values in (contract.mean, contract.std))
    sheet = (np.stack(columns, axis=1) * std + mean) * 255.0  # rows, columns, channels, height, width
    larger = max(1, math.ceil(_TILE / max(contract.height, contract.width)))
    sheet = sheet.repeat(larger, axis=3).repeat(larger, axis=4)
    sheet = np.pad(sheet, ((0, 0), (0, 0), (0, 0), (1, 1), (1, 1)), constant_values=255.0)
    height, width = (sheet.shape[axis] * sheet.shape[axis + 3] for axis in (0, 1))
    return Image.fromarray(
        sheet.round().clip(0, 255).astype(np.uint8).transpose(0, 3, 1, 4, 2).reshape(height, width, 3)
    )


# --- parts ---------------------------------------------------------------------------------------------------------


def _generator(seed: int, kind: int, epoch: int = 0, index: int = 0) -> np.random.Generator:
    """A stream of its own for every combination: seed and kind are Philox's key, epoch and index its counter."""
    key = np.array((seed & _WORD, kind), dtype=np.uint64)
    counter = np.array((0, 0, epoch & _WORD, index), dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def _targets(images: torch.Tensor, labels: torch.Tensor, classes: int) -> torch.Tensor:
    """float32 (n, classes)."""
    from torch.nn.functional import one_hot

    fits = labels.ndim == 1 or (labels.ndim == 2 and labels.shape[1] == classes)
    if images.ndim != 4 or len(images) != len(labels) or not fits:
        raise UsageError(
            f"images of shape {tuple(images.shape)} and labels of shape {tuple(labels.shape)} are not a batch of"
            f" {classes} classes",
            hint="images (n, channels, height, width); labels (n,) or (n, classes)",
        )
    if labels.ndim == 2:
        return labels.float()
    labels = labels.long()
    if labels.device.type == "cpu" and len(labels):
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= classes:
            raise DataError(
                f"the batch has labels from {low} to {high}; with {classes} classes they are 0 to {classes - 1}"
            )
    return one_hot(labels, classes).float()


def _hole(height: int, width: int, share: float, random: np.random.Generator) -> tuple[int, int, int, int]:
    """CutMix's rectangle: this share of the area where the edges do not cut it; top, bottom, left, right."""
    y, x = int(random.integers(height)), int(random.integers(width))
    half_h, half_w = int(height * math.sqrt(share) / 2), int(width * math.sqrt(share) / 2)
    return max(0, y - half_h), min(height, y + half_h), max(0, x - half_w), min(width, x + half_w)


def _mixed_pixels(batch: Pixels, augment: Augment, seed: int) -> Pixels:
    if not (augment.mixup or augment.cutmix):
        return batch
    import torch

    pixels: Pixels = mixed(torch.from_numpy(batch), torch.zeros(len(batch)), 1, augment, seed)[0].numpy()
    return pixels
