from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import helper

from edgetl.errors import ModelError
from edgetl.parity.numeric import sqnr_db
from edgetl.quantize import calibrate, graph, insertion, placement
from edgetl.quantize.schemes import SCHEMES
from edgetl.quantize.statistics import Statistics
from edgetl.runtime.onnxruntime import OnnxRuntimeRunner
from edgetl.runtime.openvino import OpenVinoRunner
from edgetl.specs import Estimator, Recipe

sys.path.insert(0, str(Path(__file__).parent))
import graphs

CORRECTED = Recipe(
    name="t", description="", activations=Estimator(method="mse"), weights=Estimator(method="mse"),
    bias_correction="input-mean",
)  # fmt: skip
PLAIN = Recipe(name="t", description="", activations=Estimator(method="minmax"), weights=Estimator(method="minmax"))


def samples(count: int, seed: int = 0) -> np.ndarray:
    # One sign, as real images after normalisation of a dark background: rounding errors of weights then add up.
    return np.random.default_rng(seed).uniform(0, 2, size=(count, 3, 16, 16)).astype(np.float32)


def statistics(model: ir.Model) -> Statistics:
    names = placement.points(model, list(SCHEMES.values()))
    return calibrate.calibrate(model, names, [{"input": samples(24)}], open_runner=OnnxRuntimeRunner)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return graphs.residual(tmp_path_factory.mktemp("graph") / "residual.onnx")


@pytest.fixture(scope="module")
def found(source: Path) -> Statistics:
    return statistics(graph.prepare(graph.load(source)))


def quantized(source: Path, found: Statistics, scheme: str, recipe: Recipe, path: Path) -> insertion.Quantized:
    done = insertion.quantize(graph.prepare(graph.load(source)), found.sketches, SCHEMES[scheme], recipe)
    ir.save(done.model, path)
    onnx.checker.check_model(str(path), full_check=True)
    return done


def logits(path: Path, images: np.ndarray) -> np.ndarray:
    with OnnxRuntimeRunner(path) as runner:
        return np.asarray(runner.run({"input": images})["logits"])


def producers(path: Path) -> dict[str, onnx.NodeProto]:
    return {output: node for node in onnx.load(str(path)).graph.node for output in node.output}


class TestPrepare:
    def test_it_folds_batchnorm_and_pools_and_changes_no_output(self, source: Path, tmp_path: Path) -> None:
        model = graph.prepare(graph.load(source))
        ir.save(model, tmp_path / "prepared.onnx")
        kinds = Counter(node.op_type for node in model.graph)
        assert "BatchNormalization" not in kinds and "ReduceMean" not in kinds and kinds["GlobalAveragePool"] == 1
        images = samples(4, seed=1)
        np.testing.assert_allclose(logits(tmp_path / "prepared.onnx", images), logits(source, images), atol=1e-4)

    def test_what_a_norm_is_folded_into_keeps_its_name(self, tmp_path: Path) -> None:
        net = graphs.Net()

        def normalised(source: str, output: str, channels: int) -> str:
            names = [net.constant(f"{output}_{part}", net.random.uniform(0.5, 2, channels)) for part in "gbmv"]
            return net.add("BatchNormalization", [source, *names], output)

        net.weight("transposed_w", 16, 16, 1, 1)
        net.weight("dense_w", 16, 5, reduced=16)
        net.conv("input", "a", 16, 3, 3, name="stem", bias="none")
        normalised(normalised("a", "b", 16), "c", 16)  # two in a row
        net.add("ConvTranspose", ["c", "transposed_w"], "d", name="up")
        net.add("Relu", [normalised("d", "e", 16)], "f", name="relu")
        net.add("Add", ["f", normalised("f", "g", 16)], "h", name="sum")  # this one stays: no product before it
        net.add("GlobalAveragePool", ["h"], "pooled", name="pool")
        net.add("Flatten", ["pooled"], "flat", name="flatten")
        net.add("Gemm", ["flat", "dense_w"], "i", name="head")
        normalised("i", "logits", 5)
        model = graph.prepare(graph.load(net.save(tmp_path / "m.onnx")))
        assert [(node.op_type, node.name) for node in model.graph] == [
            ("Conv", "stem"), ("ConvTranspose", "up"), ("Relu", "relu"), ("BatchNormalization", "g_node"),
            ("Add", "sum"), ("GlobalAveragePool", "pool"), ("Reshape", "flatten"), ("Gemm", "head"),
        ]  # fmt: skip

    def test_every_activation_has_a_shape_and_a_name(self, source: Path) -> None:
        model = graph.prepare(graph.load(source))
        for node in model.graph:
            assert node.name and all(output.name and output.shape is not None for output in node.outputs)


