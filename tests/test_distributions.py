"""Quantiles against printed tables."""

from __future__ import annotations

import pytest

from edgetl.distributions import chi_square_quantile, student_quantile


@pytest.mark.parametrize(
    ("freedom", "expected"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (5, 2.5706), (9, 2.2622),
                              (30, 2.0423), (1000, 1.95996)],
)  # fmt: skip
def test_students_quantiles_are_those_of_the_tables(freedom: int, expected: float) -> None:
    assert student_quantile(0.95, freedom) == pytest.approx(expected, abs=1e-4)
    assert student_quantile(0.99, 4) == pytest.approx(4.6041, abs=1e-4)


@pytest.mark.parametrize(
    ("probability", "freedom", "expected"),
    [(0.05, 1, 0.00393), (0.95, 1, 3.84146), (0.05, 4, 0.71072), (0.95, 4, 9.48773), (0.025, 9, 2.70039),
     (0.5, 30, 29.33603), (0.99, 100, 135.80672)],
)  # fmt: skip
def test_quantiles_of_chi_squared_are_those_of_the_tables(probability: float, freedom: int, expected: float) -> None:
    assert chi_square_quantile(probability, freedom) == pytest.approx(expected, abs=1e-5)
    assert chi_square_quantile(0.5, 2000) == pytest.approx(2000 - 2 / 3, abs=0.01)
    assert chi_square_quantile(0.95, 1) == pytest.approx(student_quantile(0.95, 2000) ** 2, abs=1e-3)
