from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgetl import catalog
from edgetl.errors import UnknownNameError
from edgetl.quantize import inspection
from edgetl.quantize.ranges import activation_params
from edgetl.quantize.schemes import INT8, INT8_HALF, INT8_SYMMETRIC, UINT8, IntegerType
from edgetl.quantize.sketch import Sketch
from edgetl.quantize.statistics import Statistics
from edgetl.specs import Estimator

FOUND = {name: Estimator(method=name) for name in ("minmax", "percentile", "entropy", "mse")}  # type: ignore[arg-type]
TWO = {name: FOUND[name] for name in ("minmax", "percentile")}
TYPES = [UINT8, INT8, INT8_SYMMETRIC, INT8_HALF]
floats = st.floats(-1e4, 1e4, width=32)
arrays = hnp.arrays(np.float32, st.integers(1, 300), elements=floats)
few = settings(max_examples=25, deadline=None)
names = st.text(st.characters(codec="ascii"), min_size=1, max_size=12)


def sketch_of(values: npt.ArrayLike) -> Sketch:
    """Of values that are one sample of one channel."""
    return Sketch.of(np.asarray(values, dtype=np.float32).reshape(1, -1), channel_axis=None)


def statistics(samples: int = 4, source: dict[str, str] | None = None, **values: np.ndarray) -> Statistics:
    sketches = {name: sketch_of(array) for name, array in values.items()}
    return Statistics(sketches=sketches, samples=samples, source=source or {})


def normal(scale: float = 1.0, size: int = 4000, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=scale, size=size).astype(np.float32)


class TestHistogram:
    @given(arrays, st.integers(1, 90))
    def test_every_value_is_in_one_bin(self, values: np.ndarray, bins: int) -> None:
        found = inspection.histogram(sketch_of(values), bins)
        assert found.counts.sum() == pytest.approx(len(values), rel=1e-9)
        assert (found.counts >= -1e-9).all()
        assert (found.edges[0], found.edges[-1]) == (values.min(), values.max())
        assert len(found.edges) == len(found.counts) + 1

    @given(arrays, st.integers(1, 40))
    def test_cumulative_counts_are_those_of_the_values_to_a_bucket(self, values: np.ndarray, bins: int) -> None:
        found = inspection.histogram(sketch_of(values), bins)
        for edge, below in zip(found.edges[1:-1], np.cumsum(found.counts)[:-1], strict=True):
            width = abs(edge) / 64 + 1e-37  # a bucket is at most 1/128 of its value wide
            assert (values < edge - width).sum() - 1e-6 <= below <= (values <= edge + width).sum() + 1e-6

    def test_single_values_stand_in_their_own_bin(self) -> None:
        found = inspection.histogram(sketch_of(np.repeat([0, 1, 2, 4], [5, 6, 7, 8])), 4)
        assert found.counts.tolist() == [5, 6, 7, 8]  # the last bin holds its upper edge

    @pytest.mark.parametrize("value", [0.0, -3.5, 1e-40, 3e38])
    def test_a_constant_is_one_bin_without_width(self, value: float) -> None:
        found = inspection.histogram(sketch_of(np.full(9, value)), 30)
        assert found.counts.tolist() == [9]
        assert found.edges[0] == found.edges[1]

    def test_an_outlier_leaves_the_bins_between_empty(self) -> None:
        found = inspection.histogram(sketch_of([*np.linspace(-1, 1, 1000), 1e30]), 50)
        assert found.counts[0] == pytest.approx(1000) and found.counts[-1] == 1 and not found.counts[1:-1].any()

    def test_the_whole_range_of_float32(self) -> None:
        largest = np.finfo(np.float32).max
        found = inspection.histogram(sketch_of([-largest, 0, largest]), 3)
        assert found.counts.tolist() == [1, 1, 1]


