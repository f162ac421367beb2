from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto

from edgetl.errors import ModelError
from edgetl.quantize import activations, graph
from edgetl.quantize.walk import Walk, batches_of
from edgetl.runtime.onnxruntime import OnnxRuntimeRunner

sys.path.insert(0, str(Path(__file__).parent))
import graphs


def prepared(path: Path) -> ir.Model:
    return graph.prepare(graph.load(path))


def images(*counts: int) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    return [{"input": random.normal(size=(count, 3, 16, 16)).astype(np.float32)} for count in counts]


def values(model: ir.Model) -> list[str]:
    model.graph.sort()
    return [str(value.name) for node in model.graph for value in node.outputs if value.dtype == ir.DataType.FLOAT]


def plain(model: ir.Model, names: list[str], batches: list[dict[str, np.ndarray]], path: Path) -> list[dict]:  # type: ignore[type-arg]
    with OnnxRuntimeRunner(activations.with_outputs(model, names, path)) as runner:
        return [runner.run(feeds) for feeds in batches]


@pytest.mark.parametrize("kind", ["residual", "concatenated", "squeezed", "shared", "transformer"])
def test_values_are_those_of_a_plain_run(kind: str, tmp_path: Path) -> None:
    model = prepared(getattr(graphs, kind)(tmp_path / "m.onnx"))
    batches = images(2, 3)
    if kind == "transformer":  # its Reshape takes the batch from its input
        batches = [{"input": feeds["input"].reshape(-1, 3 * 16 * 16)[:, :256].reshape(-1, 8, 32)} for feeds in batches]
    names = values(model)
    wanted = plain(model, names, batches, tmp_path / "all.onnx")
    walk = Walk(model, names, batches, open_runner=OnnxRuntimeRunner)
    for name in names:
        for found, outputs in zip(walk.advance(), wanted, strict=True):
            np.testing.assert_allclose(found, outputs[name], atol=1e-4, rtol=1e-4)
    with pytest.raises(IndexError):
        walk.advance()


@pytest.mark.parametrize("every", [2, 3, 100])
def test_stops_may_be_few(every: int, tmp_path: Path) -> None:
    model = prepared(graphs.squeezed(tmp_path / "m.onnx"))
    names = values(model)[::-1][::every][::-1]
    wanted = plain(model, names, images(2), tmp_path / "all.onnx")
    walk = Walk(model, names, images(2), open_runner=OnnxRuntimeRunner)
    for name in names:
        np.testing.assert_allclose(walk.advance()[0], wanted[0][name], atol=1e-4, rtol=1e-4)


def test_shapes_that_are_computed_keep_their_batch(tmp_path: Path) -> None:
    net = graphs.Net()
    net.conv("input", "a", 4, 3)
    net.add("Shape", ["a"], "shape", start=0, end=1)
    net.constant("rest", [-1], np.int64)
    net.add("Concat", ["shape", "rest"], "wanted", axis=0)
    net.add("Relu", ["a"], "b")
    net.add("Reshape", ["b", "wanted"], "rows")
    net.matmul("rows", "logits", 4 * 256, 5)
    model = prepared(net.save(tmp_path / "m.onnx"))
    names = ["a", "b", "logits"]
    wanted = plain(model, names, images(1, 4), tmp_path / "all.onnx")
    walk = Walk(model, names, images(1, 4), open_runner=OnnxRuntimeRunner)
    for name in names:
        for found, outputs in zip(walk.advance(), wanted, strict=True):
            np.testing.assert_allclose(found, outputs[name], atol=1e-4, rtol=1e-4)


def test_what_is_replaced_is_seen_further_on(tmp_path: Path) -> None:
    model = prepared(graphs.shared(tmp_path / "m.onnx"))
    walk = Walk(model, ["relu", "second", "branch"], images(2), open_runner=OnnxRuntimeRunner)
    relu = walk.advance()
    walk.replace("relu", [np.zeros_like(array) for array in relu])
    second = walk.advance()[0]
    bias = graph.array_of(model.graph.initializers["first_b"])
    assert bias is not None
    np.testing.assert_allclose(second, np.broadcast_to(bias.reshape(1, -1, 1, 1), second.shape), atol=1e-6)
    walk.replace("relu", relu)  # nobody further on reads it
    walk.replace("second", [np.full_like(second, 7)])
    first = plain(model, ["first"], images(2), tmp_path / "all.onnx")[0]["first"]
    np.testing.assert_allclose(walk.advance()[0], 7 - first, atol=1e-5)


