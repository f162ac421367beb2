"""What can be timed, and what it is fed with."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from edgetl.benchmark.feeds import Feeds, described, make_feeds, other_feeds
from edgetl.benchmark.things import Thing, checkpoint_thing, engine_thing, open_thing, thing_at
from edgetl.errors import BundleError, ModelError, UsageError
from edgetl.runtime.nvidia import this_machine
from edgetl.runtime.runner import TensorSpec

IMAGE = TensorSpec(name="x", shape=("batch", 3, "h", "w"), dtype="float32")
TOKENS = TensorSpec(name="ids", shape=("batch", "length"), dtype="int64")


def engine_folder(folder: Path, **record: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    values = {"schema": 1, "backend": "null", "provider": "none", "precision": "fp32", "status": "ready",
              "files": ["null.json"], "versions": {}, "options": {}, "note": "", **record}  # fmt: skip
    (folder / "engine.json").write_text(json.dumps(values), encoding="utf-8")
    ports = {"inputs": [{"name": "x", "shape": ["batch", 4], "dtype": "float32"}],
             "outputs": [{"name": "y", "shape": ["batch", 2], "dtype": "float32"}]}  # fmt: skip
    (folder / "null.json").write_text(json.dumps(ports), encoding="utf-8")
    return folder


# --- things ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "opener"), [("m.onnx", "onnxruntime"), ("m.xml", "openvino"), ("m.engine", "tensorrt")]
)
def test_a_file_is_opened_by_its_ending(tmp_path: Path, name: str, opener: str) -> None:
    (tmp_path / name).touch()
    found = thing_at(tmp_path / name)
    assert (found.opener, found.path, found.name) == (opener, (tmp_path / name).resolve(), str(tmp_path / name))
    assert found.imports[0] == "numpy"
    assert Thing.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_a_relative_path_is_made_absolute_because_processes_work_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.onnx").touch()
    monkeypatch.chdir(tmp_path)
    found = thing_at(Path("m.onnx"))
    assert found.path.is_absolute() and found.name == "m.onnx"


def test_an_engines_folder_and_a_checkpoint(tmp_path: Path) -> None:
    folder = engine_folder(tmp_path / "engine")
    found = thing_at(folder)
    assert (found.opener, found.imports) == ("engine", ("numpy", "edgetl.backends.null"))
    with open_thing(found, threads=1) as runner:
        assert [spec.name for spec in runner.inputs] == ["x"]
    place = tmp_path / "checkpoint"
    place.mkdir()
    (place / "deploy.json").write_text('{"backbone": "timm:resnet18"}', encoding="utf-8")
    assert thing_at(place).imports == ("numpy", "torch", "safetensors.torch", "edgetl.backends.torch", "timm")


def test_a_bundles_engine_is_chosen_by_target_and_precision(built: object) -> None:
    bundle: Path = built.bundle  # type: ignore[attr-defined]
    found = thing_at(bundle, target="intel-cpu")
    assert found.path.parent.name == "intel-cpu"
    assert found.imports[1] == "openvino"
    assert thing_at(bundle).path.parent.parent.name == "engines"
    assert re.fullmatch(r"intel-cpu (int8|fp32)", found.engine)
    elsewhere = thing_at(bundle, target="rtx-pc")
    if not this_machine().gpus:
        assert elsewhere.engine.startswith("rtx-pc fp16, which did not run where the bundle was built (this machine ")
    assert Thing.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_what_cannot_be_timed(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    for path in (tmp_path / "notes.txt", tmp_path):
        with pytest.raises(UsageError, match="neither a bundle nor a file ending"):
            thing_at(path)
    with pytest.raises(UsageError, match="there is no nowhere"):
        thing_at(Path("nowhere.onnx"))
    (tmp_path / "engine.json").write_text("[]", encoding="utf-8")
    with pytest.raises(BundleError, match="holds no engine"):
        engine_thing(tmp_path, name="e")
    with pytest.raises(ModelError, match="not a checkpoint"):
        checkpoint_thing(tmp_path, name="c")


def test_links_that_point_at_each_other_are_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(UsageError, match=r"loop cannot be opened|there is no .*loop"):  # as Python's version has it
        thing_at(tmp_path / "loop")


def test_an_input_of_strings_is_not_made_up() -> None:
    with pytest.raises(UsageError, match=r"the input 'x' of m takes tensor\(string\), and only numbers") as caught:
        make_feeds(Feeds(), [TensorSpec(name="x", shape=("batch",), dtype="tensor(string)")], "m")
    assert caught.value.hint


def test_an_unknown_backend_is_refused_where_it_is_opened(tmp_path: Path) -> None:
    thing = engine_thing(engine_folder(tmp_path / "e", backend="magic"), name="e")
    with pytest.raises(BundleError, match="cannot open engines of 'magic'"):
        open_thing(thing, threads=1)


# --- feeds -----------------------------------------------------------------------------------------------------------


def test_random_feeds_have_the_inputs_shapes_and_dtypes() -> None:
    made = make_feeds(Feeds(batch_size=2, size=8), [IMAGE, TOKENS], "m")
    assert described(made) == ("x float32[2, 3, 8, 8]", "ids int64[2, 8]")
    again = make_feeds(Feeds(batch_size=2, size=8), [IMAGE, TOKENS], "m")
    assert all(np.array_equal(made[name], again[name]) for name in made)
    assert not made["ids"].any()


def test_a_dynamic_dimension_needs_a_size() -> None:
    with pytest.raises(UsageError, match="input 'x' of m has the dynamic dimension 'h'") as caught:
        make_feeds(Feeds(), [IMAGE], "m")
    assert caught.value.hint == "--size 224"


def test_a_file_feeds_the_one_input(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.save(tmp_path / "a.npy", array)
    feeds = Feeds.from_json(json.loads(json.dumps(Feeds(file=tmp_path / "a.npy").to_json())))
    assert np.array_equal(make_feeds(feeds, [IMAGE], "m")["x"], array)
    with pytest.raises(UsageError, match="cannot feed the 2 inputs"):
        make_feeds(feeds, [IMAGE, TOKENS], "m")


def test_a_file_of_arrays_feeds_every_input_by_name(tmp_path: Path) -> None:
    arrays = {"x": np.ones((1, 3, 2, 2), np.float32), "ids": np.array([[4, 2]])}
    np.savez(tmp_path / "a.npz", **arrays)
    made = make_feeds(Feeds(file=tmp_path / "a.npz"), [IMAGE, TOKENS], "m")
    assert set(made) == set(arrays) and np.array_equal(made["ids"], arrays["ids"])


def test_other_feeds_differ_and_keep_shape_dtype_and_known_identifiers() -> None:
    feeds = {"f": np.ones((1, 2), np.float32), "ids": np.array([[5, 7, 9]]), "same": np.zeros((1, 3), np.int64),
             "flag": np.array([[True, False]])}  # fmt: skip
    made = other_feeds(feeds)  # type: ignore[arg-type]
    for name, array in feeds.items():
        assert (made[name].shape, made[name].dtype) == (array.shape, array.dtype)
        assert not np.array_equal(made[name], array)
    assert sorted(made["ids"][0].tolist()) == [5, 7, 9]
