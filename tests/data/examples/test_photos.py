from __future__ import annotations

import sys
import urllib.error
from collections import Counter
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from edgetl.config import load as load_config
from edgetl.data.examples import photos as example_photos
from edgetl.data.examples.photos import materialise_photos
from edgetl.data.manifest import read_manifest
from edgetl.errors import DataError, MissingExtraError, SetupError, StorageError

PHOTOS = Path(__file__).parents[4] / "shared" / "data" / "photos10"
needs_photos = pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"there are no photographs in {PHOTOS}")


def photos(folder: Path, classes: dict[str, int], first: int = 0) -> Path:
    """Folders of classes; every image has a grey of its own."""
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.new("L", (4, 4), first + number).save(folder / name / f"{number:02}.png")
        first += count
    return folder


def counts(manifest: Path) -> Counter[tuple[str | None, str | None]]:
    return Counter((row.split, row.label) for row in read_manifest(manifest))


@needs_photos
def test_train_and_val_of_the_shared_photographs(tmp_path: Path) -> None:
    found = counts(materialise_photos(tmp_path / "data", PHOTOS))
    assert {split for split, _ in found} == {"train", "test"} and len(found) == 20
    assert {found["train", name] for _, name in found} == {300} and {found["test", name] for _, name in found} == {100}


class TestSource:
    def test_a_quarter_of_every_class_is_test(self, tmp_path: Path) -> None:
        manifest = materialise_photos(tmp_path / "data", photos(tmp_path / "p", {"cat": 12, "dog": 7, "emu": 4}))
        assert counts(manifest) == {
            ("train", "cat"): 9,
            ("train", "dog"): 5,
            ("train", "emu"): 3,
            ("test", "cat"): 3,
            ("test", "dog"): 2,
            ("test", "emu"): 1,
        }

    def test_content_decides_and_names_do_not(self, tmp_path: Path) -> None:
        source = photos(tmp_path / "p", {"cat": 12, "dog": 8})
        first = materialise_photos(tmp_path / "a", source)
        tested = {row.path.read_bytes() for row in read_manifest(first) if row.split == "test"}
        for number, path in enumerate(sorted((source / "cat").iterdir(), reverse=True)):
            path.rename(path.with_name(f"x{number:02}.png"))
        second = materialise_photos(tmp_path / "b", source)
        assert {row.path.read_bytes() for row in read_manifest(second) if row.split == "test"} == tested

    def test_copies_stay_in_one_split(self, tmp_path: Path) -> None:
        source = photos(tmp_path / "p", {"cat": 12, "dog": 12})
        for path in list(source.rglob("*.png")):
            path.with_name(f"copy of {path.name}").write_bytes(path.read_bytes())
        rows = read_manifest(materialise_photos(tmp_path / "data", source))
        splits: dict[bytes, set[str | None]] = {}
        for row in rows:
            splits.setdefault(row.path.read_bytes(), set()).add(row.split)
        assert len(splits) == 24 and all(len(each) == 1 for each in splits.values())
        assert Counter(row.split for row in rows) == {"train": 36, "test": 12}

    @pytest.mark.parametrize(
        ("there", "expected"),
        [
            (("train", "val"), {"train": 4, "test": 2}),
            (("train", "test"), {"train": 4, "test": 2}),
            (("train", "val", "test"), {"train": 4, "val": 2, "test": 2}),
        ],
    )
    def test_folders_of_splits(self, tmp_path: Path, there: tuple[str, ...], expected: dict[str, int]) -> None:
        for number, split in enumerate(there):
            photos(tmp_path / "p" / split, dict.fromkeys(("a", "b"), 2 if split == "train" else 1), 10 * number)
        rows = read_manifest(materialise_photos(tmp_path / "data", tmp_path / "p"))
        assert Counter(row.split for row in rows) == expected

    def test_classes_may_have_the_names_of_splits(self, tmp_path: Path) -> None:
        manifest = materialise_photos(tmp_path / "data", photos(tmp_path / "p", {"train": 4, "bus": 4}))
        assert {name for _, name in counts(manifest)} == {"train", "bus"}

    def test_a_second_run_does_nothing_and_another_source_is_refused(self, tmp_path: Path) -> None:
        source = photos(tmp_path / "p", {"cat": 4, "dog": 4})
        manifest = materialise_photos(tmp_path / "data", source)
        before = manifest.stat().st_mtime_ns
        assert materialise_photos(tmp_path / "data", source) == manifest and manifest.stat().st_mtime_ns == before
        Image.new("L", (4, 4), 99).save(source / "cat" / "new.png")
        with pytest.raises(DataError, match="lists something else than these 9 images"):
            materialise_photos(tmp_path / "data", source)
        assert manifest.stat().st_mtime_ns == before

    @pytest.mark.parametrize(
        ("classes", "message"),
        [
            ({"cat": 4, "dog": 3}, "class 'dog' has 3 images"),
            ({"cat": 9}, "only one class, 'cat'"),
            ({"cat": 9, "dog": 0}, "class 'dog' has no image"),
            ({}, "is empty"),
        ],
    )
    def test_what_is_wrong_with_it_is_named(self, tmp_path: Path, classes: dict[str, int], message: str) -> None:
        source = photos(tmp_path / "p", classes)
        source.mkdir(exist_ok=True)
        with pytest.raises(DataError, match=message) as error:
            materialise_photos(tmp_path / "data", source)
        assert error.value.hint and not (tmp_path / "data").exists()

    def test_none_there(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"there is no folder .*nowhere"):
            materialise_photos(tmp_path / "data", tmp_path / "nowhere")

    def test_a_place_that_cannot_be_written(self, tmp_path: Path) -> None:
        source = photos(tmp_path / "p", {"cat": 4, "dog": 4})
        (tmp_path / "file").touch()
        with pytest.raises(StorageError, match="the photographs cannot be written"):
            materialise_photos(tmp_path / "file" / "data", source)


