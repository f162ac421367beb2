from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgetl.quantize.sketch import Sketch, SketchBuilder

normal = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**20), max_value=2.0**20)
special = st.sampled_from([0.0, -0.0, 1e-45, -1e-40, 1e30, -1e30, 3.4e38, 6.0, -1.0])
values = st.one_of(normal, special)
vectors = hnp.arrays(np.float32, st.integers(1, 200), elements=values)
tensors = hnp.arrays(
    np.float32,
    st.tuples(st.integers(0, 7), st.just(3), st.integers(1, 3), st.integers(1, 3)),
    elements=values,
)


def samples_of(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float32)


def same(one: Sketch, other: Sketch) -> bool:
    """Bit for bit."""
    pairs = [
        (one.counts, other.counts),
        (one.channel_low, other.channel_low),
        (one.channel_high, other.channel_high),
        (one.sample_lows.view(np.uint32), other.sample_lows.view(np.uint32)),
        (one.sample_highs.view(np.uint32), other.sample_highs.view(np.uint32)),
        *zip(one.channel_sums.rows(), other.channel_sums.rows(), strict=True),
        *zip(one.channel_squares.rows(), other.channel_squares.rows(), strict=True),
    ]
    return all(np.array_equal(mine, its) for mine, its in pairs)


def single(array: np.ndarray) -> Sketch:
    """Of one sample, without channels."""
    return Sketch.of(array.reshape(1, -1), channel_axis=None)


