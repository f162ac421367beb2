"""Parity that stops as soon as it is decided: a test that may be looked at after every sample.

A fixed test decides once, after all samples. Looked at again and again, it would sooner or later find what is not
there. What is kept here instead is the capital of a gambler who bets against a hypothesis at fair odds: while the
hypothesis holds, nobody's capital becomes twentyfold in more than 5% of all cases, at whatever moment one looks
(Ville's inequality). Two gamblers play: one against "the drop is max_drop or more", one against "it is max_drop or
less".

For every sample, d is 1 where only the reference is right, -1 where only the engine is, else 0; the drop is its mean.
Betting the share λ turns capital K into K·(1 ± λ·(d - max_drop)), which is fair in the mean (Waudby-Smith and Ramdas
2024, Estimating means of bounded random variables by betting, Journal of the Royal Statistical Society B 86, 1-27). λ
is what would have earned most on the samples so far (Kelly 1956), a fraction of each kind of disagreement added. What
kind the disagreements are of, who bets on a small drop takes for balanced until many say otherwise, as those of a good
engine are, and who bets on a large one for mostly losses. λ never knows the sample that it is staked on, and any λ so
chosen keeps the error rates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import DataError
from edgetl.parity.paired import Outcome

_PRIOR = 0.25
"""Of each kind of disagreement, as if so many had been seen: nobody stakes all on the next sample being alike."""
_PASSING = (0.5, 20.0)
"""What share of the disagreements are losses, and as if so many had been seen, to who bets that the drop is small: an
engine that loses nothing has as many of one kind as of the other, and the first few that are seen differ by chance."""
_FAILING = (0.8, 4.0)
"""Likewise to who bets that the drop is large. Other values earn more against one engine and less against another: ten
with 0.8 save a tenth more of a drop of 3 points and take a fifth longer where all disagreements are losses."""
_STAKES = 64
"""Shares of the capital that are compared, as parts of the largest that cannot ruin."""
_AGAIN = 1.02
"""Stakes are worked out again after every disagreement, and where so many more samples were seen."""


@dataclass
class _Gambler:
    """Bets on one side of a mean."""

    payoffs: NDArray[np.float64]
    """Of each stake (rows) for d = 1, 0, -1 (columns): the logarithm of what capital is multiplied by."""
    log_capital: float = 0.0
    _stake: tuple[float, ...] = (0.0, 0.0, 0.0)

    def learn(self, counts: NDArray[np.float64]) -> None:
        """From now on stake what would have earned most so far."""
        self._stake = tuple(self.payoffs[int(np.argmax(self.payoffs @ counts))].tolist())

    def bet(self, outcome: int) -> None:
        """Take what a sample brings."""
        self.log_capital += self._stake[outcome]


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
        self._limit = math.log(1.0 / (1.0 - confidence))
        shares = np.arange(_STAKES) / _STAKES
        d = np.array([1.0, 0.0, -1.0])
        below = 1.0 - np.outer(shares / (1.0 - max_drop), d - max_drop)
        above = 1.0 + np.outer(shares / (1.0 + max_drop), d - max_drop)
        self._passing, self._failing = _Gambler(np.log(below)), _Gambler(np.log(above))
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
                self._passing.learn(self._expected(*_PASSING))
                self._failing.learn(self._expected(*_FAILING))
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

    def _expected(self, share: float, weight: float) -> NDArray[np.float64]:
        """The samples so far, their disagreements pulled towards a share of losses."""
        worse, same, better = self._counts.tolist()
        both = worse + better
        losses = both * (worse - _PRIOR + weight * share) / (both - 2 * _PRIOR + weight)
        return np.array([losses, same, both - losses])
