from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgetl.errors import ModelError
from edgetl.parity.numeric import sqnr_db
from edgetl.quantize import dynamic, graph
from edgetl.specs import Estimator

node = helper.make_node


def proto(
    nodes: list[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    *,
    shape: list[object] | None = None,
    outputs: Iterable[str] = ("y",),
) -> onnx.ModelProto:
    built = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape or ["n", 7, 32])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(built, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def quantize(model: onnx.ModelProto, **options: object) -> tuple[dynamic.Dynamic, onnx.ModelProto]:
    done = dynamic.quantize_dynamic(graph.prepare(ir.from_proto(model)), **options)  # type: ignore[arg-type]
    result = ir.to_proto(done.model)
    onnx.checker.check_model(result, full_check=True)
    assert [item.name for item in result.graph.output] == [item.name for item in model.graph.output]
    return done, result


def run(model: onnx.ModelProto, x: np.ndarray, optimized: Path | None = None) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def fused(model: onnx.ModelProto, x: np.ndarray, tmp_path: Path) -> Counter[str]:
    """Operators of ONNX Runtime's own optimized graph."""
    run(model, x, tmp_path / "optimized.onnx")
    return Counter(item.op_type for item in onnx.load(str(tmp_path / "optimized.onnx")).graph.node)


def weight(*shape: int, seed: int = 1) -> np.ndarray:
    random = np.random.default_rng(seed)
    # Output channels of different magnitude, as in real networks.
    return (random.normal(size=shape) * random.uniform(0.1, 3, size=shape[-1])).astype(np.float32)


def tokens(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape or (3, 7, 32)).astype(np.float32)


class TestFusion:
    def test_a_product_with_bias_becomes_one_operator(self, tmp_path: Path) -> None:
        nodes = [node("MatMul", ["x", "w"], ["a"], name="m"), node("Add", ["b", "a"], ["y"], name="add")]
        source = proto(nodes, {"w": weight(32, 48), "b": weight(48)})
        done, result = quantize(source)
        assert fused(result, tokens(), tmp_path) == {"DynamicQuantizeMatMul": 1}
        assert done.quantized == {"MatMul": 1} and not done.left_in_float
        before, after = done.weight_bytes
        assert before == 32 * 48 * 4 and after == 32 * 48 + 48 * 4
        assert sqnr_db(run(source, tokens()), run(result, tokens())) > 35.0

    def test_products_of_one_input_share_its_integers(self, tmp_path: Path) -> None:
        nodes = [node("MatMul", ["x", name], [f"h{name}"], name=f"m{name}") for name in "qkv"]
        nodes.append(node("Concat", ["hq", "hk", "hv"], ["y"], name="concat", axis=2))
        source = proto(nodes, {name: weight(32, 16, seed=place) for place, name in enumerate("qkv")})
        _, result = quantize(source)
        assert fused(result, tokens(), tmp_path) == {
            "DynamicQuantizeLinear": 1, "MatMulIntegerToFloat": 3, "Concat": 1,
        }  # fmt: skip
        assert sqnr_db(run(source, tokens()), run(result, tokens())) > 35.0

    @pytest.mark.parametrize("transposed", [0, 1])
    @pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.25, 1.0), (2.0, -3.0), (1.0, 0.0)])
    def test_gemm(self, transposed: int, alpha: float, beta: float, tmp_path: Path) -> None:
        weights = {"w": weight(48, 32).T.copy() if not transposed else weight(48, 32), "b": weight(48)}
        nodes = [node("Gemm", ["x", "w", "b"], ["y"], name="g", transB=transposed, alpha=alpha, beta=beta)]
        source = proto(nodes, weights, shape=["n", 32])
        done, result = quantize(source)
        assert done.quantized == {"Gemm": 1}
        assert fused(result, tokens(5, 32), tmp_path) == {"DynamicQuantizeMatMul": 1}
        assert sqnr_db(run(source, tokens(5, 32)), run(result, tokens(5, 32))) > 35.0

    def test_a_bias_that_is_an_activation(self) -> None:
        nodes = [node("Relu", ["x"], ["r"], name="r"), node("Gemm", ["x", "w", "r"], ["y"], name="g", beta=0.5)]
        source = proto(nodes, {"w": weight(32, 32)}, shape=["n", 32])
        _, result = quantize(source)
        assert sqnr_db(run(source, tokens(5, 32)), run(result, tokens(5, 32))) > 35.0

    def test_a_fixed_batch_and_an_inner_output(self) -> None:
        nodes = [node("MatMul", ["x", "w"], ["y"], name="m"), node("Relu", ["y"], ["z"], name="r")]
        source = proto(nodes, {"w": weight(32, 8)}, shape=[3, 7, 32], outputs=["y", "z"])
        _, result = quantize(source)
        assert [dim.dim_value for dim in result.graph.output[0].type.tensor_type.shape.dim] == [3, 7, 8]
        assert sqnr_db(run(source, tokens()), run(result, tokens())) > 35.0

    def test_shared_weights_have_one_integer_copy(self) -> None:
        nodes = [node("MatMul", ["x", "w"], ["a"], name="m"), node("MatMul", ["a", "w"], ["y"], name="n")]
        _, result = quantize(proto(nodes, {"w": weight(32, 32)}))
        assert [item.data_type for item in result.graph.initializer].count(TensorProto.INT8) == 1
        assert all(item.data_type != TensorProto.FLOAT or len(item.dims) < 2 for item in result.graph.initializer)

    def test_weights_that_are_read_elsewhere_stay_as_well(self) -> None:
        nodes = [node("MatMul", ["x", "w"], ["a"], name="m"), node("Add", ["a", "w"], ["y"], name="n")]
        source = proto(nodes, {"w": weight(32, 32)}, shape=["n", 32, 32])
        _, result = quantize(source)
        assert sqnr_db(run(source, tokens(2, 32, 32)), run(result, tokens(2, 32, 32))) > 30.0


