"""Small graphs with what real networks have: residuals, depthwise convolutions, Concat, shared weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def save(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], path: Path, *, channels: int = 3) -> Path:
    """A graph from "input" (N, channels, 16, 16) to "logits" (N, 5)."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", channels, 16, 16])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))
    return path


def residual(path: Path, seed: int = 0) -> Path:
    """Conv-BN-ReLU6, a residual block with a depthwise convolution, Concat, pooling, Flatten, Gemm."""
    random = np.random.default_rng(seed)

    def weight(*shape: int) -> np.ndarray:
        return (random.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    weights = {
        "stem": weight(16, 3, 3, 3),
        "gamma": random.uniform(0.5, 2, 16).astype(np.float32),
        "beta": random.normal(size=16).astype(np.float32),
        "mean": random.normal(size=16).astype(np.float32),
        "variance": random.uniform(0.5, 2, 16).astype(np.float32),
        "six": np.asarray(6, np.float32),
        "zero": np.asarray(0, np.float32),
        "expand": weight(32, 16, 1, 1),
        "expand_bias": random.normal(size=32).astype(np.float32),
        "depthwise": weight(32, 1, 3, 3),
        "project": weight(16, 32, 1, 1),
        "project_bias": random.normal(size=16).astype(np.float32),
        "head": weight(5, 32),
        "head_bias": random.normal(size=5).astype(np.float32),
        "axes": np.asarray([2, 3], np.int64),
    }
    node = helper.make_node
    nodes = [
        node("Conv", ["input", "stem"], ["a"], name="stem_conv", pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["a", "gamma", "beta", "mean", "variance"], ["b"], name="norm"),
        node("Clip", ["b", "zero", "six"], ["c"], name="relu6"),
        node("Conv", ["c", "expand", "expand_bias"], ["d"], name="expand_conv"),
        node("Relu", ["d"], ["e"], name="relu"),
        node("Conv", ["e", "depthwise"], ["f"], name="depthwise_conv", group=32, pads=[1, 1, 1, 1]),
        node("Relu", ["f"], ["g"], name="relu_2"),
        node("Conv", ["g", "project", "project_bias"], ["h"], name="project_conv"),
        node("Add", ["c", "h"], ["i"], name="residual_add"),
        node("MaxPool", ["i"], ["j"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        node("Concat", ["j", "j"], ["k"], name="concat", axis=1),
        node("ReduceMean", ["k", "axes"], ["l"], name="mean_pool", keepdims=0),
        node("Gemm", ["l", "head", "head_bias"], ["logits"], name="classifier", transB=1),
    ]
    return save(nodes, weights, path)
