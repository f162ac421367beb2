"""What a build must show: which engines may be shipped, and when it fails."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgetl.benchmark.early_stopping import queries_needed
from edgetl.benchmark.summary import PERCENTILES
from edgetl.config import Config, Parity
from edgetl.data.dataset import Dataset
from edgetl.errors import BudgetError, ConfigError, MeasurementError, ParityError
from edgetl.metrics import resample_units
from edgetl.numbers import counted, points_of
from edgetl.parity.bounds import samples_needed
from edgetl.parity.compare import Comparison
from edgetl.parity.numeric import TOLERANCES, Tolerance
from edgetl.pipeline import tasks, timing, transfer
from edgetl.specs import Precision

if TYPE_CHECKING:
    from edgetl.pipeline.choice import Decision
    from edgetl.pipeline.engines import Candidate
    from edgetl.pipeline.timing import Timings


def check_gate(config: Config) -> None:
    """Refuse a gate that the project's metric cannot have, before anything is trained.

    Raises:
        ConfigError: parity.sequential, and the metric is not top-1; or data.slices, and decisions are on pairs.
    """
    metric = tasks.metric_of(config)
    if config.data.slices and metric.by_identity:
        raise ConfigError(
            f"data.slices names '{config.data.slices[0]}', and {metric.title} is of pairs of samples, which stand in no"
            " slice",
            hint="leave out data.slices",
        )
    if config.parity.sequential and metric.name != "top1":
        raise ConfigError(
            f"parity.sequential stops by counting right decisions, and this project measures {metric.title}",
            hint='parity.sequential = false, or data.metric = "top1"',
        )
    if config.parity.sequential and config.parity.max_drop >= 1.0:
        raise ConfigError("parity.max_drop = 1 allows everything: there is nothing to decide sequentially")


def too_few_samples(config: Config, samples: int) -> str:
    """What to tell before hours of training, where the test split cannot show parity of an equal engine.

    Args:
        config: The project's.
        samples: Of the test split.

    Returns:
        A sentence; empty where they are enough for an engine that never disagrees with PyTorch.
    """
    gate = config.parity
    needed = samples_needed(gate.max_drop, gate.confidence)
    if samples >= needed:
        return ""
    return (
        f"{counted(samples, 'test sample')} cannot show that an engine as good as PyTorch drops by less than"
        f" {points_of(gate.max_drop)} with {100 * gate.confidence:.12g}% confidence: at least {needed} are needed"
        + (", and the build will fail (parity.undecided)" if gate.undecided == "fail" else "")
    )


def too_few_of_a_class(config: Config, dataset: Dataset) -> str:
    """What to tell before hours of training, where the metric is a mean over classes and one is too rare.

    Args:
        config: The project's.
        dataset: Of which the test split is looked at.

    Returns:
        A sentence; empty where the samples of every class are enough, and for other metrics.
    """
    metric, gate = tasks.metric_of(config), config.parity
    if not metric.by_class:
        return ""
    apart: dict[int, set[object]] = {}
    for number, sample in enumerate(dataset.test):
        for index in sample.present:
            apart.setdefault(index, set()).add(sample.group or number)
    needed = samples_needed(gate.max_drop * len(apart), gate.confidence)
    rarest = min(apart, key=lambda index: len(apart[index]), default=None)
    if rarest is None or len(apart[rarest]) >= needed:
        return ""
    return (
        f"{metric.title} is a mean over {len(apart)} classes, of which '{dataset.classes[rarest]}' has"
        f" {len(apart[rarest])} in test: at least {needed} of each show that an engine as good as PyTorch drops by less"
        f" than {points_of(gate.max_drop)} with {100 * gate.confidence:.12g}% confidence"
        + (", and the build will fail (parity.undecided)" if gate.undecided == "fail" else "")
    )


def samples_in_groups(config: Config, groups: Sequence[str | None]) -> str:
    """What to tell where test samples belong together, and a group counts as one.

    Args:
        config: Of the project.
        groups: Of each test sample; None where it is in none.

    Returns:
        A sentence; empty where no two samples are of one group, and for metrics of identities.

    Raises:
        ConfigError: They do, and samples are to be looked at one by one until it is decided.
    """
    units = None if tasks.metric_of(config).by_identity else resample_units(groups)
    if units is None:
        return ""
    apart = int(units.max()) + 1
    if config.parity.sequential:
        raise ConfigError(
            f"parity.sequential takes test samples one by one, and these {len(groups)} belong together in {apart}"
            " groups: what errs together is no evidence of its own",
            hint="parity.sequential = false, or one sample of each group in test",
        )
    needed = samples_needed(config.parity.max_drop, config.parity.confidence)
    few = (
        f"; at least {needed} groups show a drop below {points_of(config.parity.max_drop)}, and parity will be"
        " undecided"
        if apart < needed
        else ""
    )
    return f"{len(groups)} test samples belong together in {apart} groups, of which each counts as one for parity{few}"


def check_budgets(config: Config, candidates: list[Candidate]) -> None:
    """Refuse a budget for a percentile that the benchmark's calls could not back, before anything is trained.

    Raises:
        ConfigError: A target has one.
    """
    for candidate in candidates:
        for field in candidate.entry.budget.model_dump(exclude_none=True):
            name = field.removesuffix("_ms")
            needed = queries_needed(PERCENTILES[name])
            if config.bench.samples < needed:
                raise ConfigError(
                    f"the target {candidate.target.name} has a budget for {name}, which takes at least {needed} timed"
                    f" calls; bench.samples is {config.bench.samples}",
                    hint=f"bench.samples = {needed}",
                )


def refuse_implausible(timings: Timings, decisions: list[Decision]) -> None:
    """Fail a build that would ship an engine whose measurement cannot be true.

    Raises:
        MeasurementError: There is one.
    """
    doubts = [
        f"{name}: {doubt}"
        for item in decisions
        if item.shipped and item.latency
        for name in [item.proven.engine.candidate.name]
        for doubt in timings.details.get("implausible", {}).get(name, ())
    ]
    if doubts:
        raise MeasurementError(
            "a measurement cannot be true:\n  " + "\n  ".join(doubts), hint="edgetl verify, or edgetl bench by hand"
        )


def is_unstable(config: Config, timings: Timings, item: Decision) -> bool:
    """Whether an engine's budget is no gate that it passed, because its measurement is UNSTABLE."""
    candidate = item.proven.engine.candidate
    stability = timings.stability.get(candidate.name)
    has_budget = bool(candidate.entry.budget.model_dump(exclude_none=True))
    return config.bench.unstable == "fail" and has_budget and stability is not None and bool(stability.against)


