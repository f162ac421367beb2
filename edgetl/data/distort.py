"""One image changed at random: geometry and colours on bytes, noise and erasing on the tensor.

Everything is drawn from a generator that is given. Colours and RandAugment are the functions of
torchvision.transforms.v2, which draw nothing themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgetl.config import Augment
from edgetl.errors import not_imported
from edgetl.runtime.preprocessing import INTERPOLATION, ImagePreprocessing

Pixels = NDArray[np.float32]
Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels of the source image."""

_STRETCH = 4 / 3
"""Most that a random crop is stretched, either way (torchvision's RandomResizedCrop)."""


def distorted(
    image: Image.Image, contract: ImagePreprocessing, augment: Augment, random: np.random.Generator
) -> Pixels:
    """Change a decoded image at random, and make the tensor of it.

    Crop, rotation, flips; colour and RandAugment on bytes at the tensor's size, colour on the image itself where that
    is smaller; noise and erasing on the tensor. An image is resampled once on the way to the tensor's size, and once
    more where it is rotated or RandAugment moves it.

    Args:
        image: Mode RGB, any size.
        contract: Gives size, filter, mean and standard deviation.
        augment: What is switched on; mixup and cutmix are not looked at.
        random: Is moved.

    Returns:
        float32, shape (3, height, width).

    Raises:
        MissingExtraError: torchvision is not installed.
    """
    # Colours of an image that is going to be enlarged cost a fraction before that, and come out the same.
    small = image.width * image.height < contract.width * contract.height
    if augment.colour and small:
        image = _recoloured(image, augment.colour, random)
    image = _framed(image, contract, augment, random)
    if augment.flip and random.random() < augment.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if augment.vertical_flip and random.random() < augment.vertical_flip:
        image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    if augment.colour and not small:
        image = _recoloured(image, augment.colour, random)
    if augment.randaugment:
        image = _randaugmented(image, augment.randaugment, random)
    tensor = replace(contract, resize="stretch").apply(image)  # it has its size: nothing is stretched
    if augment.noise:
        tensor = _noisy(tensor, augment.noise, contract, random)
    if augment.erase and random.random() < augment.erase:
        _erase(tensor, random)
    return tensor


def _functional() -> Any:
    try:
        from torchvision.transforms.v2 import functional
    except ImportError as error:
        raise not_imported(error, "torchvision", extra="train", needed_for="changing images at random") from None
    return functional


# --- geometry --------------------------------------------------------------------------------------------------------


def _framed(
    image: Image.Image, contract: ImagePreprocessing, augment: Augment, random: np.random.Generator
) -> Image.Image:
    """Crop and rotate; the result has the tensor's size."""
    box = _crop(image.size, contract, augment.crop, random) if augment.crop < 1.0 else None
    angle = random.uniform(-augment.rotate, augment.rotate) if augment.rotate else 0.0
    if contract.resize == "pad":
        image = contract.sized(image.crop(box) if box else image)
        return _rotated(image, image.size, angle) if angle else image  # on black, as the contract's borders are
    if box is None and not angle:
        return contract.sized(image)
    size = (contract.width, contract.height)
    across, down = _margins(size, angle) if angle else (0, 0)
    image = _window(image, box or _visible(image.size, contract), contract, across, down)
    return _rotated(image, size, angle) if angle else image


