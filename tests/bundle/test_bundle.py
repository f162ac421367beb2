"""Sealing and opening: what is in a bundle is what was sealed, to the byte, or it does not open."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgetl.bundle import sign, write
from edgetl.errors import BundleError, MissingExtraError, TargetError, UnknownNameError
from edgetl.runtime import seal
from edgetl.runtime.bundle import open_bundle
from edgetl.runtime.golden import ARRAYS, read_golden
from edgetl.runtime.opening import open_engine
from edgetl.runtime.seal import canonical

MakeBundle = Callable[..., Path]
INPUTS, OUTPUTS = np.zeros((1, 3, 8, 8), np.float32), np.ones((1, 3), np.float32)


def public(key: Path) -> Path:
    return key.with_name("key.pub.pem")


def reseal(folder: Path, key: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest and sign it again: what a liar with a key of his own can do."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    sign.sign(folder, manifest, key)


# --- whole bundles ---------------------------------------------------------------------------------------------------


def test_seal_and_open(make_bundle: MakeBundle, signing_key: Path) -> None:
    folder = make_bundle()
    for key in (None, public(signing_key)):
        bundle = open_bundle(folder, key=key)
        assert bundle.verified.signed_by == sign.public_fingerprint(signing_key)
        assert bundle.verified.files == 1 + 4 * 2 + 2
        assert bundle.labels == ("cat", "dog", "Zürich")
        assert bundle.preprocessing.height == 8
        assert [engine.target for engine in bundle.engines] == ["slow-cpu", "fast-cpu", "other-cpu", "jetson"]
    golden = bundle.golden()
    assert golden.sources == (folder / "golden" / "a.png",)
    assert golden.inputs.shape == (1, 3, 8, 8) and golden.outputs.shape == (1, 3)


def test_a_bundle_opens_wherever_it_is_copied(make_bundle: MakeBundle, tmp_path: Path) -> None:
    copy = shutil.copytree(make_bundle(), tmp_path / "elsewhere" / "copy")
    assert open_bundle(copy).verified.signed_by


def test_sealing_again_gives_the_same_manifest(make_bundle: MakeBundle, signing_key: Path) -> None:
    folder = make_bundle()
    before = (folder / "manifest.json").read_bytes()
    manifest = json.loads(before)
    write.seal(folder, {key: value for key, value in manifest.items() if key not in ("schema", "files")}, signing_key)
    assert (folder / "manifest.json").read_bytes() == before


def test_an_unsigned_bundle_opens_only_where_no_signature_is_asked_for(
    make_bundle: MakeBundle, signing_key: Path
) -> None:
    folder = make_bundle()
    (folder / "signature.json").unlink()
    assert open_bundle(folder).verified.signed_by is None
    with pytest.raises(BundleError, match="is not signed, and a signature by"):
        open_bundle(folder, key=public(signing_key))


# --- changed bundles -------------------------------------------------------------------------------------------------


def test_every_changed_byte_is_found(make_bundle: MakeBundle) -> None:
    """Files of every kind; the manifest and the signature too, to the last white space and base64 digit."""
    folder = make_bundle()
    originals = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    @settings(max_examples=300, deadline=None)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(sorted(originals)))
        content = bytearray(originals[path])
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        path.write_bytes(content)
        try:
            with pytest.raises(BundleError):
                open_bundle(folder)
        finally:
            path.write_bytes(originals[path])

    check()
    assert open_bundle(folder).verified.signed_by


@pytest.mark.parametrize("name", ["manifest.json", "signature.json"])
def test_every_single_byte_of_the_records_is_held(make_bundle: MakeBundle, name: str) -> None:
    """The changes that JSON and base64 swallow: other white space, a base64 digit of which only some bits count."""
    path = make_bundle() / name
    content = path.read_bytes()
    spaces = {offset: b"\t" for offset, byte in enumerate(content) if byte in b" \n"}
    digits = dict.fromkeys(range(content.find(b"=") - 3, content.find(b"=") + 2), b"A")
    assert len(spaces) > 20
    for offset, new in (spaces | digits if name == "signature.json" else spaces).items():
        if content[offset : offset + 1] != new:
            path.write_bytes(content[:offset] + new + content[offset + 1 :])
            with pytest.raises(BundleError):
                open_bundle(path.parent)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(st.binary(max_size=200))
def test_no_content_of_the_records_is_a_defect(tmp_path: Path, content: bytes) -> None:
    for name in ("manifest.json", "signature.json"):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "manifest.json").write_bytes(b'{\n  "schema": 1,\n  "files": {}\n}\n')
        (folder / name).write_bytes(content)
        with pytest.raises(BundleError):
            open_bundle(folder)


@pytest.mark.parametrize("name", ["manifest.json", "signature.json"])
@pytest.mark.parametrize("content", [b"[]", b"null", b'"x"', b"{}", b"1", b"[" * 100_000, b"{" * 9, b'{"schema": 2}\n'])
def test_records_of_the_wrong_kind(make_bundle: MakeBundle, name: str, content: bytes) -> None:
    folder = make_bundle()
    (folder / name).write_bytes(content)
    with pytest.raises(BundleError):
        open_bundle(folder)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "added": (lambda folder: (folder / "extra.txt").touch(), "manifest does not know: extra.txt"),
    "added deep": (lambda folder: (folder / "golden" / ".hidden").touch(), r"does not know: golden/\.hidden"),
    "missing": (lambda folder: (folder / "model.onnx").unlink(), "model.onnx is missing"),
    "missing folder": (lambda folder: shutil.rmtree(folder / "golden"), r"golden/a\.png is missing"),
    "truncated": (lambda folder: os.truncate(folder / "model.onnx", 3), "model.onnx is not the one"),
    "longer": (lambda folder: (folder / "model.onnx").open("ab").write(b"x"), "model.onnx is not the one"),
    "pipe": (lambda folder: os.mkfifo(folder / "pipe"), "does not know: pipe"),
    "dangling link": (lambda folder: (folder / "link").symlink_to("nowhere"), "does not know: link"),
    "folder for a file": (
        lambda folder: ((folder / "model.onnx").unlink(), (folder / "model.onnx").mkdir()),
        "model.onnx is missing",
    ),
}


@pytest.mark.parametrize(("damage", "said"), DAMAGES.values(), ids=DAMAGES.keys())
def test_damage_is_named(make_bundle: MakeBundle, damage: Callable[[Path], object], said: str) -> None:
    folder = make_bundle()
    damage(folder)
    with pytest.raises(BundleError, match=said) as caught:
        open_bundle(folder)
    assert caught.value.exit_code == 7


def test_a_link_in_place_of_a_file_is_refused_even_with_the_same_content(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    folder = make_bundle()
    shutil.move(folder / "model.onnx", tmp_path / "outside.onnx")
    (folder / "model.onnx").symlink_to(tmp_path / "outside.onnx")
    with pytest.raises(BundleError, match=r"model\.onnx"):
        open_bundle(folder)


def test_a_link_in_place_of_a_folder_is_refused_even_with_the_same_content(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    folder = make_bundle()
    shutil.move(folder / "engines", tmp_path / "outside")
    (folder / "engines").symlink_to(tmp_path / "outside")
    with pytest.raises(BundleError, match="does not know: engines"):
        open_bundle(folder)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "golden/../../secret", ".."])
def test_a_manifest_may_not_reach_outside(
    make_bundle: MakeBundle, tmp_path: Path, signing_key: Path, name: str
) -> None:
    folder = make_bundle()
    (tmp_path / "secret").write_bytes(b"s")
    reseal(folder, signing_key, lambda manifest: manifest["files"].update({name: {"sha256": "", "size": 1}}))
    with pytest.raises(BundleError, match="names a file outside the bundle"):
        open_bundle(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.update(files=None),
        lambda manifest: manifest.update(files=[]),
        lambda manifest: manifest["files"].update({"model.onnx": {}}),
        lambda manifest: manifest["files"].update({"model.onnx": None}),
        lambda manifest: manifest["files"].update({"a\0b": {"sha256": "", "size": 1}}),
        lambda manifest: manifest.pop("labels"),
        lambda manifest: manifest.pop("engines"),
        lambda manifest: manifest.update(engines=[]),
        lambda manifest: manifest.update(engines=[{}]),
        lambda manifest: manifest.update(engines=[None]),
        lambda manifest: manifest.pop("preprocessing"),
        lambda manifest: manifest.update(preprocessing={"colour": 1}),
        lambda manifest: manifest.update(preprocessing=3),
        lambda manifest: manifest.update(schema=2),
        lambda manifest: manifest.pop("inputs"),
        lambda manifest: manifest.update(inputs=[]),
        lambda manifest: manifest["inputs"][0].update(batch=["x"]),
        lambda manifest: manifest["inputs"][0].update(batch=[4, 1]),
        lambda manifest: manifest["inputs"][0].update(batch=[True, 4]),
        lambda manifest: manifest["inputs"][0].update(name=None),
        lambda manifest: manifest.update(task=7),
        lambda manifest: manifest.update(labels="cat"),
        lambda manifest: manifest.update(labels=["cat", "dog", 3]),
        lambda manifest: manifest["engines"][0].update(status="perhaps"),
        lambda manifest: manifest["engines"][0].update(latency=None),
        lambda manifest: manifest["engines"][0].update(latency={"p50_ms": "fast"}),
        lambda manifest: manifest["engines"][0].update(latency={"p50_ms": float("nan")}),
        lambda manifest: manifest["engines"][0].update(parity=[]),
        lambda manifest: manifest["engines"][0].update(parity={"agreement": "high"}),
        lambda manifest: manifest["engines"][0].update(parity={"agreement": float("nan")}),
        lambda manifest: manifest["engines"][0].update(parity={"agreement": 1.5}),
        lambda manifest: manifest["engines"][0].update(latency={"p50_ms": None}),
        lambda manifest: manifest["engines"][0].update(backend=["onnxruntime"]),
        lambda manifest: manifest["engines"][0].update(folder=7),
        lambda manifest: manifest["engines"][0].update(parity={"samples": -2}),
        lambda manifest: manifest["engines"][0].update(parity={"samples": "all"}),
        lambda manifest: manifest["engines"][0].update(parity={"sqnr_db": "40"}),
        lambda manifest: manifest["engines"][0].update(parity={"sqnr_db": float("-inf")}),
    ],
)
def test_a_signed_manifest_of_the_wrong_shape(
    make_bundle: MakeBundle, signing_key: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    folder = make_bundle()
    reseal(folder, signing_key, change)
    with pytest.raises(BundleError):
        open_bundle(folder)


def test_a_file_that_cannot_be_read_is_a_defect_of_the_bundle(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk with bad sectors, or in a copy without its permissions."""
    folder = make_bundle()

    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(seal, "_sha256", refuse)
    with pytest.raises(BundleError, match=r"a file cannot be read: .*Permission denied"):
        open_bundle(folder)


