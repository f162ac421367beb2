"""MixUp and CutMix of what is trained on, and of nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgetl.backends.backbones import stages
from edgetl.config import Augment, Finetune, Phase
from edgetl.data.augment import mixed
from edgetl.finetune.loop import PhaseResult, train_phase
from edgetl.finetune.losses import classification, multi_label, positive_weights
from edgetl.finetune.phases import Data, Place
from edgetl.metrics import metric

Network = Callable[..., torch.nn.Module]
PHASE = Phase(train="all", epochs=2, lr=3e-3, batchnorm="train")
SETTINGS = Finetune(batch_size=16)


def train(
    module: torch.nn.Module, data: Data, phase: Phase = PHASE, settings: Finetune = SETTINGS, **more: Any
) -> PhaseResult:
    return train_phase(module, data, phase, settings, stages(module), seed=0, **more)


def mix(images: torch.Tensor, labels: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    return mixed(images, labels, 3, Augment(mixup=0.4, cutmix=1.0), seed)


class Flags(Sequence[Any]):
    """Samples with a label for each class, the next class's in every second sample, too."""

    def __init__(self, samples: Any) -> None:
        self.images = samples.images
        self.flags = np.eye(3, dtype=np.int64)[samples.labels]
        self.flags[::2] |= np.roll(self.flags[::2], 1, axis=1)

    def __len__(self) -> int:
        return len(self.flags)

    def __getitem__(self, key: Any) -> Any:
        return self.images[key[1]], self.flags[key[1]]


def several(data: Data, settings: Finetune) -> Data:
    """The same images with several labels each."""
    train, val = Flags(data.train), Flags(data.val)
    loss = multi_label(settings, torch.from_numpy(positive_weights(train.flags)))
    return replace(data, train=train, labels=train.flags.tolist(), val=val, val_labels=val.flags.tolist(), loss=loss)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_is_mixed_whole_and_val_is_not(accumulate: int, data: Data, network: Network) -> None:
    seen: dict[str, list[torch.Tensor]] = {"train": [], "val": [], "targets": []}
    module = network()
    module.register_forward_pre_hook(
        lambda part, inputs: seen["train" if part.training else "val"].append(inputs[0].clone())
    )

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen["targets"].append(targets)
        return classification(Finetune())(logits, targets)

    settings = SETTINGS.model_copy(update={"accumulate": accumulate})
    phase = PHASE.model_copy(update={"epochs": 1})
    result = train(module, replace(data, mix=mix, loss=loss), phase, settings)
    assert result.epochs[0].train_loss > 0
    whole = [torch.cat(seen["targets"][at : at + accumulate]) for at in range(0, 6 * accumulate, accumulate)]
    assert all(torch.allclose(targets.sum(1), torch.ones(16)) for targets in whole)
    shares = [sorted({round(share, 4) for share in targets.flatten().tolist()} - {0.0, 1.0}) for targets in whole]
    assert all(len(each) == 2 for each in shares), "one share for all of a step, whatever its parts"
    assert len({tuple(each) for each in shares}) == 6, "and another in the next"
    given = {image.tobytes() for image in data.train.images}
    assert not all(image.contiguous().numpy().tobytes() in given for image in torch.cat(seen["train"]))
    val = torch.cat(seen["val"])
    assert torch.equal(val[:30], torch.from_numpy(data.val.images)) and torch.equal(val[:30], val[30:])


def test_mixing_teaches(data: Data, network: Network) -> None:
    phase = PHASE.model_copy(update={"epochs": 8})
    assert train(network(), replace(data, mix=mix), phase).best_val_score > 0.8
    found = replace(several(data, SETTINGS), mix=mix)
    assert train(network(), found, phase, metric=metric("map")).best_val_score > 0.7


@pytest.mark.parametrize(
    ("settings", "labels"),
    [
        ({"accumulate": 2}, "one"),
        ({"accumulate": 3, "clip_norm": 0.5, "balance": "sampler", "loss": "focal"}, "one"),
        ({"accumulate": 2, "ema": 0.9, "label_smoothing": 0.1}, "several"),
    ],
)
def test_a_training_that_was_stopped_goes_on_with_the_same_mixtures(
    settings: dict[str, Any], labels: str, data: Data, network: Network, tmp_path: Path
) -> None:
    few = type(data.train)(data.train.images[:48], data.train.labels[:48])
    data = replace(data, train=few, labels=few.labels.tolist(), mix=mix)  # three steps in an epoch
    chosen, score = SETTINGS.model_copy(update={**settings, "save_every_s": 1e-9}), metric("top1")
    if labels == "several":
        data, score = several(data, chosen), metric("map")
    expected = train(whole := network(), data, PHASE, chosen, metric=score)
    for stop in (1, 3, 4):

        class Stopped(Exception):  # noqa: N818
            pass

        steps: list[int] = []

        def until(what: str, done: int, total: int, stop: int = stop, steps: list[int] = steps) -> None:
            steps.append(done)
            if len(steps) > stop:
                raise Stopped

        place = Place(state=tmp_path / str(stop))
        with pytest.raises(Stopped):
            train(network(), data, PHASE, chosen, place=place, progress=until, metric=score)
        found = train(again := network(seed=7), data, PHASE, chosen, place=place, metric=score)
        assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in whole.state_dict().items()), stop
        assert [each.train_loss for each in found.epochs] == [each.train_loss for each in expected.epochs]