class TestSchemes:
    @pytest.mark.parametrize("scheme", sorted(SCHEMES))
    def test_the_quantized_graph_computes_nearly_the_same(
        self, scheme: str, source: Path, found: Statistics, tmp_path: Path
    ) -> None:
        quantized(source, found, scheme, CORRECTED, tmp_path / "q.onnx")
        images = samples(32, seed=1)
        assert sqnr_db(logits(source, images), logits(tmp_path / "q.onnx", images)) > 20.0

    @pytest.mark.parametrize("scheme", ["onnxruntime-x86-vnni", "onnxruntime-x86"])
    def test_onnxruntime_fuses_every_pair(self, scheme: str, source: Path, found: Statistics, tmp_path: Path) -> None:
        quantized(source, found, scheme, CORRECTED, tmp_path / "q.onnx")
        with OnnxRuntimeRunner(tmp_path / "q.onnx") as runner:
            kinds = runner.placement().kinds
        assert kinds["QLinearConv"] == 4 and kinds["QGemm"] == 1 and kinds["QLinearAdd"] == 1
        assert kinds["QLinearGlobalAveragePool"] == 1 and kinds.get("QuantizeLinear", 0) == 1
        assert not {"Conv", "Gemm", "Add", "Clip", "Relu", "DequantizeLinear"} & set(kinds)

    def test_onnxruntime_on_arm64_fuses_every_pair(self, source: Path, found: Statistics, tmp_path: Path) -> None:
        """Its optimizer, as far as x86 shows it: what is fused depends on types, and on whether signed bytes are
        welcome, which ONNX Runtime says of ARM64 and which can be said here."""
        quantized(source, found, "onnxruntime-arm64", CORRECTED, tmp_path / "q.onnx")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # of a graph that is optimised for this machine
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        options.add_session_config_entry("session.qdqisint8allowed", "1")
        session = onnxruntime.InferenceSession(str(tmp_path / "q.onnx"), options, providers=["CPUExecutionProvider"])
        kinds = Counter(node.op_type for node in onnx.load(str(tmp_path / "optimised.onnx")).graph.node)
        assert kinds["QLinearConv"] == 4 and kinds["QGemm"] == 1 and kinds["QLinearAdd"] == 1
        assert kinds["QLinearGlobalAveragePool"] == 1 and kinds["QuantizeLinear"] == 1
        assert not {"Conv", "Gemm", "Add", "Clip", "Relu", "DequantizeLinear"} & set(kinds)
        images = samples(16, seed=1)
        assert sqnr_db(logits(source, images), np.asarray(session.run(None, {"input": images})[0])) > 20.0

    def test_openvino_runs_the_convolutions_in_eight_bits(
        self, source: Path, found: Statistics, tmp_path: Path
    ) -> None:
        quantized(source, found, "openvino", CORRECTED, tmp_path / "q.onnx")
        with OpenVinoRunner(tmp_path / "q.onnx") as runner:
            kinds = runner.placement().kinds
        convolutions = {kind: count for kind, count in kinds.items() if kind.startswith("Convolution")}
        assert sum(convolutions.values()) == 4
        assert all(kind.endswith((":u8", ":i8")) for kind in convolutions)

    def test_tensorrt_has_float_biases_zero_points_of_zero_and_bare_fused_branches(
        self, source: Path, found: Statistics, tmp_path: Path
    ) -> None:
        done = quantized(source, found, "tensorrt", CORRECTED, tmp_path / "q.onnx")
        assert all(chosen.zero_point == 0 for chosen in done.params.values())
        made = producers(tmp_path / "q.onnx")
        for node in made.values():
            if node.op_type == "Conv":
                assert node.input[2] not in made, "the bias is a float initializer"
            if node.op_type == "Add":
                kinds = sorted(made[name].op_type for name in node.input)
                assert kinds == ["Conv", "DequantizeLinear"]
        # The stem has three input channels, the classifier five outputs: fewer than sixteen stay in float.
        assert made["logits"].input[0] in made and made["logits"].op_type == "Gemm"
        assert done.left_in_float["Gemm"] == 1 and done.left_in_float["Conv"] == 1

    def test_int32_biases_belong_to_onnxruntime(self, source: Path, found: Statistics, tmp_path: Path) -> None:
        quantized(source, found, "onnxruntime-x86", CORRECTED, tmp_path / "q.onnx")
        model = onnx.load(str(tmp_path / "q.onnx"))
        kinds = {item.name: item.data_type for item in model.graph.initializer}
        made = producers(tmp_path / "q.onnx")
        biases = [made[node.input[2]] for node in made.values() if node.op_type in ("Conv", "Gemm")]
        assert len(biases) == 5
        assert all(kinds[node.input[0]] == onnx.TensorProto.INT32 for node in biases)


