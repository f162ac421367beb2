"""Which nodes become integer ones and where pairs stand, node by node: the rules of docs/schemes.md."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgetl.errors import UnknownNameError
from edgetl.quantize import calibrate, graph, insertion, placement
from edgetl.quantize.insertion import Quantized
from edgetl.quantize.schemes import SCHEMES
from edgetl.runtime.onnxruntime import OnnxRuntimeRunner
from edgetl.specs import Estimator, Recipe

sys.path.insert(0, str(Path(__file__).parent))
import graphs

BOTH_SIDES = sorted(name for name, scheme in SCHEMES.items() if scheme.placement == "inputs-and-outputs")
INT32 = sorted(name for name, scheme in SCHEMES.items() if scheme.bias == "int32")
FLOAT_BIAS = sorted(set(SCHEMES) - set(INT32))


Attention = Literal["integers", "float"]


def recipe(*keep: str, attention: Attention = "integers") -> Recipe:
    return Recipe(
        name="t",
        description="",
        activations=Estimator(method="minmax"),
        weights=Estimator(method="minmax"),
        attention=attention,
        keep_float=keep,
    )


class Made:
    """A quantized graph, to be asked about its nodes."""

    def __init__(self, source: Path, scheme: str, path: Path, *keep: str, attention: Attention = "integers") -> None:
        model = graph.prepare(graph.load(source))
        shape = [1 if not isinstance(size, int) else size for size in model.graph.inputs[0].shape or []]
        data = np.random.default_rng(0).uniform(-1, 1, size=(6, *shape[1:])).astype(np.float32)
        names = placement.points(model, list(SCHEMES.values()))
        found = calibrate.calibrate(model, names, [{"input": data}], open_runner=OnnxRuntimeRunner)
        self.done: Quantized = insertion.quantize(
            model, found.sketches, SCHEMES[scheme], recipe(*keep, attention=attention)
        )
        ir.save(self.done.model, path)
        onnx.checker.check_model(str(path), full_check=True)
        self.proto = onnx.load(str(path))
        self.makers = {output: node for node in self.proto.graph.node for output in node.output}
        self.arrays = {item.name: onnx.numpy_helper.to_array(item) for item in self.proto.graph.initializer}

    def maker(self, value: str) -> str:
        """The operator behind a value; "constant" and "input" otherwise."""
        if value in self.makers:
            return str(self.makers[value].op_type)
        return "constant" if value in self.arrays else "input"

    def node(self, name: str) -> onnx.NodeProto:
        return next(node for node in self.proto.graph.node if node.name == name)

    def inputs(self, name: str) -> list[str]:
        return [self.maker(value) for value in self.node(name).input]

    def readers(self, name: str) -> set[str]:
        output = self.node(name).output[0]
        return {node.op_type for node in self.proto.graph.node if output in node.input}

    def scale(self, value: str) -> float:
        return float(self.arrays[self.makers[value].input[1]])


def post_norm(path: Path, width: int = 32) -> Path:
    """As in BERT: a product and a residual Add both read what a normalisation puts out."""
    net = graphs.Net(5)
    net.constant("gamma", net.random.uniform(0.5, 2, width))
    net.constant("beta", net.random.normal(size=width))
    net.constant("factors", net.random.uniform(0.5, 2, width))
    net.add("LayerNormalization", ["input", "gamma", "beta"], "norm")
    net.matmul("norm", "hidden", width, 4 * width)
    net.add("Gelu", ["hidden"], "gelu")
    net.add("Mul", ["gelu", "factors_wide"], "smoothed")
    net.constant("factors_wide", net.random.uniform(0.5, 2, 4 * width))
    net.matmul("smoothed", "shrunk", 4 * width, width)
    net.add("Add", ["norm", "shrunk"], "sum")
    return net.save(
        path,
        inputs={"input": (onnx.TensorProto.FLOAT, ["batch", 4, width])},
        outputs={"sum": [None] * 3, "norm": [None] * 3},
    )


class TestPostNorm:
    @pytest.mark.parametrize("scheme", sorted(set(SCHEMES) - {"tensorrt-dla"}))  # DLA: a scale on every tensor
    def test_a_residual_beside_a_product_reads_floats(self, scheme: str, tmp_path: Path) -> None:
        made = Made(post_norm(tmp_path / "m.onnx"), scheme, tmp_path / "q.onnx")
        (residual,) = (node for node in made.proto.graph.node if "sum" in node.output)
        assert "LayerNormalization" in [made.maker(value) for value in residual.input]
        assert [node.op_type for node in made.proto.graph.node].count("QuantizeLinear") == 2
        assert made.maker("norm") == "LayerNormalization", "an output that is computed as floats is put out as floats"

    @pytest.mark.parametrize("scheme", sorted(SCHEMES))
    def test_factors_are_multiplied_as_floats(self, scheme: str, tmp_path: Path) -> None:
        made = Made(post_norm(tmp_path / "m.onnx"), scheme, tmp_path / "q.onnx")
        assert "Mul" in made.done.left_in_float and "Mul" not in made.done.quantized


class TestResidual:
    @pytest.mark.parametrize("scheme", BOTH_SIDES)
    def test_pairs_stand_on_both_sides_of_every_integer_node(self, scheme: str, tmp_path: Path) -> None:
        made = Made(graphs.residual(tmp_path / "m.onnx"), scheme, tmp_path / "q.onnx")
        for name in ("expand_conv", "depthwise_conv", "project_conv", "residual_add"):
            assert made.inputs(name)[:2] == ["DequantizeLinear"] * 2
        for name in ("project_conv", "residual_add", "mean_pool"):
            assert made.readers(name) == {"QuantizeLinear"}
        for name in ("expand_conv", "depthwise_conv"):  # the quantizer stands behind the function
            (function,) = made.readers(name)
            assert function in ("Relu", "Clip")
        assert made.done.quantized["Conv"] == 4 and made.done.quantized["Add"] == 1

    def test_tensorrt_quantizes_the_skip_branch_alone(self, tmp_path: Path) -> None:
        made = Made(graphs.residual(tmp_path / "m.onnx"), "tensorrt", tmp_path / "q.onnx")
        assert made.inputs("residual_add") == ["DequantizeLinear", "Conv"]
        assert made.inputs("project_conv")[0] == "DequantizeLinear"
        assert made.readers("project_conv") == {"Add"}
        (stem,) = (node for node in made.proto.graph.node if node.input[0] == "input")
        assert stem.op_type == "Conv" and made.maker(stem.input[1]) == "constant", "three input channels are too few"
        assert made.inputs("classifier")[1] == "constant", "five classes are too few"

    @pytest.mark.parametrize("scheme", sorted(SCHEMES))
    def test_types_zero_points_and_biases(self, scheme: str, tmp_path: Path) -> None:
        made, wanted = Made(graphs.residual(tmp_path / "m.onnx"), scheme, tmp_path / "q.onnx"), SCHEMES[scheme]
        for node in made.proto.graph.node:
            if node.op_type == "QuantizeLinear":
                zero_point = made.arrays[node.input[2]]
                types = [type_ for type_ in (wanted.activations, wanted.activations.signed) if type_ is not None]
                (type_,) = (type_ for type_ in types if zero_point.dtype == np.dtype(type_.name))
                assert not type_.symmetric or zero_point == 0
            if node.op_type == "Conv" and made.maker(node.input[1]) == "DequantizeLinear":
                dequantize = made.makers[node.input[1]]
                integers, scales, zeros = (made.arrays[name] for name in dequantize.input)
                assert integers.dtype == np.int8 and integers.min() >= -127 and not zeros.any()
                assert scales.shape == (integers.shape[0],)
                if len(node.input) > 2 and scheme in FLOAT_BIAS:
                    assert made.arrays[node.input[2]].dtype == np.float32
                elif len(node.input) > 2:
                    bias = made.makers[node.input[2]]
                    assert made.arrays[bias.input[0]].dtype == np.int32
                    np.testing.assert_allclose(
                        made.arrays[bias.input[1]], scales * np.float32(made.scale(node.input[0])), rtol=1e-6
                    )

    @pytest.mark.parametrize("scheme", BOTH_SIDES)
    def test_a_chain_of_what_only_moves_values(self, scheme: str, tmp_path: Path) -> None:
        net = graphs.Net()
        net.conv("input", "a", 16, 3)
        net.add("MaxPool", ["a"], "b", kernel_shape=[2, 2], strides=[2, 2])
        net.add("Transpose", ["b"], "c", perm=[0, 1, 3, 2])
        net.conv("c", "d", 16, 16)
        net.classify("d", 16)
        made = Made(net.save(tmp_path / "m.onnx"), scheme, tmp_path / "q.onnx")
        assert made.inputs("b_node") == made.inputs("d_node")[:1] == ["DequantizeLinear"]
        moves_integers = SCHEMES[scheme].pairs_behind_transparent
        assert moves_integers == (not scheme.startswith("openvino"))
        assert made.readers("b_node") == {"QuantizeLinear" if moves_integers else "Transpose"}
        assert made.done.params["a"] == made.done.params["c"] or not moves_integers


class TestSigned:
    """What a convolution of OpenVINO's reads goes without a zero point; the inputs of matrix products keep theirs."""

    def zero_points(self, made: Made, reader: str) -> list[np.ndarray]:
        quantizers = {node.output[0]: node for node in made.proto.graph.node if node.op_type == "QuantizeLinear"}
        reads = [made.makers[node.input[0]] for node in made.proto.graph.node if node.op_type == reader
                 if made.maker(node.input[0]) == "DequantizeLinear"]  # fmt: skip
        return [made.arrays[quantizers[node.input[0]].input[2]] for node in reads]

    def test_a_convolution(self, tmp_path: Path) -> None:
        made = Made(graphs.residual(tmp_path / "m.onnx"), "openvino-vnni", tmp_path / "q.onnx")
        found = self.zero_points(made, "Conv")
        assert found and all(point == 0 for point in found)
        assert np.dtype(np.int8) in {point.dtype for point in found}

    @pytest.mark.parametrize("scheme", ["openvino-vnni", "openvino", "onnxruntime-x86-vnni"])
    def test_a_matrix_product(self, scheme: str, tmp_path: Path) -> None:
        made = Made(graphs.transformer(tmp_path / "m.onnx"), scheme, tmp_path / "q.onnx", attention="float")
        found = self.zero_points(made, "MatMul")
        assert found and {point.dtype for point in found} == {np.dtype(np.uint8)} and any(point != 0 for point in found)

    def test_attention_has_signed_bytes_and_probabilities_unsigned_ones(self, tmp_path: Path) -> None:
        made = Made(graphs.transformer(tmp_path / "m.onnx", tokens=96), "openvino-vnni", tmp_path / "q.onnx")
        for name, kinds in (("scores", ["int8", "int8"]), ("context_heads", ["uint8", "int8"])):
            assert made.inputs(f"{name}_node") == ["DequantizeLinear"] * 2
            pairs = [made.makers[value] for value in made.node(f"{name}_node").input]
            points = [made.arrays[pair.input[2]] for pair in pairs]
            assert [point.dtype.name for point in points] == kinds and all(point == 0 for point in points)
        assert "MatMul" not in made.done.left_in_float

    @pytest.mark.parametrize(("function", "kinds"), [("Identity", ["int8", "int8"]), ("Relu", ["uint8", "int8"])])
    def test_the_second_factor_is_signed_and_moved_factors_have_one_pair(
        self, function: str, kinds: list[str], tmp_path: Path
    ) -> None:
        random = np.random.default_rng(0)
        node = onnx.helper.make_node
        nodes = [
            node("MatMul", ["input", "wq"], ["q0"], name="q_product"),
            node("MatMul", ["input", "wk"], ["k0"], name="k_product"),
            *([node("Relu", ["q0"], ["q"], name="q_relu"), node("Relu", ["k0"], ["k"], name="k_relu")]
              if function == "Relu" else []),
            node("Transpose", ["k" if function == "Relu" else "k0"], ["kt"], name="turn", perm=[0, 2, 1]),
            node("MatMul", ["q" if function == "Relu" else "q0", "kt"], ["scores"], name="scores_node"),
        ]  # fmt: skip
        weights = {name: random.normal(size=(16, 16)).astype(np.float32) for name in ("wq", "wk")}
        path = graphs.Net.of(nodes, weights).save(
            tmp_path / "m.onnx",
            inputs={"input": (onnx.TensorProto.FLOAT, ["n", 96, 16])},
            outputs={"scores": [None] * 3},
        )
        made = Made(path, "openvino-vnni", tmp_path / "q.onnx")
        pairs = [made.makers[value] for value in made.node("scores_node").input]
        points = [made.arrays[pair.input[2]] for pair in pairs]
        assert [point.dtype.name for point in points] == kinds and all(point == 0 for point in points)
        activations = [each for each in made.proto.graph.node if each.op_type == "QuantizeLinear"]
        assert len(activations) == 3, "the input and two factors"

    @pytest.mark.parametrize(("tokens", "integers"), [(95, False), (96, True), ("tokens", True)])
    def test_short_attention_is_faster_in_float(self, tokens: int | str, integers: bool, tmp_path: Path) -> None:
        node = onnx.helper.make_node
        nodes = [
            node("Transpose", ["input"], ["turned"], name="turn", perm=[0, 2, 1]),
            node("MatMul", ["input", "turned"], ["scores"], name="scores_node"),
            node("MatMul", ["input", "w"], ["q"], name="q_product"),
        ]
        weights = {"w": np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)}
        path = graphs.Net.of(nodes, weights).save(
            tmp_path / "m.onnx",
            inputs={"input": (onnx.TensorProto.FLOAT, ["n", tokens, 16])},
            outputs={"scores": [None] * 3, "q": [None] * 3},
        )
        plan = placement.plan_of(graph.prepare(graph.load(path)), SCHEMES["openvino-vnni"])
        assert [node.name for node in plan.products.values()] == (["scores_node"] if integers else [])

    @pytest.mark.parametrize("scheme", sorted(set(SCHEMES) - {"openvino-vnni"}))
    def test_elsewhere_attention_stays_in_float(self, scheme: str, tmp_path: Path) -> None:
        made = Made(graphs.transformer(tmp_path / "m.onnx"), scheme, tmp_path / "q.onnx")
        if scheme != "tensorrt-dla":  # which has pairs on all tensors
            assert all("DequantizeLinear" not in made.inputs(f"{name}_node") for name in ("scores", "context_heads"))
        assert made.done.left_in_float["MatMul"] == 2


