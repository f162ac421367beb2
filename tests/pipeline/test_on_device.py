"""`edgetl compile BUNDLE`: refused on a machine that is no Jetson, and to the end for an engine that can be made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from edgetl.bundle import sign
from edgetl.bundle.write import engine_digest, seal


@pytest.fixture
def waiting(built, tmp_path: Path) -> Path:  # type: ignore[no-untyped-def]
    """A bundle whose ONNX Runtime engine waits for its device: this machine."""
    folder = tmp_path / "waiting-1.0.0"
    shutil.copytree(built.bundle, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    chosen = next(entry for entry in manifest["engines"] if entry["target"] == "x86-64-cpu")
    record_path = folder / chosen["folder"] / "engine.json"
    record = json.loads(record_path.read_text())
    for part in (chosen, record):
        part.update(status="build-on-device", note="waits")
    record_path.write_text(json.dumps(record))
    chosen["files_sha256"] = engine_digest(record_path.parent)
    for name in ("manifest.json", "signature.json"):
        (folder / name).unlink()
    key = tmp_path / "key.pem"
    sign.make_key(key)
    seal(folder, {name: value for name, value in manifest.items() if name not in ("schema", "files")}, key)
    return folder


def test_the_engine_is_made_in_a_new_signed_bundle(edgetl, waiting: Path, shapes: Path) -> None:  # type: ignore[no-untyped-def]
    before = {path: path.read_bytes() for path in waiting.rglob("*") if path.is_file()}
    done = edgetl("compile", waiting, "--target", "x86-64-cpu", "--json")
    assert done.code == 0, done.err
    result = done.document["result"]
    made = Path(result["bundle"])
    assert made == waiting.with_name("waiting-1.0.0-x86-64-cpu")
    manifest = json.loads((made / "manifest.json").read_text())
    entry = next(item for item in manifest["engines"] if item["target"] == "x86-64-cpu")
    assert entry["status"] == "ready" and manifest["provenance"]["built_from_sha256"]
    checked = next(item for item in result["checked"]["engines"] if item["name"].startswith("x86-64-cpu"))
    assert checked["golden"] > 0 and checked["agreeing"] == checked["golden"]
    assert edgetl("verify", made).code == 0
    image = next(iter(sorted(shapes.rglob("*.png"))))
    assert edgetl("run", made, image, "--target", "x86-64-cpu").code == 0
    assert {path: path.read_bytes() for path in waiting.rglob("*") if path.is_file()} == before


def test_a_new_bundle_is_signed_by_the_key_that_signs_builds(edgetl, waiting: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    key, public, out = tmp_path / "release.pem", tmp_path / "release.pub.pem", tmp_path / "out"
    sign.make_key(key)
    mine = {"EDGETL_BUNDLE_KEY": str(key)}
    done = edgetl("compile", waiting, "--target", "x86-64-cpu", "-o", out, env=mine)
    assert done.code == 0, done.err
    for verb, *more in (("verify",), ("inspect",), ("report",), ("bench", "--stages", "--threads", "1")):
        done = edgetl(verb, out, "--key", public, *more)
        assert done.code == 0, done.err
        edgetl(verb, out, "--key", tmp_path / "key.pub.pem", *more).failed(7, "not by the key")
    other = {"EDGETL_BUNDLE_KEY": str(public)}
    done = edgetl("compile", waiting, "-o", tmp_path / "none", env=other)
    done.failed(2, "bundle.key: ", "release.pub.pem is not a private key", hint="openssl genpkey")
    assert not (tmp_path / "none").exists()


def test_options_of_projects_and_of_bundles_are_told_apart(edgetl, waiting: Path, variant) -> None:  # type: ignore[no-untyped-def]
    edgetl("compile", waiting, "--set", "finetune.seed=1").failed(2, "--set", "is a bundle")
    edgetl("compile", waiting, "--force", "compile").failed(2, "--force", "is a bundle")
    edgetl("compile", variant.folder, "--key", "key.pem").failed(2, "--key", "is no bundle")
    edgetl("compile", variant.folder, "-o", "out").failed(2, "--output", "is no bundle")


def test_what_cannot_be_made_here_leaves_nothing(edgetl, built, waiting: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    output = tmp_path / "out"
    edgetl("compile", built.bundle, "--target", "jetson-orin-nano", "-o", output).failed(6, "is not the device")
    edgetl("compile", waiting, "--target", "rtx-pc", "-o", output).failed(2, "it waits for")
    edgetl("compile", waiting, "--target", "no-such", "-o", output).failed(2, "no-such")
    edgetl("compile", waiting, "-o", waiting).failed(2, "is the bundle itself")
    edgetl("compile", waiting, "-o", "/proc/x").failed(8, "cannot write to /proc: no file or folder can be made there")
    edgetl("compile", waiting, "-o", tmp_path).failed(8, "is there and is not a bundle", hint="another -o")
    assert not output.exists()


def test_an_engine_that_was_never_measured_must_still_answer_the_golden_inputs(  # type: ignore[no-untyped-def]
    edgetl, waiting: Path, tmp_path: Path
) -> None:
    manifest = json.loads((waiting / "manifest.json").read_text())
    for entry in manifest["engines"]:
        if entry["target"] == "x86-64-cpu":
            entry["parity"] = {}
    with np.load(waiting / "golden" / "golden.npz") as arrays:
        golden = dict(arrays)
    golden["outputs"] = -golden["outputs"]
    np.savez(waiting / "golden" / "golden.npz", **golden)
    for name in ("manifest.json", "signature.json"):
        (waiting / name).unlink()
    kept = {name: value for name, value in manifest.items() if name not in ("schema", "files")}
    seal(waiting, kept, tmp_path / "key.pem")
    edgetl("compile", waiting, "--target", "x86-64-cpu", "-o", tmp_path / "out").failed(4, "golden inputs")
    assert not (tmp_path / "out").exists()


def test_of_an_engine_that_fails_it_is_told_where(edgetl, waiting: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """It said to type `edgetl verify BUNDLE --layers`, of a bundle that was not kept."""
    onnx = pytest.importorskip("onnx")
    (path,) = (waiting / "engines" / "x86-64-cpu").glob("*/model.onnx")  # of the precision that was the faster one
    model = onnx.load(path)
    weights = next(item for item in model.graph.initializer if len(item.dims) == 4)
    array = onnx.numpy_helper.to_array(weights)
    weights.CopyFrom(onnx.numpy_helper.from_array(array[::-1].copy(), weights.name))
    onnx.save(model, path)
    manifest = json.loads((waiting / "manifest.json").read_text())
    for entry in manifest["engines"]:
        entry.pop("files_sha256")
    kept = {name: value for name, value in manifest.items() if name not in ("schema", "files")}
    seal(waiting, kept, tmp_path / "key.pem")
    done = edgetl("compile", waiting, "--target", "x86-64-cpu", "-o", tmp_path / "out")
    done.failed(4, "golden inputs", "SQNR", "against the float graph", hint="ship another precision")
    assert "its graph leaves the float graph at Conv" in done.err or "channels of the weights of" in done.err
    assert "is refused: its layers are compared" in done.err and "--layers" not in done.err
    assert not (tmp_path / "out").exists()


def test_a_bundle_that_does_not_say_where_it_comes_from(edgetl, waiting: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """No bundle of edgetl is without: it was a KeyError."""
    manifest = json.loads((waiting / "manifest.json").read_text())
    kept = {name: value for name, value in manifest.items() if name not in ("schema", "files", "provenance")}
    seal(waiting, kept, tmp_path / "key.pem")
    done = edgetl("compile", waiting, "--target", "x86-64-cpu", "-o", tmp_path / "out")
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["provenance"]["built_from_sha256"]


def test_a_changed_bundle_is_not_compiled(edgetl, waiting: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (waiting / "model.onnx").write_bytes(b"other")
    edgetl("compile", waiting, "-o", tmp_path / "out").failed(7, "model.onnx")
    assert not (tmp_path / "out").exists()


def test_what_an_engine_is_made_of_must_be_what_was_published_for_it(edgetl, waiting: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """As where the folders of two targets were exchanged: the digest of what was made stood in the new bundle."""
    manifest = json.loads((waiting / "manifest.json").read_text())
    chosen = next(entry for entry in manifest["engines"] if entry["target"] == "x86-64-cpu")
    (waiting / chosen["folder"] / "more.bin").write_bytes(b"other")
    for name in ("manifest.json", "signature.json"):
        (waiting / name).unlink()
    kept = {name: value for name, value in manifest.items() if name not in ("schema", "files")}
    seal(waiting, kept, tmp_path / "key.pem")
    done = edgetl("compile", waiting, "--target", "x86-64-cpu", "-o", tmp_path / "out")
    done.failed(7, f"the files in {chosen['folder']} are not those of the engine for x86-64-cpu")
    assert not (tmp_path / "out").exists()
