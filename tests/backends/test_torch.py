"""PyTorch as an engine: what it tells of a network that was counted otherwise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgetl.backends.checkpoint import Deploy
from edgetl.backends.torch import TorchBackend, TorchRunner, _counter, write_checkpoint
from edgetl.errors import ModelError, UsageError
from edgetl.runtime import products
from edgetl.runtime.preprocessing import ImagePreprocessing
from edgetl.runtime.runner import Profiled


def test_attention_on_a_processor_is_counted() -> None:
    torch = pytest.importorskip("torch")
    heads, tokens, width = 4, 16, 8
    given = torch.randn(2, heads, tokens, width)
    with torch.inference_mode(), _counter() as counter:
        torch.nn.functional.scaled_dot_product_attention(given, given, given)
    assert counter.get_total_flops() // 2 == products.attention(given.shape, given.shape, given.shape)


def test_what_pytorch_does_not_count_is_said(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")

    class Network(torch.nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.cell = torch.nn.LSTM(8, 16, batch_first=True)

    runner = object.__new__(TorchRunner)
    runner._module = Network()
    with pytest.raises(ModelError, match="PyTorch does not count the multiply-adds of LSTM"):
        runner.profile({}, runs=1)


def test_a_profile_counts_the_network_as_its_layers_are_defined(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from edgetl.backends.backbones import build

    module = build("timm:test_efficientnet", 3).eval()
    contract = ImagePreprocessing(height=32, width=32)
    deploy = Deploy(
        backbone="timm:test_efficientnet", classes=("a", "b", "c"), preprocessing=contract, config_digest=""
    )
    write_checkpoint(tmp_path, module, deploy)

    counted = []

    def count(layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if isinstance(layer, torch.nn.Conv2d):
            counted.append(products.convolution(output.shape, layer.weight.shape))
        if isinstance(layer, torch.nn.Linear):
            counted.append(products.matrix_product(inputs[0].shape, output.shape))

    for layer in module.modules():
        layer.register_forward_hook(count)
    module(torch.zeros(2, 3, 32, 32))

    with TorchBackend().open(tmp_path, threads=1) as runner:
        assert isinstance(runner, Profiled)
        name = runner.inputs[0].name
        (node,) = runner.profile({name: np.zeros((2, 3, 32, 32), np.float32)}, runs=3)
        with pytest.raises(UsageError):
            runner.profile({name: np.zeros((2, 3, 16, 16), np.float32)}, runs=1)
    assert node.multiply_adds == sum(counted) > 0
    assert node.weight_bytes == 4 * sum(each.numel() for each in module.parameters())
    assert node.time_ms is not None and node.time_ms > 0
    assert (node.precision, node.provider) == ("fp32", "cpu")
