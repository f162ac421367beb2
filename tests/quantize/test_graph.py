"""Graphs that are quantized already, whoever quantized them and in whatever form, are refused by every door."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgetl import catalog
from edgetl.errors import ModelError
from edgetl.quantize import dynamic, graph, insertion
from edgetl.quantize.schemes import SCHEMES

sys.path.insert(0, str(Path(__file__).parent))
import graphs

quantization = pytest.importorskip("onnxruntime.quantization")


class Images(quantization.CalibrationDataReader):  # type: ignore[misc,name-defined]
    def __init__(self) -> None:
        data = np.random.default_rng(0).normal(size=(4, 3, 16, 16)).astype(np.float32)
        self._left = iter([{"input": data[index : index + 1]} for index in range(4)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._left, None)


def static(folder: Path, form: str) -> Path:
    """By onnxruntime.quantization, in pairs (QDQ) or in integer operators (QOperator)."""
    source = graphs.residual(folder / "float.onnx")
    path = folder / "m.onnx"
    quantization.quantize_static(source, path, Images(), quant_format=quantization.QuantFormat[form])
    return path


def by_dynamic_quantization(folder: Path) -> Path:
    """MatMulInteger, by onnxruntime.quantization."""
    quantization.quantize_dynamic(graphs.transformer(folder / "float.onnx"), folder / "m.onnx")
    return folder / "m.onnx"


def optimised(folder: Path) -> Path:
    """The same, saved by ONNX Runtime behind its own optimizer: DynamicQuantizeMatMul and MatMulIntegerToFloat."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    path = by_dynamic_quantization(folder)
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return folder / "optimised.onnx"


def weights_alone(folder: Path) -> Path:
    """int8 weights behind a DequantizeLinear, float activations: the form of weight-only quantizers."""
    net = graphs.Net()
    net.constant("w_q", net.random.integers(-127, 128, (16, 3, 3, 3)), np.int8)
    net.constant("w_s", np.full(16, 0.01))
    net.constant("w_z", np.zeros(16), np.int8)
    net.add("DequantizeLinear", ["w_q", "w_s", "w_z"], "w", axis=0)
    net.add("Conv", ["input", "w"], "conv", pads=[1] * 4)
    net.classify("conv", 16)
    return net.save(folder / "m.onnx")


def in_a_branch(folder: Path) -> Path:
    """A pair inside an If."""
    net = graphs.Net()
    net.constant("s", 0.05)
    net.constant("z", 3, np.uint8)
    net.conv("input", "conv", 16, 3, 3)
    branches = {}
    for name in ("then_branch", "else_branch"):
        nodes = [helper.make_node("Identity", ["conv"], [name])]
        if name == "then_branch":
            nodes = [
                helper.make_node("QuantizeLinear", ["conv", "s", "z"], ["q"], name="inner_quantize"),
                helper.make_node("DequantizeLinear", ["q", "s", "z"], [name]),
            ]
        value = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 16, 16, 16])
        branches[name] = helper.make_graph(nodes, name, [], [value])
    net.add("If", ["yes_input"], "chosen", **branches)
    net.classify("chosen", 16)
    inputs = {"input": (TensorProto.FLOAT, ["batch", 3, 16, 16]), "yes_input": (TensorProto.BOOL, [])}
    return net.save(folder / "m.onnx", inputs=inputs)


def packed_bits(folder: Path) -> Path:
    """MatMulNBits of com.microsoft: weights of four bits."""
    nodes = [helper.make_node("MatMulNBits", ["input", "w", "s"], ["logits"], domain="com.microsoft", K=32, N=5, bits=4,
                              block_size=32, name="four_bits")]  # fmt: skip
    constants = {"w": np.zeros((5, 1, 16), np.uint8), "s": np.ones(5, np.float32)}
    built = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(built, opset_imports=opsets, ir_version=10), str(folder / "m.onnx"))
    return folder / "m.onnx"


FORMS = {
    "pairs": (lambda folder: static(folder, "QDQ"), "DequantizeLinear"),
    "integer operators": (lambda folder: static(folder, "QOperator"), "QuantizeLinear"),
    "integer matrix products": (by_dynamic_quantization, "DynamicQuantizeLinear"),
    "as an engine optimised it": (optimised, "DynamicQuantize"),
    "weights alone": (weights_alone, "DequantizeLinear"),
    "inside a branch": (in_a_branch, "QuantizeLinear"),
    "four bits": (packed_bits, "MatMulNBits"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_quantized_graph_is_refused(form: str, tmp_path: Path) -> None:
    make, operator = FORMS[form]
    model = graph.load(make(tmp_path))
    with pytest.raises(ModelError, match=f"m.onnx is quantized already: '.+' is a {operator}"):
        graph.refuse_quantized(model, "m.onnx")
    doors = [lambda: dynamic.quantize_dynamic(model.clone())]
    for scheme in ("onnxruntime-x86", "openvino-vnni", "tensorrt"):
        doors.append(
            lambda scheme=scheme: insertion.quantize(model.clone(), {}, SCHEMES[scheme], catalog.recipe("int8-mse"))
        )
    doors.append(lambda: graph.refuse_quantized(graph.prepare(model.clone())))
    for door in doors:
        with pytest.raises(ModelError, match="quantized already"):
            door()


INTEGERS = (
    *("QLinearConv", "QLinearMatMul", "MatMulInteger", "ConvInteger", "QuantizeLinear", "DequantizeLinear"),
    *("DynamicQuantizeLinear", "QGemm", "QLinearAdd", "QLinearMul", "QLinearConcat", "QLinearGlobalAveragePool"),
    *("QLinearSoftmax", "QAttention", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QOrderedMatMul", "MatMulNBits"),
)


@pytest.mark.parametrize("operator", INTEGERS)
def test_each_operator_alone_says_so(operator: str) -> None:
    node = ir.node(
        operator, [], name="it", domain="" if operator in ("MatMulInteger", "QLinearConv") else "com.microsoft"
    )
    model = ir.Model(ir.Graph([], [], nodes=[node], opset_imports={"": 20}), ir_version=10)
    with pytest.raises(ModelError, match=f"'it' is a {operator}"):
        graph.refuse_quantized(model)


def test_float_graphs_are_not_taken_for_quantized(tmp_path: Path) -> None:
    for make in (graphs.residual, graphs.squeezed, graphs.transformer, graphs.embedded):
        graph.refuse_quantized(graph.prepare(graph.load(make(tmp_path / "m.onnx"))))