class TestFloat:
    def test_what_stays_has_a_reason(self) -> None:
        nodes = [
            node("MatMul", ["left", "x"], ["a"], name="left_weights"),
            node("MatMul", ["a", "batched"], ["b"], name="batched_weights"),
            node("Transpose", ["b"], ["bt"], name="t", perm=[0, 2, 1]),
            node("MatMul", ["b", "bt"], ["c"], name="activations"),
            node("MatMul", ["c", "w"], ["d"], name="kept"),
            node("MatMul", ["d", "v"], ["y"], name="quantized"),
        ]
        weights = {"left": weight(7, 7), "batched": weight(1, 32, 16), "w": weight(7, 7), "v": weight(7, 9)}
        done, result = quantize(proto(nodes, weights), keep=("kept",))
        assert done.reasons == {
            "left_weights": "its first input is constant",
            "batched_weights": "its weights have 3 dimensions",
            "activations": "no weights: both inputs are activations",
            "kept": "asked for",
        }
        assert done.quantized == {"MatMul": 1} and done.left_in_float == {"MatMul": 4}
        assert Counter(item.op_type for item in result.graph.node)["MatMulInteger"] == 1

    def test_small_and_transposed_products_stay(self) -> None:
        nodes = [
            node("Gemm", ["x", "w"], ["a"], name="turned", transA=1),
            node("MatMul", ["a", "v"], ["b"], name="small"),
            node("MatMul", ["b", "u"], ["y"], name="large"),
        ]
        weights = {"w": weight(4, 8), "v": weight(8, 2), "u": weight(2, 64)}
        done, _ = quantize(proto(nodes, weights, shape=[4, 6]), minimum_size=17)
        assert done.reasons == {"turned": "its input is transposed", "small": "its weights have 16 values"}

    def test_convolutions_stay(self) -> None:
        nodes = [
            node("Conv", ["x", "k"], ["a"], name="conv"),
            node("Flatten", ["a"], ["f"], name="flat"),
            node("Gemm", ["f", "w"], ["y"], name="head"),
        ]
        done, _ = quantize(proto(nodes, {"k": weight(4, 3, 3, 3), "w": weight(16, 5)}, shape=["n", 3, 4, 4]))
        assert done.left_in_float == {"Conv": 1} and "convolution" in done.reasons["conv"]

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_weights_that_are_not_finite_are_not_quantized(self, value: float) -> None:
        broken = weight(32, 8)
        broken[3, 3] = value
        with pytest.raises(ModelError, match="not finite"):
            quantize(proto([node("MatMul", ["x", "w"], ["y"], name="m")], {"w": broken}))

    def test_a_graph_without_products_is_refused(self) -> None:
        with pytest.raises(ModelError, match="no MatMul or Gemm"):
            quantize(proto([node("Relu", ["x"], ["y"], name="r")], {}))

    def test_a_quantized_model_is_refused(self) -> None:
        source = proto([node("MatMul", ["x", "w"], ["y"], name="m")], {"w": weight(32, 8)})
        with pytest.raises(ModelError, match="quantized already: 'x_quantize'"):
            quantize(quantize(source)[1])


class TestAccuracy:
    @settings(max_examples=25, deadline=None)
    @given(
        st.integers(1, 5), st.integers(1, 40), st.integers(1, 24), st.floats(1e-4, 1e4),
        st.sampled_from(["minmax", "mse"]), st.integers(0, 999),
    )  # fmt: skip
    def test_the_error_is_that_of_the_steps(
        self, count: int, inner: int, outer: int, size: float, method: str, seed: int
    ) -> None:
        random = np.random.default_rng(seed)
        x = (random.normal(size=(2, count, inner)) * size).astype(np.float32)
        weights = weight(inner, outer, seed=seed)
        source = proto([node("MatMul", ["x", "w"], ["y"], name="m")], {"w": weights}, shape=["n", "t", inner])
        _, result = quantize(source, weights=Estimator(method=method))  # type: ignore[arg-type]
        initializers = {item.name: numpy_helper.to_array(item) for item in result.graph.initializer}
        steps, scales = initializers["w_integers"].astype(np.float64), initializers["w_scales"].astype(np.float64)
        assert steps.shape == weights.shape and scales.shape == (outer,) and np.abs(steps).max() <= 127
        span = max(float(x.max()), 0.0) - min(float(x.min()), 0.0)
        # Half a step of the input, and as much again where its zero point was rounded, over all weights of a channel;
        # and what the weights themselves lost.
        bound = span / 255 * np.abs(steps * scales).sum(axis=0) + np.abs(x @ (steps * scales - weights))
        error = np.abs(run(result, x).astype(np.float64) - x.astype(np.float64) @ weights)
        assert (error <= bound * 1.001 + 1e-5 * span * np.abs(weights).sum(axis=0)).all()

    def test_a_scale_per_channel_is_better_than_one(self) -> None:
        source = proto([node("MatMul", ["x", "w"], ["y"], name="m")], {"w": weight(32, 64)})
        per_channel = sqnr_db(run(source, tokens()), run(quantize(source)[1], tokens()))
        whole = weight(32, 64)
        scale = np.abs(whole).max() / 127
        one = proto(list(source.graph.node), {"w": (np.rint(whole / scale) * scale).astype(np.float32)})
        assert per_channel > sqnr_db(run(source, tokens()), run(one, tokens()))
