"""Every preset by the command line on a few real digits, over the example's own configuration: what learns, and how."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from edgetl.config import presets

SMALL = ("--set", "model.backbone=timm:test_efficientnet")
UNTRAINED = ("--set", "model.weights=none")
HEAD = ("head", 20)
RUNS: dict[str, tuple[tuple[str, ...], list[tuple[str, int]]]] = {
    "probe-then-finetune": (SMALL + UNTRAINED, [HEAD, ("all", 3)]),
    "bias-only": (SMALL + UNTRAINED, [HEAD, ("biases", 5)]),
    "freeze-first-n": (SMALL + UNTRAINED, [HEAD, ("all-but-first", 3)]),
    "from-scratch": (SMALL, [("all", 20)]),
    "resnet50-mnist": ((*UNTRAINED, "--set", "data.image_size=32"), [("all", 6)]),
}
"""Preset → what is said beside it, and its phases with as many epochs as they may take. The network is a small one
where the preset names none, and random where no weights of it are at hand."""


@pytest.fixture(scope="module")
def few(example: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of two digits of each class to train on, and one for val and for test."""
    whole, seen = example("digits"), Counter[tuple[str, str]]()
    path = tmp_path_factory.mktemp("few") / "few.csv"
    with whole.open(encoding="utf-8", newline="") as source, path.open("w", encoding="utf-8", newline="") as file:
        rows, writer = csv.DictReader(source), csv.writer(file)
        writer.writerow(("path", "label", "split"))
        for row in rows:
            key = (row["label"], row["split"])
            seen[key] += 1
            if seen[key] <= (2 if row["split"] == "train" else 1):
                writer.writerow((whole.parent / row["path"], *key))
    return path


Trained = tuple[Path, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def train(edgetl: Any, example: Callable[[str], Path], few: Path, tmp_path_factory: Any) -> Callable[[str], Trained]:
    found: dict[str, Trained] = {}

    def run(name: str) -> Trained:
        if name not in found:
            own = ("--set", f"preset={name}", "--set", f'data.manifest="{few}"', "--set", "finetune.device=cpu")
            folder = example("digits").parent.parent  # as edgetl init wrote it
            store = tmp_path_factory.mktemp("store")
            done = edgetl("train", folder, *own, *RUNS[name][0], "--store", store, "--json")
            assert done.code == 0, done.err
            result = done.document["result"]
            found[name] = Path(result["artifacts"]["train"]), result["phases"]
        return found[name]

    return run


def test_every_preset_is_run() -> None:
    assert set(RUNS) == set(presets())


@pytest.mark.parametrize("name", RUNS)
def test_a_preset_trains_the_phases_that_it_says(name: str, train: Callable[[str], Trained]) -> None:
    checkpoint, phases = train(name)
    asked = RUNS[name][1]
    assert [phase["train"] for phase in phases] == [what for what, _ in asked]
    assert all(0 < len(phase["epochs"]) <= most for phase, (_, most) in zip(phases, asked, strict=True))
    deploy = json.loads((checkpoint / "deploy.json").read_text(encoding="utf-8"))
    assert deploy["backbone"] == ("timm:resnet50" if name == "resnet50-mnist" else "timm:test_efficientnet")
    assert load_file(checkpoint / "model.safetensors")


def test_what_learns(train: Callable[[str], Trained]) -> None:
    learned = {name: train(name)[1][-1] for name in RUNS}
    stages = {name: {group["stage"] for group in phase["groups"]} for name, phase in learned.items()}
    everything = stages["probe-then-finetune"]
    assert stages["from-scratch"] == everything and len(everything) > 5
    assert everything - stages["freeze-first-n"] and len(everything - stages["freeze-first-n"]) == 2
    assert learned["bias-only"]["trained"] < learned["freeze-first-n"]["trained"] < learned["from-scratch"]["trained"]
    assert {group["weight_decay"] for group in learned["bias-only"]["groups"] if group["stage"] != "head"} == {0.0}
    assert len(learned["from-scratch"]["epochs"]) == 20, "patience leaves it all of them"


def test_resnet50_as_textbooks_train_it(train: Callable[[str], Trained]) -> None:
    _, (phase,) = train("resnet50-mnist")
    assert phase["optimizer"] == "sgd" and phase["trained"] > 23e6
    assert {(group["lr"], group["weight_decay"]) for group in phase["groups"]} == {(1e-2, 5e-4), (1e-2, 0.0)}
