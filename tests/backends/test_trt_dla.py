"""TensorRT on a deep-learning accelerator: as far as one comes without a module that has one.

What a builder is told is told to TensorRT-RTX's, which has TensorRT's interface, builds on any machine, and knows of no
accelerator.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from edgetl.backends import _trt_dla
from edgetl.backends._trt_build import Profile, parse
from edgetl.backends.base import CompileRequest, EngineRecord
from edgetl.backends.tensorrt import TensorRTBackend, device_command
from edgetl.backends.tensorrt_rtx import TensorRTRTXBackend
from edgetl.errors import ProviderError, TargetError
from edgetl.runtime.nvidia import this_machine
from edgetl.runtime.opening import open_engine
from edgetl.specs import BatchRange, Precision, Target

MakeTarget = Callable[..., Target]
MakeGraph = Callable[..., Path]

ONE, MANY = BatchRange(min=1, max=1), BatchRange(min=1, max=8)
no_gpu = pytest.mark.skipif(not this_machine().problem, reason="this machine has an NVIDIA GPU")


@pytest.fixture
def trt() -> ModuleType:
    pytest.importorskip("tensorrt_rtx_libs", reason="the extra tensorrt-rtx is not installed")
    return importlib.import_module("tensorrt_rtx_bindings")


def request(
    model: Path, folder: Path, target: Target, precision: Precision = "fp16", batch: BatchRange = ONE
) -> CompileRequest:
    folder.mkdir(exist_ok=True)
    return CompileRequest(model=model, folder=folder, target=target, precision=precision, batch=batch)


# --- what a builder is told ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fallback", [True, False])
def test_device_core_and_fallback(
    trt: ModuleType, trt_graph: MakeGraph, trt_target: MakeTarget, fallback: bool
) -> None:
    builder, _, parser, _ = parse(trt, trt_graph("fp16").read_bytes())
    config = builder.create_builder_config()
    target = trt_target("tensorrt", "8.7", dla_core=1, dla_fallback=fallback)
    _trt_dla.set_device(trt, config, target, "fp16")
    assert config.default_device_type == trt.DeviceType.DLA
    assert config.get_flag(trt.BuilderFlag.GPU_FALLBACK) == fallback
    assert not _trt_dla.is_weakly_typed(trt), "types come from the graph, as in TensorRT 11"
    del parser


def test_an_accelerator_that_is_not_there(trt: ModuleType, trt_graph: MakeGraph, trt_target: MakeTarget) -> None:
    builder, _, parser, _ = parse(trt, trt_graph("fp16").read_bytes())
    assert builder.num_DLA_cores == 0
    with pytest.raises(ProviderError, match=r"asks for DLA core 0, and TensorRT .* sees 0 of them here") as caught:
        _trt_dla.configure(
            trt, builder, builder.create_builder_config(), trt_target("tensorrt", "8.7", dla_core=0), "fp16"
        )
    assert "leave dla_core out" in (caught.value.hint or "")
    del parser


def test_the_whole_build_as_far_as_the_accelerator(
    trt: ModuleType, trt_graph: MakeGraph, trt_target: MakeTarget, tmp_path: Path
) -> None:
    target = trt_target("tensorrt", "8.7", dla_core=0)
    with pytest.raises(TargetError, match="a DLA, which has no dynamic shapes; input 'image' is"):
        _trt_dla.build_for_dla(trt, request(trt_graph("int8"), tmp_path, target, "int8", MANY), workspace_mib=None)
    with pytest.raises(ProviderError, match="sees 0 of them"):
        _trt_dla.build_for_dla(trt, request(trt_graph("int8"), tmp_path, target, "int8"), workspace_mib=None)


def test_a_graphics_card_has_none(
    trt: ModuleType, trt_graph: MakeGraph, trt_target: MakeTarget, tmp_path: Path
) -> None:
    target = trt_target("tensorrt_rtx", "8.9", dla_core=0)
    with pytest.raises(TargetError, match="asks for DLA core 0; TensorRT-RTX is for graphics cards, without DLA"):
        TensorRTRTXBackend().compile(request(trt_graph("fp16"), tmp_path / "engine", target))


# --- what is left for the device -------------------------------------------------------------------------------------


@pytest.mark.skipif(this_machine().is_jetson, reason="this machine is a Jetson")
def test_the_device_is_told_which_accelerator(trt_graph: MakeGraph, trt_target: MakeTarget, tmp_path: Path) -> None:
    target = trt_target("tensorrt", "8.7", on_device=True, engine_version="10.3", dla_core=1, dla_fallback=True)
    record = TensorRTBackend().compile(request(trt_graph("fp16"), tmp_path / "engine", target))
    assert record.status == "build-on-device"
    assert (record.options["dla_core"], record.options["dla_fallback"]) == (1, True)
    assert EngineRecord.read(tmp_path / "engine").options == record.options
    with pytest.raises(TargetError, match="no dynamic shapes") as caught:
        TensorRTBackend().compile(request(trt_graph("fp16"), tmp_path / "other", target, batch=MANY))
    assert "batch = { min = 1, max = 1 }" in (caught.value.hint or "")


@pytest.mark.skipif(this_machine().is_jetson, reason="this machine is a Jetson")
def test_a_device_that_is_too_old_for_edgetl(trt_graph: MakeGraph, trt_target: MakeTarget, tmp_path: Path) -> None:
    target = trt_target("tensorrt", "7.2", on_device=True, engine_version="8.5", dla_core=0, dla_fallback=True)
    command = "trtexec --onnx=model.onnx --saveEngine=model.engine --fp16 --useDLACore=0 --allowGPUFallback"
    assert device_command(target, "fp16", {"image": Profile(min=(1, 3), opt=(1, 3), max=(1, 3))}) == command
    with pytest.raises(TargetError, match=r"needs TensorRT 10 or newer there, and 8\.5 is stated"):
        TensorRTBackend().compile(request(trt_graph("int8"), tmp_path / "engine", target, "int8"))


@no_gpu
@pytest.mark.parametrize("how", [open_engine, TensorRTBackend().open])
def test_an_engine_is_opened_on_its_accelerator(tmp_path: Path, how: Callable[[Path], object]) -> None:
    (tmp_path / "model.engine").write_bytes(b"ftrt" + bytes(200))
    EngineRecord(
        backend="tensorrt",
        provider="GPU",
        precision="fp16",
        status="ready",
        files=("model.engine",),
        options={"dla_core": 1, "dla_fallback": True},
    ).write(tmp_path)
    with pytest.raises(ProviderError, match=r"cannot open model\.engine on 'GPU', DLA core 1"):
        how(tmp_path)


# --- TensorRT 10: ranges instead of quantizers -----------------------------------------------------------------------


def test_a_graph_of_floats_with_ranges(trt_graph: MakeGraph, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model, ranges = _trt_dla.implicit(trt_graph("int8", batch=1))
    graph = onnx.load_model_from_string(model).graph
    assert [node.op_type for node in graph.node] == ["Conv", "Relu", "GlobalAveragePool", "Flatten"]
    assert ranges == {"image": pytest.approx(127 * 0.03)}
    weights = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    before = onnx.load_model(trt_graph("int8", batch=1)).graph
    steps = {each.name: onnx.numpy_helper.to_array(each) for each in before.initializer}
    expected = steps["w_steps"].astype(np.float32) * steps["w_scale"][:, None, None, None]
    np.testing.assert_array_equal(weights["weight"], expected)
    # TensorRT finds the steps again: the largest of each channel is its 127th.
    again = np.rint(weights["weight"] / (np.abs(weights["weight"]).max((1, 2, 3), keepdims=True) / 127))
    np.testing.assert_array_equal(again, steps["w_steps"])


def test_a_graph_of_float16_is_widened(trt_graph: MakeGraph) -> None:
    onnx = pytest.importorskip("onnx")
    model, ranges = _trt_dla.implicit(trt_graph("fp16", batch=1))
    found = onnx.load_model_from_string(model)
    assert ranges == {}
    assert {each.data_type for each in found.graph.initializer} == {onnx.TensorProto.FLOAT}
    assert found.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    onnx.checker.check_model(found, full_check=True)


def test_a_zero_point_is_refused(trt_graph: MakeGraph, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    found = onnx.load_model(trt_graph("int8", batch=1))
    (zero,) = (each for each in found.graph.initializer if each.name == "x_zero")
    zero.CopyFrom(onnx.numpy_helper.from_array(np.asarray(np.int8(3)), "x_zero"))
    (tmp_path / "shifted.onnx").write_bytes(found.SerializeToString())
    with pytest.raises(TargetError, match=r"quantize_x.*zero point of 0"):
        _trt_dla.implicit(tmp_path / "shifted.onnx")
