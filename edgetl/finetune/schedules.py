"""Learning-rate schedules as pure functions of the step: what was interrupted goes on with the same rate."""

from __future__ import annotations

import math

from edgetl.config import Phase

_ONE_CYCLE_START = 1 / 25
_ONE_CYCLE_WARMUP = 0.3


def factor(phase: Phase, step: int, steps: int, steps_per_epoch: int) -> float:
    """What the peak learning rate is multiplied with at a step.

    Args:
        phase: Its schedule, warmup, step_epochs and gamma are read.
        step: From 0.
        steps: Of the whole phase, were it not stopped early.
        steps_per_epoch: For schedule = "step".

    Returns:
        In (0, 1].
    """
    rise = round(_warmup(phase) * steps)
    if step < rise:
        return _rising(phase, (step + 1) / rise)
    # The first step after the rise has the peak, and the last one still moves a little.
    progress = (step - rise) / max(1, steps - rise)
    if phase.schedule in ("cosine", "one-cycle"):
        return (1 + math.cos(math.pi * progress)) / 2
    if phase.schedule == "step":
        return float(phase.gamma ** math.floor(step / (phase.step_epochs * steps_per_epoch)))
    return 1.0


def _warmup(phase: Phase) -> float:
    if phase.warmup is not None:
        return phase.warmup
    return _ONE_CYCLE_WARMUP if phase.schedule == "one-cycle" else 0.0


def _rising(phase: Phase, progress: float) -> float:
    """One-cycle rises along a half cosine from a twenty-fifth of the peak, the others along a line from zero."""
    if phase.schedule == "one-cycle":
        return _ONE_CYCLE_START + (1 - _ONE_CYCLE_START) * (1 - math.cos(math.pi * progress)) / 2
    return progress
