"""Whole guarded networks: no weight of a finished graph can saturate a pair sum, and computed with the saturating
instruction they come to the bits of exact sums."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgetl import catalog
from edgetl.parity.numeric import sqnr_db
from edgetl.quantize import dynamic, graph, recipes
from edgetl.quantize.saturation import can_saturate, emulate_pair_sums, exact_sums
from edgetl.quantize.schemes import SCHEMES
from edgetl.quantize.tools import Tools
from edgetl.runtime.onnxruntime import OnnxRuntimeRunner

sys.path.insert(0, str(Path(__file__).parent))
import graphs

Multiply = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(M, K) uint8 and (N, K) int8 → (M, N) sums."""
NETWORKS: dict[str, Callable[[Path], Path]] = {
    "residual": graphs.residual,
    "concatenated": graphs.concatenated,
    "squeezed": graphs.squeezed,
    "transformer": graphs.transformer,
}


def samples(network: str, count: int) -> np.ndarray:
    shape = (count, 8, 32) if network == "transformer" else (count, 3, 16, 16)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@cache
def made(network: str, scheme: str, recipe: str) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        model = graph.prepare(graph.load(NETWORKS[network](Path(folder) / "float.onnx")))
    tools = Tools(samples=lambda: [{"input": samples(network, 12)}], open_runner=OnnxRuntimeRunner)
    wanted = SCHEMES[scheme]
    found = recipes.calibrate(model, tools, [wanted])
    return ir.to_proto(recipes.make(model, found, wanted, catalog.recipe(recipe), tools).model)


class Weighted:
    """A node of a finished graph that multiplies by int8 weights, with what its engine is given."""

    def __init__(self, node: onnx.NodeProto, parts: Mapping[str, onnx.NodeProto], constants: Mapping[str, np.ndarray]):
        self.node = node
        self.attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        self.activation, self.weights = (parts[name] for name in node.input[:2])
        self.integers = constants[self.weights.input[0]]
        first = node.op_type == "Conv" or self.attributes.get("transB")
        self.axis = 0 if first else self.integers.ndim - 1

    @property
    def depthwise(self) -> bool:
        """One output channel per group: the kernels of both engines add such products in 32 bits."""
        return self.attributes.get("group", 1) == len(self.integers) > 1 and self.integers.shape[1] == 1


def weighted(proto: onnx.ModelProto) -> Iterator[Weighted]:
    """Found in the graph itself, and not in the account that its maker gives of it."""
    constants = {item.name: numpy_helper.to_array(item) for item in proto.graph.initializer}
    parts = {item.output[0]: item for item in proto.graph.node if item.op_type == "DequantizeLinear"}
    for node in proto.graph.node:
        quantized = node.op_type in ("Conv", "MatMul", "Gemm") and all(name in parts for name in node.input[:2])
        if quantized and parts[node.input[1]].input[0] in constants:
            yield Weighted(node, parts, constants)


@pytest.mark.parametrize("recipe", ["int8-mse", "int8-mse-corrected"])
@pytest.mark.parametrize("scheme", ["onnxruntime-x86", "openvino"])
@pytest.mark.parametrize("network", NETWORKS)
def test_no_channel_of_a_finished_graph_can_saturate(network: str, scheme: str, recipe: str) -> None:
    layers = list(weighted(made(network, scheme, recipe)))
    assert len(layers) >= 4
    for layer in layers:
        assert layer.depthwise or not can_saturate(layer.integers, layer.axis, 255, "channels-last").any(), (
            layer.node.name
        )


@pytest.mark.parametrize("scheme", ["onnxruntime-x86-vnni", "openvino-vnni"])
@pytest.mark.parametrize("network", NETWORKS)
def test_without_the_guard_each_of_these_networks_has_channels_that_can(network: str, scheme: str) -> None:
    bare = weighted(made(network, scheme, "int8-mse"))
    assert any(can_saturate(layer.integers, layer.axis, 255, "channels-last").any() for layer in bare)


@pytest.mark.parametrize("saturates", [True, False])
def test_no_channel_of_a_dynamic_graph_can_saturate(saturates: bool, tmp_path: Path) -> None:
    model = graph.prepare(graph.load(graphs.transformer(tmp_path / "m.onnx")))
    done = ir.to_proto(dynamic.quantize_dynamic(model, saturates=saturates).model)
    constants = {item.name: numpy_helper.to_array(item) for item in done.graph.initializer}
    products = [node for node in done.graph.node if node.op_type == "MatMulInteger"]
    assert len(products) >= 7
    can = [bool(can_saturate(constants[node.input[1]], 1, 255, "channels-last").any()) for node in products]
    assert any(can) is (not saturates)


def test_the_recipe_for_such_processors_is_guarded(tmp_path: Path) -> None:
    model = graph.prepare(graph.load(graphs.transformer(tmp_path / "m.onnx")))
    tools = Tools(samples=lambda: [{"input": samples("transformer", 4)}], open_runner=OnnxRuntimeRunner)
    for scheme, wanted in (("onnxruntime-x86", False), ("onnxruntime-x86-vnni", True)):
        found = recipes.calibrate(model, tools, [SCHEMES[scheme]])
        done = ir.to_proto(recipes.make(model, found, SCHEMES[scheme], catalog.recipe("int8-dynamic"), tools).model)
        constants = {item.name: numpy_helper.to_array(item) for item in done.graph.initializer}
        products = [node for node in done.graph.node if node.op_type == "MatMulInteger"]
        can = [can_saturate(constants[node.input[1]], 1, 255, "channels-last").any() for node in products]
        assert products and any(can) is wanted


