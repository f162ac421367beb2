from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from edgetl.quantize import graph
from edgetl.quantize.following import end_of_function, tabulate
from edgetl.runtime.onnxruntime import OnnxRuntimeRunner

sys.path.insert(0, str(Path(__file__).parent))
import graphs

Build = Callable[[graphs.Net], str]
Function = Callable[[np.ndarray], np.ndarray]


def relu6(net: graphs.Net) -> str:
    return net.add("Clip", ["y", net.constant("zero", 0.0), net.constant("six", 6.0)], "end")


def silu(net: graphs.Net) -> str:
    net.add("Sigmoid", ["y"], "gate")
    return net.add("Mul", ["y", "gate"], "end")


def gelu(net: graphs.Net) -> str:
    """As torch writes it before opset 20."""
    net.add("Div", ["y", net.constant("root", math.sqrt(2.0))], "scaled")
    net.add("Erf", ["scaled"], "erf")
    net.add("Add", ["erf", net.constant("one", 1.0)], "shifted")
    net.add("Mul", ["y", "shifted"], "product")
    return net.add("Mul", ["product", net.constant("half", [0.5])], "end")


def scaled_relu(net: graphs.Net) -> str:
    net.add("Mul", ["y", net.constant("three", 3.0)], "scaled")
    return net.add("Relu", ["scaled"], "end")


def squared(net: graphs.Net) -> str:
    return net.add("Mul", ["y", "y"], "end")


def scaled_by_an_image(net: graphs.Net) -> str:
    net.add("Mul", ["y", net.constant("three", np.full((1, 1, 1, 1), 3.0))], "scaled")
    return net.add("Relu", ["scaled"], "end")


KNOWN: list[tuple[Build, Function]] = [
    (scaled_by_an_image, lambda x: np.maximum(3 * x, 0)),
    (lambda net: net.add("Relu", ["y"], "end"), lambda x: np.maximum(x, 0)),
    (lambda net: net.add("HardSwish", ["y"], "end"), lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
    (relu6, lambda x: np.clip(x, 0, 6)),
    (silu, lambda x: x / (1 + np.exp(-x))),
    (gelu, lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2.0)))),
    (scaled_relu, lambda x: np.maximum(3 * x, 0)),
    (squared, lambda x: x * x),
]


def network(tmp_path: Path, build: Callable[[graphs.Net], object], reads: str = "end") -> tuple[ir.Model, ir.Value]:
    """A convolution with output y, a function, and a convolution that reads what the function puts out."""
    net = graphs.Net(3)
    net.conv("input", "y", 8, 3, 3)
    build(net)
    net.conv(reads, "z", 8, 8)
    net.classify("z", 8)
    model = graph.prepare(graph.load(net.save(tmp_path / "m.onnx")))
    return model, next(value for node in model.graph for value in node.outputs if value.name == "y")


@pytest.mark.parametrize(("build", "expected"), KNOWN)
def test_functions_of_one_node_and_of_several(build: Build, expected: Function, tmp_path: Path) -> None:
    model, value = network(tmp_path, build)
    end = end_of_function(value)
    assert end is not None and end.name == "end"
    following = tabulate(model, value, -8.0, 10.0, open_runner=OnnxRuntimeRunner)
    assert following is not None
    x = np.random.default_rng(0).uniform(-8, 10, size=(5, 7)).astype(np.float32)
    places = following.places(x)
    np.testing.assert_allclose(following.values[places], expected(x), atol=0.02)
    slopes = (expected(x + 1e-2) - expected(x - 1e-2)) / 2e-2
    assert np.quantile(np.abs(following.slopes[places] - slopes), 0.8) < 0.02  # some stand at a kink


def test_beyond_the_table_its_ends_are_taken(tmp_path: Path) -> None:
    model, value = network(tmp_path, relu6)
    following = tabulate(model, value, -1.0, 2.0, open_runner=OnnxRuntimeRunner)
    assert following is not None
    found = following.values[following.places(np.array([-50.0, 50.0], np.float32))]
    np.testing.assert_allclose(found, [0.0, 2.0], atol=1e-6)


def with_residual(net: graphs.Net) -> None:
    net.conv("input", "other", 8, 3)
    net.add("Add", ["y", "other"], "sum")
    net.add("Relu", ["sum"], "end")


def with_factors(net: graphs.Net) -> None:
    """Another function in each channel."""
    net.add("Mul", ["y", net.constant("factors", np.ones((1, 8, 1, 1)))], "end")


def read_twice(net: graphs.Net) -> None:
    """What the gate leaves is not all that is read."""
    net.conv("input", "other", 8, 3)
    net.add("Relu", ["y"], "gate")
    net.add("Mul", ["gate", "other"], "product")
    net.add("Add", ["product", "y"], "end")


def pooled(net: graphs.Net) -> None:
    net.add("AveragePool", ["y"], "end", kernel_shape=[1, 1])


@pytest.mark.parametrize("build", [with_residual, with_factors, read_twice, pooled])
def test_none_follows_where_more_than_one_value_counts(build: Callable[[graphs.Net], None], tmp_path: Path) -> None:
    model, value = network(tmp_path, build)
    assert end_of_function(value) is None
    assert tabulate(model, value, -1.0, 1.0, open_runner=OnnxRuntimeRunner) is None


def test_none_follows_where_a_branch_reads_the_value(tmp_path: Path) -> None:
    def branch(kind: str, read: str) -> onnx.GraphProto:
        output = helper.make_tensor_value_info(f"{kind}_out", TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node(kind, [read], [f"{kind}_out"])], kind, [], [output])

    def build(net: graphs.Net) -> None:
        net.conv("input", "other", 8, 3)
        net.add("ReduceMax", ["input"], "largest", keepdims=0)
        net.add("Greater", ["largest", net.constant("zero", 0.0)], "which")
        net.add("If", ["which"], "end", then_branch=branch("Tanh", "y"), else_branch=branch("Relu", "other"))

    _, value = network(tmp_path, build)
    assert {node.op_type for node in value.consumers()} == {"Tanh"}, "nothing folded the branch away"
    assert end_of_function(value) is None


def test_none_follows_a_value_that_is_an_output_itself(tmp_path: Path) -> None:
    model, value = network(tmp_path, relu6)
    model.graph.outputs.append(value)
    assert end_of_function(value) is None


def test_a_function_that_is_nowhere_finite_or_has_no_range_is_none(tmp_path: Path) -> None:
    model, value = network(tmp_path, lambda net: net.add("Sqrt", ["y"], "end"))
    assert tabulate(model, value, -1.0, 1.0, open_runner=OnnxRuntimeRunner) is None
    assert tabulate(model, value, 1.0, 1.0, open_runner=OnnxRuntimeRunner) is None
