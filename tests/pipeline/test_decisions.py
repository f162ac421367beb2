"""How outputs become answers: chosen on train and val, whatever stands in test."""

from __future__ import annotations

import csv
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgetl import config as configuration
from edgetl.errors import ConfigError
from edgetl.pipeline import learning
from edgetl.pipeline.reference import decide
from edgetl.pipeline.session import Session, Silent
from edgetl.runtime.decision import Decision
from edgetl.store import Store

COMMON = """
schema = 1
[project]
name = "decisions"
[finetune]
phases = [{ train = "all", epochs = 1, lr = 3e-3, batchnorm = "train" }]
batch_size = 16
device = "cpu"
[[target]]
device = "x86-64-cpu"
"""
IMAGES = 'image_size = 32\n[model]\nbackbone = "timm:test_efficientnet"\nweights = "none"\nembedding = 16\n'


class Notes(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def rows_of(folder: Path, *, other: bool) -> None:
    """Two numbers per row; those of test and their classes are others where asked."""
    draw = random.Random(3)
    with (folder / "table.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["a", "b", "label", "split"])
        for split, count in (("train", 120), ("val", 60), ("test", 40)):
            for number in range(count):
                bad = int(draw.random() < 0.3)
                a, b = draw.gauss(1.5 * bad, 1), draw.gauss(0, 1)
                if other and split == "test":
                    bad, a, b = number % 2, 40.0 * a, -b - 7
                writer.writerow([a, b, ("good", "bad")[bad], split])


def picture(path: Path, draw: np.random.Generator, colour: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = draw.integers(0, 120, (32, 32, 3))
    pixels[..., colour] += 120
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def several_labels(folder: Path, *, other: bool) -> None:
    draw, changed = np.random.default_rng(4), np.random.default_rng(5)
    lines = ["path,label,split"]
    for split, count in (("train", 32), ("val", 16), ("test", 16)):
        for number in range(count):
            random_ = changed if other and split == "test" else draw
            picture(folder / split / f"{number}.png", random_, int(random_.integers(3)))
            labels = [name for name in ("x", "y", "z") if random_.random() < 0.5] + (["x", "y", "z"] * (number == 0))
            lines.append(f"{split}/{number}.png,{';'.join(sorted(set(labels)))},{split}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def people(folder: Path, *, other: bool) -> None:
    draw, changed = np.random.default_rng(6), np.random.default_rng(7)
    for split, names in (("train", "abcd"), ("val", "efg"), ("test", "hij")):
        for place, name in enumerate(names):
            for number in range(6):
                random_ = changed if other and split == "test" else draw
                picture(folder / split / name / f"{number}.png", random_, (place + other * (split == "test")) % 3)


TABLE = 'task = "table-classification"\nmanifest = "table.csv"\nclasses = ["good", "bad"]\ndecision = "{rule}"\n'
TABLE += '[model]\nbackbone = "tables:mlp"\nweights = "none"\nwidth = 8\n'
CASES: dict[str, tuple[str, Callable[..., None]]] = {
    **{rule: (TABLE.format(rule=rule), rows_of) for rule in ("best-threshold", "mean-threshold", "auto")},
    "thresholds per class": (f'task = "multi-label-images"\nmanifest = "table.csv"\n{IMAGES}', several_labels),
    "cosine of faces": (
        f'task = "face-verification"\ntrain = "train"\nval = "val"\ntest = "test"\n{IMAGES}',
        people,
    ),
}


def decided(folder: Path, data: str) -> tuple[Decision, str, str, list[str]]:
    """The decision, digests of checkpoint and data, and what was said."""
    path = folder / "edgetl.toml"
    path.write_text(f"{COMMON.partition('[finetune]')[0]}[data]\n{data}[finetune]{COMMON.partition('[finetune]')[2]}")
    notes = Notes()
    session = Session(config=configuration.load(path), store=Store(folder / "store"), reporter=notes)
    _, dataset = learning.prepare_data(session)
    checkpoint, _ = learning.train(session, dataset)
    return decide(session, dataset, checkpoint), checkpoint.digest, dataset.digest(), notes.said


@pytest.mark.parametrize("case", CASES)
def test_other_test_samples_change_nothing_that_was_chosen(case: str, tmp_path: Path) -> None:
    data, write = CASES[case]
    write(tmp_path, other=False)
    decision, checkpoint, digest, said = decided(tmp_path, data)
    for path in list(tmp_path.iterdir()):
        if path.is_dir():
            shutil.rmtree(path)  # the store, too: everything is made again
    write(tmp_path, other=True)
    again, same, changed, also = decided(tmp_path, data)
    assert digest != changed, "test is another one"
    assert (again, same, also) == (decision, checkpoint, said)
    values = decision.to_json()
    if case == "auto":
        assert sum(line.startswith("decision: ") and "on val by macro-F1" in line for line in said) == 1
    else:
        assert {"threshold", "thresholds"} & set(values)


def test_other_val_samples_do_change_the_choice(tmp_path: Path) -> None:
    """Or the test above would pass with a constant."""
    data, write = CASES["best-threshold"]
    write(tmp_path, other=False)
    decision = decided(tmp_path, data)[0]
    table = tmp_path / "table.csv"
    rows = table.read_text(encoding="utf-8").splitlines()
    swap = {"good": "bad", "bad": "good"}
    fields = [row.split(",") for row in rows]
    changed = [[a, b, swap[label] if split == "val" else label, split] for a, b, label, split in fields[1:]]
    table.write_text("\n".join([rows[0], *(",".join(row) for row in changed)]) + "\n", encoding="utf-8")
    assert decided(tmp_path, data)[0] != decision


def test_a_rule_is_chosen_for_two_classes_alone(tmp_path: Path) -> None:
    data, write = CASES["auto"]
    write(tmp_path, other=False)
    table = tmp_path / "table.csv"
    text = table.read_text(encoding="utf-8").splitlines()
    third = [row.replace("good", "fair") if number % 3 == 0 else row for number, row in enumerate(text)]
    table.write_text("\n".join(third) + "\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r'data\.decision = "auto" is for two classes; there are 3'):
        decided(tmp_path, data.replace('classes = ["good", "bad"]', 'classes = ["good", "fair", "bad"]'))
    assert not (tmp_path / "store" / "finetune").exists(), "said after training"
