"""How numbers print: with the digits that mean something, a true minus, and a dash where there is no number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

DASH = "\u2013"
MINUS = "\u2212"
TIMES = "\u00d7"
_FIGURE_SPACE = "\u2007"
_PUNCTUATION_SPACE = "\u2008"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_LARGE = 1e9
CHOSEN = 12
"""Significant digits of what somebody chose: more than anybody writes, and fewer than show that 0.1 is not exact."""
_MOST_DECIMALS, _SAME = 8, 1e-9
"""In statements; and what is nearer to a limit than that is no finding."""
_EQUAL = 1e-12
"""Numbers that lie nearer to each other, as a share of them, are the same one, scaled to percent in two ways."""
_ALL_DIGITS = 17
"""Of a float64: with so many, two that differ print differently."""


def is_number(value: float | None) -> bool:
    """Whether there is a finite number to print."""
    return value is not None and math.isfinite(value)


def fixed(value: float | None, decimals: int, *, beside: float | None = None) -> str:
    """A number with a fixed number of decimals and thousands separators; a dash for None, inf and nan.

    Args:
        value: The number.
        decimals: How many.
        beside: A limit that stands beside it, as it is: there are as many more decimals as it takes to see on which
            side of the limit the number lies.
    """
    if value is None or not math.isfinite(value):
        return DASH
    if beside is not None and math.isfinite(beside):
        decimals = _enough(value, beside, decimals, "f")
    if abs(value) >= _LARGE:
        return _scientific(value, 3)
    text = f"{value:,.{decimals}f}"
    if not any(digit in text for digit in "123456789"):
        text = text.lstrip("-")
    return text.replace("-", MINUS)


def significant(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits: 0.512, 2.38, 104; a power of ten where it is tiny or huge."""
    if value is None or not math.isfinite(value):
        return DASH
    if value == 0.0:
        return "0"
    magnitude = _magnitude(value, digits)
    if magnitude < -3 or abs(value) >= _LARGE:
        return _scientific(value, digits)
    return fixed(value, max(0, digits - 1 - magnitude))


def milliseconds(value: float | None, *, beside: float | None = None) -> str:
    """A latency: 7.72, 0.51; below a tenth of a millisecond with the digits that tell two apart, 0.0127.

    Args:
        value: The latency.
        beside: A limit; see :func:`fixed`.
    """
    if value is None or not 0.0 < value < 0.1:
        return fixed(value, 2, beside=beside)
    return significant(value) if beside is None else fixed(value, 2 - _magnitude(value, 3), beside=beside)


def apart(one: float, other: float, digits: int, form: Literal["f", "e"] = "f") -> tuple[str, str]:
    """Two numbers, with as many digits more as it takes to see which is larger: ("8.0004", "8.0003").

    Args:
        one: A number.
        other: Another one.
        digits: After the point, where so many are enough.
        form: Decimal or with a power of ten, as in Python's formats.
    """
    enough = _enough(one, other, digits, form, both=True)
    return f"{one:.{enough}{form}}", f"{other:.{enough}{form}}"


def milliseconds_apart(one: float, other: float) -> tuple[str, str]:
    """Two latencies as :func:`milliseconds` tells them, with more digits where they would look the same."""
    texts = milliseconds(one), milliseconds(other)
    return texts if texts[0] != texts[1] else apart(one, other, 3)


def decimals_apart(values: Sequence[float], limit: float, *, least: int) -> int:
    """How many decimals tell each of some numbers from a limit, and the limit as it is; at most eight."""
    for decimals in range(least, _MOST_DECIMALS):
        shown = round(limit, decimals)
        if abs(shown - limit) < _SAME and all(
            (abs(value - limit) < _SAME) == (round(value, decimals) == shown) for value in values
        ):
            return decimals
    return _MOST_DECIMALS


def percent(share: float | None, samples: int) -> str:
    """A share of so many samples, in percent without its sign; two decimals only where the samples carry them."""
    return fixed(None if share is None else share * 100.0, 2 if samples >= 2000 else 1)


def signed_points(share: float | None, samples: int) -> str:
    """A difference of two shares of the same samples, in percentage points: with its sign, as +0.3."""
    text = percent(share, samples)
    positive = share is not None and share > 0 and any(digit in text for digit in "123456789")
    return f"+{text}" if positive else text


