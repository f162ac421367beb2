"""The options of ``edgetl bench`` for one bundle: ``--scenario`` and ``--stages``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from edgetl.cli.terminal import TerminalReporter, print_error, print_json, print_table, print_text
from edgetl.errors import BudgetError, EdgetlError, MeasurementError, UsageError
from edgetl.numbers import chosen, counted

if TYPE_CHECKING:
    from edgetl.benchmark.schedules import Plan
    from edgetl.pipeline.scenario import BundleRun

_PERCENT = 100.0
_LONGEST_S = 600.0
_WEEK_S = 604_800
_SHARED = frozenset({"things", "target", "precision", "key", "threads", "json"})
"""Parameters of ``edgetl bench`` that mean the same with a scenario and with stages."""
_STAGES_SAMPLES = 200
_MLPERF_PER_QUERY = 8


class Scenario(str, Enum):
    """How queries come; see :mod:`edgetl.benchmark.schedules`."""

    single_stream = "single-stream"
    multi_stream = "multi-stream"
    offline = "offline"
    server = "server"
    fixed_rate = "fixed-rate"


class Driver(str, Enum):
    """What sends them."""

    edgetl = "edgetl"
    loadgen = "loadgen"


ScenarioName = Annotated[
    Scenario | None, typer.Option("--scenario", help="One bundle, queried as it will be: docs/scenarios.md.")
]
StagesApart = Annotated[
    bool,
    typer.Option("--stages", help="One bundle: decode, preprocess, … postprocess apart [default: 200 --samples]."),
]
Rate = Annotated[float | None, typer.Option("--rate", help="Of server and fixed-rate: queries per second.")]
BoundMs = Annotated[
    float | None,
    typer.Option("--bound-ms", help="Of server and fixed-rate: fail (5) where the percentile is not shown to keep it."),
]
Percentile = Annotated[
    float | None, typer.Option("--percentile", help="Of a scenario, as 99 [default: 90 of single-stream, else 99].")
]
PerQuery = Annotated[
    int | None,
    typer.Option(
        "--per-query",
        min=1,
        max=4096,
        help="Of multi-stream: samples of a query [default: 8]; of offline: of a call [1].",
    ),
]
Duration = Annotated[
    float | None,
    typer.Option("--duration", min=0, max=_WEEK_S, help="Of a scenario: seconds that it lasts at least [default: 10]."),
]
Queries = Annotated[
    int | None,
    typer.Option(
        "--queries", min=1, max=20_000_000, help="Of a scenario: at least so many [default: what the percentile needs]."
    ),
]
DriverName = Annotated[Driver | None, typer.Option("--driver", help="Of a scenario [default: edgetl].")]
FindRate = Annotated[
    bool, typer.Option("--find-rate", help="Of server: the highest rate that keeps the bound, from --rate on.")
]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The options above, as they were given."""

    scenario: Scenario | None
    stages: bool
    rate: float | None
    bound_ms: float | None
    percentile: float | None
    per_query: int | None
    duration: float | None
    queries: int | None
    driver: Driver | None
    find_rate: bool

    def anything(self, context: typer.Context) -> bool:
        """Whether the command line is about a scenario or stages.

        Args:
            context: Of the command, for which options were given.

        Raises:
            UsageError: Options do not go together.
        """
        given = _given(context)
        own = {field.name for field in fields(self)}
        if self.scenario is None and not self.stages:
            if stray := sorted(given & own):
                raise UsageError(f"{_flag(stray[0])} belongs to a scenario", hint="--scenario server")
            return False
        if self.scenario is not None and self.stages:
            raise UsageError("--scenario and --stages are two measurements: one at a time")
        fitting = _SHARED | ({"stages", "samples"} if self.stages else own | {"seed", "unstable"})
        if "unstable" in given and self.bound_ms is None and not self.stages:
            raise UsageError("--unstable is about a gate", hint="--bound-ms")
        if stray := sorted(given - fitting):
            raise UsageError(f"{_flag(stray[0])} does not go with {'--stages' if self.stages else '--scenario'}")
        return True

    def plan(self, seed: int) -> Plan:
        """The scenario.

        Raises:
            UsageError: A number is missing, has no place in the scenario, or makes no sense.
        """
        from edgetl.benchmark.schedules import Plan

        name, duration = self.scenario, self.duration
        assert name is not None
        offline, several = name is Scenario.offline, name is Scenario.multi_stream
        if offline and self.percentile is not None:
            raise UsageError("offline is about samples per second: it has no --percentile")
        numbers: dict[str, Any] = {} if duration is None else {"min_duration_s": duration}
        plan = Plan(
            scenario=name.value,
            rate_per_s=self.rate,
            bound_ms=self.bound_ms,
            percentile=0.0 if self.percentile is None else _share(self.percentile),
            per_query=self.per_query or (_MLPERF_PER_QUERY if several else 1),
            min_queries=self.queries or 0,
            max_duration_s=max(_LONGEST_S, 2 * (duration or 0.0)),
            seed=seed,
            **numbers,
        )
        lasts = plan.least_s  # known only with the number of queries that the percentile needs
        if lasts > _WEEK_S:
            raise UsageError(f"{plan.min_queries} queries at --rate {plan.rate_per_s:g} take more than a week")
        return replace(plan, max_duration_s=max(_LONGEST_S, 2 * lasts))


