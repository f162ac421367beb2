"""Odd samples and odd graphs, through whole recipes: the right result, on the engine that the graph is for."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto

from edgetl import catalog
from edgetl.parity.numeric import sqnr_db
from edgetl.quantize import changes, emulation, graph, recipes
from edgetl.quantize.recipes import Made
from edgetl.quantize.schemes import SCHEMES
from edgetl.quantize.statistics import Statistics
from edgetl.quantize.tools import Tools
from edgetl.runtime.onnxruntime import OnnxRuntimeRunner
from edgetl.runtime.openvino import OpenVinoRunner
from edgetl.runtime.runner import Runner

sys.path.insert(0, str(Path(__file__).parent))
import graphs

STATIC = [name for name in catalog.recipe_names() if catalog.recipe(name).kind == "static"]
FAR = 1
"""The sample with the outlier."""


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 3, 16, 16)).astype(np.float32)


@cache
def samples(kind: str) -> np.ndarray:
    data = {
        "one sample": images(1),
        "zeros": np.zeros((3, 3, 16, 16), np.float32),
        "constant": np.full((3, 3, 16, 16), 0.5, np.float32),
        "all negative": -np.abs(images(3)) - 1,
        "denormal": images(3) * np.float32(1e-40),
        "huge": images(3) * np.float32(1e6),
    }.get(kind, images(24))
    if kind.startswith("outlier"):
        data[FAR, 2, 3, 4] = float(kind.split()[1])
    return data


def opened(path: Path, scheme: str) -> Runner:
    """The engine of a scheme, as far as it runs here: TensorRT's graphs node by node."""
    if scheme.startswith("openvino"):
        return OpenVinoRunner(path, inference_precision="f32", threads=1)
    return OnnxRuntimeRunner(path, threads=1, optimise=not scheme.startswith("tensorrt"))


def outputs(runner: Runner, data: np.ndarray) -> np.ndarray:
    with runner:
        found = [runner.run({"input": data[index : index + 1]})["logits"] for index in range(len(data))]
    return np.concatenate(found).astype(np.float64)


def tools_for(data: np.ndarray) -> Tools:
    return Tools(samples=lambda: [{"input": data}], open_runner=OnnxRuntimeRunner)


def made(model: ir.Model, found: Statistics, scheme: str, recipe: str, data: np.ndarray) -> Made:
    """As a build does it."""
    chosen, tools = catalog.recipe(recipe), tools_for(data)
    if recipes.changes_graph(chosen):
        changed = changes.change(model, found, chosen, tools)
        model, found = changed.model, changed.statistics
    return recipes.make(model, found, SCHEMES[scheme], chosen, tools)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return graphs.residual(tmp_path_factory.mktemp("graph") / "m.onnx")


_CALIBRATED: dict[str, tuple[ir.Model, Statistics]] = {}


def calibrated(source: Path, kind: str) -> tuple[ir.Model, Statistics]:
    """Once for all recipes and schemes."""
    if kind not in _CALIBRATED:
        model = graph.prepare(graph.load(source))
        _CALIBRATED[kind] = model, recipes.calibrate(model, tools_for(samples(kind)))
    return _CALIBRATED[kind]


ODD = ["one sample", "zeros", "constant", "all negative", "denormal", "huge"]
COMBINATIONS = [
    *((recipe, "onnxruntime-x86") for recipe in STATIC),
    *((recipe, scheme) for recipe in ("int8-mse", "int8-mse-corrected") for scheme in ("openvino-vnni", "tensorrt")),
]