def share_floor(share: float | None) -> str:
    """A share in percent that says 100 only where it is all of it: 99.96 % prints as 99.9."""
    if share is None or not math.isfinite(share):
        return DASH
    # The tenth of a thousandth keeps 0.983, which is not exactly that in binary, from printing as 98.2.
    return fixed(math.floor(share * 1000.0 + 1e-7) / 10.0, 1) if abs(share) < _LARGE else DASH


def plain(value: float | None, digits: int = 4) -> str:
    """A number without zeros at its end: 95, 99.9, 8, 0.5, 2 × 10⁻⁶.

    Args:
        value: The number.
        digits: Significant ones, at most; :func:`chosen` has all of them.
    """
    mantissa, space, power = significant(value, digits).partition(" ")
    return (mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa) + space + power


def chosen(value: float | None) -> str:
    """A number that somebody chose, as they would write it, whatever its digits: 8, 0.1234567, 1e-06."""
    return DASH if value is None else f"{value:.{CHOSEN}g}"


def confidence_percent(confidence: float) -> str:
    """A confidence in percent, without its sign, as it was asked for: nothing is sure to 100."""
    return f"{confidence * 100.0:.12g}" if 0.5 <= confidence < 1.0 else plain(confidence * 100.0)


def points_of(share: float, digits: int = CHOSEN) -> str:
    """A limit in percentage points, with its unit: 1 point, 0.5 points.

    Args:
        share: As 0.01.
        digits: Significant ones, at most: fewer where nobody chose it.
    """
    text = plain(share * 100.0, digits)
    return f"{text} point" if text == "1" else f"{text} points"


def integer(value: int | None) -> str:
    """An integer with thousands separators."""
    return DASH if value is None else f"{value:,}".replace("-", MINUS)


def counted(number: int | None, one: str, many: str = "") -> str:
    """A number of things with their name: 1 process, 5 processes.

    Args:
        number: How many; None: not known.
        one: Their name where there is one.
        many: Where there are none or several; empty: ``one`` with an s.
    """
    return f"{integer(number)} {one if number == 1 else many or one + 's'}"


def megabytes(size_bytes: int | None) -> str:
    """A size in MB (10⁶ bytes)."""
    if size_bytes is None:
        return DASH
    size = size_bytes / 1e6
    return significant(size, 2) if size < 1.0 else fixed(size, 1)


def aligned(texts: list[str]) -> list[str]:
    """Numbers of one column, padded on the right so that, set flush right, their decimal points stand in line."""
    digits = [_decimals(text) for text in texts]
    widest = max((count for count in digits if count is not None), default=0)
    return [
        text if count is None else text + _padding(count, widest) for text, count in zip(texts, digits, strict=True)
    ]


def _decimals(text: str) -> int | None:
    """Digits after the decimal point; None for what is no plain number."""
    number = text.rstrip(TIMES)
    if not number or not number[-1].isdigit() or "10" in number.partition(f"{TIMES} ")[2]:
        return None
    return len(number.partition(".")[2])


def _padding(count: int, widest: int) -> str:
    point = _PUNCTUATION_SPACE if count == 0 and widest > 0 else ""
    return point + _FIGURE_SPACE * (widest - count)


def _enough(one: float, other: float, least: int, form: str, *, both: bool = False) -> int:
    """Digits after the point, at least so many, that show which of two numbers is larger.

    ``both``: the other one is printed with them, too; else as it is.
    """
    for digits in range(least, _ALL_DIGITS):
        left = float(f"{one:.{digits}{form}}")
        right = float(f"{other:.{digits}{form}}") if both else other
        if _order(left, right) == _order(one, other):
            return digits
    return _ALL_DIGITS


def _order(one: float, other: float) -> int:
    """-1, 0 or 1; what binary fractions make of equal numbers is equal."""
    return 0 if math.isclose(one, other, rel_tol=_EQUAL, abs_tol=_EQUAL) else 1 if one > other else -1


def _magnitude(value: float, digits: int) -> int:
    """Exponent of ten after rounding: 9.996 to three digits is 10.0, one digit more before the point."""
    return int(f"{abs(value):.{digits - 1}e}".partition("e")[2])


def _scientific(value: float, digits: int) -> str:
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    return f"{mantissa.replace('-', MINUS)} {TIMES} 10{str(int(exponent)).translate(_SUPERSCRIPT)}"
