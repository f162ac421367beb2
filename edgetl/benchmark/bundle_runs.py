"""Scenarios and stages of a bundle: what ``edgetl bench BUNDLE --scenario`` and ``--stages`` call."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from edgetl.benchmark.ceilings import device_of
from edgetl.benchmark.conditions import Conditions
from edgetl.benchmark.issuing import issue_of
from edgetl.benchmark.loadgen import LoadGenResult, run_loadgen
from edgetl.benchmark.peak_rate import PeakRate, peak_rate
from edgetl.benchmark.reasons import Limits
from edgetl.benchmark.sampler import Sampler
from edgetl.benchmark.scenarios import Issue, ScenarioResult, run
from edgetl.benchmark.schedules import Plan
from edgetl.benchmark.stability import BlockUse, Stability, judge_machine
from edgetl.benchmark.stages import Stages, measure_stages
from edgetl.benchmark.summary import too_alike
from edgetl.benchmark.usage import Usage
from edgetl.benchmark.waiting import Clock, SensingClock
from edgetl.errors import UsageError
from edgetl.numbers import chosen, counted, fixed
from edgetl.runtime.bundle import Bundle
from edgetl.runtime.opening import open_engine


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Part of a run in which the engine is at work, as whoever watches it is told when it begins."""

    what: str
    """In words."""
    lasts_s: float | None = None
    """About so long; None where an engine may be compiled, and nothing is known of its calls."""
    most_s: float = math.inf
    """It ends by itself after so long, and a call."""
    call_s: float = 0.0
    """About so long takes a call."""


Told = Callable[[Phase], None]

_WARMUP, _WARMUP_S = 20, 2.0
"""Queries of each of two rounds, of which at least one is made, and seconds after which no other is begun."""


@dataclass(frozen=True, kw_only=True)
class EngineChoice:
    """Which engine of a bundle runs."""

    target: str | None = None
    """See :meth:`edgetl.runtime.bundle.Bundle.choose`."""
    precision: str | None = None
    """As well."""
    threads: int | None = None
    """Of the engine; None: its choice."""


@dataclass(frozen=True, kw_only=True)
class Drive(EngineChoice):
    """Which engine of a bundle answers a scenario, and what drives it."""

    loadgen: bool = False
    """MLPerf LoadGen."""
    find_rate: bool = False
    """Of server: search the highest rate that keeps the bound, from the plan's rate on."""


_DEFAULT = Drive()

ScenarioRun = ScenarioResult | LoadGenResult | PeakRate


@dataclass(frozen=True, kw_only=True)
class Observed:
    """A run of a scenario with what was going on around it."""

    found: ScenarioRun
    conditions: Conditions
    """What the machine's sensors said from before the warm-up to after the last query."""
    stability: Stability
    """Whether the machine held still; by :func:`edgetl.benchmark.stability.judge_machine`."""


def _nobody(_: Phase) -> None:
    """Is told, and does nothing."""


def observe_scenario(bundle: Bundle, plan: Plan, drive: Drive = _DEFAULT, *, told: Told = _nobody) -> Observed:
    """Run a scenario as :func:`bench_scenario` does, and read the machine's sensors meanwhile.

    They are read before and after it, and in the idle gaps of edgetl's own open loop where there is plenty of time.

    Args:
        bundle: As there.
        plan: As there.
        drive: As there.
        told: Is told of every phase as it begins.

    Raises:
        EdgetlError: As there.
    """
    with Sampler() as sampler, _opened(bundle, plan, drive, told) as go:
        sampler.read()  # again, at the load that the warm-up left
        usage, began_ns = Usage(), time.perf_counter_ns()
        found = go(SensingClock(sampler=sampler))
        use, ended_ns = usage.told(), time.perf_counter_ns()
        sampler.read()
    conditions = sampler.conditions()
    on_processor = device_of(bundle.choose(drive.target, drive.precision).provider) == "cpu"
    heard = conditions.without_gpus() if on_processor else conditions
    # A search goes from little load to all that there is: a clock that follows is no fault of the machine.
    limits = Limits(clocks=math.inf) if drive.find_rate else Limits()
    stability = judge_machine(heard, began_ns=began_ns, ended_ns=ended_ns, use=BlockUse.of([use]), limits=limits)
    return Observed(found=found, conditions=conditions, stability=stability)


