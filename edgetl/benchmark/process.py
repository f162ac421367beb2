"""A fresh process that opens one thing and times it on command."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from edgetl import errors
from edgetl.benchmark._frames import read_frame, write_frame
from edgetl.benchmark.feeds import Feeds
from edgetl.benchmark.roofline import Layer
from edgetl.benchmark.things import Thing
from edgetl.benchmark.usage import Use
from edgetl.errors import EdgetlError, MeasurementError, ModelError

_OPEN_S = 1800.0
"""So long an engine may take to be loaded and make its first inference, since some are compiled then; and no longer."""
_ANSWER_S, _TIMES_SLOWEST = 120.0, 50.0
"""So long, and besides so many times its slowest calls so far, an engine may take for a block, or to be looked into."""
_LOOKED_INTO = 200
"""Calls that looking into an engine counts as: it is profiled, in up to 76."""
_LEAVE_S = 10.0
"""An engine may take so long to give back its memory before its process is killed."""
_SHORT_SPINS = {"GOMP_SPINCOUNT": "30000", "KMP_BLOCKTIME": "1"}
"""OpenMP's threads, PyTorch's for one, wait awake for about a millisecond after a call. By default it is up to 17 (GNU)
and 200 (Intel), in which they take the processor from whatever has the next turn. Where the user chose, that stays."""
_TOLD = 2000
"""Characters of a dead process's last words that are repeated."""


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


class Process:
    """A living process with one opened thing; made by :func:`started`."""

    def __init__(self, thing: Thing, child: subprocess.Popen[bytes], words: IO[bytes]) -> None:
        self._thing = thing
        self._child = child
        self._words = words
        self.cold: ColdStart
        """How long it took to open."""
        self.inputs: tuple[str, ...] = ()
        """What it is fed with, as "input float32[1, 3, 224, 224]"."""
        self.timer_ns = 0
        """What timing nothing takes there."""
        self._slowest_s = 0.0

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._child.pid

    def open(self, feeds: Feeds, *, threads: int | None, began: float) -> None:
        """Open the thing, and make the first inference.

        Args:
            feeds: What it is fed with.
            threads: For the engine.
            began: When the process was started, by :func:`time.perf_counter`.

        Raises:
            EdgetlError: What opening it in this process would raise.
        """
        self._read(_OPEN_S)
        start_ms = 1e3 * (time.perf_counter() - began)
        found, _ = self._ask(_OPEN_S, do="open", thing=self._thing.to_json(), feeds=feeds.to_json(), threads=threads)
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

    def end(self, *, at_once: bool) -> None:
        """End the process; afterwards there is none.

        Args:
            at_once: Kill it, and do not wait until it has given back its memory.
        """
        if at_once:
            self._child.kill()
        with suppress(OSError):  # it died with something of ours unread
            self._stdin.close()
        try:
            self._child.wait(timeout=_LEAVE_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        finally:
            if self._child.poll() is None:  # a second Ctrl-C came while we waited
                self._child.kill()
                self._child.wait()
            self._stdout.close()

    @property
    def _stdin(self) -> BinaryIO:
        return cast(BinaryIO, self._child.stdin)

    @property
    def _stdout(self) -> BinaryIO:
        return cast(BinaryIO, self._child.stdout)

    def _patience_s(self, calls: int) -> float:
        """How long some calls may take before the engine is taken to hang."""
        return _ANSWER_S + _TIMES_SLOWEST * calls * self._slowest_s

    def _ask(self, patience_s: float, **command: Any) -> tuple[dict[str, Any], bytes]:
        try:
            write_frame(self._stdin, command)
        except BrokenPipeError:
            raise self._died() from None
        return self._read(patience_s)

    def _read(self, patience_s: float) -> tuple[dict[str, Any], bytes]:
        if not self._answers(patience_s):
            raise MeasurementError(
                f"the process that timed {self._thing.name} has not answered for {patience_s:.0f} s: its engine hangs",
                hint="leave it out; a driver that hangs may want the machine to be started again",
            )
        frame = read_frame(self._stdout)
        if frame is None:
            raise self._died()
        if "error" in frame[0]:
            raise _restored(self._thing, frame[0]["error"])
        return frame

    def _answers(self, patience_s: float) -> bool:
        """Wait until there is something to read, or the process has ended.

        Seconds are counted one by one: while this process is stopped (Ctrl-Z), no more than one of them goes by.
        """
        with selectors.DefaultSelector() as selector:
            selector.register(self._stdout, selectors.EVENT_READ)
            while patience_s > 0:
                if selector.select(min(1.0, patience_s)):
                    return True
                patience_s -= 1.0
        return False

    def _died(self) -> MeasurementError:
        """What to raise for a process that ended by itself."""
        try:
            code = self._child.wait(timeout=_LEAVE_S)
        except subprocess.TimeoutExpired:
            return MeasurementError(f"the process that timed {self._thing.name} answers no more")
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        hint = "memory may have run out: a smaller batch, or fewer things at once" if code == -signal.SIGKILL else None
        self._words.seek(0)
        words = self._words.read().decode(errors="replace").strip()[-_TOLD:]
        return MeasurementError(
            f"the process that timed {self._thing.name} {how}" + (f"; it said:\n{words}" if words else ""), hint=hint
        )


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
    with tempfile.TemporaryFile() as words:
        began = time.perf_counter()
        child = subprocess.Popen(
            [sys.executable, "-m", "edgetl.benchmark._worker", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=words,
            cwd=os.sep,  # where Python looks for modules first: no folder of a stranger's
            env=_environment(),
        )
        process = Process(thing, child, words)
        at_once = True
        try:
            process.open(feeds, threads=threads, began=began)
            yield process
            at_once = False
        finally:
            process.end(at_once=at_once)


def _environment() -> dict[str, str]:
    """This process's, with the places where it finds modules, and with OpenMP's threads kept from spinning for long."""
    places = os.pathsep.join(str(Path(place).absolute()) for place in sys.path if place)
    chosen = any(name in os.environ for name in ("OMP_WAIT_POLICY", *_SHORT_SPINS))
    return {**({} if chosen else _SHORT_SPINS), **os.environ, "PYTHONPATH": places}


def _restored(thing: Thing, found: dict[str, Any]) -> Exception:
    """The exception that a process told of."""
    message, hint = str(found["message"]), found["hint"]
    for name in found["kinds"]:
        kind = getattr(errors, name, None)
        if isinstance(kind, type) and issubclass(kind, EdgetlError):
            error = kind.__new__(kind)
            EdgetlError.__init__(error, message, hint=hint)
            return error
        if name == "MemoryError":
            return MemoryError(message)
        if name == "ModuleNotFoundError":
            return ModuleNotFoundError(message, name=found["name"])
    return ModelError(f"{thing.name} failed while it was timed: {found['kinds'][0]}: {message}\n{found['trace']}")
