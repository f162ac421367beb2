from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edgetl import catalog
from edgetl.errors import ModelError
from edgetl.quantize import changes, graph, insertion, outlier_channels, recipes
from edgetl.quantize.decibels import decibel
from edgetl.quantize.outlier_channels import MOST, Separated
from edgetl.quantize.placement import plan_of
from edgetl.quantize.schemes import SCHEMES
from edgetl.quantize.tools import Tools
from edgetl.runtime.onnxruntime import OnnxRuntimeRunner
from edgetl.specs import Estimator

sys.path.insert(0, str(Path(__file__).parent))
import graphs
from graphs import computed

WIDTH, OUTPUTS, TOKENS = 24, 16, 5
X86 = SCHEMES["onnxruntime-x86-vnni"]
RECIPE = replace(catalog.recipe("int8-mse"), outlier_channels="search")


def feed_forward(
    folder: Path, *, far: tuple[int, ...] = (7,), gemm: bool = False, bias: bool = True, behind: bool = True
) -> ir.Model:
    """Gelu of "input", and a product of it; some channels have values and weights ten times the others' at a token."""
    random = np.random.default_rng(0)
    weight = random.normal(size=(WIDTH, OUTPUTS)).astype(np.float32)
    weight[list(far)] *= 10
    nodes = [helper.make_node("Gelu", ["input"], ["x"], name="gelu")]
    weights = {"weight": weight, "bias": random.normal(size=OUTPUTS).astype(np.float32)}
    last = "y"
    if gemm:
        weights["weight"] = np.ascontiguousarray(weight.T)
        weights["flat"] = np.asarray([-1, WIDTH], np.int64)
        nodes.append(helper.make_node("Reshape", ["x", "flat"], ["rows"], name="flatten"))
        nodes.append(helper.make_node("Gemm", ["rows", "weight"] + ["bias"] * bias, ["y"], name="product", transB=1))
    else:
        nodes.append(helper.make_node("MatMul", ["x", "weight"], ["y"], name="product"))
        if bias:
            nodes.append(helper.make_node("Add", ["y", "bias"], ["biased"], name="bias_add"))
            last = "biased"
    if behind:
        nodes.append(helper.make_node("Tanh", [last], ["z"], name="tanh"))
        last = "z"
    path = graphs.Net.of(nodes, weights).save(
        folder / "net.onnx",
        inputs={"input": (TensorProto.FLOAT, ["n", TOKENS, WIDTH])},
        outputs={last: [None] * (2 if gemm else 3)},
    )
    return graph.prepare(graph.load(path))


def tokens(count: int, far: tuple[int, ...] = (7,), seed: int = 1) -> np.ndarray:
    """With the far values at the first token of each sample."""
    values = np.random.default_rng(seed).normal(size=(count, TOKENS, WIDTH)).astype(np.float32)
    values[:, 0, list(far)] = 30.0
    return values


def rows(model: ir.Model, batch: np.ndarray) -> dict[str, np.ndarray]:
    names = [group.activation for group in outlier_channels.groups(model)]
    found = computed(model, batch, names)
    return {name: values.reshape(-1, values.shape[-1]) for name, values in zip(names, found, strict=True)}


def tools(far: tuple[int, ...] = (7,)) -> Tools:
    batch = tokens(32, far)
    return Tools(samples=lambda: ({"input": one[None]} for one in batch), open_runner=OnnxRuntimeRunner)


def sqnr_db(model: ir.Model, quantized: ir.Model, far: tuple[int, ...] = (7,)) -> float:
    unseen = tokens(64, far, seed=2)
    (wanted,), (found,) = computed(model, unseen), computed(quantized, unseen)
    return decibel(float(np.square(wanted).sum()), float(np.square(wanted - found).sum()))


def separate(
    model: ir.Model, sample: dict[str, np.ndarray], *, smooth: bool = False, keep: tuple[str, ...] = ()
) -> tuple[Separated, ...]:
    return outlier_channels.separate(model, sample, plan_of(model, X86, keep), smooth=smooth)


