"""The TensorRT-RTX backend: engines are really built here, without a GPU."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgetl.backends.base import Backend, CompileRequest
from edgetl.backends.tensorrt_rtx import TensorRTRTXBackend, accepts, parsed, wrong_gpu
from edgetl.errors import MissingExtraError, ProviderError, TargetError, UsageError
from edgetl.runtime.nvidia import Gpu, Machine, this_machine
from edgetl.specs import BatchRange, Precision, Target

MakeTarget = Callable[..., Target]
MakeGraph = Callable[..., Path]

RTX_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
installed = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None, reason="the extra tensorrt-rtx is not installed"
)
no_gpu = pytest.mark.skipif(not this_machine().problem, reason="this machine has an NVIDIA GPU")
on_gpu = pytest.mark.skipif(
    not any(gpu.compute_capability in RTX_CAPABILITIES for gpu in this_machine().gpus[:1])
    or importlib.util.find_spec("tensorrt_rtx_bindings") is None,
    reason="needs an RTX GPU and the extra tensorrt-rtx",
)


def request(model: Path, folder: Path, target: Target, precision: Precision = "fp16") -> CompileRequest:
    folder.mkdir(exist_ok=True)
    return CompileRequest(
        model=model, folder=folder, target=target, precision=precision, batch=BatchRange(min=1, max=8)
    )


def test_is_a_backend() -> None:
    backend: Backend = TensorRTRTXBackend()
    assert (backend.name, backend.extra) == ("tensorrt_rtx", "tensorrt-rtx")


# --- building --------------------------------------------------------------------------------------------------------


@installed
@pytest.mark.parametrize(
    ("kind", "capabilities"),
    [("fp32", ["8.6"]), ("fp16", ["7.5", "8.6", "8.9", "12.0"]), ("int8", ["8.9"])],
)
def test_builds_an_engine(
    kind: Precision,
    capabilities: list[str],
    tmp_path: Path,
    trt_graph: MakeGraph,
    trt_target: MakeTarget,
    capfd: pytest.CaptureFixture[str],
) -> None:
    backend = TensorRTRTXBackend(workspace_mib=256)
    target = trt_target("tensorrt_rtx", *capabilities)
    record = backend.compile(request(trt_graph(kind), tmp_path / "engine", target, kind))
    engine = (tmp_path / "engine" / "model.engine").read_bytes()
    assert record.files == ("model.engine",)
    assert len(engine) > 9216  # the 4,608 weights in half precision
    assert record.versions["tensorrt_rtx"] == backend.version()
    assert record.options["compute_capabilities"] == capabilities
    assert record.options["compute_capabilities_left_out"] == []
    assert record.options["profiles"]["image"]["max"] == [8, 16, 32, 32]
    assert record.options["workspace_mib"] == 256
    assert record.options["multiply_adds"] == {"conv": 32 * 16 * 3 * 3 * 32 * 32}  # of one sample
    assert sorted(path.name for path in (tmp_path / "engine").iterdir()) == [
        "engine.json",
        "model.engine",
        "model.onnx",
    ]
    assert record.graph == "model.onnx"
    assert capfd.readouterr() == ("", "")


@installed
@no_gpu
def test_says_that_it_cannot_run_here(tmp_path: Path, trt_graph: MakeGraph, trt_target: MakeTarget) -> None:
    target = trt_target("tensorrt_rtx", "8.9")
    backend = TensorRTRTXBackend()
    record = backend.compile(request(trt_graph("fp16"), tmp_path / "engine", target))
    assert record.status == "built"
    assert "this machine cannot run it: " in record.note
    assert "NVIDIA driver" in (backend.why_not_here(target, "fp16") or "")


@installed
@no_gpu
def test_opening_without_a_gpu_is_an_error_and_no_crash(
    tmp_path: Path, trt_graph: MakeGraph, trt_target: MakeTarget
) -> None:
    folder = tmp_path / "engine"
    TensorRTRTXBackend().compile(request(trt_graph("fp16"), folder, trt_target("tensorrt_rtx", "8.9")))
    with pytest.raises(ProviderError, match=r"cannot open model\.engine on 'gpu'"):
        TensorRTRTXBackend().open(folder)
    code = (
        "import sys; from pathlib import Path\n"
        "from edgetl.backends.tensorrt_rtx import TensorRTRTXBackend\n"
        "from edgetl.errors import ProviderError\n"
        "try: TensorRTRTXBackend().open(Path(sys.argv[1]))\n"
        "except ProviderError as error: sys.exit(error.exit_code + ('tensorrt_rtx_bindings' in sys.modules))\n"
    )
    run = subprocess.run([sys.executable, "-c", code, str(folder)], timeout=120, check=False)
    assert run.returncode == 8  # a crash would be negative; 9: the library was touched before the driver was asked


@installed
def test_leaves_out_and_names_unknown_capabilities(
    tmp_path: Path, trt_graph: MakeGraph, trt_target: MakeTarget
) -> None:
    target = trt_target("tensorrt_rtx", "9.0", "8.9")
    record = TensorRTRTXBackend().compile(request(trt_graph("fp16"), tmp_path / "engine", target))
    assert record.options["compute_capabilities"] == ["8.9"]
    assert record.options["compute_capabilities_left_out"] == ["9.0"]
    assert "left out compute capability 9.0" in record.note


@installed
@pytest.mark.parametrize("capabilities", [(), ("9.0",), ("banana",)])
def test_refuses_a_target_without_a_known_capability(
    capabilities: tuple[str, ...], tmp_path: Path, trt_graph: MakeGraph, trt_target: MakeTarget
) -> None:
    with pytest.raises(TargetError, match=r"builds for .*8\.9") as caught:
        target = trt_target("tensorrt_rtx", *capabilities)
        TensorRTRTXBackend().compile(request(trt_graph("fp16"), tmp_path / "engine", target))
    assert caught.value.exit_code == 6


@installed
def test_builds_for_a_fixed_batch(tmp_path: Path, trt_graph: MakeGraph, trt_target: MakeTarget) -> None:
    wanted = request(trt_graph("fp16", 4), tmp_path / "engine", trt_target("tensorrt_rtx", "8.9"))
    with pytest.raises(TargetError, match="batches of 1 to 8"):
        TensorRTRTXBackend().compile(wanted)
    fixed = CompileRequest(
        model=wanted.model,
        folder=wanted.folder,
        target=wanted.target,
        precision="fp16",
        batch=BatchRange(min=4, max=4),
    )
    assert TensorRTRTXBackend().compile(fixed).options["profiles"]["image"]["min"] == [4, 16, 32, 32]


# --- what the parser refuses -----------------------------------------------------------------------------------------


@installed
@pytest.mark.parametrize("kind", ["fp32", "fp16", "int8"])
def test_accepts(kind: str, trt_graph: MakeGraph) -> None:
    assert accepts(trt_graph(kind)) == []


@installed
def test_parser_names_node_operator_and_reason(trt_graph: MakeGraph, tmp_path: Path) -> None:
    (error,) = accepts(trt_graph("unknown-op"))
    assert "'relu' (NoSuchOperator" in error
    assert "Plugin not found" in error
    (error,) = accepts(trt_graph("int8-int32-bias"))
    assert "'dequantize_b' (DequantizeLinear" in error
    assert "Int32" in error
    assert "cudaError" not in error  # the missing driver is not the reason
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    assert "Failed to parse" in accepts(broken)[0]


@installed
@pytest.mark.parametrize(
    ("kind", "text", "hint"),
    [("int8-int32-bias", "dequantize_b", "float biases"), ("unknown-op", "NoSuchOperator", None)],
)
def test_a_refused_graph_is_a_target_error(
    kind: str, text: str, hint: str | None, tmp_path: Path, trt_graph: MakeGraph, trt_target: MakeTarget
) -> None:
    wanted = request(trt_graph(kind), tmp_path / "engine", trt_target("tensorrt_rtx", "8.9"), "int8")
    with pytest.raises(TargetError, match=text) as caught:
        TensorRTRTXBackend().compile(wanted)
    assert "device-of-the-test" in caught.value.message
    assert hint is None if hint is None else hint in (caught.value.hint or "")
    assert caught.value.exit_code == 6
    assert list((tmp_path / "engine").iterdir()) == []


@installed
def test_a_builder_error_is_a_target_error(tmp_path: Path, trt_graph: MakeGraph, trt_target: MakeTarget) -> None:
    """A product of float32 matrices is accepted by the parser, and cannot be built for Turing beside other cards."""
    onnx = pytest.importorskip("onnx")
    value = onnx.helper.make_tensor_value_info
    weight = onnx.numpy_helper.from_array(np.ones((64, 32), np.float32), "w")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Gemm", ["x", "w"], ["y"], "product")],
        "net",
        [value("x", onnx.TensorProto.FLOAT, ["batch", 64])],
        [value("y", onnx.TensorProto.FLOAT, ["batch", 32])],
        [weight],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    path = tmp_path / "gemm.onnx"
    path.write_bytes(model.SerializeToString())
    assert accepts(path) == []
    with pytest.raises(TargetError, match=r"TensorRT-RTX .* refuses the fp32 graph.*\n.*SM75") as caught:
        TensorRTRTXBackend().compile(
            request(path, tmp_path / "engine", trt_target("tensorrt_rtx", "7.5", "8.9"), "fp32")
        )
    assert "7.5" in (caught.value.hint or "")


@installed
def test_one_refusal_does_not_show_up_in_the_next(tmp_path: Path, trt_graph: MakeGraph, trt_target: MakeTarget) -> None:
    assert accepts(trt_graph("unknown-op"))
    record = TensorRTRTXBackend().compile(
        request(trt_graph("fp32"), tmp_path / "engine", trt_target("tensorrt_rtx", "8.9"), "fp32")
    )
    assert not any("NoSuchOperator" in warning for warning in record.options["warnings"])


# --- what is missing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", ["tensorrt_rtx_libs", "tensorrt_rtx_bindings"])
def test_missing_extra(
    package: str, tmp_path: Path, trt_graph: MakeGraph, trt_target: MakeTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trt_graph("fp16")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_libs", None)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match="tensorrt_rtx") as caught:
        TensorRTRTXBackend().compile(request(model, tmp_path / "engine", trt_target("tensorrt_rtx", "8.9")))
    assert caught.value.exit_code == 8
    assert caught.value.hint == "pip install 'edgetl[tensorrt-rtx]'"
    with pytest.raises(MissingExtraError):
        accepts(model)


def test_version_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
    assert TensorRTRTXBackend().version() is None


def test_wrong_gpu(trt_target: MakeTarget) -> None:
    target = trt_target("tensorrt_rtx", "8.9", "9.0")
    hopper = Machine(
        architecture="x86_64",
        is_jetson=False,
        gpus=(Gpu(index=0, name="H200", compute_capability="9.0"),),
        cuda_version="13.0",
        problem="",
    )
    assert wrong_gpu(target, hopper) is None
    assert "compute capability 9.0, not 8.9" in (wrong_gpu(target, hopper, ["8.9"]) or "")


# --- on a GPU --------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@on_gpu
def test_built_and_run_on_the_gpu(tmp_path: Path, trt_graph: MakeGraph, trt_target: MakeTarget) -> None:
    ort = pytest.importorskip("onnxruntime")
    model = trt_graph("fp16")
    target = trt_target("tensorrt_rtx", this_machine().gpus[0].compute_capability)
    backend = TensorRTRTXBackend()
    record = backend.compile(request(model, tmp_path / "engine", target))
    assert (record.status, record.note) == ("ready", "")
    reference = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    with backend.open(tmp_path / "engine") as runner:
        for batch in (1, 8, 3):
            image = rng.standard_normal((batch, 16, 32, 32)).astype(np.float16)
            logits = runner.run({"image": image})["logits"]
            np.testing.assert_allclose(logits.astype(np.float32), reference.run(None, {"image": image})[0], atol=2e-2)
            again, copies = runner.run_apart({"image": image})
            np.testing.assert_array_equal(again["logits"], logits)
            assert set(copies) == {"host-to-device", "device-to-host"}
        with pytest.raises(UsageError, match="given was"):
            runner.run({"image": np.zeros((9, 16, 32, 32), np.float16)})
        assert runner.placement().share == 1.0


@installed
@pytest.mark.parametrize(("kind", "precision"), [("int8", "int8"), ("fp16", "fp16"), ("fp32", "fp32")])
def test_the_parser_tells_what_a_convolution_would_compute_in(trt_graph: MakeGraph, kind: str, precision: str) -> None:
    nodes = parsed(trt_graph(kind))
    (convolution,) = (node for node in nodes if node.multiply_adds)
    assert convolution.precision == precision
    assert convolution.multiply_adds == 32 * 32 * 32 * 16 * 9  # (32, 32, 32) outputs of 16 channels and 3 x 3 taps
    assert convolution.origins == ("conv",)
    assert sum(node.kind in ("QUANTIZE", "DEQUANTIZE") for node in nodes) == (2 if kind == "int8" else 0)


@installed
def test_the_parser_refuses(trt_graph: MakeGraph) -> None:
    with pytest.raises(TargetError, match="TensorRT-RTX refuses"):
        parsed(trt_graph("int8-int32-bias"))


@installed
def test_weights_that_the_parser_reshapes_behind_their_dequantizer_are_eight_bits_still(tmp_path: Path) -> None:
    """A matrix product of tokens: the parser gives its weights a third dimension."""
    helper, tensor = onnx.helper, onnx.numpy_helper.from_array
    scale = np.asarray(0.05, np.float32)
    constants = {
        "x_s": scale, "x_z": np.asarray(0, np.int8), "w_s": np.full(32, scale), "w_z": np.zeros(32, np.int8),
        "w_q": np.random.default_rng(0).integers(-127, 128, (16, 32)).astype(np.int8),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_s", "x_z"], ["x_q"]),
        helper.make_node("DequantizeLinear", ["x_q", "x_s", "x_z"], ["x_dq"]),
        helper.make_node("DequantizeLinear", ["w_q", "w_s", "w_z"], ["w_dq"], axis=1),
        helper.make_node("MatMul", ["x_dq", "w_dq"], ["y"], name="product"),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 8, 16])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 8, 32])],
        [tensor(array, name) for name, array in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "m.onnx")
    (product,) = (node for node in parsed(tmp_path / "m.onnx") if node.multiply_adds)
    assert (product.precision, product.multiply_adds, product.origins) == ("int8", 8 * 16 * 32, ("product",))
