from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgetl.quantize.sketch import Sketch

floats = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-1e6, max_value=1e6)
arrays = hnp.arrays(np.float32, st.integers(1, 200), elements=floats)


def same(one: Sketch, other: Sketch) -> bool:
    return bool((one.counts == other.counts).all()) and (one.low, one.high) == (other.low, other.high)


class TestMerge:
    @given(arrays, arrays, arrays)
    def test_it_is_associative_and_commutative(self, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
        one, two, three = Sketch.of(a), Sketch.of(b), Sketch.of(c)
        assert same(one.merge(two).merge(three), one.merge(two.merge(three)))
        assert same(one.merge(two), two.merge(one))

    @given(arrays, st.integers(0, 200))
    def test_cutting_a_batch_in_two_changes_nothing(self, values: np.ndarray, cut: int) -> None:
        assert same(Sketch.of(values[:cut]).merge(Sketch.of(values[cut:])), Sketch.of(values))

    @given(arrays, st.randoms(use_true_random=False))
    def test_the_order_of_values_changes_nothing(self, values: np.ndarray, random) -> None:  # type: ignore[no-untyped-def]
        order = list(range(len(values)))
        random.shuffle(order)
        assert same(Sketch.of(values[order]), Sketch.of(values))

    @given(arrays)
    def test_empty_is_neutral(self, values: np.ndarray) -> None:
        assert same(Sketch.empty().merge(Sketch.of(values)), Sketch.of(values))
        assert same(Sketch.of(values).merge(Sketch.of(np.zeros(0, np.float32))), Sketch.of(values))

    def test_channel_sums_add_up(self) -> None:
        values = np.random.default_rng(0).normal(size=(6, 3, 4, 4)).astype(np.float32)
        merged = Sketch.of(values[:2]).merge(Sketch.of(values[2:]))
        means = merged.channel_means()
        assert means is not None
        np.testing.assert_allclose(means, values.mean(axis=(0, 2, 3)), rtol=1e-5)
        assert Sketch.of(values[0, 0, 0]).channel_means() is None


class TestQuantile:
    @settings(max_examples=200)
    @given(hnp.arrays(np.float32, st.integers(1, 300), elements=floats), st.floats(0, 1))
    def test_it_is_the_exact_one_to_a_bucket(self, values: np.ndarray, share: float) -> None:
        found = Sketch.of(values).quantile(share)
        exact = float(np.quantile(values.astype(np.float64), share, method="higher"))
        # A bucket is 1/128 of its value wide, and its middle stands for it.
        assert abs(found - exact) <= max(abs(exact), abs(found)) / 64 + 1e-30

    @given(arrays)
    def test_the_ends_are_within_the_exact_extremes(self, values: np.ndarray) -> None:
        sketch = Sketch.of(values)
        assert sketch.low == values.min() and sketch.high == values.max() and sketch.total == values.size
        points, counts = sketch.points()
        assert (np.diff(points) >= 0).all() and points[0] >= sketch.low and points[-1] <= sketch.high
        assert counts.sum() == values.size


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_noticed(bad: float) -> None:
    values = np.linspace(-1, 1, 50, dtype=np.float32)
    assert Sketch.of(values).finite
    values[17] = bad
    assert not Sketch.of(values).finite
    assert not Sketch.of(values[:10]).merge(Sketch.of(values[10:])).finite


def test_zeros_of_both_signs_are_zero() -> None:
    points, counts = Sketch.of(np.asarray([0.0, -0.0, 0.0], dtype=np.float32)).points()
    assert (points == 0.0).all() and counts.sum() == 3
