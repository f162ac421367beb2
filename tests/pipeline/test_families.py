"""Every family of backbones that docs/backbones.md names, from random weights to engines that agree with PyTorch.

The networks see two digits at a few dozen pixels for one epoch. That shows that each step takes each family; how well a
trained network keeps its decisions is measured in docs/calibration.md.
"""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from edgetl.backends import backbones
from edgetl.config import Config
from edgetl.pipeline.build import build
from edgetl.pipeline.session import Silent
from edgetl.store import Store

ALL = "EDGETL_ALL_FAMILIES"
CLASSES = ("0", "1")
PER_CLASS = {"train": 30, "val": 8, "test": 20}
FLOAT_TO_INT8_DB = 108.0
"""float32 has 24 significant bits, int8 has 8: each bit is 6.02 dB, and 16 of them 96. What a network makes of a small
error (a random one may amplify it by 30 dB) it makes of both: their SQNRs were 81 to 102 dB apart."""
LEAST_DB = 12.0
"""The lowest SQNR of int8 that was seen is 15.9 dB."""
MAX_DROP = 0.15
"""The smallest drop that 40 samples would probably tell from none is 14.7 points; the largest upper bound that was seen
is 12.0."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """A network of a family, small enough to be trained here."""

    backbone: str
    size: int = 32
    lr: float = 5e-4
    batch_size: int = 6
    always: bool = False
    """Built in every run of the tests; the others where the environment variable ALL is set: they take minutes."""


FAMILIES = (
    Family(backbone="timm:resnet10t", always=True),
    Family(backbone="timm:convnext_atto", always=True),
    Family(backbone="timm:vit_tiny_patch16_224", always=True),
    Family(backbone="timm:mobilenetv4_conv_small", always=True),
    Family(backbone="torchvision:alexnet", size=64, lr=1e-4, batch_size=20),
    Family(backbone="torchvision:vgg11_bn", lr=1e-4, batch_size=20),
    Family(backbone="torchvision:googlenet", lr=1e-4),
    Family(backbone="torchvision:inception_v3", size=75),
    Family(backbone="torchvision:resnet18"),
    Family(backbone="torchvision:densenet121"),
    Family(backbone="torchvision:mobilenet_v2", lr=2e-4),
    Family(backbone="torchvision:mobilenet_v3_small"),
    Family(backbone="torchvision:efficientnet_b0", lr=5e-5),
    Family(backbone="torchvision:convnext_tiny"),
    Family(backbone="torchvision:vit_b_16", lr=1e-4),
    Family(backbone="timm:densenet121"),
    Family(backbone="timm:inception_v3", size=75),
    Family(backbone="timm:mobilenetv2_050", lr=2e-4),
    Family(backbone="timm:mobilenetv3_small_050", lr=1e-3),
    Family(backbone="timm:efficientnet_b0", lr=5e-5),
    Family(backbone="timm:tf_efficientnet_lite0", lr=2e-4),
)


class Timed(Silent):
    """Remembers how long the stages took, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def finished(self, stage: str, what: str, *, cached: bool, seconds: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


@pytest.fixture(scope="module")
def digits(example: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of a few real digits of two classes."""
    whole = example("digits")
    left = {(label, split): count for label in CLASSES for split, count in PER_CLASS.items()}
    rows = []
    with whole.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            key = (row["label"], row["split"])
            if left.get(key, 0):
                left[key] -= 1
                rows.append((whole.parent / row["path"], *key))
    manifest = tmp_path_factory.mktemp("digits") / "few.csv"
    with manifest.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    return manifest


def start(family: Family, manifest: Path, folder: Path) -> Path:
    """Random weights whose BatchNorm has the statistics of the data.

    Those it begins with, mean 0 and variance 1, let signals vanish or explode, and one epoch is too short to learn
    them: torchvision's MobileNet V3 takes over 1% of a batch's. No variance is below its layer's mean, though: random
    networks have channels that hardly vary, and where those are stretched, layer after layer, noise of 40 dB in the
    image is noise of -1 to 13 dB in the logits, which no eight bits survive.
    """
    torch.manual_seed(0)
    module = backbones.build(family.backbone, len(CLASSES), image_size=family.size).train()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = None  # the mean of all batches
        elif isinstance(part, nn.Dropout):
            part.eval()
    with manifest.open(encoding="utf-8", newline="") as file:
        paths = [row["path"] for row in csv.DictReader(file) if row["split"] == "train"][::2]
    sides = (family.size, family.size)
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB").resize(sides), np.float32) for path in paths]) / 255
    mean, std = (np.asarray(values, np.float32) for values in backbones.preprocessing_of(module))
    with torch.no_grad():
        module(torch.from_numpy(((pixels - mean) / std).transpose(0, 3, 1, 2).copy()))
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d) and part.running_var is not None:
            part.running_var.clamp_(min=float(part.running_var.mean()))
    path = folder / "start.safetensors"
    save_file({name: value.contiguous() for name, value in module.state_dict().items()}, path)
    return path


def config(family: Family, manifest: Path, weights: Path) -> Config:
    phase = {"train": "all", "epochs": 1, "lr": family.lr}  # BatchNorm keeps the statistics that it starts with
    return Config.model_validate(
        {
            "schema": 1,
            "project": {"name": "family"},
            "data": {"manifest": manifest, "image_size": family.size},
            "model": {"backbone": family.backbone, "weights": str(weights)},
            "finetune": {"phases": [phase], "batch_size": family.batch_size, "device": "cpu"},
            "export": {"batch": {"min": 1, "max": 8}},
            "quantize": {"samples": 32},
            "parity": {"max_drop": MAX_DROP, "require": "all"},
            "target": [{"device": "x86-64-cpu", "precisions": ["int8", "fp32"]}],
        }
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "family",
    [
        pytest.param(
            family,
            id=family.backbone,
            marks=[] if family.always else pytest.mark.skipif(ALL not in os.environ, reason=f"needs {ALL}=1: minutes"),
        )
        for family in FAMILIES
    ],
)
def test_it_trains_exports_quantizes_and_agrees_with_pytorch(family: Family, digits: Path, tmp_path: Path) -> None:
    asked, store, timed = config(family, digits, start(family, digits, tmp_path)), Store(tmp_path / "store"), Timed()
    [phase] = build(asked, store, until="train").summary["phases"]
    done = build(asked, store, until="verify", reporter=timed)
    engines = {engine["precision"]: engine for engine in done.summary["engines"]}
    float32, int8 = (engines[precision]["parity"] for precision in ("fp32", "int8"))
    share = engines["int8"]["placement"]["int8"]["int8_share"]
    figures = {"phase": phase, "fp32": float32, "int8": int8, "int8_share": share, "seconds": timed.seconds}
    (tmp_path / "figures.json").write_text(json.dumps(figures), encoding="utf-8")  # for whoever gives --basetemp
    shutil.rmtree(tmp_path / "store")  # gigabytes, of all families

    [epoch] = phase["epochs"]
    assert math.isfinite(epoch["train_loss"])
    if family.always:
        assert phase["best_epoch"] == 1, "what is exported is what was trained"
    assert float32["samples"] == len(CLASSES) * PER_CLASS["test"]
    assert float32["passed"] and int8["passed"]
    assert float32["agreement"] == 1.0 and float32["sqnr_db"] > 80
    assert int8["sqnr_db"] > max(float32["sqnr_db"] - FLOAT_TO_INT8_DB, LEAST_DB)
    assert int8["agreement"] >= 0.85
    assert share > 0.95 and engines["int8"]["placement"]["int8"]["fallen_back"] == {}