# The saturating instruction, emulated.


def flat(activations: np.ndarray, integers: np.ndarray) -> np.ndarray:
    """As ONNX Runtime packs: neighbours, channels last; (M, positions, channels) and (N, positions, channels)."""
    return emulate_pair_sums(activations.reshape(len(activations), -1), integers.reshape(len(integers), -1))


def padded(activations: np.ndarray, integers: np.ndarray) -> np.ndarray:
    """As OpenVINO packs: the channels of each position padded to four."""
    to = [(0, 0), (0, 0), (0, -activations.shape[-1] % 4)]
    return flat(np.pad(activations, to), np.pad(integers, to))


def exact(activations: np.ndarray, integers: np.ndarray) -> np.ndarray:
    return exact_sums(activations.reshape(len(activations), -1), integers.reshape(len(integers), -1))


def computed(proto: onnx.ModelProto, data: np.ndarray, multiply: Multiply) -> np.ndarray:
    """The graph's output, every node one after the other; products with weights in integers, summed as told."""
    values = {item.name: numpy_helper.to_array(item) for item in proto.graph.initializer}
    values["input"] = data
    layers = {layer.node.name: layer for layer in weighted(proto)}
    for node in proto.graph.node:
        if node.name in layers:
            values[node.output[0]] = product(layers[node.name], values, multiply)
            continue
        names = [name for name in node.input if name]
        alone = helper.make_graph(
            [node],
            "node",
            [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(values[name].dtype), None) for name in
             dict.fromkeys(names)],
            [helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None) for name in node.output],
        )  # fmt: skip
        evaluator = ReferenceEvaluator(helper.make_model(alone, opset_imports=proto.opset_import))
        values.update(zip(node.output, evaluator.run(None, {name: values[name] for name in names}), strict=True))
    return values[proto.graph.output[0].name]


def product(layer: Weighted, values: Mapping[str, np.ndarray], multiply: Multiply) -> np.ndarray:
    """Convolution, Gemm or MatMul of uint8 activations, float32."""
    quantized, scale, zero_point = (values[name] for name in layer.activation.input)
    steps = values[layer.weights.input[1]].astype(np.float64) * float(scale)
    bias = values[layer.node.input[2]] if len(layer.node.input) > 2 else np.zeros(1, np.float32)
    integers = np.moveaxis(layer.integers, layer.axis, 0)
    assert quantized.dtype == np.uint8 and integers.dtype == np.int8
    if layer.node.op_type != "Conv":
        rows = quantized.reshape(-1, 1, quantized.shape[-1])
        sums = multiply(rows, integers[:, None, :]) - int(zero_point) * integers.sum(axis=1, dtype=np.int64)
        return (sums * steps + bias).reshape(*quantized.shape[:-1], -1).astype(np.float32)
    kernel, groups = integers.shape[2:], layer.attributes.get("group", 1)
    pads = layer.attributes.get("pads", [0] * 4)
    filled = np.pad(
        quantized, [(0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])], constant_values=int(zero_point)
    )
    windows = np.lib.stride_tricks.sliding_window_view(filled, kernel, axis=(2, 3))
    strides = layer.attributes.get("strides", [1, 1])
    windows = windows[:, :, :: strides[0], :: strides[1]]
    batch, channels, height, width = windows.shape[:4]
    # Position of the kernel first, channel last, as both engines lay the weights out.
    columns = windows.transpose(0, 2, 3, 4, 5, 1).reshape(batch * height * width, -1, channels)
    rows = integers.transpose(0, 2, 3, 1).reshape(len(integers), -1, integers.shape[1])
    found = []
    for group in range(groups):
        ins, outs = (slice(group * size // groups, (group + 1) * size // groups) for size in (channels, len(rows)))
        chosen = exact if layer.depthwise else multiply
        shift = int(zero_point) * rows[outs].reshape(rows[outs].shape[0], -1).sum(axis=1, dtype=np.int64)
        found.append(chosen(np.ascontiguousarray(columns[..., ins]), np.ascontiguousarray(rows[outs])) - shift)
    result = np.concatenate(found, axis=1) * steps + bias
    return result.reshape(batch, height, width, -1).transpose(0, 3, 1, 2).astype(np.float32)


class TestEmulated:
    """On inputs at the ends of their range, which drive pair sums as far as they go."""

    @pytest.mark.parametrize("scheme", ["onnxruntime-x86", "openvino"])
    @pytest.mark.parametrize("network", NETWORKS)
    def test_a_guarded_network_is_exact_to_the_bit(self, network: str, scheme: str, tmp_path: Path) -> None:
        proto = made(network, scheme, "int8-mse")
        data = np.sign(samples(network, 2)) * 4
        wanted = computed(proto, data, exact)
        assert np.array_equal(computed(proto, data, flat), wanted)
        assert np.array_equal(computed(proto, data, padded), wanted)
        if scheme == "onnxruntime-x86":  # what the engine computes here, whichever instruction it has
            onnx.save(proto, str(tmp_path / "q.onnx"))
            with OnnxRuntimeRunner(tmp_path / "q.onnx", threads=1) as runner:
                assert sqnr_db(runner.run({"input": data})["logits"], wanted) > 35.0

    @pytest.mark.parametrize("network", NETWORKS)
    def test_the_same_network_without_a_guard_is_not(self, network: str) -> None:
        proto = made(network, "onnxruntime-x86-vnni", "int8-mse")
        data = np.sign(samples(network, 2)) * 4
        assert not np.array_equal(computed(proto, data, flat), computed(proto, data, exact))
