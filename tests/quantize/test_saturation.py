"""The emulation is what processors without VNNI compute: docs/saturation.md says how that was seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgetl.errors import UsageError
from edgetl.quantize.saturation import (
    Packing,
    can_saturate,
    emulate_pair_sums,
    exact_sums,
    pair_sum_bound,
    round_weights,
    scales_without_saturation,
)
from edgetl.quantize.schemes import INT8_NARROW, INT8_SYMMETRIC, IntegerType

packings = st.sampled_from(["any", "channels-last"])
types = st.sampled_from([INT8_NARROW, INT8_SYMMETRIC])
rows = hnp.arrays(np.int8, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9))
floats = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=4, min_side=1, max_side=5),
    elements=st.floats(-2, 2, width=32),
)


def start(weights: np.ndarray, share: float = 1.0) -> np.ndarray:
    """Min-max scales, or smaller ones, which clip."""
    reach = np.abs(weights).reshape(len(weights), -1).max(axis=1)
    return np.where(reach > 1e-20, share * reach / 127, 1.0).astype(np.float32)


def layouts(integers: np.ndarray) -> list[np.ndarray]:
    """What ONNX Runtime (flat) and OpenVINO (channels padded to four at each position) pack; shape (channels, K)."""
    last = np.moveaxis(integers, 1, -1)
    padded = np.pad(last, [(0, 0)] * (last.ndim - 1) + [(0, -last.shape[-1] % 4)])
    return [last.reshape(len(last), -1), padded.reshape(len(last), -1)]


def worst(row: np.ndarray, activation_max: int) -> np.ndarray:
    """The activations that drive positive, and those that drive negative weights furthest; shape (2, K)."""
    return np.stack([row > 0, row < 0]).astype(np.uint8) * np.uint8(activation_max)


class TestEmulation:
    def test_an_adversarial_pair_saturates(self) -> None:
        activations = np.full((1, 4), 255, np.uint8)
        integers = np.asarray([[127, 127, 127, 127], [127, -127, 64, 64], [-128, -128, 0, 0]], np.int8)
        assert exact_sums(activations, integers).tolist() == [[129540, 32640, -65280]]
        assert emulate_pair_sums(activations, integers).tolist() == [[65534, 32640, -32768]]

    def test_the_order_decides_who_meets(self) -> None:
        activations, integers = np.full((1, 3), 255, np.uint8), np.asarray([[127, 0, 127]], np.int8)
        assert emulate_pair_sums(activations, integers).item() == 64770
        assert emulate_pair_sums(activations, integers, np.asarray([0, 2, 1])).item() == 32767

    @given(rows, st.integers(0, 2**32 - 1))
    def test_without_large_weights_it_is_exact(self, integers: np.ndarray, seed: int) -> None:
        random = np.random.default_rng(seed)
        activations = random.integers(0, 256, (3, integers.shape[1]), np.uint8)
        halved = integers // np.int8(2)
        order = random.permutation(integers.shape[1])
        assert np.array_equal(emulate_pair_sums(activations, halved, order), exact_sums(activations, halved))

    def test_bad_input(self) -> None:
        good, weights = np.zeros((2, 4), np.uint8), np.zeros((3, 4), np.int8)
        for left, right in (
            (good.astype(np.int8), weights),
            (good, weights.astype(np.uint8)),
            (good, weights[:, :3]),
            (good[0], weights),
        ):
            with pytest.raises(UsageError):
                emulate_pair_sums(left, right)
            with pytest.raises(UsageError):
                exact_sums(left, right)
        for order in ([0, 1, 2], [0, 1, 2, 2], [1, 2, 3, 4]):
            with pytest.raises(UsageError, match="permutation"):
                emulate_pair_sums(good, weights, np.asarray(order))


class TestBound:
    @given(rows, st.integers(0, 255))
    def test_it_is_what_the_worst_pair_and_the_worst_activations_reach(self, integers: np.ndarray, top: int) -> None:
        padded = np.pad(integers, ((0, 0), (0, 1))).astype(int)
        expected = [
            max(
                top * max(max(row[i], 0) + max(row[j], 0), -min(row[i], 0) - min(row[j], 0))
                for i in range(len(row))
                for j in range(i)
            )
            for row in padded
        ]
        bound = pair_sum_bound(integers, 0, top)
        assert bound.dtype == np.int32 and bound.tolist() == expected
        assert (pair_sum_bound(integers, 0, top, "channels-last") <= bound).all()

    @given(hnp.arrays(np.int8, hnp.array_shapes(min_dims=2, max_dims=4, max_side=4)), st.integers(0, 255))
    def test_a_channel_can_saturate_if_and_only_if_an_emulation_does(self, integers: np.ndarray, top: int) -> None:
        says = can_saturate(integers, 0, top, "channels-last")
        for channel in range(len(integers)):
            differs = False
            for packed in layouts(integers[channel : channel + 1]):
                activations = worst(packed[0], top)
                differs |= bool((emulate_pair_sums(activations, packed) != exact_sums(activations, packed)).any())
            assert differs == says[channel]

    def test_sixteen_bits_hold_one_more_below_zero(self) -> None:
        integers = np.asarray([[-128, -128], [64, 64]], np.int8)
        assert pair_sum_bound(integers, 0, 128).tolist() == [32768, 16384]
        assert not can_saturate(integers, 0, 128).any()
        assert can_saturate(integers, 0, 129).tolist() == [True, False]

    def test_the_axis_of_a_matrix_product(self) -> None:
        integers = np.asarray([[127, 1], [127, -1], [0, 3]], np.int8)
        assert pair_sum_bound(integers, 1, 255).tolist() == [64770, 1020]
        assert pair_sum_bound(integers, -1, 255, "channels-last").tolist() == [64770, 765]

    def test_odd_channels_are_covered_in_both_layouts(self) -> None:
        integers = np.zeros((2, 3, 2), np.int8)
        integers[0, 2, 0] = integers[0, 0, 1] = 127  # they meet across two positions, in ONNX Runtime
        integers[1, 0, 1] = integers[1, 1, 1] = 127  # they meet where each position is padded, in OpenVINO
        assert can_saturate(integers, 0, 255, "channels-last").all()

    def test_one_weight_alone_or_none_never_saturates(self) -> None:
        assert not can_saturate(np.full((4, 1), -128, np.int8), 0, 255).any()
        assert pair_sum_bound(np.zeros((3, 0), np.int8), 0, 255).tolist() == [0, 0, 0]

    def test_bad_input(self) -> None:
        weights = np.zeros((2, 4), np.int8)
        for top in (-1, 256):
            with pytest.raises(UsageError, match="uint8"):
                pair_sum_bound(weights, 0, top)
            with pytest.raises(UsageError, match="uint8"):
                scales_without_saturation(weights.astype(np.float32), np.ones(2, np.float32), 0, top, INT8_NARROW)
        with pytest.raises(UsageError, match="int8"):
            can_saturate(weights.astype(np.int32), 0, 255)
        with pytest.raises(UsageError, match="axis"):
            pair_sum_bound(weights[0], 0, 255)


class TestScales:
    @given(floats, st.integers(0, 255), st.sampled_from([1.0, 0.3]), types, packings)
    def test_they_are_the_smallest_that_are_safe(
        self, weights: np.ndarray, top: int, share: float, type_: IntegerType, packing: Packing
    ) -> None:
        given_scales = start(weights, share)
        scales = scales_without_saturation(weights, given_scales, 0, top, type_, packing)
        assert scales.dtype == np.float32 and (scales >= given_scales).all()
        assert not can_saturate(round_weights(weights, scales, 0, type_), 0, top, packing).any()
        before = can_saturate(round_weights(weights, given_scales, 0, type_), 0, top, packing)
        assert np.array_equal(scales > given_scales, before)
        less = np.where(before, np.nextafter(scales, np.float32(0)), scales).astype(np.float32)
        assert np.array_equal(can_saturate(round_weights(weights, less, 0, type_), 0, top, packing), before)

    @given(floats, st.integers(1, 255), st.integers(0, 2**32 - 1))
    @settings(max_examples=50)
    def test_no_packing_saturates_afterwards(self, weights: np.ndarray, top: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        scales = scales_without_saturation(weights, start(weights), 0, top, INT8_SYMMETRIC)
        integers = round_weights(weights, scales, 0, INT8_SYMMETRIC).reshape(len(weights), -1)
        for row in integers:
            activations = np.concatenate([worst(row, top), random.integers(0, top + 1, (4, len(row)), np.uint8)])
            for _ in range(4):
                order = random.permutation(len(row))
                emulated = emulate_pair_sums(activations, row[None], order)
                assert np.array_equal(emulated, exact_sums(activations, row[None]))

    def test_real_looking_weights_saturate_before_and_not_afterwards(self) -> None:
        random = np.random.default_rng(0)
        weights = random.normal(size=(16, 24, 3, 3)).astype(np.float32)
        activations = random.choice(np.asarray([0, 255], np.uint8), (64, 24 * 9))
        for packing in ("any", "channels-last"):
            scales = scales_without_saturation(weights, start(weights), 0, 255, INT8_NARROW, packing)
            for chosen, safe in ((start(weights), False), (scales, True)):
                (packed, _) = layouts(round_weights(weights, chosen, 0, INT8_NARROW))
                adversarial = np.concatenate([activations, *(worst(row, 255) for row in packed)])
                same = np.array_equal(emulate_pair_sums(adversarial, packed), exact_sums(adversarial, packed))
                assert same is safe

    def test_a_known_packing_costs_less_than_any(self) -> None:
        weights = np.random.default_rng(1).normal(size=(32, 64, 3, 3)).astype(np.float32)
        least = scales_without_saturation(weights, start(weights), 0, 255, INT8_NARROW, "channels-last")
        assert (least <= scales_without_saturation(weights, start(weights), 0, 255, INT8_NARROW)).all()
        assert least.mean() < 0.8 * scales_without_saturation(weights, start(weights), 0, 255, INT8_NARROW).mean()

    def test_channels_that_cannot_saturate_keep_their_scale(self) -> None:
        weights = np.asarray([[1.0, -1.0, 0.005], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]], np.float32)
        scales = scales_without_saturation(weights, start(weights), 0, 255, INT8_NARROW)
        assert scales[0] == start(weights)[0] and scales[2] == 1.0
        assert round_weights(weights, scales, 0, INT8_NARROW)[1].tolist() == [64, 64, 0]

    def test_fewer_levels_of_activations_leave_more_of_weights(self) -> None:
        weights = np.ones((1, 2), np.float32)
        for top, expected in ((255, 64), (200, 81), (130, 126), (129, 127), (0, 127)):
            scales = scales_without_saturation(weights, start(weights), 0, top, INT8_NARROW)
            assert round_weights(weights, scales, 0, INT8_NARROW).tolist() == [[expected, expected]]

    def test_denormal_and_huge_weights(self) -> None:
        for size in (1e-38, 1e38):
            weights = np.full((1, 2), size, np.float32)
            scales = scales_without_saturation(
                weights, start(weights / np.float32(size)) * np.float32(size), 0, 255, INT8_NARROW
            )
            assert not can_saturate(round_weights(weights, scales, 0, INT8_NARROW), 0, 255).any()


class TestOnnxRuntime:
    """With guarded weights the engine is bit-exact, with VNNI and without: this machine's kernels, whichever."""

    def test_a_guarded_convolution_is_bit_exact(self, tmp_path: Path) -> None:
        onnx = pytest.importorskip("onnx")
        onnxruntime = pytest.importorskip("onnxruntime")
        helper = onnx.helper
        random = np.random.default_rng(2)
        weights = random.normal(size=(16, 5, 3, 3)).astype(np.float32)
        scales = scales_without_saturation(weights, start(weights), 0, 255, INT8_NARROW, "channels-last")
        integers = round_weights(weights, scales, 0, INT8_NARROW)
        images = random.choice(np.asarray([0, 255], np.uint8), (1, 5, 8, 8))
        constants = {
            "x_scale": np.float32(1),
            "x_zero": np.uint8(0),
            "w": integers,
            "w_scale": np.float32(1),
            "w_zero": np.int8(0),
            "y_scale": np.float32(512),
            "y_zero": np.uint8(128),
        }
        inputs = ["x", "x_scale", "x_zero", "w", "w_scale", "w_zero", "y_scale", "y_zero"]
        graph = helper.make_graph(
            [helper.make_node("QLinearConv", inputs, ["y"])],
            "graph",
            [helper.make_tensor_value_info("x", onnx.TensorProto.UINT8, list(images.shape))],
            [helper.make_tensor_value_info("y", onnx.TensorProto.UINT8, None)],
            [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        (result,) = session.run(None, {"x": images})
        windows = np.lib.stride_tricks.sliding_window_view(images[0], (3, 3), axis=(1, 2))
        columns = windows.transpose(1, 2, 3, 4, 0).reshape(36, -1)  # position first, channel last
        sums = exact_sums(columns, layouts(integers)[0])
        assert np.array_equal(emulate_pair_sums(columns, layouts(integers)[0]), sums)
        expected = np.clip(np.rint(sums / 512) + 128, 0, 255).astype(np.uint8).T.reshape(1, 16, 6, 6)
        assert np.array_equal(result, expected)
