from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto

from edgetl.errors import DataError, ModelError
from edgetl.parity.numeric import sqnr_db
from edgetl.pipeline.engines import open_graph
from edgetl.quantize import activations, calibrate, graph, insertion, placement
from edgetl.quantize.schemes import SCHEMES
from edgetl.quantize.sketch import Sketch
from edgetl.quantize.statistics import Statistics
from edgetl.runtime.onnxruntime import OnnxRuntimeRunner, why_no_provider
from edgetl.specs import Estimator, Recipe

sys.path.insert(0, str(Path(__file__).parent))
import graphs

RECIPE = Recipe(
    name="t", description="", activations=Estimator(method="mse"), weights=Estimator(method="mse"),
    bias_correction="input-mean",
)  # fmt: skip
CUDA = "CUDAExecutionProvider"


def images(count: int, size: int = 16) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 3, size, size)).astype(np.float32)


def feeds(array: np.ndarray, size: int) -> Iterator[dict[str, np.ndarray]]:
    for start in range(0, len(array), size):
        yield {"input": array[start : start + size]}


def prepared(path: Path) -> ir.Model:
    return graph.prepare(graph.load(path))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ir.Model:
    return prepared(graphs.residual(tmp_path_factory.mktemp("graph") / "residual.onnx"))


def run(
    model: ir.Model,
    batches: Iterable[Mapping[str, np.ndarray]],
    memory_mb: int = 256,
    open_runner: calibrate.OpenRunner = OnnxRuntimeRunner,
) -> Statistics:
    names = placement.points(model, list(SCHEMES.values()))
    return calibrate.calibrate(model, names, batches, open_runner=open_runner, memory_mb=memory_mb)


EXTRA_PEAK = """
import sys
from pathlib import Path
import numpy as np
from edgetl.pipeline.engines import open_graph
from edgetl.quantize import calibrate, graph

def memory_mb(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith(field + ":"))

model = graph.prepare(graph.load(Path(sys.argv[1])))
image = np.random.default_rng(0).normal(size=(1, 3, 396, 396)).astype(np.float32)
with open_graph(Path(sys.argv[1])) as runner:
    runner.run({"input": image})
before = memory_mb("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
names = [f"a{number}" for number in range(7)]
calibrate.calibrate(model, names, [{"input": image}] * 2, open_runner=open_graph, memory_mb=128)
print(memory_mb("VmHWM") - before)
"""


def same(one: Sketch, other: Sketch) -> bool:
    pairs = [
        (one.counts, other.counts),
        (one.channel_low, other.channel_low),
        (one.channel_high, other.channel_high),
        *zip(one.channel_sums.rows(), other.channel_sums.rows(), strict=True),
        *zip(one.channel_squares.rows(), other.channel_squares.rows(), strict=True),
    ]
    return all(np.array_equal(mine, its) for mine, its in pairs)


def assert_same(one: Statistics, other: Statistics) -> None:
    assert one.samples == other.samples and list(one.sketches) == list(other.sketches)
    for name, sketch in one.sketches.items():
        assert same(sketch, other.sketches[name]), name


def constants(model: ir.Model) -> dict[str, bytes]:
    """All scales, zero points, integers and biases of a graph."""
    return {
        name: value.const_value.numpy().tobytes()
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
    }


