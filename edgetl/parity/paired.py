"""Two models on the same samples: what the samples on which only one of them is right say about their difference.

``worse`` counts samples that only the reference gets right, ``better`` those that only the engine does, ``n`` all.
The drop is the reference's accuracy minus the engine's, (worse - better) / n. Samples on which both are right or both
are wrong say nothing about its sign, but everything about its size: that is why pairs are compared, not two accuracies.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import DataError
from edgetl.parity.bounds import samples_needed, variance

Outcome = Literal["passed", "failed", "undecided"]
"""Of a comparison: the drop is shown to be small enough, or too large; or these samples show neither."""

POWER = 0.8
"""With which a test set should decide: of what it could show, it shows so much."""
_MOST_EXACT = 10_000
"""Decisions that changed, as many as distributions are worked out for exactly."""


def mcnemar(worse: int, better: int) -> float:
    """Two-sided p of the hypothesis that both are equally often right: the exact test.

    Given that a pair is discordant, either direction then has the probability 1/2 (McNemar 1947, Psychometrika 12,
    153-157, with the binomial distribution in the place of its normal approximation).
    """
    return min(1.0, 2.0 * min(mcnemar_worse(worse, better), mcnemar_worse(better, worse)))


def mcnemar_worse(worse: int, better: int) -> float:
    """One-sided p of the hypothesis that the engine is not worse: P(X ≥ worse), X binomial (worse + better, 1/2)."""
    if worse < 0 or better < 0:
        raise DataError(f"counts of pairs cannot be negative: {worse} and {better}")
    return _tail(worse + better, worse)


def worse_by_samples(losses: NDArray[np.integer]) -> float:
    """One-sided p of the hypothesis that the engine is not worse, where a sample has several decisions: exact.

    Decisions on one sample fall together: what changes one label of a picture changes others. Counted one by one they
    would be evidence that is not there, so each sample's balance keeps its size and only its sign is chance's (Fisher's
    randomization test of paired data; 1935, The Design of Experiments, section 21): P(Σ ±|lossᵢ| ≥ Σ lossᵢ), every
    sign with probability 1/2. With one decision per sample it is :func:`mcnemar_worse`.

    Args:
        losses: For each sample the decisions that only the reference gets right, less those that only the engine does,
            (n,).

    Returns:
        p; beyond 10,000 decisions in all by the normal approximation.
    """
    values = np.asarray(losses, dtype=np.int64)
    sizes, counts = np.unique(np.abs(values[values != 0]), return_counts=True)
    whole, observed = int((sizes * counts).sum()), int(values.sum())
    if not whole:
        return 1.0
    if whole > _MOST_EXACT:
        return 1.0 - NormalDist().cdf((observed - 1) / math.sqrt(float((np.square(sizes) * counts).sum())))
    chances = np.ones(1)  # of the sum of the positive ones being 0, 1, 2, ...
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        of_size = np.zeros(size * count + 1)
        of_size[::size] = _halves(count)
        chances = np.convolve(chances, of_size)
    return float(min(1.0, chances[(whole + observed + 1) // 2 :].sum()))


def _halves(total: int) -> NDArray[np.float64]:
    """P(X = 0), ..., P(X = total) of a binomial (total, 1/2)."""
    logs = [math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) for k in range(total + 1)]
    chances: NDArray[np.float64] = np.exp(np.array(logs) - total * math.log(2.0))
    return chances


def _tail(total: int, least: int) -> float:
    """P(X ≥ least) of a binomial (total, 1/2); by logarithms, so that thousands of pairs do not overflow."""
    if least <= 0:
        return 1.0
    return float(min(1.0, _halves(total)[least:].sum())) if least <= total else 0.0


def detectable_drop(worse: int, better: int, n: int, confidence: float, power: float = POWER) -> float:
    """The smallest drop that so many samples would probably have told from none.

    A drop δ is told from none where McNemar's statistic exceeds z: n·δ ≥ z_confidence·√(n·ψ) + z_power·√(n·(ψ - δ²)),
    ψ being the share of discordant pairs (Connor 1987, Biometrics 43, 207-211). Its estimate is that of these data,
    with one pair added, since none seen does not mean that there is none; it is at least δ, for every drop is a
    discordance.

    Args:
        worse: Pairs in which only the reference is right.
        better: Pairs in which only the engine is right.
        n: All pairs.
        confidence: One-sided.
        power: Probability of telling it.

    Returns:
        The drop as a share, at most 1.
    """
    normal = NormalDist()
    alpha, beta = normal.inv_cdf(confidence), normal.inv_cdf(power)
    seen = (worse + better + 1) / (n + 1)
    low, high = 0.0, 1.0
    for _ in range(60):
        drop = (low + high) / 2
        share = max(seen, drop)
        if n * drop >= alpha * math.sqrt(n * share) + beta * math.sqrt(max(n * (share - drop * drop), 0.0)):
            high = drop
        else:
            low = drop
    return high


def samples_to_decide(
    worse: int, better: int, n: int, max_drop: float, confidence: float, power: float = POWER
) -> int | None:
    """How many samples would probably decide whether the drop is below ``max_drop``, if it is what it seems here.

    The score statistic that :func:`edgetl.parity.bounds.upper_bound` goes by must be beyond z: |max_drop - drop| ≥
    (z_confidence·√V₀ + z_power·√V₁) / √N, where V₁ is the variance of a pair's difference as it seems here, ψ - drop²,
    and V₀ that of the hypothesis that is to be rejected, with a drop of ``max_drop`` (Nam 1997, Biometrics 53,
    1422-1430). By V₁ alone it would be too few where few pairs are discordant: they would decide in half of all cases.

    Args:
        worse: Pairs in which only the reference is right.
        better: Pairs in which only the engine is right.
        n: All pairs.
        max_drop: Largest accepted drop, as a share.
        confidence: One-sided.
        power: Probability of deciding.

    Returns:
        Samples in all, never fewer than :func:`samples_needed`; None where the drop seems to be ``max_drop`` itself, so
        that no number would decide.
    """
    normal = NormalDist()
    drop, share = (worse - better) / n, (worse + better + 1) / (n + 1)
    distance = abs(max_drop - drop)
    if distance < 1.0 / n:
        return None
    share = max(share, abs(drop))
    rejected = float(variance(max_drop, (share + drop) / 2.0, (share - drop) / 2.0, 1.0))
    width = normal.inv_cdf(confidence) * math.sqrt(max(rejected, 0.0))
    width += normal.inv_cdf(power) * math.sqrt(max(share - drop * drop, 0.0))
    return max(math.ceil((width / distance) ** 2), samples_needed(max_drop, confidence))


def holm(p_values: list[float]) -> list[float]:
    """P values of several tests, each raised: one below 5% is a false alarm in 5% of all cases at most.

    Holm 1979, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6, 65-70; it
    needs no independence, and slices of one test set have none.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
