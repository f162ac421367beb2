"""Scenarios and stages of a bundle in a process of their own, which is watched: an engine that hangs is an error."""

from __future__ import annotations

import math
import pickle
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgetl.benchmark import process
from edgetl.benchmark.bundle_runs import Drive, EngineChoice, Observed, Phase
from edgetl.benchmark.child import Child, spawned
from edgetl.benchmark.schedules import Plan
from edgetl.benchmark.stages import Stages

_TIMES_LONGER = 10.0
"""So many times as long as it should take by the first calls a run may take, where it does not end itself before."""


def scenario_apart(folder: Path, plan: Plan, drive: Drive, *, name: str, key: Path | None = None) -> Observed:
    """:func:`edgetl.benchmark.bundle_runs.observe_scenario` in a process of its own.

    Args:
        folder: Of a bundle.
        plan: The scenario.
        drive: Which engine, and what drives it.
        name: Of the engine, for people.
        key: Public key that must have signed the bundle.

    Raises:
        MeasurementError: The engine hangs, or its process died.
        EdgetlError: As there.
    """
    found: Observed = _answer(name, "scenario", folder, key, plan=plan.to_json(), drive=asdict(drive))
    return found


def stages_apart(
    folder: Path, engine: EngineChoice, *, name: str, samples: int = 200, key: Path | None = None
) -> Stages:
    """:func:`edgetl.benchmark.bundle_runs.bench_stages` in a process of its own.

    Args:
        folder: Of a bundle.
        engine: Which.
        name: Of the engine, for people.
        samples: Answers with the stages, and as many without.
        key: Public key that must have signed the bundle.

    Raises:
        MeasurementError: The engine hangs, or its process died.
        EdgetlError: As there.
    """
    choice = {"target": engine.target, "precision": engine.precision, "threads": engine.threads}
    found: Stages = _answer(name, "stages", folder, key, engine=choice, samples=samples)
    return found


def _answer(name: str, what: str, folder: Path, key: Path | None, **asked: Any) -> Any:
    """What the process made of a command; its own temporary files are in a folder that goes with it."""
    with (
        tempfile.TemporaryDirectory(prefix="edgetl-") as place,
        spawned({"TMPDIR": place}) as (child, words),
    ):
        watched = Child(name, child, words)
        at_once = True
        try:
            watched.read(process.OPEN_S)
            path = None if key is None else str(key.resolve())
            watched.send(do=what, folder=str(folder.resolve()), key=path, **asked)
            phase = Phase(what="checking the bundle")
            while True:
                patience_s = _patience_s(phase)
                document, payload = watched.read(patience_s, _hangs(name, phase, patience_s))
                if "phase" not in document:
                    at_once = False
                    return pickle.loads(payload)  # of a process of ours
                phase = Phase(**document["phase"])
        finally:
            watched.end(at_once=at_once)


def _patience_s(phase: Phase) -> float:
    """How long a phase may take before the engine is taken to hang."""
    if phase.lasts_s is None:
        return process.OPEN_S
    ends_s = min(phase.most_s, _TIMES_LONGER * phase.lasts_s)
    return process.ANSWER_S + process.TIMES_SLOWEST * phase.call_s + ends_s


def _hangs(name: str, phase: Phase, patience_s: float) -> str:
    should = "" if phase.lasts_s is None else f", which should have taken {max(1, math.ceil(phase.lasts_s))} s,"
    return f"the engine {name} hangs: {phase.what}{should} has not ended after {patience_s:.0f} s"