class TestNothingButTheSamplesDecides:
    @pytest.mark.parametrize("size", [1, 3, 7, 13])
    @pytest.mark.parametrize("memory_mb", [0, 256])
    def test_order_batch_size_and_memory_change_no_bit(self, size: int, memory_mb: int, model: ir.Model) -> None:
        data = images(13)
        whole = run(model, [{"input": data}])
        shuffled = data[np.random.default_rng(size).permutation(13)]
        other = run(model, feeds(shuffled, size), memory_mb)
        assert_same(whole, other)
        for scheme in ("onnxruntime-x86", "openvino", "tensorrt"):
            made = [
                insertion.quantize(model.clone(), found.sketches, SCHEMES[scheme], RECIPE) for found in (whole, other)
            ]
            assert made[0].params == made[1].params
            assert constants(made[0].model) == constants(made[1].model)

    def test_batches_may_change_their_size(self, model: ir.Model) -> None:
        data = images(9)
        cuts = [{"input": data[:4]}, {"input": data[4:5]}, {"input": data[5:5]}, {"input": data[5:]}]
        assert_same(run(model, [{"input": data}]), run(model, cuts))

    def test_samples_may_come_as_a_stream_and_are_read_once(self, model: ir.Model) -> None:
        assert run(model, feeds(images(5), 2)).samples == 5

    def test_they_are_those_of_the_activations(self, model: ir.Model, tmp_path: Path) -> None:
        data = images(6)
        names = placement.points(model, list(SCHEMES.values()))
        with OnnxRuntimeRunner(activations.with_outputs(model, names, tmp_path / "all.onnx")) as runner:
            found = [runner.run({"input": data[index : index + 1]}) for index in range(6)]
        for name, sketch in run(model, [{"input": data}]).sketches.items():
            values = data if name == "input" else np.concatenate([outputs[name] for outputs in found])
            axis = 1 if values.ndim == 4 else values.ndim - 1
            assert same(sketch, Sketch.of(np.asarray(values, np.float32), channel_axis=axis)), name


@pytest.fixture(scope="module")
def on_cuda() -> calibrate.OpenRunner:
    reason = why_no_provider(CUDA)
    if reason is not None:
        pytest.skip(reason)
    return partial(open_graph, provider=CUDA)


@pytest.mark.gpu
class TestOnAGpu:
    """``quantize.device = "cuda"``: what a build opens then."""

    @pytest.mark.parametrize("size", [1, 3, 13])
    @pytest.mark.parametrize("memory_mb", [0, 256])
    def test_order_batch_size_and_memory_change_no_bit(
        self, size: int, memory_mb: int, model: ir.Model, on_cuda: calibrate.OpenRunner
    ) -> None:
        data = images(13)
        whole = run(model, [{"input": data}], open_runner=on_cuda)
        shuffled = data[np.random.default_rng(size).permutation(13)]
        assert_same(whole, run(model, feeds(shuffled, size), memory_mb, on_cuda))

    def test_they_are_nearly_those_of_a_processor(self, model: ir.Model, on_cuda: calibrate.OpenRunner) -> None:
        data = images(13)
        there, here = run(model, feeds(data, 4), open_runner=on_cuda), run(model, feeds(data, 4))
        assert list(there.sketches) == list(here.sketches) and there.samples == here.samples == 13
        for name, sketch in there.sketches.items():
            other = here.sketches[name]
            near = 1e-4 * max(abs(other.low), abs(other.high))  # with TF32 it would be some 1e-3
            assert sketch.total == other.total and sketch.channel_low.shape == other.channel_low.shape
            np.testing.assert_allclose(sketch.channel_low, other.channel_low, atol=near)
            np.testing.assert_allclose(sketch.channel_high, other.channel_high, atol=near)
            np.testing.assert_allclose(sketch.channel_means(), other.channel_means(), atol=near)
            assert sketch.mean_square == pytest.approx(other.mean_square, rel=1e-3)
        for scheme in ("onnxruntime-x86", "openvino", "tensorrt"):
            plain = replace(RECIPE, activations=Estimator(method="minmax"))
            mine, its = (
                insertion.quantize(model.clone(), found.sketches, SCHEMES[scheme], plain).params
                for found in (there, here)
            )
            assert {name: params.scale for name, params in mine.items()} == pytest.approx(
                {name: params.scale for name, params in its.items()}, rel=2e-3
            )


