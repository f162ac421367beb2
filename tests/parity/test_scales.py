"""Scales held against the data that they stand for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.parity.scales import Constant, Pair, constant_cause, gain_cause, pair_causes


def weights(seed: int = 0, shape: tuple[int, ...] = (8, 4, 3, 3)) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def quantized(values: np.ndarray, axis: int | None = 0) -> Constant:
    """In eight bits, with a scale per channel."""
    axes = tuple(place for place in range(values.ndim) if place != axis)
    scale = np.abs(values).max(axes, keepdims=True) / 127
    return Constant(what="the weights of 'stem'", values=np.round(values / scale) * scale, axis=axis)


@given(st.integers(0, 1000), st.sampled_from([(8, 4, 3, 3), (6, 1, 3, 3), (5, 32), (2, 40)]))
def test_eight_bits_are_no_cause(seed: int, shape: tuple[int, ...]) -> None:
    values = weights(seed, shape)
    assert constant_cause(quantized(values), values) is None
    assert constant_cause(quantized(values.T, 1) if values.ndim == 2 else quantized(values), values) is None


@given(st.floats(1.6, 50), st.booleans(), st.integers(0, 7))
def test_a_scale_of_another_size_is_found_in_all_channels_and_in_one(factor: float, larger: bool, place: int) -> None:
    factor = factor if larger else 1 / factor
    found = quantized(weights())
    whole = Constant(what=found.what, values=found.values * factor, axis=0)
    said = constant_cause(whole, weights())
    assert said is not None and said.startswith("the weights of 'stem' are ") and "in channel" not in said
    found.values[place] *= 1.9
    said = constant_cause(found, weights())
    assert said == f"the weights of 'stem' in channel {place} are 1.90 times those of the float graph: its scale is"
    assert constant_cause(found, weights(), by_channel=False) is None


def test_how_it_is_said() -> None:
    for factor, word in ((2.0, "twice"), (0.5, "half"), (3.0, "3.00 times"), (2.01, "twice")):
        whole = Constant(what="the weights of 'stem'", values=weights() * factor, axis=None)
        assert (
            constant_cause(whole, weights())
            == f"the weights of 'stem' are {word} those of the float graph: their scale is"
        )


def test_several_channels_are_counted() -> None:
    found = quantized(weights())
    found.values[[1, 2, 5]] *= 2
    said = constant_cause(found, weights())
    assert said is not None and "in channel 1 are twice" in said and "those of 2 more channels" in said


def test_other_values_are_not_the_same_in_another_size() -> None:
    assert constant_cause(quantized(weights(1)), weights(2)) is None
    assert constant_cause(Constant(what="w", values=np.zeros((8, 4, 3, 3)), axis=0), weights()) is None


def test_groups_and_transposed_weights_are_told_apart_by_their_shape() -> None:
    flat = weights(0, (6, 1, 3, 3))
    in_groups = Constant(what="the weights of 'stem'", values=2 * flat.reshape(6, 1, 1, 3, 3), axis=0)
    assert "twice" in (constant_cause(in_groups, flat) or "")
    rows = weights(0, (7, 30))
    turned = Constant(what="the weights of 'head'", values=2 * rows.T, axis=1)
    assert "twice" in (constant_cause(turned, rows) or "")


class TestPairs:
    def test_what_calibration_chose(self) -> None:
        pairs = [Pair(tensor="a", scale=0.1, back=0.1), Pair(tensor="b", scale=0.2, back=0.2)]
        assert pair_causes(pairs, {"a": 0.1, "b": 0.2 * (1 + 1e-4)}) == []
        assert pair_causes(pairs, {}) == []
        assert pair_causes(pairs, {"b": 0.1}) == [
            "the scale of the tensor 'b' is twice what calibration chose: 0.2, not 0.1"
        ]

    def test_two_scales_of_one_pair(self) -> None:
        (said,) = pair_causes([Pair(tensor="a", scale=0.1, back=0.05)], {"a": 0.1})
        assert said == "the tensor 'a' is quantized with the scale 0.1 and restored with 0.05, half that"


@pytest.mark.parametrize(("gain", "word"), [(2.0, "twice"), (0.5, "half"), (1.7, "1.70 times")])
def test_the_size_of_a_tensors_values(gain: float, word: str) -> None:
    assert gain_cause("sum", gain) == f"the values of 'sum' are {word} those of the float graph"
    assert gain_cause("sum", 1.2) is None
