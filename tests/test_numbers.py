"""Numbers as they are told: beside the names of things, and beside limits."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl import numbers


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 processes"), (1, "1 process"), (1234, "1,234 processes"), (None, "– processes")]
)
def test_one_thing_has_another_name_than_several(number: int | None, text: str) -> None:
    assert numbers.counted(number, "process", "processes") == text


def test_most_names_have_an_s() -> None:
    assert [numbers.counted(number, "core") for number in (1, 2)] == ["1 core", "2 cores"]


@pytest.mark.parametrize(
    ("value", "limit", "text"),
    [(9.0, 8.0, "9.00"), (8.0, 8.0, "8.00"), (8.0004, 8.0, "8.0004"), (7.9996, 8.0, "7.9996"), (0.0, 1e-9, "0.00"),
     (1234.5, 1.0, "1,234.50"), (math.nan, 8.0, "–")],
)  # fmt: skip
def test_a_number_beside_a_limit_shows_on_which_side_it_lies(value: float, limit: float, text: str) -> None:
    assert numbers.fixed(value, 2, beside=limit) == text


@pytest.mark.parametrize(
    ("value", "limit", "text"),
    [(0.0127, None, "0.0127"), (0.0127, 0.01, "0.0127"), (0.05, 0.05, "0.0500"), (0.050004, 0.05, "0.050004"),
     (0.0, 0.05, "0.00"), (8.0004, 8.0, "8.0004"), (None, 8.0, "–")],
)  # fmt: skip
def test_a_latency_beside_a_limit(value: float | None, limit: float | None, text: str) -> None:
    assert numbers.milliseconds(value, beside=limit) == text


FINITE = st.floats(-1e8, 1e8, allow_subnormal=False)


@given(FINITE, FINITE, st.integers(0, 4))
def test_what_differs_looks_different_and_the_larger_is_the_larger(one: float, other: float, digits: int) -> None:
    if abs(one - other) < 1e-11 * max(1.0, abs(one)):
        return
    for form in ("f", "e"):
        left, right = (float(text) for text in numbers.apart(one, other, digits, form))
        assert (left > right, left < right) == (one > other, one < other)
    shown = float(numbers.fixed(one, digits, beside=other).replace(numbers.MINUS, "-").replace(",", ""))
    assert (shown > other, shown < other) == (one > other, one < other)


def test_equal_numbers_stay_short() -> None:
    assert numbers.fixed(100 * 0.3, 2, beside=30.0) == "30.00" and 100 * 0.07 != 7.0
    assert numbers.fixed(100 * 0.07, 2, beside=7.0) == "7.00" == numbers.apart(100 * 0.07, 7.0, 2)[0]


def test_what_was_chosen_keeps_its_digits() -> None:
    assert [numbers.chosen(value) for value in (8.0, 0.1, 100 * 0.0031, 12.3456, 95.0)] == [
        "8",
        "0.1",
        "0.31",
        "12.3456",
        "95",
    ]
    assert numbers.points_of(0.0031415) == "0.31415 points" and numbers.points_of(0.01) == "1 point"