def _crop(
    size: tuple[int, int], contract: ImagePreprocessing, least: float, random: np.random.Generator
) -> tuple[int, int, int, int]:
    """A box with a random share of the area, as torchvision's RandomResizedCrop draws it.

    Its aspect is up to 4/3 off from the one that the contract would show undistorted.
    """
    width, height = size
    natural = contract.width / contract.height if contract.resize == "crop" else width / height
    for _ in range(10):
        area = random.uniform(least, 1.0) * width * height
        aspect = natural * math.exp(random.uniform(-math.log(_STRETCH), math.log(_STRETCH)))
        w, h = max(1, round(math.sqrt(area * aspect))), max(1, round(math.sqrt(area / aspect)))
        if w <= width and h <= height:
            left, top = int(random.integers(width - w + 1)), int(random.integers(height - h + 1))
            return left, top, left + w, top + h
    # The image is too long for that: its centre, as much as may be stretched.
    w = max(1, min(width, round(height * natural * _STRETCH)))
    h = max(1, min(height, round(width / natural * _STRETCH)))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _visible(size: tuple[int, int], contract: ImagePreprocessing) -> Box:
    """The part of an image that the contract shows; not for pad."""
    width, height = size
    if contract.resize == "stretch":
        return 0.0, 0.0, float(width), float(height)
    scaled = contract.scaled(width, height)
    left, top = round((scaled[0] - contract.width) / 2), round((scaled[1] - contract.height) / 2)
    x, y = width / scaled[0], height / scaled[1]
    return left * x, top * y, (left + contract.width) * x, (top + contract.height) * y


def _margins(size: tuple[int, int], angle: float) -> tuple[int, int]:
    """How far a rotated rectangle of this size reaches beyond itself, left and top, in pixels; and one more."""
    width, height = size
    cosine, sine = abs(math.cos(math.radians(angle))), abs(math.sin(math.radians(angle)))
    across = (width * cosine + height * sine - width) / 2
    down = (width * sine + height * cosine - height) / 2
    return max(0, math.ceil(across)) + 1, max(0, math.ceil(down)) + 1


def _window(image: Image.Image, box: Box, contract: ImagePreprocessing, across: int, down: int) -> Image.Image:
    """Scale a box of an image to the tensor's size, with margins around it.

    In the margins is what stands around the box in the image; beyond the image's edges, the image mirrored.
    """
    (left, before_x, after_x), (top, before_y, after_y) = (
        _reach(box[axis], box[axis + 2], image.size[axis], pixels, margin)
        for axis, pixels, margin in ((0, contract.width, across), (1, contract.height, down))
    )
    size = (contract.width + 2 * across - before_x - after_x, contract.height + 2 * down - before_y - after_y)
    area = (left[0], top[0], left[1], top[1])
    image = image.resize(size, INTERPOLATION[contract.interpolation], box=area)
    if not (before_x or after_x or before_y or after_y):
        return image
    return Image.fromarray(np.pad(np.asarray(image), ((before_y, after_y), (before_x, after_x), (0, 0)), "symmetric"))


def _reach(low: float, high: float, length: int, pixels: int, margin: int) -> tuple[tuple[float, float], int, int]:
    """Along one axis: the span of the source to scale, and how many of the target's pixels before and after lie
    beyond the source."""
    step = (high - low) / pixels
    start, end = low - margin * step, high + margin * step
    before = max(0, math.ceil(-start / step - 1e-6))
    after = max(0, math.ceil((end - length) / step - 1e-6))
    return (max(0.0, start + before * step), min(float(length), end - after * step)), before, after


def _rotated(image: Image.Image, size: tuple[int, int], angle: float) -> Image.Image:
    """The middle of a rotated image, bilinear; no pixel but the result's is computed."""
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    x = image.width / 2 - cosine * size[0] / 2 - sine * size[1] / 2
    y = image.height / 2 + sine * size[0] / 2 - cosine * size[1] / 2
    matrix = (cosine, sine, x, -sine, cosine, y)
    return image.transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


# --- colours ---------------------------------------------------------------------------------------------------------


def _recoloured(image: Image.Image, strength: float, random: np.random.Generator) -> Image.Image:
    """Brightness, contrast, saturation and hue in random order, as torchvision's ColorJitter."""
    functional = _functional()
    factors = random.uniform(-strength, strength, 4).tolist()
    steps: list[Callable[[Image.Image], Image.Image]] = [
        lambda picture: functional.adjust_brightness(picture, 1.0 + factors[0]),
        lambda picture: functional.adjust_contrast(picture, 1.0 + factors[1]),
        lambda picture: functional.adjust_saturation(picture, 1.0 + factors[2]),
        lambda picture: functional.adjust_hue(picture, factors[3] / 4.0),
    ]
    for step in random.permutation(4).tolist():
        image = steps[step](image)
    return image


