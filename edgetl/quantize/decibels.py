"""Signal to noise in decibels."""

from __future__ import annotations

import math

import numpy as np

NO_NOISE_DB = 200.0
"""What is reported where nothing is lost at all."""


def decibel(signal: float, noise: float) -> float:
    """Signal to noise of two powers in dB; :data:`NO_NOISE_DB` at most, NaN where a power overflowed."""
    if not (math.isfinite(signal) and math.isfinite(noise)):
        return math.nan
    if noise <= 0.0:
        return NO_NOISE_DB
    return float(min(NO_NOISE_DB, 10.0 * np.log10(max(signal, 1e-300) / noise)))


def worst_first(decibels: float) -> tuple[bool, float]:
    """What losses are sorted by: those without a figure come last."""
    return math.isnan(decibels), decibels
