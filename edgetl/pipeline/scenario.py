"""Scenarios and stages of one bundle: what ``edgetl bench BUNDLE --scenario`` and ``--stages`` do."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, TypeVar

from edgetl.benchmark import environment
from edgetl.benchmark.bundle_runs import Drive, EngineChoice, rows
from edgetl.benchmark.conditions import Conditions
from edgetl.benchmark.loadgen import LoadGenResult
from edgetl.benchmark.peak_rate import PeakRate
from edgetl.benchmark.scenarios import ScenarioResult
from edgetl.benchmark.schedules import Plan
from edgetl.benchmark.stability import Stability
from edgetl.benchmark.stages import Stages
from edgetl.benchmark.watched import scenario_apart, stages_apart
from edgetl.errors import BudgetError, MeasurementError, UsageError
from edgetl.numbers import chosen
from edgetl.pipeline.session import Reporter, Silent
from edgetl.pipeline.timing import unstable_because, what_to_do
from edgetl.runtime.bundle import EngineEntry, open_bundle
from edgetl.runtime.seal import MANIFEST

_Choice = TypeVar("_Choice", bound=EngineChoice)


@dataclass(frozen=True, kw_only=True)
class BundleRun:
    """What was found out about one engine of a bundle, with what it was found on."""

    bundle: Path
    engine: str
    """Target and precision."""
    found: ScenarioResult | LoadGenResult | PeakRate | Stages
    environment: dict[str, Any]
    """Of :func:`edgetl.benchmark.environment.environment`, with threads, and the load before the run."""
    conditions: Conditions | None = None
    """What the machine's sensors said meanwhile; None of stages."""
    stability: Stability | None = None
    """Whether the machine held still meanwhile; None of stages."""

    @property
    def rows(self) -> tuple[tuple[str, str], ...]:
        """What is told, and its value with the unit; without :attr:`problems`."""
        return tuple(row for row in rows(self.found) if row[0] != "note")

    @property
    def problems(self) -> tuple[str, ...]:
        """Why the run says less than was asked of it, in sentences; empty where nothing is wrong."""
        unstable = [f"UNSTABLE: {unstable_because(self.stability)}"] if self.stability and self.unstable else []
        return (*(value for name, value in rows(self.found) if name == "note"), *unstable)

    @property
    def unstable(self) -> bool:
        """Whether something around the run did not hold still, so that its figures should not be believed."""
        return self.stability is not None and bool(self.stability.against)

    @property
    def passed(self) -> bool:
        """Whether the run is valid and keeps its bound; of a search, whether a rate does; of stages, always."""
        if isinstance(self.found, PeakRate):
            return self.found.rate_per_s is not None
        return isinstance(self.found, Stages) or self.found.valid

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        kind = {PeakRate: "peak_rate", Stages: "stages"}.get(type(self.found), "scenario")
        return {
            "bundle": str(self.bundle),
            "engine": self.engine,
            "environment": self.environment,
            kind: self.found.to_json(),
            "stability": self.stability.to_json() if self.stability else None,
            "conditions": self.conditions.to_json(values=False) if self.conditions else None,
        }


def run_scenario(
    folder: Path,
    plan: Plan,
    drive: Drive,
    *,
    key: Path | None = None,
    reporter: Reporter | None = None,
) -> BundleRun:
    """Run a scenario on an engine of a bundle.

    Args:
        folder: Of the bundle.
        plan: The scenario.
        drive: Which engine, and what drives it; it has one thread per core where none are given.
        key: Public key that must have signed the bundle.
        reporter: Is told how it goes.

    Raises:
        UsageError: It is no bundle, or the scenario and the rest do not fit each other.
        BundleError: The bundle is not what its manifest says.
        TargetError: No engine runs here, or it failed.
        MissingExtraError: LoadGen, or the engine's library, is not installed.
    """
    entry = _open(folder, drive, key)
    reporter, drive = reporter or Silent(), _with_threads(drive)
    facts = _facts(drive)
    what, began = f"{plan.scenario} of {folder.name}", perf_counter()
    lasts = f", at least {plan.least_s:.4g} s" + (" for every rate" if drive.find_rate else "")
    reporter.started("bench", what + lasts)
    observed = scenario_apart(folder, plan, drive, name=_name(entry), key=key)
    reporter.finished("bench", what, cached=False, seconds=perf_counter() - began)
    return BundleRun(
        bundle=folder,
        engine=_name(entry),
        found=observed.found,
        environment=facts,
        conditions=observed.conditions,
        stability=observed.stability,
    )


