from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgetl.quantize import calibrate, constants, correction, dynamic, graph, half, insertion, layers, placement
from edgetl.quantize.decibels import NO_NOISE_DB, decibel, worst_first
from edgetl.quantize.fidelity import FloatOutput
from edgetl.quantize.insertion import Quantized
from edgetl.quantize.layers import LayerReport
from edgetl.quantize.ranges import QuantParams
from edgetl.quantize.schemes import SCHEMES
from edgetl.runtime.onnxruntime import OnnxRuntimeRunner
from edgetl.specs import Estimator, Recipe

sys.path.insert(0, str(Path(__file__).parent))
import graphs

PLAIN = Recipe(name="t", description="", activations=Estimator(method="minmax"), weights=Estimator(method="minmax"))


def measured(source: Path, scheme: str, batches: list[dict[str, np.ndarray]]) -> tuple[Quantized, LayerReport]:
    model = graph.prepare(graph.load(source))
    names = placement.points(model, [SCHEMES[scheme]])
    found = calibrate.calibrate(model, names, batches, open_runner=OnnxRuntimeRunner)
    done = insertion.quantize(model.clone(), found.sketches, SCHEMES[scheme], PLAIN)
    before = [ir.to_proto(each).SerializeToString() for each in (model, done.model)]
    report = layers.report(model, done, found.sketches, batches, open_runner=OnnxRuntimeRunner)
    assert before == [ir.to_proto(each).SerializeToString() for each in (model, done.model)], "they are not changed"
    return done, report


def sqnr(signal: np.ndarray, other: np.ndarray) -> float:
    noise = np.square(signal - other).sum()
    return float(10 * np.log10(np.square(signal).sum() / noise)) if noise else NO_NOISE_DB


def images(count: int = 8) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 3, 16, 16)).astype(np.float32)


def test_two_layers_by_hand(tmp_path: Path) -> None:
    net = graphs.Net(9)
    net.add("Flatten", ["input"], "rows")
    net.weight("first", 32, 768)
    net.add("Gemm", ["rows", "first"], "a", transB=1)
    net.add("Relu", ["a"], "b")
    net.weight("second", 32, 5, reduced=32)
    net.add("MatMul", ["b", "second"], "logits")
    data = images()
    done, report = measured(net.save(tmp_path / "m.onnx"), "openvino", [{"input": data[:3]}, {"input": data[3:]}])

    def kept(name: str, values: np.ndarray) -> np.ndarray:
        params: QuantParams = done.params[name]
        return params.fake_quantize(values)

    arrays = {layer.node: graph.array_of(done.model.graph.initializers[layer.integers]) for layer in done.layers}
    gemm, matmul = (
        arrays[layer.node] * (layer.scales[:, None] if layer.axis == 0 else layer.scales[None, :])
        for layer in done.layers
    )
    rows = data.reshape(8, -1).astype(np.float64)
    first, second = (net.weights[name].astype(np.float64) for name in ("first", "second"))
    a = rows @ first.T
    b, a_quantized = np.maximum(a, 0), kept("rows" if "rows" in done.params else "input", rows) @ gemm.T
    b_quantized = kept("b", np.maximum(a_quantized, 0))
    expected = {
        "a_node": (sqnr(a, a_quantized), sqnr(a, a_quantized)),
        "logits_node": (sqnr(b @ second, kept("b", b) @ matmul), sqnr(b @ second, b_quantized @ matmul)),
    }
    found = {loss.node: loss for loss in report.layers}
    assert set(found) == set(expected) and report.samples == 8
    for name, (isolated, accumulated) in expected.items():
        assert found[name].isolated_db == pytest.approx(isolated, abs=0.05)
        assert found[name].accumulated_db == pytest.approx(accumulated, abs=0.05)
    tensors = {loss.name: loss for loss in report.tensors}
    assert tensors["b"].isolated_db == pytest.approx(sqnr(b, kept("b", b)), abs=0.3)
    assert tensors["b"].accumulated_db == pytest.approx(sqnr(b, b_quantized), abs=0.1)
    assert (tensors["b"].scale, tensors["b"].high) == (done.params["b"].scale, done.params["b"].high)


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
@pytest.mark.parametrize("kind", ["residual", "concatenated", "squeezed", "shared", "transformer"])
def test_every_layer_is_reported_worst_first(kind: str, scheme: str, tmp_path: Path) -> None:
    data = images(4)
    if kind == "transformer":
        data = data.reshape(4, -1)[:, :256].reshape(4, 8, 32)
    if (kind, scheme) == ("shared", "tensorrt"):
        pytest.skip("its convolutions have three channels: all stay in float")
    done, report = measured(getattr(graphs, kind)(tmp_path / "m.onnx"), scheme, [{"input": data}])
    assert {loss.node for loss in report.layers} == {layer.node for layer in done.layers}
    assert {loss.name for loss in report.tensors} <= set(done.params)
    for losses in (report.layers, report.tensors):
        worst_first = [loss.isolated_db for loss in losses]
        assert worst_first == sorted(worst_first) and all(10 < value <= NO_NOISE_DB for value in worst_first)
    assert all(loss.accumulated_db > 10 for loss in report.layers)