def bench_bundle(
    things: Sequence[Path],
    asked: Asked,
    *,
    target: str | None,
    precision: str | None,
    key: Path | None,
    threads: int | None,
    seed: int,
    samples: int | None,
    unstable: Literal["fail", "allow"],
    json: bool,
) -> None:
    """Run what was asked, print it, and fail where a bound was given and is not kept.

    Raises:
        UsageError: See :meth:`Asked.plan`; or there is not one bundle.
        Exit: With 5, where the bound is not shown to be kept, or the measurement is UNSTABLE.
    """
    if len(things) != 1:
        raise UsageError(f"scenarios and stages are of one bundle; given were {len(things)}")
    plan = None if asked.stages else asked.plan(seed)  # refused before anything heavy is imported
    from edgetl.benchmark.bundle_runs import Drive
    from edgetl.pipeline import scenario

    drive = Drive(
        target=target,
        precision=precision,
        threads=threads,
        loadgen=asked.driver is Driver.loadgen,
        find_rate=asked.find_rate,
    )
    reporter = TerminalReporter()
    if plan is None:
        found = scenario.run_stages(things[0], drive, key=key, samples=samples or _STAGES_SAMPLES, reporter=reporter)
    else:
        found = scenario.run_scenario(things[0], plan, drive, key=key, reporter=reporter)
    gated = asked.bound_ms is not None
    error: EdgetlError | None = None
    if gated:
        try:
            scenario.gate(found, unstable=unstable)
        except (BudgetError, MeasurementError) as raised:
            error = raised
    outcome = None if not gated else "failed" if error else "passed"
    if json:
        print_json("bench-stages" if asked.stages else "bench-scenario", {**found.to_json(), "gate": outcome})
    else:
        _print("stages" if asked.scenario is None else asked.scenario.value, found)
        if outcome == "passed":
            print_text(f"the bound of {chosen(asked.bound_ms)} ms is kept")
    if error is not None:  # told on stderr alone: the result, with what became of the gate, is on stdout
        print_error(error, as_json=False)
        raise typer.Exit(error.exit_code)


def given_samples(context: typer.Context, samples: int) -> int | None:
    """What ``--samples`` says; None where it was not given."""
    return samples if "samples" in _given(context) else None


def _given(context: typer.Context) -> set[str]:
    """Names of the parameters that do not have their default."""
    return {
        name
        for name in context.params
        if (source := context.get_parameter_source(name)) is not None and source.name not in ("DEFAULT", "DEFAULT_MAP")
    }


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _share(percentile: float) -> float:
    """0.99 of 99.

    Raises:
        UsageError: It is no percentile, or looks as if it was meant as a share.
    """
    if not 1 <= percentile < _PERCENT:
        raise UsageError(f"--percentile {chosen(percentile)}: from 1 to below 100, as in p99", hint="--percentile 99")
    return round(percentile / _PERCENT, 12)


def _print(what: str, found: BundleRun) -> None:
    print_table([what, found.engine], [list(row) for row in found.rows])
    facts = found.environment
    print_text(f"\n{facts['cpu']}, {counted(facts['threads'], 'thread')}, load {facts['load_average']}")
    for problem in found.problems:
        print_text(f"note: {problem}")