class TestMerge:
    @given(tensors, tensors, tensors)
    def test_it_is_associative_and_commutative(self, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
        one, two, three = (Sketch.of(part.reshape(-1, 3, 1)) for part in (a, b, c))
        assert same(one.merge(two).merge(three), one.merge(two.merge(three)))
        assert same(one.merge(two), two.merge(one))

    @given(tensors, st.lists(st.integers(0, 7)), st.randoms(use_true_random=False))
    def test_neither_order_nor_batches_change_a_bit(self, array: np.ndarray, cuts: list[int], random) -> None:  # type: ignore[no-untyped-def]
        order = list(range(len(array)))
        random.shuffle(order)
        merged = Sketch.of(array[:0])
        for part in np.split(array[order], sorted(min(cut, len(array)) for cut in cuts)):
            merged = merged.merge(Sketch.of(part))
        assert same(merged, Sketch.of(array))

    @given(tensors)
    def test_empty_is_neutral(self, array: np.ndarray) -> None:
        whole = Sketch.of(array)
        for nothing in (Sketch.of(array[:0]), Sketch.of(np.zeros((2, 3, 0), np.float32)), SketchBuilder().sketch()):
            assert same(nothing.merge(whole), whole) and same(whole.merge(nothing), whole)

    @given(tensors)
    def test_it_changes_neither_of_the_two(self, array: np.ndarray) -> None:
        one, two = Sketch.of(array), Sketch.of(array[::-1])
        one.merge(two)
        assert same(one, Sketch.of(array)) and same(two, Sketch.of(array))

    def test_other_numbers_of_channels_are_refused(self) -> None:
        with pytest.raises(ValueError, match="3 and 4 channels"):
            Sketch.of(samples_of(1, 3)).merge(Sketch.of(samples_of(1, 4)))

    def test_what_was_counted_is_not_changed_by_what_is_added_later(self) -> None:
        builder = SketchBuilder()
        data = samples_of(5, 3, 4)
        for sample in data[:2]:
            builder.add(sample, channel_axis=0)
        early = builder.sketch()
        for sample in data[2:]:
            builder.add(sample, channel_axis=0)
        assert same(early, Sketch.of(data[:2])) and same(builder.sketch(), Sketch.of(data))

    def test_pooling_counts_all_values_as_one_channel(self) -> None:
        one, two = samples_of(4, 3, 5), 3 * samples_of(2, 7, seed=1)
        pooled = Sketch.of(one).pooled(Sketch.of(two))
        joined = np.concatenate([one.reshape(-1), two.reshape(-1)])
        assert pooled.total == joined.size and np.array_equal(pooled.counts, single(joined).counts)
        assert (pooled.low, pooled.high) == (joined.min(), joined.max())

    def test_large_tensors_are_counted_in_pieces(self) -> None:
        array = samples_of(3, 2, 300_000)
        whole = Sketch.of(array)
        assert whole.total == array.size
        expected = np.bincount(array.reshape(-1).view(np.uint32) >> 16, minlength=65536)
        assert np.array_equal(whole.counts, expected)
        assert same(whole, Sketch.of(array[2:]).merge(Sketch.of(array[:2])))


class TestWhatIsExact:
    @given(tensors)
    def test_extremes_total_and_finiteness(self, array: np.ndarray) -> None:
        sketch = Sketch.of(array)
        assert sketch.total == array.size and sketch.finite
        if array.size:
            assert (sketch.low, sketch.high) == (array.min(), array.max())
            assert np.array_equal(sketch.channel_low, array.min(axis=(0, 2, 3)))
            assert np.array_equal(sketch.channel_high, array.max(axis=(0, 2, 3)))
            assert np.array_equal(sketch.channel_reach, np.abs(array).max(axis=(0, 2, 3)))
        else:
            assert (sketch.low, sketch.high) == (math.inf, -math.inf)
            assert math.isnan(sketch.mean) and math.isnan(sketch.mean_square)

    @given(tensors)
    def test_sums_and_sums_of_squares(self, array: np.ndarray) -> None:
        sketch = Sketch.of(array)
        if not array.size:
            return
        for channel in range(3):
            exact = array[:, channel].astype(np.float64).reshape(-1)
            found, squares = sketch.channel_sums.values()[channel], sketch.channel_squares.values()[channel]
            assert abs(found - math.fsum(exact)) <= 1e-6 * math.fsum(np.abs(exact)) + 1e-44
            # Squares of what is below 1e-19 leave float32's normal range: nothing that any quantization could show.
            assert abs(squares - math.fsum(exact**2)) <= 1e-6 * math.fsum(exact**2) + 1e-43 * exact.size

    def test_means(self) -> None:
        array = samples_of(50, 3, 4, 4) + 2
        sketch = Sketch.of(array)
        np.testing.assert_allclose(sketch.channel_means(), array.mean(axis=(0, 2, 3), dtype=np.float64), rtol=1e-6)
        assert sketch.mean == pytest.approx(array.mean(dtype=np.float64), rel=1e-6)
        assert sketch.mean_square == pytest.approx(np.square(array, dtype=np.float64).mean(), rel=1e-6)

    @given(vectors)
    def test_squares_of_huge_values_do_not_overflow(self, array: np.ndarray) -> None:
        sketch = single(np.append(array, np.float32(3e38)))
        assert math.isfinite(sketch.mean) and math.isfinite(sketch.mean_square)

    @pytest.mark.parametrize("axis", [1, 2, -1, None, 5])
    def test_the_channel_axis(self, axis: int | None) -> None:
        array = samples_of(4, 3, 5)
        sketch = Sketch.of(array, channel_axis=axis if axis != -1 else 2)
        expected = {1: 3, 2: 5, -1: 5}.get(axis or 0, 1)
        assert sketch.channel_low.shape == (expected,) and sketch.total == array.size

    def test_scalars_and_views(self) -> None:
        assert single(np.float32(-2.5)).low == -2.5
        assert Sketch.of(np.asarray(3.0, np.float32)).total == 1
        array = samples_of(2, 6, 4)
        assert same(Sketch.of(array[:, ::2].transpose(0, 2, 1)), Sketch.of(array[:, ::2].transpose(0, 2, 1).copy()))


class TestSamples:
    @given(tensors)
    def test_the_extremes_of_every_sample_are_exact_and_ascending(self, array: np.ndarray) -> None:
        sketch = Sketch.of(array)
        flat = array.reshape(len(array), -1) if array.size else np.zeros((0, 1), dtype=np.float32)
        assert sketch.sample_lows.tolist() == sorted(flat.min(axis=1).tolist())
        assert sketch.sample_highs.tolist() == sorted(flat.max(axis=1).tolist())

    @given(vectors, values, values)
    def test_within_counts_what_lies_there(self, array: np.ndarray, a: float, b: float) -> None:
        low, high = float(np.float32(min(a, b))), float(np.float32(max(a, b)))
        inside = int(((array >= low) & (array <= high)).sum())
        kept = single(array).within(low, high)
        assert kept.total >= inside
        assert kept.low >= min(low, float(array.min())) if inside else True
        # What is counted besides lies in the same buckets as the ends: at most 1/128 away.
        margin = 2**-6 * max(abs(low), abs(high)) + 1e-37
        assert kept.total <= int(((array >= low - margin) & (array <= high + margin)).sum())


class TestNotFinite:
    @pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
    @given(vectors, st.integers(0, 199))
    def test_one_bad_value_is_noticed(self, bad: float, array: np.ndarray, place: int) -> None:
        assert single(array).finite
        array = array.copy()
        array[place % len(array)] = bad
        assert not single(array).finite
        cut = len(array) // 2
        assert not Sketch.of(array[:cut, None]).merge(Sketch.of(array[cut:, None])).finite
        assert not SketchBuilder().add(array, channel_axis=None)

    def test_a_nan_with_a_small_payload_is_one_too(self) -> None:
        payload = np.asarray([0x7F800001, 0xFF800001], np.uint32).view(np.float32)
        for value in payload:  # its upper sixteen bits are those of infinity
            assert not single(np.asarray([1.0, value], np.float32)).finite
            assert not SketchBuilder().add(np.asarray([1.0, value], np.float32), channel_axis=None)


class TestQuantile:
    @settings(max_examples=200)
    @given(vectors, st.floats(0, 1))
    def test_it_is_the_exact_one_to_a_bucket(self, array: np.ndarray, share: float) -> None:
        found = single(array).quantile(share)
        exact = np.sort(array.astype(np.float64))
        rank = share * (len(exact) - 1)
        low, high = exact[math.floor(rank)], exact[math.ceil(rank)]
        width = max(abs(low), abs(high)) / 128
        assert low - width - 1e-38 <= found <= high + width + 1e-38

    @given(vectors)
    def test_it_grows_from_the_smallest_to_the_largest(self, array: np.ndarray) -> None:
        sketch = single(array)
        found = [sketch.quantile(share) for share in np.linspace(0, 1, 20)]
        assert (np.diff(found) >= 0).all() and sketch.low <= found[0] and found[-1] <= sketch.high

    @given(vectors)
    def test_its_ends_are_the_extremes(self, array: np.ndarray) -> None:
        assert (single(array).quantile(0.0), single(array).quantile(1.0)) == (array.min(), array.max())

    def test_between_two_values_it_is_interpolated(self) -> None:
        assert single(np.asarray([-1.0, 5.0], np.float32)).quantile(0.25) == 0.5

    def test_of_many_values_it_is_numpys(self) -> None:
        array = np.random.default_rng(0).standard_t(3, size=200_000).astype(np.float32)
        for share in (0.0001, 0.01, 0.25, 0.75, 0.999, 0.9999):
            exact = float(np.quantile(array, share))
            assert single(array).quantile(share) == pytest.approx(exact, rel=1 / 128)


class TestPieces:
    @given(vectors)
    def test_they_hold_every_value_in_order(self, array: np.ndarray) -> None:
        sketch = single(array)
        lower, upper, counts = sketch.pieces()
        assert counts.sum() == array.size and (lower <= upper).all() and (upper[:-1] <= lower[1:]).all()
        assert sketch.low <= lower[0] and upper[-1] <= sketch.high
        for value in array.astype(np.float64):
            inside = (lower <= value) & (value <= upper)
            assert inside.any() or abs(value) < 1e-40  # the smallest denormals are zeros

    def test_zeros_of_both_signs_are_zero(self) -> None:
        lower, upper, counts = single(np.asarray([0.0, -0.0, 0.0], dtype=np.float32)).pieces()
        assert (lower == 0.0).all() and (upper == 0.0).all() and counts.sum() == 3