class TestSeparate:
    @pytest.mark.parametrize("behind", [True, False])
    @pytest.mark.parametrize(("gemm", "bias"), [(False, True), (False, False), (True, True), (True, False)])
    def test_the_function_and_the_names_of_outputs_stay(
        self, gemm: bool, bias: bool, behind: bool, tmp_path: Path
    ) -> None:
        model = feed_forward(tmp_path, gemm=gemm, bias=bias, behind=behind)
        batch = tokens(8)
        names = [value.name for value in model.graph.outputs]
        before, sample = computed(model, batch), rows(model, batch)
        (result,) = separate(model, sample, smooth=False)
        assert result.channels == (7,) and result.consumers == ("product",) and not result.reason
        assert result.error < 0.25 * result.error_off
        assert [value.name for value in model.graph.outputs] == names
        graphs.assert_close(before, computed(model, batch), 1e-5)

    def test_two_channels_and_two_readers(self, tmp_path: Path) -> None:
        model = feed_forward(tmp_path, far=(3, 20))
        random = np.random.default_rng(5)
        (product,) = (node for node in model.graph if node.name == "product")
        other = graph.add_initializer(model.graph, "other", random.normal(size=(WIDTH, 4)).astype(np.float32))
        second = ir.node("MatMul", [product.inputs[0], other], name="second")
        graph.name_output(second, "second_out", like=product.outputs[0], shape=ir.Shape([None, TOKENS, 4]))
        model.graph.append(second)
        model.graph.outputs.append(second.outputs[0])
        batch = tokens(8, (3, 20))
        before = computed(model, batch)
        (result,) = separate(model, rows(model, batch), smooth=True)
        assert set(result.channels) == {3, 20} and set(result.consumers) == {"product", "second"}
        assert [node.op_type for node in model.graph].count("Gather") == 2, "one column for both readers"
        graphs.assert_close(before, computed(model, batch), 1e-5)

    def test_weights_that_another_product_shares_are_not_touched(self, tmp_path: Path) -> None:
        model = feed_forward(tmp_path)
        (product,) = (node for node in model.graph if node.name == "product")
        other = ir.node("MatMul", [model.graph.inputs[0], product.inputs[1]], name="other")
        graph.name_output(other, "other_out", like=product.outputs[0])
        model.graph.append(other)
        model.graph.outputs.append(other.outputs[0])
        batch = tokens(8)
        before = computed(model, batch)
        sample = {"x": rows(model, batch)["x"]}
        separate(model, sample, smooth=False)
        graphs.assert_close(before, computed(model, batch), 1e-5)

    def test_nothing_is_changed_where_no_channel_stands_out(self, tmp_path: Path) -> None:
        model = feed_forward(tmp_path, far=())
        before = ir.to_proto(model).SerializeToString()
        (result,) = separate(model, rows(model, tokens(8, ())), smooth=False)
        assert result.channels == () and result.error == result.error_off
        assert result.reason == "no channel stands out so far that taking it out leaves a quarter of the noise"
        assert ir.to_proto(model).SerializeToString() == before

    def test_factors_that_a_normalisation_takes_are_left_to_smoothquant(self, tmp_path: Path) -> None:
        model = graph.prepare(graph.load(graphs.transformer(tmp_path / "transformer.onnx")))
        looked_at = {result.activation for result in separate(model, rows(model, _normal(model)), smooth=True)}
        assert looked_at == {"joined", "gelu", "mean"}

    def test_what_is_multiplied_in_float_anyway_is_left_alone(self, tmp_path: Path) -> None:
        model = feed_forward(tmp_path)
        before = ir.to_proto(model).SerializeToString()
        assert separate(model, rows(model, tokens(8)), keep=("product",)) == ()
        gemm = feed_forward(tmp_path, gemm=True)
        (product,) = (node for node in gemm.graph if node.name == "product")
        product.attributes["alpha"] = ir.AttrFloat32("alpha", 0.5)
        assert separate(gemm, rows(gemm, tokens(8))) == ()
        assert ir.to_proto(model).SerializeToString() == before

    def test_what_the_engine_makes_in_integers_is_left_alone(self, tmp_path: Path) -> None:
        random = np.random.default_rng(2)
        nodes = [
            helper.make_node("Gemm", ["input", "first"], ["hidden"], name="hidden"),
            helper.make_node("Relu", ["hidden"], ["relu"], name="relu"),
            helper.make_node("Gemm", ["relu", "second"], ["y"], name="product"),
        ]
        weights = {
            "first": random.normal(size=(WIDTH, WIDTH)).astype(np.float32),
            "second": random.normal(size=(WIDTH, OUTPUTS)).astype(np.float32),
        }
        inputs = {"input": (TensorProto.FLOAT, ["n", WIDTH])}
        path = graphs.Net.of(nodes, weights).save(tmp_path / "net.onnx", inputs=inputs, outputs={"y": [None] * 2})
        model = graph.prepare(graph.load(path))
        assert separate(model, {"relu": tokens(8).reshape(-1, WIDTH)}) == ()

    def test_a_name_that_is_taken_is_not_taken_twice(self, tmp_path: Path) -> None:
        model = feed_forward(tmp_path)
        sample = rows(model, tokens(8))
        (tanh,) = (node for node in model.graph if node.name == "tanh")
        tanh.outputs[0].name = "x_column_7"
        separate(model, sample)
        onnx.checker.check_model(ir.to_proto(model), full_check=True)

    @settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(far=st.sets(st.integers(0, WIDTH - 1), max_size=6), smooth=st.booleans())
    def test_at_most_four_and_the_function_stays(self, far: set[int], smooth: bool, tmp_path: Path) -> None:
        channels = tuple(far)
        model = feed_forward(tmp_path, far=channels)
        batch = tokens(4, channels)
        before = computed(model, batch)
        (result,) = separate(model, rows(model, batch), smooth=smooth)
        assert len(result.channels) <= MOST and set(result.channels) <= far
        graphs.assert_close(before, computed(model, batch), 1e-5)

    def test_bad_input(self, tmp_path: Path) -> None:
        model = feed_forward(tmp_path)
        assert separate(model, {}, smooth=False) == ()
        for bad in (np.ones((3, WIDTH + 1)), np.ones((0, WIDTH)), np.ones(WIDTH)):
            with pytest.raises(ModelError, match=f"has {WIDTH} channels"):
                separate(model, {"x": bad}, smooth=False)
        with pytest.raises(ModelError, match="hold NaN or Inf"):
            separate(model, {"x": np.full((2, WIDTH), np.nan)}, smooth=False)
        (result,) = separate(model, {"x": np.zeros((2, WIDTH))}, smooth=False)
        assert result.channels == () and result.error_off == 0.0


