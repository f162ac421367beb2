"""What is seen at tensors of an engine, of what its graph promises and of the float graph, on the golden inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgetl.backends import inside
from edgetl.diagnosis.layers import FAITHFUL_DB
from edgetl.parity.numeric import MOST_DB, sqnr_db
from edgetl.runtime.bundle import Bundle
from edgetl.runtime.golden import Golden

if TYPE_CHECKING:
    from edgetl.backends._inside_onnx import InsideOnnx

OWN_ERROR_DB = 30.0
"""What an engine's own error may be, where its graph is quantized: steps of eight bits that are rounded to the other
side. Where quantization alone costs more, that is what it may be."""
_APART_DB = 10.0
"""By which the outputs of an engine that is looked into must lie nearer to the engine's own than those to its graph's:
else it is another engine that is looked at."""


@dataclass(kw_only=True)
class Sums:
    """Powers of what was seen at a tensor, summed over the golden inputs."""

    exact: float = 0.0
    promise: float = 0.0
    promised: float = 0.0
    """Power of the promise minus the float graph."""
    own: float = 0.0
    """Of the engine minus the promise."""
    total: float = 0.0
    """Of the engine minus the float graph."""
    product: float = 0.0
    """Of the float graph and the engine."""
    peak: float = 0.0
    """The largest size of a value in the float graph."""

    def add(self, exact: NDArray[np.float64], promise: NDArray[np.float64], engine: NDArray[np.float64]) -> None:
        """Take in the tensor of one input, as each of the three has it; they have one shape."""
        exact, promise, engine = (array.ravel() for array in (exact, promise, engine))
        with np.errstate(invalid="ignore", over="ignore"):  # of infinite values
            self.exact += float(exact @ exact)
            self.promise += float(promise @ promise)
            self.promised += float(np.square(promise - exact).sum())
            self.own += float(np.square(engine - promise).sum())
            self.total += float(np.square(engine - exact).sum())
            self.product += float(exact @ engine)
        self.peak = max(self.peak, float(np.abs(exact).max(initial=0.0)))

    @property
    def alike(self) -> float:
        """Correlation of the engine's values with the float graph's."""
        engine = self.total + 2.0 * self.product - self.exact
        powers = self.exact * engine
        return self.product / math.sqrt(powers) if math.isfinite(powers) and powers > 0 else 0.0

    @property
    def finite(self) -> bool:
        """Whether the promise and the engine have neither NaN nor infinite values there."""
        return math.isfinite(self.promised) and math.isfinite(self.total)

    @property
    def gain(self) -> float:
        """Slope of the engine's values over the float graph's."""
        return self.product / self.exact if self.exact > 0 and math.isfinite(self.product) else 1.0


class Meter:
    """Looks at tensors of an engine, of its promise and of the float graph on all golden inputs, and remembers them.

    Args:
        exact: The float graph.
        opened: The engine, and what its graph promises.
        bundle: Whose manifest tells of the input.
        golden: The bundle's.

    Attributes:
        output: Name of the engine's first output.
        engine_db: SQNR of it against its promise.
        sums: Of the tensors that were looked at.
        altering: Tensors that made another engine of it when they were put out.
        mending: Tensors that made the engine keep its promise when they were put out.
    """

    def __init__(self, exact: InsideOnnx, opened: inside.Inside, bundle: Bundle, golden: Golden) -> None:
        self._exact, self._opened = exact, opened
        spec = bundle.manifest["inputs"][0]
        smallest = int(spec.get("batch", [1])[0])
        self._feeds = [{spec["name"]: np.repeat(one[None], smallest, axis=0)} for one in golden.inputs]
        self.output = opened.places[-1].name
        self.sums: dict[str, Sums] = {}
        self.altering: list[str] = []
        self.mending: list[str] = []
        self._usual: NDArray[np.float64] | None = None
        self._usual = self._see([self.output])
        self.engine_db = ratio_db(self.sums[self.output].promise, self.sums[self.output].own)

    def own(self, names: Sequence[str]) -> dict[str, float]:
        """SQNR of the engine against its promise."""
        self._make_sure(names)
        return {name: ratio_db(self.sums[name].promise, self.sums[name].own) for name in names}

    def promised(self, names: Sequence[str]) -> dict[str, float]:
        """SQNR of the promise against the float graph."""
        self._make_sure(names)
        return {name: ratio_db(self.sums[name].exact, self.sums[name].promised) for name in names}

    def _make_sure(self, names: Sequence[str]) -> None:
        new = [name for name in names if name not in self.sums]
        if not new:
            return
        outputs = self._see(new)
        assert self._usual is not None  # of the first look
        apart = sqnr_db(self._usual, outputs)
        if apart < min(FAITHFUL_DB, self.engine_db + _APART_DB):
            self.altering += new

    def _see(self, names: Sequence[str]) -> NDArray[np.float64]:
        """Sum up what is seen at some tensors.

        Returns:
            The engine's first output for all golden inputs, (n, ...).
        """
        sums = {name: Sums() for name in names}
        outputs, promises = [], []
        with (
            self._exact.promise(names) as exact,
            self._opened.promise(names) as promise,
            self._opened.engine(names) as engine,
        ):
            for feeds in self._feeds:
                seen = [runner.run(feeds) for runner in (exact, promise, engine)]
                for name in names:
                    sums[name].add(*(found[name] for found in seen))
                outputs.append(inside.plain(engine.outputs[:1]))
                promises.append(inside.plain(promise.outputs[:1]))
        self.sums.update(sums)
        found = np.concatenate(outputs)
        if self._usual is not None:
            nearer = sqnr_db(np.concatenate(promises), found)
            if nearer >= min(FAITHFUL_DB, self.engine_db + _APART_DB) and self.engine_db < OWN_ERROR_DB:
                self.mending += names
        return found


def ratio_db(signal: float, noise: float) -> float:
    """Signal to noise of two powers in dB, within ±:data:`edgetl.parity.numeric.MOST_DB`."""
    if not math.isfinite(noise) or not math.isfinite(signal):
        return -MOST_DB
    if noise <= signal * 1e-20:
        return MOST_DB
    return 10.0 * math.log10(signal / noise) if signal > 0 else -MOST_DB
