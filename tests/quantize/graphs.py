"""Small graphs with what real networks have: residuals, depthwise convolutions, Concat, shared weights, attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

Shape = Sequence[int | str | None]

OPSETS = range(11, 24 if tuple(map(int, onnxruntime.__version__.split(".")[:2])) >= (1, 24) else 23)
"""Those that ONNX Runtime has kernels of: before 1.24 it quantizes up to 22."""


class Net:
    """A graph under construction; each method that adds a node returns the name of its output."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}

    @classmethod
    def of(cls, nodes: list[onnx.NodeProto], weights: Mapping[str, np.ndarray]) -> Net:
        """Of finished nodes, and of the weights that they read."""
        net = cls()
        used = {name for node in nodes for name in node.input}
        net.nodes, net.weights = nodes, {name: array for name, array in weights.items() if name in used}
        return net

    def constant(self, name: str, value: object, dtype: type = np.float32) -> str:
        self.weights[name] = np.asarray(value, dtype)
        return name

    def weight(self, name: str, *shape: int, reduced: int | None = None) -> str:
        """Normal, of a size that keeps the power of a signal."""
        over = reduced or int(np.prod(shape[1:]))
        return self.constant(name, self.random.normal(size=shape) / np.sqrt(over))

    def add(
        self, kind: str, inputs: Sequence[str], output: str, *, name: str | None = None, **attributes: object
    ) -> str:
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=name or f"{output}_node", **attributes))
        return output

    def conv(
        self, source: str, output: str, out: int, into: int, kernel: int = 1, *, group: int = 1, bias: str = "normal",
        **attributes: object,
    ) -> str:  # fmt: skip
        """A convolution of the same size of image; bias: normal, zeros or none."""
        inputs = [source, self.weight(f"{output}_w", out, into // group, kernel, kernel)]
        if bias != "none":
            inputs.append(self.constant(f"{output}_b", self.random.normal(size=out) * (bias == "normal")))
        attributes.setdefault("pads", [kernel // 2] * 4)
        return self.add("Conv", inputs, output, group=group, **attributes)

    def matmul(self, source: str, output: str, into: int, out: int, *, bias: bool = True) -> str:
        """A matrix product, and the Add of its bias."""
        self.weight(f"{output}_w", into, out, reduced=into)
        if not bias:
            return self.add("MatMul", [source, f"{output}_w"], output)
        self.add("MatMul", [source, f"{output}_w"], f"{output}_product")
        self.constant(f"{output}_b", self.random.normal(size=out))
        return self.add("Add", [f"{output}_product", f"{output}_b"], output)

    def classify(self, source: str, channels: int, classes: int = 5) -> None:
        """Pool, flatten and multiply to "logits"."""
        self.add("GlobalAveragePool", [source], "pooled")
        self.add("Flatten", ["pooled"], "flat")
        self.weight("head", classes, channels)
        self.constant("head_bias", self.random.normal(size=classes))
        self.add("Gemm", ["flat", "head", "head_bias"], "logits", transB=1)

    def save(
        self,
        path: Path,
        *,
        inputs: Mapping[str, tuple[int, Shape]] | None = None,
        outputs: Mapping[str, Shape] | None = None,
        opset: int = 20,
    ) -> Path:
        """Write it; from "input" (batch, 3, 16, 16) to "logits" (batch, 5) unless told otherwise."""
        inputs = inputs or {"input": (TensorProto.FLOAT, ["batch", 3, 16, 16])}
        outputs = outputs or {"logits": ["batch", 5]}
        graph = helper.make_graph(
            self.nodes,
            "graph",
            [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
            [numpy_helper.from_array(array, name) for name, array in self.weights.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, str(path))
        return path


def save(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], path: Path, *, channels: int = 3) -> Path:
    """A graph from "input" (N, channels, 16, 16) to "logits" (N, 5)."""
    return Net.of(nodes, weights).save(path, inputs={"input": (TensorProto.FLOAT, ["batch", channels, 16, 16])})


def computed(model: ir.Model, data: np.ndarray, values: Sequence[str] = ()) -> list[np.ndarray]:
    """Some of a model's values, or its outputs, for data at "input"; the model itself is checked, too."""
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    there = {output.name for output in proto.graph.output}
    proto.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in values if name not in there
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(array) for array in session.run(list(values) or None, {"input": data})]


def assert_close(left: Sequence[np.ndarray], right: Sequence[np.ndarray], share: float) -> None:
    """Two lists of arrays agree to 1e-4 of each value, or to a share of the largest."""
    for one, other in zip(left, right, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=share * np.abs(one).max())


def residual(path: Path, seed: int = 0, opset: int = 20) -> Path:
    """Conv-BN-ReLU6, a residual block with a depthwise convolution, Concat, pooling, Flatten, Gemm."""
    net = Net(seed)
    random = net.random
    net.weight("stem", 16, 3, 3, 3)
    for name in ("gamma", "variance"):
        net.constant(name, random.uniform(0.5, 2, 16))
    for name in ("beta", "mean"):
        net.constant(name, random.normal(size=16))
    net.constant("zero", 0)
    net.constant("six", 6)
    net.add("Conv", ["input", "stem"], "a", name="stem_conv", pads=[1, 1, 1, 1])
    net.add("BatchNormalization", ["a", "gamma", "beta", "mean", "variance"], "b", name="norm")
    net.add("Clip", ["b", "zero", "six"], "c", name="relu6")
    net.conv("c", "d", 32, 16, name="expand_conv")
    net.add("Relu", ["d"], "e", name="relu")
    net.conv("e", "f", 32, 32, 3, group=32, bias="none", name="depthwise_conv")
    net.add("Relu", ["f"], "g", name="relu_2")
    net.conv("g", "h", 16, 32, name="project_conv")
    net.add("Add", ["c", "h"], "i", name="residual_add")
    net.add("MaxPool", ["i"], "j", name="pool", kernel_shape=[2, 2], strides=[2, 2])
    net.add("Concat", ["j", "j"], "k", name="concat", axis=1)
    if opset >= 18:
        net.constant("axes", [2, 3], np.int64)
        net.add("ReduceMean", ["k", "axes"], "l", name="mean_pool", keepdims=0)
    else:
        net.add("ReduceMean", ["k"], "l", name="mean_pool", keepdims=0, axes=[2, 3])
    net.weight("head", 5, 32)
    net.constant("head_bias", random.normal(size=5))
    net.add("Gemm", ["l", "head", "head_bias"], "logits", name="classifier", transB=1)
    return net.save(path, opset=opset)


def concatenated(path: Path) -> Path:
    """Two convolutions of different ranges and a pooled branch into one Concat, and a convolution behind it."""
    net = Net(1)
    net.conv("input", "stem", 16, 3, 3)
    net.add("Relu", ["stem"], "stem_relu")
    net.conv("stem_relu", "left", 16, 16)
    net.weights["left_w"] *= 4  # its range is another one
    net.add("Relu", ["left"], "left_relu")
    net.conv("stem_relu", "right", 16, 16, 3)
    net.add("Concat", ["left_relu", "right", "stem_relu"], "joined", axis=1)
    net.conv("joined", "last", 16, 48)
    net.classify("last", 16)
    return net.save(path)


def squeezed(path: Path) -> Path:
    """MobileNetV3's block: expansion, depthwise convolution, squeeze and excitation, HardSwish, residual."""
    net = Net(2)
    net.conv("input", "stem", 16, 3, 3)
    net.add("HardSwish", ["stem"], "stem_swish")
    net.conv("stem_swish", "expand", 32, 16)
    net.add("HardSwish", ["expand"], "expand_swish")
    net.conv("expand_swish", "depthwise", 32, 32, 3, group=32)
    net.add("GlobalAveragePool", ["depthwise"], "squeeze")
    net.conv("squeeze", "reduce", 16, 32)
    net.add("Relu", ["reduce"], "reduce_relu")
    net.conv("reduce_relu", "excite", 32, 16)
    net.add("HardSigmoid", ["excite"], "gate")
    net.add("Mul", ["depthwise", "gate"], "gated")
    net.conv("gated", "project", 16, 32)
    net.add("Add", ["stem_swish", "project"], "sum", name="residual_add")
    net.classify("sum", 16)
    return net.save(path)


def transformer(path: Path, *, width: int = 32, heads: int = 2, tokens: int | str = 8, opset: int = 20) -> Path:
    """From "input" (batch, tokens, width) to "logits" (batch, 5): attention and MLP, each behind a LayerNorm.

    LayerNormalization (from operator set 17 on) and Gelu (20) are made of smaller operators in older sets.
    """
    net = Net(3)
    net.constant("split", [0, 0, heads, width // heads], np.int64)
    net.constant("joined_shape", [0, 0, width], np.int64)
    net.constant("root", np.sqrt(width // heads))
    for name in ("ln_1", "ln_2"):
        net.constant(f"{name}_gamma", net.random.uniform(0.5, 2, width))
        net.constant(f"{name}_beta", net.random.normal(size=width))
    net.constant("epsilon", 1e-5)
    for name, value in (("half", 0.5), ("one", 1), ("two", 2), ("root_of_2", np.sqrt(2))):
        net.constant(name, value)

    def mean(source: str, output: str, axis: int, *, keepdims: int) -> str:
        if opset < 18:
            return net.add("ReduceMean", [source], output, axes=[axis], keepdims=keepdims)
        net.constant(f"{output}_axes", [axis], np.int64)
        return net.add("ReduceMean", [source, f"{output}_axes"], output, keepdims=keepdims)

    def normalised(source: str, output: str) -> str:
        if opset >= 17:
            return net.add("LayerNormalization", [source, f"{output}_gamma", f"{output}_beta"], output)
        net.add("Sub", [source, mean(source, f"{output}_mean", -1, keepdims=1)], f"{output}_centred")
        net.add("Pow", [f"{output}_centred", "two"], f"{output}_squares")
        mean(f"{output}_squares", f"{output}_variance", -1, keepdims=1)
        net.add("Add", [f"{output}_variance", "epsilon"], f"{output}_positive")
        net.add("Sqrt", [f"{output}_positive"], f"{output}_deviation")
        net.add("Div", [f"{output}_centred", f"{output}_deviation"], f"{output}_normal")
        net.add("Mul", [f"{output}_normal", f"{output}_gamma"], f"{output}_scaled")
        return net.add("Add", [f"{output}_scaled", f"{output}_beta"], output)

    def gelu(source: str, output: str) -> str:
        if opset >= 20:
            return net.add("Gelu", [source], output)
        net.add("Div", [source, "root_of_2"], f"{output}_div")
        net.add("Erf", [f"{output}_div"], f"{output}_erf")
        net.add("Add", [f"{output}_erf", "one"], f"{output}_add")
        net.add("Mul", [source, f"{output}_add"], f"{output}_mul")
        return net.add("Mul", [f"{output}_mul", "half"], output)

    normalised("input", "ln_1")
    for name in ("query", "key", "value"):
        net.matmul("ln_1", name, width, width)
        net.add("Reshape", [name, "split"], f"{name}_split")
        net.add("Transpose", [f"{name}_split"], f"{name}_heads", perm=[0, 2, 3, 1] if name == "key" else [0, 2, 1, 3])
    net.add("MatMul", ["query_heads", "key_heads"], "scores")
    net.add("Div", ["scores", "root"], "scaled")
    net.add("Softmax", ["scaled"], "weights", axis=-1)
    net.add("MatMul", ["weights", "value_heads"], "context_heads")
    net.add("Transpose", ["context_heads"], "context", perm=[0, 2, 1, 3])
    net.add("Reshape", ["context", "joined_shape"], "joined")
    net.matmul("joined", "projected", width, width)
    net.add("Add", ["input", "projected"], "residual_1")
    normalised("residual_1", "ln_2")
    net.matmul("ln_2", "hidden", width, 4 * width)
    gelu("hidden", "gelu")
    net.matmul("gelu", "shrunk", 4 * width, width)
    net.add("Add", ["residual_1", "shrunk"], "residual_2")
    mean("residual_2", "mean", 1, keepdims=0)
    net.weight("head", 5, width)
    net.constant("head_bias", net.random.normal(size=5))
    net.add("Gemm", ["mean", "head", "head_bias"], "logits", transB=1)
    used = {name for node in net.nodes for name in node.input}
    net.weights = {name: array for name, array in net.weights.items() if name in used}
    return net.save(path, inputs={"input": (TensorProto.FLOAT, ["batch", tokens, width])}, opset=opset)


def embedded(path: Path, *, width: int = 16, words: int = 50) -> Path:
    """From "ids" (int64) and "mask" (float), both (batch, tokens), to "logits": Gather, MatMul, a masked mean."""
    net = Net(4)
    net.weight("table", words, width)
    net.constant("last", [-1], np.int64)
    net.constant("middle", [1], np.int64)
    net.add("Gather", ["table", "ids"], "vectors")
    net.matmul("vectors", "hidden", width, 32)
    net.add("Relu", ["hidden"], "relu")
    net.add("Unsqueeze", ["mask", "last"], "mask_3")
    net.add("Mul", ["relu", "mask_3"], "masked")
    net.add("ReduceMean", ["masked", "middle"], "mean", keepdims=0)
    net.matmul("mean", "logits", 32, 5)
    shape: Shape = ["batch", "tokens"]
    return net.save(path, inputs={"ids": (TensorProto.INT64, shape), "mask": (TensorProto.FLOAT, shape)})


def shared(path: Path) -> Path:
    """Weights and bias that two convolutions share, and a branch that both feed."""
    net = Net(5)
    net.conv("input", "first", 3, 3)
    net.add("Relu", ["first"], "relu")
    net.add("Conv", ["relu", "first_w", "first_b"], "second")
    net.add("Sub", ["second", "first"], "branch")
    net.conv("branch", "last", 16, 3)
    net.classify("last", 16)
    return net.save(path)
