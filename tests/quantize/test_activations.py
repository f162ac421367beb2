from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from edgetl.errors import DataError
from edgetl.pipeline.engines import open_graph
from edgetl.quantize import activations, calibrate, graph, placement
from edgetl.quantize.schemes import SCHEMES
from edgetl.runtime.onnxruntime import OnnxRuntimeRunner

sys.path.insert(0, str(Path(__file__).parent))
import graphs


def images(count: int, size: int = 16) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, 3, size, size)).astype(np.float32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ir.Model:
    """Seven convolutions of any size of images."""
    net = graphs.Net()
    net.conv("input", "a", 16, 3, 3)
    for last, name in pairwise("abcdefg"):
        net.conv(last, name, 16, 16)
    net.classify("g", 16)
    path = tmp_path_factory.mktemp("net") / "m.onnx"
    shape = ["batch", 3, "height", "width"]
    return graph.prepare(graph.load(net.save(path, inputs={"input": (TensorProto.FLOAT, shape)})))


@pytest.fixture(scope="module")
def names(model: ir.Model) -> list[str]:
    return placement.points(model, list(SCHEMES.values()))


class TestComputed:
    @settings(max_examples=15, deadline=None)
    @given(
        sides=st.lists(st.sampled_from([8, 9, 16, 24]), min_size=1, max_size=9),
        memory=st.sampled_from([0, 30_000, 120_000, 5_000_000]),
    )
    def test_each_activation_of_each_sample_comes_once_whatever_memory_there_is(
        self, sides: list[int], memory: int, model: ir.Model, names: list[str]
    ) -> None:
        samples = [{"input": images(1, side) + place} for place, side in enumerate(sides)]
        with OnnxRuntimeRunner(whole(model, names)) as runner:
            wanted = [{"input": feeds["input"], **runner.run(feeds)} for feeds in samples]
        found: dict[tuple[int, str], np.ndarray] = {}
        done = []
        for step in activations.computed(
            model, names, [(feeds, 1) for feeds in samples], open_runner=open_graph, memory=memory
        ):
            assert step.feeds is samples[step.first] and step.count == 1
            for name in step.names:
                assert (step.first, name) not in found
                found[step.first, name] = step.values[name] if name in step.values else step.feeds[name]
            if step.last:
                done.append(step.first)
                assert all((step.first, name) in found for name in names)
        assert done == list(range(len(samples)))
        for (place, name), values in found.items():
            np.testing.assert_array_equal(values, wanted[place][name], name)

    def test_one_engine_is_open_at_a_time_and_weights_are_written_once(
        self, names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each group had an engine of its own, open all the time, and a file with all weights: a text encoder of 90 MB
        in six groups took 600 MB of memory and 540 MB of disk where 16 MB were allowed."""
        net = graphs.Net()
        net.conv("input", "a", 64, 3, 3)
        for last, name in pairwise("abcdefg"):
            net.conv(last, name, 64, 64, 3)
        net.classify("g", 64)
        path = net.save(tmp_path / "m.onnx", inputs={"input": (TensorProto.FLOAT, ["batch", 3, 32, 32])})
        model = graph.prepare(graph.load(path))
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        alive: list[int] = []
        open_now = 0

        class Counted(OnnxRuntimeRunner):
            def __enter__(self) -> Counted:
                nonlocal open_now
                open_now += 1
                return self

            def __exit__(self, *raised: object) -> None:
                nonlocal open_now
                open_now -= 1
                super().__exit__(None, None, None)

            def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
                alive.append(open_now)
                folders = tmp_path.glob("edgetl-*")
                assert sum(file.stat().st_size for folder in folders for file in folder.iterdir()) < 1.5 * weights
                return super().run(inputs)

        weights = path.stat().st_size
        values = placement.points(model, list(SCHEMES.values()))
        samples = [{"input": images(1, 32)}] * 5
        calibrate.calibrate(model, values, samples, open_runner=Counted, memory_mb=1)
        assert set(alive) == {1} and open_now == 0
        assert len(alive) > len(samples) + 1, "in one group, this shows nothing"
        assert not list(tmp_path.glob("edgetl-*"))

    def test_who_stops_early_leaves_nothing(
        self, model: ir.Model, names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        steps = [({"input": images(1)}, 1)] * 3
        for memory in (0, 10**9):
            work = activations.computed(model, names, steps, open_runner=open_graph, memory=memory)
            next(work)
            assert list(tmp_path.glob("edgetl-*"))
            work.close()
            assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("memory_mb", [0, 512])
    @pytest.mark.parametrize("bad", [0, 3, 8])
    def test_a_bad_sample_is_named_in_whatever_group_it_is_found(
        self,
        bad: int,
        memory_mb: int,
        model: ir.Model,
        names: list[str],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        samples = images(9)
        samples[bad, 0, 0, 0] = np.nan
        with pytest.raises(DataError, match=f"calibration sample number {bad} makes") as raised:
            calibrate.calibrate(
                model, names, [{"input": samples[:4]}, {"input": samples[4:]}], open_runner=open_graph,
                memory_mb=memory_mb, describe=lambda index: f"number {index}",
            )  # fmt: skip
        assert "NaN" in raised.value.message
        assert not list(tmp_path.iterdir())

    def test_few_steps_are_read_ahead_where_samples_are_large(self, model: ir.Model, names: list[str]) -> None:
        read: list[int] = []

        def steps() -> Iterator[tuple[activations.Feeds, int]]:
            for index in range(12):
                read.append(index)
                yield {"input": images(1, 64)}, 1  # 49 KB, and each activation 262

        work = activations.computed(model, names, steps(), open_runner=open_graph, memory=500_000)
        most = 0
        for step in work:
            most = max(most, read[-1] - step.first)
        assert most <= 3, "a quarter of the memory holds three"


def whole(model: ir.Model, names: list[str]) -> Path:
    return activations.with_outputs(model, names, Path(tempfile.mkdtemp()) / "all.onnx", apart=names)
