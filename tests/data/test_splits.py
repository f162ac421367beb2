from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.data.dataset import Sample
from edgetl.data.splits import draw_calibration, split_val
from edgetl.errors import DataError, UsageError


def sample(number: int, label: int, group: str | None = None, content: str | None = None) -> Sample:
    digest = hashlib.sha256((content or str(number)).encode()).hexdigest()
    return Sample(Path(f"/d/{number}.png"), label, group, digest)


def of_sizes(sizes: list[int]) -> list[Sample]:
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    return [sample(number, label) for number, label in enumerate(labels)]


sizes_of_classes = st.lists(st.integers(2, 60), min_size=1, max_size=6)
seeds = st.integers(0, 1000)
fractions = st.floats(0.01, 0.89)


class TestSplitVal:
    @given(sizes_of_classes, fractions, seeds)
    def test_disjoint_covers_stratified_deterministic(self, sizes: list[int], fraction: float, seed: int) -> None:
        samples = of_sizes(sizes)
        train, val = split_val(samples, fraction, seed)
        assert sorted(map(str, (s.raw for s in (*train, *val)))) == sorted(str(s.raw) for s in samples)
        assert not set(train) & set(val)
        counts = Counter(s.label for s in val)
        for label, size in enumerate(sizes):
            assert 1 <= counts[label] < size
            assert abs(counts[label] - fraction * size) <= 1
        assert split_val(samples, fraction, seed) == (train, val)

    @given(sizes_of_classes, fractions, seeds, st.randoms(use_true_random=False))
    def test_the_order_of_the_listing_does_not_matter(self, sizes, fraction, seed, random) -> None:  # type: ignore[no-untyped-def]
        samples = of_sizes(sizes)
        shuffled = random.sample(samples, len(samples))
        assert set(split_val(samples, fraction, seed)[1]) == set(split_val(shuffled, fraction, seed)[1])

    @given(
        st.lists(st.tuples(st.integers(0, 2), st.sampled_from([None, *"abcdefgh"]), st.integers(0, 40)), min_size=20),
        fractions,
        seeds,
    )
    def test_groups_and_copies_never_straddle(self, rows, fraction, seed) -> None:  # type: ignore[no-untyped-def]
        samples = [sample(n, label, group, str(content)) for n, (label, group, content) in enumerate(rows)]
        try:
            train, val = split_val(samples, fraction, seed)
        except DataError:
            return  # a class that cannot be divided; the law below is about what is divided
        for key in ("group", "digest"):
            both = {getattr(s, key) for s in train} & {getattr(s, key) for s in val}
            assert both <= {None}
        labels = {s.label for s in samples}
        assert {s.label for s in train} == labels == {s.label for s in val}

    @given(st.integers(0, 60), st.integers(8, 60), fractions, seeds)
    def test_images_of_no_class_are_divided_like_a_class(self, empty, size, fraction, seed) -> None:  # type: ignore[no-untyped-def]
        labels = [(0, 0)] * empty + [(1, 0)] * size + [(1, 1)] * size
        samples = [replace(sample(number, 0), label=label) for number, label in enumerate(labels)]
        train, val = split_val(samples, fraction, seed)
        wanted = min(max(1, round(fraction * empty)), empty - 1) if empty else 0
        assert sum(not s.present for s in val) == wanted
        assert sum(not s.present for s in train) == empty - wanted
        assert {index for s in val for index in s.present} == {index for s in train for index in s.present} == {0, 1}

    def test_images_of_no_class_that_cannot_be_divided_are_no_error(self) -> None:
        """They belong to the larger part of a class, of which val gets the smaller one, and no class lacks anything."""
        many = [replace(sample(n, 0, "many"), label=(0,) if n < 5 else (1,)) for n in range(20)]
        few = [replace(sample(30 + n, 0, "few"), label=(1,)) for n in range(4)]
        train, val = split_val([*many, *few], 0.2, 0)
        assert (list(train), list(val)) == (many, few)

    def test_a_single_group_of_images_of_no_class_stays_in_train(self) -> None:
        empty = [replace(sample(n, 0, "one"), label=(0, 0)) for n in range(10)]
        others = [replace(sample(20 + n, 0), label=(1, 1)) for n in range(10)]
        train, val = split_val([*empty, *others], 0.6, 0)
        assert set(empty) <= set(train) and len(val) == 6

    def test_groups_come_near_the_fraction(self) -> None:
        samples = [sample(n, n % 2, f"g{n // 10}") for n in range(400)]
        _, val = split_val(samples, 0.2, 3)
        assert Counter(s.label for s in val) == {0: 40, 1: 40}

    def test_a_class_of_large_groups_still_gets_one(self) -> None:
        samples = [sample(n, 0) for n in range(50)] + [sample(100 + n, 1, f"g{n % 2}") for n in range(20)]
        train, val = split_val(samples, 0.1, 0)
        assert Counter(s.label for s in val) == {0: 5, 1: 10}
        assert Counter(s.label for s in train) == {0: 45, 1: 10}

    def test_another_seed_draws_another_val(self) -> None:
        samples = of_sizes([100, 100])
        assert set(split_val(samples, 0.2, 0)[1]) != set(split_val(samples, 0.2, 1)[1])

    def test_order_of_the_input_is_kept(self) -> None:
        samples = of_sizes([20, 20])
        train, val = split_val(samples, 0.3, 0)
        assert list(train) == [s for s in samples if s in train] and list(val) == [s for s in samples if s in val]

    @pytest.mark.parametrize("lonely", [[sample(99, 1)], [sample(98, 1, "g"), sample(99, 1, "g")]])
    def test_a_class_that_cannot_be_divided_is_named(self, lonely: list[Sample]) -> None:
        with pytest.raises(DataError, match=f"class 'dog' has {len(lonely)} samples? in 1 inseparable part ") as error:
            split_val([*of_sizes([10]), *lonely], 0.1, 0, ("cat", "dog"))
        assert error.value.hint is not None and "give val yourself" in error.value.hint


class TestDrawCalibration:
    @given(sizes_of_classes, st.integers(1, 400), seeds, st.randoms(use_true_random=False))
    def test_laws(self, sizes, count, seed, random) -> None:  # type: ignore[no-untyped-def]
        samples = of_sizes(sizes)
        drawn = draw_calibration(samples, count, seed)
        assert len(drawn) == len(set(drawn)) == min(count, len(samples)) and set(drawn) <= set(samples)
        counts = Counter(s.label for s in drawn)
        for label, size in enumerate(sizes):
            assert abs(counts[label] - len(drawn) * size / len(samples)) < 1
        assert draw_calibration(random.sample(samples, len(samples)), count, seed) == drawn

    def test_where_the_files_lie_does_not_matter(self) -> None:
        samples = of_sizes([30, 30])
        moved = [Sample(Path("/elsewhere") / s.raw.name[::-1], s.label, s.group, s.digest) for s in samples]
        drawn = draw_calibration(samples, 20, 0)
        assert [s.digest for s in draw_calibration(moved, 20, 0)] == [s.digest for s in drawn]
        assert [s.digest for s in draw_calibration(samples, 20, 1)] != [s.digest for s in drawn]

    def test_unlabelled_samples_are_one_stratum(self) -> None:
        assert len(draw_calibration([sample(n, -1) for n in range(9)], 4, 0)) == 4

    def test_nothing_to_draw_from_and_a_count_of_zero(self) -> None:
        assert draw_calibration([], 4, 0) == ()
        with pytest.raises(UsageError, match="0 calibration samples"):
            draw_calibration(of_sizes([3]), 0, 0)