def run_stages(
    folder: Path,
    engine: EngineChoice,
    *,
    key: Path | None = None,
    samples: int = 200,
    reporter: Reporter | None = None,
) -> BundleRun:
    """Time the stages of a bundle's answer to its first golden input.

    Args:
        folder: Of the bundle.
        engine: Which; it has one thread per core where none are given.
        key: Public key that must have signed the bundle.
        samples: Answers with the stages, and as many without.
        reporter: Is told how it goes.

    Raises:
        UsageError: It is no bundle, it has no golden input, or there are no samples.
        BundleError: The bundle is not what its manifest says.
        TargetError: No engine runs here, or it failed.
        MissingExtraError: The engine's library is not installed.
    """
    entry = _open(folder, engine, key)
    reporter, engine = reporter or Silent(), _with_threads(engine)
    facts = _facts(engine)
    what, began = f"stages of {folder.name}", perf_counter()
    reporter.started("bench", what)
    found = stages_apart(folder, engine, name=_name(entry), samples=samples, key=key)
    reporter.finished("bench", what, cached=False, seconds=perf_counter() - began)
    return BundleRun(bundle=folder, engine=_name(entry), found=found, environment=facts)


def gate(run: BundleRun, *, unstable: Literal["fail", "allow"] = "fail") -> None:
    """Fail where a run does not keep its bound, or is not valid, so that nothing is known about it.

    Args:
        run: With a bound.
        unstable: What becomes of one that keeps it, where the machine did not hold still.

    Raises:
        BudgetError: The bound was not shown to be kept.
        MeasurementError: It was kept, and the measurement is UNSTABLE.
    """
    found = run.found
    if run.passed:
        if run.unstable and run.stability and unstable == "fail":
            raise MeasurementError(
                f"UNSTABLE, so nothing is shown about the bound:\n  {unstable_because(run.stability)}",
                hint=f"{what_to_do([run.stability])}; then measure again, or --unstable allow",
            )
        return
    bound = (
        None if isinstance(found, Stages) else (found.runs[0] if isinstance(found, PeakRate) else found).plan.bound_ms
    )
    helps = "a larger --bound-ms or a faster engine" if isinstance(found, PeakRate) else "a lower --rate"
    raise BudgetError(
        "\n  ".join([f"the bound of {chosen(bound)} ms was not shown to be kept:", *run.problems]),
        hint=f"{helps}; where there were too few queries, a longer --duration or more --queries",
    )


def _name(entry: EngineEntry) -> str:
    return f"{entry.target} {entry.precision}"


def _open(folder: Path, engine: EngineChoice, key: Path | None) -> EngineEntry:
    """The engine of a bundle that will be opened."""
    if not (folder / MANIFEST).is_file():
        raise UsageError(
            f"{folder} is not a bundle: scenarios and stages are of one bundle's engine, fed with its golden inputs",
            hint="edgetl bench BUNDLE --scenario … (docs/scenarios.md: other engines from Python)",
        )
    return open_bundle(folder, key=key).choose(engine.target, engine.precision)


def _with_threads(engine: _Choice) -> _Choice:
    return replace(engine, threads=engine.threads or environment.usable_cores())


def _facts(engine: EngineChoice) -> dict[str, Any]:
    return {
        **environment.environment(),
        "threads": engine.threads,
        "load_average": environment.load_average(),
    }
