"""What is refused or told before a build trains anything."""

from __future__ import annotations

import pytest
from decided import config, proven

from edgetl.config import Budget, Config, TargetEntry
from edgetl.data.dataset import Dataset, Sample
from edgetl.errors import ConfigError
from edgetl.pipeline.preflight import check_budgets, check_gate, samples_in_groups, too_few_of_a_class, too_few_samples


def test_a_metric_that_is_no_share_of_right_decisions_has_no_sequential_gate() -> None:
    target = TargetEntry(device="x86-64-cpu")
    common = {"project": {"name": "p"}, "target": [target.model_dump()], "parity": {"sequential": True}}
    images = {"train": "a", "test": "b"}
    check_gate(Config.model_validate({"schema": 1, **common, "data": images}))
    with pytest.raises(ConfigError, match=r"counting right decisions, and this project measures AUC"):
        check_gate(Config.model_validate({"schema": 1, **common, "data": {**images, "metric": "auc"}}))


def test_faces_have_no_slices() -> None:
    """They were asked for, and nothing said that there were none."""
    data = {"task": "face-verification", "manifest": "m.csv", "slices": ["camera"]}
    common = {"schema": 1, "project": {"name": "p"}, "target": [{"device": "cpu"}]}
    with pytest.raises(ConfigError, match=r"data\.slices names 'camera', and TAR at FAR 1% is of pairs"):
        check_gate(Config.model_validate({**common, "data": data}))
    check_gate(Config.model_validate({**common, "data": {**data, "task": "image-classification"}}))


@pytest.mark.parametrize(("field", "samples"), [("p50_ms", 20), ("p90_ms", 64), ("p99_ms", 662)])
def test_a_budget_needs_the_calls_that_back_it(field: str, samples: int) -> None:
    item = proven("int8", budget=Budget.model_validate({field: 8}))
    values = config().model_dump(by_alias=True)
    check_budgets(Config.model_validate({**values, "bench": {"samples": samples}}), [item.engine.candidate])
    if samples > 20:
        with pytest.raises(ConfigError, match=rf"at least {samples} timed calls; bench\.samples is {samples - 1}"):
            few = Config.model_validate({**values, "bench": {"samples": samples - 1}})
            check_budgets(few, [item.engine.candidate])


@pytest.mark.parametrize(("samples", "max_drop", "needed"), [(298, 0.01, 299), (299, 0.01, None), (59, 0.05, 60)])
def test_too_few_samples_are_told_before_training(samples: int, max_drop: float, needed: int | None) -> None:
    said = too_few_samples(config(max_drop=max_drop), samples)
    assert (f"at least {needed} are needed, and the build will fail" in said) if needed else said == ""
    allowed = too_few_samples(config(max_drop=max_drop, undecided="allow"), samples)
    assert "will fail" not in allowed and bool(allowed) == bool(needed)


@pytest.mark.parametrize(
    ("counts", "groups", "metric", "said"),
    [
        ((200, 20), None, "macro-f1", "2 classes, of which 'b' has 20 in test: at least 29 of each"),
        ((200, 30), None, "macro-f1", ""),
        ((200, 30), 10, "macro-f1", "'b' has 3 in test"),
        ((200, 20), None, "top1", ""),
    ],
)
def test_a_rare_class_is_told_before_training_where_classes_count_alike(
    counts: tuple[int, int], groups: int | None, metric: str, said: str
) -> None:
    """In a mean over two classes a drop of 5 points is one of 10 in a class alone: 0.9²⁹ is below 5%."""
    samples = tuple(
        Sample(raw="", label=label, group=f"{label} {number // groups}" if groups else None, digest="")
        for label, count in enumerate(counts)
        for number in range(count)
    )
    asked = config(max_drop=0.05)
    asked = asked.model_copy(update={"data": asked.data.model_copy(update={"metric": metric})})
    found = too_few_of_a_class(asked, Dataset(classes=("a", "b"), train=(), val=(), test=samples))
    assert said in found and bool(said) == bool(found)


@pytest.mark.parametrize(
    ("groups", "apart"), [(["a", "a", "b", None, None, ""], 5), (["a", "b", None, None], None), ([None] * 3, None)]
)
def test_samples_that_belong_together_are_told(groups: list[str | None], apart: int | None) -> None:
    said = samples_in_groups(config(), groups)
    assert (f"{len(groups)} test samples belong together in {apart} groups" in said) if apart else said == ""
    if apart:
        assert "at least 299 groups show a drop below 1 point," in said
        with pytest.raises(ConfigError, match=f"these {len(groups)} belong together in {apart} groups"):
            samples_in_groups(config(sequential=True), groups)
    else:
        assert samples_in_groups(config(sequential=True), groups) == ""
