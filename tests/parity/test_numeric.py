"""Outputs as numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgetl.parity.numeric import TOLERANCES, Numeric, Tolerance, numeric

ARRAYS = hnp.arrays(np.float64, (5, 3), elements=st.floats(-1e3, 1e3))


def test_figures_by_hand() -> None:
    found = numeric(np.array([[3.0, 4.0], [0.0, 0.0]]), np.array([[3.0, 3.0], [0.0, 0.0]]))
    assert found.max_abs_error == 1.0 and found.mean_abs_error == 0.25
    assert found.cosine == pytest.approx((21 / (5 * math.sqrt(18)) + 1) / 2)
    assert found.sqnr_db == pytest.approx(10 * math.log10(25))


@given(ARRAYS)
def test_the_same_is_the_best(array: np.ndarray) -> None:
    found = numeric(array, array)
    assert (found.max_abs_error, found.mean_abs_error, found.sqnr_db) == (0.0, 0.0, 200.0)
    assert found.cosine == pytest.approx(1.0)


@given(ARRAYS, ARRAYS)
def test_every_figure_is_one_that_json_has(first: np.ndarray, second: np.ndarray) -> None:
    found = numeric(first, second)
    assert all(math.isfinite(value) for value in vars(found).values())
    assert -1.0 - 1e-9 <= found.cosine <= 1.0 + 1e-9 and found.mean_abs_error <= found.max_abs_error * (1 + 1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_misses_every_limit(bad: float) -> None:
    found = numeric(np.ones((2, 2)), np.array([[1.0, bad], [1.0, 1.0]]))
    assert len(Tolerance(max_abs_error=1e9, mean_abs_error=1e9, cosine=-0.5, sqnr_db=-10.0).missed(found)) == 4


def test_limits_are_met_or_named() -> None:
    found = Numeric(max_abs_error=0.5, mean_abs_error=0.1, cosine=0.99, sqnr_db=25.0)
    assert Tolerance(max_abs_error=0.5, mean_abs_error=0.1, cosine=0.99, sqnr_db=25.0).missed(found) == ()
    assert Tolerance(max_abs_error=0.4, cosine=0.999).missed(found) == (
        "the largest error is 0.5, at most 0.4 is asked for",
        "the cosine is 0.99, at least 0.999 is asked for",
    )
    assert TOLERANCES["fp16"].missed(found) == ("SQNR is 25 dB, at least 30 dB is asked for",)