def _normal(model: ir.Model) -> np.ndarray:
    shape = [side if isinstance(side, int) else 4 for side in model.graph.inputs[0].shape or ()]
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


class TestQuantized:
    @pytest.mark.parametrize("name", ["onnxruntime-x86-vnni", "openvino", "tensorrt"])
    def test_the_range_is_that_of_the_other_channels_and_the_output_gains(self, name: str, tmp_path: Path) -> None:
        model, scheme = feed_forward(tmp_path, behind=False), SCHEMES[name]
        statistics = recipes.calibrate(model, tools(), [scheme])
        plain = recipes.make(model, statistics, scheme, replace(RECIPE, outlier_channels="none"), tools())
        changed = changes.change(model, statistics, RECIPE, tools())
        assert [each.channels for each in changed.separated] == [(7,)]
        done = recipes.make(changed.model, changed.statistics, scheme, RECIPE, tools())
        assert plain.params["x"][3] > 20 and done.params["x"][3] < 6
        assert sqnr_db(model, done.model) > sqnr_db(model, plain.model) + 10

    def test_a_channel_that_another_integer_product_reads_counts(self, tmp_path: Path) -> None:
        model = feed_forward(tmp_path)
        (product,) = (node for node in model.graph if node.name == "product")
        value = product.inputs[0]
        assert value is not None
        separate(model, {"x": rows(model, tokens(8))["x"]}, smooth=False)
        read = insertion._read_channels(value, plan_of(model, X86))
        assert read is not None and not read[7] and read.sum() == WIDTH - 1
        weight = graph.add_initializer(model.graph, "third", np.ones((WIDTH, 16), np.float32))
        third = ir.node("MatMul", [value, weight], name="third")
        graph.name_output(third, "third_out", like=product.outputs[0])
        model.graph.append(third)
        model.graph.outputs.append(third.outputs[0])
        read = insertion._read_channels(value, plan_of(model, X86))
        assert read is not None and read.all()

    def test_the_addition_stays_in_float_before_an_integer_product(self, tmp_path: Path) -> None:
        model = feed_forward(tmp_path)
        (tanh,) = (node for node in model.graph if node.name == "tanh")
        weight = np.random.default_rng(3).normal(size=(OUTPUTS, 16)).astype(np.float32)
        behind = graph.add_initializer(model.graph, "behind", weight)
        relu = ir.node("Relu", [tanh.inputs[0]], name="relu")
        graph.name_output(relu, "relu_out", like=tanh.outputs[0])
        last = ir.node("MatMul", [relu.outputs[0], behind], name="last")
        graph.name_output(last, "last_out", like=tanh.outputs[0])
        model.graph.extend([relu, last])
        model.graph.outputs.append(last.outputs[0])
        separate(model, {"x": rows(model, tokens(8))["x"]})
        plan = plan_of(model, X86)
        assert {node.name for node in plan.nodes.values()} == {"product", "last"}

    @pytest.mark.parametrize("outliers", ["keep", "drop"])
    def test_in_four_dimensions_channels_are_last_where_products_read_them(
        self, outliers: Literal["keep", "drop"], tmp_path: Path
    ) -> None:
        random = np.random.default_rng(0)
        weight = random.normal(size=(8, 16)).astype(np.float32)
        weight[7] = 0.0  # and the eighth row of the image is large, which is no channel
        nodes = [
            helper.make_node("Gelu", ["input"], ["x"], name="gelu"),
            helper.make_node("MatMul", ["x", "weight"], ["y"], name="product"),
        ]
        path = graphs.Net.of(nodes, {"weight": weight}).save(
            tmp_path / "net.onnx",
            inputs={"input": (TensorProto.FLOAT, ["n", 8, 6, 8])},
            outputs={"y": [None] * 4},
        )
        model = graph.prepare(graph.load(path))
        samples = [random.normal(size=(1, 8, 6, 8)).astype(np.float32) for _ in range(32)]
        for sample in samples:
            sample[:, 7] *= 10
            sample[..., 7] *= 100
        with_rows = Tools(samples=lambda: ({"input": each} for each in samples), open_runner=OnnxRuntimeRunner)
        statistics = recipes.calibrate(model, with_rows, [X86])
        estimator = Estimator(method="minmax", outliers=outliers)
        recipe = replace(RECIPE, activations=estimator, outlier_channels="none")
        done = recipes.make(model, statistics, X86, recipe, with_rows)
        exact = max(float(sample[..., :7].max()) for sample in samples)
        assert 0.4 * exact < done.params["x"][3] < 1.1 * exact

    def test_they_stay_where_they_serve_no_output(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        model = feed_forward(tmp_path)
        statistics = recipes.calibrate(model, tools())
        figures = iter([26.0, 25.5])
        monkeypatch.setattr(changes._Judge, "tried_db", lambda *_: next(figures))
        changed = changes.change(model, statistics, RECIPE, tools())
        assert ir.to_proto(changed.model).SerializeToString() == ir.to_proto(model).SerializeToString()
        (kept,) = changed.separated
        assert kept.channels == () and kept.error == kept.error_off
        assert kept.reason == "together they take the output's fidelity from 26.0 to 25.5 dB"

    def test_the_changed_graph_is_a_model_of_its_own(self, tmp_path: Path) -> None:
        changed = changes.change(
            feed_forward(tmp_path), recipes.calibrate(feed_forward(tmp_path), tools()), RECIPE, tools()
        )
        onnx.checker.check_model(ir.to_proto(changed.model), full_check=True)
