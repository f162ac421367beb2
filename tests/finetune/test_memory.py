"""What the allocator keeps while a network is trained: seen from outside, in pages that the system had to give; and
what is said where the memory of a GPU runs out."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from edgetl.backends.backbones import Stage, stages
from edgetl.config import Finetune, Phase
from edgetl.errors import ModelError, TrainingError
from edgetl.finetune.features import TorchExtractor
from edgetl.finetune.loop import train_phase
from edgetl.finetune.memory import kept_between_steps
from edgetl.finetune.parts import at_once, check_batchnorm, cut, one_by_one
from edgetl.finetune.phases import Data
from edgetl.finetune.trainer import Trainer

Network = Callable[..., torch.nn.Module]

_STEPS = """
import json, resource
from pathlib import Path
from edgetl.finetune.memory import kept_between_steps
from edgetl.finetune.parts import at_once, check_batchnorm, cut, one_by_one

SIZE, STEPS = 64 << 20, 10

def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1])

def steps():
    before = pages()
    for _ in range(STEPS):
        freed = b"x" * SIZE
        del freed
    return pages() - before

found = {"before": steps(), "resident_before": resident()}
with kept_between_steps() as kept:
    found |= {"kept": kept, "first": steps(), "inside": steps(), "resident_inside": resident()}
