from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgetl import catalog
from edgetl.backends import CompileRequest, backend
from edgetl.errors import ModelError, UnknownNameError
from edgetl.parity.numeric import sqnr_db
from edgetl.quantize import graph, half
from edgetl.specs import BatchRange

sys.path.insert(0, str(Path(__file__).parent))
import graphs

node = helper.make_node
F32, F16, I64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64


def proto(
    nodes: list[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    *,
    inputs: Iterable[tuple[str, int, list[object]]] = (("x", F32, ["n", 8]),),
    outputs: Iterable[tuple[str, int, list[object] | None]] = (("y", F32, None),),
    opset: int = 20,
) -> onnx.ModelProto:
    built = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(*item) for item in inputs],
        [helper.make_tensor_value_info(*item) for item in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(built, opset_imports=[helper.make_opsetid("", opset)], ir_version=8 if opset < 19 else 10)


def convert(model: onnx.ModelProto, *, prepare: bool = True, **options: object) -> tuple[half.Half, onnx.ModelProto]:
    """Through the same door as the pipeline; what comes out is valid whatever went in."""
    read = ir.from_proto(model)
    done = half.to_half(graph.prepare(read) if prepare else read, **options)  # type: ignore[arg-type]
    result = ir.to_proto(done.model)
    onnx.checker.check_model(result, full_check=True)  # with strict type inference
    made = {output: item for item in result.graph.node for output in item.output}
    casts = [item for item in result.graph.node if item.op_type == "Cast" and item.name.endswith(("_half", "_float"))]
    for cast in casts:
        source = made.get(cast.input[0])
        assert source is None or source not in casts, "two casts back to back"
    assert len({cast.input[0] for cast in casts}) == len(casts), "a value is cast twice"
    assert [item.type for item in result.graph.input] == [item.type for item in model.graph.input]
    assert [item.name for item in result.graph.output] == [item.name for item in model.graph.output]
    for before, after in zip(model.graph.output, result.graph.output, strict=True):
        assert before.type.tensor_type.elem_type == after.type.tensor_type.elem_type
    return done, result


def run(model: onnx.ModelProto, **inputs: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    # ONNX Runtime 1.31 makes int32 biases of float16 ones behind Q/DQ pairs, with a float16 scale that underflows.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(found) for found in session.run(None, inputs)]


def compute(model: onnx.ModelProto, **inputs: np.ndarray) -> np.ndarray:
    """In real float16, operator by operator; ONNX Runtime on a CPU joins casts and so computes much in float32."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(ReferenceEvaluator(model).run(None, inputs)[0])


def rows(count: int = 4, width: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def weight(*shape: int, seed: int = 1) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=shape) / np.sqrt(shape[-1])).astype(np.float32)


def types(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    found = {item.name: item.type.tensor_type.elem_type for item in [*inferred.value_info, *inferred.output]}
    return found | {item.name: item.data_type for item in inferred.initializer}


def kinds(model: onnx.ModelProto) -> Counter[str]:
    return Counter(item.op_type for item in model.graph.node)


def attention() -> onnx.ModelProto:
    """MatMul, scores, mask, Softmax, LayerNormalization read by two, Erf, a sum of both."""
    weights = {name: weight(8, 8, seed=place) for place, name in enumerate(("q", "k", "v", "o", "p"))}
    weights |= {"g": np.ones(8, np.float32), "b": np.zeros(8, np.float32)}
    nodes = [
        node("LayerNormalization", ["x", "g", "b"], ["h"], name="norm"),
        node("MatMul", ["h", "q"], ["hq"], name="mq"),
        node("MatMul", ["h", "k"], ["hk"], name="mk"),
        node("MatMul", ["h", "v"], ["hv"], name="mv"),
        node("Transpose", ["hk"], ["hkt"], name="t", perm=[1, 0]),
        node("MatMul", ["hq", "hkt"], ["s"], name="scores"),
        node("Softmax", ["s"], ["a"], name="softmax"),
        node("MatMul", ["a", "hv"], ["c"], name="context"),
        node("MatMul", ["c", "o"], ["d"], name="mo"),
        node("Erf", ["d"], ["e"], name="erf"),
        node("Add", ["x", "e"], ["y"], name="residual"),
    ]
    return proto(nodes, weights, inputs=[("x", F32, [4, 8])])


class TestTypes:
    def test_a_convolutional_network_has_two_casts(self, tmp_path: Path) -> None:
        source = onnx.load(str(graphs.residual(tmp_path / "m.onnx")))
        done, result = convert(source)
        assert kinds(result)["Cast"] == 2 and not done.kept and not done.reasons
        assert all(item.data_type != F32 for item in result.graph.initializer)
        assert done.converted["Conv"] == 4
        images = np.random.default_rng(0).normal(size=(8, 3, 16, 16)).astype(np.float32)
        assert sqnr_db(run(source, input=images)[0], compute(result, input=images)) > 50.0

    def test_sensitive_operators_stay_and_share_their_casts(self) -> None:
        done, result = convert(attention())
        assert done.kept == {"LayerNormalization": 1, "Softmax": 1}
        # x to half for the Add, the norm's output, scores, Softmax's output, the model's output.
        assert kinds(result)["Cast"] == 5
        found = types(result)
        assert found["s"] == F16 and found["a"] == F32 and found["h"] == F32
        assert found["g"] == F32 and found["q"] == F16
        x = rows()
        assert sqnr_db(run(attention(), x=x)[0], compute(result, x=x)) > 50.0

    def test_nothing_needs_to_be_kept(self) -> None:
        done, result = convert(attention(), keep=())
        assert not done.kept and kinds(result)["Cast"] == 2

    def test_a_node_is_kept_by_its_name(self) -> None:
        done, result = convert(attention(), keep=("mv",))
        assert dict(done.reasons) == {"mv": "asked for by name"} and types(result)["hv"] == F32

    def test_a_misspelt_name_is_refused(self) -> None:
        with pytest.raises(UnknownNameError, match=r"softmaxx.*softmax"):
            half.to_half(graph.prepare(ir.from_proto(attention())), keep=("softmaxx",))

    def test_a_constant_of_both_types_has_two_versions(self) -> None:
        nodes = [node("Mul", ["x", "w"], ["a"], name="m"), node("MatMul", ["a", "w"], ["y"], name="p")]
        done, result = convert(proto(nodes, {"w": weight(8, 8)}, inputs=[("x", F32, [8, 8])]), keep=("m",))
        assert sorted(item.data_type for item in result.graph.initializer) == [F32, F16]
        assert done.reasons == {"m": "asked for by name"}

    def test_light_nodes_between_kept_ones_stay_and_large_tables_do_not(self) -> None:
        nodes = [
            node("Gather", ["table", "ids"], ["t"], name="gather"),
            node("Softmax", ["t"], ["a"], name="first"),
            node("Mul", ["a", "two"], ["b"], name="mul"),
            node("Softmax", ["b"], ["y"], name="second"),
        ]
        weights = {"table": weight(1024, 8), "two": np.asarray(2, np.float32)}
        done, result = convert(proto(nodes, weights, inputs=[("ids", I64, ["n"])]))
        assert done.reasons["mul"] == "between nodes in float32" and done.converted == {"Gather": 1}
        assert kinds(result)["Cast"] == 1 and types(result)["table"] == F16

    def test_the_same_value_twice_an_output_and_an_input_as_output(self) -> None:
        nodes = [node("Relu", ["x"], ["y"], name="r"), node("Neg", ["y"], ["z"], name="n")]
        outputs = [("y", F32, None), ("z", F32, None)]
        source = proto(nodes, {}, outputs=outputs)
        _, result = convert(source)
        for expected, got in zip(run(source, x=rows()), run(result, x=rows()), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-3)

    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.sampled_from(["Relu", "Softmax", "MatMul", "Add", "Sqrt", "LayerNormalization", "Concat"]),
                    min_size=1, max_size=12), st.data())  # fmt: skip
    def test_any_graph_stays_valid_and_near(self, operators: list[str], data: st.DataObject) -> None:
        weights = {"w": weight(8, 8), "g": np.ones(8, np.float32), "two": np.asarray([2], np.int64)}
        weights |= {
            "start": np.asarray([0], np.int64),
            "end": np.asarray([8], np.int64),
            "one": np.asarray([1], np.int64),
        }
        values, nodes = ["x"], []
        for place, operator in enumerate(operators):
            first, second = (data.draw(st.sampled_from(values)) for _ in range(2))
            name, made = f"node_{place}", f"value_{place}"
            if operator == "Concat":  # and back to eight columns
                nodes.append(node("Concat", [first, second], [f"wide_{place}"], name=f"wide_{name}", axis=1))
                inputs = [f"wide_{place}", "start", "end", "one"]
                nodes.append(node("Slice", inputs, [made], name=name))
            elif operator == "Sqrt":
                nodes.append(node("Abs", [first], [f"abs_{place}"], name=f"abs_{name}"))
                nodes.append(node("Sqrt", [f"abs_{place}"], [made], name=name))
            else:
                inputs = {"MatMul": [first, "w"], "Add": [first, second], "LayerNormalization": [first, "g"]}
                nodes.append(node(operator, inputs.get(operator, [first]), [made], name=name))
            values.append(made)
        keep = data.draw(st.sets(st.sampled_from([item.name for item in nodes])))
        source = proto(nodes, weights, outputs=[(values[-1], F32, ["n", 8])])
        _, result = convert(source, prepare=False, keep=sorted(keep))
        expected, got = run(source, x=rows())[0], compute(result, x=rows())
        np.testing.assert_allclose(got, expected, atol=0.05 * max(1.0, float(np.abs(expected).max())))


class TestRange:
    def large(self) -> onnx.ModelProto:
        """Its activations reach 1e6 between two products, its outputs one."""
        nodes = [
            node("MatMul", ["x", "up"], ["a"], name="up_matmul"),
            node("Relu", ["a"], ["b"], name="relu"),
            node("MatMul", ["b", "down"], ["c"], name="down_matmul"),
            node("MatMul", ["c", "w"], ["y"], name="last"),
        ]
        weights = {"up": weight(8, 8) * 3e4, "down": weight(8, 8, seed=2) * 1e-3, "w": weight(8, 8, seed=3) * 1e-2}
        return proto(nodes, weights)

    def test_calibrated_magnitudes_keep_a_node_in_float(self) -> None:
        source, x = self.large(), rows() * 30
        assert not np.isfinite(compute(convert(source)[1], x=x)).all()
        largest = {"x": 100.0, "a": 1e6, "b": 1e6, "c": 2e3, "y": 10.0}
        done, result = convert(source, largest=largest)
        assert set(done.reasons) == {"up_matmul", "relu", "down_matmul"} and "reaches 1e+06" in done.reasons["relu"]
        assert sqnr_db(run(source, x=x)[0], compute(result, x=x)) > 50.0

    @pytest.mark.parametrize("reached", [half.MARGIN * 65504, 65504 / half.MARGIN * 1.01, np.inf, np.nan])
    def test_there_is_a_margin(self, reached: float) -> None:
        assert set(convert(self.large(), largest={"y": reached})[0].reasons) == {"last"}
        assert not convert(self.large(), largest={"y": 65504 / half.MARGIN})[0].reasons

    def test_weights_beyond_half_stay_with_their_node(self) -> None:
        nodes = [node("MatMul", ["x", "w"], ["a"], name="big"), node("MatMul", ["a", "v"], ["y"], name="small")]
        weights = {"w": np.full((8, 8), 1e6, np.float32), "v": weight(8, 8) * 1e-6}
        done, result = convert(proto(nodes, weights), largest={"a": 10.0})
        assert done.reasons["big"] == "its constant 'w' reaches 1e+06, and float16 65504"
        assert types(result)["w"] == F32 and types(result)["v"] == F16

    def test_lost_weights_are_counted(self) -> None:
        weights = {"w": np.asarray([[1e-9, 1e-6, 0.5, 0.0]] * 8, np.float32)}
        done, _ = convert(proto([node("MatMul", ["x", "w"], ["y"], name="m")], weights))
        assert done.vanished == {"w": 8} and done.subnormal == {"w": 8}

    def test_a_mask_reaches_softmax_in_float(self) -> None:
        nodes = [
            node("Where", ["mask", "zero", "lowest"], ["bias"], name="where"),
            node("MatMul", ["x", "w"], ["s"], name="scores"),
            node("Add", ["s", "bias"], ["t"], name="add"),
            node("Softmax", ["t"], ["y"], name="softmax"),
        ]
        weights = {"w": weight(8, 8), "zero": np.asarray(0, np.float32), "lowest": np.asarray(-3.4e38, np.float32)}
        inputs = [("x", F32, ["n", 8]), ("mask", TensorProto.BOOL, ["n", 8])]
        source = proto(nodes, weights, inputs=inputs)
        done, result = convert(source)
        assert set(done.reasons) == {"where", "add", "softmax"} and kinds(result)["Cast"] == 2
        mask = np.ones((4, 8), bool)
        mask[0] = False  # a row without anything to look at has even weights, not NaN
        np.testing.assert_allclose(run(result, x=rows(), mask=mask)[0], run(source, x=rows(), mask=mask)[0], atol=1e-3)

    def test_the_epsilon_of_a_norm_is_not_lost(self) -> None:
        nodes = [
            node("ReduceL2", ["x", "axis"], ["n"], name="norm", keepdims=1),
            node("Clip", ["n", "epsilon"], ["c"], name="clip"),
            node("Div", ["x", "c"], ["y"], name="div"),
        ]
        weights = {"axis": np.asarray([1], np.int64), "epsilon": np.asarray(1e-12, np.float32)}
        _, result = convert(proto(nodes, weights))
        assert not compute(result, x=np.zeros((2, 8), np.float32)).any()

    def test_a_bound_beyond_half_is_infinity(self) -> None:
        nodes = [node("Clip", ["x", "zero", "top"], ["y"], name="clip")]
        source = proto(nodes, {"zero": np.asarray(0, np.float32), "top": np.asarray(3.4e38, np.float32)})
        done, result = convert(source)
        assert not done.kept and np.allclose(run(result, x=rows())[0], run(source, x=rows())[0], atol=1e-3)


class TestOperators:
    def test_attributes_that_make_floats(self) -> None:
        nodes = [
            node("Shape", ["x"], ["shape"], name="shape"),
            node("ConstantOfShape", ["shape"], ["zeros"], name="zeros"),
            node("EyeLike", ["x"], ["eye"], name="eye"),
            node("Cast", ["ids"], ["cast"], name="cast", to=F32),
            node("RandomNormalLike", ["x"], ["noise"], name="noise", scale=1e-3),
            node("Sum", ["x", "zeros", "eye", "cast", "noise"], ["y"], name="sum"),
        ]
        inputs = [("x", F32, ["n", 8]), ("ids", I64, ["n", 8])]
        source = proto(nodes, {}, inputs=inputs)
        done, result = convert(source)
        assert not done.kept and kinds(result)["Cast"] == 3  # the model's own, and at input and output
        ids = np.arange(64).reshape(8, 8)
        np.testing.assert_allclose(run(result, x=rows(8), ids=ids)[0], run(source, x=rows(8), ids=ids)[0], atol=0.1)

    def test_range_and_a_norms_statistics_stay_float(self) -> None:
        nodes = [
            node("Range", ["start", "stop", "step"], ["r"], name="range"),
            node("Add", ["x", "r"], ["a"], name="add"),
            node("LayerNormalization", ["a", "g"], ["y", "mean"], name="norm"),
        ]
        weights = {"start": np.asarray(0, np.float32), "step": np.asarray(1, np.float32), "g": np.ones(8, np.float32)}
        inputs = [("x", F32, ["n", 8]), ("stop", F32, [])]
        source = proto(nodes, weights, inputs=inputs, outputs=[("y", F32, None), ("mean", F32, None)])
        done, result = convert(source, keep=())
        assert done.reasons["range"].startswith("ONNX has no float16 for Range")
        got = run(result, x=rows(), stop=np.asarray(8, np.float32))
        expected = run(source, x=rows(), stop=np.asarray(8, np.float32))
        assert sqnr_db(expected[0], got[0]) > 50.0 and sqnr_db(expected[1], got[1]) > 50.0

    def test_resize_reads_scales_in_float(self) -> None:
        nodes = [node("Resize", ["x", "", "scales"], ["y"], name="up", mode="nearest")]
        source = proto(nodes, {"scales": np.asarray([1, 1, 2, 2], np.float32)}, inputs=[("x", F32, ["n", 3, 4, 4])])
        done, result = convert(source)
        assert types(result)["scales"] == F32 and done.converted == {"Resize": 1}

    def test_arithmetic_on_indices_is_exact(self) -> None:
        nodes = [
            node("Shape", ["x"], ["shape"], name="shape"),
            node("Cast", ["shape"], ["f"], name="to_float", to=F32),
            node("Mul", ["f", "factor"], ["g"], name="mul"),
            node("Floor", ["g"], ["h"], name="floor"),
            node("Cast", ["h"], ["y"], name="to_int", to=I64),
            node("Relu", ["x"], ["z"], name="relu"),
        ]
        source = proto(nodes, {"factor": np.asarray(1.5, np.float32)}, outputs=[("y", I64, None), ("z", F32, None)])
        done, result = convert(source)
        assert done.reasons["mul"] == "it computes shapes or indices"
        assert run(result, x=rows(4099))[0].tolist() == [6148, 12]

    def test_a_subgraph_and_what_it_reads_from_outside_stay_float(self) -> None:
        branch = helper.make_graph(
            [node("Mul", ["a", "two"], ["t"], name="inner")], "then", [],
            [helper.make_tensor_value_info("t", F32, ["n", 8])],
            [numpy_helper.from_array(np.asarray(2, np.float32), "two")],
        )  # fmt: skip
        other = helper.make_graph(
            [node("Identity", ["w"], ["e"], name="other")], "else", [],
            [helper.make_tensor_value_info("e", F32, ["n", 8])],
        )  # fmt: skip
        nodes = [
            node("MatMul", ["x", "w"], ["a"], name="m"),
            node("If", ["flag"], ["b"], name="if", then_branch=branch, else_branch=other),
            node("MatMul", ["b", "w"], ["y"], name="last"),
        ]
        inputs = [("x", F32, ["n", 8]), ("flag", TensorProto.BOOL, [])]
        source = proto(nodes, {"w": weight(8, 8)}, inputs=inputs)
        done, result = convert(source)
        assert done.reasons == {"if": "it holds a subgraph"} and done.converted == {"MatMul": 2}
        for flag in (True, False):
            inputs_ = {"x": rows(8), "flag": np.asarray(flag)}
            assert sqnr_db(run(source, **inputs_)[0], run(result, **inputs_)[0]) > 50.0

    def test_the_models_own_casts_between_halves_go(self) -> None:
        nodes = [
            node("Cast", ["x"], ["a"], name="down", to=F16),
            node("Relu", ["a"], ["b"], name="relu"),
            node("Cast", ["b"], ["c"], name="up", to=F32),
            node("MatMul", ["c", "w"], ["y"], name="m"),
        ]
        _, result = convert(proto(nodes, {"w": weight(8, 8)}))
        assert kinds(result) == {"Cast": 2, "Relu": 1, "MatMul": 1}

    def test_a_float16_output_is_no_index(self) -> None:
        """All that led to one stayed in float32: "it computes shapes or indices"."""
        nodes = [
            node("Cast", ["x"], ["a"], name="widen", to=F32),
            node("MatMul", ["a", "w"], ["b"], name="product"),
            node("Cast", ["b"], ["y"], name="narrow", to=F16),
        ]
        source = proto(nodes, {"w": weight(8, 8)}, inputs=[("x", F16, ["n", 8])], outputs=[("y", F16, None)])
        done, result = convert(source)
        assert done.reasons == {} and done.converted["MatMul"] == 1
        assert kinds(result)["MatMul"] == 1 and types(result)["w"] == F16

    def test_the_models_own_names_stay(self) -> None:
        nodes = [
            node("MatMul", ["x", "w"], ["x_half"], name="b_to_half"),
            node("Softmax", ["x_half"], ["b"], name="x_to_half"),
            node("MatMul", ["b", "w"], ["b_half"], name="x_half_to_float"),
            node("Relu", ["b_half"], ["y"], name="y_to_float"),
        ]
        done, result = convert(proto(nodes, {"w": weight(8, 8)}))
        named = {item.name: item.op_type for item in result.graph.node}
        assert all(named[item.name] == item.op_type for item in nodes)
        assert done.reasons == {"x_to_half": "a sensitive operator"}
        assert sqnr_db(compute(proto(nodes, {"w": weight(8, 8)}), x=rows()), compute(result, x=rows())) > 50

    def test_an_operator_of_unknown_type_is_named(self) -> None:
        source = proto([node("Strange", ["x"], ["a"], name="odd", domain="some.where"),
                        node("Relu", ["a"], ["y"], name="r")], {})  # fmt: skip
        source.opset_import.append(helper.make_opsetid("some.where", 1))
        with pytest.raises(ModelError, match="'odd' \\(Strange\\)"):
            half.to_half(ir.from_proto(source))


def quantized(*, scale: float = 2.0**-5, opset: int = 20, softmax: bool = False) -> onnx.ModelProto:
    """Q/DQ at the input of a convolution with int8 weights; its pair is read by a Softmax too, if that is asked for."""
    random = np.random.default_rng(0)
    weights = {
        "s": np.asarray(scale, np.float32), "z": np.asarray(0, np.int8),
        "w": random.integers(-127, 127, (16, 3, 3, 3)).astype(np.int8),
        "ws": np.full(16, 2.0**-9, np.float32), "wz": np.zeros(16, np.int8),
        "b": random.normal(size=16).astype(np.float32),
    }  # fmt: skip
    nodes = [
        node("Relu", ["x"], ["r"], name="relu"),
        node("QuantizeLinear", ["r", "s", "z"], ["q"], name="quantize"),
        node("DequantizeLinear", ["q", "s", "z"], ["d"], name="dequantize"),
        node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], name="weights", axis=0),
        node("Conv", ["d", "wd", "b"], ["y"], name="conv", pads=[1, 1, 1, 1]),
        *([node("Softmax", ["d"], ["p"], name="softmax")] if softmax else []),
    ]
    outputs = [("y", F32, None), *([("p", F32, None)] if softmax else [])]
    return proto(nodes, weights, inputs=[("x", F32, ["n", 3, 8, 8])], outputs=outputs, opset=opset)


class TestPairs:
    def images(self) -> np.ndarray:
        return np.random.default_rng(3).normal(size=(2, 3, 8, 8)).astype(np.float32)

    def test_scales_and_bias_are_half(self) -> None:
        done, result = convert(quantized())
        assert kinds(result)["Cast"] == 2 and not done.kept
        assert done.converted == {"Relu": 1, "QuantizeLinear": 1, "DequantizeLinear": 2, "Conv": 1}
        assert {name: types(result)[name] for name in ("s", "ws", "b", "d", "wd")} == dict.fromkeys(
            ("s", "ws", "b", "d", "wd"), F16
        )
        x = self.images()
        assert sqnr_db(run(quantized(), x=x)[0], run(result, x=x)[0]) > 40.0

    @pytest.mark.parametrize("opset", [13, 17, 18])
    def test_older_operator_sets_are_converted(self, opset: int) -> None:
        source = quantized(opset=opset)
        _, result = convert(source)
        assert result.opset_import[0].version == 19 and types(result)["wd"] == F16
        assert sqnr_db(run(source, x=self.images())[0], run(result, x=self.images())[0]) > 40.0

    def test_an_operator_set_that_cannot_be_converted_is_refused(self) -> None:
        source = quantized(opset=17)
        source.graph.node.append(node("NoSuchOperator", ["y"], ["u"], name="odd"))
        source.graph.output[0].name = "u"
        with pytest.raises(ModelError, match="operator set 19, and this model of 17 cannot be converted"):
            half.to_half(ir.from_proto(source))

    def test_a_kept_consumer_has_a_pair_of_its_own_instead_of_a_cast(self) -> None:
        source = quantized(softmax=True)
        done, result = convert(source)
        assert kinds(result)["DequantizeLinear"] == 3 and kinds(result)["Cast"] == 2
        assert done.reasons["dequantize_in_float"] == "some of its consumers are in float32"
        for expected, got in zip(run(source, x=self.images()), run(result, x=self.images()), strict=True):
            assert sqnr_db(expected, got) > 37.0  # 38.0 with ONNX Runtime 1.23

    def test_a_kept_convolution_keeps_its_pairs(self) -> None:
        done, result = convert(quantized(), keep=("conv",))
        assert done.converted == {"Relu": 1, "QuantizeLinear": 1} and types(result)["wd"] == F32
        assert done.reasons["weights"] == "its consumers are in float32"
        assert kinds(result)["Cast"] == 1

    def test_an_input_is_quantized_as_it_comes(self) -> None:
        source = quantized()
        source.graph.node[1].input[0] = "x"
        del source.graph.node[0]
        done, result = convert(source)
        assert done.reasons == {"quantize": "what it quantizes is in float32"} and kinds(result)["Cast"] == 1

    @pytest.mark.parametrize("scale", [1e-9, 3.07e-6, 1e6])
    def test_scales_that_half_cannot_hold_are_refused(self, scale: float) -> None:
        with pytest.raises(ModelError, match=r"the scale 's' of the node '(de)?quantize'.*float16"):
            half.to_half(graph.prepare(ir.from_proto(quantized(scale=scale))))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convolutions", "attention", "pairs", "kept pairs"])
def test_tensorrt_builds_an_engine(name: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="pip install 'edgetl[tensorrt-rtx]'")
    from edgetl.backends.tensorrt_rtx import accepts

    if name == "convolutions":
        source = onnx.load(str(graphs.residual(tmp_path / "m.onnx")))
    else:
        source = attention() if name == "attention" else quantized(softmax=name == "kept pairs")
    path = tmp_path / "half.onnx"
    onnx.save(convert(source)[1], str(path))
    assert accepts(path) == []
    target = catalog.target("rtx-pc")
    target = replace(target, hardware=replace(target.hardware, compute_capability=("8.9",)))
    batch = BatchRange(min=4, max=4) if name == "attention" else BatchRange(min=1, max=8)
    request = CompileRequest(model=path, folder=tmp_path, target=target, precision="fp16", batch=batch)
    record = backend("tensorrt_rtx").compile(request)
    assert record.status in ("built", "ready")
