"""Quantiles of distributions that the standard library does not have."""

from __future__ import annotations

import math
from statistics import NormalDist

MANY = 1000
"""Degrees of freedom from which Student's distribution is taken for the normal one."""


def student_quantile(confidence: float, freedom: int) -> float:
    """The bound that Student's t exceeds, on either side, with probability 1 − confidence.

    Args:
        confidence: Between 0 and 1.
        freedom: Degrees of freedom, at least 1; from :data:`MANY` on the normal distribution is meant.
    """
    if freedom >= MANY:
        return NormalDist().inv_cdf((1 + confidence) / 2)
    low, high = 0.0, 1.0
    while _student_within(high, freedom) < confidence:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_within(middle, freedom) < confidence else (low, middle)
    return high


def _student_within(bound: float, freedom: int) -> float:
    """Probability that |t| ≤ bound: the finite sums of M. Abramowitz and I. A. Stegun, 26.7.3 and 26.7.4."""
    angle = math.atan(bound / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    if freedom == 1:
        return 2 * angle / math.pi
    term = cosine if odd else 1.0
    total = term
    for power in range(2 + odd, freedom - 1, 2):
        term *= cosine**2 * (power - 1) / power
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def chi_square_quantile(probability: float, freedom: int) -> float:
    """The number that chi-squared stays below with a probability.

    Args:
        probability: Between 0 and 1.
        freedom: Degrees of freedom, at least 1.
    """
    low, high = 0.0, float(freedom)
    while _chi_square_above(high, freedom) > 1.0 - probability:
        high *= 2.0
    for _ in range(100):
        middle = (low + high) / 2.0
        low, high = (middle, high) if _chi_square_above(middle, freedom) > 1.0 - probability else (low, middle)
    return high


def _chi_square_above(bound: float, freedom: int) -> float:
    """Probability that chi-squared exceeds a bound: M. Abramowitz and I. A. Stegun, 26.4.4 and 26.4.5.

    Terms are added as logarithms, so that many degrees of freedom do not overflow.
    """
    if bound <= 0.0:
        return 1.0
    odd = freedom % 2
    total = math.erfc(math.sqrt(bound / 2.0)) if odd else math.exp(-bound / 2.0)
    for index in range(1, (freedom + 1) // 2):
        power = index - odd / 2.0
        total += math.exp(power * math.log(bound / 2.0) - bound / 2.0 - math.lgamma(power + 1.0))
    return min(total, 1.0)
