"""An engine against the reference: on decisions, on numbers, and with a stated confidence."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import DataError, ParityError


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a comparison on labelled samples came to."""

    samples: int
    top1_reference: float
    """Share of samples that the reference names rightly."""
    top1: float
    """Share that the engine names rightly."""
    agreement: float
    """Share on which both name the same class."""
    worse: int
    """Samples that only the reference names rightly."""
    better: int
    """Samples that only the engine names rightly."""
    drop: float
    """top1_reference - top1."""
    drop_upper: float
    """Upper confidence bound of the drop, one-sided, paired."""
    confidence: float
    max_drop: float
    max_abs_error: float
    """Largest absolute difference of an output."""
    mean_abs_error: float
    """Mean absolute difference of the outputs."""
    sqnr_db: float
    """Signal-to-quantization-noise ratio of the outputs, in dB; 200 where they are the same."""
    passed: bool
    statement: str
    """The finding as a sentence."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def compare(
    reference: NDArray[np.floating],
    outputs: NDArray[np.floating],
    labels: NDArray[np.integer],
    *,
    max_drop: float,
    confidence: float,
) -> Comparison:
    """Compare an engine's outputs with the reference's, sample by sample.

    The engine passes where the upper confidence bound of its top-1 drop is at most ``max_drop``: a test of
    non-inferiority. Not seeing a difference is not enough; there must be samples enough to rule one out.

    Args:
        reference: The PyTorch model's logits, shape (n, classes).
        outputs: The engine's, of the same shape and order.
        labels: The right class of each sample, shape (n,).
        max_drop: Largest accepted drop, as a share.
        confidence: Of the one-sided bound.

    Raises:
        DataError: There is no sample, or the shapes differ.
        ParityError: The reference itself returned NaN or infinite values: nothing can be compared with it.
    """
    if reference.shape != outputs.shape or len(reference) != len(labels):
        raise DataError(
            f"the reference has outputs {list(reference.shape)}, the engine {list(outputs.shape)}, "
            f"for {len(labels)} labels"
        )
    if not len(labels):
        raise DataError("parity needs at least one test sample")
    expected, got = reference.astype(np.float64), outputs.astype(np.float64)
    if not np.isfinite(expected).all():
        raise ParityError(
            "the PyTorch model itself returns NaN or infinite values",
            hint="a lower finetune.phases lr, or other weights",
        )
    finite = bool(np.isfinite(got).all())
    named, expected_named = got.argmax(1), expected.argmax(1)
    right, expected_right = (named == labels) & np.isfinite(got).all(1), expected_named == labels
    worse, better = int((expected_right & ~right).sum()), int((right & ~expected_right).sum())
    n = len(labels)
    upper = paired_upper_bound(worse, better, n, confidence)
    difference = np.abs(got - expected) if finite else np.full_like(expected, np.inf)
    passed = finite and upper <= max_drop
    return Comparison(
        samples=n,
        top1_reference=float(expected_right.mean()),
        top1=float(right.mean()),
        agreement=float((named == expected_named).mean()),
        worse=worse,
        better=better,
        drop=(worse - better) / n,
        drop_upper=upper,
        confidence=confidence,
        max_drop=max_drop,
        max_abs_error=_finite(float(difference.max())),
        mean_abs_error=_finite(float(difference.mean())),
        sqnr_db=sqnr_db(expected, got) if finite else -200.0,
        passed=passed,
        statement=_statement(worse - better, n, upper, max_drop, confidence, finite=finite, passed=passed),
    )


def paired_upper_bound(worse: int, better: int, n: int, confidence: float) -> float:
    """Upper bound of a difference of two paired proportions: Tango's score interval.

    Tango, T. (1998), Equivalence test and confidence interval for the difference in proportions for the paired-sample
    design, Statistics in Medicine 17, 891-908. It holds its level for few discordant pairs, where Wald's does not.

    Args:
        worse: Pairs in which only the first is right.
        better: Pairs in which only the second is right.
        n: All pairs.
        confidence: One-sided, as 0.95.

    Returns:
        The largest difference (first minus second) that the data do not reject.
    """
    z = NormalDist().inv_cdf(confidence)
    low, high = (worse - better) / n, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _score(middle, worse, better, n) > -z:
            low = middle
        else:
            high = middle
    return high


def samples_needed(max_drop: float, confidence: float) -> int:
    """How many samples show a drop below ``max_drop`` where engine and reference never disagree.

    The bound without discordant pairs is z² / (n + z²).
    """
    z = NormalDist().inv_cdf(confidence)
    return math.ceil(z * z * (1.0 - max_drop) / max_drop)


def sqnr_db(expected: NDArray[np.floating], got: NDArray[np.floating]) -> float:
    """10 · log10 of the power of the reference over the power of the difference; at most 200."""
    noise = float(np.square(got.astype(np.float64) - expected).sum())
    signal = float(np.square(expected.astype(np.float64)).sum())
    if noise <= signal * 1e-20:
        return 200.0
    return 10.0 * math.log10(signal / noise) if signal > 0 else -200.0


def _score(delta: float, worse: int, better: int, n: int) -> float:
    """The score statistic of the hypothesis that the difference is ``delta``."""
    a = 2.0 * n
    b = -worse - better + (2.0 * n - worse + better) * delta
    c = -better * delta * (1.0 - delta)
    only_second = (math.sqrt(max(b * b - 4.0 * a * c, 0.0)) - b) / (2.0 * a)
    variance = n * (2.0 * only_second + delta * (1.0 - delta))
    if variance <= 0.0:
        return 0.0
    return (worse - better - n * delta) / math.sqrt(variance)


def _statement(
    lost: int, n: int, upper: float, max_drop: float, confidence: float, *, finite: bool, passed: bool
) -> str:
    if not finite:
        return "the engine returned NaN or infinite values"
    share, sure = f"{100 * upper:.2f} points", f"{100 * confidence:g}% confidence"
    if passed:
        return f"with {sure} top-1 drops by less than {share} (allowed {100 * max_drop:.2f})"
    needed = samples_needed(max_drop, confidence)
    if n < needed:
        return (
            f"{n} test samples cannot show a drop below {100 * max_drop:.2f} points with {sure}: "
            f"at least {needed} are needed"
        )
    return (
        f"top-1 drops by {100 * lost / n:.2f} points; with {sure} the drop may be up to {share}, "
        f"and {100 * max_drop:.2f} are allowed"
    )


def _finite(value: float) -> float:
    """JSON has no infinity."""
    return value if math.isfinite(value) else float(np.finfo(np.float64).max)
