from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import imagenet
import numpy as np
import pytest
import zoo
import zoo_images
import zoo_text

from edgetl.errors import EdgetlError, SetupError, UnknownNameError


def test_settings_are_those_of_the_models_that_were_made_before() -> None:
    assert zoo._settings(zoo.ZOO["resnet18-digits"]) == {
        "kind": "Digits", "backbone": "timm:resnet18", "weights": "none", "size": 64, "epochs": 4, "lr": 0.001,
        "batch_size": 32, "weight_decay": 0.0001, "options": [],
    }  # fmt: skip
    assert zoo._settings(zoo.ZOO["minilm-reviews"]) == {
        "kind": "Reviews", "epochs": 1, "lr": 0.0001, "batch_size": 16, "weight_decay": 0.01,
    }  # fmt: skip


def test_a_seed_behind_the_name(tmp_path: Path) -> None:
    plain, other = zoo.spec_of("resnet18-digits"), zoo.spec_of("resnet18-digits@3")
    assert isinstance(other, zoo_images.Digits) and other == replace(plain, seed=3)
    assert zoo._settings(other) == {**zoo._settings(plain), "seed": 3}
    assert zoo.spec_of("resnet18-digits@0") == plain
    for name in ("resnet18-digits@x", "lite0-imagenet@1", "minilm-reviews@1", "resnet19@1"):
        with pytest.raises(UnknownNameError):
            zoo.load(name, tmp_path)


def test_settings_of_two_data_sets_differ() -> None:
    digits = zoo_images.Digits(backbone="timm:resnet18", epochs=1, lr=0.1)
    photos = zoo_images.Photos10(backbone="timm:resnet18", epochs=1, lr=0.1)
    assert zoo._settings(digits) != zoo._settings(photos)


def test_a_model_made_with_other_settings_is_not_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = zoo_images.Digits(backbone="timm:resnet18", epochs=1, lr=0.1)
    monkeypatch.setitem(zoo.ZOO, "small", spec)
    assert zoo.about("small", tmp_path) is None
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "about.json").write_text(json.dumps({"settings": zoo._settings(spec), "task": "a"}))
    assert zoo.about("small", tmp_path) is not None
    monkeypatch.setitem(zoo.ZOO, "small", replace(spec, epochs=2))
    assert zoo.about("small", tmp_path) is None


def test_an_unknown_model_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="no model 'resnet19'") as caught:
        zoo.load("resnet19", tmp_path)
    assert "resnet18-digits" in (caught.value.hint or "")


def test_no_photograph_is_in_both_calibration_and_test() -> None:
    calibration, test = set(imagenet.CALIBRATION_PHOTOGRAPHS), set(imagenet.TEST_PHOTOGRAPHS)
    assert not calibration & test
    for spec in (zoo.ZOO["lite0-imagenet"], zoo.ZOO["lite2-imagenet"]):
        assert isinstance(spec, zoo_images.ImageNet)
        assert not set(spec.calibration_photographs) & set(spec.test_photographs)


def test_crops_are_distinct_squares_and_the_same_every_time() -> None:
    pytest.importorskip("skimage", reason="pip install scikit-image")
    names = ("skimage/data/chelsea.png", "skimage/data/camera.png")
    crops = imagenet.crops(names, 8, 0)
    assert all(crop.width == crop.height and crop.mode == "RGB" for crop in crops)
    assert all(crop.width >= 0.4 * 300 - 1 for crop in crops)
    assert len({crop.tobytes() for crop in crops}) == 8
    assert [crop.tobytes() for crop in imagenet.crops(names, 8, 0)] == [crop.tobytes() for crop in crops]
    assert imagenet.crops(names, 8, 1)[0].tobytes() != crops[0].tobytes()


@pytest.mark.parametrize(
    ("name", "said"),
    [("no_such_package/a.png", "'no_such_package'"), ("numpy/no_such.png", "has no file numpy/no_such.png")],
)
def test_a_photograph_that_is_not_there_is_named(name: str, said: str) -> None:
    with pytest.raises(SetupError, match=said):
        imagenet.crops((name,), 1, 0)


def test_photos10_without_its_folder_says_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm", reason="pip install 'edgetl[train]'")
    monkeypatch.setattr(zoo_images, "PHOTOS10", tmp_path / "photos10")
    with pytest.raises(EdgetlError, match="no photographs at") as caught:
        zoo_images.trained(zoo_images.Photos10(backbone="timm:resnet18", epochs=1, lr=0.1), tmp_path)
    assert "shared/" in (caught.value.hint or "")


def test_moved_pictures_are_mirrored_only_where_that_is_asked_for() -> None:
    torch = pytest.importorskip("torch", reason="pip install 'edgetl[train]'")

    images = torch.zeros(64, 1, 32, 32)
    images[..., 16:] = 1.0  # the right half is bright
    for flips in (False, True):
        moved = zoo_images._moved(images, torch.Generator().manual_seed(0), flips=flips)
        mirrored = int((moved[..., :16].mean((1, 2, 3)) > moved[..., 16:].mean((1, 2, 3))).sum())
        assert mirrored == 0 if not flips else 16 < mirrored < 48


@pytest.mark.slow
def test_photos10_trains_and_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm", reason="pip install 'edgetl[train]'")
    if not zoo_images.PHOTOS10.is_dir():
        pytest.skip(f"there are no photographs at {zoo_images.PHOTOS10}")
    spec = zoo_images.Photos10(backbone="timm:test_efficientnet", size=32, epochs=1, lr=3e-3, batch_size=64)
    monkeypatch.setitem(zoo.ZOO, "small", spec)
    item = zoo.load("small", tmp_path)
    assert item.calibration["input"].shape == (300, 3, 32, 32) and item.test["input"].shape == (1000, 3, 32, 32)
    assert item.labels is not None and np.bincount(item.labels).tolist() == [100] * 10
    before = item.model.stat().st_mtime_ns
    assert zoo.load("small", tmp_path).model.stat().st_mtime_ns == before  # out of the cache


def test_minilm_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SetupError, match="'no_such_package'") as caught:
        zoo_text._package("no_such_package")
    assert caught.value.hint == "pip install no_such_package"
