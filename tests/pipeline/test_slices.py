"""Columns of the manifest through a build: slices, and samples that belong together."""

from __future__ import annotations

import csv
import json

import pytest

pytestmark = pytest.mark.slow
CAMERA = {"box": "east", "cross": "west", "disc": ""}
"""Whose camera took a shape; of discs it is not known."""
CLIPPED = """\
schema = 1
description = "ranges that cut off what the network looks at"

[activations]
method = "percentile"
percentile = 51

[weights]
method = "minmax"
"""


def test_a_regression_of_a_slice_is_told_by_a_build(edgetl, variant, shapes):
    with (variant.folder / "manifest.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split", "camera"])
        for path in sorted(shapes.glob("*/*/*.png")):
            writer.writerow([path, path.parent.name, path.parent.parent.name, CAMERA[path.parent.name]])
    (variant.folder / "clipped.toml").write_text(CLIPPED, encoding="utf-8")
    folders = f'train = "{shapes}/train"\nval = "{shapes}/val"\ntest = "{shapes}/test"'
    variant.edit(
        (folders, 'manifest = "manifest.csv"\nslices = ["camera"]'),
        ("samples = 32", 'samples = 32\nrecipe = "./clipped.toml"'),
    )
    done = edgetl("build", variant.folder, "--target", "x86-64-cpu", "--json")
    assert done.code == 0, done.err  # the engine in float passes, and is shipped
    assert not done.made & {"finetune", "export", "calibrate", "reference"}, "a column changes nothing that is learned"
    reports = variant.bundle / "reports"
    engines = json.loads((reports / "parity.json").read_text(encoding="utf-8"))["engines"]
    slices = {
        name: {each["value"]: each for each in engine["slices"] if each["column"] == "camera"}
        for name, engine in engines.items()
    }
    clipped, exact = slices["x86-64-cpu int8"], slices["x86-64-cpu fp32"]
    assert set(clipped) == set(exact) == {"east", "west"}, "what is not known is no slice"
    assert all(each["decisions"] == 34 for found in (clipped, exact) for each in found.values())
    assert not any(each["regressed"] for each in exact.values())
    lost = {value for value, each in clipped.items() if each["regressed"]}
    assert lost, clipped
    for value in sorted(lost):
        assert clipped[value]["p_adjusted"] < 0.05 and clipped[value]["worse"] > clipped[value]["better"]
        words = f"camera {value} is worse than PyTorch: {clipped[value]['worse']} of 34 decisions lost"
        for name in ("report.md", "report.sarif", "codequality.json", "model-card.md"):
            assert words in (reports / name).read_text(encoding="utf-8"), name
        assert f"camera {value}" in (reports / "report.html").read_text(encoding="utf-8")


def test_samples_that_belong_together_count_as_one_through_a_build(edgetl, variant, shapes):
    with (variant.folder / "manifest.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split", "group"])
        for number, path in enumerate(sorted(shapes.glob("*/*/*.png"))):
            split = path.parent.parent.name
            writer.writerow([path, path.parent.name, split, f"{split} {number // 3}" if split == "test" else ""])
    folders = f'train = "{shapes}/train"\nval = "{shapes}/val"\ntest = "{shapes}/test"'
    variant.edit((folders, 'manifest = "manifest.csv"'))
    some = ("--target", "x86-64-cpu", "--set", "parity.max_drop=0.15")
    done = edgetl("build", variant.folder, *some)
    assert done.code == 0, done.err
    assert not done.made & {"finetune", "export", "reference"}, "a group changes nothing that is learned"
    reports = variant.bundle / "reports"
    document = json.loads((reports / "parity.json").read_text(encoding="utf-8"))
    engine = document["engines"]["x86-64-cpu fp32"]
    groups = engine["groups"]
    assert engine["samples"] / 3 <= groups < engine["samples"] / 2 and engine["outcome"] == "passed"
    together = f"{engine['samples']} test samples belong together in {groups} groups"
    assert f"{together}, of which each counts as one for parity" in done.err
    for name in ("report.md", "report.html", "model-card.md"):
        said = (reports / name).read_text(encoding="utf-8")
        assert f"belong together in {groups} groups" in said, name
    done = edgetl("build", variant.folder, *some[:-1], "parity.max_drop=0.03")
    done.failed(4, f"{together.replace(' belong together', '')} cannot show a drop below 3.00 points")
    done = edgetl("build", variant.folder, *some, "--set", "parity.sequential=true")
    done.failed(2, f"these {engine['samples']} belong together in {groups} groups")
