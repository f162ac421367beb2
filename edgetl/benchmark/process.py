"""A fresh process that opens one thing and times it on command."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from edgetl.benchmark.child import Child, spawned
from edgetl.benchmark.feeds import Feeds
from edgetl.benchmark.roofline import Layer
from edgetl.benchmark.things import Thing
from edgetl.benchmark.usage import Use

OPEN_S = 1800.0
"""So long an engine may take to be loaded and make its first inference, since some are compiled then; and no longer."""
ANSWER_S, TIMES_SLOWEST = 120.0, 50.0
"""So long, and besides so many times its slowest calls so far, an engine may take for a block, or to be looked into."""
_LOOKED_INTO = 200
"""Calls that looking into an engine counts as: it is profiled, in up to 76."""
_SHORT_SPINS = {"GOMP_SPINCOUNT": "30000", "KMP_BLOCKTIME": "1"}
"""OpenMP's threads, PyTorch's for one, wait awake for about a millisecond after a call. By default it is up to 17 (GNU)
and 200 (Intel), in which they take the processor from whatever has the next turn. Where the user chose, that stays."""


@dataclass(frozen=True, kw_only=True)
class ColdStart:
    """What happens before the second inference of a process, each part in milliseconds. Files are in the page cache."""

    start_ms: float
    """Until Python runs and edgetl's own modules are there."""
    import_ms: float
    """Until the engine's library is imported."""
    load_ms: float
    """Until the engine is loaded."""
    first_ms: float
    """The first inference."""

    def to_json(self) -> dict[str, float]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """Calls in a row."""

    starts_ns: NDArray[np.int64]
    """(n,): when each began, on the system's monotonic clock, which all processes share."""
    times_ns: NDArray[np.int64]
    """(n,): how long each took."""
    use: Use = field(default_factory=dict)
    """What the operating system says of the process meanwhile; empty where it was not asked."""
    engine_ms: float | None = None
    """What the engine's own clock says of the last call; None where it has none."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """What tells whether a measurement is plausible."""

    depends_on_input: bool | None
    """Whether outputs change with inputs; None where the engine took no other inputs than the timed ones, or
    its outputs are empty."""
    multiply_adds: dict[str, int]
    """Precision → multiply-adds of one inference; empty where the engine does not tell."""
    layers: tuple[Layer, ...] = ()
    """Nodes of the engine's optimised graph, with what each takes; empty where the engine does not tell."""
    finite: bool = True
    """Whether any output is a number on the timed inputs, neither NaN nor infinite; also where they are empty."""
    reason: str = ""
    """Why ``layers`` is empty, where that is an engine's failure."""


class Process(Child):
    """A living process with one opened thing; made by :func:`started`."""

    def __init__(self, thing: Thing, child: subprocess.Popen[bytes], words: IO[bytes]) -> None:
        super().__init__(thing.name, child, words)
        self._thing = thing
        self.cold: ColdStart
        """How long it took to open."""
        self.inputs: tuple[str, ...] = ()
        """What it is fed with, as "input float32[1, 3, 224, 224]"."""
        self.timer_ns = 0
        """What timing nothing takes there."""
        self._slowest_s = 0.0

    def open(self, feeds: Feeds, *, threads: int | None, began: float) -> None:
        """Open the thing, and make the first inference.

        Args:
            feeds: What it is fed with.
            threads: For the engine.
            began: When the process was started, by :func:`time.perf_counter`.

        Raises:
            EdgetlError: What opening it in this process would raise.
        """
        self.read(OPEN_S)
        start_ms = 1e3 * (time.perf_counter() - began)
        found, _ = self._ask(OPEN_S, do="open", thing=self._thing.to_json(), feeds=feeds.to_json(), threads=threads)
        parts = {name: float(found[name]) for name in ("import_ms", "load_ms", "first_ms")}
        self.cold = ColdStart(start_ms=start_ms, **parts)
        self.inputs, self.timer_ns = tuple(found["inputs"]), int(found["timer_ns"])
        self._slowest_s = self.cold.first_ms / 1e3

    def block(self, calls: int) -> Block:
        """Time some calls in a row.

        Raises:
            EdgetlError: The engine failed, or its process died.
        """
        found, payload = self._ask(self._patience_s(calls), do="block", calls=calls)
        starts, times = np.frombuffer(payload, dtype=np.int64).reshape(2, calls)
        self._slowest_s = max(self._slowest_s, int(times.max(initial=0)) / 1e9)
        return Block(starts_ns=starts, times_ns=times, use=found["use"], engine_ms=found["engine_ms"])

    def check(self) -> Check:
        """Find out what tells whether a measurement is plausible; not to be called while others are timed.

        Raises:
            EdgetlError: The engine failed, or its process died.
        """
        found, _ = self._ask(self._patience_s(_LOOKED_INTO), do="check")
        return Check(**{**found, "layers": tuple(Layer(**each) for each in found["layers"])})

    def _patience_s(self, calls: int) -> float:
        """How long some calls may take before the engine is taken to hang."""
        return ANSWER_S + TIMES_SLOWEST * calls * self._slowest_s

    def _ask(self, patience_s: float, **command: Any) -> tuple[dict[str, Any], bytes]:
        self.send(**command)
        return self.read(patience_s)


@contextmanager
def started(thing: Thing, feeds: Feeds, *, threads: int | None) -> Iterator[Process]:
    """A fresh process with one opened thing, which is gone when the context is left, however that happens.

    The context must be entered and left in the same thread: the kernel ends the process with the thread that started
    it.

    Args:
        thing: To open.
        feeds: What it is fed with.
        threads: For the engine; None: as many as it takes by itself.

    Raises:
        EdgetlError: What opening it in this process would raise; :class:`edgetl.errors.MeasurementError` where the
            process died.
    """
    began = time.perf_counter()
    with spawned(_spins()) as (child, words):
        process = Process(thing, child, words)
        at_once = True
        try:
            process.open(feeds, threads=threads, began=began)
            yield process
            at_once = False
        finally:
            process.end(at_once=at_once)


def _spins() -> dict[str, str]:
    """What keeps OpenMP's threads from spinning for long; nothing where the user chose."""
    chosen = any(name in os.environ for name in ("OMP_WAIT_POLICY", *_SHORT_SPINS))
    return {} if chosen else _SHORT_SPINS