class TestGroups:
    def test_a_small_budget_splits_the_activations(self, model: ir.Model) -> None:
        names = placement.points(model, list(SCHEMES.values()))
        known = activations.sizes(model, {"input": images(1)}, names, open_runner=OnnxRuntimeRunner)
        for budget, several in ((10**9, False), (40_000, True), (1, True)):
            groups = activations.split(names, known, budget)
            assert [name for group in groups for name in group] == names
            assert (len(groups) > 1) == several

    def test_the_budget_holds_where_activations_are_many_times_as_large(self, tmp_path: Path) -> None:
        """All were alive together in each group's engine, and each kept its memory: 10.7 GB for twelve of 40 MB."""
        net = graphs.Net()
        last = net.conv("input", "a0", 64, 3)
        for number in range(1, 7):
            last = net.add(("Abs", "Neg")[number % 2], [last], f"a{number}")
        net.classify(last, 64)
        path = net.save(tmp_path / "m.onnx", inputs={"input": (TensorProto.FLOAT, ["batch", 3, 396, 396])})
        done = subprocess.run([sys.executable, "-c", EXTRA_PEAK, str(path)], capture_output=True, text=True, check=True)
        activations = 7 * 4 * 64 * 396 * 396 / 1e6  # 281 MB
        assert float(done.stdout) < 1.6 * 128 < activations

    def test_sizes_follow_from_what_is_fed(self, tmp_path: Path) -> None:
        net = graphs.Net()
        net.conv("input", "a", 16, 3, 3)
        net.conv("a", "b", 16, 16)
        net.classify("b", 16)
        shape = ["batch", 3, "height", "width"]
        model = prepared(net.save(tmp_path / "m.onnx", inputs={"input": (TensorProto.FLOAT, shape)}))
        small, large, larger = (
            activations.sizes(model, {"input": images(1, size)}, open_runner=OnnxRuntimeRunner) for size in (8, 32, 64)
        )
        assert small["a"] == 4 * 16 * 8 * 8 and large["a"] == 4 * 16 * 32 * 32
        names = placement.points(model, list(SCHEMES.values()))
        assert len(activations.split(names, larger, 500_000)) > 1
        assert len(activations.split(names, small, 500_000)) == 1
        assert_same(run(model, feeds(images(3, 64), 2), 1), run(model, feeds(images(3, 64), 3)))

    def test_a_longer_sample_has_groups_of_its_own(self, tmp_path: Path) -> None:
        """They were made for the first sample: of a text of five words, and then the longest came whole."""
        net = graphs.Net()
        net.conv("input", "a", 16, 3, 3)
        for last, name in pairwise("abcdefg"):
            net.conv(last, name, 16, 16)
        net.classify("g", 16)
        shape = ["batch", 3, "height", "width"]
        model = prepared(net.save(tmp_path / "m.onnx", inputs={"input": (TensorProto.FLOAT, shape)}))
        alive: list[int] = []

        class Watched(OnnxRuntimeRunner):
            def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
                found = super().run(inputs)
                alive.append(sum(array.nbytes for array in found.values()))
                return found

        one = 4 * 16 * 64 * 64  # bytes of an activation of the longest
        lengths = [8, 9, 8, 64, 70, 8, 64]
        batches = [{"input": images(1, size)} for size in lengths]
        found = run(model, batches, 1, Watched)
        assert max(alive) <= max(1_000_000 // 3, one) * 1.3, "70 pixels are not worth a third plan"
        assert_same(found, run(model, batches))
        assert_same(found, run(model, [batches[place] for place in (3, 5, 0, 1, 6, 4, 2)], 1))
        assert found.samples == len(lengths)

    def test_sizes_are_known_where_shapes_are_computed_in_the_graph(self, tmp_path: Path) -> None:
        """Of a text encoder of any length nearly all are: each activation had a session of its own, with all weights of
        the network, and a hundred reviews took ten minutes."""
        net = graphs.Net()
        net.add("Shape", ["input"], "shape")
        net.add("Slice", ["shape", net.constant("from", [2], np.int64), net.constant("to", [4], np.int64)], "sides")
        net.add("Concat", [net.constant("first", [-1, 3], np.int64), "sides"], "wanted", axis=0)
        net.add("Reshape", ["input", "wanted"], "same")
        net.conv("same", "a", 16, 3, 3)
        net.conv("a", "b", 16, 16)
        net.classify("b", 16)
        shape = ["batch", 3, "height", "width"]
        model = prepared(net.save(tmp_path / "m.onnx", inputs={"input": (TensorProto.FLOAT, shape)}))
        names = placement.points(model, list(SCHEMES.values()))
        known = activations.sizes(model, {"input": images(1, 16)}, names, open_runner=OnnxRuntimeRunner)
        assert set(known) == set(names) and known["b"] == 4 * 16 * 16 * 16
        opened = []

        def open_runner(path: Path, **more: bool) -> OnnxRuntimeRunner:
            opened.append(path)
            return OnnxRuntimeRunner(path)

        calibrate.calibrate(model, names, feeds(images(2, 16), 1), open_runner=open_runner)
        assert len(opened) == 2, "one for the shapes, and one for all activations"

    def test_the_float_graph_is_not_changed(self, model: ir.Model) -> None:
        before = ir.to_proto(model).SerializeToString()
        run(model, feeds(images(2), 1), 0)
        assert ir.to_proto(model).SerializeToString() == before


class TestInputs:
    @pytest.mark.parametrize("count", [1, 3, 4, 10])
    def test_a_fixed_batch_counts_no_filling(self, count: int, tmp_path: Path) -> None:
        proto = onnx.load(str(graphs.residual(tmp_path / "m.onnx")))
        for value in (*proto.graph.input, *proto.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = 4
        onnx.save(proto, str(tmp_path / "fixed.onnx"))
        model = prepared(tmp_path / "fixed.onnx")
        data = images(count)
        found = run(model, feeds(data, 3))
        assert found.samples == count
        assert same(found.sketches["input"], Sketch.of(data))
        free = run(prepared(tmp_path / "m.onnx"), [{"input": data}])
        for name, sketch in found.sketches.items():
            assert sketch.total == free.sketches[name].total
            # Kernels of another batch size may add in another order: the last bits may differ.
            assert sketch.low == pytest.approx(free.sketches[name].low, abs=1e-4)
            assert sketch.high == pytest.approx(free.sketches[name].high, abs=1e-4)

    def test_integers_and_two_inputs(self, tmp_path: Path) -> None:
        model = prepared(graphs.embedded(tmp_path / "m.onnx"))
        random = np.random.default_rng(0)
        ids = random.integers(0, 50, (11, 6))
        mask = (random.random((11, 6)) < 0.7).astype(np.float32)
        whole = run(model, [{"ids": ids, "mask": mask}])
        cut = run(model, [{"ids": ids[:4], "mask": mask[:4]}, {"mask": mask[4:], "ids": ids[4:]}], 0)
        assert_same(whole, cut)
        assert whole.samples == 11 and "vectors" in whole.sketches and "ids" not in whole.sketches
        vectors = whole.sketches["vectors"]
        table = graph.array_of(model.graph.initializers["table"])
        assert table is not None
        assert same(vectors, Sketch.of(np.asarray(table[ids], np.float32), channel_axis=2))
        for scheme in SCHEMES.values():
            done = insertion.quantize(model.clone(), whole.sketches, scheme, RECIPE)
            assert done.quantized["MatMul"] >= 1

    def test_attention_over_samples_of_different_lengths(self, tmp_path: Path) -> None:
        """What attention weighs by has an axis as long as the sample: it has no channels."""
        model = prepared(graphs.transformer(tmp_path / "m.onnx", tokens="tokens"))
        random = np.random.default_rng(0)
        long, short = (random.normal(size=(count, length, 32)).astype(np.float32) for count, length in ((3, 9), (2, 4)))
        whole = run(model, [{"input": long}, {"input": short}])
        assert whole.samples == 5
        weights = whole.sketches["weights"]
        assert weights.channel_low.shape == (1,) and weights.total == 2 * (3 * 9 * 9 + 2 * 4 * 4)
        assert whole.sketches["key_heads"].channel_low.shape == (1,)
        assert whole.sketches["ln_1"].channel_low.shape == (32,), "these do have channels"
        assert_same(whole, run(model, [{"input": short}, {"input": long}]))
        for scheme in SCHEMES.values():
            assert insertion.quantize(model.clone(), whole.sketches, scheme, RECIPE).quantized["MatMul"] >= 1

    def test_other_inputs_are_refused(self, model: ir.Model, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"inputs are input; the samples are for image"):
            run(model, [{"image": images(1)}])
        two = prepared(graphs.embedded(tmp_path / "m.onnx"))
        with pytest.raises(ModelError, match="inputs are ids, mask"):
            run(two, [{"ids": np.zeros((1, 4), np.int64)}])
        with pytest.raises(ModelError, match="different lengths"):
            run(two, [{"ids": np.zeros((2, 4), np.int64), "mask": np.ones((1, 4), np.float32)}])

    def test_an_activation_that_is_not_there_is_named(self, model: ir.Model) -> None:
        with pytest.raises(ModelError, match="no activation 'absent'"):
            calibrate.calibrate(model, ["input", "absent"], feeds(images(1), 1), open_runner=OnnxRuntimeRunner)

    def test_no_sample_is_an_error(self, model: ir.Model) -> None:
        for batches in ([], [{"input": images(0)}]):
            with pytest.raises(DataError, match="no calibration sample"):
                run(model, batches)

    def test_progress_is_told(self, model: ir.Model) -> None:
        seen: list[int] = []
        calibrate.calibrate(model, ["input"], feeds(images(5), 2), open_runner=OnnxRuntimeRunner, progress=seen.append)
        assert seen == [1, 2, 3, 4, 5]


class TestOddSamples:
    def test_nan_names_the_sample_and_the_activation(self, model: ir.Model) -> None:
        data = images(6)
        data[4, 1, 2, 3] = np.nan
        with pytest.raises(DataError, match="calibration sample 4 makes the activation 'input' NaN or infinite"):
            run(model, feeds(data, 3))
        names = placement.points(model, list(SCHEMES.values()))
        with pytest.raises(DataError, match=r"sample cat5\.png makes"):
            calibrate.calibrate(
                model,
                names,
                feeds(data, 3),
                open_runner=OnnxRuntimeRunner,
                describe=lambda index: f"cat{index + 1}.png",
            )

    def test_overflow_inside_the_network_is_found(self, tmp_path: Path) -> None:
        net = graphs.Net()
        net.conv("input", "a", 3, 3, bias="none")
        net.weights["a_w"][:] = 3e38
        net.classify("a", 3)
        model = prepared(net.save(tmp_path / "m.onnx"))
        with pytest.raises(DataError, match="calibration sample 0 makes the activation 'a' NaN or infinite"):
            run(model, [{"input": np.ones((2, 3, 16, 16), np.float32)}])

    @pytest.mark.parametrize("scheme", ["onnxruntime-x86-vnni", "tensorrt"])
    @pytest.mark.parametrize("method", ["minmax", "percentile", "entropy", "mse"])
    @pytest.mark.parametrize("kind", ["one", "zeros", "constant", "negative", "outlier", "denormal"])
    def test_a_right_graph_comes_of_them(
        self, kind: str, method: str, scheme: str, model: ir.Model, tmp_path: Path
    ) -> None:
        data = {
            "one": images(1),
            "zeros": np.zeros((3, 3, 16, 16), np.float32),
            "constant": np.full((3, 3, 16, 16), 0.5, np.float32),
            "negative": -np.abs(images(3)) - 1,
            "outlier": images(3),
            "denormal": images(3) * np.float32(1e-40),
        }[kind]
        if kind == "outlier":
            data[1, 2, 3, 4] = 1e30
        recipe = Recipe(
            name="t",
            description="",
            activations=Estimator(method=method),  # type: ignore[arg-type]
            weights=Estimator(method="minmax"),
        )
        found = run(model, feeds(data, 2))
        done = insertion.quantize(model.clone(), found.sketches, SCHEMES[scheme], recipe)
        assert all(params.scale > 0 and np.isfinite(params.scale) for params in done.params.values())
        ir.save(done.model, tmp_path / "q.onnx")
        onnx.checker.check_model(str(tmp_path / "q.onnx"), full_check=True)
        ir.save(model, tmp_path / "float.onnx")
        with OnnxRuntimeRunner(tmp_path / "q.onnx") as runner, OnnxRuntimeRunner(tmp_path / "float.onnx") as before:
            got, wanted = (np.asarray(each.run({"input": data})["logits"]) for each in (runner, before))
        assert np.isfinite(got).all()
        if kind != "outlier":  # of three samples none is told to be one: test_bad_input.py has more
            assert sqnr_db(wanted, got) > 30.0
