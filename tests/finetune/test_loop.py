from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgetl.backends.backbones import stages
from edgetl.config import Finetune, Phase
from edgetl.errors import DataError, ProviderError
from edgetl.finetune import loop, state
from edgetl.finetune.phases import Data, Place
from edgetl.metrics import metric

Network = Callable[..., torch.nn.Module]
EVERYTHING = Phase(train="all", epochs=2, lr=3e-3)
SETTINGS = Finetune(batch_size=16)


class Growing:
    """A metric by which every epoch is better than the one before: the last weights are kept."""

    name = "growing"

    def __init__(self) -> None:
        self._values = itertools.count(1)

    def __call__(self, outputs: np.ndarray, labels: np.ndarray) -> float:
        return float(next(self._values))


class Always:
    """A metric that cannot tell weights apart."""

    name = "always"

    def __init__(self, value: float) -> None:
        self._value = value

    def __call__(self, outputs: np.ndarray, labels: np.ndarray) -> float:
        return self._value


def train(
    module: torch.nn.Module, data: Data, phase: Phase = EVERYTHING, settings: Finetune = SETTINGS, **more: Any
) -> loop.PhaseResult:
    return loop.train_phase(module, data, phase, settings, stages(module), **{"seed": 0, **more})


def tensors(module: torch.nn.Module, kind: str = "state_dict") -> dict[str, torch.Tensor]:
    found = module.state_dict() if kind == "state_dict" else dict(getattr(module, kind)())
    return {name: tensor.detach().clone() for name, tensor in found.items()}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


def norms(module: torch.nn.Module) -> set[str]:
    return {
        f"{name}.{part}"
        for name, each in module.named_modules()
        if isinstance(each, torch.nn.BatchNorm2d)
        for part in ("weight", "bias")
    }


class TestWhatMoves:
    def test_the_head_learns_and_nothing_else_moves(self, data: Data, network: Network) -> None:
        module = network()
        before = tensors(module)
        result = train(module, data, Phase(train="head", epochs=30, lr=3e-2, patience=30, until=0.61))
        assert result.best_val_score > 0.6
        assert changed(before, tensors(module)) == {"classifier.weight", "classifier.bias"}
        assert result.trained == sum(before[name].numel() for name in ("classifier.weight", "classifier.bias"))

    def test_everything_learns(self, data: Data, network: Network) -> None:
        module = network()
        before = tensors(module, "named_parameters")
        result = train(module, data, EVERYTHING.model_copy(update={"epochs": 6, "batchnorm": "train"}))
        assert result.best_val_score > 0.9
        assert len(changed(before, tensors(module, "named_parameters"))) > 0.9 * len(before)
        assert result.epochs[-1].train_loss < result.epochs[0].train_loss
        assert not module.training

    def test_biases_and_the_head_alone(self, data: Data, network: Network) -> None:
        module = network()
        before = tensors(module)
        result = train(module, data, Phase(train="biases", epochs=2, lr=5e-2), metric=Growing())
        assert result.best_epoch == 2
        moved = changed(before, tensors(module))
        assert "classifier.weight" in moved
        assert all(name.endswith(".bias") for name in moved - {"classifier.weight"})
        assert len(moved) > 5

    @pytest.mark.parametrize("batchnorm", ["train", "frozen-statistics"])
    def test_frozen_stages_stay_bit_for_bit_with_their_buffers(
        self, batchnorm: str, data: Data, network: Network
    ) -> None:
        module = network()
        before = tensors(module)
        phase = Phase.model_validate(
            {"train": "last-stages", "stages": 1, "epochs": 2, "lr": 1e-2, "batchnorm": batchnorm}
        )
        result = train(module, data, phase, metric=Growing())
        assert result.best_epoch == 2
        trained = {name.rpartition(".")[0] for stage in stages(module)[-2:] for name in stage.parameters}
        moved = changed(before, tensors(module))
        assert moved
        assert {name.rpartition(".")[0] for name in moved} <= trained
        assert any("running_mean" in name for name in moved) == (batchnorm == "train")

    @pytest.mark.parametrize("batchnorm", ["train", "frozen-statistics", "frozen"])
    def test_batchnorm_does_what_the_phase_says(self, batchnorm: str, data: Data, network: Network) -> None:
        module = network()
        before, old = tensors(module, "named_parameters"), tensors(module, "named_buffers")
        # Without validation that beats the start, the old weights would come back and prove nothing.
        phase = EVERYTHING.model_copy(update={"epochs": 1, "batchnorm": batchnorm})
        assert train(module, data, phase, metric=Growing()).best_epoch == 1
        moved = changed(before, tensors(module, "named_parameters"))
        assert bool(changed(old, tensors(module, "named_buffers"))) == (batchnorm == "train")
        assert bool(moved & norms(module)) == (batchnorm != "frozen")

    def test_decay_spares_biases_and_normalisation_and_l1_does_too(self, data: Data, network: Network) -> None:
        plain, decayed, sparse = network(), network(), network()
        phase = EVERYTHING.model_copy(update={"epochs": 1, "lr": 1e-3})
        train(plain, data, phase, SETTINGS.model_copy(update={"weight_decay": 0.0}), metric=Growing())
        train(decayed, data, phase, SETTINGS.model_copy(update={"weight_decay": 50.0}), metric=Growing())
        train(sparse, data, phase, SETTINGS.model_copy(update={"weight_decay": 0.0, "l1": 1.0}), metric=Growing())

        def size(module: torch.nn.Module) -> float:
            return float(sum(p.abs().sum() for p in module.parameters() if p.ndim > 1))

        assert size(decayed) < 0.9 * size(plain)
        assert size(sparse) < size(plain)


