"""Odd images, odd names and fixed batches, through the whole route."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image


@pytest.mark.slow
def test_odd_images_and_class_names_go_through_the_whole_route(edgetl, make_project, shapes, tmp_path):
    data = shutil.copytree(shapes, tmp_path / "dätä of mine 🙂")
    name = 'bo\'x "q" <b> 🙂'
    for split in ("train", "val", "test"):
        (data / split / "box").rename(data / split / name)
    generator = np.random.default_rng(1)
    place = data / "train" / "disc"
    for file, shape in {
        "one.png": (1, 1, 3),
        "thin.png": (64, 1, 3),
        "wide.png": (1, 500, 3),
        "a.png": (9, 9, 4),
    }.items():
        Image.fromarray(generator.integers(0, 255, shape, dtype=np.uint8)).save(place / file)
    grey = Image.fromarray(generator.integers(0, 255, (20, 20), dtype=np.uint8))
    for mode, file in (("L", "grey.jpg"), ("P", "palette.png"), ("1", "bits.png"), ("CMYK", "cmyk.jpg")):
        grey.rotate(len(mode) * 20).convert(mode).save(place / file)
    Image.fromarray(generator.integers(0, 65535, (20, 20), dtype=np.uint16)).save(place / "sixteen bits.png")
    project = make_project(tmp_path / "pröject one", data)
    project.edit(
        ("epochs = 10", "epochs = 1"),
        ("max_drop = 0.05", "max_drop = 1.0"),
        ("min = 1, max = 8", "min = 4, max = 4"),  # and a batch that is fixed
        ("samples = 20", "samples = 20\nbatch_size = 4"),
        ("image_size = 32", "image_size = 39"),
    )
    done = edgetl("build", project.folder)
    assert done.code == 0, done.err
    project.assert_clean()
    assert edgetl("inspect", project.bundle, "--json").document["result"]["labels"] == sorted([name, "cross", "disc"])
    ran = edgetl("run", project.bundle, *sorted(place.iterdir())[-12:], "--json")
    assert ran.code == 0, ran.err
    assert len(ran.document["result"]["predictions"]) == 12
    checked = edgetl("verify", project.bundle, "--data", data / "val", "--json")
    assert checked.code == 0, checked.err
    page = (project.bundle / "reports" / "report.html").read_text(encoding="utf-8")
    assert "<b> 🙂" not in page  # escaped
