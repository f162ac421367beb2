"""Columns that parity is looked at by: data.slices, from every kind of source that has columns."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgetl.config import Data
from edgetl.data.dataset import Dataset
from edgetl.data.load import load_dataset, source_digest
from edgetl.data.tables import load_table
from edgetl.data.texts import load_texts
from edgetl.errors import DataError

COUNT = 24


def rows() -> list[dict[str, str]]:
    splits = ["train"] * 16 + ["val"] * 4 + ["test"] * 4
    return [
        {"split": split, "label": "ab"[n % 2], "camera": ["east", "west", " "][n % 3], "number": str(n)}
        for n, split in enumerate(splits)
    ]


def written(path: Path, records: list[dict[str, str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]))
        writer.writeheader()
        writer.writerows(records)
    return path


def images(folder: Path) -> Path:
    random = np.random.default_rng(0)
    records = rows()
    for n, record in enumerate(records):
        Image.fromarray(random.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(folder / f"{n}.png")
        record["path"] = f"{n}.png"
    return written(folder / "manifest.csv", records)


def kept(dataset: Dataset) -> list[tuple[str, ...]]:
    return [sample.slices for samples in dataset.splits().values() for sample in samples]


EXPECTED = [(["east", "west", ""][n % 3],) for n in range(COUNT)]


def test_of_images(tmp_path: Path) -> None:
    manifest = images(tmp_path)
    config = Data(manifest=manifest, slices=("camera",))
    dataset = load_dataset(config)
    assert kept(dataset) == EXPECTED
    assert Dataset.from_json(json.loads(json.dumps(dataset.to_json()))) == dataset
    # It changes nothing that a network learns from, but the split has to be read again.
    plain = Data(manifest=manifest)
    assert load_dataset(plain).digest() == dataset.digest()
    assert source_digest(plain) != source_digest(config)


def test_of_texts(tmp_path: Path) -> None:
    records = [{**row, "text": f"text {row['number']}"} for row in rows()]
    path = written(tmp_path / "texts.csv", records)
    config = Data(task="text-classification", manifest=path, slices=("camera", "number"))
    assert kept(load_texts(config)) == [(*EXPECTED[n], str(n)) for n in range(COUNT)]


def test_of_tables_where_the_network_need_not_see_the_column(tmp_path: Path) -> None:
    path = written(tmp_path / "table.csv", [{**row, "age": str(3 * n)} for n, row in enumerate(rows())])
    config = Data(task="table-classification", manifest=path, slices=("camera",), ignore=("camera",))
    dataset = load_table(config)
    assert kept(dataset) == EXPECTED
    assert "camera" not in json.loads(str(dataset.train[0].raw))


@pytest.mark.parametrize(
    ("task", "load"),
    [("image-classification", load_dataset), ("text-classification", load_texts), ("table-classification", load_table)],
)
def test_a_column_that_is_not_there(task: str, load, tmp_path: Path) -> None:
    images(tmp_path)
    path = written(tmp_path / "all.csv", [{**row, "path": f"{row['number']}.png", "text": "x"} for row in rows()])
    with pytest.raises(DataError, match=r"column 'kamera'.*did you mean 'camera'"):
        load(Data(task=task, manifest=path, slices=("kamera",)))


def test_folders_have_no_columns(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in "ab":
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (4, 4), (len(split), ord(name), 0)).save(tmp_path / split / name / "0.png")
    with pytest.raises(DataError, match=r"data.slices names the column 'camera', and .*train has no columns"):
        load_dataset(Data(train=tmp_path / "train", test=tmp_path / "test", slices=("camera",)))


@pytest.mark.parametrize(("slices", "words"), [(("a", "a"), "'a' more than once"), (("class",), "looked at anyway")])
def test_columns_that_cannot_be_told_apart(slices: tuple[str, ...], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        Data(manifest=tmp_path / "m.csv", slices=slices)
