from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgetl.errors import ConfigError

onnx = pytest.importorskip("onnx", reason="pip install 'edgetl[export]'")
pytest.importorskip("onnxruntime", reason="pip install 'edgetl[onnxruntime]'")
pytest.importorskip("openvino", reason="pip install 'edgetl[openvino]'")

import quality  # noqa: E402
import zoo  # noqa: E402

import calibration  # noqa: E402

ENGINE = {
    "samples": 10,
    "sqnr_db": 20.04,
    "typical_db": 25.0,
    "agreement": 0.9,
    "top1": 0.7,
    "top1_float": 0.8,
    "lost": 2,
    "won": 1,
}


def written(results: Path, tool: str, **facts: object) -> None:
    (results / f"resnet18-digits.{tool}.json").write_text(json.dumps({"tool": tool, **facts}))


def cells(table: str, tool: str) -> list[str]:
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {tool} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_row_has_flips_and_both_engines_shares(tmp_path: Path) -> None:
    ort, vino = {**ENGINE, "int8_share": 0.99996}, {**ENGINE, "sqnr_db": 30.0, "int8_share": 1.0}
    written(tmp_path, "edgetl-int8-mse", seconds=1.23, extra_peak_mb=45.6, onnxruntime=ort, openvino=vino)
    table = calibration.table(tmp_path, {})
    wanted = ["edgetl-int8-mse", "1.2", "46", "0.900", "10.0 (2 lost, 1 won)"]
    assert cells(table, "edgetl-int8-mse") == [*wanted, "20.0, 25.0", "99.9%", "-", "30.0, 25.0", "100%", "-"]


def test_the_nearest_graphs_of_both_sides_are_told_apart_by_their_samples(tmp_path: Path) -> None:
    def engine(agreement: float, *differs: int) -> dict[str, object]:
        return {**ENGINE, "agreement": agreement, "differs": list(differs)}

    facts = {"seconds": 1, "extra_peak_mb": 1}
    written(tmp_path, "ort-minmax", **facts, onnxruntime=engine(0.7, 1, 2, 3), openvino=engine(0.8, 1, 2))
    written(tmp_path, "ort-entropy", **facts, onnxruntime=engine(0.6, 1, 2, 3, 4), openvino=engine(0.6, 1, 2, 3, 4))
    written(tmp_path, "edgetl-int8-mse", **facts, onnxruntime=engine(0.8, 3, 5), openvino=engine(0.8, 1, 5))
    written(tmp_path, "edgetl-openvino-int8-mse", **facts, openvino=engine(0.9, 7))
    table = calibration.table(tmp_path, {})
    assert "Nearest on ONNX Runtime: edgetl-int8-mse (0.800) and ort-minmax (0.700). 2 samples are" in table
    assert "with the first alone, 1 with the second alone (p = 1)." in table
    assert "Nearest on OpenVINO: edgetl-openvino-int8-mse (0.900) and ort-minmax (0.800)." in table


def test_all_rows_are_as_long_as_the_heading(tmp_path: Path) -> None:
    written(tmp_path, "ort-minmax", error="Fail: a | b\nc")
    written(tmp_path, "edgetl-int8-mse", seconds=1, extra_peak_mb=1, onnxruntime={"error": "no"}, openvino=ENGINE)
    written(tmp_path, "edgetl-openvino-int8-mse", seconds=1, extra_peak_mb=1, openvino=ENGINE)
    table = calibration.table(tmp_path, {})
    lengths = {line.count("|") for line in table.splitlines() if line.startswith("|")}
    assert lengths == {len(calibration._COLUMNS) + 1}
    assert cells(table, "ort-minmax")[1] == "Fail: a / b c"


def test_a_note_stands_under_its_model(tmp_path: Path) -> None:
    written(tmp_path, "ort-minmax", error="Fail")
    (tmp_path / "resnet18-digits.model.json").write_text(
        json.dumps({"task": "ten digits", "samples": 10, "calibration": 5, "top1": 0.98})
    )
    notes = tmp_path / "notes.md"
    notes.write_text("What this is.\n\n## resnet18-digits\n\nThe first layer.\n")
    table = calibration.table(tmp_path, calibration.notes(notes))
    assert table.index("float top-1 98.0%") < table.index("ort-minmax") < table.index("The first layer.")


def test_a_note_on_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("## resnet19-digits\n\nx\n")
    with pytest.raises(ConfigError, match="'resnet19-digits'"):
        calibration.notes(tmp_path / "notes.md")


def test_the_notes_of_the_repository_can_be_read() -> None:
    assert set(calibration.notes(calibration.NOTES)) <= set(zoo.NAMES)