def _randaugmented(image: Image.Image, magnitude: int, random: np.random.Generator) -> Image.Image:
    """Two of RandAugment's fourteen operations; what they move in from outside has the mean colour of the border."""
    pixels = np.asarray(image)
    border = np.concatenate((pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])).mean(axis=0)
    operations = _operations(_functional(), border.round().tolist())
    for _ in range(2):
        operation = operations[int(random.integers(len(operations)))]
        image = operation(image, magnitude / 30.0 * (1.0 if random.random() < 0.5 else -1.0))
    return image


def _operations(functional: Any, fill: list[float]) -> tuple[Callable[[Image.Image, float], Image.Image], ...]:
    """RandAugment's operations with torchvision's ranges; each takes an image and a strength from −1 to 1."""

    def moved(image: Image.Image, *, x: float = 0.0, y: float = 0.0, shear: tuple[float, float] = (0.0, 0.0)) -> Any:
        return functional.affine(
            image,
            angle=0.0,
            translate=[int(x * image.width), int(y * image.height)],
            scale=1.0,
            shear=[math.degrees(math.atan(slope)) for slope in shear],
            interpolation=functional.InterpolationMode.BILINEAR,
            fill=fill,
            center=[0.0, 0.0],
        )

    bilinear = functional.InterpolationMode.BILINEAR
    return (
        lambda image, _: image,
        lambda image, by: moved(image, shear=(0.3 * by, 0.0)),
        lambda image, by: moved(image, shear=(0.0, 0.3 * by)),
        lambda image, by: moved(image, x=150.0 / 331.0 * by),
        lambda image, by: moved(image, y=150.0 / 331.0 * by),
        lambda image, by: functional.rotate(image, 30.0 * by, interpolation=bilinear, fill=fill),
        lambda image, by: functional.adjust_brightness(image, 1.0 + 0.9 * by),
        lambda image, by: functional.adjust_saturation(image, 1.0 + 0.9 * by),
        lambda image, by: functional.adjust_contrast(image, 1.0 + 0.9 * by),
        lambda image, by: functional.adjust_sharpness(image, 1.0 + 0.9 * by),
        lambda image, by: functional.posterize(image, 8 - round(4.0 * abs(by))),
        lambda image, by: functional.solarize(image, 255.0 * (1.0 - abs(by))),
        lambda image, _: functional.autocontrast(image),
        lambda image, _: functional.equalize(image),
    )


# --- tensors ---------------------------------------------------------------------------------------------------------


def _noisy(tensor: Pixels, sigma: float, contract: ImagePreprocessing, random: np.random.Generator) -> Pixels:
    """Add noise, and keep every value in the range that pixels have."""
    import torch

    # torch draws normal numbers three times as fast as NumPy; its generator here is nobody else's.
    own = torch.Generator().manual_seed(int(random.integers(1 << 63)))
    noise = torch.randn(tensor.shape, generator=own, dtype=torch.float32, device="cpu").numpy()
    mean, std = (np.asarray(values, np.float32)[:, None, None] for values in (contract.mean, contract.std))
    ends = np.sort(np.stack((-mean / std, (np.float32(1.0) - mean) / std)), axis=0)
    noise *= np.float32(sigma) / std
    noise += tensor
    return np.clip(noise, ends[0], ends[1], out=noise)


def _erase(tensor: Pixels, random: np.random.Generator) -> None:
    """Set a rectangle to zero, which is the contract's mean; in place.

    From 2% to a third of the area, its aspect from 0.3 to 3.3 (Zhong et al. 2017; the ranges of torchvision).
    """
    _, height, width = tensor.shape
    area = random.uniform(0.02, 0.33) * height * width
    aspect = math.exp(random.uniform(math.log(0.3), math.log(3.3)))
    h = min(height, max(1, round(math.sqrt(area * aspect))))
    w = min(width, max(1, round(math.sqrt(area / aspect))))
    top, left = int(random.integers(height - h + 1)), int(random.integers(width - w + 1))
    tensor[:, top : top + h, left : left + w] = 0.0
