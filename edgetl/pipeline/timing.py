"""The stage that times: PyTorch, the float graph and every engine that runs here, in fresh processes, in turn."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from edgetl.backends.checkpoint import read_deploy
from edgetl.benchmark import environment, plausibility, sampling
from edgetl.benchmark.ceilings import Ceilings, device_of, measure_ceilings, no_ceilings
from edgetl.benchmark.comparison import compare
from edgetl.benchmark.conditions import Conditions
from edgetl.benchmark.feeds import Feeds
from edgetl.benchmark.process import ColdStart
from edgetl.benchmark.roofline import Roofline, roofline
from edgetl.benchmark.sampling import Plan, Sampled, span_of
from edgetl.benchmark.sensors.energy import Energy
from edgetl.benchmark.stability import Stability
from edgetl.benchmark.summary import Latency, histogram, summarise
from edgetl.benchmark.things import Thing, checkpoint_thing, engine_thing, onnx_thing
from edgetl.data.dataset import Dataset
from edgetl.data.loader import Samples, batches
from edgetl.errors import MeasurementError, SetupError
from edgetl.numbers import counted
from edgetl.pipeline.engines import Engine
from edgetl.pipeline.session import Session
from edgetl.report.unstable import joined, told_once
from edgetl.runtime.preprocessing import Array
from edgetl.store import Artifact, code_digest

PYTORCH, FP32 = "PyTorch eager", "ONNX Runtime fp32"
SCHEMA = 2
"""Of bench.json. 1 had percentiles alone, whatever the number of calls, and no intervals."""


@dataclass(frozen=True, kw_only=True)
class Timings:
    """The benchmark of a build."""

    latencies: dict[str, Latency]
    """By engine's name, :data:`PYTORCH` and :data:`FP32`."""
    environment: dict[str, Any]
    created: str
    """When it was measured: ISO 8601, UTC."""
    cold: dict[str, ColdStart] = field(default_factory=dict)
    """Median over the processes, part by part."""
    stability: dict[str, Stability] = field(default_factory=dict)
    """Whether each measurement may be believed."""
    details: dict[str, Any] = field(default_factory=dict)
    """What else stands in bench.json; see :func:`details_of`."""


NO_TIMINGS = Timings(latencies={}, environment={}, created="")
"""Of a build that stops before its benchmark."""


def bench(
    session: Session, dataset: Dataset, checkpoint: Artifact, exported: Artifact, engines: list[Engine]
) -> Timings:
    """Time PyTorch, the float graph and every engine that runs here."""
    ready = [engine for engine in engines if engine.record.status == "ready"]
    config = session.config.bench
    threads = config.threads or environment.usable_cores()
    inputs = {
        "engines": {engine.candidate.name: engine.artifact.digest for engine in ready},
        "checkpoint": checkpoint.digest,
        "model": exported.digest,
        "config": config.model_dump(mode="json", exclude={"unstable"}),  # a gate's: the times do not depend on it
        "batch": session.config.export.batch.model_dump(),
        "environment": environment.environment(),
        "code": code_digest("benchmark", "distributions.py", "numbers.py", "runtime", "backends", "pipeline/timing.py"),
    }
    things = [
        checkpoint_thing(checkpoint.folder, name=PYTORCH),
        onnx_thing(exported / "model.onnx", name=FP32),
        *(engine_thing(engine.artifact.folder, name=engine.candidate.name) for engine in ready),
    ]
    plan = Plan(samples=config.samples, processes=config.processes, warmup=config.warmup, threads=threads)

    def make(folder: Path) -> None:
        deploy = read_deploy(checkpoint.folder)
        arrays = _timed_batch(Samples(dataset.test, deploy.preprocessing), config.batch_size)
        facts = {**environment.environment(), "load_average": environment.load_average()}
        sampled, conditions = _measure(session, things, arrays, plan)
        document = {
            "schema": SCHEMA,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "environment": {**facts, "threads": threads, "batch_size": config.batch_size},
            "latency": {each.thing.name: latency_of(each).to_json() for each in sampled},
            "details": details_of(
                sampled,
                conditions,
                threads=threads,
                references=(PYTORCH, FP32),
                rivals=rivals(ready),
                ceilings=ceilings_of(sampled, threads=threads) if config.roofline else None,
            ),
            "sampled": {each.thing.name: each.to_json() for each in sampled},
        }
        (folder / "bench.json").write_text(json.dumps(document), encoding="utf-8")

    processes = counted(plan.processes, "process", "processes")
    artifact = session.stage("bench", f"{len(things)} engines, {processes} each", inputs, make)
    document = json.loads((artifact / "bench.json").read_text(encoding="utf-8"))
    details = document["details"]
    for name, steady in details["steady"].items():
        if steady["warmup_samples"]:
            warm_up = counted(steady["warmup_samples"], "call of warm-up does", "calls of warm-up do")
            session.reporter.note(f"{name}: {warm_up} not count")
        if steady["not_steady"]:
            session.reporter.note(f"{name} was not steady in {steady['not_steady']} of {processes}")
    stability = {name: Stability.from_json(found) for name, found in details["stability"].items()}
    for names, because in unstable_lines(stability, timed=len(stability)).items():
        session.reporter.note(f"the latency of {names} is UNSTABLE: {because}")
    for line in energy_lines({name: [Energy(**one) for one in found] for name, found in details["energy"].items()}):
        session.reporter.note(line)
    return Timings(
        latencies={name: Latency.from_json(found) for name, found in document["latency"].items()},
        environment=document["environment"],
        created=document["created"],
        cold={name: ColdStart(**found) for name, found in details["cold_start"].items()},
        stability=stability,
        details=details,
    )


