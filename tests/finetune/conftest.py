from __future__ import annotations

import gc
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgetl.backends.backbones import build
from edgetl.finetune.phases import Data


class Samples(Sequence):  # type: ignore[type-arg]
    """Images by key (epoch, index); every epoch sees the same."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: tuple[int, int]) -> tuple[np.ndarray, int]:  # type: ignore[override]
        return self.images[key[1]], int(self.labels[key[1]])


def coloured(count: int, seed: int, size: int = 32) -> Samples:
    """Noise with one bright channel: three classes that any network can tell apart."""
    random = np.random.default_rng(seed)
    images = random.normal(scale=0.3, size=(count, 3, size, size)).astype(np.float32)
    labels = np.arange(count) % 3
    images[np.arange(count), labels] += 1.5
    return Samples(images, labels)


@pytest.fixture(scope="session")
def data() -> Data:
    import accelerate  # noqa: F401 - the first training would import both, and each one after it collect garbage there
    import torch._dynamo  # noqa: F401

    gc.freeze()
    train, val = coloured(96, 0), coloured(30, 1)
    return Data(train=train, labels=train.labels.tolist(), val=val, val_labels=val.labels.tolist(), classes=3)


@pytest.fixture(scope="session")
def network() -> Callable[..., torch.nn.Module]:
    def make(seed: int = 0, name: str = "timm:test_efficientnet") -> torch.nn.Module:
        torch.manual_seed(seed)
        return build(name, 3)

    return make


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Any]:
    """An empty hub of Hugging Face on this machine; see ``hub.py``."""
    spec = importlib.util.spec_from_file_location("edgetl_tests_hub", Path(__file__).with_name("hub.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look it up there
    spec.loader.exec_module(module)
    with module.serving(tmp_path / "hub") as found:
        yield found
