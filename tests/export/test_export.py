from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from edgetl.backends import backbones
from edgetl.backends import torch as torch_backend
from edgetl.errors import ExportError
from edgetl.export import onnx as export_stage
from edgetl.runtime.onnxruntime import OnnxRuntimeRunner
from edgetl.runtime.preprocessing import ImagePreprocessing
from edgetl.runtime.runner import TensorSpec
from edgetl.specs import BatchRange

CONTRACT = ImagePreprocessing(height=32, width=32)
FED = TensorSpec(name="input", shape=("batch", 3, 32, 32), dtype="float32")
FOUND = TensorSpec(name="logits", shape=("batch", 2), dtype="float32")


def export(module: torch.nn.Module, path: Path, batch: BatchRange, labels: tuple[str, ...] = ("a", "b")) -> Path:
    export_stage.export(module, path, batch=batch, opset=20, labels=labels, preprocessing=CONTRACT)
    return path


@pytest.fixture(scope="module")
def module() -> torch.nn.Module:
    torch.manual_seed(0)
    return backbones.build("timm:test_efficientnet", 2).eval()


@pytest.fixture(scope="module")
def model(module: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(module, tmp_path_factory.mktemp("export") / "m.onnx", BatchRange(min=1, max=8), ("ä", '"quoted"'))


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_every_batch_size_is_pytorchs(size: int, module: torch.nn.Module, model: Path) -> None:
    images = np.random.default_rng(size).normal(size=(size, 3, 32, 32)).astype(np.float32)
    with OnnxRuntimeRunner(model) as runner, torch_backend.TorchRunner(module, FED, FOUND) as reference:
        expected, got = reference.run({"input": images})["logits"], runner.run({"input": images})["logits"]
    assert export_stage.check(expected, got, tolerance=1e-4) < 1e-4  # type: ignore[arg-type]


def test_labels_and_preprocessing_travel_in_the_graph(model: Path) -> None:
    with OnnxRuntimeRunner(model) as runner:
        found = runner.metadata()
        assert runner.inputs[0].shape == ("batch", 3, 32, 32) and runner.inputs[0].name == "input"
    assert json.loads(found["edgetl.labels"]) == ["ä", '"quoted"']
    assert ImagePreprocessing.from_json(json.loads(found["edgetl.preprocessing"])) == CONTRACT


def test_the_graph_is_folded_and_carries_no_path_of_this_machine(model: Path) -> None:
    graph = onnx.load(str(model)).graph
    assert "BatchNormalization" not in {node.op_type for node in graph.node}
    assert (
        str(Path(__file__).parents[1]).encode() not in model.read_bytes() and b"site-packages" not in model.read_bytes()
    )


def test_a_fixed_batch_stays_fixed(module: torch.nn.Module, tmp_path: Path) -> None:
    path = export(module, tmp_path / "m.onnx", BatchRange(min=1, max=1))
    with OnnxRuntimeRunner(path) as runner:
        assert runner.inputs[0].shape == (1, 3, 32, 32)


def test_a_network_that_cannot_be_exported_says_why(tmp_path: Path) -> None:
    class Branching(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((1, 2, 3)) if x.sum() > 0 else x.amax((1, 2, 3))

    with pytest.raises(ExportError, match="PyTorch cannot export this network"):
        export(Branching(), tmp_path / "m.onnx", BatchRange(min=1, max=4))
    assert not (tmp_path / "m.onnx").exists()


def test_check_refuses_what_differs() -> None:
    expected = np.asarray([[1.0, -10.0]], np.float32)
    assert export_stage.check(expected, expected + 5e-4, tolerance=1e-4) == pytest.approx(5e-4, rel=0.1)
    for wrong in (expected + 2e-3, expected * np.nan, expected[:, :1]):
        with pytest.raises(ExportError):
            export_stage.check(expected, wrong, tolerance=1e-4)
