from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Splits = Mapping[str, Mapping[str, int]]


def picture(seed: int, size: tuple[int, int] = (12, 10)) -> Image.Image:
    """Noise that no other seed gives."""
    width, height = size
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def make_folders(tmp_path: Path) -> Callable[[Splits], Path]:
    """Write split/class/image folders: every image has content of its own."""

    def make(splits: Splits) -> Path:
        seed = 0
        for split, classes in splits.items():
            for name, count in classes.items():
                folder = tmp_path / split / name
                folder.mkdir(parents=True)
                for number in range(count):
                    picture(seed).save(folder / f"{number}.png")
                    seed += 1
        return tmp_path

    return make
