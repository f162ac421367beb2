from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from edgetl.backends.backbones import stages
from edgetl.config import Phase
from edgetl.errors import ModelError
from edgetl.finetune.selectors import prepare, selected

Network = Callable[..., torch.nn.Module]


def names(module: torch.nn.Module) -> set[str]:
    return {name for name, _ in module.named_parameters()}


def training(module: torch.nn.Module) -> set[str]:
    return {name for name, part in module.named_modules() if part.training}


class TestSelected:
    def test_the_head_is_the_last_stage(self, network: Network) -> None:
        module = network()
        assert selected(module, Phase(train="head"), stages(module)) == {"classifier.weight", "classifier.bias"}

    def test_all(self, network: Network) -> None:
        module = network()
        assert selected(module, Phase(train="all"), stages(module)) == names(module)

    def test_biases_and_the_head(self, network: Network) -> None:
        module = network()
        chosen = selected(module, Phase(train="biases"), stages(module))
        assert chosen - {"classifier.weight"} == {name for name in names(module) if name.endswith(".bias")}

    def test_last_and_first_stages_complement_each_other(self, network: Network) -> None:
        module = network()
        parts = stages(module)
        body = len(parts) - 1
        for count in range(1, body + 1):
            last = selected(module, Phase(train="last-stages", stages=count), parts)
            frozen = names(module) - selected(module, Phase(train="all-but-first", stages=body - count or 1), parts)
            if count < body:
                assert names(module) - last == frozen
            assert {"classifier.weight", "classifier.bias"} <= last
            assert set(parts[-2].parameters) <= last

    def test_names_are_patterns_and_the_head_is_not_among_them_by_itself(self, network: Network) -> None:
        module = network()
        chosen = selected(module, Phase(train="names", names=("conv_stem.*", "*.bias")), stages(module))
        assert "conv_stem.weight" in chosen
        assert "classifier.bias" in chosen
        assert "classifier.weight" not in chosen

    def test_frozen_batchnorm_is_never_among_them(self, network: Network) -> None:
        module = network()
        chosen = selected(module, Phase(train="all", batchnorm="frozen"), stages(module))
        norms = {
            f"{prefix}.{name}"
            for prefix, part in module.named_modules()
            if isinstance(part, torch.nn.BatchNorm2d)
            for name in ("weight", "bias")
        }
        assert norms
        assert chosen == names(module) - norms

    def test_more_stages_than_there_are(self, network: Network) -> None:
        module = network()
        with pytest.raises(ModelError, match=r"stages = 99: the network has \d+ stages before its head") as found:
            selected(module, Phase(train="last-stages", stages=99), stages(module))
        assert stages(module)[0].name in str(found.value.hint)

    def test_a_pattern_that_matches_nothing(self, network: Network) -> None:
        module = network()
        with pytest.raises(
            ModelError, match=r"no parameter of the network matches 'conv_stm.weight'.*conv_stem.weight"
        ):
            selected(module, Phase(train="names", names=("conv_stm.weight",)), stages(module))

    def test_a_pattern_that_is_like_no_name(self, network: Network) -> None:
        """Hundreds of names are no answer."""
        module = network()
        with pytest.raises(ModelError) as found:
            selected(module, Phase(train="names", names=("99*",)), stages(module))
        count = len(names(module))
        assert "; it has conv_stem.weight, " in found.value.message and f" … classifier.bias, {count} in all" in (
            found.value.message
        )
        assert len(found.value.message) < 160

    def test_nothing_is_left(self, network: Network) -> None:
        module = network()
        with pytest.raises(ModelError, match="leaves nothing to train"):
            selected(module, Phase(train="names", names=("bn1.*",), batchnorm="frozen"), stages(module))


class TestPrepare:
    @pytest.mark.parametrize("train", ["head", "all", "biases"])
    @pytest.mark.parametrize("batchnorm", ["train", "frozen-statistics", "frozen"])
    def test_it_is_the_same_however_often_and_whatever_was_before(
        self, train: str, batchnorm: str, network: Network
    ) -> None:
        module = network()
        phase = Phase.model_validate({"train": train}).model_copy(update={"batchnorm": batchnorm})
        chosen = selected(module, phase, stages(module))
        prepare(module, chosen, batchnorm=batchnorm)
        first = training(module), {name for name, p in module.named_parameters() if p.requires_grad}
        assert first[1] == chosen
        for disturb in (module.train, module.eval, lambda: module.requires_grad_(True)):
            disturb()
            prepare(module, chosen, batchnorm=batchnorm)
            assert (training(module), {name for name, p in module.named_parameters() if p.requires_grad}) == first

    def test_what_is_not_trained_rests(self, network: Network) -> None:
        module = network()
        prepare(module, frozenset({"classifier.weight", "classifier.bias"}), batchnorm="train")
        assert not any(part.training for part in module.blocks.modules() if list(part.parameters()))  # type: ignore[union-attr, operator]
        assert module.classifier.training  # type: ignore[union-attr]

    def test_statistics_stay_while_scale_and_shift_learn(self, network: Network) -> None:
        module = network()
        prepare(module, frozenset(names(module)), batchnorm="frozen-statistics")
        norms = [part for part in module.modules() if isinstance(part, torch.nn.BatchNorm2d)]
        assert norms
        assert not any(norm.training for norm in norms)
        assert all(norm.weight.requires_grad for norm in norms)
