"""A training whose input is wrong, or that cannot go on: named, exit code 3 or 1, and every checkpoint stays."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow

BERT = {
    "model_type": "bert",
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 24,
    "pad_token_id": 0,
}
TEXTS = """\
schema = 1
[project]
name = "words"
[data]
task = "text-classification"
manifest = "texts.csv"
max_length = 16
[model]
backbone = "hf:{folder}/bert"
weights = "none"
[finetune]
phases = [{{ train = "all", epochs = 1 }}]
[[target]]
device = "x86-64-cpu"
"""
TABLE = """\
schema = 1
[project]
name = "loans"
[data]
task = "table-classification"
manifest = "table.csv"
label = "outcome"
classes = ["paid", "lost"]
[model]
backbone = "tables:mlp"
weights = "none"
width = 8
depth = 1
[finetune]
phases = [{ train = "all", epochs = 1 }]
[[target]]
device = "x86-64-cpu"
"""
FULL = """
from edgetl.finetune.trainer import Trainer


def full(*given, **more):
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory.")


Trainer._backward = full
"""


def checkpoints(store: Path) -> dict[Path, bytes]:
    """Every file of every trained phase."""
    return {path: path.read_bytes() for path in store.glob("finetune/*/*")}


@pytest.fixture
def kept(edgetl):
    """Runs a command that must fail, and looks whether what was trained before it is still there, bit for bit."""

    def run(folder: Path, code: int, *words: str, hint: str = "", env: dict[str, str] | None = None) -> Any:
        before = checkpoints(folder / ".edgetl")
        assert any(path.name == "model.safetensors" for path in before)
        done = edgetl("train", folder, env=env)
        done.failed(code, *words, hint=hint)
        assert checkpoints(folder / ".edgetl") == before
        assert list((folder / ".edgetl" / "tmp").iterdir()) == []
        return done

    return run


@pytest.fixture
def images(variant, shapes) -> tuple[Path, Path]:
    """A trained project and images of its own, which a test may spoil."""
    data = shutil.copytree(shapes, variant.folder / "images")
    text = variant.config.read_text(encoding="utf-8").replace(str(shapes), str(data))
    variant.config.write_text(text, encoding="utf-8")
    return variant.folder, data


@pytest.fixture
def as_manifest(images) -> Callable[[dict[int, str]], Path]:
    """The same images in a manifest whose rows, counted from 1, a test may replace."""
    folder, data = images
    rows = [f"{path},{path.parent.name},{path.parents[1].name}" for path in sorted(data.glob("*/*/*.png"))]
    text = (folder / "edgetl.toml").read_text(encoding="utf-8")
    head, _, rest = text.partition("[data]\n")
    rest = "\n".join(line for line in rest.splitlines() if not line.startswith(("train = ", "val = ", "test = ")))
    own = f'{head}[data]\nmanifest = "own.csv"\nclasses = ["box", "cross", "disc"]\n{rest}\n'
    (folder / "edgetl.toml").write_text(own, encoding="utf-8")

    def write(other: dict[int, str]) -> Path:
        listed = [other.get(number, row) for number, row in enumerate(rows, 1)]
        (folder / "own.csv").write_text("\n".join(["path,label,split", *listed]), encoding="utf-8")
        return folder

    return write


def write_tokenizer(folder: Path, words: list[str], count: int) -> None:
    from edgetl.data.texts import train_tokenizer

    (folder / "bert" / "tokenizer.json").write_text(train_tokenizer(words, count), encoding="utf-8")


@pytest.fixture
def texts(edgetl, tmp_path) -> tuple[Path, list[str], list[str]]:
    """A trained project of texts, its rows and its texts."""
    pytest.importorskip("tokenizers", reason="pip install 'edgetl[text]'")
    pytest.importorskip("transformers", reason="pip install 'edgetl[train]'")
    words = [f"{name} {number}" for number in range(30) for name in ("wonderful", "dreadful")]
    rows = [f"{word},{word.split()[0]},{('train', 'val', 'test')[place // 2 % 3]}" for place, word in enumerate(words)]
    (tmp_path / "texts.csv").write_text("\n".join(["text,label,split", *rows]), encoding="utf-8")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps(BERT), encoding="utf-8")
    write_tokenizer(tmp_path, words, 60)
    (tmp_path / "edgetl.toml").write_text(TEXTS.format(folder=tmp_path), encoding="utf-8")
    done = edgetl("train", tmp_path)
    assert done.code == 0, done.err
    return tmp_path, rows, words


@pytest.fixture
def table(edgetl, tmp_path) -> tuple[Path, list[str]]:
    """A trained project of a table, and its rows."""
    generator = np.random.default_rng(3)
    rows = []
    for place in range(90):
        lost = place % 2
        income, debt = generator.normal(3 - lost, 1), generator.normal(lost, 1)
        rows.append(f"{income:.3f},{debt:.3f},{('paid', 'lost')[lost]},{('train', 'val', 'test')[place // 2 % 3]}")
    (tmp_path / "table.csv").write_text("\n".join(["income,debt,outcome,split", *rows]), encoding="utf-8")
    (tmp_path / "edgetl.toml").write_text(TABLE, encoding="utf-8")
    done = edgetl("train", tmp_path)
    assert done.code == 0, done.err
    return tmp_path, rows


# 1: a training that cannot go on


def test_a_loss_that_became_nan(kept, variant):
    variant.edit(("lr = 5e-3", "lr = 1e30"))
    words = ("in step ", " of the phase 'all'", "what was kept before stays as it was")
    done = kept(variant.folder, 1, *words, hint="a smaller lr in finetune.phases")
    assert "finetune   phase 1: head, up to 2 epochs: cached" in done.err
    assert "defect" not in done.err
    assert kept(variant.folder, 1, *words).err.count("cached") == done.err.count("cached")  # nothing of it was kept
    variant.assert_clean()


def test_memory_of_a_gpu_that_ran_out(edgetl, kept, variant, tmp_path):
    """In a process whose GPU, so it is told, is full: what PyTorch raises then, from the forward pass of a step."""
    place = tmp_path / "full"
    place.mkdir()
    (place / "sitecustomize.py").write_text(FULL, encoding="utf-8")
    full = {"PYTHONPATH": os.pathsep.join([str(place), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)}
    variant.edit(("lr = 5e-3", "lr = 4e-3"))
    memory = "the GPU's memory does not hold 16 samples at a time"
    kept(variant.folder, 1, memory, hint="finetune.accumulate = 2", env=full)
    done = edgetl("train", variant.folder, "--json", env=full)
    assert done.code == 1 and done.document["result"]["type"] == "TrainingError"
    variant.assert_clean()


# 3: the data, or a tokenizer that does not fit them


def test_a_class_without_an_image(kept, images):
    folder, data = images
    for path in (data / "train" / "disc").iterdir():
        path.unlink()
    kept(folder, 3, str(data / "train" / "disc"), "class 'disc' has no image", hint="add images or remove the folder")
    (data / "train" / "disc").rmdir()
    kept(folder, 3, "'disc'", "is not a class", hint="the labels of train")


def test_a_class_of_the_list_without_a_row(kept, as_manifest):
    folder = as_manifest({})
    text = (folder / "edgetl.toml").read_text(encoding="utf-8").replace('"disc"]', '"disc", "star"]')
    (folder / "edgetl.toml").write_text(text, encoding="utf-8")
    kept(folder, 3, "no sample of 1 of 4 classes: 'star'", hint="leave the classes out")


def test_a_label_outside_the_list(kept, as_manifest, images):
    _, data = images
    folder = as_manifest({103: f"{data}/train/box/000.png,bux,train"})
    kept(folder, 3, "train has the label 'bux' (line 104)", "'box'?", hint="the classes are those of data.classes")


def test_images_and_rows_that_cannot_be_read(kept, as_manifest, images):
    _, data = images
    folder = as_manifest({3: f"{data}/train/box/none.png,box,train", 5: f"{data}/train/box/004.png,box,tset"})
    kept(folder, 3, "own.csv", "line 6: unknown split 'tset'", "'test'?")
    kept(as_manifest({3: f"{data}/train/box/none.png,box,train"}), 3, f"{data}/train/box/none.png")
    file = data / "val" / "cross" / "003.png"
    Image.fromarray(np.full((64, 64, 3), 9, dtype=np.uint8)).save(file)
    file.write_bytes(file.read_bytes()[:80])
    kept(as_manifest({}), 3, str(file))


def test_texts_with_wrong_labels_and_rows(kept, texts):
    folder, rows, _ = texts

    def spoiled(old: str, new: str, *words: str) -> None:
        text = "\n".join(["text,label,split", *rows])
        assert old in text
        (folder / "texts.csv").write_bytes(text.replace(old, new, 1).encode("utf-8", errors="surrogateescape"))
        kept(folder, 3, *words)

    spoiled("wonderful 1,wonderful,val", "wonderful 1,wunderful,val", "wunderful", "line 4", "'wonderful'?")
    spoiled("wonderful 1,wonderful,val", "wonderful 1,wonderful,vel", "line 4", "'vel'", "'val'?")
    spoiled("wonderful 1,wonderful,val", ",wonderful,val", "line 4")
    spoiled("wonderful 1,wonderful,val", "w\udcffnderful 1,wonderful,val", "not UTF-8")


def test_a_tokenizer_of_another_model(kept, texts):
    folder, _, words = texts
    write_tokenizer(folder, words, 75)
    told = "the tokenizer has ids up to 68, the network's vocabulary has 60: they do not belong together"
    kept(folder, 3, told, hint="model.weights and model.backbone")


def test_a_tokenizer_that_gives_words_the_id_of_the_padding(kept, texts):
    folder, _, _ = texts
    config = {**BERT, "pad_token_id": 2}  # which this tokenizer puts in front of every text
    (folder / "bert" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    kept(folder, 3, "around every text, and its id 2 is that of the padding", hint="an id of its own")


def test_tables_with_wrong_labels_and_rows(kept, table):
    folder, rows = table

    def spoiled(place: int, row: str, *words: str) -> None:
        listed = [*rows[: place - 1], row, *rows[place:]]
        (folder / "table.csv").write_text("\n".join(["income,debt,outcome,split", *listed]), encoding="utf-8")
        kept(folder, 3, "table.csv", *words)

    spoiled(4, "1.0,0.5,lust,val", "line 5", "'lust'", "'lost'?")
    spoiled(5, "1.0,much,paid,test", "line 6", "'debt'", "'much'")
    spoiled(4, "1.0,0.5,lost,vel", "line 5: split is 'vel', not train or val or test")