class TestThreshold:
    @given(arrays, st.sampled_from(TYPES))
    def test_minmax_clips_nothing(self, values: np.ndarray, type_: IntegerType) -> None:
        found = inspection.threshold(sketch_of(values), "minmax", FOUND["minmax"], type_)
        assert found.clipped_share == 0.0

    @few
    @given(arrays, st.sampled_from(TYPES), st.sampled_from(sorted(FOUND)))
    def test_it_is_what_the_estimator_reads(self, values: np.ndarray, type_: IntegerType, name: str) -> None:
        sketch = sketch_of(values)
        found, params = (
            inspection.threshold(sketch, name, FOUND[name], type_),
            activation_params(sketch, FOUND[name], type_),
        )
        assert (found.scale, found.zero_point, found.low, found.high) == (
            params.scale, params.zero_point, params.low, params.high,
        )  # fmt: skip
        assert 0.0 <= found.clipped_share <= 1.0
        assert found.sqnr_db is None or np.isfinite(found.sqnr_db)

    @pytest.mark.parametrize("name", sorted(FOUND))
    @pytest.mark.parametrize("type_", TYPES, ids=lambda item: f"{item.name} {item.symmetric} {item.scale_type}")
    def test_share_and_sqnr_are_those_of_the_values(self, name: str, type_: IntegerType) -> None:
        values = np.concatenate([normal(size=50_000), normal(8.0, size=50, seed=1)]).astype(np.float64)
        sketch = sketch_of(values)
        found = inspection.threshold(sketch, name, FOUND[name], type_)
        params = activation_params(sketch, FOUND[name], type_)
        error = params.fake_quantize(values) - values
        expected = 10 * np.log10(np.square(values).mean() / np.square(error).mean())
        assert found.sqnr_db == pytest.approx(expected, abs=0.3)
        clipped = (np.abs(error) > 0.501 * params.scale).mean()
        assert found.clipped_share == pytest.approx(clipped, abs=5e-5)

    def test_zeros_are_exact(self) -> None:
        found = inspection.threshold(sketch_of(np.zeros(8)), "mse", FOUND["mse"], UINT8)
        assert found.sqnr_db is None and found.clipped_share == 0.0

    def test_the_bound_of_a_relu6_is_not_clipped(self) -> None:
        values = np.clip(normal(4.0), 0, 6)
        assert (values == 6).mean() > 0.05
        assert inspection.threshold(sketch_of(values), "minmax", FOUND["minmax"], UINT8).clipped_share == 0.0


SEARCHED = {f"{method}{outliers}" for method in ("mse", "minmax", "percentile 99.99") for outliers in ("", " drop")}


class TestEstimators:
    def test_of_the_shipped_recipes(self) -> None:
        found = inspection.estimators(map(catalog.recipe, catalog.recipe_names()))
        assert set(found) == {*SEARCHED, "entropy"}
        assert all(inspection.label(item) == name for name, item in found.items())

    def test_search_is_all_that_it_chooses_from(self) -> None:
        assert set(inspection.estimators([catalog.recipe("int8-search")])) == SEARCHED

    def test_percentiles_are_told_apart_and_recipes_without_ranges_passed_over(self) -> None:
        recipe = catalog.recipe("int8-percentile")
        own = replace(recipe, activations=Estimator(method="percentile", percentile=99.9))
        found = inspection.estimators([recipe, own, catalog.recipe("fp16"), catalog.recipe("int8-dynamic")])
        assert list(found) == ["percentile 99.99", "percentile 99.9"]


class TestSelect:
    KNOWN = ("input", "block.0", "block.1", "conv[0]", "conv0")

    @pytest.mark.parametrize(
        ("wanted", "expected"),
        [
            (["block.*"], ["block.0", "block.1"]),
            (["conv[0]"], ["conv[0]"]),  # a name before a pattern
            (["conv[01]"], ["conv0"]),
            (["block.1", "block.?", "block.1"], ["block.1", "block.0"]),
            (["*"], list(KNOWN)),
        ],
    )
    def test_names_and_patterns(self, wanted: list[str], expected: list[str]) -> None:
        assert inspection.select(self.KNOWN, wanted) == expected

    @pytest.mark.parametrize("wanted", ["inptu", "INPUT", "", "nothing*", "[", "block.["])
    def test_unknown_names(self, wanted: str) -> None:
        with pytest.raises(UnknownNameError, match="there is no activation") as caught:
            inspection.select(self.KNOWN, ["input", wanted])
        assert caught.value.exit_code == 2
        assert wanted != "inptu" or "did you mean 'input'?" in caught.value.message

    def test_a_long_list_is_cut(self) -> None:
        with pytest.raises(UnknownNameError, match=r"… \(500 in all\)"):
            inspection.select([f"t{number}" for number in range(500)], ["zzzz"])

    @given(st.lists(names, min_size=1, unique=True))
    def test_every_name_means_itself(self, known: list[str]) -> None:
        assert inspection.select(known, known) == known


