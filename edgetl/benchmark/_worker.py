"""The process that times one thing, or runs a scenario: ``python -m edgetl.benchmark._worker PARENT ANSWERS``.

See :mod:`edgetl.benchmark.process` and :mod:`edgetl.benchmark.watched`.

It takes commands from stdin and answers on a pipe of its own, a file descriptor; stdout and stderr are for whatever a
library prints. It imports no library before it is told what to open, because importing is part of what it times.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from array import array
from collections import Counter
from typing import TYPE_CHECKING, Any, BinaryIO

from edgetl.benchmark._frames import read_frame, write_frame
from edgetl.benchmark.feeds import Feeds, described, make_feeds, other_feeds
from edgetl.benchmark.things import Thing, open_thing
from edgetl.benchmark.usage import Usage
from edgetl.errors import EdgetlError

if TYPE_CHECKING:
    from edgetl.benchmark.bundle_runs import Phase
    from edgetl.benchmark.feeds import Arrays
    from edgetl.runtime.bundle import Bundle
    from edgetl.runtime.runner import Run, Runner

_DIE_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of Linux's prctl."""
_TIMER_TRIES = 201
_PROFILE_S = 0.5
_PROFILE_RUNS = (5, 50)
"""At least and at most."""

RUN_OUT_S = 0.002
"""How long a process rests after a block, so that an engine's threads that wait awake for the next call (ONNX Runtime's
one millisecond) are asleep when another process has its turn."""

Answer = tuple[dict[str, Any], bytes]


