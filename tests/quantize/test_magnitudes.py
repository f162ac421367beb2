from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgetl import catalog
from edgetl.errors import DataError, ModelError
from edgetl.quantize import graph, recipes
from edgetl.quantize.calibrate import with_outputs
from edgetl.quantize.magnitudes import magnitudes
from edgetl.quantize.tools import Tools
from edgetl.runtime.onnxruntime import OnnxRuntimeRunner

sys.path.insert(0, str(Path(__file__).parent))
import graphs

Feeds = dict[str, np.ndarray]


def tools(*batches: Feeds) -> Tools:
    return Tools(samples=lambda: list(batches), open_runner=partial(OnnxRuntimeRunner, threads=1))


def by_hand(model: ir.Model, batches: list[Feeds], path: Path) -> dict[str, float]:
    """Every float activation, put out and looked at."""
    values = [output for node in model.graph for output in node.outputs if output.dtype == ir.DataType.FLOAT]
    names = [str(value.name) for value in values]
    found = {
        name: float(np.abs(array).max())
        for name, array in batches[0].items()
        if array.dtype == np.float32 and len(batches) == 1
    }
    with OnnxRuntimeRunner(with_outputs(model, names, path), threads=1, optimise=False) as runner:
        rows = [runner.run(feeds) for feeds in batches]
    return found | {name: max(float(np.abs(row[name]).max()) for row in rows) for name in names}


@pytest.mark.parametrize("kind", ["residual", "squeezed", "shared", "transformer", "embedded"])
def test_every_float_activation_as_it_is(kind: str, tmp_path: Path) -> None:
    model = graph.prepare(graph.load(getattr(graphs, kind)(tmp_path / "m.onnx")))
    random = np.random.default_rng(0)
    batch: Feeds = {"input": random.normal(size=(4, 3, 16, 16)).astype(np.float32)}
    if kind == "transformer":
        batch = {"input": random.normal(size=(4, 8, 32)).astype(np.float32)}
    if kind == "embedded":
        batch = {"ids": random.integers(0, 50, (4, 6)), "mask": np.ones((4, 6), np.float32)}
    before = ir.to_proto(model).SerializeToString()
    found = magnitudes(model, tools(batch))
    assert ir.to_proto(model).SerializeToString() == before, "it is not changed"
    expected = by_hand(model, [batch], tmp_path / "all.onnx")
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_neither_order_nor_batches_decide(tmp_path: Path) -> None:
    model = graph.prepare(graph.load(graphs.residual(tmp_path / "m.onnx")))
    images = np.random.default_rng(0).normal(size=(7, 3, 16, 16)).astype(np.float32)
    images[3, 0, 0, 0] = -50.0
    one = magnitudes(model, tools({"input": images}))
    assert one["input"] == 50.0
    assert magnitudes(model, tools(*({"input": images[[index]]} for index in (6, 2, 3, 0, 5, 1, 4)))) == one
    assert magnitudes(model, tools({"input": images[:5]}, {"input": images[5:]})) == one


def test_a_fixed_batch_is_filled_up(tmp_path: Path) -> None:
    path = graphs.residual(tmp_path / "m.onnx")
    model = graph.prepare(graph.load(path))
    for value in (*model.graph.inputs, *model.graph.outputs):
        assert value.shape is not None
        value.shape = ir.Shape([4, *value.shape[1:]])
    images = np.random.default_rng(0).normal(size=(6, 3, 16, 16)).astype(np.float32)
    images[5] *= 9  # in the batch that is filled up
    free = magnitudes(graph.prepare(graph.load(path)), tools({"input": images}))
    assert magnitudes(model, tools({"input": images})) == pytest.approx(free, rel=1e-4, abs=1e-6)


def test_no_sample_and_one_for_another_input(tmp_path: Path) -> None:
    model = graph.prepare(graph.load(graphs.residual(tmp_path / "m.onnx")))
    with pytest.raises(DataError, match="no calibration sample"):
        magnitudes(model, tools())
    with pytest.raises(ModelError, match="inputs are input; the samples are for x"):
        magnitudes(model, tools({"x": np.zeros((1, 3, 16, 16), np.float32)}))


def test_what_only_a_layer_ahead_of_its_function_or_the_output_reaches_stays_in_float32(tmp_path: Path) -> None:
    """Neither is among the activations that a quantizer asks for, and both were put into float16."""
    net = graphs.Net(9)
    net.add("Flatten", ["input"], "rows")
    net.weight("first", 32, 768)
    net.add("Gemm", ["rows", "first"], "a", transB=1)
    net.add("Clip", ["a", net.constant("low", -1.0), net.constant("high", 1.0)], "b")
    net.weight("second", 32, 5, reduced=32)
    net.add("MatMul", ["b", "second"], "c")
    net.add("Mul", ["c", net.constant("much", 3e5)], "logits")
    model = graph.prepare(graph.load(net.save(tmp_path / "m.onnx")))
    images = np.random.default_rng(0).normal(size=(8, 3, 16, 16)).astype(np.float32) * 1e5
    given = tools({"input": images})
    done = recipes.make_half(model, catalog.recipe("fp16"), given)
    kept = set(done.notes["kept_in_float32"])
    named = {node.name for node in model.graph if node.op_type in ("Gemm", "Mul")}
    assert named <= kept
    assert done.report is not None and all(np.isfinite(loss.accumulated_db) for loss in done.report.layers)
    blind = recipes.make_half(model, replace(catalog.recipe("fp16"), name="blind"), None)
    assert blind.report is None and not named <= set(blind.notes["kept_in_float32"])
