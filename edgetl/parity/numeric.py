"""Outputs as numbers: how far an engine's lie from the reference's, and how far they may."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.specs import Precision

MOST_DB = 200.0
"""Of outputs that are the same: JSON has no infinity."""


@dataclass(frozen=True, kw_only=True)
class Explained:
    """A cause, and how well it explains what an engine answers."""

    said: str
    """A clause."""
    db: float
    """SQNR of the answers with the cause taken into account."""


@dataclass(frozen=True, kw_only=True)
class Numeric:
    """The difference of two arrays of outputs."""

    max_abs_error: float
    """Largest absolute difference of an output."""
    mean_abs_error: float
    """Mean absolute difference."""
    cosine: float
    """Mean over the samples of the cosine between both output vectors; of two vectors of zeros, 1."""
    sqnr_db: float
    """Signal-to-quantization-noise ratio, in dB; at most 200."""


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """What the numbers must keep to; None: nothing is asked of it."""

    max_abs_error: float | None = None
    mean_abs_error: float | None = None
    cosine: float | None = None
    sqnr_db: float | None = None

    def missed(self, found: Numeric) -> tuple[str, ...]:
        """The limits that are missed, in words; empty where there is none.

        Args:
            found: Of an engine.
        """
        said = []
        for name, limit in asdict(self).items():
            value = getattr(found, name)
            if limit is None:
                continue
            at_least = name in ("cosine", "sqnr_db")
            if value < limit if at_least else value > limit:
                unit = " dB" if name == "sqnr_db" else ""
                bound = "at least" if at_least else "at most"
                said.append(f"{_SPOKEN[name]} is {value:.4g}{unit}, {bound} {limit:g}{unit} is asked for")
        return tuple(said)


_SPOKEN = {
    "max_abs_error": "the largest error",
    "mean_abs_error": "the mean error",
    "cosine": "the cosine",
    "sqnr_db": "SQNR",
}

TOLERANCES: Mapping[Precision, Tolerance] = MappingProxyType(
    {"fp32": Tolerance(sqnr_db=60.0), "fp16": Tolerance(sqnr_db=30.0), "bf16": Tolerance(sqnr_db=15.0)}
)
"""Where the user gives none. Reordered float32 sums of a deep network keep 100 dB or more, float16 40 to 60, bfloat16,
with its 8 bits, 18 dB less: what is below these is another network, not another rounding. int8 has no limit of its own:
there a network may keep every decision at 15 dB, or lose some at 25, and decisions are what is tested."""


def numeric(reference: NDArray[Any], outputs: NDArray[Any]) -> Numeric:
    """Compare outputs as numbers.

    Args:
        reference: Finite, shape (n, k).
        outputs: Of the same shape. NaN or infinite values make every figure the worst that JSON can hold.
    """
    expected, got = reference.astype(np.float64), outputs.astype(np.float64)
    if not np.isfinite(got).all():
        worst = float(np.finfo(np.float64).max)
        return Numeric(max_abs_error=worst, mean_abs_error=worst, cosine=-1.0, sqnr_db=-MOST_DB)
    difference = np.abs(got - expected)
    return Numeric(
        max_abs_error=float(difference.max(initial=0.0)),
        mean_abs_error=float(difference.mean()) if difference.size else 0.0,
        cosine=float(_cosines(expected, got).mean()) if len(expected) else 1.0,
        sqnr_db=sqnr_db(expected, got),
    )


def sqnr_db(expected: NDArray[np.floating], got: NDArray[np.floating]) -> float:
    """10 · log10 of the power of the reference over the power of the difference; at most 200."""
    noise = float(np.square(got.astype(np.float64) - expected).sum())
    signal = float(np.square(expected.astype(np.float64)).sum())
    if noise <= signal * 1e-20:
        return MOST_DB
    # By logarithms: the ratio of a tiny signal to a large difference is 0 as a number.
    return max(-MOST_DB, 10.0 * (math.log10(signal) - math.log10(noise))) if signal > 0 else -MOST_DB


def _cosines(expected: NDArray[np.float64], got: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each sample, (n,)."""
    first, second = (_unit_scale(array.reshape(len(array), -1)) for array in (expected, got))
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    products = (first * second).sum(1)
    both_zero = ~first.any(1) & ~second.any(1)
    cosines = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    return np.where(both_zero, 1.0, cosines)


def _unit_scale(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows whose largest absolute value is 1, so that no square vanishes or overflows; zeros stay."""
    largest = np.abs(rows).max(1, keepdims=True, initial=0.0)
    return rows / np.where(largest > 0, largest, 1.0)
