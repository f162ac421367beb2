"""Time whatever can be opened, side by side: what ``edgetl bench`` does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgetl.benchmark import environment, sampling
from edgetl.benchmark.ceilings import Ceilings
from edgetl.benchmark.comparison import Comparison, Slowdown, compare, slowdown
from edgetl.benchmark.conditions import Conditions
from edgetl.benchmark.feeds import Feeds
from edgetl.benchmark.process import ColdStart
from edgetl.benchmark.roofline import Roofline
from edgetl.benchmark.sampling import Plan, Sampled, span_of
from edgetl.benchmark.sensors.energy import Energy
from edgetl.benchmark.stability import Stability
from edgetl.benchmark.summary import Latency
from edgetl.benchmark.things import thing_at
from edgetl.errors import BudgetError, MeasurementError, UsageError
from edgetl.pipeline.session import Reporter, Silent
from edgetl.pipeline.timing import (
    SCHEMA,
    ceilings_of,
    details_of,
    doubts,
    energy_lines,
    latency_of,
    median_cold,
    roofline_of,
    steadiness,
    unstable_lines,
    what_to_do,
)
from edgetl.runtime.seal import MANIFEST
from edgetl.store import check_output, write_whole


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was found out about one thing."""

    sampled: Sampled
    latency: Latency
    cold: ColdStart
    """Median over the processes, part by part."""
    steadiness: dict[str, Any]
    """See :func:`edgetl.pipeline.timing.steadiness`."""
    stability: Stability
    """Whether the measurement may be believed."""
    roofline: Roofline | None = None
    """What this machine could do at most with it; None: its ceilings were not measured."""
    energy: tuple[Energy, ...] = ()
    """Per inference, one per sensor; unknown, with the reason, where a sensor does not know."""

    @property
    def name(self) -> str:
        """For people."""
        return self.sampled.thing.name


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Several things side by side."""

    measured: tuple[Measured, ...]
    comparisons: tuple[Comparison, ...]
    slowdowns: tuple[Slowdown, ...]
    """Against the baseline; empty where none was given."""
    environment: dict[str, Any]
    conditions: Conditions | None = None
    """What the machine's sensors said meanwhile."""
    ceilings: Mapping[str, Ceilings] = field(default_factory=dict)
    """What the machine can do at most, by device; empty where it was not measured."""

    @property
    def unstable(self) -> dict[str, str]:
        """Names → what speaks against their measurement, in a line; of those that are UNSTABLE."""
        return unstable_lines({item.name: item.stability for item in self.measured}, timed=len(self.measured))

    @property
    def energy_lines(self) -> list[str]:
        """What inferences take, in words; see :func:`edgetl.pipeline.timing.energy_lines`."""
        return energy_lines({item.name: item.energy for item in self.measured})

    @property
    def notes(self) -> tuple[str, ...]:
        """What the figures do not say of themselves: a bundle's engine, unlike inputs, a single process."""
        pairs = [*self.comparisons, *(item.comparison for item in self.slowdowns)]
        fed = {item.name: sorted(text.partition(" ")[2] for text in item.sampled.inputs) for item in self.measured}
        found = [
            f"{pair.name} was fed with {', '.join(fed[pair.name])}, and {pair.against} with"
            f" {', '.join(fed[pair.against])}: they did not do the same work"
            for pair in pairs
            if pair.name in fed and pair.against in fed and fed[pair.name] != fed[pair.against]
        ]
        things = [item.sampled.thing for item in self.measured]
        found = [*(f"timed of {thing.name} is {thing.engine}" for thing in things if thing.engine), *found]
        if pairs and max(pair.rounds for pair in pairs) == 1:
            found.append("one process each: no interval knows what others would have shown; --processes 5")
        return tuple(dict.fromkeys(found))

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the single calls."""
        first = self.measured[0].latency.p50_ms
        return {
            "environment": self.environment,
            "measured": [
                {
                    "name": item.name,
                    "inputs": list(item.sampled.inputs),
                    "ratio_p50": item.latency.p50_ms / first,
                    **item.latency.to_json(),
                    "engine_clock_p50_ms": item.sampled.engine_clock_p50_ms,
                    "cold_start": [each.to_json() for each in item.sampled.cold],
                    **item.steadiness,
                    "stability": item.stability.to_json(),
                    "roofline": item.roofline.to_json(item.latency.p50_ms) if item.roofline else None,
                    "energy": [one.to_json() for one in item.energy],
                }
                for item in self.measured
            ],
            "comparisons": [item.to_json() for item in self.comparisons],
            "slowdowns": [item.to_json() for item in self.slowdowns],
            "notes": list(self.notes),
            "conditions": self.conditions.to_json(values=False) if self.conditions else None,
            "ceilings": {device: found.to_json() for device, found in self.ceilings.items()},
        }


def bench_things(
    things: Sequence[Path],
    *,
    against: Sequence[Path] = (),
    baseline: Path | None = None,
    max_slowdown: float = 0.0,
    target: str | None = None,
    precision: str | None = None,
    key: Path | None = None,
    provider: str = "CPUExecutionProvider",
    feeds: Feeds | None = None,
    plan: Plan | None = None,
    confidence: float = 0.95,
    roofline: bool = True,
    output: Path | None = None,
    reporter: Reporter | None = None,
) -> Benchmark:
    """Time things side by side, in fresh processes, on the same inputs.

    Args:
        things: .onnx, .xml and .engine files, bundles, checkpoints, folders of engines.
        against: What each of them is compared with; empty: the first of them.
        baseline: What each of them may be slower than by ``max_slowdown`` at most.
        max_slowdown: As a share.
        target: Of bundles: the target whose engine is meant.
        precision: Of bundles: likewise.
        key: Of bundles: public key that must have signed each of them.
        provider: ONNX Runtime's, for .onnx files.
        feeds: What they are fed with; None: one random sample.
        plan: How much is measured.
        confidence: Of all intervals.
        roofline: Measure what this machine can do at most, too.
        output: Where every single call is written, as JSON; None: nowhere.
        reporter: Is told how it goes.

    Raises:
        UsageError: Something cannot be timed, or has a dynamic dimension for which no size was given; ``output`` is no
            place for a file; or a target is asked for where nothing is a bundle.
        StorageError: ``output`` cannot be written.
        MeasurementError: A result cannot be true, or a process died.
    """
    plan, feeds, reporter = plan or Plan(), feeds or Feeds(), reporter or Silent()
    paths = [*things, *against, *([baseline] if baseline else [])]
    if output is not None:
        _check_place(output)
    opened = [
        thing_at(path, name=name, target=target, precision=precision, key=key, provider=provider)
        for path, name in zip(paths, _names(paths), strict=True)
    ]
    if (target or precision or key) and not any((path / MANIFEST).is_file() for path in paths):
        raise UsageError(
            "--target and --precision choose among the engines of a bundle, --key is of its signature, and nothing here"
            " is a bundle",
            hint="leave out --target, --precision and --key",
        )
    sampled, conditions = sampling.observe(
        opened, feeds, plan, progress=lambda done, total: reporter.progress("passes", done, total)
    )
    threads = plan.threads or environment.usable_cores()
    facts = {
        **environment.environment(),
        "threads": threads,
        "load_average": environment.load_average(),
        "processes": plan.processes,
    }
    ceilings = ceilings_of(sampled, threads=threads) if roofline else None
    if output is not None:
        details = details_of(sampled, conditions, threads=threads, ceilings=ceilings)
        _write(output, sampled, {**details, "conditions": conditions.to_json()}, facts)
    during = span_of(sampled)
    measured = tuple(_measured(each, conditions, during, ceilings, confidence) for each in sampled)
    _refuse_implausible(measured, threads, ceilings)
    series = {each.thing.name: each.series() for each in sampled}
    names = [thing.name for thing in opened]
    others = names[len(things) : len(things) + len(against)] or names[:1]
    pairs = [(name, other) for name in names[: len(things)] for other in others if name != other]
    return Benchmark(
        measured=measured,
        comparisons=tuple(compare(series[name], series[other], confidence=confidence) for name, other in pairs),
        slowdowns=tuple(
            slowdown(compare(series[name], series[names[-1]], confidence=confidence), max_slowdown)
            for name in (names[: len(things)] if baseline else [])
        ),
        environment=facts,
        conditions=conditions,
        ceilings=ceilings or {},
    )


def gate(
    benchmark: Benchmark,
    *,
    undecided: Literal["fail", "allow"] = "fail",
    unstable: Literal["fail", "allow"] = "fail",
) -> None:
    """Fail where something is slower than the baseline by more than it may be.

    Args:
        benchmark: With its slowdowns.
        undecided: What becomes of one of which the measurement shows neither.
        unstable: What becomes of one that would pass, where its measurement or the baseline's is UNSTABLE.

    Raises:
        BudgetError: There is one.
        MeasurementError: None is slower, and a measurement is UNSTABLE.
    """
    refused = ("failed", "undecided") if undecided == "fail" else ("failed",)
    found = [item for item in benchmark.slowdowns if item.outcome in refused]
    if found:
        worst = "failed" if any(item.outcome == "failed" for item in found) else "undecided"
        raise BudgetError(
            "\n  ".join(["slower than allowed:" if worst == "failed" else "undecided:"]
                        + [item.statement for item in found]),
            hint="more calls (--samples) or processes (--processes), a quieter machine, or --undecided allow"
            if worst == "undecided"
            else None,
        )  # fmt: skip
    if unstable == "fail":
        _refuse_unstable(benchmark)


def _refuse_unstable(benchmark: Benchmark) -> None:
    gated = {name for item in benchmark.slowdowns for name in (item.comparison.name, item.comparison.against)}
    found = [item for item in benchmark.measured if item.name in gated and item.stability.against]
    if found:
        lines = unstable_lines({item.name: item.stability for item in found}, timed=len(benchmark.measured))
        raise MeasurementError(
            "\n  ".join(["UNSTABLE, so nothing is shown about a slowdown:"]
                        + [f"{names}: {because}" for names, because in lines.items()]),
            hint=f"{what_to_do([item.stability for item in found])}; then measure again, or --unstable allow",
        )  # fmt: skip


def _measured(
    sampled: Sampled,
    conditions: Conditions,
    during: tuple[int, int],
    ceilings: Mapping[str, Ceilings] | None,
    confidence: float,
) -> Measured:
    return Measured(
        sampled=sampled,
        latency=latency_of(sampled, confidence=confidence),
        cold=median_cold(sampled.cold),
        steadiness=steadiness(sampled),
        stability=sampled.stability(conditions, during=during),
        roofline=roofline_of(sampled, ceilings) if ceilings is not None else None,
        energy=sampled.energy(conditions),
    )


def _names(paths: Sequence[Path]) -> list[str]:
    """One for each, even of a thing that is timed against itself."""
    names: list[str] = []
    for path in paths:
        name, times = str(path), 1
        while name in names:
            times += 1
            name = f"{path} ({times})"
        names.append(name)
    return names


def _refuse_implausible(measured: Sequence[Measured], threads: int, ceilings: Mapping[str, Ceilings] | None) -> None:
    found = [
        f"{item.name}: {doubt}"
        for item in measured
        for doubt in doubts(item.sampled, item.latency, threads=threads, ceilings=ceilings)
    ]
    if found:
        raise MeasurementError("a measurement cannot be true:\n  " + "\n  ".join(found))


def _check_place(output: Path) -> None:
    """Before minutes of measuring are lost."""
    if not output.parent.exists():
        raise UsageError(f"there is no folder {output.parent} to write {output.name} to", hint=f"mkdir {output.parent}")
    check_output("--output", output, "calls.json")


def _write(output: Path, sampled: Sequence[Sampled], details: dict[str, Any], facts: dict[str, Any]) -> None:
    document = {
        "schema": SCHEMA,
        "environment": facts,
        "details": details,
        "sampled": {each.thing.name: each.to_json() for each in sampled},
    }
    write_whole(output, json.dumps(document))