def main() -> None:
    """Obey until the parent closes stdin."""
    _die_with(int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    os.set_inheritable(number := int(sys.argv[2]), False)
    answers = os.fdopen(number, "wb")
    write_frame(answers, {"ready": True})
    _obey(sys.stdin.buffer, answers)
    os._exit(0)  # the system takes everything back; what libraries do at the end takes them long, and some crash


def _obey(commands: BinaryIO, answers: BinaryIO) -> None:
    timed = _Timed(answers)
    while (frame := read_frame(commands)) is not None:
        command = frame[0]
        try:
            document, payload = getattr(timed, command.pop("do"))(**command)
        except Exception as error:  # noqa: BLE001 - whatever it is, the parent has to tell the user
            document, payload = {"error": _told(error)}, b""
        write_frame(answers, document, payload)


class _Timed:
    """One opened thing; its public methods are the commands."""

    def __init__(self, answers: BinaryIO) -> None:
        self._answers = answers
        self._runner: Runner | None = None
        self._feeds: Arrays = {}

    def open(self, thing: dict[str, Any], feeds: dict[str, Any], threads: int | None) -> Answer:
        """Import, load, and make the first inference, each timed."""
        known, clock = Thing.from_json(thing), time.perf_counter_ns
        began = clock()
        _import(known)
        imported = clock()
        self._runner = open_thing(known, threads=threads).__enter__()
        loaded = clock()
        self._feeds = make_feeds(Feeds.from_json(feeds), self._runner.inputs, known.name)
        fed = clock()
        self._runner.run(self._feeds)
        first = clock() - fed
        return {
            "import_ms": (imported - began) / 1e6,
            "load_ms": (loaded - imported) / 1e6,
            "first_ms": first / 1e6,
            "inputs": described(self._feeds),
            "timer_ns": _timer_ns(),
        }, b""

    def block(self, calls: int) -> Answer:
        """Time calls in a row: start of each on the system's clock, then how long each took, int64 nanoseconds.

        The answer's use is what the operating system says of this process meanwhile; engine_ms what the engine's own
        clock says of the last call, None where it has none. It is not asked between two calls.
        """
        from edgetl.runtime.runner import Clocked

        assert self._runner is not None
        starts, times, use = timed_calls(self._runner.run, self._feeds, calls)
        engine_ms = self._runner.latency_ms if isinstance(self._runner, Clocked) else None
        time.sleep(RUN_OUT_S)
        gc.collect(0)
        return {"use": use, "engine_ms": engine_ms}, starts.tobytes() + times.tobytes()

    def check(self) -> Answer:
        """What makes a measurement plausible: whether outputs depend on inputs, and how much there is to compute."""
        assert self._runner is not None
        depends = _depends(self._runner, self._feeds)
        finite = _finite(self._runner, self._feeds)
        try:
            layers, reason = _layers(self._runner, self._feeds), ""
        except EdgetlError as error:  # it was timed without this, and what is not known is told as such
            layers, reason = [], str(error)
        return {
            "depends_on_input": depends,
            "finite": finite,
            "multiply_adds": _multiply_adds(layers),
            "layers": layers,
            "reason": reason,
        }, b""

    def scenario(self, folder: str, key: str | None, plan: dict[str, Any], drive: dict[str, Any]) -> Answer:
        """Run a scenario of a bundle; the answer's bytes are an :class:`edgetl.benchmark.bundle_runs.Observed`."""
        import pickle

        from edgetl.benchmark.bundle_runs import Drive, observe_scenario
        from edgetl.benchmark.schedules import Plan

        bundle = self._bundle(folder, key)
        return {}, pickle.dumps(observe_scenario(bundle, Plan(**plan), Drive(**drive), told=self._tell))

    def stages(self, folder: str, key: str | None, engine: dict[str, Any], samples: int) -> Answer:
        """Time the stages of a bundle's answer; the answer's bytes are a :class:`edgetl.benchmark.stages.Stages`."""
        import pickle

        from edgetl.benchmark.bundle_runs import EngineChoice, bench_stages

        bundle = self._bundle(folder, key)
        return {}, pickle.dumps(bench_stages(bundle, EngineChoice(**engine), samples=samples, told=self._tell))

    def _bundle(self, folder: str, key: str | None) -> Bundle:
        from pathlib import Path

        from edgetl.runtime.bundle import open_bundle

        return open_bundle(Path(folder), key=None if key is None else Path(key))

    def _tell(self, phase: Phase) -> None:
        """An answer before the answer: whoever watches this process knows how long the phase may take."""
        from dataclasses import asdict

        write_frame(self._answers, {"phase": asdict(phase)})


def timed_calls(run: Run, feeds: Arrays, calls: int) -> tuple[array[int], array[int], dict[str, Any]]:
    """Call an engine so often in a row.

    Args:
        run: Of the engine.
        feeds: What it is fed with each time.
        calls: How often.

    Returns:
        The start of each on the system's clock and how long it took, int64 nanoseconds, and what the operating system
        says of this process meanwhile.
    """
    clock = time.perf_counter_ns
    starts, times = array("q", bytes(8 * calls)), array("q", bytes(8 * calls))
    usage = Usage()
    gc.disable()  # a collection in the middle of a call is Python's latency, not the engine's
    try:
        for index in range(calls):
            began = clock()
            run(feeds)
            times[index] = clock() - began
            starts[index] = began
    finally:
        gc.enable()
    return starts, times, usage.told()


def _import(thing: Thing) -> None:
    from importlib import import_module

    for name in thing.imports:
        try:
            import_module(name)
        except ImportError:  # opening it says what is missing, and how to install it
            return


def _depends(runner: Runner, feeds: Arrays) -> bool | None:
    """Whether any output changes with the inputs; None where the engine takes no others, or puts out nothing."""
    import numpy as np

    before = {name: np.array(found) for name, found in runner.run(feeds).items()}
    try:
        after = runner.run(other_feeds(feeds))
    except EdgetlError:  # a library's refusal of made-up identifiers proves nothing
        return None
    if not any(found.size for found in (*before.values(), *after.values())):  # a detector without a hit in either
        return None
    return any(
        not np.array_equal(found, after[name], equal_nan=found.dtype.kind == "f") for name, found in before.items()
    )


def _finite(runner: Runner, feeds: Arrays) -> bool:
    """Whether any output is a number, or there is none at all, as of a detector without a hit.

    What is no float is a number.
    """
    import numpy as np

    outputs = [found for found in runner.run(feeds).values() if found.size]
    return not outputs or any(found.dtype.kind != "f" or bool(np.isfinite(found).any()) for found in outputs)


def _layers(runner: Runner, feeds: Arrays) -> list[dict[str, Any]]:
    """What each node of the engine computes on the timed inputs, and takes; none where the engine does not tell."""
    from dataclasses import fields

    from edgetl.benchmark.roofline import Layer
    from edgetl.runtime.runner import Profiled

    if not isinstance(runner, Profiled):
        return []
    began = time.perf_counter()
    runner.run(feeds)
    runs = int(_PROFILE_S / (time.perf_counter() - began + 1e-9))
    return [
        Layer(**{field.name: getattr(node, field.name) for field in fields(Layer)}).to_json()
        for node in runner.profile(feeds, runs=max(_PROFILE_RUNS[0], min(runs, _PROFILE_RUNS[1])))
    ]


def _multiply_adds(layers: list[dict[str, Any]]) -> dict[str, int]:
    """By precision."""
    found: Counter[str] = Counter()
    for layer in layers:
        found[layer["precision"]] += layer["multiply_adds"]
    return {precision: number for precision, number in found.items() if number}


def _timer_ns() -> int:
    """What timing nothing takes: the median of two readings of the clock in a row."""
    clock = time.perf_counter_ns
    return sorted(-(clock() - clock()) for _ in range(_TIMER_TRIES))[_TIMER_TRIES // 2]


def _told(error: Exception) -> dict[str, Any]:
    import traceback

    return {
        "kinds": [kind.__name__ for kind in type(error).__mro__],
        "message": str(error),
        "hint": getattr(error, "hint", None),
        "name": getattr(error, "name", None) if isinstance(error, ImportError) else None,
        "trace": traceback.format_exc(),
    }


def _die_with(parent: int) -> None:
    """Have the kernel end this process when its parent ends, even in the middle of a call (Linux).

    Elsewhere it ends where it next looks for a command.
    """
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before that
        os._exit(1)


if __name__ == "__main__":
    main()
