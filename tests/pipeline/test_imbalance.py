"""Synthetic rows on real tables whose small class was cut: in train alone, and of use."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from edgetl import config as configuration
from edgetl.backends import torch as torch_backend
from edgetl.backends.checkpoint import WEIGHTS, read_deploy
from edgetl.data.dataset import Dataset
from edgetl.errors import ConfigError, DataError
from edgetl.pipeline import learning, tasks
from edgetl.pipeline.reference import ask_reference
from edgetl.pipeline.session import Session, Silent
from edgetl.store import Store

Example = Callable[[str], Path]
CREDIT = """
schema = 1
[project]
name = "credit"
[data]
task = "table-classification"
manifest = "{table}"
label = "{label}"
classes = ["good", "bad"]
metric = "macro-f1"
[model]
backbone = "tables:mlp"
weights = "none"
width = 32
[finetune]
phases = [{{ train = "all", epochs = 6, lr = 3e-3, batchnorm = "train" }}, {{ train = "head", epochs = 3 }}]
balance = "{balance}"
[[target]]
device = "x86-64-cpu"
"""


class Notes(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def table(whole: Path, folder: Path, label: str, bad: int, good: int = 900) -> Path:
    """An example's rows, with few bad ones in train."""
    left = {("train", "bad"): bad, ("train", "good"): good, ("val", "good"): 300, ("val", "bad"): 80}
    with whole.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        kept = []
        for row in reader:
            key = (row["split"], row[label])
            if left.get(key, 10**6) > 0:
                left[key] = left.get(key, 10**6) - 1
                kept.append(row)
    path = folder / "cut.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(kept[0]))
        writer.writeheader()
        writer.writerows(kept)
    return path


def session(folder: Path, path: Path, balance: str, *, label: str = "Status", store: str = "store") -> Session:
    file = folder / f"{balance}.toml"
    file.write_text(CREDIT.format(table=path, label=label, balance=balance), encoding="utf-8")
    return Session(config=configuration.load(file), store=Store(folder / store), reporter=Notes())


def trained(given: Session) -> tuple[Dataset, Any, float]:
    _, dataset = learning.prepare_data(given)
    checkpoint, _ = learning.train(given, dataset)
    _, reference = ask_reference(given, dataset, checkpoint)
    assert len(reference.labels) == len(dataset.test), "test has no synthetic row"
    return dataset, checkpoint, tasks.metric_of(given.config)(reference.outputs, reference.labels)


@pytest.mark.parametrize(("name", "label"), [("credit", "Status"), ("lending", "Class")])
def test_a_table_with_five_percent_of_a_class(name: str, label: str, example: Example, tmp_path: Path) -> None:
    path = table(example(name), tmp_path, label, bad=45)
    plain, smote = (session(tmp_path, path, balance, label=label) for balance in ("none", "smote"))
    _, _, before = trained(plain)
    dataset, checkpoint, after = trained(smote)
    assert after > before + 0.03
    assert "train: 945 rows and 855 synthetic ones" in smote.reporter.said
    assert Counter(sample.label for sample in dataset.train) == {0: 900, 1: 45}, "the data set itself is as it was"
    # What thresholds and calibration are drawn from is the data set, and the contract was fitted on it.
    deploy = read_deploy(checkpoint.folder)
    _, same, _ = trained(plain)
    assert deploy.preprocessing == read_deploy(same.folder).preprocessing
    # Val is as it was; the synthetic rows are those of every phase.
    module, _ = torch_backend.read_checkpoint(checkpoint.folder)
    found = [
        learning._material(smote, module, deploy, dataset, phase, "cpu")[2] for phase in smote.config.finetune.phases
    ]
    assert all(Counter(each.labels) == {0: 900, 1: 900} and len(each.train) == 1800 for each in found)
    assert all(list(each.val_labels) == [sample.label for sample in dataset.val] for each in found)
    given = np.stack([deploy.preprocessing(sample.raw) for sample in dataset.train])
    np.testing.assert_array_equal(found[0].train.vectors[:945], given)


def test_the_same_seed_gives_the_same_network(example: Example, tmp_path: Path) -> None:
    path = table(example("credit"), tmp_path, "Status", bad=20, good=200)
    one, two = (trained(session(tmp_path, path, "smote", store=store))[1] for store in ("one", "two"))
    assert not two.cached
    first, second = (load_file(each / WEIGHTS) for each in (one, two))
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_a_class_of_one_row(example: Example, tmp_path: Path) -> None:
    given = session(tmp_path, table(example("credit"), tmp_path, "Status", bad=1, good=400), "smote")
    _, dataset = learning.prepare_data(given)
    with pytest.raises(DataError, match="a single row of the class 'bad'"):
        learning.train(given, dataset)


@pytest.mark.parametrize(
    ("task", "backbone", "instead"),
    [
        ("image-classification", "timm:test_efficientnet", '"sampler" or "loss"'),
        ("text-classification", "text:bilstm", '"sampler" or "loss"'),
        ("multi-label-images", "timm:test_efficientnet", '"loss"'),
        ("face-verification", "timm:test_efficientnet", '"sampler" or "loss"'),
    ],
)
def test_other_tasks_are_told_what_they_can_use(task: str, backbone: str, instead: str, tmp_path: Path) -> None:
    (tmp_path / "edgetl.toml").write_text(
        f'schema = 1\n[project]\nname = "x"\n[data]\ntask = "{task}"\nmanifest = "a.csv"\n[model]\nweights = "none"\n'
        f'backbone = "{backbone}"\n[finetune]\nbalance = "smote"\n[[target]]\ndevice = "x86-64-cpu"\n',
        encoding="utf-8",
    )
    with pytest.raises(ConfigError, match=f"synthetic rows of tables; data.task is {task}") as caught:
        tasks.task_of(configuration.load(tmp_path))
    assert instead in str(caught.value.hint)
