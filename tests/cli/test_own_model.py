"""edgetl quantize and bench on graphs that edgetl did not make, good and bad; in process, for speed."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import quantization

from edgetl.benchmark.reasons import Reason
from edgetl.benchmark.sampling import Sampled
from edgetl.benchmark.stability import Stability
from edgetl.cli.app import run
from edgetl.drafts import draft_name
from edgetl.pipeline.schemas import schema
from edgetl.quantize import activations


def classifier(*, batch="N", height=32, width=32, channels=3, opset=17, spoil=None, dtype=np.float32, inputs=1):
    """Two convolutions, a pool and a head of three classes."""
    generator = np.random.default_rng(0)
    weights = {
        "w1": generator.normal(size=(16, channels, 3, 3)) * 0.2,
        "w2": generator.normal(size=(16, 16, 3, 3)) * 0.1,
        "head": generator.normal(size=(16, 3)) * 0.3,
    }
    if spoil is not None:
        weights["w2"][0, 0, 0, 0] = spoil
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], pads=[1] * 4),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "head"], ["y0"]),
        helper.make_node("Add", ["y0", "z"], ["y"]) if inputs == 2 else helper.make_node("Identity", ["y0"], ["y"]),
    ]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    given = [helper.make_tensor_value_info("x", kind, [batch, channels, height, width])]
    if inputs == 2:
        given.append(helper.make_tensor_value_info("z", kind, ["N", 3]))
    graph = helper.make_graph(
        nodes,
        "classifier",
        given,
        [helper.make_tensor_value_info("y", kind, [batch, 3])],
        [numpy_helper.from_array(value.astype(dtype), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def external(place, location):
    """A model whose weights stand in a file of their own, wherever its text says."""
    onnx.save(classifier(), place, save_as_external_data=True, location="weights.bin", size_threshold=0)
    model = onnx.load(place, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    place.write_bytes(model.SerializeToString())


@pytest.fixture
def command(capsys):
    def call(*arguments):
        code = run([str(argument) for argument in arguments])
        said = capsys.readouterr()
        assert "Traceback" not in said.err, said.err
        return code, said.out, said.err

    return call


@pytest.fixture
def quantize(command, shapes, tmp_path):
    """Quantize a model; a failure must leave nothing."""
    output = tmp_path / "out" / "int8.onnx"

    def call(model, *more, target="x86-64-cpu", normalised=True):
        given = [f"{flag}=0.5,0.5,0.5" for flag in ("--mean", "--std") if normalised and flag not in more]
        data = shapes / "val"
        code, out, err = command("quantize", model, "--data", data, "--target", target, "-o", output, *given, *more)
        assert output.exists() == (code == 0)
        assert code == 0 or not output.parent.exists() or list(output.parent.iterdir()) == []
        return code, out, err

    call.output = output
    return call


def save(model, folder, name="model.onnx"):
    onnx.save(model, folder / name)
    return folder / name


@pytest.mark.parametrize(
    ("changes", "more"),
    [
        ({}, ()),
        ({"batch": 1}, ()),
        ({"batch": 64}, ()),  # more than there are samples
        ({"batch": 7}, ("--samples", "10")),
        ({"height": 33, "width": 47}, ()),
        ({"height": "H", "width": "W"}, ("--size", "24")),
        ({"opset": 13}, ()),
    ],
)
def test_good_graphs_are_quantized_and_still_agree(quantize, tmp_path, changes, more):
    code, out, err = quantize(save(classifier(**changes), tmp_path), "--json", *more)
    assert code == 0, err
    found = json.loads(out)["result"]
    assert found["quantized"]["Conv"] == 2
    assert found["sqnr_db"] > 20
    done = onnx.load(quantize.output)
    onnx.checker.check_model(done)
    assert done.graph.input[0].type.tensor_type.shape == classifier(**changes).graph.input[0].type.tensor_type.shape
    contract = json.loads(next(entry.value for entry in done.metadata_props if entry.key == "edgetl.preprocessing"))
    assert contract["mean"] == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"opset": 5}, 2, ["cannot load model.onnx"]),
        ({"inputs": 2}, 2, ["one input", "x, z"]),
        ({"channels": 1}, 2, ["(N, 3, H, W)"]),
        ({"height": "H"}, 2, ["dynamic height", "--size"]),
        ({"dtype": np.float16}, 2, ["float32", "float16"]),
        ({"spoil": np.nan}, 3, [".png", "activation", "NaN"]),
        ({"spoil": np.inf}, 3, [".png", "activation", "NaN"]),
    ],
)
def test_graphs_that_cannot_be_calibrated(quantize, tmp_path, changes, code, words):
    found, _, err = quantize(save(classifier(**changes), tmp_path))
    assert found == code, err
    for word in words:
        assert word in err


@pytest.mark.parametrize("content", [b"", b"hello" * 99, "half"])
def test_files_that_are_no_graphs(quantize, command, tmp_path, content):
    path = save(classifier(), tmp_path)
    path.write_bytes(path.read_bytes()[:3000] if content == "half" else content)
    for code, _, err in (quantize(path), command("inspect", path), command("bench", path, "--samples", "20")):
        assert code == 2
        assert "model.onnx" in err


def test_a_full_disk_for_temporary_files_is_no_defect(quantize, tmp_path, monkeypatch):
    """A traceback, and the request to report it."""

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "weights.data")

    monkeypatch.setattr(activations, "with_outputs", full)
    code, _, err = quantize(save(classifier(), tmp_path))
    assert code == 8 and "defect" not in err
    assert "the disk is full: [Errno 28] No space left on device: 'weights.data'" in err and "TMPDIR" in err


def test_an_operator_that_nobody_knows_is_named_with_the_users_file(quantize, tmp_path):
    model = classifier()
    model.graph.node[1].op_type, model.graph.node[1].domain = "Fancy", "my.ops"
    model.opset_import.append(helper.make_opsetid("my.ops", 1))
    code, _, err = quantize(save(model, tmp_path))
    assert code == 2
    assert "model.onnx" in err
    assert "Fancy" in err


def test_weights_beside_the_model_are_read_and_those_elsewhere_refused(quantize, tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    path = folder / "model.onnx"
    external(path, "weights.bin")
    assert quantize(path)[0] == 0
    assert [entry.name for entry in quantize.output.parent.iterdir()] == ["int8.onnx"]
    quantize.output.unlink()
    weights = (folder / "weights.bin").read_bytes()
    (tmp_path / "outside.bin").write_bytes(weights)
    (folder / "short.bin").write_bytes(weights[:100])
    (folder / "link.bin").symlink_to(tmp_path / "outside.bin")
    for location, reason in [
        ("../outside.bin", "outside its folder"),
        ("/etc/passwd", "outside its folder"),
        ("link.bin", "outside its folder"),
        ("nowhere.bin", "missing or too short"),
        ("short.bin", "missing or too short"),
    ]:
        external(path, location)
        code, _, err = quantize(path)
        assert code == 2
        assert reason in err, location


def test_a_constant_inside_a_node_cannot_read_another_file_either(quantize, tmp_path):
    tensor = TensorProto(name="secret", data_type=TensorProto.FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../secret.bin")
    (tmp_path / "secret.bin").write_bytes(bytes(12))
    model = classifier()
    model.graph.node[-1].CopyFrom(helper.make_node("Add", ["y0", "secret"], ["y"]))
    model.graph.node.insert(0, helper.make_node("Constant", [], ["secret"], value=tensor))
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    code, _, err = quantize(folder / "model.onnx")
    assert code == 2
    assert "outside its folder" in err


def test_a_graph_that_is_quantized_already(quantize, tmp_path):
    assert quantize(save(classifier(), tmp_path))[0] == 0
    path = quantize.output.rename(tmp_path / "again.onnx")
    other = tmp_path / "other.onnx"  # another tool's, without any QuantizeLinear
    quantization.quantize_dynamic(save(classifier(), tmp_path), other)
    for name in (path, other):
        code, _, err = quantize(name)
        assert code == 2
        assert f"{name.name} is quantized already" in err


def test_the_model_itself_and_a_folder_are_no_output(command, shapes, tmp_path):
    path = save(classifier(), tmp_path)
    before = path.read_bytes()
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.onnx").symlink_to(path)
    for output, word in (
        (path, "the model itself"),
        (tmp_path / "link.onnx", "the model itself"),
        ("folder", "folder"),
    ):
        command_line = ("quantize", path, "--data", shapes / "val", "--target", "x86-64-cpu")
        code, _, err = command(*command_line, "-o", tmp_path / output)
        assert code == 2
        assert word in err
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--size", "64"], ["fixed to 32", "64"]),
        (["--size", "-5"], ["--size"]),
        (["--crop-pct", "7"], ["--crop-pct"]),
        (["--resize", "squeeze"], ["squeeze", "stretch"]),
        (["--interpolation", "cubic"], ["cubic", "bicubic"]),
        (["--std", "0,0,0"], ["none zero"]),
        (["--mean", "nan,0,0"], ["three numbers"]),
        (["--mean", "0.5"], ["three numbers"]),
        (["--recipe", "int8"], ["no recipe 'int8'"]),
    ],
)
def test_flags_that_do_not_fit(quantize, tmp_path, more, words):
    code, _, err = quantize(save(classifier(), tmp_path), *more)
    assert code == 2, err
    for word in words:
        assert word in err


def test_a_model_that_does_not_say_how_it_was_normalised(quantize, tmp_path):
    code, _, err = quantize(save(classifier(), tmp_path), normalised=False)
    assert code == 2
    assert "mean and std" in err
    assert "try: --mean" in err


def test_a_target_of_the_users_and_a_path_with_spaces_and_emoji(quantize, command, shapes, tmp_path):
    folder = tmp_path / "ünï cødé 🙂"
    folder.mkdir()
    path = save(classifier(), folder, "mödel 'one'.onnx")
    shown = command("targets", "raspberry-pi-5", "--json")[1]
    scheme = json.loads(shown)["result"][0]["scheme"]
    text = (
        f'schema = 1\ndescription = "mine"\nbackend = "onnxruntime"\nprovider = "CPUExecutionProvider"\n'
        f'scheme = "{scheme}"\nprecisions = ["int8"]\nbuilt_on_device = false\n'
        '[hardware]\narchitecture = "arm64"\nprocessor = "mine"\n'
        '[[sources]]\nfact = "it is mine"\nurl = "https://example.org"\n'
    )
    (folder / "mine.toml").write_text(text, encoding="utf-8")
    code, out, err = quantize(path, "--json", target=str(folder / "mine.toml"))
    assert code == 0, err
    assert json.loads(out)["result"]["scheme"] == scheme


def test_bench_of_any_graph_and_of_what_cannot_be_timed(command, tmp_path):
    two = save(classifier(inputs=2), tmp_path, "two.onnx")
    dynamic = save(classifier(height="H", width="W"), tmp_path, "dynamic.onnx")
    code, out, err = command(
        "bench", two, dynamic, "--size", "32", "--samples", "20", "--processes", "1", "--no-roofline", "--json"
    )
    assert code == 0, err
    measured = json.loads(out)["result"]["measured"]
    assert measured[0]["inputs"] == ["x float32[1, 3, 32, 32]", "z float32[1, 3]"]
    assert measured[1]["inputs"] == ["x float32[1, 3, 32, 32]"]
    code, _, err = command("bench", dynamic, "--samples", "20")
    assert code == 2
    assert "dynamic dimension 'H'" in err
    code, _, err = command("bench", two, "--samples", "20", "--batch-size", "100000000000")
    assert code == 8
    assert "not enough memory" in err
    code, _, err = command("bench", two, "--provider", "NoSuchProvider")
    assert code == 8
    assert "NoSuchProvider" in err


def test_inspect_of_a_graph_that_edgetl_did_not_make(command, tmp_path):
    path = save(classifier(), tmp_path)
    code, out, err = command("inspect", path)
    assert code == 0, err
    assert "input: x float['N', 3, 32, 32]" in out and "preprocessing" not in out
    code, out, err = command("inspect", path, "--json")
    assert json.loads(out)["result"]["preprocessing"] == {}


@pytest.mark.parametrize(
    ("stable", "more", "code", "gate"),
    [
        (True, ["--max-slowdown", "1e9%"], 0, "passed"),
        (False, ["--max-slowdown", "1e9%"], 5, "failed"),
        (False, ["--max-slowdown", "1e9%", "--unstable", "allow"], 0, "passed"),
        (False, [], 0, None),
    ],
)
def test_bench_says_in_json_what_became_of_its_gate(command, tmp_path, monkeypatch, stable, more, code, gate):
    reasons = () if stable else (Reason(kind="throttling", text="the clock fell", figures={}, advice="cool it"),)
    judged = Stability(stable=stable, reasons=reasons, unknown=())
    monkeypatch.setattr(Sampled, "stability", lambda *_, **__: judged)
    graph = save(classifier(), tmp_path)
    quick = ["--samples", "60", "--processes", "2", "--threads", "1", "--no-roofline", "--json"]
    found = command("bench", graph, *(["--baseline", graph] if more else []), *more, *quick)
    assert found[0] == code, found[2]
    document = json.loads(found[1])
    assert document["result"]["gate"] == gate
    jsonschema = pytest.importorskip("jsonschema", reason="extra dev")
    jsonschema.Draft202012Validator(schema("output-bench")).validate(document)


def elementwise(*nodes, kind=TensorProto.FLOAT):
    """A graph from x to y, of rows of four; the constant zero is 0."""
    value = helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0])
    ports = [helper.make_tensor_value_info(name, kind, ["N", 4]) for name in ("x", "y")]
    graph = helper.make_graph(
        [helper.make_node(*node) for node in nodes], "g", ports[:1], ports[1:],
        [value] if kind == TensorProto.FLOAT else [],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_bench_of_graphs_that_answer_no_numbers_or_take_none(command, tmp_path):
    quick = ("--samples", "20", "--processes", "1", "--no-roofline")
    nan = elementwise(("Mul", ["x", "zero"], ["a"]), ("Div", ["a", "zero"], ["y"]))
    code, _, err = command("bench", save(nan, tmp_path, "nan.onnx"), *quick)
    assert code == 5
    assert "nan.onnx: its outputs are NaN or infinite, all of them" in err
    strings = elementwise(("Identity", ["x"], ["y"]), kind=TensorProto.STRING)
    code, _, err = command("bench", save(strings, tmp_path, "strings.onnx"), *quick)
    assert code == 2
    assert "the input 'x' of" in err and "takes tensor(string), and only numbers can be made up" in err
    assert "Traceback" not in err


def test_bench_of_a_graph_without_an_answer(command, tmp_path):
    """As of a detector without a hit: its boxes are no rows of four."""
    none = elementwise(("Slice", ["x", "none", "none"], ["y"]))
    none.graph.initializer.append(helper.make_tensor("none", TensorProto.INT64, [1], [0]))
    arguments = ("--samples", "20", "--processes", "1", "--no-roofline")
    code, _, err = command("bench", save(none, tmp_path, "none.onnx"), *arguments)
    assert code == 0, err
    assert not [words for words in ("NaN", "the same whatever") if words in err]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--output", "nowhere/calls.json"], ["there is no folder nowhere to write calls.json to", "mkdir nowhere"]),
        (["--output", "."], [". is a folder", "--output calls.json"]),
        (["--output", "loop"], ["--output loop is a link to loop, where no file can be", "--output calls.json"]),
        (["--target", "x86-64-cpu"], ["nothing here is a bundle", "leave out --target"]),
        (["--precision", "int8"], ["nothing here is a bundle"]),
        (["--threads", "10000"], ["--threads", "1024"]),
        (["--baseline", "graph.onnx", "--max-slowdown", "3"], ["3 is 300% as a share", "--max-slowdown 3%, or 300%"]),
        (["--baseline", "graph.onnx", "--max-slowdown", "1"], ["1 is 100% as a share", "--max-slowdown 1%, or 100%"]),
        (["--samples", "99999999999"], ["--samples", "10000000"]),
    ],
)
def test_bench_refuses_before_it_measures(command, tmp_path, monkeypatch, given, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    graph = save(classifier(), tmp_path, "graph.onnx")
    began = time.monotonic()
    code, out, err = command("bench", graph, "--samples", "20", *given)
    assert code == 2 and not out
    assert all(word in err for word in words), err
    assert time.monotonic() - began < 5


def text_model():
    """Token identifiers and a mask, both int64: embedding, two products over rows, masked mean, three classes."""
    generator = np.random.default_rng(1)
    weights = {
        "table": generator.normal(size=(50, 16)),
        "w1": generator.normal(size=(16, 32)) * 0.3,
        "w2": generator.normal(size=(32, 3)) * 0.3,
    }
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"], name="embed"),
        helper.make_node("Cast", ["mask"], ["m"], to=TensorProto.FLOAT, name="cast"),
        helper.make_node("Unsqueeze", ["m", "last"], ["m3"], name="column"),
        helper.make_node("Mul", ["e", "m3"], ["em"], name="masked"),
        helper.make_node("MatMul", ["em", "w1"], ["h"], name="up"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "w2"], ["t"], name="down"),
        helper.make_node("ReduceMean", ["t"], ["y"], axes=[1], keepdims=0, name="mean"),
    ]
    graph = helper.make_graph(
        nodes,
        "text",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["N", "length"]) for name in ("ids", "mask")],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
        + [numpy_helper.from_array(np.asarray([2], np.int64), "last")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def tokens(tmp_path):
    generator = np.random.default_rng(2)
    ids = generator.integers(0, 50, (40, 12))
    path = tmp_path / "tokens.npz"
    np.savez(path, ids=ids, mask=(ids > 5).astype(np.int64))
    return path


@pytest.fixture
def quantize_text(command, tokens, tmp_path):
    output = tmp_path / "text" / "int8.onnx"

    def call(*more, data=tokens, recipe="int8-mse"):
        place = ("--target", "x86-64-cpu", "-o", output, "--recipe", recipe)
        return command("quantize", save(text_model(), tmp_path, "text.onnx"), "--data", data, *place, *more)

    call.output = output
    return call


@pytest.mark.parametrize("recipe", ["int8-mse", "int8-search", "int8-mse-corrected", "int8-smoothquant"])
def test_the_order_of_the_samples_does_not_matter(quantize_text, tokens, tmp_path, recipe):
    """Not to searches and corrections either, which look at some samples alone; nor to which of them are drawn."""
    with np.load(tokens) as file:
        arrays = {name: file[name] for name in file.files}
    order = np.random.default_rng(0).permutation(40)
    np.savez(tmp_path / "shuffled.npz", **{name: array[order] for name, array in arrays.items()})
    graphs = []
    for data in (tokens, tmp_path / "shuffled.npz"):
        assert quantize_text("--samples", "30", data=data, recipe=recipe)[0] == 0
        graphs.append(onnx.load(quantize_text.output).graph.SerializeToString(deterministic=True))
    assert graphs[0] == graphs[1]


@pytest.mark.parametrize("recipe", ["int8-mse", "int8-mse-corrected", "int8-dynamic"])
def test_a_model_of_two_integer_inputs_is_quantized_from_arrays(quantize_text, recipe):
    code, out, err = quantize_text("--json", "--samples", "20", recipe=recipe)
    assert code == 0, err
    found = json.loads(out, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))["result"]
    assert found["samples"] == 20
    assert found["quantized"]["MatMul"] == 2
    assert found["sqnr_db"] > 20
    done = onnx.load(quantize_text.output)
    onnx.checker.check_model(done)
    assert [entry.type.tensor_type.elem_type for entry in done.graph.input] == [TensorProto.INT64] * 2
    assert not [entry for entry in done.metadata_props if entry.key == "edgetl.preprocessing"]
    assert {layer["node"] for layer in found["layers"]["layers"]} == {"up", "down"}
    alone = [layer["isolated_db"] for layer in found["layers"]["layers"]]
    assert alone == sorted(alone)
    tried = {"before_corrections", "correction_left_out"} & set(found["notes"])
    assert len(tried) == (recipe == "int8-mse-corrected")


def test_a_misspelt_name_in_keep_float_is_refused_before_any_calibration(quantize_text, tmp_path):
    recipe = tmp_path / "mine.toml"
    tables = '[activations]\nmethod = "minmax"\n[weights]\nmethod = "minmax"\n'
    for keep, code in (("dwon", 2), ("down", 0)):
        recipe.write_text(f'schema = 1\ndescription = "mine"\nkeep_float = ["{keep}"]\n{tables}', encoding="utf-8")
        found, _, err = quantize_text(recipe=str(recipe))
        assert found == code, err
        assert quantize_text.output.exists() == (code == 0)
        if code:
            assert "'dwon'" in err
            assert "near it: down" in err
            assert "calibrate" not in err


@pytest.mark.parametrize(
    ("stage", "stop", "code"), [("calibrate", signal.SIGINT, 130), ("quantize", signal.SIGKILL, -signal.SIGKILL)]
)
def test_killed_at_any_time_the_output_is_whole_or_absent(start, quantize_text, tokens, tmp_path, stage, stop, code):
    output, model = quantize_text.output, save(text_model(), tmp_path, "text.onnx")
    recipe = ("--recipe", "int8-mse-corrected")
    process = start("quantize", model, "--data", tokens, "--target", "x86-64-cpu", "-o", output, *recipe)
    said = next((line for line in process.stderr if line.startswith(stage)), "")
    assert said, "it ended before"
    time.sleep(random.Random(stage).uniform(0, 0.2))
    process.send_signal(stop)
    rest = process.stderr.read()
    process.wait(timeout=60)
    process.stderr.close()
    assert process.returncode in (code, 0), rest
    assert "Traceback" not in rest
    assert not output.parent.exists() or {entry.name for entry in output.parent.iterdir()} <= {output.name}
    if output.exists():
        onnx.checker.check_model(output, full_check=True)
    else:
        assert process.returncode == code
    assert quantize_text()[0] == 0
    assert [entry.name for entry in output.parent.iterdir()] == [output.name]


def test_a_draft_of_a_process_that_is_no_more_is_removed_and_one_of_a_live_process_is_not(quantize_text, tokens):
    folder = quantize_text.output.parent
    folder.mkdir()
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    live = folder / f".edgetl-{draft_name()}"
    dead = live.with_name(live.name.replace(str(os.getpid()), str(int(gone.stdout)), 1))
    for draft in (dead, live, folder / ".edgetl-notes"):
        draft.touch()
    assert quantize_text()[0] == 0
    assert sorted(entry.name for entry in folder.iterdir()) == sorted([live.name, ".edgetl-notes", "int8.onnx"])


def test_arrays_that_do_not_fit(quantize_text, tokens, tmp_path):
    def saved(name, **arrays):
        np.savez(tmp_path / name, **arrays)
        return tmp_path / name

    ids = np.zeros((4, 12), np.int64)
    (tmp_path / "text.npz").write_text("no archive", encoding="utf-8")
    (tmp_path / "nothing.npz").touch()
    for data, code, words in [
        (saved("one.npz", ids=ids), 2, ["ids", "mask"]),
        (saved("float.npz", ids=ids, mask=ids.astype(np.float32)), 2, ["mask", "int64", "float32"]),
        (saved("uneven.npz", ids=ids, mask=ids[:3]), 3, ["ids 4", "mask 3"]),
        (saved("empty.npz", ids=ids[:0], mask=ids[:0]), 3, ["ids 0"]),
        (saved("none.npz"), 3, ["nothing"]),
        (tmp_path / "nothing.npz", 3, ["no .npz file of plain arrays"]),  # once taken for an interruption
        (saved("objects.npz", ids=ids, mask=np.array([None] * 4, dtype=object)), 3, ["no .npz file of plain arrays"]),
        (tmp_path / "text.npz", 3, ["no .npz file"]),
        (tmp_path / "nowhere.npz", 3, ["there is no"]),
    ]:
        found, _, err = quantize_text(data=data)
        assert found == code, (data, err)
        for word in words:
            assert word in err, data
        assert not quantize_text.output.exists()
    code, _, err = quantize_text("--mean", "0.5,0.5,0.5", "--size", "64", data=tokens)
    assert code == 2
    assert "height, mean, width say how images" in err


def test_images_are_refused_for_integer_inputs_and_arrays_named(quantize_text, shapes):
    code, _, err = quantize_text(data=shapes / "val")
    assert code == 2
    assert "--data FILE.npz" in err


def test_the_worst_five_layers_are_shown_and_all_where_asked(quantize, tmp_path):
    model = classifier()
    for index in range(6):  # a chain of convolutions behind the first
        weight = np.random.default_rng(index).normal(size=(16, 16, 3, 3)).astype(np.float32) * 0.1
        model.graph.initializer.append(numpy_helper.from_array(weight, f"more{index}"))
        node = helper.make_node(
            "Conv", ["r1" if index == 0 else f"m{index - 1}", f"more{index}"], [f"m{index}"], pads=[1] * 4
        )
        model.graph.node.insert(2 + index, node)
    model.graph.node[8].input[0] = "m5"
    path = save(model, tmp_path)
    few, all_ = quantize(path)[1], quantize(path, "--layers", "--recipe", "int8-smoothquant")[1]
    assert "the 5 layers of 9 that lose most" in few
    assert "--layers shows all" in few
    rows = few[few.index("layer  ") :].splitlines()[1:]
    assert len(rows) == 5
    alone = [float(row.split()[2]) for row in rows]
    assert alone == sorted(alone)
    assert "all layers, SQNR in dB on" in all_
    assert len(all_[all_.index("layer  ") :].splitlines()) == 10
    assert "before corrections" in all_
    assert "Corrections were left out: on" in all_, "they serve nothing in a network of noise"


def test_float16_for_an_engine_that_takes_it_from_the_graph(quantize, tmp_path):
    path = save(classifier(), tmp_path)
    code, out, err = quantize(path, "--recipe", "fp16", target="jetson-orin-nano")
    assert code == 0, err
    assert "scheme float16, recipe fp16" in out
    assert "in float16: 2 Conv" in out
    assert "all layers, SQNR in dB on" in out or "layers of" in out
    found = float(out.split("SQNR ")[1].split()[0])
    assert 40 < found < 90, "rounded to eleven bits, and not to 24"
    types = {item.data_type for item in onnx.load(quantize.output).graph.initializer}
    assert TensorProto.FLOAT16 in types
    assert TensorProto.INT8 not in types


def test_float16_for_an_engine_that_does_not_take_it_from_the_graph(quantize, tmp_path):
    path = save(classifier(), tmp_path)
    code, _, err = quantize(path, "--recipe", "fp16", target="x86-64-cpu")
    assert code == 6
    assert "takes no float16" in err
    assert "edgetl targets" in err
    own = tmp_path / "intel-gpu.toml"
    own.write_text(
        'schema = 1\ndescription = "mine"\nbackend = "openvino"\nprovider = "GPU"\nscheme = ""\n'
        'precisions = ["fp16", "fp32"]\nbuilt_on_device = false\n'
        '[hardware]\narchitecture = "x86-64"\nprocessor = "mine"\n'
        '[[sources]]\nfact = "it is mine"\nurl = "https://example.org"\n'
    )
    code, _, err = quantize(path, "--recipe", "fp16", target=str(own))
    assert code == 6
    assert "converts to float16 by itself" in err
    code, _, err = quantize(path, target="rtx-pc")
    assert code == 6
    assert "takes no int8 graph" in err
    assert "try: --recipe fp16" in err


def test_what_overflows_float16_in_calibration_stays_in_float32_and_is_named(quantize, tmp_path):
    model = classifier()
    for item in model.graph.initializer:
        if item.name in ("w1", "w2"):
            item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item) * 500, item.name))
    code, out, err = quantize(save(model, tmp_path), "--recipe", "fp16", target="jetson-orin-nano")
    assert code == 0, err
    assert "in float32: " in out
    assert "in float32: " in out[out.index("SQNR") :], out
    assert float(out.split("SQNR ")[1].split()[0]) > 40


def rows(nodes, folder, weights, *, inputs=(("x", TensorProto.FLOAT),), outputs=(("y", TensorProto.FLOAT),), count=6):
    """A graph of rows of eight, and samples for it."""
    graph = helper.make_graph(
        nodes,
        "rows",
        [helper.make_tensor_value_info(name, kind, ["n", 8]) for name, kind in inputs],
        [helper.make_tensor_value_info(name, kind, [8, 8] if name in weights else ["n", 8]) for name, kind in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    path = save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder)
    random = np.random.default_rng(0)
    samples = {
        name: random.normal(size=(count, 8)).astype(helper.tensor_dtype_to_np_dtype(kind)) for name, kind in inputs
    }
    np.savez(folder / "samples.npz", **samples)
    return path, samples


def put_into_float16(command, path, *more):
    output = path.with_name("half.onnx")
    code, out, err = command(
        "quantize", path, "--data", path.with_name("samples.npz"), "--recipe", "fp16",
        "--target", "jetson-orin-nano", "-o", output, "--layers", *more,
    )  # fmt: skip
    assert output.exists() == (code == 0), err
    return code, out, err


SQUARE = np.random.default_rng(1).normal(size=(8, 8)).astype(np.float32) / 3
TWO = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Relu", ["a"], ["y"])]


def test_float16_inputs_and_outputs_around_a_float32_model(command, tmp_path):
    """It failed in the layer report: float16 outputs were compared with float32 ones; and all stayed in float32."""
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["f", "w"], ["a"], name="product"),
        helper.make_node("Relu", ["a"], ["r"], name="relu"),
        helper.make_node("Cast", ["r"], ["y"], to=TensorProto.FLOAT16),
    ]
    kind = TensorProto.FLOAT16
    path, _ = rows(nodes, tmp_path, {"w": SQUARE}, inputs=[("x", kind)], outputs=[("y", kind)])
    code, out, err = put_into_float16(command, path, "--json")
    assert code == 0, err
    found = json.loads(out)["result"]
    assert found["quantized"] == {"Cast": 2, "MatMul": 1, "Relu": 1}
    assert {loss["node"] for loss in found["layers"]["layers"]} == {"product", "relu"}
    assert 50 < found["sqnr_db"] < 90
    assert onnx.load(path.with_name("half.onnx")).graph.output[0].type.tensor_type.elem_type == kind


def test_a_part_that_is_in_float16_already(command, tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="product"),
        helper.make_node("Cast", ["a"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["h", "w16"], ["b"], name="half"),
        helper.make_node("Cast", ["b"], ["y"], to=TensorProto.FLOAT),
    ]
    path, _ = rows(nodes, tmp_path, {"w": SQUARE, "w16": SQUARE.astype(np.float16)})
    code, out, err = put_into_float16(command, path, "--json")
    assert code == 0, err
    assert [loss["node"] for loss in json.loads(out)["result"]["layers"]["layers"]] == ["product"]


def test_a_model_that_is_in_float16_already(command, tmp_path):
    kind = TensorProto.FLOAT16
    path, _ = rows(TWO, tmp_path, {"w": SQUARE.astype(np.float16)}, inputs=[("x", kind)], outputs=[("y", kind)])
    code, _, err = put_into_float16(command, path)
    assert code == 2
    assert "nothing in this graph is float32" in err
    assert "give the float32 graph" in err


@pytest.mark.parametrize("recipe", ["fp16", "int8-mse"])
def test_a_constant_that_is_an_output(command, recipe, tmp_path):
    outputs = [("y", TensorProto.FLOAT), ("w", TensorProto.FLOAT)]
    path, _ = rows(TWO, tmp_path, {"w": SQUARE}, outputs=outputs)
    target = "jetson-orin-nano" if recipe == "fp16" else "x86-64-cpu"
    output = tmp_path / "out.onnx"
    code, _, err = command(
        "quantize", path, "--data", tmp_path / "samples.npz", "--recipe", recipe, "--target", target, "-o", output
    )
    assert code == 0, err
    found = ort.InferenceSession(str(output)).run(["w"], {"x": np.ones((1, 8), np.float32)})
    np.testing.assert_array_equal(found[0], SQUARE)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.nan, "makes the activation 'x' NaN"),
        (np.inf, "has an infinite number in 'x'"),
        (3e38, "makes the activation 'y' NaN"),
    ],
)
def test_nan_on_a_sample_stops_float16_and_is_named(command, value, said, tmp_path):
    """All nodes stayed in float32, and the SQNR was -200 dB."""
    path, samples = rows([*TWO[:1], helper.make_node("Sub", ["a", "a"], ["y"])], tmp_path, {"w": SQUARE})
    samples["x"][3, 2:4] = value
    np.savez(tmp_path / "samples.npz", **samples)
    code, _, err = put_into_float16(command, path)
    assert code == 3
    assert f"calibration sample 3 of samples.npz {said}" in err


def test_nan_that_the_model_replaces_is_no_bad_sample(command, tmp_path):
    """As exported attention has it where a row is masked altogether."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="product"),
        helper.make_node("Sqrt", ["a"], ["s"], name="root"),  # NaN of what is negative
        helper.make_node("IsNaN", ["s"], ["nan"]),
        helper.make_node("Where", ["nan", "zero", "s"], ["t"]),
        helper.make_node("MatMul", ["t", "w"], ["y"], name="last"),
    ]
    path, _ = rows(nodes, tmp_path, {"w": SQUARE, "zero": np.float32(0)})
    code, out, err = put_into_float16(command, path, "--json")
    assert code == 0, err
    found = json.loads(out)["result"]
    assert found["quantized"]["MatMul"] == 2
    assert found["notes"]["kept_in_float32"]["root"] == "a sensitive operator"
    assert 50 < found["sqnr_db"] < 90