def rounded(values: np.ndarray) -> np.ndarray:
    """As DynamicQuantizeLinear and its inverse: uint8 over the range of all values, 0 included."""
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    scale = (high - low) / 255
    zero_point = np.rint(-low / scale)
    return np.asarray((np.clip(np.rint(values / scale) + zero_point, 0, 255) - zero_point) * scale)


def test_two_dynamic_products_by_hand(tmp_path: Path) -> None:
    net = graphs.Net(9)
    net.add("Flatten", ["input"], "rows")
    net.weight("first", 32, 768)
    net.constant("bias", net.random.normal(size=32))
    net.add("Gemm", ["rows", "first", "bias"], "a", transB=1)
    net.add("Relu", ["a"], "b")
    net.weight("second", 32, 5, reduced=32)
    net.add("MatMul", ["b", "second"], "logits")
    model, data = graph.prepare(graph.load(net.save(tmp_path / "m.onnx"))), images()
    done = dynamic.quantize_dynamic(model.clone())
    batches = [{"input": data[:3]}, {"input": data[3:]}]
    report = layers.report_dynamic(model, done, batches, open_runner=OnnxRuntimeRunner)

    nodes = {node.name: node for node in done.model.graph}

    def weights(name: str) -> np.ndarray:
        integers = graph.array_of(nodes[name].inputs[1])
        scales = graph.array_of(nodes[f"{name}_scales"].inputs[1])
        assert integers is not None and scales is not None
        return np.asarray(integers * scales)

    gemm, matmul = weights("a_node"), weights("logits_node")
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ("a", "a_quantized", "y", "y_alone", "y_quantized")}
    for batch in batches:  # each has ranges of its own
        rows = batch["input"].reshape(len(batch["input"]), -1).astype(np.float64)
        a, a_quantized = rows @ net.weights["first"].T + net.weights["bias"], rounded(rows) @ gemm + net.weights["bias"]
        b, b_quantized = np.maximum(a, 0), np.maximum(a_quantized, 0)
        results = (a, a_quantized, b @ net.weights["second"], rounded(b) @ matmul, rounded(b_quantized) @ matmul)
        for name, array in zip(parts, results, strict=True):
            parts[name].append(array)
    whole = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    first = sqnr(whole["a"], whole["a_quantized"])
    expected = {
        "a_node": (first, first),
        "logits_node": (sqnr(whole["y"], whole["y_alone"]), sqnr(whole["y"], whole["y_quantized"])),
    }
    found = {loss.node: loss for loss in report.layers}
    assert set(found) == set(expected) and (report.samples, report.tensors) == (8, ())
    for name, (isolated, accumulated) in expected.items():
        assert found[name].isolated_db == pytest.approx(isolated, abs=0.05)
        assert found[name].accumulated_db == pytest.approx(accumulated, abs=0.05)