def test_a_change_of_the_graph_where_the_walk_stands_is_seen(tmp_path: Path) -> None:
    model = prepared(graphs.concatenated(tmp_path / "m.onnx"))
    walk = Walk(model, ["stem", "left"], images(2), open_runner=OnnxRuntimeRunner)
    walk.advance()
    model.graph.initializers["left_w"].const_value = ir.tensor(np.zeros((16, 16, 1, 1), np.float32), name="left_w")
    bias = graph.array_of(model.graph.initializers["left_b"])
    assert bias is not None
    left = walk.advance()[0]
    np.testing.assert_allclose(left, np.broadcast_to(bias.reshape(1, -1, 1, 1), left.shape), atol=1e-6)


def test_what_nobody_reads_any_more_is_dropped(tmp_path: Path) -> None:
    model = prepared(graphs.residual(tmp_path / "m.onnx"))
    names = values(model)
    walk = Walk(model, names, images(2), open_runner=OnnxRuntimeRunner)
    most = 0
    for place, name in enumerate(names):
        walk.advance()
        later = set(names[place + 1 :])
        for kept in walk._live:
            value = next(v for node in model.graph for v in (*node.inputs, *node.outputs) if v and v.name == kept)
            readers = {str(output.name) for node in value.consumers() for output in node.outputs}
            assert kept in later or readers & later, f"{kept} is still there at {name}"
        most = max(most, len(walk._live))
    assert most <= 3 and not walk._live


def test_bad_stops(tmp_path: Path) -> None:
    model = prepared(graphs.residual(tmp_path / "m.onnx"))
    with pytest.raises(ModelError, match="no value 'absent'"):
        Walk(model, ["absent"], images(1), open_runner=OnnxRuntimeRunner)


def test_integer_inputs(tmp_path: Path) -> None:
    model = prepared(graphs.embedded(tmp_path / "m.onnx"))
    feeds = [{"ids": np.arange(8).reshape(2, 4), "mask": np.ones((2, 4), np.float32)}]
    names = values(model)
    wanted = plain(model, names, feeds, tmp_path / "all.onnx")
    walk = Walk(model, names, feeds, open_runner=OnnxRuntimeRunner)
    for name in names:
        np.testing.assert_allclose(walk.advance()[0], wanted[0][name], atol=1e-5)
    assert int(model.graph.inputs[0].dtype or 0) == TensorProto.INT64


class TestBatches:
    @given(st.lists(st.integers(0, 9), max_size=8), st.integers(1, 6), st.integers(1, 30))
    def test_they_are_the_first_samples_in_order(self, sizes: list[int], size: int, most: int) -> None:
        samples = np.arange(sum(sizes), dtype=np.float32)
        cuts = np.split(samples, np.cumsum(sizes)[:-1]) if sizes else []
        parts = batches_of(({"x": cut, "y": -cut} for cut in cuts), size=size, most=most)
        assert all(len(part["x"]) == size and np.array_equal(part["x"], -part["y"]) for part in parts)  # type: ignore[operator]
        joined = np.concatenate([part["x"] for part in parts]) if parts else samples[:0]
        if len(samples) >= size:
            assert np.array_equal(joined, samples[: len(joined)])
            assert len(joined) == size * min(len(samples) // size, -(-most // size))
        else:
            assert len(parts) == bool(len(samples)) and set(joined.tolist()) == set(samples.tolist())

    def test_fewer_than_a_batch_are_no_more_where_no_batch_is_fixed(self) -> None:
        (part,) = batches_of([{"x": np.arange(3)}, {"x": np.arange(2)}], size=8, most=16, fill=False)
        assert part["x"].tolist() == [0, 1, 2, 0, 1]

    def test_a_stream_is_not_read_further_than_needed(self) -> None:
        def stream():  # type: ignore[no-untyped-def]
            yield {"x": np.zeros((4, 1))}
            raise AssertionError("more was read than was asked for")

        assert len(batches_of(stream(), size=2, most=4)) == 2