class TestConcat:
    def joined(self, made: Made) -> list[str]:
        return list(made.node("joined_node").input)

    @pytest.mark.parametrize("scheme", ["tensorrt", "openvino", "openvino-vnni"])
    def test_one_scale_across_its_inputs(self, scheme: str, tmp_path: Path) -> None:
        made = Made(graphs.concatenated(tmp_path / "m.onnx"), scheme, tmp_path / "q.onnx")
        scales = {made.scale(made.node(name).input[0]) for name in ("last_node",)}
        for value in self.joined(made):
            if made.maker(value) == "DequantizeLinear":
                scales.add(made.scale(value))
        assert len(scales) == 1
        params = [made.done.params[name] for name in made.done.params if name in ("left_relu", "right", "joined")]
        assert len(set(params)) == 1

    def test_onnxruntime_has_pairs_of_their_own_on_all_sides(self, tmp_path: Path) -> None:
        made = Made(graphs.concatenated(tmp_path / "m.onnx"), "onnxruntime-x86", tmp_path / "q.onnx")
        assert made.inputs("joined_node") == ["DequantizeLinear"] * 3 and made.readers("joined_node") == {
            "QuantizeLinear"
        }
        assert len({made.scale(value) for value in self.joined(made)}) == 3

    @pytest.mark.parametrize("scheme", sorted(SCHEMES))
    def test_the_shared_range_holds_all_of_them(self, scheme: str, tmp_path: Path) -> None:
        made = Made(graphs.concatenated(tmp_path / "m.onnx"), scheme, tmp_path / "q.onnx")
        alone = Made(graphs.concatenated(tmp_path / "m.onnx"), "onnxruntime-arm64", tmp_path / "r.onnx")
        highest = max(alone.done.params[name].high for name in ("left_relu", "right", "stem_relu"))
        assert made.done.params["joined"].high >= 0.98 * highest


