from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from edgetl.quantize import calibrate, graph, insertion, placement, recipes, zero_points
from edgetl.quantize.schemes import SCHEMES
from edgetl.quantize.tools import Tools
from edgetl.runtime.onnxruntime import OnnxRuntimeRunner
from edgetl.runtime.openvino import OpenVinoRunner
from edgetl.specs import Estimator, Recipe

sys.path.insert(0, str(Path(__file__).parent))
import graphs

PLAIN = Recipe(name="t", description="", activations=Estimator(method="minmax"), weights=Estimator(method="minmax"))
OPENVINO = SCHEMES["openvino-vnni"]
TOKENS = np.random.default_rng(0).normal(0.4, 1, size=(16, 8, 32)).astype(np.float32)
IMAGES = np.random.default_rng(2).uniform(-1, 1.4, size=(8, 3, 16, 16)).astype(np.float32)
ROWS = np.random.default_rng(1).normal(0.4, 1, size=(32, 12)).astype(np.float32)


def quantized(source: Path, data: np.ndarray) -> insertion.Quantized:
    model = graph.prepare(graph.load(source))
    names = placement.points(model, [OPENVINO])
    found = calibrate.calibrate(model, names, [{"input": data}], open_runner=OnnxRuntimeRunner)
    return insertion.quantize(model, found.sketches, OPENVINO, PLAIN)


def zeros(model: ir.Model, operator: str) -> dict[str, int]:
    """Zero points of a QuantizeLinear or DequantizeLinear of activations, by what is quantized."""
    found = {}
    for node in model.graph:
        quantize = node.inputs[0].producer() if operator == "DequantizeLinear" and node.inputs[0] else node
        if node.op_type != operator or quantize is None or quantize.op_type != "QuantizeLinear":
            continue
        zero_point = graph.array_of(node.inputs[2])
        assert zero_point is not None
        found[str(quantize.inputs[0].name)] = int(zero_point)
    return found


def perceptron(path: Path, *, bias: Literal["constant", "none", "computed"] = "constant") -> Path:
    """From "input" (batch, 12) to "logits" (batch, 5): a product, HardSwish, another product."""
    net = graphs.Net(2)
    net.matmul("input", "hidden", 12, 24, bias=bias != "none")
    net.add("HardSwish", ["hidden"], "active")
    net.weight("head", 5, 24)
    inputs = ["active", "head"]
    if bias == "constant":
        inputs.append(net.constant("head_bias", net.random.normal(size=5)))
    elif bias == "computed":
        net.constant("axes", [1], np.int64)
        inputs.append(net.add("ReduceMean", ["input", "axes"], "mean"))
    net.add("Gemm", inputs, "logits", transB=1)
    return net.save(path, inputs={"input": (TensorProto.FLOAT, ["batch", 12])})


@pytest.mark.parametrize("bias", ["constant", "none"])
def test_products_read_no_zero_point_and_put_out_the_same(bias: Literal["constant", "none"], tmp_path: Path) -> None:
    done = quantized(perceptron(tmp_path / "m.onnx", bias=bias), ROWS)
    before = graphs.computed(done.model, ROWS)
    quantizers = zeros(done.model, "QuantizeLinear")
    assert quantizers["input"] != 0 != quantizers["active"]
    folded = zero_points.fold(done.model, done.layers, OPENVINO)
    assert set(folded) == {"input", "active"}
    assert zeros(done.model, "QuantizeLinear") == quantizers  # values are rounded to the same integers
    assert zeros(done.model, "DequantizeLinear") == {"input": 0, "active": 0}
    graphs.assert_close(before, graphs.computed(done.model, ROWS), 1e-6)
    read = {str(value.name) for node in done.model.graph for value in node.inputs if value is not None}
    assert set(done.model.graph.initializers) <= read  # the biases of before are gone


