"""The loss and what holds weights back: of [finetune], of one phase alone, and as the record has it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from edgetl.backends.backbones import stages
from edgetl.config import Finetune, Phase
from edgetl.finetune.loop import PhaseResult, train_phase
from edgetl.finetune.losses import class_weights, classification
from edgetl.finetune.phases import Data

Network = Callable[..., torch.nn.Module]
PHASE = Phase(train="all", epochs=1, lr=3e-3, keep="last")
SETTINGS = Finetune(batch_size=16)


def train(module: torch.nn.Module, data: Data, phase: Phase = PHASE, settings: Finetune = SETTINGS) -> PhaseResult:
    return train_phase(module, data, phase, settings, stages(module), seed=0)


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


@pytest.fixture
def uneven(data: Data) -> Data:
    """Of one class a sixth."""
    kept = np.asarray([n for n, label in enumerate(data.train.labels) if label or n % 18 == 0])
    few = type(data.train)(data.train.images[kept], data.train.labels[kept])
    return replace(data, train=few, labels=few.labels.tolist())


@pytest.mark.parametrize(
    "own", [{"loss": "focal"}, {"loss": "focal", "focal_gamma": 4.0}, {"label_smoothing": 0.3}, {"l1": 1e-2}]
)
def test_a_phase_has_a_loss_of_its_own(own: dict[str, Any], data: Data, network: Network) -> None:
    plain, everywhere, here = network(), network(), network()
    train(plain, data)
    train(everywhere, data, settings=SETTINGS.model_copy(update=own))
    found = train(here, data, PHASE.model_copy(update=own))
    assert same(here, everywhere) and not same(here, plain)
    assert own.items() <= found.to_json().items()
    # And it may be milder than the rest.
    back = {"loss": "cross-entropy", "label_smoothing": 0.0, "l1": 0.0}
    train(mild := network(), data, PHASE.model_copy(update=back), SETTINGS.model_copy(update=own))
    assert same(mild, plain)


@pytest.mark.parametrize("focal", [False, True])
def test_class_weights_reach_the_loss(focal: bool, uneven: Data, network: Network) -> None:
    """One step of all samples: its loss is that of the weights from before it."""
    module = network()
    settings = Finetune(batch_size=len(uneven.labels), balance="loss", loss="focal" if focal else "cross-entropy")
    with torch.inference_mode():
        logits = module.eval()(torch.from_numpy(uneven.train.images))
    labels = torch.tensor(uneven.labels)
    each = cross_entropy(logits, labels, reduction="none")
    each = each * (1 - (-each).exp()) ** 2 if focal else each
    weighted = each * torch.from_numpy(class_weights(uneven.labels, 3))[labels]
    assert abs(float(weighted.mean()) - float(each.mean())) > 1e-3, "the weights would not show"
    found = train(module, uneven, PHASE.model_copy(update={"batchnorm": "frozen"}), settings)
    assert found.epochs[0].train_loss == pytest.approx(float(weighted.mean()), rel=1e-4)


def test_the_sampler_reaches_training(uneven: Data, network: Network) -> None:
    seen: dict[str, Counter[int]] = {}
    for balance in ("none", "sampler"):
        counted = seen[balance] = Counter()
        base = classification(SETTINGS)

        def loss(logits: torch.Tensor, targets: torch.Tensor, counted: Counter[int] = counted) -> torch.Tensor:
            counted.update(targets.tolist())
            return base(logits, targets)  # noqa: B023

        settings = Finetune.model_validate({"batch_size": 10, "balance": balance})
        train(network(), replace(uneven, loss=loss), PHASE.model_copy(update={"epochs": 5}), settings)
    assert seen["none"][0] < 0.1 * seen["none"].total() < 0.25 * seen["sampler"].total() < seen["sampler"][0]


def test_the_record_names_every_group(data: Data, network: Network) -> None:
    module = network()
    phase = Phase(train="last-stages", stages=2, epochs=1, lr=1e-2, layer_decay=0.5, label_smoothing=0.1)
    settings = Finetune(batch_size=16, weight_decay=0.03, l1=1e-5, dropout=0.2, optimizer="sgd", momentum=0.8)
    found = train(module, data, phase, settings)
    names = [stage.name for stage in stages(module)][-3:]
    rates = dict(zip(names, (2.5e-3, 5e-3, 1e-2), strict=True))
    assert {group.stage for group in found.groups} == set(names)
    for group in found.groups:
        assert group.lr == pytest.approx(rates[group.stage]) and group.weight_decay in (0.0, 0.03)
    assert [(group.stage, group.weight_decay) for group in found.groups][-2:] == [(names[-1], 0.03), (names[-1], 0.0)]
    assert [(group.tensors, group.parameters) for group in found.groups][-2:] == [(1, 3 * 256), (1, 3)]
    assert sum(group.parameters for group in found.groups) == found.trained
    written = json.loads(json.dumps(found.to_json()))
    assert {name: written[name] for name in ("optimizer", "loss", "focal_gamma", "label_smoothing", "l1")} == {
        "optimizer": "sgd", "loss": "cross-entropy", "focal_gamma": None, "label_smoothing": 0.1, "l1": 1e-5,
    }  # fmt: skip
    assert written["dropout"] == 0.2 and written["groups"][0]["stage"] == names[0]