class TestBiasCorrection:
    def test_it_takes_the_shift_of_the_mean_out(self, source: Path, found: Statistics, tmp_path: Path) -> None:
        images = samples(64, seed=2)
        expected = logits(source, images)
        shifts = {}
        for name, recipe in (("plain", PLAIN), ("corrected", CORRECTED)):
            quantized(source, found, "onnxruntime-x86-vnni", recipe, tmp_path / f"{name}.onnx")
            shifts[name] = np.abs((logits(tmp_path / f"{name}.onnx", images) - expected).mean(axis=0)).mean()
        assert shifts["corrected"] < shifts["plain"]

    @pytest.mark.parametrize("bias", ["none", "zeros"])
    def test_a_convolution_without_a_bias_gets_one(self, bias: str, tmp_path: Path) -> None:
        random = np.random.default_rng(3)
        weights = {
            "w": random.uniform(0.001, 0.4, size=(16, 3, 3, 3)).astype(np.float32),
            "head": random.normal(size=(5, 16)).astype(np.float32),
        }
        inputs = ["input", "w"]
        if bias == "zeros":
            weights["zeros"] = np.zeros(16, np.float32)
            inputs.append("zeros")
        nodes = [
            helper.make_node("Conv", inputs, ["a"], name="conv"),
            helper.make_node("GlobalAveragePool", ["a"], ["b"], name="pool"),
            helper.make_node("Flatten", ["b"], ["c"], name="flat"),
            helper.make_node("Gemm", ["c", "head"], ["logits"], name="head_gemm", transB=1),
        ]
        source = graphs.save(nodes, weights, tmp_path / "m.onnx")
        found = statistics(graph.prepare(graph.load(source)))
        quantized(source, found, "tensorrt-dla", CORRECTED, tmp_path / "q.onnx")
        quantized(source, found, "openvino", CORRECTED, tmp_path / "q.onnx")
        node = next(node for node in onnx.load(str(tmp_path / "q.onnx")).graph.node if node.op_type == "Conv")
        arrays = {
            item.name: onnx.numpy_helper.to_array(item)
            for item in onnx.load(str(tmp_path / "q.onnx")).graph.initializer
        }
        assert np.abs(arrays[node.input[2]]).max() > 0.0


