"""Engines of TensorRT opened up: the graph beside them is read, and others with more outputs are really built."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

ir = pytest.importorskip("onnx_ir")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from edgetl.backends import backend, inside  # noqa: E402
from edgetl.backends._inside_onnx import InsideOnnx  # noqa: E402
from edgetl.backends._inside_trt import InsideTensorRT, request_of  # noqa: E402
from edgetl.backends.base import CompileRequest, EngineRecord  # noqa: E402
from edgetl.errors import BundleError, ProviderError  # noqa: E402
from edgetl.parity.numeric import sqnr_db  # noqa: E402
from edgetl.quantize import calibrate, graph, insertion, placement  # noqa: E402
from edgetl.quantize.half import to_half  # noqa: E402
from edgetl.quantize.schemes import SCHEMES  # noqa: E402
from edgetl.runtime.nvidia import this_machine  # noqa: E402
from edgetl.runtime.onnxruntime import OnnxRuntimeRunner  # noqa: E402
from edgetl.specs import BatchRange, Estimator, Precision, Recipe, Target  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1] / "quantize"))
import graphs  # noqa: E402

MakeTarget = Callable[..., Target]
PLAIN = Recipe(name="t", description="", activations=Estimator(method="minmax"), weights=Estimator(method="minmax"))
IMAGES = np.random.default_rng(0).normal(size=(4, 3, 16, 16)).astype(np.float32)
TOKENS = np.random.default_rng(0).normal(size=(4, 8, 32)).astype(np.float32)
KINDS = {"residual": IMAGES, "transformer": TOKENS}

installed = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None, reason="the extra tensorrt-rtx is not installed"
)
no_gpu = pytest.mark.skipif(not this_machine().problem, reason="this machine has an NVIDIA GPU")
on_gpu = pytest.mark.skipif(
    not this_machine().gpus or importlib.util.find_spec("tensorrt") is None,
    reason="needs an NVIDIA GPU and the package tensorrt",
)


def made(kind: str, precision: Precision, folder: Path) -> Path:
    """A graph as edgetl makes it for TensorRT."""
    model = graph.prepare(graph.load(getattr(graphs, kind)(folder / "source.onnx")))
    ir.save(model, folder / "float.onnx")
    if precision == "int8":
        scheme = SCHEMES["tensorrt"]
        found = calibrate.calibrate(
            model, placement.points(model, [scheme]), [{"input": KINDS[kind]}], open_runner=OnnxRuntimeRunner
        )
        model = insertion.quantize(model, found.sketches, scheme, PLAIN).model
    elif precision == "fp16":
        model = to_half(model).model
    ir.save(model, folder / "made.onnx")
    return folder / "made.onnx"


def opened(kind: str, precision: Precision, folder: Path, target: Target) -> tuple[InsideOnnx, InsideTensorRT, Path]:
    """The float graph, and an engine that was built."""
    path, place = made(kind, precision, folder), folder / "engine"
    place.mkdir()
    backend(target.backend).compile(
        CompileRequest(model=path, folder=place, target=target, precision=precision, batch=BatchRange(min=1, max=4))
    )
    exact = InsideOnnx(folder / "float.onnx", (), folder)
    found = inside.look_into(place, exact.tensors, workplace=folder)
    assert isinstance(found, InsideTensorRT)
    return exact, found, place


@installed
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_beside_an_engine_is_read(
    kind: str, precision: Precision, tmp_path: Path, trt_target: MakeTarget
) -> None:
    exact, found, _ = opened(kind, precision, tmp_path, trt_target("tensorrt_rtx", "8.9"))
    names = [place.name for place in found.places]
    assert names[-1] == "logits" and len(names) > 3
    assert bool(found.quantizers) == (precision == "int8")
    with exact.promise(names) as float_graph, found.promise(names) as promise:
        wanted, seen = float_graph.run({"input": KINDS[kind]}), promise.run({"input": KINDS[kind]})
    least = {"fp32": 100, "fp16": 45, "int8": 15}[precision]
    assert all(sqnr_db(wanted[name], seen[name]) > least for name in names)


@installed
@no_gpu
@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_engine_with_more_outputs_is_built_as_far_as_a_gpu_is_needed(
    kind: str, precision: Precision, tmp_path: Path, trt_target: MakeTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All tensors at once; the builder takes integers as outputs. What opens it asks for a GPU."""
    _, found, place = opened(kind, precision, tmp_path, trt_target("tensorrt_rtx", "8.9"))
    names = [each.name for each in found.places]
    rtx, seen = type(backend("tensorrt_rtx")), []
    compiled = rtx.compile

    def compile_(self, request: CompileRequest) -> EngineRecord:  # type: ignore[no-untyped-def]
        outputs = onnx.load(request.model, load_external_data=False).graph.output
        record = compiled(self, request)
        seen.append((len(outputs), (request.folder / "model.engine").stat().st_size, record.options["profiles"]))
        return record

    monkeypatch.setattr(rtx, "compile", compile_)
    with pytest.raises(ProviderError, match="NVIDIA driver"):
        found.engine(names)
    ((outputs, size, profiles),) = seen
    assert outputs == len(names) and size > 1000
    assert profiles == EngineRecord.read(place).options["profiles"]
    with pytest.raises(ProviderError, match=r"model\.engine on 'gpu'"):
        found.engine(["logits"])  # its own output: nothing is built for that
    assert len(seen) == 1
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"source.onnx", "float.onnx", "made.onnx", "engine"}


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("kind", KINDS)
def test_layers_of_an_engine_on_the_gpu(
    kind: str, precision: Precision, tmp_path: Path, trt_target: MakeTarget
) -> None:
    _, found, _ = opened(kind, precision, tmp_path, trt_target("tensorrt", this_machine().gpus[0].compute_capability))
    names = [place.name for place in found.places]
    feeds = {"input": KINDS[kind]}
    with found.promise(names) as promise, found.engine(names) as engine, found.engine(["logits"]) as own:
        wanted, seen, alone = promise.run(feeds), engine.run(feeds), own.run(feeds)
    assert sqnr_db(alone["logits"], seen["logits"]) > 30
    assert all(sqnr_db(wanted[name], seen[name]) > 20 for name in names)