def refuse_unstable(config: Config, timings: Timings, decisions: list[Decision]) -> None:
    """Fail a build that would ship an engine whose budget is met by a measurement that is UNSTABLE.

    Raises:
        MeasurementError: There is one, and bench.unstable is "fail".
    """
    found = {
        item.proven.engine.candidate.name: timings.stability[item.proven.engine.candidate.name]
        for item in decisions
        if item.shipped and is_unstable(config, timings, item)
    }
    if found:
        raise MeasurementError(
            "the measurement is UNSTABLE, so it shows nothing about the budget:\n  "
            + "\n  ".join(
                f"{names}: {because}"
                for names, because in timing.unstable_lines(found, timed=len(timings.stability)).items()
            ),
            hint=f"{timing.what_to_do(list(found.values()))}; then edgetl build --force bench."
            ' Or bench.unstable = "allow"',
        )


def tolerance(gate: Parity, precision: Precision) -> Tolerance | None:
    """What the numbers of an engine must keep to."""
    if precision in gate.tolerances:
        return Tolerance(**gate.tolerances[precision].model_dump())
    return TOLERANCES.get(precision)


def accepted(gate: Parity, comparison: Comparison | None) -> bool:
    """Whether an engine may be shipped: it passed, or nothing was decided and the user lets that do."""
    if comparison is None:
        return False
    return comparison.passed or (comparison.outcome == "undecided" and gate.undecided == "allow")


def gate(config: Config, decisions: list[Decision], judged: transfer.Comparison | None = None) -> None:
    """Fail a build that cannot show what it must.

    Args:
        config: The project's.
        decisions: What becomes of its engines.
        judged: Whether transfer helped; None where it was not judged.

    Raises:
        ParityError: A target has no precision that passes parity, or, with parity.require = "all", one that fails; or,
            with finetune.verdict = "require", transfer did not help; or, with finetune.max_forgetting, such a drop on
            the source task is not excluded.
        BudgetError: The engine that would be shipped misses its budget.
    """
    failures, budgets, on_transfer, unsure = [], [], [], True
    if judged is not None:
        if config.finetune.verdict == "require" and judged.verdict.outcome != "helped":
            on_transfer.append(f"transfer did not help: {judged.verdict.statement}")
        refusal = judged.refusal(config.finetune.max_forgetting)
        on_transfer += [refusal] if refusal else []
    for target in dict.fromkeys(item.proven.engine.candidate.target.name for item in decisions):
        tested = [
            item
            for item in decisions
            if item.proven.engine.candidate.target.name == target and item.proven.comparison is not None
        ]
        failed = [item for item in tested if not accepted(config.parity, item.proven.comparison)]
        if failed and (config.parity.require == "all" or len(failed) == len(tested)):
            unsure &= all(item.proven.comparison.outcome == "undecided" for item in failed if item.proven.comparison)
            failures += [
                f"{item.proven.engine.candidate.name}: {item.proven.comparison.statement}"
                for item in failed
                if item.proven.comparison
            ]
        budgets += [
            f"{item.proven.engine.candidate.name}: {'; '.join(item.missed)}"
            for item in tested
            if item.shipped and item.missed
        ]
    if on_transfer and not failures:
        raise ParityError("the verdict on transfer was not passed:\n  " + "\n  ".join(on_transfer), hint=transfer.HINT)
    if failures:
        raise ParityError(
            "parity was not shown:\n  " + "\n  ".join([*on_transfer, *failures]),
            hint='more test samples, a larger parity.max_drop, or parity.undecided = "allow"'
            if unsure
            else "more calibration samples, another recipe (edgetl recipes), more test samples, or parity.max_drop",
        )
    if budgets:
        raise BudgetError(
            "the latency budget was missed:\n  " + "\n  ".join(budgets),
            hint="a smaller backbone or image_size, another precision, or a larger budget",
        )