def model(path: Path, weights: np.ndarray, *, quantized: bool = False) -> Path:
    """(N, 4) · (4, 3), in float, or with both factors in 8 bits."""
    make, arrays = onnx.helper, onnx.numpy_helper
    nodes, constants, left, right = [], [arrays.from_array(weights.astype(np.float32), "w")], "x", "w"
    if quantized:
        constants = [
            arrays.from_array(np.clip(np.round(weights / 0.01), -127, 127).astype(np.int8), "wq"),
            *(arrays.from_array(np.float32(value), name) for name, value in (("s", 0.01), ("sx", 0.02), ("sy", 0.1))),
            *(arrays.from_array(dtype(zero), name) for name, dtype, zero in
              (("z", np.int8, 0), ("zx", np.uint8, 128), ("zy", np.uint8, 128))),
        ]  # fmt: skip
        nodes = [
            make.make_node("QuantizeLinear", ["x", "sx", "zx"], ["xq"]),
            make.make_node("DequantizeLinear", ["xq", "sx", "zx"], ["xd"]),
            make.make_node("DequantizeLinear", ["wq", "s", "z"], ["wd"]),
        ]
        left, right = "xd", "wd"
    nodes.append(make.make_node("MatMul", [left, right], ["p" if quantized else "y"], name="product"))
    if quantized:
        nodes += [
            make.make_node("QuantizeLinear", ["p", "sy", "zy"], ["yq"]),
            make.make_node("DequantizeLinear", ["yq", "sy", "zy"], ["y"]),
        ]
    ends = [
        [make.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", width])]
        for name, width in (("x", 4), ("y", 3))
    ]
    graph = make.make_graph(nodes, "small", *ends, initializer=constants)
    onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 20)], ir_version=10), str(path))
    return path


@pytest.fixture
def feeds() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).uniform(-2, 2, (50, 4)).astype(np.float32)}


WEIGHTS = np.random.default_rng(1).uniform(-1, 1, (4, 3))


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_the_share_in_int8_is_the_engines_own(engine: quality.Engine, tmp_path: Path) -> None:
    assert quality.int8_share(model(tmp_path / "float.onnx", WEIGHTS), engine) == 0.0
    assert quality.int8_share(model(tmp_path / "int8.onnx", WEIGHTS, quantized=True), engine) == 1.0


def test_lost_and_won_are_the_difference_of_top1(tmp_path: Path, feeds: dict[str, np.ndarray]) -> None:
    reference = quality.outputs(model(tmp_path / "float.onnx", WEIGHTS), feeds)
    other = model(tmp_path / "other.onnx", WEIGHTS + np.random.default_rng(2).normal(0, 0.5, WEIGHTS.shape))
    labels = np.random.default_rng(3).integers(0, 3, 50)
    found = quality.evaluate(reference, other, feeds, labels, "onnxruntime")
    assert found["lost"] > 0 and found["won"] > 0
    assert (found["lost"] - found["won"]) / 50 == pytest.approx(found["top1_float"] - found["top1"])
    same = quality.evaluate(reference, tmp_path / "float.onnx", feeds, labels, "onnxruntime")
    assert (same["lost"], same["won"], same["agreement"]) == (0, 0, 1.0)
    assert "lost" not in quality.evaluate(reference, other, feeds, None, "onnxruntime")


def test_evaluating_again_quantizes_nothing_and_keeps_the_rest(tmp_path: Path, feeds: dict[str, np.ndarray]) -> None:
    labels = np.zeros(50, np.int64)
    item = zoo.Item("resnet18-digits", model(tmp_path / "float.onnx", WEIGHTS), "a task", feeds, feeds, labels)
    test = calibration.Test(item, 20)
    graph = model(tmp_path / "resnet18-digits.ort-minmax.onnx", WEIGHTS, quantized=True)
    before = graph.read_bytes()
    written(tmp_path, "ort-minmax", seconds=3.0, extra_peak_mb=1.0, onnxruntime={"samples": 5})
    written(tmp_path, "ort-entropy", error="Fail")
    for tool in ("ort-minmax", "ort-entropy", "ort-percentile"):
        calibration.evaluate(test, tool, tmp_path)
    found = json.loads((tmp_path / "resnet18-digits.ort-minmax.json").read_text())
    assert found["seconds"] == 3.0 and graph.read_bytes() == before
    assert found["onnxruntime"]["samples"] == 20 and found["onnxruntime"]["int8_share"] == 1.0
    assert found["openvino"]["sqnr_db"] > 20
    assert json.loads((tmp_path / "resnet18-digits.ort-entropy.json").read_text()) == {
        "tool": "ort-entropy", "error": "Fail"
    }  # fmt: skip
    assert not (tmp_path / "resnet18-digits.ort-percentile.json").exists()


def test_a_graph_that_an_engine_refuses_is_a_result(tmp_path: Path, feeds: dict[str, np.ndarray]) -> None:
    item = zoo.Item("resnet18-digits", model(tmp_path / "float.onnx", WEIGHTS), "a task", feeds, feeds, None)
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    found = calibration.Test(item, 5).measured(tmp_path / "broken.onnx", "ort-minmax")
    assert set(found) == {"onnxruntime", "openvino"} and all("error" in facts for facts in found.values())