@installed
def test_a_graph_that_is_not_beside_the_engine(tmp_path: Path, trt_target: MakeTarget) -> None:
    _, _, place = opened("residual", "fp32", tmp_path, trt_target("tensorrt_rtx", "8.9"))
    path = place / "engine.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    for name in ("other.onnx", "../made.onnx"):
        path.write_text(json.dumps({**content, "graph": name}), encoding="utf-8")
        with pytest.raises(BundleError, match=f"the engine's graph '{name}' is not in its folder"):
            inside.look_into(place, (), workplace=tmp_path)


@pytest.mark.parametrize("options", [{}, {"profiles": {}}, {"profiles": {"x": {"min": [1]}}}, {"profiles": []}])
def test_a_record_without_shapes(options: dict[str, object], tmp_path: Path) -> None:
    record = EngineRecord(
        backend="tensorrt", provider="gpu", precision="int8", status="ready", files=("e",), options=options
    )
    with pytest.raises(BundleError, match="does not tell for which shapes it was built"):
        request_of(record, tmp_path / "graph.onnx", tmp_path)


def test_shapes_are_those_of_the_record(tmp_path: Path) -> None:
    profiles = {"ids": {"min": [1, 2], "opt": [1, 128], "max": [8, 128]}, "mask": {"min": [1], "max": [8]}}
    record = EngineRecord(
        backend="tensorrt_rtx", provider="gpu:1", precision="fp16", status="built", files=("e",),
        options={"profiles": profiles, "compute_capabilities": ["8.9", "12.0"]},
    )  # fmt: skip
    asked = request_of(record, tmp_path / "graph.onnx", tmp_path)
    assert (asked.batch, asked.longest, asked.precision) == (BatchRange(min=1, max=8), 128, "fp16")
    assert (asked.target.provider, asked.target.hardware.compute_capability) == ("gpu:1", ("8.9", "12.0"))