def test_no_sample_is_counted_twice_in_the_layer_report(command, tmp_path):
    """Six samples were filled up to a batch of eight, and it said "on 8 samples"."""
    path, _ = rows(TWO, tmp_path, {"w": SQUARE})
    code, out, err = put_into_float16(command, path)
    assert code == 0, err
    assert "SQNR in dB on 6 samples" in out


def test_a_model_that_stays_in_float32_has_no_table_of_nothing(command, tmp_path):
    path, _ = rows([helper.make_node("Softmax", ["x"], ["y"], name="softmax")], tmp_path, {})
    code, out, err = put_into_float16(command, path)
    assert code == 0, err
    assert "1 node stays in float32: softmax (a sensitive operator)." in out
    assert "worst first" not in out


def test_figures_that_are_none_are_null_in_json(command, tmp_path):
    """The power of such a signal is beyond float32; NaN is no JSON."""
    path, _ = rows(TWO, tmp_path, {"w": SQUARE * np.float32(1e25)})
    code, out, err = command(
        "quantize", path, "--data", tmp_path / "samples.npz", "--target", "x86-64-cpu", "-o", tmp_path / "o.onnx",
        "--json",
    )  # fmt: skip
    assert code == 0, err

    def refuse(text):
        raise AssertionError(f"{text} is no JSON")

    found = json.loads(out, parse_constant=refuse)["result"]
    assert [loss["isolated_db"] for loss in found["layers"]["layers"]] == [None]