class TestSamples:
    @pytest.mark.parametrize(("recipe", "scheme"), COMBINATIONS)
    @pytest.mark.parametrize("kind", ODD)
    def test_the_graph_computes_what_the_float_graph_does(
        self, kind: str, recipe: str, scheme: str, source: Path, tmp_path: Path
    ) -> None:
        data = samples(kind)
        done = made(*calibrated(source, kind), scheme, recipe, data)
        ir.save(done.model, tmp_path / "q.onnx")
        wanted = outputs(OnnxRuntimeRunner(source, threads=1), data)
        assert sqnr_db(wanted, outputs(opened(tmp_path / "q.onnx", scheme), data)) > 30.0
        assert done.report is not None and not any(np.isnan(each.isolated_db) for each in done.report.layers)

    @pytest.mark.parametrize("kind", [*ODD, "outlier 1e4", "outlier 1e30"])
    def test_float16_computes_what_the_float_graph_does(self, kind: str, source: Path, tmp_path: Path) -> None:
        data = samples(kind)
        model = graph.prepare(graph.load(source))
        done = recipes.make_half(model, catalog.recipe("fp16"), tools_for(data))
        ir.save(emulation.in_float32(done.model), tmp_path / "h.onnx")
        wanted, got = (outputs(OnnxRuntimeRunner(path, threads=1), data) for path in (source, tmp_path / "h.onnx"))
        assert sqnr_db(wanted, got) > 55.0
        others = [index for index in range(len(data)) if index != FAR]
        assert sqnr_db(wanted[others], got[others]) > 55.0
        assert done.report is not None and not any(np.isnan(each.isolated_db) for each in done.report.layers)

    @pytest.mark.parametrize(("recipe", "scheme"), COMBINATIONS)
    @pytest.mark.parametrize("kind", ["outlier 1e4", "outlier 1e30"])
    def test_one_sample_far_out_does_not_spoil_the_others(
        self, kind: str, recipe: str, scheme: str, source: Path, tmp_path: Path
    ) -> None:
        data = samples(kind)
        done = made(*calibrated(source, kind), scheme, recipe, data)
        ir.save(done.model, tmp_path / "q.onnx")
        others = np.delete(data, FAR, axis=0)
        wanted = outputs(OnnxRuntimeRunner(source, threads=1), others)
        got = outputs(opened(tmp_path / "q.onnx", scheme), others)
        if catalog.recipe(recipe).activations.outliers == "search" or scheme == "tensorrt":  # there the stem is float
            assert sqnr_db(wanted, got) > 30.0
        else:  # such a recipe counts every sample, as it says
            assert np.isfinite(got).all()


def normal(count: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 8, 32)).astype(np.float32)


class TestGraphs:
    @pytest.mark.parametrize("scheme", sorted(SCHEMES))
    def test_bytes_as_input(self, scheme: str, tmp_path: Path) -> None:
        """Pixels as uint8, normalised in the graph."""
        net = graphs.Net(6)
        net.add("Cast", ["input"], "floats", to=TensorProto.FLOAT)
        net.constant("mean", 127.0)
        net.constant("deviation", 60.0)
        net.add("Sub", ["floats", "mean"], "centred")
        net.add("Div", ["centred", "deviation"], "pixels")
        net.conv("pixels", "stem", 16, 3, 3)
        net.add("Relu", ["stem"], "stem_relu")
        net.conv("stem_relu", "second", 16, 16, 3)
        net.classify("second", 16)
        source = net.save(tmp_path / "m.onnx", inputs={"input": (TensorProto.UINT8, ["batch", 3, 16, 16])})
        data = np.random.default_rng(0).integers(0, 256, (8, 3, 16, 16)).astype(np.uint8)
        model = graph.prepare(graph.load(source))
        done = made(model, recipes.calibrate(model, tools_for(data)), scheme, "int8-mse-corrected", data)
        ir.save(done.model, tmp_path / "q.onnx")
        assert done.quantized["Conv"] == (2 if scheme != "tensorrt" else 1)
        runner = opened(tmp_path / "q.onnx", scheme)
        assert [spec.dtype for spec in runner.inputs] == ["uint8"]
        assert sqnr_db(outputs(OnnxRuntimeRunner(source, threads=1), data), outputs(runner, data)) > 30.0

    @pytest.mark.parametrize(
        ("opset", "scheme"),
        [
            *((opset, "tensorrt") for opset in graphs.OPSETS),  # its pairs in float16 need a newer set than 11
            *(
                (opset, scheme)
                for opset in (11, 13, 17, 20, graphs.OPSETS[-1])
                for scheme in ("onnxruntime-x86-vnni", "openvino-vnni")
            ),
        ],
    )
    def test_operator_sets_of_a_transformer(self, opset: int, scheme: str, tmp_path: Path) -> None:
        source = graphs.transformer(tmp_path / "m.onnx", opset=opset)
        model = graph.prepare(graph.load(source))
        data = normal(8)
        done = made(model, recipes.calibrate(model, tools_for(data)), scheme, "int8-mse", data)
        ir.save(done.model, tmp_path / "q.onnx")
        assert done.quantized["MatMul"] >= 6
        wanted = outputs(OnnxRuntimeRunner(source, threads=1), data)
        assert sqnr_db(wanted, outputs(opened(tmp_path / "q.onnx", scheme), data)) > 25.0