def rivals(ready: Sequence[Engine]) -> dict[str, list[str]]:
    """Of every engine, the others of its target: of these one is shipped."""
    return {
        engine.candidate.name: [
            other.candidate.name
            for other in ready
            if other is not engine and other.candidate.target.name == engine.candidate.target.name
        ]
        for engine in ready
    }


def unstable_because(stability: Stability) -> str:
    """What speaks against a measurement, in a line."""
    return "; ".join(reason.text for reason in stability.against)


def unstable_lines(found: Mapping[str, Stability], *, timed: int) -> dict[str, str]:
    """Names of measurements → what speaks against them, in a line; a reason of several is told once, with all of them.

    Args:
        found: By name.
        timed: How many were timed together with them, and themselves.
    """
    reasons = {name: [reason.text for reason in each.against] for name, each in found.items()}
    return {joined(names, timed): "; ".join(told) for names, told in told_once(reasons)}


def what_to_do(found: Sequence[Stability]) -> str:
    """The advice of all reasons against some measurements, each once, in a line."""
    return "; ".join(dict.fromkeys(reason.advice for each in found for reason in each.against))


def energy_lines(found: Mapping[str, Sequence[Energy]]) -> list[str]:
    """What inferences take, a line per thing; one line for all where no sensor knows.

    Args:
        found: By the thing's name, one per sensor.
    """
    known = {name: [one for one in each if one.per_inference_j is not None] for name, each in found.items()}
    if any(known.values()):
        said = {name: "; ".join(one.statement for one in known[name] or each) for name, each in found.items()}
        return [f"energy per inference of {name}: {text}" for name, text in said.items()]
    why = dict.fromkeys(one.why for each in found.values() for one in each if one.why)
    return [f"energy per inference: unknown ({'; '.join(why) or 'this machine has no sensor of it'})"] if found else []


def latency_of(sampled: Sampled, *, confidence: float = 0.95) -> Latency:
    """Percentiles of the calls that count."""
    series = sampled.series()
    return summarise(series.times_ns, series.process, series.block, confidence=confidence)


