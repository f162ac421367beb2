"""torch.compile: what is measured is remembered and the same in every process, and what is compiled learns the same.

On a GPU: test_loop.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from edgetl.backends.backbones import Stage, stages
from edgetl.config import Finetune, Phase
from edgetl.finetune import compiling, state
from edgetl.finetune.loop import PhaseResult, train_phase
from edgetl.finetune.phases import Data, Place

Network = Callable[..., torch.nn.Module]
PHASE = Phase(train="all", epochs=2, lr=3e-3, batchnorm="train")


class Compiled(torch.nn.Module):
    """The network as it is, and how often it ran."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network, self.runs = network, 0

    def forward(self, inputs: torch.Tensor) -> Any:
        self.runs += 1
        return self.network(inputs)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Compiled]:
    """What torch.compile was asked for; the bookkeeping around it is what these tests are about."""
    found: list[Compiled] = []

    def compiled(network: torch.nn.Module) -> Compiled:
        found.append(Compiled(network))
        return found[-1]

    monkeypatch.setattr(torch, "compile", compiled)
    return found


def train(module: torch.nn.Module, data: Data, *, how: str = "measure", **more: Any) -> PhaseResult:
    settings = Finetune.model_validate({"batch_size": 16, "save_every_s": 1e-9, "compile": how})
    return train_phase(module, data, PHASE, settings, stages(module), seed=0, **more)


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


@pytest.mark.parametrize(("won", "runs"), [("compiled", 12), ("eager", 0)])
def test_the_faster_one_takes_all_steps(
    won: str, runs: int, data: Data, network: Network, made: list[Compiled], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "measured", lambda models, step, device: {name: name != won for name in models})
    module, plain = network(), network()
    result = train(module, data)
    assert [each.runs for each in made] == [runs], "two epochs of six steps"
    assert compiling.faster(result.compiled) == won
    train(plain, data, how="off")
    assert same(module, plain) and len(made) == 1


def test_measuring_changes_nothing(data: Data, network: Network, made: list[Compiled]) -> None:
    module, plain = network(), network()
    result = train(module, data)
    assert set(result.compiled) == {"eager", "compiled"} and all(result.compiled.values())
    assert made[0].runs >= 23
    train(plain, data, how="off")
    assert same(module, plain)


def test_a_training_that_goes_on_is_compiled_where_that_had_won(
    data: Data, network: Network, made: list[Compiled], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measured: list[int] = []

    def once(models: Any, step: Any, device: Any) -> dict[str, float]:
        measured.append(1)
        return {"eager": 2.0, "compiled": 1.0}

    monkeypatch.setattr(compiling, "measured", once)

    class Stopped(Exception):  # noqa: N818
        pass

    def until(what: str, done: int, total: int) -> None:
        if done == 4:
            raise Stopped

    with pytest.raises(Stopped):
        train(network(), data, place=Place(state=tmp_path), progress=until)
    kept = state.load(tmp_path)
    assert kept is not None and kept["step"] == 3
    again, whole = network(seed=7), network()
    result = train(again, data, place=Place(state=tmp_path))
    assert [each.runs for each in made] == [4, 9] and len(measured) == 1
    assert result.compiled == {"eager": 2.0, "compiled": 1.0}
    train(whole, data)
    assert same(again, whole)


def test_nothing_measured_is_eager() -> None:
    assert compiling.faster({}) == "eager"
    assert compiling.faster({"eager": 1.0, "compiled": 1.0}) == "eager"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_what_is_compiled_learns_the_same(data: Data, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whichever is faster here, the compiled network takes all steps."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    weights = {}
    for how in ("off", "measure"):
        torch.manual_seed(0)
        module = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3, stride=2, bias=False),
            torch.nn.BatchNorm2d(4),
            torch.nn.ReLU(),
            torch.nn.AdaptiveAvgPool2d(1),
            torch.nn.Flatten(),
            torch.nn.Linear(4, 3),
        )
        whole = [Stage(name="head", parameters=tuple(name for name, _ in module.named_parameters()))]
        settings = Finetune.model_validate({"batch_size": 16, "compile": how})
        monkeypatch.setattr(compiling, "faster", lambda seconds: "compiled" if seconds else "eager")
        result = train_phase(module, data, PHASE.model_copy(update={"lr": 3e-2}), settings, whole, seed=0)
        assert set(result.compiled) == ({"eager", "compiled"} if how == "measure" else set())
        weights[how] = module.state_dict()
    for name, tensor in weights["off"].items():
        torch.testing.assert_close(weights["measure"][name], tensor, rtol=1e-4, atol=1e-5)
