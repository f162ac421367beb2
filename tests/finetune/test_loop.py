from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from edgetl.backends.torch import build
from edgetl.errors import ModelError, ProviderError
from edgetl.finetune import loop

BASE = loop.Settings(
    train="all", epochs=2, lr=3e-3, batchnorm="frozen-statistics", patience=5, batch_size=16, weight_decay=1e-4,
    label_smoothing=0.0, seed=0, device="cpu", workers=0,
)  # fmt: skip


def coloured(count: int, seed: int) -> list[tuple[np.ndarray, int]]:
    """Noise with one bright channel: three classes that any network can tell apart."""
    random = np.random.default_rng(seed)
    found = []
    for index in range(count):
        image = random.normal(scale=0.3, size=(3, 32, 32)).astype(np.float32)
        image[index % 3] += 1.5
        found.append((image, index % 3))
    return found


@pytest.fixture(scope="module")
def data() -> tuple[list[tuple[np.ndarray, int]], list[tuple[np.ndarray, int]]]:
    return coloured(96, 0), coloured(30, 1)


def network(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build("timm:test_efficientnet", 3)


def buffers(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.named_buffers()}


def parameters(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.named_parameters()}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


class TestPhases:
    def test_the_head_learns_and_nothing_else_moves(self, data) -> None:  # type: ignore[no-untyped-def]
        module = network()
        before, old = parameters(module), buffers(module)
        result = loop.train_phase(module, *data, replace(BASE, train="head", epochs=30, lr=3e-2))
        assert result.best_val_top1 > 0.6
        assert changed(before, parameters(module)) == {"classifier.weight", "classifier.bias"}
        assert changed(old, buffers(module)) == set()

    def test_everything_learns(self, data) -> None:  # type: ignore[no-untyped-def]
        module = network()
        before = parameters(module)
        result = loop.train_phase(module, *data, replace(BASE, epochs=6, batchnorm="train"))
        assert result.best_val_top1 > 0.9
        assert len(changed(before, parameters(module))) > 0.9 * len(before)
        assert result.epochs[-1].train_loss < result.epochs[0].train_loss
        assert not module.training

    @pytest.mark.parametrize("batchnorm", ["train", "frozen-statistics", "frozen"])
    def test_batchnorm_does_what_the_phase_says(self, batchnorm: str, data) -> None:  # type: ignore[no-untyped-def]
        module = network()
        before, old = parameters(module), buffers(module)
        # Without validation that beats the start, the old weights would come back and prove nothing.
        result = loop.train_phase(module, *data, replace(BASE, epochs=3, batchnorm=batchnorm))
        assert result.best_epoch > 0
        names = {
            f"{name}.{part}"
            for name, module_ in module.named_modules()
            if isinstance(module_, torch.nn.BatchNorm2d)
            for part in ("weight", "bias")
        }
        moved = changed(before, parameters(module))
        assert bool(changed(old, buffers(module))) == (batchnorm == "train")
        assert bool(moved & names) == (batchnorm != "frozen")

    def test_the_best_weights_come_back(self, data) -> None:  # type: ignore[no-untyped-def]
        module = network()
        train, val = data
        good = loop.train_phase(module, train, val, replace(BASE, epochs=6, batchnorm="train"))
        kept = parameters(module)
        wrecked = [(image, (label + 1) % 3) for image, label in train]
        result = loop.train_phase(module, wrecked, val, replace(BASE, epochs=4, lr=3e-2, patience=2))
        assert result.best_epoch == 0 and result.best_val_top1 == good.best_val_top1
        assert len(result.epochs) == 2, "it stopped after its patience"
        assert changed(kept, parameters(module)) == set()

    def test_the_same_seed_gives_the_same_weights(self, data) -> None:  # type: ignore[no-untyped-def]
        found = []
        for seed in (5, 5, 6):
            module = network()
            loop.train_phase(module, *data, replace(BASE, epochs=1, seed=seed))
            found.append(parameters(module))
        assert changed(found[0], found[1]) == set() and changed(found[0], found[2])

    def test_progress_is_told(self, data) -> None:  # type: ignore[no-untyped-def]
        told: list[tuple[str, int, int]] = []
        loop.train_phase(
            network(),
            *data,
            replace(BASE, epochs=1),
            progress=lambda what, done, total: told.append((what, done, total)),
        )
        assert told[-1] == ("all: epoch 1 of 1", 6, 6)


class TestRefusals:
    def test_a_loss_that_is_not_finite(self, data) -> None:  # type: ignore[no-untyped-def]
        train, val = data
        broken = [(np.full_like(image, np.nan), label) for image, label in train]
        with pytest.raises(ModelError, match="the loss became nan in epoch 1"):
            loop.train_phase(network(), broken, val, BASE)

    def test_cuda_that_is_not_there(self) -> None:
        if torch.cuda.is_available():
            pytest.skip("there is a GPU")
        with pytest.raises(ProviderError, match="no CUDA device"):
            loop.pick_device("cuda")
        assert loop.pick_device("auto") == "cpu"

    def test_workers(self) -> None:
        assert loop.pick_workers(3, "cpu") == 3 and loop.pick_workers(None, "cpu") == 0
        assert 1 <= loop.pick_workers(None, "cuda") <= 8

    def test_a_last_batch_of_one_is_dropped(self, data) -> None:  # type: ignore[no-untyped-def]
        train, val = data
        loop.train_phase(network(), train[:33], val, replace(BASE, epochs=1, batchnorm="train"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_everything_learns_on_a_gpu(data) -> None:  # type: ignore[no-untyped-def]
    module = network()
    result = loop.train_phase(module, *data, replace(BASE, epochs=6, device="cuda", batchnorm="train"))
    assert result.device == "cuda" and result.best_val_top1 > 0.9
    assert next(module.parameters()).device.type == "cpu"
