"""A project whose images stand in shards, through the whole route; and the same images as a saved data set."""

from __future__ import annotations

import json

import pytest

webdataset = pytest.importorskip("webdataset")
datasets = pytest.importorskip("datasets")


@pytest.fixture(scope="module")
def sources(shapes, tmp_path_factory):
    """Shards of every split, and a saved data set, in the order of the folders."""
    folder = tmp_path_factory.mktemp("sources")
    parts = {}
    for split in ("train", "val", "test"):
        files = sorted((shapes / split).rglob("*.png"))
        with webdataset.ShardWriter(str(folder / f"{split}-%03d.tar"), maxcount=50, verbose=0) as writer:
            for path in files:
                writer.write(
                    {"__key__": f"{path.parent.name}/{path.stem}", "png": path.read_bytes(), "cls": path.parent.name}
                )
        features = datasets.Features(
            {"image": datasets.Image(), "label": datasets.ClassLabel(names=["box", "cross", "disc"])}
        )
        values = {"image": [str(path) for path in files], "label": [path.parent.name for path in files]}
        parts[split] = datasets.Dataset.from_dict(values, features=features)
    datasets.DatasetDict(parts).save_to_disk(folder / "saved")
    return folder


def test_a_build_from_shards_and_the_same_from_a_saved_data_set(edgetl, make_project, shapes, sources, tmp_path):
    project = make_project(tmp_path / "project")
    project.edit(
        (f'train = "{shapes}/train"', f'train = "{sources}/train-{{000..002}}.tar"'),
        (f'val = "{shapes}/val"', f'val = "{sources}/val-*.tar"'),
        (f'test = "{shapes}/test"', f'test = "{sources}/test-*.tar"'),
        ("epochs = 10", "epochs = 1"),
        ("batch_size = 16", "batch_size = 16\nworkers = 2"),
        ("max_drop = 0.05", "max_drop = 1.0"),
        ("samples = 32", f'samples = 32\ndata = "{sources}/train-000.tar"'),
    )
    done = edgetl("build", project.folder, "--target", "x86-64-cpu", "--json")
    assert done.code == 0, done.err
    project.assert_clean()
    manifest = json.loads((project.bundle / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["labels"] == ["box", "cross", "disc"]
    assert len(list((project.bundle / "golden").glob("*.png"))) == 8
    checked = edgetl("verify", project.bundle, "--data", sources / "val-000.tar", "--json")
    assert checked.code == 0, checked.err
    same = edgetl("verify", project.bundle, "--data", sources / "saved/val", "--json")
    assert same.code == 0, same.err
    assert [engine["score"] for engine in same.document["result"]["engines"]] == [
        engine["score"] for engine in checked.document["result"]["engines"]
    ]
    text = project.config.read_text(encoding="utf-8")
    kept = [line for line in text.splitlines() if not line.startswith(("train = ", "val = ", "test = "))]
    kept.insert(kept.index("[data]") + 1, f'manifest = "{sources}/saved"')
    project.config.write_text("\n".join(kept), encoding="utf-8")
    again = edgetl("train", project.folder)
    assert again.code == 0, again.err
    assert again.made == {"data"}, again.err  # the pixels, labels and order are the same: nothing is trained again


def test_a_broken_shard_ends_with_the_code_of_data(edgetl, make_project, shapes, sources, tmp_path):
    whole = (sources / "val-000.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2])
    project = make_project(tmp_path / "project")
    project.edit((f'val = "{shapes}/val"', f'val = "{tmp_path}/cut.tar"'))
    edgetl("train", project.folder).failed(3, f"{tmp_path}/cut.tar is cut", hint="copy it again")
    project.edit((f'val = "{tmp_path}/cut.tar"', f'val = "{tmp_path}/val-*.tar"'))
    edgetl("train", project.folder).failed(3, f"no shard matches {tmp_path}/val-*.tar", hint=str(tmp_path))