@settings(max_examples=30, deadline=None)
@given(mean=st.floats(-20, 20), spread=st.floats(0.01, 10), width=st.integers(1, 40), seed=st.integers(0, 10_000))
def test_whatever_the_activations(
    mean: float, spread: float, width: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows = np.random.default_rng(seed).normal(mean, spread, size=(8, width)).astype(np.float32)
    net = graphs.Net(seed)
    net.matmul("input", "logits", width, 5)
    source = net.save(
        tmp_path_factory.mktemp("fold") / "m.onnx", inputs={"input": (TensorProto.FLOAT, ["batch", width])}
    )
    done = quantized(source, rows)
    before = graphs.computed(done.model, rows)
    zero_points.fold(done.model, done.layers, OPENVINO)
    graphs.assert_close(before, graphs.computed(done.model, rows), 1e-5 * (1 + abs(mean) / spread))


def test_attention_and_what_follows_it(tmp_path: Path) -> None:
    done = quantized(graphs.transformer(tmp_path / "m.onnx"), TOKENS)
    before = graphs.computed(done.model, TOKENS)
    folded = zero_points.fold(done.model, done.layers, OPENVINO)
    assert set(folded) == {"ln_1", "joined", "ln_2", "gelu", "mean"}
    graphs.assert_close(before, graphs.computed(done.model, TOKENS), 1e-5)


@pytest.mark.parametrize(("kernel", "group", "options", "folded"), [
    (1, 1, {}, True), (1, 2, {}, True), (3, 1, {"pads": [0] * 4}, True), (3, 1, {}, False),
    (3, 1, {"auto_pad": "SAME_UPPER", "pads": None}, False), (3, 1, {"auto_pad": "VALID", "pads": None}, True),
])  # fmt: skip
def test_a_convolution_that_pads_nothing(
    kernel: int, group: int, options: dict[str, Any], folded: bool, tmp_path: Path
) -> None:
    """Elsewhere a tensor of both signs goes without a zero point, if that adds little noise."""
    net = graphs.Net(6)
    net.conv("input", "first", 16, 3)
    net.add("Add", ["first", net.constant("away", 3.0)], "moved")
    net.conv("moved", "second", 16, 16, kernel, group=group, **options)
    net.classify("second", 16)
    done = quantized(net.save(tmp_path / "m.onnx"), IMAGES)
    before = graphs.computed(done.model, IMAGES)
    assert zeros(done.model, "QuantizeLinear")["moved"] != 0
    assert ("moved" in zero_points.fold(done.model, done.layers, OPENVINO)) == folded
    assert (zeros(done.model, "DequantizeLinear")["moved"] == 0) == folded
    graphs.assert_close(before, graphs.computed(done.model, IMAGES), 1e-5)


def test_signed_bytes_only_where_a_zero_point_would_cost_time(tmp_path: Path) -> None:
    """Of two tensors of both signs, that which a padding convolution reads has no zero point."""
    net = graphs.Net(6)
    net.conv("input", "first", 16, 3, bias="none")
    net.conv("first", "second", 16, 16, bias="none")
    net.conv("second", "third", 16, 16, 3)
    net.classify("third", 16)
    images = np.random.default_rng(3).uniform(-1, 1, size=IMAGES.shape).astype(np.float32)
    done = quantized(net.save(tmp_path / "m.onnx"), np.concatenate([images, -images]))  # nothing is off its middle
    assert zeros(done.model, "QuantizeLinear")["second"] == 0
    assert done.params["second"].type.name == "int8" and done.params["first"].type.name == "uint8"


def test_a_bias_that_is_computed_stays_as_it_is(tmp_path: Path) -> None:
    done = quantized(perceptron(tmp_path / "m.onnx", bias="computed"), ROWS)
    assert zeros(done.model, "DequantizeLinear")["active"] != 0
    assert zero_points.fold(done.model, done.layers, OPENVINO) == ("input",)


def test_engines_whose_products_have_no_price_for_them_keep_them(tmp_path: Path) -> None:
    done = quantized(perceptron(tmp_path / "m.onnx"), ROWS)
    assert zero_points.fold(done.model, done.layers, SCHEMES["onnxruntime-x86-vnni"]) == ()


def test_a_recipe_folds_behind_its_corrections(tmp_path: Path) -> None:
    """The report is of the graph before, and corrections hold; OpenVINO puts out what the graph says."""
    model = graph.prepare(graph.load(graphs.transformer(tmp_path / "m.onnx")))
    tools = Tools(samples=lambda: [{"input": TOKENS}], open_runner=OnnxRuntimeRunner)
    found = recipes.calibrate(model, tools, [OPENVINO])
    recipe = Recipe(
        name="t", description="", activations=Estimator(method="mse"), weights=Estimator(method="mse"),
        bias_correction="sequential",
    )  # fmt: skip
    made = recipes.make(model, found, OPENVINO, recipe, tools)
    assert set(made.notes["zero_points_in_biases"]) == {"ln_1", "joined", "ln_2", "gelu", "mean"}
    assert made.report is not None
    assert min(loss.accumulated_db for loss in made.report.layers) > 20
    path = tmp_path / "q.onnx"
    ir.save(made.model, path)
    onnx.checker.check_model(str(path), full_check=True)
    wanted = graphs.computed(model, TOKENS)[0]
    with OpenVinoRunner(path, inference_precision="f32") as runner:
        mine = runner.run({"input": TOKENS})["logits"]
    noise = np.square(np.asarray(mine) - wanted).sum()
    assert 10 * np.log10(np.square(wanted).sum() / noise) > 25
