"""Scales held against the data that they stand for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.backends.inside import Quantizer, Restored
from edgetl.diagnosis.scales import Chosen, constant_cause, gain_cause, pair_causes


def weights(seed: int = 0, shape: tuple[int, ...] = (8, 4, 3, 3)) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def restored(
    values: np.ndarray, axis: int | None, steps: np.ndarray | None = None, *, node: str = "stem", kind: str = "weights"
) -> Restored:
    return Restored(node=node, operator="Conv", kind=kind, values=values, axis=axis, steps=steps)


def pair_of(*, tensor: str, scale: float, back: float, low: float = 0.0, shift: int = 0) -> Quantizer:
    return Quantizer(tensor=tensor, scale=scale, back=back, low=low, shift=shift)


def quantized(values: np.ndarray, axis: int | None = 0) -> Restored:
    """In eight bits, with a scale per channel."""
    axes = tuple(place for place in range(values.ndim) if place != axis)
    scale = np.abs(values).max(axes, keepdims=True) / 127
    return restored(np.round(values / scale) * scale, axis=axis, steps=scale)


@given(st.integers(0, 1000), st.sampled_from([(8, 4, 3, 3), (6, 1, 3, 3), (5, 32), (2, 40)]))
def test_eight_bits_are_no_cause(seed: int, shape: tuple[int, ...]) -> None:
    values = weights(seed, shape)
    assert constant_cause(quantized(values), values) is None
    assert constant_cause(quantized(values.T, 1) if values.ndim == 2 else quantized(values), values) is None


@given(st.floats(1.6, 50), st.booleans(), st.integers(0, 7))
def test_a_scale_of_another_size_is_found_in_all_channels_and_in_one(factor: float, larger: bool, place: int) -> None:
    factor = factor if larger else 1 / factor
    found = quantized(weights())
    whole = restored(found.values * factor, axis=0)
    said = constant_cause(whole, weights())
    assert said is not None and said.startswith("the weights of 'stem' are ") and "in channel" not in said
    found.values[place] *= 1.9
    said = constant_cause(found, weights())
    assert said == f"the weights of 'stem' in channel {place} are 1.90 times those of the float graph: its scale is"
    assert constant_cause(found, weights(), by_channel=False) is None


def test_how_it_is_said() -> None:
    for factor, word in ((2.0, "twice"), (0.5, "half"), (3.0, "3.00 times"), (2.01, "twice")):
        whole = restored(weights() * factor, axis=None)
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
    found = restored(weights(1), axis=0)
    assert constant_cause(found, weights(2)) is None


def test_groups_and_transposed_weights_are_told_apart_by_their_shape() -> None:
    flat = weights(0, (6, 1, 3, 3))
    in_groups = restored(2 * flat.reshape(6, 1, 1, 3, 3), axis=0)
    assert "twice" in (constant_cause(in_groups, flat) or "")
    rows = weights(0, (7, 30))
    turned = restored(2 * rows.T, axis=1, node="head")
    assert "twice" in (constant_cause(turned, rows) or "")


class TestValues:
    """Beyond what rounding explains."""

    @given(st.integers(0, 1000), st.sampled_from([(8, 4, 3, 3), (6, 1, 3, 3), (5, 32)]), st.floats(1.0, 100.0))
    def test_rounding_to_any_side_clipping_a_little_and_steps_for_a_large_bias_are_no_cause(
        self, seed: int, shape: tuple[int, ...], wider: float
    ) -> None:
        random = np.random.default_rng(seed)
        values = random.normal(size=shape)
        steps = quantized(values).steps
        assert steps is not None
        steps = steps * wider
        learned = np.clip(np.floor(values / steps) + random.integers(0, 2, shape), -127, 127) * steps
        assert constant_cause(restored(learned, axis=0, steps=steps), values) is None
        # As far as a range of least squared error goes.
        tight = steps / wider * 0.98
        cut = np.clip(np.round(values / tight), -127, 127) * tight
        assert constant_cause(restored(cut, axis=0, steps=tight), values) is None

    def test_channels_in_another_order(self) -> None:
        found = quantized(weights())
        found.values[[2, 6]] = found.values[[6, 2]]
        said = constant_cause(found, weights())
        assert said == (
            "the channels of the weights of 'stem' stand in another order: what is channel 2 in the float graph is"
            " channel 6"
        )

    def test_scales_in_another_order(self) -> None:
        values = weights(0, (8, 40)) * np.linspace(0.8, 1.25, 8)[:, None]
        found = quantized(values)
        assert found.steps is not None
        for order in (np.arange(8)[::-1], np.roll(np.arange(8), 3)):  # by less than half again, and by more
            steps = found.steps[order]
            other = restored(found.values / found.steps * steps, axis=0, steps=steps)
            said = constant_cause(other, values)
            assert said == "the scales of the weights of 'stem' stand in another order than its channels"

    def test_sizes_that_are_off_by_a_tenth(self) -> None:
        found = quantized(weights())
        assert found.steps is not None
        whole = restored(found.values * 1.1, axis=0, steps=found.steps * 1.1)
        said = constant_cause(whole, weights())
        assert (
            said == "the weights of 'stem' are 1.10 times those of the float graph in 8 of 8 channels: the scales are"
        )

    def test_a_scale_that_is_too_small_cuts_values_off(self) -> None:
        found = quantized(weights())
        assert found.steps is not None
        steps = found.steps * 0.5
        cut = restored(np.clip(weights(), -127 * steps, 127 * steps), axis=0, steps=steps)
        said = constant_cause(cut, weights())
        assert said is not None and said.endswith("% of their values: their scale is too small")

    def test_one_channel_and_all_of_another_network(self) -> None:
        found = quantized(weights())
        found.values[3] *= -1
        said = constant_cause(found, weights())
        assert said == "the weights of 'stem' are not those of the float graph in channel 3 of 8"
        said = constant_cause(quantized(weights(1)), weights(2))
        assert said == "the weights of 'stem' are not those of the float graph in 8 of 8 channels"
        assert constant_cause(quantized(weights(1)), weights(2), by_channel=False) is None

    def test_biases_that_are_zero(self) -> None:
        none = restored(np.zeros(8), axis=None, kind="bias")
        said = "the biases of 'stem' are zero, and are not in the float graph"
        assert constant_cause(none, weights(0, (8,))) == said
        assert constant_cause(none, np.zeros(8)) is None
        tiny = restored(np.zeros(8), axis=0, steps=np.full(8, 10.0), kind="bias")
        assert constant_cause(tiny, weights(0, (8,))) is None


class TestPairs:
    def test_a_zero_point_that_calibration_did_not_choose(self) -> None:
        pair = pair_of(tensor="a", scale=0.1, back=0.1, low=-1.3)
        (said,) = pair_causes([pair], {"a": Chosen(scale=0.1, low=-1.0)})
        assert said == (
            "the zero point of the tensor 'a' is 3 above what calibration chose: its range begins at -1.3, not at -1"
        )
        assert pair_causes([pair], {"a": Chosen(scale=0.1, low=-1.301)}) == []
        assert pair_causes([pair], {"a": Chosen(scale=0.1)}) == []

    def test_two_zero_points_of_one_pair(self) -> None:
        def told(shift: int, recorded: dict[str, Chosen]) -> list[str]:
            return pair_causes([pair_of(tensor="a", scale=0.1, back=0.1, low=-1.0, shift=shift)], recorded)

        in_bias, plain = Chosen(scale=0.1, low=-1.0, in_bias=True), Chosen(scale=0.1, low=-1.0)
        said = "the tensor 'a' is quantized with one zero point and restored with another, 10 below it"
        assert told(10, {"a": in_bias}) == []  # it is restored without one: the biases behind it hold it
        assert told(10, {}) == []  # nobody knows
        assert told(10, {"a": plain}) == [said]
        assert told(-4, {"a": in_bias}) == [said.replace("10 below", "4 above")]
        assert told(-4, {}) == [said.replace("10 below", "4 above")]

    def test_what_calibration_chose(self) -> None:
        pairs = [pair_of(tensor="a", scale=0.1, back=0.1), pair_of(tensor="b", scale=0.2, back=0.2)]
        assert pair_causes(pairs, {"a": Chosen(scale=0.1), "b": Chosen(scale=0.2 * (1 + 1e-4))}) == []
        assert pair_causes(pairs, {}) == []
        assert pair_causes(pairs, {"b": Chosen(scale=0.1)}) == [
            "the scale of the tensor 'b' is twice what calibration chose: 0.2, not 0.1"
        ]

    def test_two_scales_of_one_pair(self) -> None:
        (said,) = pair_causes([pair_of(tensor="a", scale=0.1, back=0.05)], {"a": Chosen(scale=0.1)})
        assert said == "the tensor 'a' is quantized with the scale 0.1 and restored with 0.05, half that"


@pytest.mark.parametrize(("gain", "word"), [(2.0, "twice"), (0.5, "half"), (1.7, "1.70 times")])
def test_the_size_of_a_tensors_values(gain: float, word: str) -> None:
    assert gain_cause("sum", gain) == f"the values of 'sum' are {word} those of the float graph"
    assert gain_cause("sum", 1.2) is None
    assert gain_cause("sum", gain, 0.9) is None  # they are other values


@pytest.mark.parametrize("classes", [3, 4, 5, 16])
def test_a_correction_of_small_biases_is_no_scale(classes: int) -> None:
    """By chance it points where they do: of three classes one engine of a hundred was accused."""
    random = np.random.default_rng(0)
    accused = 0
    for _ in range(2000):
        biases = 0.003 * random.normal(size=classes)
        corrected = restored(biases + 0.01 * random.normal(size=classes), axis=None, kind="bias")
        accused += constant_cause(corrected, biases) is not None
    assert accused <= 4
    twice = restored(2.0 * biases * (1.0 + 0.02 * random.normal(size=classes)), axis=None, kind="bias")
    assert "twice" in (constant_cause(twice, biases) or "")


def test_biases_that_are_one_number_have_no_size() -> None:
    """Where the channels are alike, too, a correction moves all of them by the same; the engine was accused."""
    biases = np.full(16, 1e-3)
    assert constant_cause(restored(biases + 0.13, axis=None, kind="bias"), biases) is None
    assert "are zero" in (constant_cause(restored(np.zeros(16), axis=None, kind="bias"), biases) or "")
