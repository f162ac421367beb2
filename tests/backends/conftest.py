"""Small graphs for the TensorRT family: one convolution net in the precisions and quantization schemes that matter."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgetl.specs import Hardware, Software, Target

CHANNELS, FILTERS, SIZE, INPUT_SCALE = 16, 32, 32, np.float32(0.03)


def _quantized(weight: np.ndarray, bias: np.ndarray, bias_type: str) -> tuple[list[Any], list[Any]]:
    """Q/DQ nodes and initializers in TensorRT's scheme: s8, zero point 0, weights per channel."""
    from onnx import helper, numpy_helper

    scale = (np.abs(weight).reshape(FILTERS, -1).max(1) / 127).astype(np.float32)
    steps = np.clip(np.rint(weight / scale[:, None, None, None]), -127, 127).astype(np.int8)
    constants = {
        "x_scale": INPUT_SCALE,
        "x_zero": np.int8(0),
        "w_steps": steps,
        "w_scale": scale,
        "w_zero": np.zeros(FILTERS, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "x_scale", "x_zero"], ["x_steps"], "quantize_x"),
        helper.make_node("DequantizeLinear", ["x_steps", "x_scale", "x_zero"], ["x"], "dequantize_x"),
        helper.make_node("DequantizeLinear", ["w_steps", "w_scale", "w_zero"], ["weight"], "dequantize_w", axis=0),
    ]
    if bias_type == "int32":
        constants |= {"b_scale": scale * INPUT_SCALE, "b_steps": np.rint(bias / scale / INPUT_SCALE).astype(np.int32)}
        nodes.append(helper.make_node("DequantizeLinear", ["b_steps", "b_scale"], ["bias"], "dequantize_b", axis=0))
    else:
        constants["bias"] = bias
    return nodes, [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]


def _graph(kind: str, batch: int | str) -> Any:
    from onnx import TensorProto, checker, helper, numpy_helper

    rng = np.random.default_rng(7)
    dtype, element = (np.float16, TensorProto.FLOAT16) if kind == "fp16" else (np.float32, TensorProto.FLOAT)
    weight = (0.1 * rng.standard_normal((FILTERS, CHANNELS, 3, 3))).astype(dtype)
    bias = rng.standard_normal(FILTERS).astype(dtype)
    if kind in ("int8", "int8-int32-bias"):
        nodes, constants = _quantized(weight, bias, "int32" if kind == "int8-int32-bias" else "float")
    else:
        nodes, constants = [], [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")]
    nodes += [
        helper.make_node("Conv", ["x" if nodes else "image", "weight", "bias"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["g"], "pool"),
        helper.make_node("Flatten", ["g"], ["logits"], "flatten"),
    ]
    image = helper.make_tensor_value_info("image", element, [batch, CHANNELS, SIZE, SIZE])
    logits = helper.make_tensor_value_info("logits", element, [batch, FILTERS])
    graph = helper.make_graph(nodes, "net", [image], [logits], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    checker.check_model(model)
    if kind == "unknown-op":
        next(node for node in model.graph.node if node.name == "relu").op_type = "NoSuchOperator"
    return model


@pytest.fixture
def trt_graph(tmp_path: Path) -> Callable[..., Path]:
    """A function: kind ("fp32", "fp16", "int8", "int8-int32-bias", "unknown-op") and batch → ONNX file."""
    pytest.importorskip("onnx")

    def write(kind: str, batch: int | str = "batch") -> Path:
        path = tmp_path / f"{kind}-{batch}.onnx"
        path.write_bytes(_graph(kind, batch).SerializeToString())
        return path

    return write


@pytest.fixture
def trt_target() -> Callable[..., Target]:
    """A function: backend, compute capabilities, built_on_device, provider → target."""

    def make(
        backend: str,
        *capabilities: str,
        on_device: bool = False,
        provider: str = "gpu",
        engine_version: str = "",
        dla_core: int | None = None,
        dla_fallback: bool = False,
    ) -> Target:
        return Target(
            name="device-of-the-test",
            description="A device of the tests.",
            backend=backend,
            provider=provider,
            scheme="tensorrt",
            precisions=("int8", "fp16", "fp32"),
            built_on_device=on_device,
            dla_core=dla_core,
            dla_fallback=dla_fallback,
            hardware=Hardware(architecture="arm64", processor="any", compute_capability=capabilities),
            software=Software(system="JetPack 6.2", engine_version=engine_version),
        )

    return make


@pytest.fixture
def small_graph(tmp_path: Path) -> Callable[..., Path]:
    """A function: batch, extra → ONNX file of y = relu(x · w), x (batch, 3), w[0, 0] = 1 + extra."""
    pytest.importorskip("onnx")
    from onnx import TensorProto, checker, helper, numpy_helper

    def write(batch: int | str = "batch", extra: float = 0.0) -> Path:
        weight = np.array([[1 + extra, 2], [0, -1], [1, 2]], np.float32)
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["p"], "product"),
            helper.make_node("Relu", ["p"], ["y"], "relu"),
        ]
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3])
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 2])
        graph = helper.make_graph(nodes, "small", [x], [y], [numpy_helper.from_array(weight, "w")])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        helper.set_model_props(model, {"who": "a test"})
        checker.check_model(model)
        path = tmp_path / f"small-{batch}-{extra}.onnx"
        path.write_bytes(model.SerializeToString())
        return path

    return write


@pytest.fixture
def picks(tmp_path: Path) -> Path:
    """An ONNX file: ``y`` is (n, 4), the rows of a table of 1,000 that ``ids`` (n,) names, times a matrix."""
    pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(0)
    constants = [
        numpy_helper.from_array(generator.normal(size=(1000, 8)).astype(np.float32), "table"),
        numpy_helper.from_array(generator.normal(size=(8, 4)).astype(np.float32), "w"),
    ]
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"], "pick"),
        helper.make_node("MatMul", ["rows", "w"], ["y"], "product"),
    ]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])
    graph = helper.make_graph(nodes, "picks", [ids], [y], constants)
    path = tmp_path / "picks.onnx"
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    )
    return path


@pytest.fixture
def here() -> Callable[..., Target]:
    """A function: architecture, cpu_features → an ONNX Runtime target that is this machine by default."""
    own = {"x86_64": "x86-64", "AMD64": "x86-64", "aarch64": "arm64", "arm64": "arm64"}[platform.machine()]

    def make(architecture: Any = own, cpu_features: tuple[str, ...] = ()) -> Target:
        return Target(
            name="this-machine",
            description="The machine of the test.",
            backend="onnxruntime",
            provider="CPUExecutionProvider",
            scheme="",
            precisions=("fp32",),
            built_on_device=False,
            hardware=Hardware(architecture=architecture, processor="any", cpu_features=cpu_features),
        )

    return make
