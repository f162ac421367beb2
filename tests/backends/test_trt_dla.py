"""TensorRT on a deep-learning accelerator: as far as one comes without a module that has one.

What a builder is told is told to TensorRT-RTX's, which has TensorRT's interface, builds on any machine, and knows of no
accelerator.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

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
    # The core is asked of the plain object below: TensorRT-RTX's does not take the number of one that is not there.
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
    model, ranges, _ = _trt_dla.implicit(trt_graph("int8", batch=1))
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
    model, ranges, _ = _trt_dla.implicit(trt_graph("fp16", batch=1))
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


class Flags:
    """A builder's configuration of TensorRT 10: TensorRT-RTX has none of these flags."""

    def __init__(self) -> None:
        self.flags: list[str] = []

    def set_flag(self, flag: str) -> None:
        self.flags.append(flag)


WEAK = ["PREFER_PRECISION_CONSTRAINTS", "FP16"]


@pytest.mark.parametrize(
    ("precision", "fallback", "wanted"),
    [("int8", True, ["GPU_FALLBACK", *WEAK, "INT8"]), ("fp16", False, WEAK), ("int8", False, [*WEAK, "INT8"])],
)
def test_the_flags_of_tensorrt_10(
    trt: ModuleType, trt_target: MakeTarget, precision: Precision, fallback: bool, wanted: list[str]
) -> None:
    names = ("GPU_FALLBACK", "PREFER_PRECISION_CONSTRAINTS", "FP16", "INT8")
    ten: Any = SimpleNamespace(BuilderFlag=SimpleNamespace(**{name: name for name in names}), DeviceType=trt.DeviceType)
    config: Any = Flags()
    assert _trt_dla.is_weakly_typed(ten)
    _trt_dla.set_device(ten, config, trt_target("tensorrt", "8.7", dla_core=1, dla_fallback=fallback), precision)
    assert config.flags == wanted
    assert (config.default_device_type, config.DLA_core) == (trt.DeviceType.DLA, 1)


class Ranged:
    """A network, layer or tensor of TensorRT-RTX whose tensors have a dynamic_range, as TensorRT 10's alone have."""

    def __init__(self, real: Any, tensors: dict[str, Ranged]) -> None:
        self._real, self._tensors = real, tensors

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        return (
            (lambda index: self._wrapped(found(index))) if name in ("get_layer", "get_input", "get_output") else found
        )

    def _wrapped(self, real: Any) -> Ranged | None:
        if real is None:
            return None
        made = Ranged(real, self._tensors)
        return self._tensors.setdefault(real.name, made) if hasattr(real, "dtype") else made


def head(path: Path, *, ranged: bool) -> Path:
    """A Gemm behind a Reshape to a computed shape, of dequantized factors; ranged: what it writes is quantized."""
    onnx = pytest.importorskip("onnx")
    helper, kinds = onnx.helper, onnx.TensorProto
    constants = {
        "scale": np.float32(0.02), "y_scale": np.float32(0.1), "zero": np.int8(0), "first": np.asarray([0], np.int64),
        "rest": np.asarray([-1], np.int64), "steps": np.full((5, 16), 100, np.int8),
        "bias": np.asarray([0.5, -7.0, 0.0, 1.0, 2.0], np.float32),
    }  # fmt: skip
    make = helper.make_node
    nodes = [
        make("Shape", ["x"], ["shape"], "shape"),
        make("Gather", ["shape", "first"], ["batch"], "gather"),
        make("Concat", ["batch", "rest"], ["wanted"], "concat", axis=0),
        make("Reshape", ["x", "wanted"], ["flat"], "flatten"),
        make("QuantizeLinear", ["flat", "scale", "zero"], ["q"], "q"),
        make("DequantizeLinear", ["q", "scale", "zero"], ["d"], "d"),
        make("DequantizeLinear", ["steps", "scale", "zero"], ["w"], "w"),
        make("Gemm", ["d", "w", "bias"], ["g" if ranged else "y"], "gemm", transB=1),
    ]
    if ranged:
        nodes.append(make("QuantizeLinear", ["g", "y_scale", "zero"], ["gq"], "gq"))
        nodes.append(make("DequantizeLinear", ["gq", "y_scale", "zero"], ["y"], "gd"))
    graph = helper.make_graph(
        nodes,
        "head",
        [helper.make_tensor_value_info("x", kinds.FLOAT, ["n", 16, 1, 1])],
        [helper.make_tensor_value_info("y", kinds.FLOAT, ["n", 5])],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("ranged", [True, False])
def test_ranges_of_a_network_and_the_products_that_lack_one(trt: ModuleType, tmp_path: Path, ranged: bool) -> None:
    content, ranges, products = _trt_dla.implicit(head(tmp_path / "head.onnx", ranged=ranged))
    assert products == ("gemm",)
    _, real, parser, errors = parse(trt, content)
    assert errors == []
    tensors: dict[str, Ranged] = {}
    network = Ranged(real, tensors)
    without = _trt_dla.set_ranges(trt, network, ranges)
    given = {name: tensor.dynamic_range for name, tensor in tensors.items() if "dynamic_range" in vars(tensor)}
    largest = pytest.approx(127 * 0.02)
    expected = {"x": largest, "flat": largest}
    if ranged:  # the sum's range, and of the product before it as much more as the bias may take away
        expected |= {"y": pytest.approx(12.7), "y/product": pytest.approx(12.7 + 7.0)}
    assert {name: high for name, (_, high) in given.items()} == expected
    assert all(low == -high for low, high in given.values())
    # Neither shapes nor weights are among them: what is missing does not drown.
    lines = _trt_dla.missed(trt, network, without, products)
    if ranged:
        assert (without, lines) == ([], [])
    else:
        assert set(without) == {"gemm_output", "y"}
        said = "1 of 1 products of the int8 graph compute in float16, as a tensor that they read or write has no range"
        assert lines == [f"{said}: gemm (gemm_output)"]
    del parser


def test_a_gemm_that_is_split_computes_the_same(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    given = {"x": np.random.default_rng(0).uniform(-1, 1, (3, 16, 1, 1)).astype(np.float32)}
    answers = []
    for ranged in (True, False):
        content, _, _ = _trt_dla.implicit(head(tmp_path / f"{ranged}.onnx", ranged=ranged))
        kinds = [node.op_type for node in onnx.load_model_from_string(content).graph.node]
        assert ("Gemm" in kinds, "MatMul" in kinds) == (not ranged, ranged)
        session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
        answers.append(session.run(None, given)[0])
    np.testing.assert_allclose(*answers, rtol=1e-5)
