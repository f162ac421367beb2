"""What a build must have shown in the end, and when it fails."""

from __future__ import annotations

from edgetl.config import Config
from edgetl.errors import BudgetError, MeasurementError, ParityError
from edgetl.pipeline import timing, transfer
from edgetl.pipeline.choice import Decision
from edgetl.pipeline.proof import accepted
from edgetl.pipeline.timing import Timings


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
