from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgetl.quantize.exactsum import ExactSum

finite = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e300, max_value=1e300)
tables = hnp.arrays(np.float64, st.tuples(st.integers(0, 40), st.just(3)), elements=finite)


def of(rows: np.ndarray) -> ExactSum:
    sums = ExactSum(size=3)
    for row in rows:
        sums.add(row)
    return sums


def same(one: ExactSum, other: ExactSum) -> bool:
    return all(np.array_equal(mine, its) for mine, its in zip(one.rows(), other.rows(), strict=True))


class TestLaws:
    @given(hnp.arrays(np.float64, st.tuples(st.integers(0, 300), st.just(3)), elements=finite), st.integers(1, 299))
    def test_many_rows_at_once_are_as_one_after_another(self, rows: np.ndarray, cut: int) -> None:
        sums = ExactSum(size=3)
        sums.add(rows[:cut])
        sums.add(rows[cut:])
        assert same(sums, of(rows))

    @given(tables, tables, tables)
    def test_merging_is_associative_and_commutative(self, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
        one, two, three = of(a), of(b), of(c)
        assert same(one.merge(two).merge(three), one.merge(two.merge(three)))
        assert same(one.merge(two), two.merge(one))
        assert same(one.merge(of(a[:0])), one)

    @given(tables, st.integers(0, 40), st.randoms(use_true_random=False))
    def test_neither_order_nor_cuts_change_a_digit(self, rows: np.ndarray, cut: int, random) -> None:  # type: ignore[no-untyped-def]
        order = list(range(len(rows)))
        random.shuffle(order)
        shuffled = rows[order]
        assert same(of(shuffled), of(rows))
        assert same(of(shuffled[:cut]).merge(of(shuffled[cut:])), of(rows))

    @given(tables)
    def test_merging_changes_neither_operand(self, rows: np.ndarray) -> None:
        one, two = of(rows), of(rows[::-1])
        before = [row.copy() for row in one.rows()]
        one.merge(two)
        assert all(np.array_equal(mine, its) for mine, its in zip(one.rows(), before, strict=True))

    @given(tables)
    def test_rows_are_read_back(self, rows: np.ndarray) -> None:
        assert same(ExactSum.of_rows(*of(rows).rows()), of(rows))


class TestValues:
    @given(tables)
    def test_they_are_those_of_fsum(self, rows: np.ndarray) -> None:
        for found, column in zip(of(rows).values(), rows.T, strict=True):
            # Each term is rounded to 40 bits once, and nothing after that.
            assert abs(found - math.fsum(column)) <= 2.0**-39 * math.fsum(np.abs(column))

    def test_what_floats_lose_is_kept(self) -> None:
        assert of(np.asarray([[1e16] * 3, [1.0] * 3, [-1e16] * 3])).values().tolist() == [1.0] * 3

    def test_denormal_huge_and_signed_zero_terms(self) -> None:
        terms = np.asarray([[5e-324, 1.7e308, -0.0], [5e-324, -1.7e308, 0.0]])
        assert of(terms).values().tolist() == [1e-323, 0.0, 0.0]

    @settings(max_examples=20)
    @given(st.integers(100, 2000), st.sampled_from([-1.0, 1.0, 2.0**-1074, -(2.0**900), 3.14159]))
    def test_many_terms_do_not_overflow_a_digit(self, count: int, term: float) -> None:
        rounded = of(np.full((1, 3), term)).values()[0]
        assert of(np.full((count, 3), term)).values().tolist() == [count * rounded] * 3

    def test_of_nothing_it_is_zero(self) -> None:
        places, rows = ExactSum(size=3).rows()
        assert places.shape == (0,) and rows.shape == (0, 3)
        assert ExactSum(size=3).values().tolist() == [0.0] * 3 and ExactSum(size=0).values().shape == (0,)

    def test_what_is_left_of_a_cancelled_sum_has_the_same_digits(self) -> None:
        few, huge = of(np.full((1, 3), 6.0)), of(np.full((1, 3), 1e30))
        assert same(few.merge(huge).merge(of(np.full((1, 3), -1e30))), few)

    def test_terms_that_cancel_leave_nothing(self) -> None:
        assert same(of(np.asarray([[1.5] * 3, [-1.5] * 3])), ExactSum(size=3))