class TestViews:
    def test_those_that_differ_most_come_first(self) -> None:
        tail = np.concatenate([normal(size=100_000), np.float32([40.0])])
        far = np.concatenate([normal(size=100_000), np.float32([400.0])])
        given_ = statistics(even=np.linspace(-1, 1, 5000), tail=tail, far=far)
        found = inspection.views(given_, TWO, UINT8, top=2)
        assert [item.name for item in found] == ["far", "tail"]
        assert found[0].spread > found[1].spread > 1
        assert [item.estimator for item in found[0].thresholds] == list(TWO)
        assert (found[0].values, found[0].high) == (100_001, 400.0)

    def test_all_that_are_wanted_in_their_order(self) -> None:
        seen: list[tuple[int, int]] = []
        given_ = statistics(a=normal(), b=normal(2.0), c=normal(3.0))
        found = inspection.views(
            given_, TWO, UINT8, wanted=["c", "a"], progress=lambda done, total: seen.append((done, total))
        )
        assert [item.name for item in found] == ["c", "a"]
        assert seen == [(1, 2), (2, 2)]

    def test_an_activation_without_values_is_left_out(self) -> None:
        found = inspection.views(statistics(a=normal(), none=np.zeros(0)), TWO, UINT8)
        assert [item.name for item in found] == ["a"]

    def test_without_estimators_there_are_histograms_alone(self) -> None:
        (found,) = inspection.views(statistics(a=normal()), {}, UINT8, top=5)
        assert found.thresholds == () and found.spread == 1.0


class TestCompare:
    @few
    @given(st.dictionaries(names, arrays, max_size=3), st.sampled_from(TYPES))
    def test_nothing_moves_between_equal_ones(self, values: dict[str, np.ndarray], type_: IntegerType) -> None:
        one, other = (
            Statistics(sketches={k: sketch_of(v) for k, v in values.items()}, samples=1, source={}) for _ in range(2)
        )
        found = inspection.compare(one, other, FOUND, type_)
        assert found.same and found.source == ()
        assert [item.unmoved for item in found.ranges] == [len(values)] * len(FOUND)

    @given(arrays, arrays, st.sampled_from(TYPES))
    def test_there_and_back_are_inverse(self, one: np.ndarray, other: np.ndarray, type_: IntegerType) -> None:
        a, b = statistics(x=one), statistics(x=other)
        there, back = (inspection.compare(*pair, {"minmax": FOUND["minmax"]}, type_) for pair in ((a, b), (b, a)))
        assert there.same == back.same
        for moved, returned in zip(there.ranges[0].moved, back.ranges[0].moved, strict=True):
            assert moved.ratio * returned.ratio == pytest.approx(1.0)
            assert (moved.old_scale, moved.new_range) == (returned.new_scale, returned.old_range)

    def test_the_largest_change_up_or_down_comes_first(self) -> None:
        old = statistics(up=normal(), down=normal(), same=normal(), little=normal())
        new = statistics(up=3 * normal(), down=normal() / 8, same=normal(), little=1.1 * normal())
        (found,) = inspection.compare(old, new, {"mse": FOUND["mse"]}, INT8_SYMMETRIC).ranges
        assert [item.name for item in found.moved] == ["down", "up", "little"]
        assert [item.ratio for item in found.moved] == pytest.approx([1 / 8, 3, 1.1], rel=0.03)
        assert found.unmoved == 1

    def test_a_zero_point_that_moves_alone_counts(self) -> None:
        old, new = statistics(x=[-64 / 64, 191 / 64]), statistics(x=[-96 / 64, 159 / 64])  # both 255 steps of 1/64
        found = inspection.compare(old, new, {"minmax": FOUND["minmax"]}, UINT8)
        (moved,) = found.ranges[0].moved
        assert moved.ratio == 1.0 and (moved.old_zero_point, moved.new_zero_point) == (64, 96)

    def test_an_estimator_that_sees_no_change_says_so(self) -> None:
        old = statistics(x=[-1, *normal(0.1, 50_000).clip(-1, 1), 1])
        new = statistics(x=[-1, *normal(0.02, 50_000).clip(-1, 1), 1])
        found = inspection.compare(old, new, {"minmax": FOUND["minmax"], "percentile": FOUND["percentile"]}, UINT8)
        assert [len(item.moved) for item in found.ranges] == [0, 1] and not found.same

    def test_activations_of_only_one(self) -> None:
        old, new = statistics(a=normal(), b=normal(), none=normal()), statistics(a=normal(), c=normal(), none=[])
        found = inspection.compare(old, new, FOUND, UINT8)
        assert (found.only_old, found.only_new, found.same) == (("b", "none"), ("c",), False)

    def test_what_differs_in_the_source(self) -> None:
        old = statistics(8, {"model": "m1", "samples": "s", "gone": "x"})
        new = statistics(9, {"model": "m2", "samples": "s", "came": "y"})
        found = inspection.compare(old, new, FOUND, UINT8)
        assert [(item.fact, item.old, item.new) for item in found.source] == [
            ("number of samples", 8, 9), ("model", "m1", "m2"), ("gone", "x", None), ("came", None, "y"),
        ]  # fmt: skip
        assert found.recorded and not inspection.compare(old, statistics(8), FOUND, UINT8).recorded
