"""What is refused or told before hours of training: what the project asks for cannot be shown with what it has."""

from __future__ import annotations

from collections.abc import Sequence

from edgetl.benchmark.early_stopping import queries_needed
from edgetl.benchmark.summary import PERCENTILES
from edgetl.config import Config
from edgetl.data.dataset import Dataset
from edgetl.errors import ConfigError
from edgetl.metrics import resample_units
from edgetl.numbers import counted, points_of
from edgetl.parity.bounds import samples_needed
from edgetl.pipeline import tasks
from edgetl.pipeline.engines import Candidate


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
