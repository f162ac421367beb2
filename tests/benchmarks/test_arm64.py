"""The benchmark of graphs for Arm; a second Python of this machine stands where the other processor's would."""

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "benchmarks"))
import arm64


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    make, arrays = onnx.helper, onnx.numpy_helper
    weights = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    network = make.make_graph(
        [make.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [make.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 4])],
        [make.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 3])],
        [arrays.from_array(weights, "w")],
    )
    model = make.make_model(network, opset_imports=[make.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "m.onnx")
    np.savez(tmp_path / "feeds.npz", x=np.eye(4, dtype=np.float32)[:3])
    np.save(tmp_path / "weights.npy", weights)
    return tmp_path / "m.onnx"


def test_another_python_answers_every_sample(graph: Path) -> None:
    found, share = arm64.answers([sys.executable], graph, graph.with_name("feeds.npz"), None)
    assert np.allclose(found, np.load(graph.with_name("weights.npy"))[:3])
    assert share == 0.0, "it is a graph in float"


def test_what_it_says_is_told_where_it_cannot(graph: Path) -> None:
    with pytest.raises(SystemExit, match=r"ended with [^0].*\n.*"):
        arm64.answers([sys.executable], graph, graph.with_name("missing.npz"), None)


def test_the_cells_of_a_row() -> None:
    reference = np.array([[4.0, 0.0], [0.0, 2.0]])
    here = np.add(reference, [[0.1, 0.0], [0.0, 0.0]])
    there = np.add(reference, [[0.0, 0.2], [0.0, 0.0]])
    assert arm64.table_cells(reference, here, there, 0.99996) == [
        "99.9%", "33.0", "27.0", "1.000", "5.00% of the largest output",
    ]  # fmt: skip
    assert arm64.table_cells(reference, here, there, float("nan"))[0] == "-", "the engine told no multiply-adds"
