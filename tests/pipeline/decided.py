"""Engines with findings, as the stages behind the proof have them: no engine is built or run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgetl.backends.base import EngineRecord
from edgetl.benchmark.reasons import Kind, Reason
from edgetl.benchmark.stability import Stability
from edgetl.benchmark.summary import Latency
from edgetl.config import Budget, Config, Parity, TargetEntry
from edgetl.parity.compare import Comparison
from edgetl.pipeline import choice
from edgetl.pipeline.choice import Decision
from edgetl.pipeline.engines import Candidate, Engine
from edgetl.pipeline.proof import Proven
from edgetl.pipeline.timing import Timings
from edgetl.specs import Hardware, Precision, Target
from edgetl.store import Artifact

PRECISIONS: tuple[Precision, ...] = ("int8", "fp16", "fp32")


def speed(p50_ms: float, p99_ms: float | None = None) -> Latency:
    return Latency(
        p50_ms=p50_ms, p90_ms=p50_ms, p99_ms=p99_ms or p50_ms, p999_ms=None, p50_interval_ms=None,
        p90_interval_ms=None, p99_interval_ms=None, p999_interval_ms=None, confidence=0.95, mean_ms=p50_ms,
        min_ms=p50_ms, max_ms=p99_ms or p50_ms, samples=700, processes=5,
    )  # fmt: skip


def decide(items: list[Proven], timings: Timings, **parity: Any) -> list[Decision]:
    return choice.decide(items, timings, Parity(**parity))


def comparison(passed: bool) -> Comparison:
    return Comparison(
        samples=1000, groups=None, metric="top1", score_reference=0.98, score=0.98, agreement=1.0, worse=0, better=0,
        drop=0.0, drop_upper=0.0, drop_lower=0.0, interval=(0.0, 0.0), p_value=1.0, detectable_drop=0.0,
        samples_to_decide=None, confidence=0.95, max_drop=0.01, max_abs_error=0.0, mean_abs_error=0.0, cosine=1.0,
        sqnr_db=40.0, slices=(),
        outcome="passed" if passed else "failed", statement="as good" if passed else "top-1 drops by 3.00 points",
    )  # fmt: skip


def proven(
    precision: Precision, passed: bool | None = True, *, target: str = "cpu", budget: Budget | None = None
) -> Proven:
    """An engine; passed None: it cannot run here."""
    device = Target(
        name=target, description="", backend="null", provider="none", scheme="", precisions=PRECISIONS,
        built_on_device=passed is None, hardware=Hardware(architecture="x86-64", processor="any"),
    )  # fmt: skip
    record = EngineRecord(
        backend="null", provider="none", precision=precision, status="build-on-device" if passed is None else "ready",
        files=("engine",), note="build it there" if passed is None else "",
    )  # fmt: skip
    engine = Engine(
        candidate=Candidate(
            target=device, precision=precision, entry=TargetEntry(device=target, budget=budget or Budget())
        ),
        artifact=Artifact(stage="compile", key="k", digest="d", folder=Path("nowhere"), cached=False),
        record=record,
    )
    return Proven(engine=engine, comparison=None if passed is None else comparison(passed), placement=None)


def timings(**p50: float | Latency) -> Timings:
    """cpu_int8=2.0 is 2 ms of "cpu int8"."""
    found = {
        name.replace("_", " "): value if isinstance(value, Latency) else speed(value) for name, value in p50.items()
    }
    return Timings(latencies=found, environment={}, created="")


def shipped(decisions: list[Decision]) -> list[str]:
    return [item.proven.engine.candidate.name for item in decisions if item.shipped]


def reasons(decisions: list[Decision]) -> dict[str, str]:
    return {item.proven.engine.candidate.name: item.reason for item in decisions}


def config(**parity: Any) -> Config:
    return Config.model_validate(
        {
            "schema": 1,
            "project": {"name": "p"},
            "data": {"manifest": "m.csv"},
            "target": [{"device": "cpu"}],
            "parity": parity,
        }
    )


def unstable(*kinds: Kind) -> Stability:
    reasons = tuple(Reason(kind=kind, text=f"a {kind}", figures={}, advice=f"mind the {kind}") for kind in kinds)
    return Stability(stable=not kinds, reasons=reasons, unknown=())