def test_squeeze_and_excitation(tmp_path: Path) -> None:
    source = graphs.squeezed(tmp_path / "m.onnx")
    for scheme in sorted(SCHEMES):
        made = Made(source, scheme, tmp_path / "q.onnx")
        folded = scheme.startswith("openvino")  # which computes them with the convolution before
        assert made.done.left_in_float.get("HardSwish", 0) == (0 if folded else 2), scheme
        assert made.done.left_in_float.get("HardSigmoid", 0) == (0 if folded else 1), scheme
        for name in ("expand_node", "depthwise_node", "reduce_node", "excite_node", "project_node"):
            assert made.inputs(name)[:2] == ["DequantizeLinear"] * 2, (scheme, name)
        # HardSwish is computed on floats, and its result is quantized once.
        assert made.readers("expand_swish_node") == {"QuantizeLinear"}
        if scheme in BOTH_SIDES:
            assert made.inputs("gated_node") == ["DequantizeLinear"] * 2
            assert made.readers("gated_node") == {"QuantizeLinear"}


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_a_transformer_has_integer_products_and_floats_between(scheme: str, tmp_path: Path) -> None:
    made = Made(graphs.transformer(tmp_path / "m.onnx"), scheme, tmp_path / "q.onnx")
    for name in ("query", "key", "value", "hidden", "shrunk", "projected"):
        assert made.inputs(f"{name}_product_node") == ["DequantizeLinear"] * 2, name
        if scheme != "tensorrt-dla":  # which has pairs on all tensors
            assert "DequantizeLinear" not in made.inputs(f"{name}_node"), f"the bias of {name} is added to floats"
    for name in ("ln_1_node", "ln_2_node", "weights_node", "gelu_node", "residual_1_node", "residual_2_node"):
        assert "DequantizeLinear" not in made.inputs(name), name
    for kind, count in {"Softmax": 1, "LayerNormalization": 2, "Gelu": 1, "Div": 1}.items():
        assert made.done.left_in_float[kind] == count and kind not in made.done.quantized
    # Queries, keys and values read the one pair behind the normalisation.
    assert len({made.node(f"{name}_product_node").input[0] for name in ("query", "key", "value")}) == 1