@pytest.mark.parametrize("recipe", ["fp16", "int8-mse"])
def test_an_input_that_is_an_output(command, recipe, tmp_path):
    """The input was renamed on the way, and the samples were for another one."""
    outputs = [("x", TensorProto.FLOAT), ("y", TensorProto.FLOAT)]
    path, samples = rows(TWO, tmp_path, {"w": SQUARE}, outputs=outputs)
    target = "jetson-orin-nano" if recipe == "fp16" else "x86-64-cpu"
    output = tmp_path / "out.onnx"
    code, _, err = command(
        "quantize", path, "--data", tmp_path / "samples.npz", "--recipe", recipe, "--target", target, "-o", output
    )
    assert code == 0, err
    first, second = ort.InferenceSession(str(output)).run(["x", "y"], samples)
    np.testing.assert_array_equal(first, samples["x"])
    wanted = np.maximum(samples["x"] @ SQUARE, 0)
    assert np.abs(second - wanted).max() < 0.05 * wanted.max()


@pytest.mark.parametrize("recipe", ["fp16", "int8-mse"])
def test_a_sequence_of_tensors(command, recipe, tmp_path):
    """Its shape was asked for, which it has not; and float16 was put into a sequence of float32, in a file that no
    engine loads."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="product"),
        helper.make_node("SequenceEmpty", [], ["none"], dtype=TensorProto.FLOAT),
        helper.make_node("SequenceInsert", ["none", "a"], ["one"], name="insert"),
        helper.make_node("SequenceInsert", ["one", "x"], ["two"]),
        helper.make_node("SequenceAt", ["two", "first"], ["b"]),
        helper.make_node("MatMul", ["b", "w"], ["y"], name="last"),
    ]
    path, samples = rows(nodes, tmp_path, {"w": SQUARE, "first": np.int64(0)})
    output = tmp_path / "out.onnx"
    target = "jetson-orin-nano" if recipe == "fp16" else "x86-64-cpu"
    code, out, err = command(
        "quantize", path, "--data", tmp_path / "samples.npz", "--recipe", recipe, "--target", target, "-o", output
    )
    assert code == 0, err
    if recipe == "fp16":
        assert "insert (it reads or makes a sequence)" in out
    onnx.checker.check_model(onnx.load(output), full_check=True)
    (found,) = ort.InferenceSession(str(output)).run(["y"], samples)
    wanted = samples["x"] @ SQUARE @ SQUARE
    assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()
