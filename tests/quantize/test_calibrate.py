from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from edgetl.errors import DataError, ModelError
from edgetl.quantize import calibrate, graph, placement
from edgetl.quantize.schemes import SCHEMES
from edgetl.runtime.onnxruntime import OnnxRuntimeRunner

sys.path.insert(0, str(Path(__file__).parent))
import graphs


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 3, 16, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    path = graphs.residual(tmp_path_factory.mktemp("graph") / "residual.onnx")
    return graph.prepare(graph.load(path))


def run(model, batches, memory_mb: int = 256) -> calibrate.Statistics:  # type: ignore[no-untyped-def]
    names = placement.points(model, list(SCHEMES.values()))
    return calibrate.calibrate(model, names, batches, open_runner=OnnxRuntimeRunner, memory_mb=memory_mb)


def test_batches_of_any_size_and_ragged_ones_count_the_same(model) -> None:  # type: ignore[no-untyped-def]
    data = images(13)
    whole = run(model, [data])
    pieces = run(model, [data[:5], data[5:6], data[6:13]])
    assert whole.samples == pieces.samples == 13
    for name, sketch in whole.sketches.items():
        other = pieces.sketches[name]
        assert sketch.total == other.total
        # ONNX Runtime may compute another batch size in another order: the last bits may differ, the range not.
        assert sketch.low == pytest.approx(other.low, abs=1e-4) and sketch.high == pytest.approx(other.high, abs=1e-4)


def test_a_small_budget_splits_the_activations_into_groups(model) -> None:  # type: ignore[no-untyped-def]
    data = images(3)
    names = placement.points(model, list(SCHEMES.values()))
    groups, _ = calibrate._groups(model, names, 40_000)
    assert len(groups) > 1 and sorted(name for group in groups for name in group) == sorted(names)
    whole = run(model, [data])
    found = calibrate.calibrate(model, names, [data], open_runner=OnnxRuntimeRunner, memory_mb=0)
    assert {name: sketch.total for name, sketch in found.sketches.items()} == {
        name: sketch.total for name, sketch in whole.sketches.items()
    }


def test_statistics_survive_the_disk(model, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    found = run(model, [images(4)])
    calibrate.save(found, tmp_path)
    back = calibrate.load(tmp_path)
    assert back.samples == 4 and list(back.sketches) == list(found.sketches)
    for name, sketch in found.sketches.items():
        assert (sketch.counts == back.sketches[name].counts).all() and sketch.low == back.sketches[name].low
        assert (sketch.channel_sums == back.sketches[name].channel_sums).all()


def test_nan_names_the_sample_and_the_activation(model) -> None:  # type: ignore[no-untyped-def]
    data = images(6)
    data[4, 1, 2, 3] = np.nan
    with pytest.raises(DataError, match="calibration sample 4 makes the activation 'input'"):
        run(model, [data[:3], data[3:]])


def test_overflow_inside_the_network_is_found(tmp_path: Path) -> None:
    weights = {"w": np.full((3, 3, 1, 1), 3e38, np.float32), "head": np.ones((5, 3), np.float32)}
    nodes = [
        helper.make_node("Conv", ["input", "w"], ["a"], name="conv"),
        helper.make_node("GlobalAveragePool", ["a"], ["b"], name="pool"),
        helper.make_node("Flatten", ["b"], ["c"], name="flat"),
        helper.make_node("Gemm", ["c", "head"], ["logits"], name="gemm", transB=1),
    ]
    model = graph.prepare(graph.load(graphs.save(nodes, weights, tmp_path / "m.onnx")))
    with pytest.raises(DataError, match="calibration sample 0 makes the activation 'a' NaN or infinite"):
        run(model, [np.ones((2, 3, 16, 16), np.float32)])


def test_no_sample_is_an_error(model) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match="no calibration sample"):
        run(model, [])


def test_two_inputs_are_refused(tmp_path: Path) -> None:
    import onnx

    path = graphs.residual(tmp_path / "m.onnx")
    proto = onnx.load(str(path))
    proto.graph.input.append(helper.make_tensor_value_info("second", onnx.TensorProto.FLOAT, [1]))
    onnx.save(proto, str(path))
    with pytest.raises(ModelError, match="one input"):
        calibrate.calibrate(graph.load(path), ["input"], [images(1)], open_runner=OnnxRuntimeRunner)
