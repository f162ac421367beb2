"""Float16 graphs in float32 arithmetic, against ONNX's reference evaluator, which computes in real float16."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgetl.quantize import emulation, graph, half
from edgetl.runtime.onnxruntime import OnnxRuntimeRunner

sys.path.insert(0, str(Path(__file__).parent))
import graphs

node = helper.make_node
F32, F16, I64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64


def proto(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], kind: int = F32) -> onnx.ModelProto:
    """A graph from x to y, both (4, 8)."""
    built = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", kind, [4, 8])],
        [helper.make_tensor_value_info("y", kind, [4, 8])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(built, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def emulated(model: ir.Model, rows: np.ndarray, folder: Path) -> np.ndarray:
    before = ir.to_proto(model).SerializeToString()
    found = emulation.in_float32(model)
    assert ir.to_proto(model).SerializeToString() == before, "it is not changed"
    onnx.checker.check_model(ir.to_proto(found), full_check=True)
    ir.save(found, folder / "emulated.onnx")
    with OnnxRuntimeRunner(folder / "emulated.onnx", threads=1) as runner:
        return np.asarray(runner.run({model.graph.inputs[0].name: rows})[model.graph.outputs[0].name])


def reference(model: ir.Model, rows: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(ReferenceEvaluator(ir.to_proto(model)).run(None, {"x": rows})[0])


ELEMENTWISE = [
    node("Add", ["x", "c"], ["a"], name="add"),
    node("Mul", ["a", "w"], ["b"], name="mul"),
    node("Relu", ["b"], ["d"], name="relu"),
    node("Sub", ["d", "c"], ["e"], name="sub"),
    node("Reshape", ["e", "shape"], ["f"], name="reshape"),
    node("Div", ["f", "w4"], ["g"], name="div"),
    node("Reshape", ["g", "back"], ["h"], name="reshape_back"),
    node("Neg", ["h"], ["y"], name="neg"),
]


@settings(max_examples=30, deadline=None)
@given(scale=st.sampled_from([1e-6, 1e-3, 1.0, 30.0, 2000.0, 1e5]), seed=st.integers(0, 99))
def test_every_node_is_rounded_as_float16_rounds(
    scale: float, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    random = np.random.default_rng(seed)
    weights = {name: random.normal(size=8).astype(np.float32) for name in ("c", "w")}
    weights["w4"] = random.uniform(1, 2, size=4).astype(np.float32)
    weights |= {"shape": np.array([8, 4], np.int64), "back": np.array([4, 8], np.int64)}
    model = half.to_half(graph.prepare(ir.from_proto(proto(ELEMENTWISE, weights)))).model
    rows = (random.normal(size=(4, 8)) * scale).astype(np.float32)
    with np.errstate(over="ignore"):
        found = emulated(model, rows, tmp_path_factory.mktemp("graph"))
    np.testing.assert_array_equal(found, reference(model, rows))  # bit for bit, infinities too


def test_what_onnx_runtime_does_not_round_by_itself(tmp_path: Path) -> None:
    weights = {"one": np.full(8, 1, np.float32), "less": np.full(8, -2048, np.float32)}
    nodes = [node("Add", ["x", "one"], ["a"], name="first"), node("Add", ["a", "less"], ["y"], name="second")]
    model = half.to_half(ir.from_proto(proto(nodes, weights))).model
    rows = np.full((4, 8), 2048, np.float32)
    ir.save(model, tmp_path / "half.onnx")
    with OnnxRuntimeRunner(tmp_path / "half.onnx", threads=1) as runner:
        plain = runner.run({"x": rows})["y"]
    assert (plain == 1).all(), "ONNX Runtime rounds by itself: the emulation is not needed any more"
    assert (emulated(model, rows, tmp_path) == 0).all()
    assert (reference(model, rows) == 0).all()


def test_products_are_near_the_reference_and_layers_in_float32_stay(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    weights = {"w": (random.normal(size=(8, 8)) / 3).astype(np.float32), "g": np.ones(8, np.float32)}
    weights |= {"b": np.zeros(8, np.float32), "v": (random.normal(size=(8, 8)) / 3).astype(np.float32)}
    nodes = [
        node("LayerNormalization", ["x", "g", "b"], ["n"], name="norm"),
        node("MatMul", ["n", "w"], ["m"], name="first"),
        node("Softmax", ["m"], ["s"], name="softmax"),
        node("MatMul", ["s", "v"], ["y"], name="second"),
    ]
    done = half.to_half(graph.prepare(ir.from_proto(proto(nodes, weights))))
    assert set(done.reasons) == {"norm", "softmax"}
    rows = random.normal(size=(4, 8)).astype(np.float32)
    found, wanted = emulated(done.model, rows, tmp_path), reference(done.model, rows)
    assert np.abs(found - wanted).max() <= 2e-3 * np.abs(wanted).max()  # NumPy sums in float16
    assert (found.astype(np.float16).astype(np.float32) == found).all()
    casts = {item.op_type for item in emulation.in_float32(done.model).graph if item.name in ("norm", "softmax")}
    assert casts == {"LayerNormalization", "Softmax"}


def test_a_model_that_is_in_float16_keeps_its_inputs_and_outputs(tmp_path: Path) -> None:
    weights = {"c": np.arange(8, dtype=np.float16)}
    nodes = [
        node("ConstantOfShape", ["size"], ["k"], value=helper.make_tensor("v", F16, [1], [0.1])),
        node("EyeLike", ["x"], ["r"], dtype=F16),
        node("Mul", ["x", "c"], ["a"]),
        node("Add", ["a", "k"], ["b"]),
        node("Add", ["b", "r"], ["y"]),
    ]
    built = proto(nodes, weights, F16)
    built.graph.initializer.append(numpy_helper.from_array(np.array([8], np.int64), "size"))
    model = ir.from_proto(onnx.shape_inference.infer_shapes(built))
    rows = np.linspace(0, 9, 32, dtype=np.float16).reshape(4, 8)
    found = emulated(model, rows, tmp_path)
    assert found.dtype == np.float16
    expected = (rows * weights["c"] + np.float16(0.1)).astype(np.float16) + np.eye(4, 8, dtype=np.float16)
    np.testing.assert_array_equal(found, expected)


def test_bodies_of_loops_and_branches_that_are_in_float16(tmp_path: Path) -> None:
    """What they read and made became float32 around them, and no engine loaded it."""
    random = np.random.default_rng(0)
    w = (random.normal(size=(8, 8)) / 3).astype(np.float16)
    branch, other = (
        helper.make_graph([made], "branch", [], [helper.make_tensor_value_info("t", F16, [4, 8])])
        for made in (node("MatMul", ["a", "w"], ["t"]), node("Identity", ["a"], ["t"]))
    )
    loop = helper.make_graph(
        [node("Add", ["v", "a"], ["next"]), node("Identity", ["go"], ["on"])],
        "loop",
        [helper.make_tensor_value_info(*given) for given in (("i", I64, []), ("go", 9, []), ("v", F16, [4, 8]))],
        [helper.make_tensor_value_info(*given) for given in (("on", 9, []), ("next", F16, [4, 8]))],
    )
    nodes = [
        node("MatMul", ["x", "w"], ["a"], name="first"),
        node("If", ["yes"], ["b"], then_branch=branch, else_branch=other),
        node("Loop", ["twice", "", "b"], ["c"], body=loop),
        node("MatMul", ["c", "w"], ["y"], name="last"),
    ]
    built = proto(nodes, {"w": w, "yes": np.array(True), "twice": np.array(2, np.int64)}, F16)
    built.graph.output.append(helper.make_tensor_value_info("w", F16, [8, 8]))
    model = ir.from_proto(onnx.shape_inference.infer_shapes(built))
    rows = random.normal(size=(4, 8)).astype(np.float16)
    found = emulated(model, rows, tmp_path)
    wide, a = w.astype(np.float32), (rows.astype(np.float32) @ w.astype(np.float32))
    wanted = (a @ wide + 2 * a) @ wide
    assert found.dtype == np.float16 and np.abs(found - wanted).max() < 5e-3 * np.abs(wanted).max()


def test_a_float_graph_is_only_copied(tmp_path: Path) -> None:
    model = graph.prepare(graph.load(graphs.residual(tmp_path / "m.onnx")))
    assert ir.to_proto(emulation.in_float32(model)).SerializeToString() == ir.to_proto(model).SerializeToString()
