from __future__ import annotations

import os
import urllib.error
from collections import Counter
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from edgetl.config import load as load_config
from edgetl.data.examples import faces as example_faces
from edgetl.data.examples.faces import materialise_faces
from edgetl.data.labels import identities
from edgetl.data.manifest import read_manifest
from edgetl.errors import DataError, MissingExtraError, SetupError

FACES = Path(__file__).parents[4] / "shared" / "data" / "faces"
needs_faces = pytest.mark.skipif(not FACES.is_dir(), reason=f"there are no portraits in {FACES}")


def people(folder: Path, images: dict[str, int]) -> Path:
    for person, count in images.items():
        (folder / person).mkdir(parents=True)
        for number in range(count):
            Image.new("L", (8, 8), number).save(folder / person / f"{number}.png")
    return folder


def splits_of(manifest: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for row in read_manifest(manifest):
        found.setdefault(str(row.split), set()).add(str(row.label))
    return found


@needs_faces
def test_forty_people(tmp_path: Path) -> None:
    manifest = materialise_faces(tmp_path / "data", FACES)
    rows = read_manifest(manifest)
    assert Counter(row.split for row in rows) == {"train": 240, "val": 60, "test": 100}
    names, _ = identities({split: [row for row in rows if row.split == split] for split in ("train", "val", "test")})
    assert len(names) == 40
    assert all(row.path.parent.parent == FACES for row in rows) and [path.name for path in tmp_path.rglob("*.*")] == [
        "manifest.csv"
    ]


class TestSource:
    def test_the_names_alone_decide(self, tmp_path: Path) -> None:
        names = {f"person {number}": 2 for number in range(11)}
        first = materialise_faces(tmp_path / "a", people(tmp_path / "one", names))
        second = materialise_faces(tmp_path / "b", people(tmp_path / "two", dict(reversed(names.items()))))
        assert splits_of(first) == splits_of(second)
        assert splits_of(first)["test"] == {"person 7", "person 8", "person 9"}  # "person 10" comes behind "person 1"
        assert {split: len(each) for split, each in splits_of(first).items()} == {"train": 6, "val": 2, "test": 3}

    def test_six_people_are_enough(self, tmp_path: Path) -> None:
        manifest = materialise_faces(tmp_path / "data", people(tmp_path / "p", dict.fromkeys("abcdef", 3)))
        assert all(len(each) == 2 for each in splits_of(manifest).values())

    def test_a_relative_source_is_found_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        people(tmp_path / "p", dict.fromkeys("abcdef", 2))
        monkeypatch.chdir(tmp_path)
        manifest = materialise_faces(Path("data"), Path("p"))
        monkeypatch.chdir("/")
        assert manifest.is_absolute() and len(read_manifest(manifest)) == 12

    def test_a_second_run_does_nothing_and_another_source_is_refused(self, tmp_path: Path) -> None:
        source = people(tmp_path / "p", dict.fromkeys("abcdef", 2))
        manifest = materialise_faces(tmp_path / "data", source)
        before = manifest.stat().st_mtime_ns
        assert materialise_faces(tmp_path / "data", source) == manifest and manifest.stat().st_mtime_ns == before
        other = people(tmp_path / "q", dict.fromkeys("abcdef", 2))
        with pytest.raises(DataError, match="lists something else than these 12 images") as error:
            materialise_faces(tmp_path / "data", other)
        assert error.value.hint and manifest.stat().st_mtime_ns == before

    @pytest.mark.parametrize(
        ("images", "message"),
        [
            (dict.fromkeys("abcde", 2), "the faces of 5 people"),
            ({**dict.fromkeys("abcdef", 2), "g": 1}, "there is one image of 'g'"),
            ({**dict.fromkeys("abcdef", 2), "g": 0}, "class 'g' has no image"),
            ({}, "is empty"),
        ],
    )
    def test_what_is_wrong_with_it_is_named(self, tmp_path: Path, images: dict[str, int], message: str) -> None:
        source = people(tmp_path / "p", images)
        source.mkdir(exist_ok=True)
        with pytest.raises(DataError, match=message) as error:
            materialise_faces(tmp_path / "data", source)
        assert error.value.hint and not (tmp_path / "data").exists()

    def test_none_there(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"there is no folder .*nowhere"):
            materialise_faces(tmp_path / "data", tmp_path / "nowhere")
        with pytest.raises(DataError, match="neither a folder"):
            (tmp_path / "file").touch()
            materialise_faces(tmp_path / "data", tmp_path / "file")


class TestDownload:
    """The download itself is another's; here it is answered by the test."""

    def answer(self, monkeypatch: pytest.MonkeyPatch, result: object) -> list[str]:
        homes = []

        def fetch(*, data_home: str) -> object:
            homes.append(data_home)
            os.makedirs(data_home)  # noqa: PTH103
            if isinstance(result, Exception):
                raise result
            return result

        monkeypatch.setattr(
            example_faces.importlib, "import_module", lambda name: SimpleNamespace(fetch_olivetti_faces=fetch)
        )
        return homes

    def test_images_are_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        images = (np.arange(400, dtype=np.float32) % 256 / 255)[:, None, None] * np.ones((1, 64, 64), dtype=np.float32)
        homes = self.answer(monkeypatch, SimpleNamespace(images=images, target=np.repeat(np.arange(40), 10)))
        manifest = materialise_faces(tmp_path / "data")
        rows = read_manifest(manifest)
        assert Counter(row.split for row in rows) == {"train": 240, "val": 60, "test": 100} and len(homes) == 1
        with Image.open(tmp_path / "data/s12/03.png") as image:
            assert image.mode == "L" and image.size == (64, 64) and image.getextrema() == (112, 112)
        assert not Path(homes[0]).exists() and not (tmp_path / "data/download").exists()
        assert materialise_faces(tmp_path / "data") == manifest and len(homes) == 1
        (tmp_path / "data/s12/03.png").unlink()
        with pytest.raises(DataError, match=r"there is no file 's12/03\.png'"):
            materialise_faces(tmp_path / "data")

    @pytest.mark.parametrize(
        "error", [urllib.error.URLError("no route"), OSError("an SHA256 checksum differs"), ValueError("not a file")]
    )
    def test_without_a_network_both_ways_are_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        self.answer(monkeypatch, error)
        with pytest.raises(SetupError, match="the Olivetti faces cannot be downloaded") as raised:
            materialise_faces(tmp_path / "data")
        assert "--source FOLDER" in (raised.value.hint or "") and raised.value.exit_code == 8
        assert list(tmp_path.iterdir()) == []

    def test_other_faces_are_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answer(monkeypatch, SimpleNamespace(images=np.zeros((400, 32, 32)), target=np.repeat(np.arange(40), 10)))
        with pytest.raises(DataError, match="other Olivetti faces"):
            materialise_faces(tmp_path / "data")
        assert list(tmp_path.iterdir()) == []

    def test_without_scikit_learn(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing(name: str) -> None:
            raise ModuleNotFoundError(name)

        monkeypatch.setattr(example_faces.importlib, "import_module", missing)
        with pytest.raises(MissingExtraError) as error:
            materialise_faces(tmp_path / "data")
        assert "scikit-learn" in error.value.message and list(tmp_path.iterdir()) == []


def test_the_project_is_valid(tmp_path: Path) -> None:
    text = (files("edgetl") / "data" / "projects" / "faces.toml").read_text(encoding="utf-8")
    (tmp_path / "edgetl.toml").write_text(text, encoding="utf-8")
    config = load_config(tmp_path / "edgetl.toml")
    assert config.data.task == "face-verification" and config.model.embedding == 512
