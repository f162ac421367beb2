"""Trainings that come to NaN: told at once, and never kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgetl.backends.backbones import stages
from edgetl.config import Finetune, Phase
from edgetl.errors import DataError, TrainingError
from edgetl.finetune import losses, state
from edgetl.finetune.loop import train_phase
from edgetl.finetune.phases import Data, Place

Network = Callable[..., torch.nn.Module]
PHASE = Phase(train="all", epochs=2, lr=3e-3, keep="last")
SETTINGS = Finetune(batch_size=16, save_every_s=1e-9)


def train(module: torch.nn.Module, data: Data, phase: Phase = PHASE, **more: Any) -> Any:
    return train_phase(module, data, phase, SETTINGS, stages(module), seed=0, **more)


class FlatAtLast:
    """Cross-entropy that from some step on has a finite value and a slope that is not: the root of zero."""

    def __init__(self, step: int) -> None:
        self._step, self._steps = step, 0
        self._base = losses.classification(Finetune())

    def __call__(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        self._steps += 1
        each = self._base(logits, targets)
        return each + (each * 0).sqrt() if self._steps >= self._step else each


def finite(weights: dict[str, torch.Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in weights.values())


def test_a_learning_rate_beyond_measure(data: Data, network: Network) -> None:
    with pytest.raises(TrainingError, match=r"in step \d+ of the phase 'all'; what was kept before stays") as caught:
        train(network(), data, PHASE.model_copy(update={"lr": 1e30, "batchnorm": "train"}))
    assert caught.value.exit_code == 1
    assert "a smaller lr in finetune.phases" in str(caught.value.hint)


def test_samples_that_are_no_numbers_are_named_as_the_data_they_are(data: Data, network: Network) -> None:
    images = data.train.images.copy()
    images[7, 0, 3], images[70, 2] = np.nan, np.inf
    broken = replace(data, train=type(data.train)(images, data.train.labels))
    settings = SETTINGS.model_copy(update={"batch_size": 96})
    module = network()
    with pytest.raises(DataError, match=r"the loss became nan in step 1 .* counted from 0: 7, 70$") as caught:
        train_phase(module, broken, PHASE, settings, stages(module), seed=0)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("step", [3, 6])
def test_weights_that_are_no_numbers_are_neither_kept_nor_gone_on_from(
    step: int, data: Data, network: Network, tmp_path: Path
) -> None:
    """Step 3 is in the middle of an epoch and would be saved, 6 is its last and would be validated."""
    place = Place(state=tmp_path)
    with pytest.raises(TrainingError, match=rf"weights became NaN or infinite in step {step} of the phase 'all'"):
        train(network(), replace(data, loss=FlatAtLast(step)), place=place)
    kept = state.load(tmp_path)
    assert kept is not None and kept["step"] == step - 1
    assert finite(kept["weights"]) and finite(kept["best_weights"])
    again, whole = network(seed=7), network()
    train(again, data, place=place)
    train(whole, data)
    assert finite(again.state_dict())
    assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in again.state_dict().items())


def test_weights_that_are_no_numbers_after_the_very_last_step(data: Data, network: Network) -> None:
    """No later step's loss tells: keep = "last" kept them."""
    with pytest.raises(TrainingError, match="weights became NaN or infinite in step 12"):
        train(network(), replace(data, loss=FlatAtLast(12)))
