from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edgetl.errors import ModelError
from edgetl.quantize import equalization, graph

sys.path.insert(0, str(Path(__file__).parent))
import graphs
from graphs import computed

CHANNELS = 16


def weight(random: np.random.Generator, *shape: int) -> np.ndarray:
    # Ranges of channels that differ a hundredfold: what equalisation is for.
    ranges = 10 ** random.uniform(-1, 1, size=shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    return (random.normal(size=shape) * ranges / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def chain(
    function: str, seed: int = 0, *, depthwise: bool = False, groups: int = 1, clip: tuple[float, float] = (0.0, 6.0)
) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    """Conv – function – Conv (– function – Conv with a depthwise one in the middle), then pooling."""
    random = np.random.default_rng(seed)
    weights = {
        "w1": weight(random, CHANNELS, 3, 3, 3),
        "b1": random.normal(size=CHANNELS).astype(np.float32),
        "low": np.asarray(clip[0], np.float32),
        "high": np.asarray(clip[1], np.float32),
        "w2": weight(random, 8, CHANNELS // groups, 1, 1),
        "b2": random.normal(size=8).astype(np.float32),
    }
    nodes = [helper.make_node("Conv", ["input", "w1", "b1"], ["x1"], name="first", pads=[1, 1, 1, 1])]

    def apply(name: str) -> str:
        if function == "none":
            return name
        inputs = [name, "low", "high"] if function == "Clip" else [name]
        nodes.append(helper.make_node(function, inputs, [f"{name}_f"], name=f"{name}_function"))
        return f"{name}_f"

    between = apply("x1")
    if depthwise:
        weights["wd"] = weight(random, CHANNELS, 1, 3, 3)
        nodes.append(helper.make_node("Conv", [between, "wd"], ["xd"], name="depthwise", group=CHANNELS))
        between = apply("xd")
    nodes.append(helper.make_node("Conv", [between, "w2", "b2"], ["x2"], name="second", group=groups))
    nodes.append(helper.make_node("GlobalAveragePool", ["x2"], ["output"], name="pool"))
    return nodes, weights


def saved(
    nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], folder: Path, outputs: tuple[str, ...] = ("output",)
) -> Path:
    return graphs.Net.of(nodes, weights).save(
        folder / "chain.onnx",
        inputs={"input": (TensorProto.FLOAT, ["n", 3, 8, 8])},
        outputs={name: ["n", None, None, None] for name in outputs},
    )


def prepared(path: Path) -> ir.Model:
    return graph.prepare(graph.load(path))


def images(seed: int = 1, count: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3, 8, 8)).astype(np.float32)


def reach(model: ir.Model, batch: np.ndarray) -> dict[str, np.ndarray]:
    names = tuple(pair.activation for pair in equalization.pairs(model))
    return {
        name: np.abs(values).max(axis=(0, 2, 3))
        for name, values in zip(names, computed(model, batch, names), strict=True)
    }


def close(left: list[np.ndarray], right: list[np.ndarray]) -> None:
    graphs.assert_close(left, right, 1e-4)


class TestPairs:
    @pytest.mark.parametrize("function", ["none", "Relu", "Clip"])
    def test_a_depthwise_chain_has_two(self, function: str, tmp_path: Path) -> None:
        found = equalization.pairs(prepared(saved(*chain(function, depthwise=True), tmp_path)))
        assert [(pair.first.name, pair.second.name) for pair in found] == [
            ("first", "depthwise"),
            ("depthwise", "second"),
        ]
        assert {pair.clip for pair in found} == {6.0 if function == "Clip" else None}

    def test_a_second_consumer_between_or_an_output_ends_it(self, tmp_path: Path) -> None:
        nodes, weights = chain("Relu")
        branch = helper.make_node("GlobalAveragePool", ["x1_f"], ["branch"], name="branch")
        assert not equalization.pairs(prepared(saved([*nodes, branch], weights, tmp_path, ("output", "branch"))))
        assert not equalization.pairs(prepared(saved(nodes, weights, tmp_path, ("output", "x1_f"))))
        assert not equalization.pairs(prepared(saved(nodes, weights, tmp_path, ("output", "x1"))))

    @pytest.mark.parametrize("function", ["Sigmoid", "HardSwish"])
    def test_other_functions_do_not_commute(self, function: str, tmp_path: Path) -> None:
        assert not equalization.pairs(prepared(saved(*chain(function), tmp_path)))

    def test_a_clip_bounded_below_elsewhere_does_not_commute(self, tmp_path: Path) -> None:
        assert not equalization.pairs(prepared(saved(*chain("Clip", clip=(-1.0, 1.0)), tmp_path)))

    def test_a_clip_without_upper_bound_is_a_relu(self, tmp_path: Path) -> None:
        (pair,) = equalization.pairs(prepared(saved(*chain("Clip", clip=(0.0, np.inf)), tmp_path)))
        assert pair.clip is None


class TestEqualize:
    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        seed=st.integers(0, 1000),
        function=st.sampled_from(["none", "Relu", "Clip"]),
        depthwise=st.booleans(),
        groups=st.sampled_from([1, 2, 4]),
        magnitudes=st.booleans(),
    )
    def test_the_function_stays(
        self, seed: int, function: str, depthwise: bool, groups: int, magnitudes: bool, tmp_path: Path
    ) -> None:
        model = prepared(saved(*chain(function, seed, depthwise=depthwise, groups=groups), tmp_path))
        batch = images(seed)
        before = computed(model, batch)
        equalization.equalize(model, reach(model, batch) if magnitudes else None)
        close(before, computed(model, batch))

    def test_from_weights_ranges_become_equal(self, tmp_path: Path) -> None:
        model = prepared(saved(*chain("Relu", depthwise=True), tmp_path))
        results = equalization.equalize(model, iterations=50)
        assert [result.method for result in results] == ["weights", "weights"]
        for pair in equalization.pairs(model):
            first, second = (graph.array_of(node.inputs[1]) for node in (pair.first, pair.second))
            assert first is not None and second is not None
            behind = np.abs(second).max(axis=(1, 2, 3) if second.shape[1] == 1 else (0, 2, 3))
            np.testing.assert_allclose(np.abs(first).max(axis=(1, 2, 3)), behind, rtol=0.02)

    def test_a_depthwise_second_gets_activations_of_one_range(self, tmp_path: Path) -> None:
        model = prepared(saved(*chain("Relu", depthwise=True), tmp_path))
        batch = images(count=32)
        before = reach(model, batch)["x1_f"]
        result = equalization.equalize(model, reach(model, batch))[0]
        after = reach(model, batch)["x1_f"]
        assert before.max() / before[before > 0].min() > 10
        assert after.max() / after[after > 0].min() < 2.1
        assert result.predicted < 0.8 and result.lowest < 0.2
        np.testing.assert_allclose(after.max(), before.max(), rtol=1e-5)  # the tensor's range is kept

    def test_channels_at_the_clip_keep_their_scale_and_others_stay_below_it(self, tmp_path: Path) -> None:
        nodes, weights = chain("Clip", depthwise=True)
        weights["b1"][:4] = 20.0
        model = prepared(saved(nodes, weights, tmp_path))
        batch = images(count=32)
        before = reach(model, batch)["x1_f"]
        results = equalization.equalize(model, reach(model, batch))
        after = reach(model, batch)["x1_f"]
        touching = before >= 6.0
        assert touching.any() and not touching.all() and results[0].method == "reach"
        np.testing.assert_array_equal(after[touching], before[touching])
        assert (after[~touching] < 6.0).all() and (after >= before * 0.9999).all()
        assert results[0].highest == 1.0

    def test_behind_a_clip_nothing_is_scaled_without_magnitudes(self, tmp_path: Path) -> None:
        model = prepared(saved(*chain("Clip"), tmp_path))
        before = graph.array_of(model.graph.initializers["w1"]).copy()
        (result,) = equalization.equalize(model)
        assert result.method is None and "magnitudes" in result.reason
        np.testing.assert_array_equal(graph.array_of(model.graph.initializers["w1"]), before)

    def test_an_activation_without_magnitudes_is_named(self, tmp_path: Path) -> None:
        (result,) = equalization.equalize(prepared(saved(*chain("Relu"), tmp_path)), {})
        assert result.method is None and "x1_f" in result.reason

    def test_shared_weights_are_copied(self, tmp_path: Path) -> None:
        random = np.random.default_rng(3)
        weights = {"w": weight(random, 3, 3, 1, 1)}
        # The pair's own two convolutions share one tensor, and another branch reads it, too.
        nodes = [
            helper.make_node("Conv", ["input", "w"], ["a"], name="first"),
            helper.make_node("Relu", ["a"], ["b"], name="relu"),
            helper.make_node("Conv", ["b", "w"], ["c"], name="second"),
            helper.make_node("Neg", ["input"], ["e"], name="negative"),
            helper.make_node("Conv", ["e", "w"], ["d"], name="other"),
            helper.make_node("Add", ["c", "d"], ["output"], name="add"),
        ]
        model = prepared(saved(nodes, weights, tmp_path))
        before = computed(model, images())
        (result,) = equalization.equalize(model)
        assert result.method == "weights"
        close(before, computed(model, images()))
        np.testing.assert_array_equal(graph.array_of(model.graph.initializers["w"]), weights["w"])

    def test_dead_and_empty_channels_keep_factor_one(self, tmp_path: Path) -> None:
        nodes, weights = chain("Relu")
        weights["w1"][0], weights["b1"][0] = 0.0, -1.0  # dead behind the ReLU
        weights["w2"][:, 1] = 0.0  # read by nobody
        for magnitudes in (True, False):
            model = prepared(saved(nodes, weights, tmp_path))
            before = computed(model, images())
            equalization.equalize(model, reach(model, images()) if magnitudes else None)
            after = graph.array_of(model.graph.initializers["w1"])
            assert after is not None and np.isfinite(after).all()
            np.testing.assert_array_equal(after[1], weights["w1"][1])
            assert graph.array_of(model.graph.initializers["b1"])[0] == -1.0
            close(before, computed(model, images()))

    def test_all_zero_weights(self, tmp_path: Path) -> None:
        nodes, weights = chain("Relu")
        weights["w2"][:] = 0.0
        for given_reach in (None, {"x1_f": np.zeros(CHANNELS)}, {"x1_f": np.ones(CHANNELS)}):
            (result,) = equalization.equalize(prepared(saved(nodes, weights, tmp_path)), given_reach)
            assert result.method is None and result.reason

    def test_nan_weights_are_named(self, tmp_path: Path) -> None:
        nodes, weights = chain("Relu")
        weights["w2"][0, 0] = np.nan
        with pytest.raises(ModelError, match="'w2' of second hold NaN"):
            equalization.equalize(prepared(saved(nodes, weights, tmp_path)))

    @pytest.mark.parametrize("headroom", [0.0, -1.0, 1.5, float("nan")])
    def test_headroom_outside_its_range(self, headroom: float, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="headroom"):
            equalization.equalize(prepared(saved(*chain("Relu"), tmp_path)), headroom=headroom)

    @pytest.mark.parametrize("bad", [np.ones(3), np.full(CHANNELS, np.nan), -np.ones(CHANNELS), np.ones((CHANNELS, 1))])
    def test_bad_magnitudes_are_named(self, bad: np.ndarray, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="x1_f"):
            equalization.equalize(prepared(saved(*chain("Relu"), tmp_path)), {"x1_f": bad})