class TestKept:
    @pytest.mark.parametrize(
        ("keep", "left"),
        [
            (("Add",), {"Add": 1}),
            (("expand_conv",), {"Conv": 1}),
            (("*_conv",), {"Conv": 4}),
            (("?xpand_conv", "depthwise*"), {"Conv": 2}),
            (("Softmax",), {}),
        ],
    )
    def test_by_operator_name_and_pattern(self, keep: tuple[str, ...], left: dict[str, int], tmp_path: Path) -> None:
        made = Made(graphs.residual(tmp_path / "m.onnx"), "onnxruntime-x86-vnni", tmp_path / "q.onnx", *keep)
        assert {kind: made.done.left_in_float.get(kind, 0) for kind in left} == left
        if keep == ("expand_conv",):
            assert made.inputs("expand_conv")[1:] == ["constant", "constant"]

    def test_what_nothing_is_called_is_an_error_that_lists_the_nearest_names(self, tmp_path: Path) -> None:
        model = graph.prepare(graph.load(graphs.residual(tmp_path / "m.onnx")))
        placement.refuse_unknown(["Softmax", "Conv", "stem_conv", "*_conv", "cl?ssifier"], model.graph)
        for name, listed in {
            "expandconv": "near it: expand_conv",
            "stem_*_conv": "stem_conv",
            "Softmaks": "it has Add, Clip, Concat, Conv, Flatten and ",
            "norm": "",  # folded into stem_conv
        }.items():
            with pytest.raises(UnknownNameError, match="neither an ONNX operator nor a node") as caught:
                placement.refuse_unknown(["Conv", name], model.graph)
            assert f"'{name}'" in str(caught.value) and listed in str(caught.value)

    def test_the_bias_of_a_kept_product_is_no_integer_addition(self, tmp_path: Path) -> None:
        net = graphs.Net()
        net.conv("input", "a", 16, 3)
        net.add("GlobalAveragePool", ["a"], "pooled")
        net.add("Flatten", ["pooled"], "flat")
        net.matmul("flat", "hidden", 16, 32)
        net.add("Relu", ["hidden"], "relu")
        net.matmul("relu", "wide", 32, 16)
        net.matmul("wide", "logits", 16, 5)
        source = net.save(tmp_path / "m.onnx")
        for scheme in sorted(SCHEMES):
            made = Made(source, scheme, tmp_path / "q.onnx", "hidden_product_node")
            assert made.inputs("hidden_node") == ["MatMul", "constant"]

    @pytest.mark.parametrize("kept", ["main_node", "downsample_node"])
    def test_the_pair_of_a_residual_add_moves_to_the_kept_branch(self, kept: str, tmp_path: Path) -> None:
        net = graphs.Net()
        net.conv("input", "stem", 16, 3)
        net.conv("stem", "main", 16, 16)
        net.conv("stem", "downsample", 16, 16)
        net.add("Add", ["main", "downsample"], "sum")
        net.classify("sum", 16)
        source = net.save(tmp_path / "m.onnx")
        model = graph.prepare(graph.load(source))
        names = placement.points(model, [SCHEMES["tensorrt"]])
        data = np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype(np.float32)
        found = calibrate.calibrate(model, names, [{"input": data}], open_runner=OnnxRuntimeRunner)
        done = insertion.quantize(model, found.sketches, SCHEMES["tensorrt"], recipe(kept))
        assert kept.removesuffix("_node") in done.params

    def test_nothing_left_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(Exception, match="nothing in this graph can be quantized"):
            Made(graphs.residual(tmp_path / "m.onnx"), "onnxruntime-x86", tmp_path / "q.onnx", "Conv", "Gemm")


