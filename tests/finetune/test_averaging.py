from __future__ import annotations

import torch

from edgetl.finetune.averaging import copied, mean, move

STATE = {"weight": torch.ones(3), "count": torch.tensor(4)}


def test_a_copy_does_not_follow() -> None:
    state = {"weight": torch.zeros(2)}
    kept = copied(state)
    state["weight"] += 1
    assert kept["weight"].tolist() == [0.0, 0.0]


def test_the_moving_average_goes_to_what_it_sees() -> None:
    average = {"weight": torch.zeros(3), "count": torch.tensor(0)}
    for step in range(400):
        move(average, STATE, 0.9, step)
    torch.testing.assert_close(average["weight"], torch.ones(3))
    assert average["count"] == 4


def test_early_on_it_forgets_soon() -> None:
    average = {"weight": torch.zeros(3), "count": torch.tensor(0)}
    move(average, STATE, 0.999, 0)
    torch.testing.assert_close(average["weight"], torch.full((3,), 0.9))


def test_late_its_decay_is_the_one_asked_for() -> None:
    average = {"weight": torch.zeros(3), "count": torch.tensor(0)}
    move(average, STATE, 0.9, 10_000)
    torch.testing.assert_close(average["weight"], torch.full((3,), 0.1))


def test_the_mean_of_states() -> None:
    states = [{"weight": torch.full((2,), float(n)), "count": torch.tensor(n)} for n in (1, 2, 6)]
    together = mean(states)
    assert together["weight"].tolist() == [3.0, 3.0]
    assert together["count"] == 6