def test_a_key_twice_in_the_manifest_is_refused(make_bundle: MakeBundle) -> None:
    """Another reader might take the first."""
    folder = make_bundle()
    text = (folder / "manifest.json").read_text(encoding="utf-8")
    (folder / "manifest.json").write_text(text.replace("{\n", '{\n  "name": "other",\n', 1), encoding="utf-8")
    with pytest.raises(BundleError, match="was changed after it was written"):
        open_bundle(folder)


@pytest.mark.parametrize("name", ["nowhere", "file", "empty"])
def test_what_is_no_bundle(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match="is not a bundle"):
        open_bundle(tmp_path / name)


# --- keys ------------------------------------------------------------------------------------------------------------


def test_another_key(make_bundle: MakeBundle, tmp_path: Path, signing_key: Path) -> None:
    folder = make_bundle()
    sign.make_key(tmp_path / "other.pem")
    with pytest.raises(BundleError, match=r"was signed by ed25519:\w+, not by the key in"):
        open_bundle(folder, key=tmp_path / "other.pub.pem")
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    sign.sign(folder, manifest, tmp_path / "other.pem")  # somebody else signs: whole, but not ours
    assert open_bundle(folder).verified.signed_by == sign.public_fingerprint(tmp_path / "other.pem")
    with pytest.raises(BundleError, match="not by the key in"):
        open_bundle(folder, key=public(signing_key))


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff\0"])
def test_a_public_key_that_is_none(make_bundle: MakeBundle, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "k.pem").write_bytes(content)
    with pytest.raises(BundleError, match="is not a public key in PEM") as refused:
        open_bundle(make_bundle(), key=tmp_path / "k.pem")
    assert refused.value.hint == "openssl pkey -in key.pem -pubout -out release.pub.pem"