class TestMinimumChannels:
    """TensorRT: convolutions and matrix products with fewer than 16 channels, on either side, stay in float16."""

    @pytest.mark.parametrize(
        ("into", "out", "integers"), [(8, 32, 0), (32, 8, 0), (15, 16, 0), (16, 16, 1), (32, 48, 1)]
    )
    @pytest.mark.parametrize("kind", ["MatMul", "Gemm", "Conv"])
    def test_both_sides_count(self, kind: str, into: int, out: int, integers: int, tmp_path: Path) -> None:
        net = graphs.Net()
        shape: graphs.Shape = ["batch", into]
        if kind == "MatMul":
            net.matmul("input", "logits", into, out)
        elif kind == "Gemm":
            net.weight("w", out, into)
            net.add("Gemm", ["input", "w"], "logits", transB=1)
        else:
            shape = ["batch", into, 4, 4]
            net.conv("input", "conv", out, into)
            net.add("GlobalMaxPool", ["conv"], "logits")
        path = net.save(
            tmp_path / "m.onnx",
            inputs={"input": (onnx.TensorProto.FLOAT, shape)},
            outputs={"logits": ["batch", out, 1, 1] if kind == "Conv" else ["batch", out]},
        )
        model = graph.prepare(graph.load(path))
        assert len(placement.plan_of(model, SCHEMES["tensorrt"]).nodes) == integers
        for other in ("tensorrt-dla", "onnxruntime-x86", "openvino-vnni"):
            assert len(placement.plan_of(model, SCHEMES[other]).nodes) == 1

    def test_the_channels_of_all_groups_count(self, tmp_path: Path) -> None:
        net = graphs.Net()
        net.conv("input", "depthwise", 32, 32, 3, group=32)  # one channel each
        net.add("GlobalMaxPool", ["depthwise"], "logits")
        path = net.save(
            tmp_path / "m.onnx",
            inputs={"input": (onnx.TensorProto.FLOAT, ["batch", 32, 8, 8])},
            outputs={"logits": ["batch", 32, 1, 1]},
        )
        assert len(placement.plan_of(graph.prepare(graph.load(path)), SCHEMES["tensorrt"]).nodes) == 1


class TestPoints:
    def test_they_are_activations_and_are_not_repeated(self, tmp_path: Path) -> None:
        model = graph.prepare(graph.load(graphs.squeezed(tmp_path / "m.onnx")))
        names = placement.points(model, list(SCHEMES.values()))
        assert len(names) == len(set(names)) and not set(names) & set(model.graph.initializers)
        for scheme in SCHEMES.values():
            assert set(placement.points(model, [scheme])) <= set(names)

    def test_they_do_not_change_the_graph(self, tmp_path: Path) -> None:
        model = graph.prepare(graph.load(graphs.residual(tmp_path / "m.onnx")))
        before = ir.to_proto(model).SerializeToString()
        placement.points(model, list(SCHEMES.values()))
        assert ir.to_proto(model).SerializeToString() == before
