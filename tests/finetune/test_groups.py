from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch

from edgetl.backends.backbones import stages
from edgetl.config import Finetune, Phase
from edgetl.finetune.groups import decaying, parameter_groups
from edgetl.finetune.selectors import selected

Network = Callable[..., torch.nn.Module]


def test_every_trained_parameter_is_in_one_group(network: Network) -> None:
    module = network()
    phase = Phase(train="last-stages", stages=2)
    chosen = selected(module, phase, stages(module))
    groups = parameter_groups(module, chosen, phase, Finetune(weight_decay=0.1), stages(module))
    inside = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(inside) == sorted(id(parameter) for name, parameter in module.named_parameters() if name in chosen)


def test_neither_biases_nor_normalisation_decay(network: Network) -> None:
    module = network()
    phase = Phase(train="all")
    chosen = selected(module, phase, stages(module))
    groups = parameter_groups(module, chosen, phase, Finetune(weight_decay=0.1), stages(module))
    for group in groups:
        assert group["weight_decay"] == (0.1 if all(p.ndim > 1 for p in group["params"]) else 0.0)
    decays = {id(parameter) for parameter in decaying(module, chosen)}
    assert decays == {id(p) for group in groups if group["weight_decay"] for p in group["params"]}


def test_stages_nearer_to_the_input_learn_more_slowly(network: Network) -> None:
    module = network()
    phase = Phase(train="all", lr=1.0, layer_decay=0.5)
    chosen = selected(module, phase, stages(module))
    groups = parameter_groups(module, chosen, phase, Finetune(), stages(module))
    rates = {group["stage"]: group["peak_lr"] for group in groups}
    order = [stage.name for stage in stages(module)]
    assert rates[order[-1]] == 1.0
    for near, far in pairwise(order):
        if near in rates and far in rates:
            assert rates[near] == pytest.approx(rates[far] / 2)


def test_the_default_rates() -> None:
    assert Phase(train="head").peak_lr == 1e-2
    assert Phase(train="biases").peak_lr == 1e-3
    assert Phase(train="all", lr=0.3).peak_lr == 0.3