def test_a_public_key_and_a_bundle_that_are_not_there(make_bundle: MakeBundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"^there is no public key .*nowhere\.pem$"):
        open_bundle(folder := make_bundle(), key=tmp_path / "nowhere.pem")
    with pytest.raises(BundleError, match=r"nowhere is not a bundle: it is not there$"):
        open_bundle(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"is not a bundle: it has no manifest\.json"):
        open_bundle(tmp_path)
    with pytest.raises(BundleError, match=r"manifest\.json is not a bundle: it is a file$"):
        open_bundle(folder / "manifest.json")


def test_a_private_key_given_as_the_public_one(make_bundle: MakeBundle, signing_key: Path) -> None:
    with pytest.raises(BundleError, match=r"is not a public key in PEM: it is a private one$") as refused:
        open_bundle(make_bundle(), key=signing_key)
    assert refused.value.hint == f"openssl pkey -in {signing_key} -pubout -out release.pub.pem"


def test_signatures_need_cryptography(make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    folder = make_bundle()
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    with pytest.raises(MissingExtraError, match="checking a signature"):
        open_bundle(folder)


@given(st.dictionaries(st.text("abc"), st.integers() | st.text('äöü"\\\n'), max_size=5))
def test_canonical_bytes_do_not_depend_on_the_order(manifest: dict[str, Any]) -> None:
    turned = dict(reversed(manifest.items()))
    assert canonical(manifest) == canonical(turned)
    assert json.loads(canonical(manifest)) == manifest
    assert b" " not in canonical(dict.fromkeys(manifest, 0))


# --- engines ---------------------------------------------------------------------------------------------------------


def test_choosing_an_engine(make_bundle: MakeBundle) -> None:
    bundle = open_bundle(make_bundle())
    assert bundle.choose().target == "fast-cpu"
    assert bundle.choose(precision="fp32").target == "slow-cpu"
    assert bundle.choose(target="other-cpu").status == "built"
    with pytest.raises(TargetError, match="built on its device: trtexec on the device"):
        bundle.choose(target="jetson")
    with pytest.raises(UnknownNameError, match="no engine for fast-gpu; it has slow-cpu fp32, fast-cpu int8"):
        bundle.choose(target="fast-gpu")
    with pytest.raises(UnknownNameError, match="no engine for int2; it has"):
        bundle.choose(precision="int2")
    with pytest.raises(UnknownNameError):
        bundle.choose(target="fast-cpu", precision="fp32")


@pytest.mark.parametrize("place", ["../outside", "/tmp", "engines/fast-cpu/../../../outside"])
def test_an_engine_outside_the_checked_files_is_not_opened(
    make_bundle: MakeBundle, tmp_path: Path, signing_key: Path, place: str
) -> None:
    folder = make_bundle()
    shutil.copytree(folder / "engines" / "fast-cpu" / "int8", tmp_path / "outside")
    reseal(folder, signing_key, lambda manifest: manifest["engines"][1].update(folder=place))
    with pytest.raises(BundleError, match="the manifest lists no file"):
        open_bundle(folder).open()


@pytest.mark.parametrize("name", ["../model.bin", "/etc/hostname", "deep/model.bin", "..", "", 7, None])
def test_an_engine_record_may_not_name_a_file_elsewhere(tmp_path: Path, name: object) -> None:
    record = {"backend": "tensorrt", "provider": "GPU", "files": [name]}
    (tmp_path / "engine.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(BundleError, match="holds no engine"):
        open_engine(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"backend": "onnxruntime", "files": [], "provider": ""}'])
def test_an_engine_record_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "engine.json").write_text(text, encoding="utf-8")
    with pytest.raises(BundleError, match="holds no engine"):
        open_engine(tmp_path)


def test_an_engine_of_an_unknown_backend(tmp_path: Path) -> None:
    record = {"backend": "tflite", "provider": "CPU", "files": ["a"]}
    (tmp_path / "engine.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(BundleError, match="cannot open engines of 'tflite'"):
        open_engine(tmp_path)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        (None, "has no golden inputs"),
        (b"", "cannot be read"),
        (b"PK\x03\x04 no archive", "cannot be read"),
        ({"names": np.array(["a.png"])}, "cannot be read"),
        ({"names": np.array([], dtype=np.str_), "inputs": INPUTS[:0], "outputs": OUTPUTS[:0]}, "no golden input"),
        (
            {"names": np.array(["../../b.png"]), "inputs": INPUTS, "outputs": OUTPUTS},
            r"there is no golden input \.\./\.\./b\.png",
        ),
        ({"names": np.array(["a.png"]), "inputs": INPUTS, "outputs": OUTPUTS[:0]}, "do not fit together"),
        (
            {"names": np.array(["a.png"]), "inputs": INPUTS, "outputs": OUTPUTS * np.nan},
            "its outputs are not finite numbers for 1 of 1 golden inputs",
        ),
        (
            {"names": np.array(["a.png"]), "inputs": INPUTS + np.inf, "outputs": OUTPUTS},
            "its inputs are not finite numbers for 1 of 1 golden inputs",
        ),
        (
            {"names": np.array(["a.png"]), "inputs": INPUTS, "outputs": OUTPUTS.astype(np.float16)},
            "its outputs are float16, and those of a build are float32",
        ),
        ({"names": np.array(["a.png"], dtype=object), "inputs": INPUTS, "outputs": OUTPUTS}, "cannot be read"),
        ({"names": np.array([1]), "inputs": INPUTS, "outputs": OUTPUTS}, "are no names"),
        ({"names": np.array([["a.png"]]), "inputs": INPUTS, "outputs": OUTPUTS}, "are no names"),
        ({"names": np.array(["a.png"]), "inputs": np.float32(1), "outputs": OUTPUTS}, "do not fit together"),
        ({"names": np.array(["a.png"]), "inputs": np.array(["a"]), "outputs": OUTPUTS}, "its inputs are str32"),
    ],
)
def test_golden_inputs_that_no_build_writes(
    make_bundle: MakeBundle, signing_key: Path, arrays: dict[str, np.ndarray] | bytes | None, said: str
) -> None:
    folder = make_bundle()
    file = folder / "golden" / "golden.npz"
    if isinstance(arrays, dict):
        np.savez(file, **arrays)
    elif arrays is None:
        file.unlink()
    else:
        file.write_bytes(arrays)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    write.seal(folder, {key: value for key, value in manifest.items() if key not in ("schema", "files")}, signing_key)
    with pytest.raises(BundleError, match=said):
        open_bundle(folder).golden()


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4))
def test_golden_inputs_that_are_damaged_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    """zlib's own errors, and what zipfile does not implement, were tracebacks."""
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "golden").mkdir()
    (folder / "golden" / "a.png").write_bytes(b"an image")
    file = folder / ARRAYS
    np.savez_compressed(file, names=np.array(["a.png"]), inputs=np.arange(300.0).reshape(1, 300) ** 2, outputs=OUTPUTS)
    content = bytearray(file.read_bytes())
    for place, value in changes:
        content[place % len(content)] = value
    file.write_bytes(content)
    try:
        assert len(read_golden(folder, [ARRAYS]).sources) == 1
    except BundleError as error:
        assert "golden" in error.message