def bench_scenario(bundle: Bundle, plan: Plan, drive: Drive = _DEFAULT) -> ScenarioRun:
    """Run a scenario on an engine of a bundle, fed with the bundle's golden inputs, preprocessed.

    Args:
        bundle: From :func:`edgetl.runtime.bundle.open_bundle`.
        plan: The scenario; its number of samples is replaced by that of the golden inputs.
        drive: Which engine, and what drives it.

    Raises:
        UsageError: The scenario and the rest do not fit each other.
        TargetError: No engine runs here, or it failed.
        MissingExtraError: LoadGen, or the engine's library, is not installed.
    """
    with _opened(bundle, plan, drive, _nobody) as go:
        return go(None)


@contextmanager
def _opened(bundle: Bundle, plan: Plan, drive: Drive, told: Told) -> Iterator[Callable[[Clock | None], ScenarioRun]]:
    """What runs a scenario on a warm engine by some clock; LoadGen has its own."""
    if drive.find_rate and (drive.loadgen or plan.scenario != "server"):
        raise UsageError("the highest rate is searched in the scenario server, by edgetl's own driver")
    entry = bundle.choose(drive.target, drive.precision)
    batch = bundle.manifest["inputs"][0].get("batch", [1, sys.maxsize])
    golden = bundle.golden().inputs
    plan = replace(plan, samples=len(golden))
    told(Phase(what="opening and warming up"))
    with open_engine(bundle.folder / entry.folder, threads=drive.threads) as runner:
        issue = issue_of(runner, golden, smallest=int(batch[0]), largest=int(batch[-1]))
        query_ms = _warm(issue, plan)

        def go(clock: Clock | None) -> ScenarioRun:
            if drive.find_rate:
                return peak_rate(issue, plan, clock=clock, begins=lambda each: told(_phase(each, query_ms)))
            told(_phase(plan, query_ms))
            if drive.loadgen:
                offline = plan.scenario == "offline"
                return run_loadgen(issue, plan, expected_ms=query_ms / plan.per_query if offline else query_ms)
            return run(issue, plan, clock=clock)

        yield go


def bench_stages(
    bundle: Bundle,
    engine: EngineChoice = _DEFAULT,
    *,
    source: Path | bytes | str | None = None,
    samples: int = 200,
    told: Told = _nobody,
) -> Stages:
    """Time the stages of a bundle's answer to one raw input.

    Args:
        bundle: From :func:`edgetl.runtime.bundle.open_bundle`.
        engine: Which.
        source: The raw input; None: the first golden one.
        samples: Answers with the stages, and as many without.
        told: Is told of every phase as it begins.

    Raises:
        UsageError: No samples, or the bundle has no golden input.
        DataError: The input cannot be read.
        TargetError: No engine runs here.
    """
    if source is None:
        sources = bundle.golden().sources
        if not sources:
            raise UsageError("the bundle has no golden inputs to time the stages with")
        source = sources[0]
    told(Phase(what="opening and warming up"))
    with bundle.open(target=engine.target, precision=engine.precision, threads=engine.threads) as predictor:
        began = time.perf_counter()
        predictor.answer(source)
        call_s = time.perf_counter() - began
        told(Phase(what="the stages of an answer", lasts_s=2 * samples * call_s, call_s=call_s))
        return measure_stages(predictor, source, samples=samples)


