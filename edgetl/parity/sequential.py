"""Parity that stops as soon as it is decided: a test that may be looked at after every sample.

A fixed test decides once, after all samples. Looked at again and again, it would sooner or later find what is not
there. What is kept here instead is the capital of a gambler who bets against a hypothesis at fair odds: while the
hypothesis holds, nobody's capital becomes twentyfold in more than 5% of all cases, at whatever moment one looks
(Ville's inequality). Two gamblers play: one against "the drop is max_drop or more", one against "it is max_drop or
less".

For every sample, d is 1 where only the reference is right, -1 where only the engine is, else 0; the drop is its mean.
Betting the share λ turns capital K into K·(1 ± λ·(d - max_drop)), which is fair in the mean (Waudby-Smith and Ramdas
2024, Estimating means of bounded random variables by betting, Journal of the Royal Statistical Society B 86, 1-27). λ
is what would have earned most on the samples so far (Kelly 1956), a fraction of each kind of disagreement added. How
many of the disagreements are losses shows last, and each gambler starts from what his side says of the drop: who bets
that it is small expects an engine as good as the reference, who bets that it is large one several times as bad as is
allowed. Both count it in drops, not in losses: among many disagreements a small excess of losses is a large drop. λ
never knows the sample that it is staked on, and any λ so chosen keeps the error rates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import DataError
from edgetl.parity.paired import Outcome

_PRIOR = 0.2
"""Of each kind of disagreement, as if so many had been seen: nobody stakes all on the next sample being alike."""
_EQUAL = 1 / 3
"""Who bets that the drop is small takes it for none, with this standard deviation, as a part of ``max_drop``."""
_EQUAL_AT_LEAST = 20.0
"""As if so many disagreements had been seen, half of them losses: the first few that are seen differ by chance."""
_WORSE = 4.0
"""Who bets that the drop is large takes it for so many times ``max_drop``."""
_WORSE_AT_MOST = 0.9
"""Share of losses that he expects, where so large a drop would need more than that."""
_WORSE_AS = 4.0
"""As if so many disagreements had been seen to be like that."""
_STAKES = 64
"""Shares of the capital that are compared, as parts of the largest that cannot ruin."""
_AGAIN = 1.02
"""Stakes are worked out again after every disagreement, and where so many more samples were seen."""
_A_LITTLE_MORE = 1 + 1e-9
"""Than what just reaches the limit, which rounding must not miss."""


class _Gambler:
    """Bets on one side of a mean."""

    def __init__(self, gains: NDArray[np.float64], goal: int, limit: float) -> None:
        """Start with a capital of 1.

        Args:
            gains: (3,) of d = 1, 0, -1: what a stake of the whole capital gains or loses.
            goal: The column of the outcome by which the capital grows to the limit. Never more is staked than makes
                it reach the limit so: what is above is of no use to anybody.
            limit: Logarithm of the capital at which the game ends.
        """
        self.log_capital = 0.0
        self._stakes = np.arange(_STAKES) / _STAKES / max(1e-300, -float(gains.min()))
        self._payoffs = np.log1p(np.outer(self._stakes, gains))
        self._gains: tuple[float, ...] = tuple(gains.tolist())
        self._goal, self._limit, self._stake = self._gains[goal], limit, 0.0

    def learn(self, counts: NDArray[np.float64]) -> None:
        """From now on stake what would have earned most on so many outcomes of each kind."""
        self._stake = float(self._stakes[int(np.argmax(self._payoffs @ counts))])

    def bet(self, outcome: int) -> None:
        """Take what a sample brings."""
        enough = _A_LITTLE_MORE * math.expm1(self._limit - self.log_capital) / self._goal
        self.log_capital += math.log1p(min(self._stake, enough) * self._gains[outcome])


class Sequential:
    """Whether a drop is below a bound, asked after every sample.

    Samples must come in random order: sorted ones are no sample of what is to come.
    """

    def __init__(self, max_drop: float, confidence: float) -> None:
        """Start with no samples.

        Args:
            max_drop: Largest accepted drop, as a share between 0 and 1.
            confidence: Of either answer, as 0.95: a drop of ``max_drop`` or more passes in at most 1 - confidence of
                all cases, and one of ``max_drop`` or less fails in at most as many.

        Raises:
            DataError: One of them is outside its range.
        """
        if not 0.0 < max_drop < 1.0 or not 0.5 <= confidence < 1.0:
            raise DataError(f"a sequential test needs 0 < max_drop < 1 and a confidence, not {max_drop}, {confidence}")
        self.outcome: Outcome = "undecided"
        self.samples = 0
        """Looked at; none after the decision is."""
        d = np.array([1.0, 0.0, -1.0])
        limit = math.log(1.0 / (1.0 - confidence))
        self._max_drop, self._limit = max_drop, limit
        self._passing = _Gambler(max_drop - d, goal=1, limit=limit)
        self._failing = _Gambler(d - max_drop, goal=0, limit=limit)
        self._counts = np.array([_PRIOR, 0.0, _PRIOR])
        self._learn_at = 0.0

    @property
    def e_values(self) -> tuple[float, float]:
        """The capital of who bets that the drop is below ``max_drop``, and of who bets that it is above."""
        return math.exp(self._passing.log_capital), math.exp(self._failing.log_capital)

    def add(self, differences: Iterable[int]) -> Outcome:
        """Look at more samples, until it is decided.

        Args:
            differences: For each sample 1 where only the reference is right, -1 where only the engine is, else 0.

        Returns:
            The outcome so far.

        Raises:
            DataError: Another number.
        """
        for difference in differences:
            if self.outcome != "undecided":
                break
            if difference not in (-1, 0, 1):
                raise DataError(f"a sample's difference is 1, 0 or -1, not {difference}")
            if self.samples >= self._learn_at:
                self._learn()
                self._learn_at = _AGAIN * self.samples
            column = 1 - int(difference)
            self._passing.bet(column)
            self._failing.bet(column)
            self._counts[column] += 1.0
            self.samples += 1
            if difference:
                self._learn_at = 0.0
            if self._passing.log_capital >= self._limit:
                self.outcome = "passed"
            elif self._failing.log_capital >= self._limit:
                self.outcome = "failed"
        return self.outcome

    def _learn(self) -> None:
        worse, same, better = self._counts.tolist()
        both = worse + better
        # Where a share v of the samples disagrees, a drop makes losses of the share (1 + drop / v) / 2 of these.
        excess = self._max_drop * max(1, self.samples) / both
        equal = max(_EQUAL_AT_LEAST, max(_EQUAL * excess, 1e-100) ** -2)  # no overflow
        large = min(_WORSE_AT_MOST, (1.0 + _WORSE * excess) / 2)
        for gambler, share, weight in ((self._passing, 0.5, equal), (self._failing, large, _WORSE_AS)):
            losses = both * (worse - _PRIOR + weight * share) / (both - 2 * _PRIOR + weight)
            gambler.learn(np.array([losses, same, both - losses]))