print(json.dumps(found | {"after": steps(), "resident_after": resident(), "pages": SIZE // resource.getpagesize()}))
"""


def test_memory_is_kept_while_it_is_open_and_given_back_afterwards() -> None:
    done = subprocess.run([sys.executable, "-c", _STEPS], capture_output=True, text=True, timeout=60, check=True)
    found = json.loads(done.stdout)
    if not found["kept"]:
        pytest.skip("no glibc here")
    assert found["before"] >= 9 * found["pages"], "each step has its pages from the system"
    assert found["inside"] < 0.1 * found["pages"], "no step has"
    assert found["resident_inside"] > found["resident_before"] + 0.9 * found["pages"]
    assert found["resident_after"] < found["resident_before"] + 0.1 * found["pages"]
    assert found["after"] >= 9 * found["pages"]


class OldGlibc:
    """One that takes no threshold above 32 MiB."""

    def __init__(self) -> None:
        self.taken: list[tuple[int, int]] = []

    def mallopt(self, parameter: ctypes.c_int, value: ctypes.c_int) -> int:
        if value.value > 32 << 20:
            return 0
        self.taken.append((parameter.value, value.value))
        return 1

    malloc_trim = gnu_get_libc_version = mallopt


def test_an_allocator_that_refuses_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A threshold that is set ends glibc's own rule for the other."""
    old = OldGlibc()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: old)
    with kept_between_steps() as kept:
        assert not kept and not old.taken
    assert not old.taken


def test_an_error_ends_it_too() -> None:
    with pytest.raises(ZeroDivisionError), kept_between_steps():
        raise ZeroDivisionError
    with kept_between_steps():
        pass


# --- a GPU's ---------------------------------------------------------------------------------------------------------


PHASE = Phase(train="all", epochs=1, lr=1e-3)


def out_of_memory(*given: object, **more: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize(
    ("settings", "batchnorm", "at_a_time", "hint"),
    [
        ({"batch_size": 16}, "frozen", 16, "finetune.accumulate = 2 computes a step in smaller parts, with the same"),
        ({"batch_size": 16, "accumulate": 4}, "train", 4, "finetune.accumulate = 8 computes a step in smaller parts; "),
        ({"batch_size": 16, "accumulate": 5}, "frozen", 4, "finetune.accumulate = 10 "),
        ({"batch_size": 16, "accumulate": 16}, "frozen", 1, 'a smaller backbone; or finetune.device = "cpu"'),
        ({"batch_size": 16, "accumulate": 8}, "train", 2, 'a smaller backbone; or finetune.device = "cpu"'),
    ],
)
def test_a_step_that_does_not_fit(
    settings: dict[str, Any],
    batchnorm: str,
    at_a_time: int,
    hint: str,
    data: Data,
    network: Network,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Trainer, "_one_step", out_of_memory)
    module, phase = network(), Phase.model_validate({**PHASE.model_dump(), "batchnorm": batchnorm})
    with pytest.raises(TrainingError, match=f"the GPU's memory does not hold {at_a_time} samples at a time") as caught:
        train_phase(module, data, phase, Finetune(**settings), stages(module), seed=0)
    assert caught.value.exit_code == 1 and hint in str(caught.value.hint)
    assert not isinstance(caught.value, torch.OutOfMemoryError) and caught.value.__suppress_context__


TRAINED = PHASE.model_copy(update={"batchnorm": "train"})


@pytest.mark.parametrize("settings", [{"batch_size": 16, "accumulate": 16}, {"batch_size": 2, "accumulate": 2}])
def test_one_sample_at_a_time_is_enough_for_batchnorm_where_maps_have_several_pixels(
    settings: dict[str, Any], data: Data, network: Network
) -> None:
    few, module = first(data, 18, scale=2), network()
    sizes = seen(module)
    assert train_phase(module, few, TRAINED, Finetune(**settings), stages(module), seed=0).epochs
    assert sizes == [1] * 18


@pytest.mark.parametrize("settings", [{"batch_size": 16, "accumulate": 16}, {"batch_size": 2, "accumulate": 3}])
def test_one_value_per_channel_is_too_few_for_a_batchnorm_that_learns(settings: dict[str, Any], data: Data) -> None:
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 4), torch.nn.BatchNorm1d(4))
    parameters = tuple(name for name, _ in module.named_parameters())
    few = replace(first(data, 18), classes=4)
    whole = [Stage(name="head", parameters=parameters)]
    with pytest.raises(ModelError, match="a single one in step 0 of the phase 'all'") as caught:
        train_phase(module, few, TRAINED, Finetune(**settings), whole, seed=0)
    assert "a smaller accumulate" in str(caught.value.hint)
    one = torch.from_numpy(few.train.images[:1])
    with pytest.raises(ModelError, match=r"'2' would be given one value per channel"):  # and so it is told before
        check_batchnorm(module, frozenset(parameters), Finetune(**settings), one, processes=1)
    phase = TRAINED.model_copy(update={"batchnorm": "frozen-statistics"})
    assert train_phase(module, few, phase, Finetune(**settings), whole, seed=0).epochs


def settings_of(batch: int, accumulate: int) -> Finetune:
    return Finetune(batch_size=batch, accumulate=accumulate)


@pytest.mark.parametrize(
    ("batch", "accumulate", "processes", "alone"),
    [
        *((16, 16, 1, True), (16, 15, 1, False), (16, 8, 2, True), (16, 7, 2, False), (2, 3, 1, True)),
        *((2, 1, 1, False), (2, 1, 2, True), (3, 1, 2, True), (4, 1, 2, False)),
    ],
)
def test_which_settings_leave_single_samples(batch: int, accumulate: int, processes: int, alone: bool) -> None:
    """By the parts themselves: of every process's share of a step, and of the smallest last batch that there is."""
    assert one_by_one(TRAINED, settings_of(batch, accumulate), processes) == alone
    most, sizes = at_once(settings_of(batch, accumulate), processes), set()
    for samples in (batch, *([2 * processes] if 2 * processes < batch else [])):
        for rank in range(processes):
            share = torch.zeros(len(range(rank, samples, processes)))
            sizes |= {len(part) for part, _ in cut(share, share, most, learns=True)}
    assert (1 in sizes) == alone
    for phase in (PHASE.model_copy(update={"batchnorm": "frozen"}), TRAINED.model_copy(update={"train": "head"})):
        assert not one_by_one(phase, settings_of(batch, accumulate), processes)


@pytest.mark.parametrize(
    ("batch", "accumulate", "processes", "words", "hint"),
    [
        (16, 16, 1, "finetune.accumulate = 16 of finetune.batch_size = 16 leaves", "finetune.accumulate = 8 or less; "),
        (5, 7, 1, "finetune.accumulate = 7 of finetune.batch_size = 5 leaves", "finetune.accumulate = 3 or less; "),
        (16, 8, 2, "finetune.accumulate = 8 of finetune.batch_size = 16 leaves", "finetune.accumulate = 4 or less; "),
        (3, 1, 2, "finetune.batch_size = 3 in 2 processes leaves", "finetune.batch_size = 4 or more; "),
        (
            3,
            2,
            2,
            "finetune.batch_size = 3 in 2 processes leaves",
            "batch_size = 4 or more, with finetune.accumulate =",
        ),
    ],
)
def test_single_values_are_told_before_training(
    batch: int, accumulate: int, processes: int, words: str, hint: str, data: Data, network: Network
) -> None:
    """The last maps of this network have a pixel for 32 of the image."""
    module = network()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    chosen, settings = frozenset(name for name, _ in module.named_parameters()), settings_of(batch, accumulate)
    one, large = (torch.from_numpy(first(data, 1, scale=scale).train.images) for scale in (1, 2))
    with pytest.raises(ModelError) as caught:
        check_batchnorm(module, chosen, settings, one, processes=processes)
    assert words in caught.value.message and "more would be given one value per channel" in caught.value.message
    assert hint in str(caught.value.hint) and caught.value.exit_code == 2
    check_batchnorm(module, chosen, settings, large, processes=processes)
    # A part of the network of which nothing learns has its statistics already.
    check_batchnorm(module, frozenset({"conv_stem.weight", "bn1.weight"}), settings, one, processes=processes)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize(
    ("batch", "accumulate", "batchnorm", "expected"),
    [
        (92, 4, "train", [23, 23, 23, 23, 4]),
        (65, 33, "train", [2] * 31 + [3] + [2] * 14 + [3]),
        (65, 33, "frozen", [2] * 32 + [1] + [2] * 15 + [1]),
        (93, 2, "train", [47, 46, 3]),
        (16, 5, "train", [4] * 24),
    ],
)
def test_no_part_is_larger_than_accumulate_says(
    batch: int, accumulate: int, batchnorm: str, expected: list[int], data: Data, network: Network
) -> None:
    """But for a single sample that is left over where BatchNorm learns: it goes with the part before it."""
    module = network()
    sizes = seen(module)
    phase = PHASE.model_copy(update={"batchnorm": batchnorm})
    train_phase(module, data, phase, Finetune(batch_size=batch, accumulate=accumulate), stages(module), seed=0)
    assert len(data.labels) == 96 and sizes == expected


def first(data: Data, count: int, *, scale: int = 1) -> Data:
    """Training samples as many, and larger by a factor; those of val are the same."""
    images = data.train.images[:count].repeat(scale, axis=2).repeat(scale, axis=3)
    train = type(data.train)(images, data.train.labels[:count])
    return replace(data, train=train, labels=train.labels.tolist(), val=train, val_labels=train.labels.tolist())


def seen(module: torch.nn.Module) -> list[int]:
    """How many samples the network is given at a time in training."""
    sizes: list[int] = []
    module.register_forward_pre_hook(lambda part, inputs: sizes.append(len(inputs[0])) if part.training else None)
    return sizes


def test_a_network_that_does_not_fit(data: Data, network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    module = network()
    monkeypatch.setattr(torch.nn.Module, "to", out_of_memory)
    with pytest.raises(TrainingError, match=r"does not hold the network of 0\.1 million parameters") as caught:
        train_phase(module, data, PHASE, Finetune(), stages(module), seed=0)
    assert caught.value.hint == 'finetune.device = "cpu"'


def test_validation_takes_no_more_samples_at_a_time_than_training(data: Data, network: Network) -> None:
    """A larger accumulate would else not help where validation is what does not fit."""
    module = network()
    sizes: dict[bool, set[int]] = {True: set(), False: set()}
    module.register_forward_pre_hook(lambda part, inputs: sizes[part.training].add(len(inputs[0])))
    settings = Finetune(batch_size=16, accumulate=4)
    found = train_phase(module, data, PHASE.model_copy(update={"batchnorm": "train"}), settings, stages(module), seed=0)
    assert sizes == {True: {4}, False: {4, 2}}  # 30 samples of val
    assert found.epochs


def test_features_that_do_not_fit(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    extractor = TorchExtractor(network(), "classifier")
    images = np.zeros((2, 3, 32, 32), dtype=np.float32)
    monkeypatch.setattr(extractor, "_body", out_of_memory)
    with pytest.raises(
        TrainingError, match="does not hold 2 samples at a time, of which features are computed"
    ) as caught:
        extractor(images)
    assert 'finetune.device = "cpu"' in str(caught.value.hint)
    monkeypatch.setattr(torch.nn.Module, "to", out_of_memory)
    with pytest.raises(TrainingError, match="does not hold the frozen backbone"):
        TorchExtractor(network(), "classifier")