def rows(result: ScenarioResult | LoadGenResult | PeakRate | Stages) -> tuple[tuple[str, str], ...]:
    """A result for people: what is told, and its value with the unit.

    Args:
        result: Of :func:`bench_scenario` or :func:`bench_stages`.
    """
    if isinstance(result, Stages):
        stages = [(name, f"{took / 1e6:.3f} ms") for name, took in result.stages_ns.items()]
        whole = f"{result.whole_ns / 1e6:.3f} ms (the stages add up to {1 + result.gap:.1%} of it)"
        return (*stages, ("whole", whole), *((("note", result.note),) if result.note else ()))
    if isinstance(result, PeakRate):
        rate = "none" if result.rate_per_s is None else f"{result.rate_per_s:,.1f} per second"
        broke = "none" if result.broke_at_per_s is None else f"{result.broke_at_per_s:,.1f} per second"
        found = [("highest rate that keeps the bound", rate), ("lowest that does not", broke)]
        return (*found, ("runs", str(len(result.runs))), *((("note", result.reason),) if result.reason else ()))
    values = result.to_json()
    told = [("driver", values["driver"]), ("queries", f"{result.queries:,}")]
    if values["samples_per_s"] is not None:
        told.append(("samples per second", f"{values['samples_per_s']:,.1f}"))
    if result.plan.scenario == "offline":  # a latency there is how long ago the run began
        return (*told, *(("note", problem) for problem in result.problems))
    intervals = result.intervals_ms if isinstance(result, ScenarioResult) else {}
    alike = too_alike(result.times.latency_ns) if isinstance(result, ScenarioResult) else frozenset()
    bound = result.plan.bound_ms
    for name, value in values["latency_ms"].items():
        span = " (95% {:.3f} to {:.3f})".format(*intervals[name]) if name in intervals else ""
        if name in alike and not span:
            span = " (no interval: too few queries are independent of each other)"
        told.append(("p99.9" if name == "p999" else name, f"{fixed(value, 3, beside=bound)} ms{span}"))
    if values["estimate_ms"] is not None:
        estimated = f"{fixed(values['estimate_ms'], 3, beside=bound)} ms"
        told.append((f"p{result.plan.percentile * 100:.6g} at 99% confidence", estimated))
    if bound is not None and isinstance(result, ScenarioResult):
        over = result.percentile_ns(result.plan.percentile) > (result.plan.bound_ns or 0)
        kept = "kept" if result.keeps_bound else "not kept" if over or result.times.stopped else "not shown to be kept"
        over_it = f"{counted(result.over_bound, 'query', 'queries')} over it"
        told.append((f"bound of {chosen(bound)} ms", f"{kept}, {over_it}"))
    if isinstance(result, ScenarioResult) and values["spin_share"] is not None:
        told.append(("share of the waiting that was spun", f"{values['spin_share']:.1%}"))
    return (*told, *(("note", problem) for problem in result.problems))


def _phase(plan: Plan, query_ms: float) -> Phase:
    """A run of a plan by an engine of which it is known about how long a query takes."""
    queries = -(-plan.min_queries // plan.per_query) if plan.scenario == "offline" else plan.min_queries
    rate = f" at {plan.rate_per_s:.4g} queries per second" if plan.rate_per_s else ""
    return Phase(
        what=plan.scenario + rate,
        lasts_s=max(plan.least_s, queries * query_ms / 1e3),
        most_s=plan.max_duration_s,
        call_s=query_ms / 1e3,
    )


def _warm(issue: Issue, plan: Plan) -> float:
    """Call an engine a few times and tell about how long a query takes, in milliseconds."""
    pilot = Plan(
        scenario="multi-stream" if plan.per_query > 1 else "single-stream",
        samples=plan.samples,
        per_query=plan.per_query,
        min_duration_s=0.0,
        min_queries=_WARMUP,
        max_duration_s=_WARMUP_S,
    )
    run(issue, pilot)
    return run(issue, pilot).percentile_ns(0.5) / 1e6
