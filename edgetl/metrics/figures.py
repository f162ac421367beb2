"""Figures that are told beside a task's metric. No gate asks for them, and nothing is chosen by them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.metrics import expected_calibration_error, verification
from edgetl.runtime.decision import softmax

STRICT_FAR = 1e-3
"""Share of impostor pairs that the stricter of the two true accept rates may accept; the metric's is 1e-2."""
_BINS = 15


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure and what backs it."""

    name: str
    """In JSON."""
    title: str
    """For people."""
    value: float
    """0 to 1."""
    note: str
    """How it was found, and how far it can be believed."""


def strict_true_accepts(embeddings: NDArray[np.floating], identities: NDArray[Any]) -> Figure:
    """TAR at a FAR of 1e-3, with how many pairs of two people it rests on.

    Fewer than 1,000 such pairs cannot tell a rate of 1e-3 from 0: the figure is then that of accepting none of them,
    and says so.

    Args:
        embeddings: Float (n, d).
        identities: Integers (n,).

    Raises:
        DataError: A value is not finite, or there is no genuine or no impostor pair.
    """
    found = verification(embeddings, identities, STRICT_FAR)
    allowed = math.floor(STRICT_FAR * found.impostors + 1e-9)
    pairs = f"{found.genuine:,} pairs of one person and {found.impostors:,} of two"
    if allowed:
        note = f"{pairs}: at most {allowed:,} of these may be accepted, in steps of {100 / found.impostors:.2g}%"
    else:
        note = f"{pairs}, too few for this rate, which takes 1,000: none of these is accepted, a FAR of 0 among them"
    return Figure(name="tar-at-far-0.001", title="TAR at FAR 0.1%", value=found.tar, note=note)


def calibration_error(logits: NDArray[np.floating], labels: NDArray[Any]) -> Figure:
    """The expected calibration error of the softmax of logits; see :func:`expected_calibration_error`.

    Args:
        logits: Float (n, classes).
        labels: Integers (n,).

    Raises:
        DataError: Shapes or labels do not fit, or a value is not finite.
    """
    value = expected_calibration_error(softmax(logits), labels, _BINS)
    note = f"0 is best; {_BINS} bins of the larger probability over {len(logits):,} samples"
    return Figure(name="ece", title="expected calibration error", value=value, note=note)
