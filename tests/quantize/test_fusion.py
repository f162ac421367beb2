"""What engines really made of Q/DQ pairs: real graphs in real engines, and each rule on a graph of three nodes."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgetl import catalog
from edgetl.backends import backend
from edgetl.backends.base import EngineRecord
from edgetl.quantize import graph, recipes
from edgetl.quantize.fusion import REASONS, Fusion, explain
from edgetl.quantize.schemes import SCHEMES
from edgetl.quantize.tools import Tools
from edgetl.runtime.onnxruntime import OnnxRuntimeRunner
from edgetl.runtime.openvino import OpenVinoRunner
from edgetl.runtime.runner import EngineNode

sys.path.insert(0, str(Path(__file__).parent))
import graphs

ENGINES = {"onnxruntime": ("CPUExecutionProvider", "ONNX Runtime"), "openvino": ("CPU", "OpenVINO")}
SIZE, CHANNELS = 8, 16


class Builder:
    """A graph of int8 operators: every activation behind a pair, weights per channel behind a DequantizeLinear."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self.random = np.random.default_rng(0)

    def add(self, kind: str, inputs: list[str], output: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, value: object, dtype: type = np.float32) -> str:
        self.weights[name] = np.asarray(value, dtype)
        return name

    def pair(self, value: str, scale: float = 0.05, zero_point: int = 128) -> str:
        parts = [self.constant(f"{value}_s", scale), self.constant(f"{value}_z", zero_point, np.uint8)]
        self.add("QuantizeLinear", [value, *parts], f"{value}_q")
        return self.add("DequantizeLinear", [f"{value}_q", *parts], f"{value}_dq")

    def weight(self, name: str, *shape: int) -> str:
        steps = self.random.integers(-127, 128, shape)
        parts = [
            self.constant(f"{name}_q", steps, np.int8),
            self.constant(f"{name}_s", np.full(shape[0], 0.01)),
            self.constant(f"{name}_z", np.zeros(shape[0]), np.int8),
        ]
        return self.add("DequantizeLinear", parts, f"{name}_dq", axis=0)

    def conv(self, name: str, value: str, filters: int, channels: int, kernel: int = 1, group: int = 1) -> str:
        weight = self.weight(f"{name}_w", filters, channels // group, kernel, kernel)
        return self.add("Conv", [value, weight], name, group=group, pads=[kernel // 2] * 4)

    def save(self, output: str, shape: tuple[int | str, ...], path: Path) -> Path:
        graph = helper.make_graph(
            self.nodes,
            "graph",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", CHANNELS, SIZE, SIZE])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
            [numpy_helper.from_array(array, name) for name, array in self.weights.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, str(path))
        return path


def engine_nodes(engine: str, model: Path) -> tuple[EngineNode, ...]:
    EngineRecord(
        backend=engine, provider=ENGINES[engine][0], precision="int8", status="ready", files=(model.name,)
    ).write(model.parent)
    return backend(engine).nodes(model.parent)  # type: ignore[attr-defined]


def fusion(engine: str, model: Path, expected: dict[str, str] | None = None) -> Fusion:
    return explain(engine_nodes(engine, model), expected, engine=ENGINES[engine][1])


def residual(path: Path) -> tuple[Path, int]:
    """Stem, depthwise, pointwise, Add, Concat, pool, Gemm, with a pair at every activation; and its multiply-adds."""
    b = Builder()
    area = SIZE * SIZE
    b.pair("x")
    stem = b.pair(b.add("Relu", [b.conv("stem", "x_dq", 32, CHANNELS, 3)], "stem_relu"), zero_point=0)
    deep = b.pair(b.add("Relu", [b.conv("deep", stem, 32, 32, 3, group=32)], "deep_relu"), zero_point=0)
    point = b.pair(b.conv("point", deep, 32, 32))
    added = b.pair(b.add("Add", [stem, point], "added"))
    joined = b.pair(b.add("Concat", [added, stem], "joined", axis=1))
    pooled = b.pair(b.add("GlobalAveragePool", [joined], "pooled"))
    flat = b.add("Flatten", [pooled], "flat")
    flat = b.pair(flat)
    bias = [b.constant("bias_q", np.arange(5), np.int32), b.constant("bias_s", np.full(5, 0.01 * 0.05))]
    bias_dq = b.add("DequantizeLinear", bias, "bias_dq", axis=0)
    b.add("Gemm", [flat, b.weight("head_w", 5, 64), bias_dq], "logits", transB=1)
    total = area * (32 * CHANNELS * 9 + 32 * 9 + 32 * 32) + 5 * 64
    return b.save("logits", ("batch", 5), path), total


def squeeze(path: Path) -> Path:
    """A convolution, a HardSwish, and a squeeze-and-excitation block with its HardSigmoid."""
    b = Builder()
    b.pair("x")
    stem = b.pair(b.conv("stem", "x_dq", CHANNELS, CHANNELS, 3))
    swish = b.pair(b.add("HardSwish", [stem], "swish"))
    pooled = b.pair(b.add("GlobalAveragePool", [swish], "pooled"))
    gate = b.pair(b.conv("gate_conv", pooled, CHANNELS, CHANNELS))
    opened = b.pair(b.add("HardSigmoid", [gate], "opened", alpha=1 / 6, beta=0.5))
    scaled = b.pair(b.add("Mul", [swish, opened], "scaled"))
    out = b.pair(b.conv("project", scaled, CHANNELS, CHANNELS))
    b.add("GlobalMaxPool", [out], "y")
    return b.save("y", ("batch", CHANNELS, 1, 1), path)


@pytest.mark.parametrize("engine", ENGINES)
class TestRealEngines:
    def test_all_multiply_adds_of_a_residual_network_run_in_eight_bits(self, engine: str, tmp_path: Path) -> None:
        model, total = residual(tmp_path / "m.onnx")
        found = fusion(engine, model)
        assert found.multiply_adds == {"int8": total}
        assert found.int8_share == 1.0 and not found.float_products
        assert found.counts["graph input"] == 1
        # OpenVINO computes the pair behind Flatten, ONNX Runtime drops it; nothing else is left.
        assert set(found.counts) <= {"graph input", "requantized"}

    def test_operators_without_an_integer_kernel_are_named(self, engine: str, tmp_path: Path) -> None:
        found = fusion(engine, squeeze(tmp_path / "m.onnx"))
        assert found.int8_share == 1.0
        reasons = [node.reason for node in found.unfused if node.rule == "no integer kernel"]
        # OpenVINO computes the product with the gate, its rounding included, in one pass.
        assert len(reasons) >= (1 if engine == "openvino" else 2)
        assert engine != "openvino" or not found.defects
        assert all(reason.endswith(f"has no integer kernel in {ENGINES[engine][1]}") for reason in reasons)
        assert any(reason.startswith("HardSigmoid") for reason in reasons)
        assert not [node for node in found.unfused if node.rule == "float product"]

    def test_a_convolution_that_lacks_a_pair_is_a_defect_and_is_named(self, engine: str, tmp_path: Path) -> None:
        b = Builder()
        b.pair("x")
        first = b.pair(b.conv("first", "x_dq", CHANNELS, CHANNELS))
        b.weights["raw"] = b.random.normal(size=(CHANNELS, CHANNELS, 3, 3)).astype(np.float32)
        b.add("Conv", [first, "raw"], "second", pads=[1] * 4)
        b.conv("third", b.pair(b.add("Relu", ["second"], "second_relu")), CHANNELS, CHANNELS)
        b.add("GlobalMaxPool", ["third"], "y")
        model = b.save("y", ("batch", CHANNELS, 1, 1), tmp_path / "m.onnx")
        found = fusion(engine, model, {"first": "int8", "second": "int8", "no_such_node": "int8"})
        area, square = SIZE * SIZE, CHANNELS * CHANNELS
        assert found.multiply_adds["fp32"] >= area * square * 9
        assert found.int8_share is not None and found.int8_share <= 2 / 11
        assert "second" in {name.split("/")[0] for node in found.float_products[:1] for name in node.origins}
        assert found.misplaced == {"second": "fp32"}
        assert any(node.rule == "float product" and "stayed in float" in node.reason for node in found.defects)
        planned = fusion(engine, model, {"second": "fp32"})
        assert not planned.misplaced
        assert any(node.rule == "left in float" for node in planned.unfused)

    def test_two_scales_back_to_back(self, engine: str, tmp_path: Path) -> None:
        b = Builder()
        b.pair("x")
        first = b.pair(b.conv("first", "x_dq", CHANNELS, CHANNELS), scale=0.05)
        twice = b.pair(first, scale=0.11)
        second = b.pair(b.conv("second", twice, CHANNELS, CHANNELS))
        b.add("GlobalMaxPool", [second], "y")
        found = fusion(engine, b.save("y", ("batch", CHANNELS, 1, 1), tmp_path / "m.onnx"))
        assert found.int8_share == 1.0
        if engine == "openvino":  # ONNX Runtime makes one pair of two
            assert found.counts["requantized"] >= 1
        assert all(node.defect for node in found.unfused if node.rule == "requantized")

    def test_a_relu_that_the_range_does_not_replace_costs_the_convolution_its_integers(
        self, engine: str, tmp_path: Path
    ) -> None:
        b = Builder()
        b.pair("x")
        first = b.pair(b.add("Relu", [b.conv("first", "x_dq", CHANNELS, CHANNELS)], "relu"), zero_point=128)
        second = b.pair(b.conv("second", first, CHANNELS, CHANNELS))
        b.add("GlobalMaxPool", [second], "y")
        found = fusion(engine, b.save("y", ("batch", CHANNELS, 1, 1), tmp_path / "m.onnx"))
        if engine == "onnxruntime":
            assert found.int8_share == 0.5
            assert any("'first'" in node.reason or "'relu" in node.reason for node in found.defects)
        else:
            assert found.int8_share == 1.0

    def test_a_float_graph_has_nothing_in_eight_bits(self, engine: str, tmp_path: Path) -> None:
        b = Builder()
        b.weights["w"] = b.random.normal(size=(CHANNELS, CHANNELS, 1, 1)).astype(np.float32)
        b.add("Conv", ["x", "w"], "y")
        found = fusion(engine, b.save("y", ("batch", CHANNELS, SIZE, SIZE), tmp_path / "m.onnx"))
        assert found.int8_share == 0.0 and not found.unfused and len(found.float_products) == 1
        assert found.multiply_adds == {"fp32": SIZE * SIZE * CHANNELS * CHANNELS}

    def test_a_graph_without_products_has_no_share(self, engine: str, tmp_path: Path) -> None:
        b = Builder()
        b.add("Sigmoid", ["x"], "y")
        found = fusion(engine, b.save("y", ("batch", CHANNELS, SIZE, SIZE), tmp_path / "m.onnx"))
        assert found.int8_share is None and not found.multiply_adds and not found.unfused


def test_openvino_multiplies_in_integers_in_attention(tmp_path: Path) -> None:
    model = graph.prepare(graph.load(graphs.transformer(tmp_path / "m.onnx", tokens=96)))
    random = np.random.default_rng(0)
    samples = [{"input": random.normal(size=(1, 96, 32)).astype(np.float32)} for _ in range(8)]
    tools = Tools(samples=lambda: samples, open_runner=OnnxRuntimeRunner)
    scheme = SCHEMES["openvino-vnni"]
    statistics = recipes.calibrate(model, tools, [scheme])
    nodes = {}
    for attention in ("integers", "float"):
        recipe = replace(catalog.recipe("int8-mse"), attention=attention)  # type: ignore[arg-type]
        made = recipes.make(model, statistics, scheme, recipe, tools).model
        ir.save(made, tmp_path / "q.onnx")
        with OpenVinoRunner(tmp_path / "q.onnx") as runner:
            nodes[attention] = runner.nodes()
        found = explain(nodes[attention], engine="OpenVINO")
        assert not found.defects and found.int8_share == 1.0
    kinds = {
        attention: {node.precision for node in there if {"Softmax", "MatMul"} <= set(node.operators)}
        for attention, there in nodes.items()
    }
    assert kinds == {"integers": {"int8"}, "float": {"fp32"}}


def node(name: str, kind: str, reads: str = "", writes: str = "", **more: object) -> EngineNode:
    values: dict[str, object] = {
        "precision": {"QuantizeLinear": "fp32", "DequantizeLinear": "int8"}.get(kind, "fp32"),
        "output_precision": {"QuantizeLinear": "int8", "DequantizeLinear": "fp32"}.get(kind, "fp32"),
        **more,
    }
    return EngineNode(name=name, kind=kind, inputs=tuple(reads.split()), outputs=tuple(writes.split()), **values)  # type: ignore[arg-type]


def rules(*nodes: EngineNode, expected: dict[str, str] | None = None) -> dict[str, str]:
    return {found.name: found.rule for found in explain(nodes, expected, engine="E").unfused}


INT = {"precision": "int8", "output_precision": "int8", "multiply_adds": 10}


class TestRules:
    def test_input_and_output(self) -> None:
        found = explain(
            [
                node("q", "QuantizeLinear", "x", "xq"),
                node("conv", "QLinearConv", "xq", "yq", **INT),
                node("t", "Transpose", "yq", "tq", precision="int8", output_precision="int8"),
                node("d", "DequantizeLinear", "tq", "y"),
            ],
            engine="E",
        )
        assert found.counts == {"graph input": 1, "graph output": 1}
        assert all(left.needed and not left.defect for left in found.unfused)
        assert found.unfused[1].after == ("QLinearConv 'conv'",)  # seen through the Transpose

    def test_softmax_is_float_by_choice_and_add_for_want_of_a_pair(self) -> None:
        island = [node("d", "DequantizeLinear", "aq", "a"), node("q", "QuantizeLinear", "b", "bq")]
        ends = [node("c1", "QLinearConv", "x", "aq", **INT), node("c2", "QLinearConv", "bq", "z", **INT)]
        assert set(rules(*ends, *island, node("s", "Softmax", "a", "b")).values()) == {"float by choice"}
        assert set(rules(*ends, *island, node("s", "Add", "a w", "b")).values()) == {"not all quantized"}
        assert set(rules(*ends, *island, node("s", "Gelu", "a", "b")).values()) == {"no integer kernel"}
        far = [node("s", "Add", "a w", "m"), node("g", "Gelu", "m", "b")]
        assert set(rules(*ends, *island, *far).values()) == {"no integer kernel"}

    def test_a_pair_in_a_float_graph_only_rounds(self) -> None:
        graph = [
            node("r", "Relu", "x", "a"),
            node("q", "QuantizeLinear", "a", "aq"),
            node("d", "DequantizeLinear", "aq", "b"),
            node("s", "Sigmoid", "b", "y"),
        ]
        assert rules(*graph) == {"q": "rounded only", "d": "rounded only"}
        assert all(left.defect for left in explain(graph, engine="E").unfused)

    def test_weights_that_are_dequantized_each_time(self) -> None:
        found = explain(
            [
                node("wd", "DequantizeLinear", "", "w"),
                node("g", "Gemm", "x w", "y", multiply_adds=4),
            ],
            engine="E",
        )
        assert found.counts == {"constant": 1}
        assert found.unfused[0].reason == (
            "a constant is dequantized at every inference instead of being folded into Gemm 'g'"
        )

    def test_dequantizing_in_two_steps_is_one_dequantizer(self) -> None:
        # OpenVINO: a Convert, and the subtraction of the zero point in an Eltwise of its own.
        graph = [
            node("c1", "Convolution", "x", "a", **INT),
            node("convert", "Convert", "a", "b", precision="int8"),
            node("sub", "Eltwise", "b", "c", operators=("Subtract", "Multiply")),
            node("fq", "FakeQuantize", "c", "d", output_precision="int8"),
            node("c2", "Convolution", "d", "y", **INT),
        ]
        assert rules(*graph) == {"convert": "requantized", "fq": "requantized"}

    def test_nothing(self) -> None:
        found = explain([], {"a": "int8"}, engine="E")
        assert (found.unfused, found.int8_share, dict(found.misplaced)) == ((), None, {})

    def test_json_and_back(self) -> None:
        facts = explain(
            [node("q", "QuantizeLinear", "x", "y"), node("c", "Conv", "x", "z", multiply_adds=3)], engine="E"
        )
        read = json.loads(json.dumps(facts.as_json()))
        assert read["int8_share"] == 0.0 and read["counts"] == {"graph input": 1}
        assert read["unfused"][0]["reason"] and read["unfused"][0]["needed"] is True
        assert read["float_products"] == [{"name": "c", "kind": "Conv", "precision": "fp32", "multiply_adds": 3}]


KINDS = ["QuantizeLinear", "DequantizeLinear", "FakeQuantize", "Convert", "Conv", "HardSwish", "Transpose", "Add"]


@st.composite
def any_graphs(draw: st.DrawFn) -> list[EngineNode]:
    """Graphs of any kinds and precisions, cycles and dangling tensors included."""
    tensors = st.lists(st.sampled_from("abcdef"), max_size=2, unique=True)
    return [
        EngineNode(
            name=str(index),
            kind=draw(st.sampled_from(KINDS)),
            precision=draw(st.sampled_from(["int8", "fp32", "fp16"])),
            output_precision=draw(st.sampled_from(["int8", "fp32", ""])),
            multiply_adds=draw(st.integers(0, 5)),
            inputs=tuple(draw(tensors)),
            outputs=tuple(draw(tensors)),
        )
        for index in range(draw(st.integers(0, 8)))
    ]


@given(any_graphs())
def test_whatever_the_graph_every_quantizer_left_has_one_reason(nodes: list[EngineNode]) -> None:
    found = explain(nodes, engine="E")
    assert {left.name for left in found.unfused} >= {
        n.name for n in nodes if n.kind in ("QuantizeLinear", "FakeQuantize")
    }
    assert all(left.rule in REASONS and "{" not in left.reason for left in found.unfused)
    assert sum(found.counts.values()) == len(found.unfused)
    assert found.int8_share is None or 0.0 <= found.int8_share <= 1.0
    assert sum(found.multiply_adds.values()) == sum(n.multiply_adds for n in nodes)
