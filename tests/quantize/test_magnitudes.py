from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgetl import catalog
from edgetl.errors import DataError, ModelError
from edgetl.quantize import graph, recipes
from edgetl.quantize.activations import with_outputs
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


def test_no_activation_waits_for_those_behind_it(tmp_path: Path) -> None:
    """All were alive together: 1.3 GB for twelve of 50 MB, which now take 0.2."""
    net = graphs.Net()
    last = net.conv("input", "a0", 16, 3, 3)
    for number in range(1, 8):
        last = net.conv(last, f"a{number}", 16, 16, 3)
    net.classify(last, 16)
    model = graph.prepare(graph.load(net.save(tmp_path / "m.onnx")))
    batch = {"input": np.ones((1, 3, 16, 16), np.float32)}
    saved = tmp_path / "saved.onnx"

    def kept(path: Path, *, frugal: bool = False) -> OnnxRuntimeRunner:
        saved.write_bytes(path.read_bytes())
        return OnnxRuntimeRunner(path, threads=1, frugal=frugal)

    magnitudes(model, replace(tools(batch), open_runner=kept))
    for optimise in (False, True):
        with OnnxRuntimeRunner(saved, threads=1, optimise=optimise) as runner:
            order = [node.name for node in runner.nodes(batch)]
        named = [f"a{number}_{suffix}" for number in range(8) for suffix in ("node", "nchwc")]  # its layout for a CPU
        computed = [place for place, name in enumerate(order) if name in named]
        assert len(computed) == 8
        for before, after in pairwise(computed):
            assert sum("Reduce" in name and "flat" not in name for name in order[before:after]) == 3


def test_values_of_no_elements_reach_nothing(tmp_path: Path) -> None:
    """Past keys of a length of none: they reached infinity, and what reads them stayed in float32."""
    net = graphs.Net()
    net.add("Concat", ["past", "x"], "both", axis=1)
    net.add("Relu", ["past"], "none")
    net.add("Concat", ["none", "both"], "y", axis=1)
    shapes = {"x": (1, ["n", 4]), "past": (1, ["n", "p"])}
    model = graph.prepare(graph.load(net.save(tmp_path / "m.onnx", inputs=shapes, outputs={"y": ["n", None]})))
    batch = {"x": np.full((2, 4), -3, np.float32), "past": np.zeros((2, 0), np.float32)}
    assert magnitudes(model, tools(batch)) == {"x": 3, "past": 0, "both": 3, "none": 0, "y": 3}


@pytest.mark.parametrize("width", [1, 5, 8, 33, 64])
def test_nan_is_seen_wherever_it_stands(width: int, tmp_path: Path) -> None:
    """ONNX Runtime's ReduceMax may pass over one."""
    net = graphs.Net()
    net.add("Relu", ["x"], "a")
    net.add("IsNaN", ["a"], "nan")
    net.add("Where", ["nan", net.constant("zero", 0.0), "x"], "b")
    net.add("Relu", ["b"], "y")
    model = graph.prepare(graph.load(net.save(
        tmp_path / "m.onnx", inputs={"x": (1, ["n", width])}, outputs={"y": ["n", width]}
    )))  # fmt: skip
    for place in range(width):
        rows = np.random.default_rng(place).normal(size=(3, width)).astype(np.float32)
        rows[1, place] = np.nan
        with pytest.raises(DataError, match="sample 1 makes the activation 'x' NaN"):
            magnitudes(model, tools({"x": rows}))
    fixed = model.clone()
    fixed.graph.inputs[0].shape = ir.Shape([3, width])
    with pytest.raises(DataError, match="one of 3 calibration samples from 0 on makes the activation 'x' NaN"):
        magnitudes(fixed, tools({"x": rows}))


def test_a_sample_with_infinity_is_named_and_a_mask_of_minus_infinity_is_none(tmp_path: Path) -> None:
    """It passed: what it reached stayed in float32, and nothing told which sample did that."""

    def of(operator: str, *inputs: str) -> ir.Model:
        net = graphs.Net()
        net.add(operator, inputs, "y")
        path = net.save(tmp_path / "m.onnx", inputs={"x": (1, ["n", 3])}, outputs={"y": ["n", 3]})
        return graph.prepare(graph.load(path))

    good = np.zeros((2, 3), np.float32)
    bad, mask = good.copy(), good.copy()
    bad[1, 1], mask[1, 1] = np.inf, -np.inf
    for model in (of("Relu", "x"), of("Sub", "x", "x")):  # infinity less infinity is NaN, which was told instead
        with pytest.raises(DataError, match="sample 3 has an infinite number in 'x'"):
            magnitudes(model, tools({"x": good}, {"x": bad}))
    assert magnitudes(of("Relu", "x"), tools({"x": good}, {"x": mask})) == {"x": np.inf, "y": 0.0}
