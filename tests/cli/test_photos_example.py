"""The example of photographs by the commands of docs/images.md, from a folder to a bundle that names a photograph."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

PHOTOS = Path(__file__).parents[3] / "shared" / "data" / "photos10"
SMALLER = {
    "data.image_size": "64",
    "finetune.phases": '[{ train = "head", epochs = 8, lr = 1e-3, views = 2 }, { train = "all", epochs = 1 }]',
    "finetune.deterministic": "true",  # no engines are timed for the features
    "quantize.samples": "64",
    "parity.max_drop": "0.2",
    "bench.samples": "20",
    "bench.processes": "1",
    "bench.roofline": "false",
}
"""What is less than in the example's configuration; all else is as `edgetl init` writes it."""


@pytest.mark.slow
@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"there are no photographs in {PHOTOS}")
def test_from_a_folder_of_photographs_to_a_bundle(edgetl, tmp_path):
    for split, count in (("train", 30), ("val", 25)):  # init takes val as what it is tested on
        for label in ("airplane", "frog", "ship"):
            place = tmp_path / "source" / split / label
            place.mkdir(parents=True)
            for photo in sorted((PHOTOS / split / label).iterdir())[:count]:
                shutil.copy(photo, place)
    folder = tmp_path / "photos"
    assert edgetl("init", folder, "--example", "photos", "--source", tmp_path / "source").code == 0

    own = [part for name, value in SMALLER.items() for part in ("--set", f"{name}={value}")]
    done = edgetl("build", folder, "--target", "x86-64-cpu", *own, "--json")
    assert done.code == 0, done.err
    found = done.document["result"]
    assert [phase["train"] for phase in found["phases"]] == ["head", "all"]
    parities = {engine["precision"]: engine["parity"] for engine in found["engines"]}
    assert set(parities) == {"int8", "fp32"} and all(parity["passed"] for parity in parities.values())
    assert all(parity["metric"] == "top1" and parity["samples"] == 75 for parity in parities.values())
    assert parities["fp32"]["score_reference"] > 0.6

    named = edgetl("run", found["bundle"], sorted((tmp_path / "source" / "val" / "ship").iterdir())[0])
    assert named.code == 0 and {label for label in ("airplane", "frog", "ship") if label in named.out}