class TestDownload:
    """The download itself is another's; here it is answered by the test."""

    def answer(self, monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> list[bool]:
        calls = []
        names = [f"class {number}" for number in range(10)]

        def cifar(root: str, *, train: bool, download: bool) -> SimpleNamespace:
            calls.append(train)
            Path(root).mkdir(exist_ok=True)
            (Path(root) / "archive").write_bytes(b"1")
            if error is not None:
                raise error
            random = np.random.default_rng(int(train))
            labels = np.arange(200 if train else 100) % 10
            pixels = random.integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)
            pixels[:, 0, 0] = labels[:, None]
            return SimpleNamespace(data=pixels, targets=labels.tolist(), classes=names)

        monkeypatch.setattr("torchvision.datasets.CIFAR10", cifar)
        return calls

    def test_a_part_is_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("torchvision")
        calls = self.answer(monkeypatch)
        monkeypatch.setattr(example_photos, "_PER_CLASS", {"train": 6, "test": 2})
        manifest = materialise_photos(tmp_path / "data")
        found = counts(manifest)
        assert set(found.values()) == {6, 2} and len(found) == 20 and calls == [True, False]
        assert not (tmp_path / "data/download").exists()
        row = next(row for row in read_manifest(manifest) if row.label == "class 7")
        with Image.open(row.path) as image:
            assert image.mode == "RGB" and image.size == (32, 32) and image.getpixel((0, 0)) == (7, 7, 7)
        assert materialise_photos(tmp_path / "data") == manifest and len(calls) == 2

    @pytest.mark.parametrize("error", [urllib.error.URLError("no route"), RuntimeError("File not found or corrupted.")])
    def test_without_a_network_both_ways_are_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        pytest.importorskip("torchvision")
        self.answer(monkeypatch, error)
        with pytest.raises(SetupError, match="CIFAR-10 cannot be downloaded") as raised:
            materialise_photos(tmp_path / "data")
        assert "--source FOLDER" in (raised.value.hint or "") and raised.value.exit_code == 8
        assert list(tmp_path.iterdir()) == []

    def test_without_torchvision(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
        with pytest.raises(MissingExtraError) as error:
            materialise_photos(tmp_path / "data")
        assert error.value.hint == "pip install 'edgetl[train]'" and list(tmp_path.iterdir()) == []


def test_the_project_is_valid(tmp_path: Path) -> None:
    text = (files("edgetl") / "data" / "projects" / "photos.toml").read_text(encoding="utf-8")
    (tmp_path / "edgetl.toml").write_text(text, encoding="utf-8")
    config = load_config(tmp_path / "edgetl.toml")
    assert config.data.image_size == 128 and config.data.augment.flip == 0.5
