"""What each random change costs: images/s from file to tensor, on photographs and on digits.

python benchmarks/augment.py [--image-size 224] [--images 60] [--rounds 7] [--photos ../shared/data/photos10]

One process, one thread. The switches take turns, and the median round counts, so that a busy machine slows all alike.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from edgetl.config import Augment, Data
from edgetl.data.augment import AugmentedSamples, mixed
from edgetl.data.examples.digits import materialise_digits
from edgetl.data.load import load_dataset, load_samples
from edgetl.data.loader import Samples
from edgetl.runtime.preprocessing import ImagePreprocessing

SWITCHES = {
    "none": Augment(),
    "flip 0.5": Augment(flip=0.5),
    "vertical_flip 0.5": Augment(vertical_flip=0.5),
    "crop 0.3": Augment(crop=0.3),
    "rotate 15": Augment(rotate=15),
    "colour 0.3": Augment(colour=0.3),
    "noise 0.05": Augment(noise=0.05),
    "erase 0.25": Augment(erase=0.25),
    "randaugment 9": Augment(randaugment=9),
    "all of them": Augment(
        flip=0.5, vertical_flip=0.5, crop=0.3, rotate=15, colour=0.3, noise=0.05, erase=0.25, randaugment=9
    ),
}
BATCHES = {"mixup 0.2": Augment(mixup=0.2), "cutmix 1": Augment(cutmix=1.0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--photos", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data" / "photos10"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    contract = ImagePreprocessing(height=arguments.image_size, width=arguments.image_size)
    with tempfile.TemporaryDirectory() as name:
        lists = {"digits": load_dataset(Data(manifest=materialise_digits(Path(name) / "data"))).train}
        if arguments.photos.is_dir():
            classes = sorted(folder.name for folder in (arguments.photos / "train").iterdir())
            lists["photos10"] = load_samples(arguments.photos / "train", classes)
        else:
            print(f"photos10 left out: there is no folder {arguments.photos}")
        for title, listed in lists.items():
            samples = Samples(listed[:: max(1, len(listed) // arguments.images)][: arguments.images], contract)
            report(f"{title}, {len(samples)} images at {arguments.image_size} px", measure(samples, arguments.rounds))


def measure(samples: Samples, rounds: int) -> dict[str, float]:
    """Median seconds per image of every switch; of mixup and cutmix: on top of images that are tensors already."""
    images = torch.stack([torch.from_numpy(samples[index][0]) for index in range(len(samples))])
    labels = torch.tensor([samples[index][1] for index in range(len(samples))])
    classes = int(labels.max()) + 1

    def per_image(augment: Augment, turn: int) -> None:
        changed = AugmentedSamples(samples, augment, 0)
        for index in range(len(samples)):
            changed[turn, index]

    work: dict[str, Callable[[int], object]] = {
        **{name: partial(per_image, augment) for name, augment in SWITCHES.items()},
        **{name: partial(mixed, images, labels, classes, augment) for name, augment in BATCHES.items()},
    }
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(-1, rounds):  # the first round warms up
        for name, run in work.items():
            began = time.perf_counter()
            run(max(0, turn))
            if turn >= 0:
                seconds[name].append((time.perf_counter() - began) / len(samples))
    return {name: statistics.median(times) for name, times in seconds.items()}


def report(title: str, seconds: dict[str, float]) -> None:
    print(f"\n{title}\n{'':18} images/s   ms/image   against none")
    for name, each in seconds.items():
        extra = each if name in BATCHES else each - seconds["none"]
        total = each + seconds["none"] if name in BATCHES else each
        print(f"{name:18} {1 / total:8.0f} {total * 1e3:10.2f} {extra * 1e3:+9.2f} ms")


if __name__ == "__main__":
    main()
