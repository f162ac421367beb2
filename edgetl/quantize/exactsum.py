"""Sums of floats that do not depend on the order of their terms."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

_DIGIT_SHIFT = 4
_DIGIT_BITS = 1 << _DIGIT_SHIFT
_MANTISSA_BITS = 40
# A term shifted by up to 15 bits fills 55; an int64 takes 2**8 of them before a carry is due.
_TERMS_BEFORE_CARRY = 1 << 7


@dataclass(eq=False)
class ExactSum:
    """A vector of sums in fixed point, wide enough for every float64.

    Each term is rounded once, to 40 bits of mantissa, and is added as an integer from then on: such sums are
    associative and commutative, bit for bit. (Sums of floats are not: 1e16 + 1 - 1e16 is 0 or 1, as the order goes.)
    """

    size: int
    digits: dict[int, NDArray[np.int64]] = field(default_factory=dict)
    """Place → shape (size,): the sums are Σ digit · 2**(16 · place)."""
    _terms: int = 0

    @classmethod
    def of_rows(cls, places: NDArray[np.int64], rows: NDArray[np.int64]) -> ExactSum:
        """The inverse of :meth:`rows`."""
        return cls(size=rows.shape[1], digits={int(place): row.copy() for place, row in zip(places, rows, strict=True)})

    def part(self, start: int, stop: int) -> ExactSum:
        """Some of the sums, as a vector of their own."""
        places, rows = self.rows()
        return ExactSum.of_rows(places, rows[:, start:stop])

    def add(self, terms: NDArray[np.float64]) -> None:
        """Add terms to each sum.

        Args:
            terms: Finite, shape (n, size), or (size,) for one term each. Many at once cost little more than one.
        """
        rows = np.atleast_2d(terms)
        if not rows.size:
            return
        for start in range(0, len(rows), _TERMS_BEFORE_CARRY):
            self._add(rows[start : start + _TERMS_BEFORE_CARRY])

    def _add(self, terms: NDArray[np.float64]) -> None:
        """Add at most so many terms as fit before a carry is due."""
        if self._terms + len(terms) > _TERMS_BEFORE_CARRY:
            self.carry()
        mantissa, exponent = np.frexp(terms)
        whole = np.rint(np.ldexp(mantissa, _MANTISSA_BITS)).astype(np.int64)
        place, shift = np.divmod(exponent - _MANTISSA_BITS, _DIGIT_BITS)
        whole <<= shift
        for number in np.unique(place[whole != 0]).tolist():
            self._place(number)[:] += np.where(place == number, whole, 0).sum(axis=0)
        self._terms += len(terms)

    def merge(self, other: ExactSum) -> ExactSum:
        """The sums of both, of the same size; neither is changed in value."""
        result = ExactSum.of_rows(*self.rows())
        for place, row in zip(*other.rows(), strict=True):
            result._place(int(place))[:] += row
        result.carry()
        return result

    def carry(self) -> None:
        """Bring the digits into the one form that equal sums share.

        Digits are in 0 to 65,535 but for the highest place, which has the sign: the lowest place at which what is
        left fits 32 bits everywhere. Places without a digit at the lower end are left out.
        """
        self._terms = 0
        self.digits = {place: digit for place, digit in self.digits.items() if digit.any()}
        if not self.digits:
            return
        # Room for 64 bits of carry, and below for the highest digit, which may come to stand two places further down.
        low, high = min(self.digits) - 2, max(self.digits) + 4
        rows = np.zeros((high - low + 1, self.size), dtype=np.int64)
        for place, digit in self.digits.items():
            rows[place - low] = digit
        for index in range(len(rows) - 1):
            over = rows[index] >> _DIGIT_BITS  # rounds down: what is left is not negative
            rows[index] -= over << _DIGIT_BITS
            rows[index + 1] += over
        top = len(rows) - 1
        while top:
            joined = (rows[top] << _DIGIT_BITS) + rows[top - 1]
            if (np.abs(joined) >= 1 << 31).any():
                break
            top -= 1
            rows[top] = joined
        filled = np.flatnonzero(rows[: top + 1].any(axis=1))
        self.digits = {low + int(index): rows[index] for index in range(filled[0], top + 1)} if filled.size else {}

    def rows(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The canonical digits: places, shape (n,), ascending, and digits, shape (n, size)."""
        self.carry()
        places = sorted(self.digits)
        rows = [self.digits[place] for place in places]
        return np.asarray(places, dtype=np.int64), np.stack(rows) if rows else np.zeros((0, self.size), dtype=np.int64)

    def values(self) -> NDArray[np.float64]:
        """The sums as float64, shape (size,)."""
        places, rows = self.rows()
        # Summed as magnitudes: the digits of a small negative number are large up to the highest place of all.
        sign = np.where(rows[-1] < 0, -1, 1) if len(rows) else np.ones(self.size, dtype=np.int64)
        total = np.zeros(self.size)
        for place, row in zip(*ExactSum.of_rows(places, rows * sign).rows(), strict=True):
            total += np.ldexp(row.astype(np.float64), _DIGIT_BITS * int(place))
        result: NDArray[np.float64] = sign * total
        return result

    def _place(self, number: int) -> NDArray[np.int64]:
        if number not in self.digits:
            self.digits[number] = np.zeros(self.size, dtype=np.int64)
        return self.digits[number]
