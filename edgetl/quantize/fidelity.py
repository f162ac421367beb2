"""How near a quantized graph's output is to the float graph's: what every search and every correction is judged by.

The squared errors of all samples together say how far off the worst are: a few samples that reach further than all
others decide them, and ranges that these samples fill are too wide for the rest. The mean of the samples' own decibels
says how far off the typical sample is, and hardly notices one that is lost. Neither alone is what a user wants, so that
what is judged is the mean of the two.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgetl.quantize.decibels import decibel
from edgetl.runtime.runner import OpenRunner

if TYPE_CHECKING:
    import onnx_ir as ir

Batches = Sequence[Mapping[str, NDArray[np.generic]]]
_ENOUGH_TO_TEST = 3
"""Samples from which on a change has to serve them one by one, and not in sum alone."""
_NOTHING = 1e-6
"""Of the samples' mean signal: what of a sample's signal and noise nobody looks at. 8 bits leave some 1e-4."""
_CLEARLY = 1.7
"""Standard errors: 95% one-sided, of Student's t at some 20 samples."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Fidelity:
    """Of a quantized graph's first output, on some samples."""

    signal: NDArray[np.float64]
    """Sum of squares of the float graph's output of each sample, shape (n,)."""
    noise: NDArray[np.float64]
    """Sum of squares of its difference to the quantized graph's, shape (n,)."""

    @property
    def total_db(self) -> float:
        """Signal to noise of all samples together, in dB."""
        return decibel(float(self.signal.sum()), float(self.noise.sum()))

    @cached_property
    def sample_db(self) -> NDArray[np.float64]:
        """Signal to noise of each sample, in dB, shape (n,), a millionth of the mean signal added to both.

        No sample whose output is next to nothing, as an empty mask's, then outweighs all others.
        """
        least = _NOTHING * float(self.signal.mean())
        pairs = zip((self.signal + least).tolist(), (self.noise + least).tolist(), strict=True)
        return np.array([decibel(signal, noise) for signal, noise in pairs])

    @property
    def typical_db(self) -> float:
        """Mean of the samples' own signal to noise, in dB."""
        return float(self.sample_db.mean())

    @property
    def db(self) -> float:
        """The mean of the two, in dB: what is judged. NaN where a power overflowed."""
        return (self.total_db + self.typical_db) / 2

    def clearly_above(self, other: Fidelity) -> bool:
        """Whether it is more, and, from three samples on, more on a sample as such.

        A few samples can decide a mean: on 21 reviews a correction took the sum from 28.8 to 32.5 dB that cost 2 dB on
        others, with twice the noise on the median review. Hence the one-sided t-test of the samples' differences in dB.
        """
        if not self.db > other.db:  # NaN is above nothing
            return False
        if len(self.noise) < _ENOUGH_TO_TEST:
            return True
        gains = self.sample_db - other.sample_db
        error = float(gains.std(ddof=1)) / len(gains) ** 0.5
        return bool(gains.mean() > _CLEARLY * error)


class FloatOutput:
    """The first output of the float graph for some samples, which quantized graphs are held against."""

    def __init__(self, model: ir.Model, batches: Batches, *, open_runner: OpenRunner) -> None:
        """Compute it.

        Args:
            model: The float graph, with the inputs that the batches feed; not changed.
            batches: Feeds of any batch sizes.
            open_runner: Opens an ONNX file.
        """
        self._batches = batches
        self._open_runner = open_runner
        self._wanted = self._outputs(model)

    def fidelity(self, model: ir.Model) -> Fidelity:
        """Of the quantized graph, a changed copy of the float one."""
        found = self._outputs(model)
        parts = [np.square(one - other) for one, other in zip(self._wanted, found, strict=True)]
        return Fidelity(signal=_sums([np.square(array) for array in self._wanted]), noise=_sums(parts))

    def _outputs(self, model: ir.Model) -> list[NDArray[np.float64]]:
        import onnx_ir as ir

        name = str(model.graph.outputs[0].name)
        with tempfile.TemporaryDirectory(prefix="edgetl-") as folder:
            path = Path(folder) / "model.onnx"
            ir.save(model, path)
            with self._open_runner(path) as runner:
                return [np.asarray(runner.run(feeds)[name], dtype=np.float64) for feeds in self._batches]


def _sums(batches: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Sample by sample, shape (n,), of batches of shape (b, ...)."""
    return np.concatenate([array.reshape(len(array), -1).sum(axis=1) for array in batches])
