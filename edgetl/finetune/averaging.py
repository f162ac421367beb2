"""Averages of weights: a moving one over steps, and a plain one over epochs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    State = dict[str, torch.Tensor]


def copied(state: State) -> State:
    """A copy of a state dict that later steps do not change."""
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def move(average: State, state: State, decay: float, step: int) -> None:
    """Bring an exponential moving average up to date, in place.

    Early on the decay is (1 + step) / (10 + step), where that is smaller, so that the random start is soon forgotten
    (as TensorFlow's ExponentialMovingAverage with num_updates). Integer buffers are copied.

    Args:
        average: Changed.
        state: The weights after the step.
        decay: Share of the old average that is kept.
        step: From 0.
    """
    import torch

    kept = min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        for name, tensor in state.items():
            if tensor.is_floating_point():
                average[name].lerp_(tensor.detach(), 1 - kept)
            else:
                average[name].copy_(tensor)


def mean(states: list[State]) -> State:
    """The mean of state dicts of one network; integer buffers are the last one's."""
    import torch

    return {
        name: torch.stack([state[name] for state in states]).mean(0) if tensor.is_floating_point() else tensor.clone()
        for name, tensor in states[-1].items()
    }
