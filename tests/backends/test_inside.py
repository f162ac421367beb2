"""Engines opened up: the tensors that they keep, what their graphs promise, and that looking changes nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from edgetl.backends import inside  # noqa: E402
from edgetl.backends._inside_onnx import InsideOnnx  # noqa: E402
from edgetl.backends.base import EngineRecord  # noqa: E402
from edgetl.backends.inside import Node, places_of  # noqa: E402
from edgetl.parity.numeric import sqnr_db  # noqa: E402
from edgetl.quantize import calibrate, dynamic, graph, insertion, placement, zero_points  # noqa: E402
from edgetl.quantize.half import to_half  # noqa: E402
from edgetl.quantize.schemes import SCHEMES  # noqa: E402
from edgetl.runtime.onnxruntime import OnnxRuntimeRunner  # noqa: E402
from edgetl.specs import Estimator, Recipe  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1] / "quantize"))
import graphs  # noqa: E402

PLAIN = Recipe(name="t", description="", activations=Estimator(method="minmax"), weights=Estimator(method="minmax"))
IMAGES = np.random.default_rng(0).normal(size=(4, 3, 16, 16)).astype(np.float32)
TOKENS = np.random.default_rng(0).normal(size=(4, 8, 32)).astype(np.float32)


def quantized(source: Path, target: Path, data: np.ndarray, scheme: str = "openvino") -> Path:
    model = graph.prepare(graph.load(source))
    names = placement.points(model, [SCHEMES[scheme]])
    found = calibrate.calibrate(model, names, [{"input": data}], open_runner=OnnxRuntimeRunner)
    done = insertion.quantize(model, found.sketches, SCHEMES[scheme], PLAIN)
    zero_points.fold(done.model, done.layers, SCHEMES[scheme])
    ir.save(done.model, target)
    return target


def prepared(source: Path, target: Path) -> Path:
    ir.save(graph.prepare(graph.load(source)), target)
    return target


def seen(look: Callable[..., inside.Looking], names: list[str], data: np.ndarray) -> dict[str, np.ndarray]:
    with look(names) as opened:
        return {**opened.run({"input": data}), "": opened.outputs}


NETWORKS = {"residual": IMAGES, "concatenated": IMAGES, "squeezed": IMAGES, "transformer": TOKENS}


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("scheme", ["openvino", "onnxruntime-x86"])
def test_places_of_quantized_graphs(kind: str, scheme: str, tmp_path: Path) -> None:
    if scheme not in SCHEMES:
        pytest.skip(f"there is no scheme {scheme}; there are {', '.join(SCHEMES)}")
    data = NETWORKS[kind]
    source = getattr(graphs, kind)(tmp_path / "source.onnx")
    exact = InsideOnnx(prepared(source, tmp_path / "float.onnx"), (), tmp_path)
    opened = InsideOnnx(quantized(source, tmp_path / "q.onnx", data, scheme), exact.tensors, tmp_path)
    names = [place.name for place in opened.places]
    assert len(names) > 3 and names[-1] == "logits" and len(set(names)) == len(names)
    for number, place in enumerate(opened.places):
        assert set(place.before) <= set(names[:number]) and place.layer
    wanted = seen(exact.promise, names, data)
    promise, engine = seen(opened.promise, names, data), seen(opened.engine, names, data)
    for name in names:
        assert wanted[name].shape == promise[name].shape
        assert sqnr_db(wanted[name], promise[name]) > 15
        assert sqnr_db(promise[name], engine[name]) > 25
    alone = seen(opened.engine, [], data)[""]
    np.testing.assert_array_equal(alone, OnnxRuntimeRunner(tmp_path / "q.onnx").run({"input": data})["logits"])
    assert sqnr_db(alone.astype(float), engine["logits"]) > 35
    layers = {item.node for item in opened.restored}
    there = [item for item in opened.restored if (item.node, item.kind) in exact.constants]
    assert layers == {item.node for item in there}
    assert all(item.values.shape == exact.constants[item.node, item.kind].shape for item in there)
    left_out = [item for item in opened.restored if (item.node, item.kind) not in exact.constants]
    assert all(item.kind == "bias" and not item.values.any() for item in left_out)
    assert not list(tmp_path.glob("*[0-9a-f]*-*")) and len(list(tmp_path.glob("*.onnx"))) == 3  # looks leave no file


def test_the_promise_of_openvino_is_that_of_the_graph(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    from edgetl.backends._inside_openvino import InsideOpenVino
    from edgetl.runtime.openvino import core

    source = graphs.residual(tmp_path / "source.onnx")
    exact = InsideOnnx(prepared(source, tmp_path / "float.onnx"), (), tmp_path)
    mine = InsideOnnx(quantized(source, tmp_path / "q.onnx", IMAGES), exact.tensors, tmp_path)
    openvino.save_model(core().read_model(tmp_path / "q.onnx"), tmp_path / "q.xml", compress_to_fp16=False)
    settings = {"device": "CPU", "inference_precision": "f32"}
    its = InsideOpenVino(tmp_path / "q.xml", exact.tensors, tmp_path, **settings)
    names = [place.name for place in its.places]
    assert names == [place.name for place in mine.places]
    assert [place.before for place in its.places] == [place.before for place in mine.places]
    one, other = seen(mine.promise, names, IMAGES), seen(its.promise, names, IMAGES)
    for name in names:
        assert sqnr_db(one[name], other[name]) > 40, name  # ties are rounded to either side
    assert {(item.node, item.axis) for item in its.restored if item.kind == "weights"} == {
        (item.node, item.axis) for item in mine.restored if item.kind == "weights"
    }
    biases = {item.node: item.values for item in its.restored if item.kind == "bias"}
    assert {"stem_conv", "expand_conv", "depthwise_conv", "project_conv"} <= set(biases)
    for node, values in biases.items():
        np.testing.assert_allclose(values, exact.constants.get((node, "bias"), np.zeros_like(values)), rtol=1e-6)
    scales = {pair.tensor: pair.scale for pair in mine.quantizers}
    for pair in its.quantizers:
        assert pair.scale == pytest.approx(scales[pair.tensor], rel=1e-5) == pytest.approx(pair.back, rel=1e-5)


@pytest.mark.parametrize(("operator", "shape"), [("MatMul", (3, 5)), ("Conv", (5, 3, 1, 1))])
def test_openvino_calls_a_last_layer_without_bias_by_the_name_of_the_output(
    operator: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    """Its weights were compared with nothing."""
    openvino = pytest.importorskip("openvino")
    from onnx import TensorProto, helper, numpy_helper, save

    from edgetl.backends._inside_openvino import InsideOpenVino
    from edgetl.runtime.openvino import core

    data = np.random.default_rng(0).normal(size=(4, 3) if operator == "MatMul" else (4, 3, 6, 6)).astype(np.float32)
    weights = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    made = helper.make_graph(
        [
            helper.make_node("Relu", ["input"], ["positive"], name="positive"),
            helper.make_node(operator, ["positive", "weights"], ["logits"], name="head"),
        ],
        "network",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", *data.shape[1:]])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weights, "weights")],
    )
    save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "source.onnx")
    exact = InsideOnnx(prepared(tmp_path / "source.onnx", tmp_path / "float.onnx"), (), tmp_path)
    quantized(tmp_path / "source.onnx", tmp_path / "q.onnx", data)
    openvino.save_model(core().read_model(tmp_path / "q.onnx"), tmp_path / "q.xml", compress_to_fp16=False)
    its = InsideOpenVino(tmp_path / "q.xml", exact.tensors, tmp_path, device="CPU", inference_precision="f32")
    (found,) = [item for item in its.restored if item.kind == "weights"]
    np.testing.assert_allclose(found.values, exact.constants[found.node, "weights"], atol=0.02)
    np.testing.assert_array_equal(exact.constants[found.node, "weights"], exact.constants["head", "weights"])


def test_openvino_does_not_know_the_rank_behind_a_squeeze_of_whatever_is_one(tmp_path: Path) -> None:
    """Behind an axis of dynamic size; the bias of a layer there was a traceback."""
    openvino = pytest.importorskip("openvino")
    from onnx import TensorProto, helper, numpy_helper, save

    from edgetl.backends._inside_openvino import InsideOpenVino
    from edgetl.runtime.openvino import core

    random = np.random.default_rng(1)
    made = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["input"], ["pooled"], name="pool"),
            helper.make_node("Squeeze", ["pooled"], ["flat"], name="squeeze"),
            helper.make_node("MatMul", ["flat", "weights"], ["hidden"], name="middle"),
            helper.make_node("Relu", ["hidden"], ["logits"], name="positive"),
        ],
        "network",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 16, 16])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(random.normal(size=(3, 5)).astype(np.float32), "weights")],
    )
    save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "source.onnx")
    quantized(tmp_path / "source.onnx", tmp_path / "q.onnx", IMAGES)
    openvino.save_model(core().read_model(tmp_path / "q.onnx"), tmp_path / "q.xml", compress_to_fp16=False)
    its = InsideOpenVino(tmp_path / "q.xml", (), tmp_path, device="CPU", inference_precision="f32")
    assert [(item.node, item.kind) for item in its.restored] == [("middle", "weights")]


def test_dynamic_quantization_and_half_precision(tmp_path: Path) -> None:
    source = graphs.transformer(tmp_path / "source.onnx")
    exact = InsideOnnx(prepared(source, tmp_path / "float.onnx"), (), tmp_path)
    ir.save(dynamic.quantize_dynamic(graph.prepare(graph.load(source))).model, tmp_path / "dynamic.onnx")
    ir.save(to_half(graph.prepare(graph.load(source))).model, tmp_path / "half.onnx")
    for name, least in (("dynamic", 20), ("half", 50)):
        opened = InsideOnnx(tmp_path / f"{name}.onnx", exact.tensors, tmp_path)
        names = [place.name for place in opened.places]
        assert len(names) > 4 and opened.quantizers == ()
        wanted, promise = seen(exact.promise, names, TOKENS), seen(opened.promise, names, TOKENS)
        engine = seen(opened.engine, names, TOKENS)
        assert all(sqnr_db(wanted[each], promise[each]) > least for each in names)
        assert all(sqnr_db(promise[each], engine[each]) > least for each in names)


def test_places_join_at_branches_and_end_at_the_output() -> None:
    def node(name: str, operator: str, inputs: str, output: str) -> Node:
        return Node(name=name, operator=operator, inputs=tuple(inputs.split()), outputs=(output,))

    nodes = [
        node("stem", "Conv", "x", "a"), node("relu", "Relu", "a", "b"), node("left", "Conv", "b", "c"),
        node("right", "Conv", "b", "d"), node("join", "Add", "c d", "e"), node("act", "Relu", "e", "f"),
        node("head", "Gemm", "f", "y"), node("more", "Relu", "y", "z"),
    ]  # fmt: skip
    found = places_of(nodes, {"b": "b", "c": "c", "f": "f", "z": "z"}, "y", "logits")
    assert [(place.name, place.layer, place.before) for place in found] == [
        ("b", "Conv 'stem'", ()),
        ("c", "Conv 'left'", ("b",)),
        ("f", "Conv 'right'", ("c", "b")),
        ("logits", "Gemm 'head'", ("f",)),
    ]


@pytest.mark.parametrize("backend", ["null", "something"])
def test_engines_that_keep_their_graph_to_themselves(backend: str) -> None:
    assert backend in (inside.why_not(record(backend)) or "")
    assert inside.why_not(record("onnxruntime")) is None and inside.why_not(record("openvino")) is None


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt_rtx"])
def test_engines_whose_graph_lies_beside_them(backend: str) -> None:
    assert "is not beside it" in (inside.why_not(record(backend)) or "")
    beside = record(backend, graph="model.onnx")
    assert inside.why_not(beside) is None and inside.why_not_run(beside) is None
    assert "DLA" in (inside.why_not_run(record(backend, graph="model.onnx", options={"dla_core": 0})) or "")


def record(backend: str, **more: Any) -> EngineRecord:
    return EngineRecord(
        backend=backend, provider="gpu:0", precision="int8", status="ready", files=("model.engine",), **more
    )
