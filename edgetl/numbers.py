"""How numbers print: with the digits that mean something, a true minus, and a dash where there is no number."""

from __future__ import annotations

import math

DASH = "\u2013"
MINUS = "\u2212"
TIMES = "\u00d7"
_FIGURE_SPACE = "\u2007"
_PUNCTUATION_SPACE = "\u2008"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_LARGE = 1e9


def is_number(value: float | None) -> bool:
    """Whether there is a finite number to print."""
    return value is not None and math.isfinite(value)


def fixed(value: float | None, decimals: int) -> str:
    """A number with a fixed number of decimals and thousands separators; a dash for None, inf and nan."""
    if value is None or not math.isfinite(value):
        return DASH
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


def milliseconds(value: float | None) -> str:
    """A latency: 7.72, 0.51; below a tenth of a millisecond with the digits that tell two apart, 0.0127."""
    return significant(value) if value is not None and value < 0.1 else fixed(value, 2)


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


def plain(value: float | None) -> str:
    """A number that somebody chose, as they would write it: 95, 99.9, 8, 0.5, 2 × 10⁻⁶."""
    mantissa, space, power = significant(value, 4).partition(" ")
    return (mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa) + space + power


def confidence_percent(confidence: float) -> str:
    """A confidence in percent, without its sign, as it was asked for: nothing is sure to 100."""
    return f"{confidence * 100.0:.12g}" if 0.5 <= confidence < 1.0 else plain(confidence * 100.0)


def points_of(share: float) -> str:
    """A limit in percentage points, with its unit: 1 point, 0.5 points."""
    text = plain(share * 100.0)
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


def _magnitude(value: float, digits: int) -> int:
    """Exponent of ten after rounding: 9.996 to three digits is 10.0, one digit more before the point."""
    return int(f"{abs(value):.{digits - 1}e}".partition("e")[2])


def _scientific(value: float, digits: int) -> str:
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    return f"{mantissa.replace('-', MINUS)} {TIMES} 10{str(int(exponent)).translate(_SUPERSCRIPT)}"
