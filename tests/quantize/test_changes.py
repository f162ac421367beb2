"""Changes of the float graph stay only where they serve its output."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgetl import catalog
from edgetl.quantize import changes, graph, recipes
from edgetl.quantize.fidelity import FloatOutput
from edgetl.quantize.schemes import SCHEMES
from edgetl.quantize.tools import Tools, feeds_of
from edgetl.runtime.onnxruntime import OnnxRuntimeRunner

sys.path.insert(0, str(Path(__file__).parent))
import graphs

RECIPE = catalog.recipe("int8-smoothquant")


@pytest.fixture
def model(tmp_path: Path) -> ir.Model:
    return graph.prepare(graph.load(graphs.transformer(tmp_path / "transformer.onnx")))


@pytest.fixture
def tools(model: ir.Model) -> Tools:
    (value,) = model.graph.inputs
    shape = [side if isinstance(side, int) else 1 for side in value.shape or ()]

    def samples() -> Iterator[dict[str, np.ndarray]]:
        random = np.random.default_rng(0)
        for _ in range(12):
            array = random.normal(size=shape).astype(np.float32)
            array[..., 0] *= 40  # a channel that is far larger than the others
            yield {str(value.name): array}

    return Tools(samples=samples, open_runner=OnnxRuntimeRunner)


@pytest.mark.parametrize("scheme", ["onnxruntime-x86-vnni", "openvino", "tensorrt"])
def test_what_is_kept_is_not_worse_than_the_graph_as_it_was(scheme: str, model: ir.Model, tools: Tools) -> None:
    before = ir.to_proto(model).SerializeToString()
    statistics = recipes.calibrate(model, tools, [SCHEMES[scheme]])
    changed = changes.change(model, statistics, RECIPE, tools)
    assert ir.to_proto(model).SerializeToString() == before
    assert changed.smoothed
    few = feeds_of(model, tools, 12)
    wanted = FloatOutput(model, few, open_runner=OnnxRuntimeRunner)
    every = recipes.calibrate(model, tools)
    judge = changes._Judge(recipe=RECIPE, wanted=wanted, tools=tools)
    plain, kept = (judge.tried_db(each) for each in (changes.Changed(model=model, statistics=every), changed))
    assert kept >= plain


def test_groups_that_do_harm_together_are_left_out(
    model: ir.Model, tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = iter([26.0, 22.7, 24.0])
    monkeypatch.setattr(changes._Judge, "tried_db", lambda *_: next(figures))
    changed = changes.change(model, recipes.calibrate(model, tools), RECIPE, tools)
    assert ir.to_proto(changed.model).SerializeToString() == ir.to_proto(model).SerializeToString()
    assert changed.smoothed and all(each.alpha is None for each in changed.smoothed)
    assert changed.smoothed[0].reason == "all groups together take the output's fidelity from 26.0 to 22.7 dB"


def test_factors_that_cost_no_node_may_stay_alone(
    model: ir.Model, tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = iter([20.0, 21.0, 22.0])
    monkeypatch.setattr(changes._Judge, "tried_db", lambda *_: next(figures))
    changed = changes.change(model, recipes.calibrate(model, tools), RECIPE, tools)
    assert [node.op_type for node in changed.model.graph].count("Mul") == 0
    assert any(each.alpha is not None for each in changed.smoothed)
    assert all(each.alpha is None for each in changed.smoothed if each.inserted)


def test_a_product_may_read_the_input_of_the_model(tmp_path: Path) -> None:
    net = graphs.Net(1)
    net.matmul("input", "hidden", 16, 32)
    net.add("Tanh", ["hidden"], "tanh")
    net.matmul("tanh", "y", 32, 16)
    inputs = {"input": (onnx.TensorProto.FLOAT, ["n", 4, 16])}
    path = net.save(tmp_path / "m.onnx", inputs=inputs, outputs={"y": [None] * 3})
    model = graph.prepare(graph.load(path))
    random = np.random.default_rng(0)
    samples = [{"input": random.normal(size=(1, 4, 16)).astype(np.float32)} for _ in range(8)]
    given = Tools(samples=lambda: samples, open_runner=OnnxRuntimeRunner)
    changed = changes.change(model, recipes.calibrate(model, given), RECIPE, given)
    assert {each.activation for each in changed.smoothed} == {"input", "tanh"}


def test_the_layer_report_shows_what_changes_are_worth(model: ir.Model, tools: Tools) -> None:
    scheme = SCHEMES["onnxruntime-x86-vnni"]
    statistics = recipes.calibrate(model, tools, [scheme])
    changed = changes.change(model, statistics, RECIPE, tools)
    assert any(each.alpha is not None for each in changed.smoothed)
    unchanged = recipes.Unchanged(model=model, statistics=statistics)
    done = recipes.make(changed.model, changed.statistics, scheme, RECIPE, tools, unchanged)
    before = done.notes["before_corrections"]
    plain = recipes.make(model, statistics, scheme, replace(RECIPE, bias_correction="none"), tools)
    assert done.report is not None and plain.report is not None
    assert before == pytest.approx({loss.node: loss.accumulated_db for loss in plain.report.layers})
    assert "before_corrections" not in plain.notes
    assert {loss.node for loss in done.report.layers} == set(before), "a layer keeps its name"
    assert max(loss.accumulated_db - before[loss.node] for loss in done.report.layers) > 3