def test_convolutions_run_with_their_channels_last(data: Data, network: Network) -> None:
    """Looked at in training; maps of one channel or one pixel are in either order."""
    module, seen = network(), []

    def note(part: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
        if part.training and output.shape[1] > 1 and output.shape[2] > 1:
            seen.append(output.is_contiguous(memory_format=torch.channels_last))

    for part in module.modules():
        if isinstance(part, torch.nn.Conv2d):
            part.register_forward_hook(note)
    train(module, data, EVERYTHING)
    assert seen and all(seen)


class TestWhatIsKept:
    def test_the_best_weights_come_back(self, data: Data, network: Network) -> None:
        module = network()
        good = train(module, data, EVERYTHING.model_copy(update={"epochs": 6, "batchnorm": "train"}))
        kept = tensors(module)
        labels = (data.train.labels + 1) % 3
        wrecked = replace(data, train=type(data.train)(data.train.images, labels), labels=labels.tolist())
        result = train(module, wrecked, EVERYTHING.model_copy(update={"epochs": 4, "lr": 3e-2, "patience": 2}))
        assert result.best_epoch == 0
        assert result.best_val_score == good.best_val_score
        assert len(result.epochs) == 2, "it stopped after its patience"
        assert changed(kept, tensors(module)) == set()

    def test_weights_from_before_the_phase_do_not_win_a_tie(self, data: Data, network: Network) -> None:
        """Else a network that never trained is kept where val cannot tell: here every epoch has the same score."""
        module = network()
        before = tensors(module)
        result = train(module, data, EVERYTHING.model_copy(update={"epochs": 5, "patience": 2}), metric=Always(0.5))
        assert [epoch.val_score for epoch in result.epochs] == [0.5] * 3, "its patience is counted from the first epoch"
        assert result.best_epoch == 1
        assert changed(before, tensors(module))

    def test_of_equal_epochs_the_first_is_kept(self, data: Data, network: Network) -> None:
        one, two = network(), network()
        train(one, data, EVERYTHING.model_copy(update={"epochs": 1, "schedule": "constant"}), metric=Always(0.5))
        train(two, data, EVERYTHING.model_copy(update={"epochs": 2, "schedule": "constant"}), metric=Always(0.5))
        assert changed(tensors(one), tensors(two)) == set()

    def test_it_stops_when_it_is_good_enough(self, data: Data, network: Network) -> None:
        phase = EVERYTHING.model_copy(update={"epochs": 30, "batchnorm": "train", "until": 0.8, "patience": 30})
        result = train(network(), data, phase)
        assert result.best_val_score >= 0.8
        assert len(result.epochs) < 30
        assert result.best_epoch == len(result.epochs)

    def test_a_moving_average_is_what_is_validated_and_kept(self, data: Data, network: Network) -> None:
        plain, averaged = network(), network()
        phase = EVERYTHING.model_copy(update={"epochs": 2, "patience": 9})
        train(plain, data, phase, metric=Growing())
        result = train(averaged, data, phase, SETTINGS.model_copy(update={"ema": 0.9}))
        assert changed(tensors(plain), tensors(averaged))
        with torch.inference_mode():
            logits = averaged(torch.from_numpy(data.val.images)).numpy()
        assert metric("top1")(logits, np.asarray(data.val_labels)) == pytest.approx(result.best_val_score, abs=0.04)

    def test_the_mean_of_the_last_epochs_where_it_is_no_worse(self, data: Data, network: Network) -> None:
        phase = EVERYTHING.model_copy(update={"epochs": 5, "batchnorm": "train", "schedule": "constant"})
        module, settings = network(), SETTINGS.model_copy(update={"average_last": 3})
        result = train(module, data, phase, settings, metric=Growing())
        assert result.averaged == 3 and result.best_val_score == 7, "after the start and five epochs"
        epochs = []
        for count in (3, 4, 5):  # with a constant learning rate a shorter phase is the beginning of a longer one
            train(each := network(), data, phase.model_copy(update={"epochs": count}), metric=Growing())
            epochs.append(tensors(each))
        assert all(changed(one, other) for one, other in itertools.pairwise(epochs))
        for name, tensor in tensors(module).items():
            together = torch.stack([epoch[name].double() for epoch in epochs])
            expected = together.mean(0) if tensor.is_floating_point() else together[-1]
            torch.testing.assert_close(tensor.double(), expected, rtol=1e-5, atol=1e-7)

    def test_a_worse_mean_is_not_kept(self, data: Data, network: Network) -> None:
        class Falling(Growing):
            def __call__(self, outputs: np.ndarray, labels: np.ndarray) -> float:
                return -super().__call__(outputs, labels)

        phase = EVERYTHING.model_copy(update={"epochs": 3, "keep": "last"})
        averaged, plain = network(), network()
        result = train(averaged, data, phase, SETTINGS.model_copy(update={"average_last": 2}), metric=Falling())
        train(plain, data, phase, metric=Falling())
        assert result.averaged == 0 and result.best_epoch == 3
        assert changed(tensors(averaged), tensors(plain)) == set()


class TestTheSameResult:
    def test_the_same_seed_gives_the_same_weights(self, data: Data, network: Network) -> None:
        found = []
        for seed in (5, 5, 6):
            module = network()
            train(module, data, EVERYTHING.model_copy(update={"epochs": 1}), seed=seed, metric=Growing())
            found.append(tensors(module))
        assert changed(found[0], found[1]) == set()
        assert changed(found[0], found[2])

    def test_the_callers_random_numbers_are_left_alone(self, data: Data, network: Network) -> None:
        module = network()
        torch.manual_seed(9)
        expected = torch.rand(3)
        torch.manual_seed(9)
        train(module, data, EVERYTHING.model_copy(update={"epochs": 1}))
        assert torch.equal(torch.rand(3), expected)

    @pytest.mark.parametrize("parts", [2, 5])
    def test_a_step_in_parts_is_the_same_step(self, parts: int, data: Data, network: Network) -> None:
        whole, cut = network(), network()
        phase = EVERYTHING.model_copy(update={"epochs": 1, "lr": 1e-4})
        train(whole, data, phase, metric=Growing())
        train(cut, data, phase, SETTINGS.model_copy(update={"accumulate": parts}), metric=Growing())
        assert changed(tensors(network(), "named_parameters"), tensors(whole, "named_parameters"))
        for name, tensor in tensors(whole, "named_parameters").items():
            torch.testing.assert_close(tensors(cut, "named_parameters")[name], tensor, rtol=1e-3, atol=3e-5)

    def test_clipping_changes_what_it_must(self, data: Data, network: Network) -> None:
        plain, clipped = network(), network()
        phase = EVERYTHING.model_copy(update={"epochs": 1, "schedule": "constant"})
        sgd = SETTINGS.model_copy(update={"optimizer": "sgd", "weight_decay": 0.0})
        train(plain, data, phase, sgd, metric=Growing())
        train(clipped, data, phase, sgd.model_copy(update={"clip_norm": 1e-6}), metric=Growing())
        start = tensors(network(), "named_parameters")
        gone = {n: float((t - start[n]).norm()) for n, t in tensors(clipped, "named_parameters").items()}
        assert (
            max(gone.values())
            < 1e-6
            < max(float((t - start[n]).norm()) for n, t in tensors(plain, "named_parameters").items())
        )

    def test_bfloat16_learns_too(self, data: Data, network: Network) -> None:
        result = train(
            network(),
            data,
            EVERYTHING.model_copy(update={"epochs": 6, "batchnorm": "train"}),
            SETTINGS.model_copy(update={"precision": "bf16"}),
        )
        assert result.precision == "bf16"
        assert result.best_val_score > 0.8


class TestGoingOn:
    """What was interrupted ends with the bits that it would have ended with."""

    @pytest.mark.parametrize("settings", [{}, {"ema": 0.9, "average_last": 2}, {"optimizer": "sgd"}])
    def test_after_any_step(self, settings: dict[str, Any], data: Data, network: Network, tmp_path: Path) -> None:
        few = type(data.train)(data.train.images[:48], data.train.labels[:48])
        data = replace(data, train=few, labels=few.labels.tolist())  # three steps in an epoch
        phase = EVERYTHING.model_copy(update={"epochs": 3, "batchnorm": "train"})
        chosen = SETTINGS.model_copy(update={**settings, "save_every_s": 1e-9, "label_smoothing": 0.1})
        whole = network()
        expected = train(whole, data, phase, chosen)
        for stop in (1, 2, 3, 7):
            module, place = network(), Place(state=tmp_path / str(stop))

            class Stopped(Exception):  # noqa: N818
                pass

            count = 0

            def until(what: str, done: int, total: int, stop: int = stop) -> None:
                nonlocal count
                count += 1
                if count > stop:
                    raise Stopped

            with pytest.raises(Stopped):
                train(module, data, phase, chosen, place=place, progress=until)
            again = network(seed=7)  # not even its weights matter: all of it is in the state
            result = train(again, data, phase, chosen, place=place)
            assert changed(tensors(whole), tensors(again)) == set(), stop
            assert [(e.epoch, e.train_loss, e.val_score) for e in result.epochs] == [
                (e.epoch, e.train_loss, e.val_score) for e in expected.epochs
            ]

    @pytest.mark.parametrize("content", [b"", b"no state", b"PK\x03\x04 half"])
    def test_a_damaged_state_is_none(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / state.FILE).write_bytes(content)
        assert state.load(tmp_path) is None

    def test_a_state_that_would_run_something_is_not_read(self, tmp_path: Path) -> None:
        import pickle

        class Evil:
            def __reduce__(self) -> tuple[Any, ...]:
                return os.mkdir, (str(tmp_path / "ran"),)

        (tmp_path / state.FILE).write_bytes(pickle.dumps(Evil()))
        assert state.load(tmp_path) is None
        assert not (tmp_path / "ran").exists()


class TestRefusals:
    def test_no_samples(self, data: Data, network: Network) -> None:
        with pytest.raises(DataError, match="at least one sample"):
            train(network(), replace(data, labels=[], train=type(data.train)(data.train.images[:0], np.zeros(0, int))))

    def test_cuda_that_is_not_there(self) -> None:
        if torch.cuda.is_available():
            pytest.skip("there is a GPU")
        with pytest.raises(ProviderError, match="no CUDA device"):
            loop.pick_device("cuda")
        assert loop.pick_device("auto") == "cpu"

    def test_half_precision_on_a_cpu(self, data: Data, network: Network) -> None:
        with pytest.raises(ProviderError, match="trains on a GPU alone"):
            train(network(), data, settings=SETTINGS.model_copy(update={"precision": "fp16"}))

    def test_workers(self) -> None:
        assert loop.pick_workers(3, "cpu") == 3
        assert loop.pick_workers(None, "cpu") == 0
        assert 1 <= loop.pick_workers(None, "cuda") <= 8

    def test_a_last_batch_of_one_is_dropped(self, data: Data, network: Network) -> None:
        few = type(data.train)(data.train.images[:33], data.train.labels[:33])
        phase = EVERYTHING.model_copy(update={"epochs": 1, "batchnorm": "train"})
        told: list[int] = []
        train(
            network(),
            replace(data, train=few, labels=few.labels.tolist()),
            phase,
            progress=lambda what, done, total: told.append(total),
        )
        assert told == [2, 2]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_everything_learns_on_a_gpu(precision: str, data: Data, network: Network) -> None:
    module = network()
    phase = EVERYTHING.model_copy(update={"epochs": 6, "batchnorm": "train"})
    result = train(
        module, data, phase, SETTINGS.model_copy(update={"precision": precision}), place=Place(device="cuda")
    )
    assert result.device == "cuda"
    assert result.best_val_score > 0.9
    assert next(module.parameters()).device.type == "cpu"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_compiling_is_decided_by_measuring(data: Data, network: Network) -> None:
    result = train(
        network(), data, settings=SETTINGS.model_copy(update={"compile": "measure"}), place=Place(device="cuda")
    )
    assert set(result.compiled) == {"eager", "compiled"}