class TestKnownScales:
    @pytest.mark.parametrize("scheme", ["onnxruntime-x86", "tensorrt"])
    def test_a_search_works_out_the_scales_of_weights_once(
        self, scheme: str, source: Path, found: Statistics, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def again(known: insertion.KnownScales | None) -> bytes:
            model = graph.prepare(graph.load(source))
            done = insertion.quantize(model, found.sketches, SCHEMES[scheme], CORRECTED, known)
            return bytes(ir.to_proto(done.model).SerializeToString())

        known: insertion.KnownScales = {}
        fresh, first = again(None), again(known)
        for name in ("weight_scales", "scales_without_saturation"):
            monkeypatch.delattr(insertion, name)
        assert fresh == first == again(known)


class TestGraphs:
    def test_shared_weights_are_quantized_for_each_user(self, tmp_path: Path) -> None:
        random = np.random.default_rng(0)
        weights = {
            "w": random.normal(size=(3, 3, 1, 1)).astype(np.float32),
            "b": random.normal(size=3).astype(np.float32),
            "head": random.normal(size=(5, 3)).astype(np.float32),
        }
        nodes = [
            helper.make_node("Conv", ["input", "w", "b"], ["a"], name="one"),
            helper.make_node("Relu", ["a"], ["a2"], name="relu"),
            helper.make_node("Conv", ["a2", "w", "b"], ["c"], name="two"),
            helper.make_node("GlobalAveragePool", ["c"], ["d"], name="pool"),
            helper.make_node("Flatten", ["d"], ["e"], name="flat"),
            helper.make_node("Gemm", ["e", "head"], ["logits"], name="gemm", transB=1),
        ]
        source = graphs.save(nodes, weights, tmp_path / "m.onnx")
        done = quantized(
            source,
            statistics(graph.prepare(graph.load(source))),
            "onnxruntime-x86-vnni",
            CORRECTED,
            tmp_path / "q.onnx",
        )
        assert done.quantized["Conv"] == 2
        images = samples(16, seed=1)
        assert sqnr_db(logits(source, images), logits(tmp_path / "q.onnx", images)) > 25.0

    def test_names_that_the_model_has_already_are_not_taken(self, tmp_path: Path) -> None:
        random = np.random.default_rng(0)
        weights = {
            "w": random.normal(size=(16, 3, 1, 1)).astype(np.float32),
            "a_scale": random.uniform(2, 3, size=(1, 16, 1, 1)).astype(np.float32),  # as our scale of "a" would be
            "w_quantized": random.normal(size=(5, 16)).astype(np.float32),
        }
        nodes = [
            helper.make_node("Conv", ["input", "w"], ["a"], name="conv"),
            helper.make_node("Mul", ["a", "a_scale"], ["a_quantized"], name="a_quantize"),
            helper.make_node("GlobalAveragePool", ["a_quantized"], ["b"], name="pool"),
            helper.make_node("Flatten", ["b"], ["c"], name="flat"),
            helper.make_node("Gemm", ["c", "w_quantized"], ["logits"], name="gemm", transB=1),
        ]
        source = graphs.save(nodes, weights, tmp_path / "m.onnx")
        found = statistics(graph.prepare(graph.load(source)))
        images = samples(16, seed=1)
        for scheme in SCHEMES:
            if scheme == "tensorrt":  # three channels and five classes are too few for it
                with pytest.raises(ModelError, match="and 16 channels or more"):
                    quantized(source, found, scheme, CORRECTED, tmp_path / "q.onnx")
                continue
            quantized(source, found, scheme, CORRECTED, tmp_path / "q.onnx")
            assert sqnr_db(logits(source, images), logits(tmp_path / "q.onnx", images)) > 20.0

    def test_a_downsample_branch_gets_the_pair_of_its_residual_add(self, tmp_path: Path) -> None:
        random = np.random.default_rng(0)
        weights = {
            "s": random.normal(size=(16, 3, 1, 1)).astype(np.float32),
            "w": random.normal(size=(16, 16, 1, 1)).astype(np.float32) / 4,
            "d": random.normal(size=(16, 16, 1, 1)).astype(np.float32) / 4,
            "head": random.normal(size=(5, 16)).astype(np.float32),
        }
        nodes = [
            helper.make_node("Conv", ["input", "s"], ["i"], name="stem"),
            helper.make_node("Conv", ["i", "w"], ["a"], name="main"),
            helper.make_node("Conv", ["i", "d"], ["b"], name="downsample"),
            helper.make_node("Add", ["a", "b"], ["c"], name="add"),
            helper.make_node("GlobalAveragePool", ["c"], ["p"], name="pool"),
            helper.make_node("Flatten", ["p"], ["f"], name="flat"),
            helper.make_node("Gemm", ["f", "head"], ["logits"], name="gemm", transB=1),
        ]
        source = graphs.save(nodes, weights, tmp_path / "m.onnx")
        found = statistics(graph.prepare(graph.load(source)))
        quantized(source, found, "tensorrt", CORRECTED, tmp_path / "q.onnx")
        made = producers(tmp_path / "q.onnx")
        (add,) = [node for node in made.values() if node.op_type == "Add"]
        assert sorted(made[name].op_type for name in add.input) == ["Conv", "DequantizeLinear"]

    def test_a_channel_of_zeros_keeps_its_bias(self, tmp_path: Path) -> None:
        random = np.random.default_rng(0)
        weights = {
            "w": random.normal(size=(16, 3, 1, 1)).astype(np.float32),
            "b": np.full(16, 0.003, np.float32),
            "head": np.eye(5, 16, dtype=np.float32),
        }
        weights["w"][0] = 0
        nodes = [
            helper.make_node("Conv", ["input", "w", "b"], ["a"], name="conv"),
            helper.make_node("GlobalAveragePool", ["a"], ["p"], name="pool"),
            helper.make_node("Flatten", ["p"], ["f"], name="flat"),
            helper.make_node("Gemm", ["f", "head"], ["logits"], name="gemm", transB=1),
        ]
        source = graphs.save(nodes, weights, tmp_path / "m.onnx")
        found = statistics(graph.prepare(graph.load(source)))
        quantized(source, found, "onnxruntime-x86", PLAIN, tmp_path / "q.onnx")
        proto = onnx.load(str(tmp_path / "q.onnx"))
        arrays = {item.name: onnx.numpy_helper.to_array(item) for item in proto.graph.initializer}
        made = producers(tmp_path / "q.onnx")
        conv = next(node for node in made.values() if node.op_type == "Conv")
        integers, scale = (arrays[name] for name in made[conv.input[2]].input[:2])
        assert (integers * scale)[0] == pytest.approx(0.003, rel=1e-3)

    def test_weights_that_are_also_a_factor_stay_weights(self, tmp_path: Path) -> None:
        random = np.random.default_rng(0)
        weights = {
            "w": random.normal(size=(1, 3, 1, 1)).astype(np.float32),
            "head": random.normal(size=(5, 1)).astype(np.float32),
        }
        nodes = [
            helper.make_node("GlobalAveragePool", ["input"], ["g"], name="first_pool"),
            helper.make_node("Mul", ["g", "w"], ["m"], name="factor"),
            helper.make_node("Conv", ["input", "w"], ["a"], name="conv"),
            helper.make_node("GlobalAveragePool", ["a"], ["p"], name="pool"),
            helper.make_node("ReduceSum", ["m"], ["r"], name="sum", keepdims=0),
            helper.make_node("Flatten", ["p"], ["f"], name="flat"),
            helper.make_node("Gemm", ["f", "head"], ["x"], name="gemm", transB=1),
            helper.make_node("Sub", ["x", "r"], ["logits"], name="sub"),
        ]
        source = graphs.save(nodes, weights, tmp_path / "m.onnx")
        model = graph.prepare(graph.load(source))
        done = insertion.quantize(model, statistics(model.clone()).sketches, SCHEMES["onnxruntime-x86-vnni"], PLAIN)
        ir.save(done.model, tmp_path / "q.onnx")
        made = producers(tmp_path / "q.onnx")
        conv = next(node for node in made.values() if node.op_type == "Conv")
        kinds = {item.name: item.data_type for item in onnx.load(str(tmp_path / "q.onnx")).graph.initializer}
        assert kinds[made[conv.input[1]].input[0]] == onnx.TensorProto.INT8

    def test_a_graph_without_weights_is_refused(self, tmp_path: Path) -> None:
        nodes = [
            helper.make_node("GlobalAveragePool", ["input"], ["a"], name="pool"),
            helper.make_node("Flatten", ["a"], ["logits"], name="flat"),
        ]
        path = graphs.save(nodes, {}, tmp_path / "m.onnx", channels=5)
        model = graph.prepare(graph.load(path))
        for scheme in ("onnxruntime-x86", "tensorrt"):
            with pytest.raises(ModelError, match=r"nothing in this graph can be quantized|no statistics"):
                insertion.quantize(model.clone(), {}, SCHEMES[scheme], PLAIN)

    def test_an_activation_without_statistics_is_named(self, source: Path) -> None:
        with pytest.raises(ModelError, match="has no statistics"):
            insertion.quantize(graph.prepare(graph.load(source)), {}, SCHEMES["onnxruntime-x86"], PLAIN)

    def test_bad_files_are_refused(self, tmp_path: Path, source: Path) -> None:
        garbage = tmp_path / "garbage.onnx"
        garbage.write_bytes(b"not a model")
        old = onnx.load(str(source))
        old.opset_import[0].version = 5
        onnx.save(old, str(tmp_path / "old.onnx"))
        for path, text in (
            (garbage, "not an ONNX model"),
            (tmp_path / "absent.onnx", "no model"),
            (tmp_path / "old.onnx", "operator set 5; scales per channel need 13"),
        ):
            with pytest.raises(ModelError, match=text):
                graph.load(path)

    def test_weights_outside_the_folder_are_refused(self, tmp_path: Path, source: Path) -> None:
        secret = tmp_path / "secret.bin"
        secret.write_bytes(np.zeros(16 * 3 * 9, np.float32).tobytes())
        model = onnx.load(str(source))
        tensor = next(item for item in model.graph.initializer if item.name == "stem")
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="../secret.bin")
        inner = tmp_path / "inner"
        inner.mkdir()
        (inner / "m.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(ModelError, match=r"outside|not an ONNX"):
            graph.load(inner / "m.onnx")

    @pytest.mark.parametrize("opset", graphs.OPSETS)
    def test_operator_sets(self, opset: int, tmp_path: Path) -> None:
        source = graphs.residual(tmp_path / "m.onnx", opset=opset)
        model = graph.prepare(graph.load(source))
        found = statistics(model)
        images = samples(8, seed=1)
        for scheme in ("onnxruntime-x86-vnni", "openvino", "tensorrt"):
            done = quantized(source, found, scheme, PLAIN, tmp_path / "q.onnx")
            assert done.quantized["Conv"] >= 3
            assert sqnr_db(logits(source, images), logits(tmp_path / "q.onnx", images)) > 20.0

    def test_unnamed_nodes(self, source: Path, found: Statistics, tmp_path: Path) -> None:
        proto = onnx.load(str(source))
        for node in proto.graph.node:
            node.ClearField("name")
        onnx.save(proto, str(tmp_path / "m.onnx"))
        done = quantized(tmp_path / "m.onnx", found, "onnxruntime-x86", CORRECTED, tmp_path / "q.onnx")
        named = quantized(source, found, "onnxruntime-x86", CORRECTED, tmp_path / "named.onnx")
        assert done.quantized == named.quantized and all(layer.node for layer in done.layers)
        assert len({layer.node for layer in done.layers}) == len(done.layers)
        images = samples(4, seed=1)
        np.testing.assert_array_equal(logits(tmp_path / "q.onnx", images), logits(tmp_path / "named.onnx", images))

    def test_weights_beside_the_model(self, source: Path, found: Statistics, tmp_path: Path) -> None:
        folder = tmp_path / "external"
        folder.mkdir()
        onnx.save(
            onnx.load(str(source)), str(folder / "m.onnx"), save_as_external_data=True, location="w.bin",
            size_threshold=0,
        )  # fmt: skip
        quantized(folder / "m.onnx", found, "openvino", PLAIN, tmp_path / "q.onnx")
        quantized(source, found, "openvino", PLAIN, tmp_path / "whole.onnx")
        images = samples(4, seed=1)
        np.testing.assert_array_equal(logits(tmp_path / "q.onnx", images), logits(tmp_path / "whole.onnx", images))
        (folder / "w.bin").write_bytes(b"short")
        with pytest.raises(ModelError, match="missing or too short"):
            graph.load(folder / "m.onnx")

    @pytest.mark.parametrize("scheme", ["onnxruntime-x86-vnni", "openvino", "tensorrt-dla"])
    def test_an_already_quantized_model_is_refused(
        self, scheme: str, source: Path, found: Statistics, tmp_path: Path
    ) -> None:
        quantized(source, found, scheme, PLAIN, tmp_path / "q.onnx")
        with pytest.raises(ModelError, match="quantized already"):
            again = graph.prepare(graph.load(tmp_path / "q.onnx"))
            insertion.quantize(again, statistics(again).sketches, SCHEMES[scheme], PLAIN)

    def test_the_float_graph_is_the_callers_to_keep(self, source: Path, found: Statistics) -> None:
        model = graph.prepare(graph.load(source))
        before = ir.to_proto(model).SerializeToString()
        insertion.quantize(model.clone(), found.sketches, SCHEMES["onnxruntime-x86"], CORRECTED)
        assert ir.to_proto(model).SerializeToString() == before