@pytest.mark.parametrize("kind", ["transformer", "embedded"])
def test_every_dynamic_product_is_reported_worst_first(kind: str, tmp_path: Path) -> None:
    model = graph.prepare(graph.load(getattr(graphs, kind)(tmp_path / "m.onnx")))
    random = np.random.default_rng(0)
    batch: dict[str, np.ndarray] = {"input": random.normal(size=(4, 8, 32)).astype(np.float32)}
    if kind == "embedded":
        batch = {"ids": random.integers(0, 50, (4, 6)), "mask": np.ones((4, 6), np.float32)}
    done = dynamic.quantize_dynamic(model.clone())
    before = [ir.to_proto(each).SerializeToString() for each in (model, done.model)]
    report = layers.report_dynamic(model, done, [batch], open_runner=OnnxRuntimeRunner)
    assert before == [ir.to_proto(each).SerializeToString() for each in (model, done.model)], "they are not changed"
    assert {loss.node for loss in report.layers} == {product.node for product in done.products}
    assert {loss.node for loss in report.layers} <= {node.name for node in done.model.graph}, "they keep their names"
    alone = [loss.isolated_db for loss in report.layers]
    assert alone == sorted(alone) and len(alone) == sum(done.quantized.values())
    assert all(20 < loss.accumulated_db < NO_NOISE_DB and loss.isolated_db > 20 for loss in report.layers)


def test_a_layer_that_is_broken_is_the_worst(tmp_path: Path) -> None:
    model = graph.prepare(graph.load(graphs.residual(tmp_path / "m.onnx")))
    names = placement.points(model, [SCHEMES["openvino"]])
    batches = [{"input": images()}]
    found = calibrate.calibrate(model, names, batches, open_runner=OnnxRuntimeRunner)
    done = insertion.quantize(model.clone(), found.sketches, SCHEMES["openvino"], PLAIN)
    wanted = FloatOutput(model, batches, open_runner=OnnxRuntimeRunner)
    healthy = wanted.fidelity(done.model).total_db
    nodes = {str(node.name): node for node in done.model.graph}
    layer = next(layer for layer in done.layers if layer.node == "project_conv")
    integers = graph.array_of(done.model.graph.initializers[layer.integers])
    assert integers is not None
    constants.replace_integers(done.model.graph, nodes["project_conv"], -integers)
    report = layers.report(model, done, found.sketches, batches, open_runner=OnnxRuntimeRunner)
    assert report.layers[0].node == "project_conv" and report.layers[0].isolated_db < 5
    assert all(loss.isolated_db > 20 for loss in report.layers[1:])
    assert wanted.fidelity(done.model).total_db < healthy - 10


@pytest.mark.filterwarnings("error")
def test_what_overflows_has_no_figure_and_comes_last() -> None:
    assert np.isnan(decibel(float("inf"), float("inf"))) and np.isnan(decibel(1.0, float("inf")))
    assert decibel(1.0, 0.01) == pytest.approx(20.0) and decibel(1.0, 0.0) == NO_NOISE_DB
    assert sorted([30.0, float("nan"), 10.0, 20.0], key=worst_first)[:3] == [10.0, 20.0, 30.0]
    losses = [("overflows", float("nan")), *((f"layer{index}", 10.0 + index) for index in range(9))]
    assert correction.flagged(losses) == {"layer0"}