def details_of(
    sampled: Sequence[Sampled],
    conditions: Conditions | None = None,
    *,
    threads: int,
    references: Sequence[str] = (),
    rivals: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ceilings: Mapping[str, Ceilings] | None = None,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """What a measurement says besides latencies, as plain values, each by the thing's name.

    Args:
        sampled: Every thing's.
        conditions: What the machine's sensors said meanwhile.
        threads: Per thing.
        references: Names of things that every other one is compared with.
        rivals: Name → names of others that it is compared with, too.
        ceilings: What this machine can do at most, by device; None: it was not measured.
        confidence: Of the comparisons.

    Returns:
        cold_start: median over processes, in ms, part by part. steady: calls that did not count, and why processes were
        not steady. histogram: of the calls that count, as HdrHistogram; None without the package. comparisons: with
        each of the references and rivals. implausible: why a result cannot be true. stability: whether the machine and
        the times held still. conditions: what the sensors said, of a series its range; None where they were not read.
        energy: per inference, one per sensor, also of those that do not know it. ceilings: by device. roofline: see
        :meth:`edgetl.benchmark.roofline.Roofline.to_json`; empty without ceilings.
    """
    series = {each.thing.name: each.series() for each in sampled}
    during = span_of(sampled)
    return {
        "cold_start": {each.thing.name: median_cold(each.cold).to_json() for each in sampled},
        "steady": {each.thing.name: steadiness(each) for each in sampled},
        "histogram": {name: _histogram(found.times_ns) for name, found in series.items()},
        "comparisons": {
            name: [
                compare(found, series[other], confidence=confidence).to_json()
                for other in dict.fromkeys((*references, *rivals.get(name, ())))
                if other != name
            ]
            for name, found in series.items()
        },
        "implausible": {
            each.thing.name: list(doubts(each, latency_of(each), threads=threads, ceilings=ceilings))
            for each in sampled
        },
        "stability": {each.thing.name: each.stability(conditions, during=during).to_json() for each in sampled},
        "conditions": conditions.to_json(values=False) if conditions else None,
        "energy": {each.thing.name: [one.to_json() for one in each.energy(conditions)] for each in sampled},
        "ceilings": {device: found.to_json() for device, found in (ceilings or {}).items()},
        "roofline": {each.thing.name: roofline_of(each, ceilings).to_json(latency_of(each).p50_ms) for each in sampled}
        if ceilings is not None
        else {},
    }


def ceilings_of(sampled: Sequence[Sampled], *, threads: int) -> dict[str, Ceilings]:
    """What this machine can do at most, by device, of those that the things computed on.

    Args:
        sampled: Of things that no process times any more.
        threads: Per thing.

    Returns:
        Where a device could not be measured, its ceilings say why.
    """
    devices = {device_of(layer.provider) for each in sampled for layer in each.check.layers}
    found: dict[str, Ceilings] = {}
    for device in sorted(device for device in devices if device):
        try:
            found[device] = measure_ceilings(device, threads=threads)
        except MeasurementError as error:
            found[device] = no_ceilings(device, threads=threads, reason=str(error))
    return found


def roofline_of(sampled: Sampled, ceilings: Mapping[str, Ceilings]) -> Roofline:
    """What this machine could do at most with a thing."""
    return roofline(sampled.check.layers, ceilings, reason=sampled.check.reason)


def steadiness(sampled: Sampled) -> dict[str, Any]:
    """How many calls did not count, and how many processes never became steady, with the reasons."""
    never = [each.reason for each in sampled.steady if each.outcome == "never"]
    return {
        "warmup_samples": int((sampled.warmup & ~sampled.settling).sum()),
        "settling_samples": int(sampled.settling.sum()),
        "not_steady": len(never),
        "reasons": sorted(set(never)),
    }


def doubts(
    sampled: Sampled, latency: Latency, *, threads: int, ceilings: Mapping[str, Ceilings] | None = None
) -> tuple[str, ...]:
    """Why a result cannot be true; see :func:`edgetl.benchmark.plausibility.implausible`.

    Args:
        sampled: Of one thing.
        latency: Its percentiles.
        threads: That it had.
        ceilings: This machine's, where they were measured.
    """
    devices = {device_of(layer.provider) for layer in sampled.check.layers if layer.multiply_adds}
    rates = plausibility.most_multiply_adds(threads, (ceilings or {}).get("cpu")) if devices <= {"cpu"} else None
    return plausibility.implausible(latency, sampled.check, timer_ns=sampled.timer_ns, ceilings=rates)


def median_cold(cold: Sequence[ColdStart]) -> ColdStart:
    """Median over processes, part by part."""
    parts = [asdict(each) for each in cold]
    return ColdStart(**{name: statistics.median(each[name] for each in parts) for name in parts[0]})


def _measure(
    session: Session, things: list[Thing], arrays: Array, plan: Plan
) -> tuple[tuple[Sampled, ...], Conditions]:
    with tempfile.TemporaryDirectory(prefix="edgetl-") as place:
        file = Path(place) / "feeds.npy"
        np.save(file, arrays)
        return sampling.observe(
            things,
            Feeds(file=file),
            plan,
            progress=lambda done, total: session.progress("passes", done, total),
        )


def _histogram(times_ns: sampling.Integers) -> str | None:
    try:
        return histogram(times_ns)
    except SetupError:  # the times themselves are kept: nothing is lost but this form of them
        return None


def _timed_batch(samples: Samples, size: int) -> Array:
    """Test samples to time with; where they differ in length, those around the median."""
    contract = samples.preprocessing
    if all(isinstance(side, int) for side in contract.input_shape):
        arrays, _ = next(batches(samples, min(size, len(samples))))
        whole: Array = arrays[np.arange(size) % len(arrays)]
        return whole
    ordered = sorted((samples[index][0] for index in range(len(samples))), key=len)
    first = max(0, min(len(ordered) // 2 - size // 2, len(ordered) - size))
    return contract.together([ordered[(first + place) % len(ordered)] for place in range(size)])
