from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.quantize import constants, graph
from edgetl.quantize.schemes import SCHEMES

sys.path.insert(0, str(Path(__file__).parent))
import graphs

HALF, FLOAT = SCHEMES["tensorrt"], SCHEMES["openvino"]


def behind(kind: str, folder: Path) -> ir.Model:
    """A small graph whose first weighted node has a bias, none, or an Add for one."""
    net = graphs.Net(3)
    if kind.startswith("conv"):
        net.conv("input", "a", 8, 3, bias="none" if kind == "conv" else "normal")
    else:
        net.add("GlobalAveragePool", ["input"], "pooled")
        net.add("Flatten", ["pooled"], "flat")
        net.matmul("flat", "a", 3, 8, bias=kind == "matmul and add")
    if kind.startswith("conv"):
        net.classify("a", 8)
    else:
        net.matmul("a", "logits", 8, 5)
    return graph.prepare(graph.load(net.save(folder / "m.onnx")))


def bias_of(node: ir.Node) -> np.ndarray:
    if node.op_type == "Conv":
        found = graph.array_of(node.inputs[2]) if len(node.inputs) > 2 else np.zeros(8)
    else:
        addition = node.outputs[0].uses()[0][0]
        found = np.zeros(8)
        if addition.op_type == "Add":
            found = next(array for value in addition.inputs if (array := graph.array_of(value)) is not None)
    assert found is not None
    return np.asarray(found, np.float64).reshape(-1)


KINDS = ["conv", "conv and bias", "matmul", "matmul and add"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ir.Model]:
    return {kind: behind(kind, tmp_path_factory.mktemp("graph")) for kind in KINDS}


def weighted(model: ir.Model) -> ir.Node:
    return next(node for node in model.graph if node.op_type in ("Conv", "MatMul"))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(size=st.sampled_from([1e-6, 1e-3, 0.3, 40.0, 6e4]), seed=st.integers(0, 1000))
def test_what_is_added_is_what_the_finished_graph_holds(
    made: dict[str, ir.Model], kind: str, size: float, seed: int
) -> None:
    shift = np.random.default_rng(seed).normal(size=8) * size
    model = made[kind].clone()
    node = weighted(model)
    before = bias_of(node)
    added = constants.add_to_bias(model.graph, node, shift, HALF)
    after = bias_of(node)
    assert after - before == pytest.approx(added, abs=1e-6 * max(1.0, size))
    if np.abs(before + shift).max() < 65_000:
        assert (after.astype(np.float16) == after).all()
        assert added == pytest.approx(shift, abs=2.0**-10 * (np.abs(before) + np.abs(shift)).max() + 2.0**-24)
    else:
        assert np.isfinite(after).all(), "the layer stays in float32"


@pytest.mark.parametrize("kind", KINDS)
def test_a_float32_bias_is_not_rounded(made: dict[str, ir.Model], kind: str) -> None:
    model = made[kind].clone()
    node = weighted(model)
    before, shift = bias_of(node), np.linspace(-0.1, 0.2, 8)
    assert (constants.add_to_bias(model.graph, node, shift, FLOAT) == shift).all() or kind.endswith(("add", "bias"))
    assert bias_of(node) == pytest.approx(before + shift, abs=1e-6)


def test_a_bias_that_float16_cannot_hold_stays() -> None:
    bias = np.array([1.0001, 70_000.0])
    hold: Callable[..., np.ndarray] = constants.held
    assert (hold(bias, HALF) == bias).all()
    assert hold(bias[:1], HALF)[0] == 1.0 and hold(bias[:1], FLOAT)[0] == bias[0]
