from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgetl.errors import ModelError
from edgetl.quantize import statistics
from edgetl.quantize.exactsum import ExactSum
from edgetl.quantize.sketch import Sketch
from edgetl.quantize.statistics import Statistics

ARRAYS, FACTS = "calibration.safetensors", "calibration.json"


def found() -> Statistics:
    random = np.random.default_rng(0)
    sketches = {
        "image": Sketch.of(random.normal(size=(5, 3, 4, 4)).astype(np.float32)),
        "tokens/with a name: ü": Sketch.of(random.normal(size=(5, 7, 2)).astype(np.float32) * 1e-30, channel_axis=2),
        "zeros": Sketch.of(np.zeros((5, 1), np.float32)),
        "extremes": Sketch.of(np.asarray([[-3.4e38, 3.4e38, 1e-45]], np.float32), channel_axis=None),
    }
    return Statistics(sketches=sketches, samples=5, source={"model": "ab12", "data": ["x", 3]})


def test_everything_is_read_back(tmp_path: Path) -> None:
    written = found()
    statistics.save(written, tmp_path)
    back = statistics.load(tmp_path)
    assert (back.samples, back.source, list(back.sketches)) == (5, written.source, list(written.sketches))
    for name, sketch in written.sketches.items():
        other = back.sketches[name]
        assert np.array_equal(other.counts, sketch.counts) and other.counts.dtype == np.int64
        assert np.array_equal(other.channel_low, sketch.channel_low)
        assert np.array_equal(other.channel_high, sketch.channel_high)
        assert np.array_equal(other.sample_lows, sketch.sample_lows)
        assert np.array_equal(other.sample_highs, sketch.sample_highs)
        for mine, its in ((sketch.channel_sums, other.channel_sums), (sketch.channel_squares, other.channel_squares)):
            assert all(np.array_equal(a, b) for a, b in zip(mine.rows(), its.rows(), strict=True))
        assert other.merge(sketch).total == 2 * sketch.total


def test_the_same_statistics_are_the_same_bytes(tmp_path: Path) -> None:
    """Or a key over the artifact would change with the order in which samples came."""
    folders = [tmp_path / "one", tmp_path / "two"]
    random = np.random.default_rng(1)
    samples = random.normal(size=(9, 4, 3)).astype(np.float32)
    for folder, part in zip(folders, (samples, samples[::-1]), strict=True):
        folder.mkdir()
        sketch = Sketch.of(part[:2]).merge(Sketch.of(part[2:]))
        statistics.save(Statistics(sketches={"a": sketch}, samples=9), folder)
    for name in (ARRAYS, FACTS):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_the_document_can_be_read_by_people_and_programs(tmp_path: Path) -> None:
    statistics.save(found(), tmp_path)
    document = json.loads((tmp_path / FACTS).read_text(encoding="utf-8"))
    assert document["schema"] == statistics.SCHEMA and document["samples"] == 5
    facts = document["activations"][0]
    assert facts["name"] == "image" and facts["values"] == 5 * 3 * 16 and facts["channels"] == 3
    assert facts["low"] == found().sketches["image"].low


def test_a_pooled_sketch_is_saved_too(tmp_path: Path) -> None:
    one = found().sketches["image"]
    statistics.save(Statistics(sketches={"a": one.pooled(one)}, samples=1), tmp_path)
    back = statistics.load(tmp_path).sketches["a"]
    assert back.total == 2 * one.total and back.channel_sums.values().tolist() == ExactSum(size=1).values().tolist()


def changed(key: str, value: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        document = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        document[key] = value
        (folder / FACTS).write_text(json.dumps(document), encoding="utf-8")

    return change


def without(key: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        document = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        del document[key]
        (folder / FACTS).write_text(json.dumps(document), encoding="utf-8")

    return change


BREAKS: dict[str, Callable[[Path], object]] = {
    "no arrays": lambda folder: (folder / ARRAYS).unlink(),
    "no document": lambda folder: (folder / FACTS).unlink(),
    "empty arrays": lambda folder: (folder / ARRAYS).write_bytes(b""),
    "cut arrays": lambda folder: (folder / ARRAYS).write_bytes((folder / ARRAYS).read_bytes()[:200]),
    "garbage arrays": lambda folder: (folder / ARRAYS).write_bytes(b"\xff" * 500),
    "empty document": lambda folder: (folder / FACTS).write_bytes(b""),
    "binary document": lambda folder: (folder / FACTS).write_bytes(b"\xff\xfe\x00"),
    "a list": lambda folder: (folder / FACTS).write_text("[]"),
    "a number": lambda folder: (folder / FACTS).write_text("3"),
    "another schema": changed("schema", statistics.SCHEMA + 1),
    "no schema": without("schema"),
    "no samples": without("samples"),
    "more activations than arrays": changed("activations", [{"name": str(index)} for index in range(9)]),
    "activations without names": changed("activations", [{}]),
    "activations of another kind": changed("activations", "abc"),
    "no activations at all": changed("activations", None),
    "unhashable names": changed("activations", [{"name": []}]),
}


@pytest.mark.parametrize("name", BREAKS)
def test_broken_files_are_an_error_of_ours(name: str, tmp_path: Path) -> None:
    statistics.save(found(), tmp_path)
    BREAKS[name](tmp_path)
    with pytest.raises(ModelError, match="holds no calibration that this edgetl can read"):
        statistics.load(tmp_path)


def test_arrays_that_do_not_belong_together_are_an_error_of_ours(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    statistics.save(found(), tmp_path)
    whole = load_file(tmp_path / ARRAYS)
    for key, array in {
        "0.counts": np.ones(3, np.int64),
        "0.sums.places": np.zeros(50, np.int64),
        "0.sums.digits": np.zeros(4, np.int64),
        "0.buckets": whole["0.buckets"].astype(np.float32),
    }.items():
        save_file({**whole, key: array}, tmp_path / ARRAYS)
        with pytest.raises(ModelError, match="holds no calibration"):
            statistics.load(tmp_path)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no calibration") as caught:
        statistics.load(tmp_path / "absent")
    assert "edgetl calibrate" in str(caught.value.hint)