def in_half(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return values.astype(np.float16).astype(np.float32)


def test_two_nodes_in_float16_by_hand(tmp_path: Path) -> None:
    net = graphs.Net(9)
    net.add("Flatten", ["input"], "rows")
    net.weight("first", 32, 768)
    net.add("Gemm", ["rows", "first"], "a", transB=1)
    net.weight("second", 32, 5, reduced=32)
    net.add("MatMul", ["a", "second"], "logits")
    model = graph.prepare(graph.load(net.save(tmp_path / "m.onnx")))
    done = half.to_half(model.clone())
    data = images()
    before = [ir.to_proto(each).SerializeToString() for each in (model, done.model)]
    batches = [{"input": data[:3]}, {"input": data[3:]}]
    report = layers.report_half(model, done.model, batches, open_runner=OnnxRuntimeRunner)
    assert before == [ir.to_proto(each).SerializeToString() for each in (model, done.model)], "they are not changed"
    rows = data.reshape(8, -1)
    first, second = (net.weights[name].astype(np.float32) for name in ("first", "second"))
    a = rows @ first.T
    a_half = in_half(in_half(rows) @ in_half(first).T)
    expected = {
        "Gemm": (sqnr(a, a_half),) * 2,
        "MatMul": (
            sqnr(a @ second, in_half(in_half(a) @ in_half(second))),
            sqnr(a @ second, in_half(a_half @ in_half(second))),
        ),
    }
    assert {loss.operator for loss in report.layers} == set(expected) and report.tensors == () and report.samples == 8
    for loss in report.layers:  # a Flatten moves values, and is not told of
        assert (loss.isolated_db, loss.accumulated_db) == pytest.approx(expected[loss.operator], abs=0.5)
        assert 55 < loss.accumulated_db < 80


@pytest.mark.parametrize("kind", ["residual", "concatenated", "squeezed", "shared", "transformer", "embedded"])
def test_every_node_in_float16_is_reported_worst_first(kind: str, tmp_path: Path) -> None:
    model = graph.prepare(graph.load(getattr(graphs, kind)(tmp_path / "m.onnx")))
    random = np.random.default_rng(0)
    batch: dict[str, np.ndarray] = {"input": images(4)}
    if kind == "transformer":
        batch = {"input": random.normal(size=(4, 8, 32)).astype(np.float32)}
    if kind == "embedded":
        batch = {"ids": random.integers(0, 50, (4, 6)), "mask": np.ones((4, 6), np.float32)}
    done = half.to_half(model.clone())
    report = layers.report_half(model, done.model, [batch], open_runner=OnnxRuntimeRunner)
    named = {str(node.name): node.op_type for node in model.graph}
    products = {name for name, operator in named.items() if operator in ("Conv", "Gemm", "MatMul")}
    told = {loss.node for loss in report.layers}
    assert products <= told | set(done.reasons) and told <= set(named) - set(done.reasons)
    assert len(told) > len(products)
    alone = [loss.isolated_db for loss in report.layers]
    assert alone == sorted(alone) and min(alone) > 45
    assert all(loss.accumulated_db > 45 for loss in report.layers)


def test_a_node_whose_output_float16_cannot_hold_is_the_first(tmp_path: Path) -> None:
    net = graphs.Net(9)
    net.add("Flatten", ["input"], "rows")
    net.weight("first", 32, 768)
    net.add("Gemm", ["rows", "first"], "a", transB=1)
    net.add("Mul", ["a", "a"], "b")
    net.weight("second", 32, 5, reduced=32)
    net.add("MatMul", ["b", "second"], "logits")
    model = graph.prepare(graph.load(net.save(tmp_path / "m.onnx")))
    report = layers.report_half(
        model, half.to_half(model.clone()).model, [{"input": images() * 1000}], open_runner=OnnxRuntimeRunner
    )
    assert report.layers[0].operator == "Mul"
    assert np.isnan(report.layers[0].isolated_db) and np.isnan(report.layers[0].accumulated_db)
    gemm = next(loss for loss in report.layers if loss.operator == "Gemm")
    assert 55 < gemm.accumulated_db < 80


def test_a_condition_is_the_float_graphs_where_a_node_is_looked_at_alone(tmp_path: Path) -> None:
    """It was the float16 graph's: what had decided otherwise there was counted against the Where."""
    net = graphs.Net(9)
    net.add("Flatten", ["input"], "rows")
    net.add("Mul", ["rows", net.constant("little", 1e-4)], "small")
    net.add("Add", ["small", net.constant("one", 1.0)], "near")  # 1 ± 0.0001 is 1 in float16
    net.add("Greater", ["near", "one"], "above")
    net.add("Where", ["above", "rows", net.constant("other", 7.0)], "chosen")
    net.weight("head", 768, 5, reduced=768)
    net.add("MatMul", ["chosen", "head"], "logits")
    model = graph.prepare(graph.load(net.save(tmp_path / "m.onnx")))
    done = half.to_half(model.clone())
    report = layers.report_half(model, done.model, [{"input": images()}], open_runner=OnnxRuntimeRunner)
    where = next(loss for loss in report.layers if loss.operator == "Where")
    assert where.isolated_db > 60 and where.accumulated_db < 10


@pytest.mark.parametrize("recipe", ["fp16", "int8"])
def test_each_layer_is_compared_before_those_far_behind_it_are_computed(recipe: str, tmp_path: Path) -> None:
    """All activations of all graphs were alive at once: 2.8 GB where the float graph has 0.6."""
    net = graphs.Net()
    last = net.conv("input", "a0", 16, 3, 3)
    for number in range(1, 8):
        last = net.conv(last, f"a{number}", 16, 16, 3)
    net.classify(last, 16)
    model = graph.prepare(graph.load(net.save(tmp_path / "m.onnx")))
    batch = {"input": images(1)}
    saved = tmp_path / "saved.onnx"

    def kept(path: Path, *, frugal: bool = False) -> OnnxRuntimeRunner:
        saved.write_bytes(path.read_bytes())
        return OnnxRuntimeRunner(path, threads=1, frugal=frugal)

    if recipe == "fp16":
        report = layers.report_half(model, half.to_half(model.clone()).model, [batch], open_runner=kept)
    else:
        scheme = SCHEMES["openvino"]
        found = calibrate.calibrate(model, placement.points(model, [scheme]), [batch], open_runner=OnnxRuntimeRunner)
        done = insertion.quantize(model.clone(), found.sketches, scheme, PLAIN)
        report = layers.report(model, done, found.sketches, [batch], open_runner=kept)
    assert len(report.layers) >= 8
    with OnnxRuntimeRunner(saved, threads=1, optimise=False) as runner:
        order = [node.name for node in runner.nodes(batch)]
    computed = [order.index(f"a{number}_node") for number in range(8)]
    compared = [place for place, name in enumerate(order) if "difference" in name]
    for number in range(6):  # one layer further on is computed by then, at most
        assert sum(computed[number] < place < computed[number + 2] for place in compared) >= 1
    assert len([place for place in compared if place < computed[7]]) > len(compared) / 2


def test_names_of_the_model_that_look_like_ours(tmp_path: Path) -> None:
    """Names of the model's own took part in the comparison, or no engine loaded it."""
    net = graphs.Net(9)
    net.add("Flatten", ["input"], "rows", name="rows@half")
    net.weight("first", 768, 32, reduced=768)
    net.add("MatMul", ["rows", "first"], "rows@half", name="rows_to_half")
    net.add("Softmax", ["rows@half"], "rows_half", name="signals")
    net.weight("second", 32, 32)
    net.add("MatMul", ["rows_half", "second"], "noises", name="rows@half_to_float")
    net.add("Softmax", ["noises"], "signals", name="rows_half_to_half")
    net.weight("head", 32, 5, reduced=32)
    net.add("MatMul", ["signals", "head"], "logits", name="1@difference")
    model = graph.prepare(graph.load(net.save(tmp_path / "m.onnx")))
    done = half.to_half(model.clone())
    names = {str(node.name): node.op_type for node in done.model.graph}
    assert all(names[str(node.name)] == node.op_type for node in model.graph), "the model's own stay"
    report = layers.report_half(model, done.model, [{"input": images()}], open_runner=OnnxRuntimeRunner)
    assert {loss.node for loss in report.layers} == {"rows_to_half", "rows@half_to_float", "1@difference"}
    assert all(55 < loss.accumulated_db < 90 for loss in report.layers)
