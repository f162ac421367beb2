from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.config import Phase
from edgetl.finetune.schedules import factor

NAMES = ("constant", "step", "cosine", "one-cycle")


def curve(phase: Phase, steps: int = 100, per_epoch: int = 25) -> list[float]:
    return [factor(phase, step, steps, per_epoch) for step in range(steps)]


@given(st.sampled_from(NAMES), st.floats(0, 0.9) | st.none(), st.integers(1, 200), st.integers(1, 50))
def test_a_factor_is_above_zero_and_at_most_one(name: str, warmup: float | None, steps: int, per_epoch: int) -> None:
    phase = Phase.model_validate({"train": "all", "schedule": name, "warmup": warmup})
    assert all(0 < value <= 1 for value in curve(phase, steps, per_epoch))


def test_constant() -> None:
    assert set(curve(Phase(train="all", schedule="constant"))) == {1.0}


def test_step_is_that_of_torch() -> None:
    import torch

    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    phase = Phase(train="all", schedule="step", step_epochs=2, gamma=0.5)
    assert [factor(phase, epoch * 10, 60, 10) for epoch in range(6)] == pytest.approx(rates)


def test_cosine_falls_from_the_peak() -> None:
    values = curve(Phase(train="all", schedule="cosine"))
    assert values[0] == 1.0
    assert values == sorted(values, reverse=True)
    assert values[50] == pytest.approx(0.5)


def test_one_cycle_is_close_to_that_of_torch() -> None:
    import torch

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=100, cycle_momentum=False)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert curve(Phase(train="all")) == pytest.approx(rates, abs=0.06)


def test_step_rises_first_where_it_has_a_warmup_and_falls_by_epochs_of_the_phase() -> None:
    """100 steps in four epochs of 25; the falls stay at the ends of epochs, wherever the rise ended."""
    phase = Phase(train="all", schedule="step", warmup=0.1, step_epochs=1, gamma=0.5)
    rise = [0.1 * step for step in range(1, 11)]
    assert curve(phase) == pytest.approx([*rise, *[1.0] * 15, *[0.5] * 25, *[0.25] * 25, *[0.125] * 25])
    late = phase.model_copy(update={"warmup": 0.3})  # beyond the first fall: to the peak all the same
    assert curve(late)[:30] == pytest.approx([step / 30 for step in range(1, 31)])
    assert curve(late)[30:50] == [0.5] * 20


def test_warmup_rises_to_the_peak_and_then_the_schedule_begins() -> None:
    values = curve(Phase(train="all", schedule="cosine", warmup=0.1))
    assert values[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert values[10] == 1.0
    assert values[10:] == sorted(values[10:], reverse=True)
