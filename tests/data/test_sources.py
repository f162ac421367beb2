"""The same images as folders, manifests, shards and saved data sets are the same data set."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgetl.config import Data
from edgetl.data.dataset import Dataset
from edgetl.data.load import load_dataset, load_samples, source_digest
from edgetl.data.loader import Samples, batches
from edgetl.data.manifest import read_manifest
from edgetl.errors import DataError
from edgetl.runtime.preprocessing import ImagePreprocessing

datasets = pytest.importorskip("datasets")
webdataset = pytest.importorskip("webdataset")

Make = Callable[[dict[str, dict[str, int]]], Path]
SPLITS = ("train", "test")


def files_of(root: Path, split: str) -> list[tuple[Path, str]]:
    """Images in the order in which a folder is read, with their labels."""
    return [(path, path.parent.name) for path in sorted((root / split).rglob("*.png"))]


def as_shards(root: Path) -> Data:
    for split in SPLITS:
        with webdataset.ShardWriter(str(root / f"{split}-%04d.tar"), maxcount=7, verbose=0) as writer:
            for number, (path, label) in enumerate(files_of(root, split)):
                writer.write({"__key__": f"{number:06}", "png": path.read_bytes(), "cls": label})
    return Data(train=root / "train-*.tar", test=root / "test-*.tar")


def as_saved(root: Path) -> Data:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    parts = {}
    for split in SPLITS:
        listed = files_of(root, split)
        values = {"image": [str(path) for path, _ in listed], "label": [label for _, label in listed]}
        parts[split] = datasets.Dataset.from_dict(values, features=features)
    datasets.DatasetDict(parts).save_to_disk(root / "saved")
    return Data(manifest=root / "saved")


def as_json_lines(root: Path) -> Data:
    rows = [
        {"path": str(path.relative_to(root)), "label": label, "split": split}
        for split in SPLITS
        for path, label in files_of(root, split)
    ]
    (root / "m.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return Data(manifest=root / "m.jsonl")


def test_every_source_gives_the_same_data_set(make_folders: Make) -> None:
    root = make_folders({"train": {"cat": 10, "dog": 12}, "test": {"cat": 4, "dog": 4}})
    configs = [Data(train=root / "train", test=root / "test"), as_shards(root), as_saved(root), as_json_lines(root)]
    found = [load_dataset(config) for config in configs]
    assert len({dataset.digest() for dataset in found}) == 1
    sources = [source_digest(config) for config in configs]
    assert len(set(sources)) == 3 and sources[0] == sources[3]  # the same files, named by a manifest
    for dataset in found:
        assert Dataset.from_json(json.loads(json.dumps(dataset.to_json()))) == dataset
    contract = ImagePreprocessing(height=8, width=8)
    arrays = [np.concatenate([x for x, _ in batches(Samples(dataset.train, contract), 5)]) for dataset in found]
    for other in arrays[1:]:
        np.testing.assert_array_equal(arrays[0], other)


def test_splits_from_different_sources(make_folders: Make) -> None:
    root = make_folders({"train": {"cat": 10, "dog": 12}, "test": {"cat": 4, "dog": 4}})
    shards, saved = as_shards(root), as_saved(root)
    plain = load_dataset(Data(train=root / "train", test=root / "test"))
    mixed = load_dataset(Data(train=shards.train, test=root / "saved/test"))
    assert mixed.digest() == plain.digest()
    assert Dataset.from_json(json.loads(json.dumps(mixed.to_json()))) == mixed
    assert {s.digest for s in load_samples(root / "saved/test")} == {
        s.digest for s in load_samples(shards.test or root)
    }
    assert saved.manifest is not None


def test_lists_of_labels_in_json_lines(tmp_path: Path) -> None:
    for name in ("1.png", "2.png", "3.png"):
        (tmp_path / name).touch()
    rows = [{"path": "1.png", "label": ["a", "b"]}, {"path": "2.png", "label": []}, {"path": "3.png", "label": 7}]
    path = tmp_path / "m.jsonl"
    path.write_text("\n".join(json.dumps({**row, "split": "train"}) for row in rows))
    assert [row.label for row in read_manifest(path, may_be_empty=("label",))] == ["a;b", None, "7"]
    with pytest.raises(
        DataError, match=r"2 rows are wrong:\n  line 1: label is \['a', 'b'\]: 2 classes.*\n  line 2: label is"
    ):
        read_manifest(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", "line 2: not valid JSON"),
        ("[1]", "line 2: not a JSON object"),
        ('{"path": ["1.png"], "label": "a", "split": "train"}', r'line 2: \["1.png"\] stands where a name should'),
        ('{"path": "1.png", "label": {"a": 1}, "split": "train"}', r'line 2: {"a": 1} stands where'),
        ('{"path": "0.png", "label": "a", "split": "train"}', r"line 2: duplicate path '0\.png', already on line 1"),
        ('{"path": "2.png", "label": "a", "split": "train"}', r"line 2: there is no file '2\.png'"),
        ('{"path": "1.png", "split": "train"}', "line 2: label is empty"),
        ('{"path": "1.png", "label": "a", "split": "tset"}', "line 2: unknown split 'tset'; did you mean 'test'?"),
    ],
)
def test_wrong_lines_of_json(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "0.png").touch()
    (tmp_path / "1.png").touch()
    path = tmp_path / "m.jsonl"
    path.write_text('{"path": "0.png", "label": "a", "split": "train"}\n' + line)
    with pytest.raises(DataError, match=message):
        read_manifest(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "is empty: it has no rows"), ("{", "line 1: not valid JSON"), ('{"label": 1}', "column 'path' is missing")],
)
def test_json_lines_without_columns(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_manifest(path)
