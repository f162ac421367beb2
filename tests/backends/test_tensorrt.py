"""The TensorRT backend, and what it shares with TensorRT-RTX."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.backends._trt_build import onnx_inputs, profiles_for
from edgetl.backends.base import Backend, CompileRequest, EngineRecord
from edgetl.backends.tensorrt import TensorRTBackend, device_command, wrong_device
from edgetl.benchmark.sampling import Plan
from edgetl.errors import BundleError, MissingExtraError, ProviderError, StorageError, TargetError, UsageError
from edgetl.pipeline.bench import bench_things
from edgetl.quantize.fusion import explain
from edgetl.runtime.cuda import Cuda
from edgetl.runtime.nvidia import Gpu, Machine, this_machine
from edgetl.runtime.runner import Placement
from edgetl.runtime.tensorrt import device_index
from edgetl.runtime.trt_layers import layer_kinds, layer_nodes
from edgetl.specs import BatchRange, Precision, Target

MakeTarget = Callable[..., Target]
MakeGraph = Callable[..., Path]

no_gpu = pytest.mark.skipif(not this_machine().problem, reason="this machine has an NVIDIA GPU")
on_gpu = pytest.mark.skipif(
    bool(this_machine().problem) or importlib.util.find_spec("tensorrt") is None,
    reason="needs an NVIDIA GPU and the package tensorrt",
)
ORIN = Machine(
    architecture="aarch64",
    is_jetson=True,
    gpus=(Gpu(index=0, name="Orin", compute_capability="8.7"),),
    cuda_version="12.6",
    problem="",
)


def request(model: Path, folder: Path, target: Target, precision: Precision = "fp16") -> CompileRequest:
    folder.mkdir(exist_ok=True)
    return CompileRequest(
        model=model, folder=folder, target=target, precision=precision, batch=BatchRange(min=1, max=8)
    )


def test_is_a_backend() -> None:
    backend: Backend = TensorRTBackend()
    assert (backend.name, backend.extra) == ("tensorrt", "tensorrt")


# --- optimization profiles -------------------------------------------------------------------------------------------


@given(
    st.dictionaries(st.text(min_size=1), st.lists(st.integers(1, 512), max_size=4), min_size=1),
    st.integers(1, 64),
    st.integers(0, 64),
)
def test_profiles_are_ordered_and_fully_specified(inputs: dict[str, list[int]], low: int, more: int) -> None:
    shapes = {name: (-1, *rest) for name, rest in inputs.items()}
    profiles = profiles_for(shapes, BatchRange(min=low, max=low + more))
    assert set(profiles) == set(shapes)
    for name, profile in profiles.items():
        rest = tuple(inputs[name])
        assert (profile.min, profile.opt, profile.max) == ((low, *rest), (low, *rest), (low + more, *rest))


def test_profile_of_a_fixed_input_beside_a_dynamic_one() -> None:
    profiles = profiles_for({"image": (-1, 3, 8, 8), "scale": (4,)}, BatchRange(min=1, max=16))
    assert profiles["image"].max == (16, 3, 8, 8)
    assert profiles["scale"].min == profiles["scale"].max == (4,)


def test_profile_refuses_another_dynamic_dimension() -> None:
    with pytest.raises(TargetError, match=r"'image'.*only the leading dimension"):
        profiles_for({"image": (-1, 3, -1, -1)}, BatchRange(min=1, max=1))


def test_profile_refuses_a_range_that_a_fixed_batch_cannot_serve() -> None:
    with pytest.raises(TargetError, match="batches of 1 to 8"):
        profiles_for({"image": (1, 3, 8, 8)}, BatchRange(min=1, max=8))
    assert profiles_for({"image": (1, 3, 8, 8)}, BatchRange(min=1, max=1))["image"].max == (1, 3, 8, 8)


# --- which machine ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "clause"),
    [
        (ORIN, None),
        (replace(ORIN, architecture="x86_64", is_jetson=False), "is not the device"),
        (replace(ORIN, gpus=(Gpu(index=0, name="Xavier", compute_capability="7.2"),)), "compute capability 7.2"),
        (replace(ORIN, gpus=(), problem="the NVIDIA driver shows no GPU to this process"), "shows no GPU"),
    ],
)
def test_wrong_device(machine: Machine, clause: str | None, trt_target: MakeTarget) -> None:
    reason = wrong_device(trt_target("tensorrt", "8.7", on_device=True), machine)
    assert reason is None if clause is None else clause in (reason or "")


def test_wrong_device_counts_gpus(trt_target: MakeTarget) -> None:
    assert "1 GPU(s)" in (wrong_device(trt_target("tensorrt", "8.7", provider="gpu:1"), ORIN) or "")


@pytest.mark.parametrize(("provider", "index"), [("gpu", 0), ("GPU", 0), ("cuda:3", 3), ("gpu:12", 12)])
def test_device_index(provider: str, index: int) -> None:
    assert device_index(provider) == index


@pytest.mark.parametrize("provider", ["", "cpu", "dla:0", "gpu:", "gpu:-1", "gpu 1"])
def test_device_index_refuses(provider: str) -> None:
    with pytest.raises(TargetError, match="made for a GPU"):
        device_index(provider)


@no_gpu
def test_this_machine_says_why_there_is_no_gpu(trt_target: MakeTarget) -> None:
    machine = this_machine()
    assert machine.gpus == ()
    assert "NVIDIA driver" in machine.problem
    assert TensorRTBackend().why_not_here(trt_target("tensorrt", "8.6"), "fp16") == machine.problem


# --- left for the device ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(this_machine().is_jetson, reason="this machine is a Jetson")
@pytest.mark.parametrize(("kind", "precision"), [("int8", "int8"), ("fp16", "fp16")])
def test_leaves_everything_that_the_device_needs(
    kind: str, precision: Precision, tmp_path: Path, trt_graph: MakeGraph, trt_target: MakeTarget
) -> None:
    model = trt_graph(kind)
    target = trt_target("tensorrt", "8.7", on_device=True, engine_version="10.3")
    folder = tmp_path / "engine"
    record = TensorRTBackend(workspace_mib=512).compile(request(model, folder, target, precision))
    assert record.status == "build-on-device"
    assert record.files == ("model.onnx",)
    assert (folder / "model.onnx").read_bytes() == model.read_bytes()
    assert record.options["profiles"] == {
        "image": {"min": [1, 16, 32, 32], "opt": [1, 16, 32, 32], "max": [8, 16, 32, 32]}
    }
    assert record.options["precision"] == precision
    assert record.options["tensorrt"] == "10.3"
    assert record.options["compute_capability"] == ["8.7"]
    assert record.options["workspace_mib"] == 512
    assert record.options["command"] == "edgetl compile BUNDLE --target device-of-the-test"
    assert record.options["command"] in record.note
    assert "is not the device" in record.note
    written = json.loads((folder / "engine.json").read_text())
    assert written["options"] == record.options
    assert sorted(path.name for path in folder.iterdir()) == ["engine.json", "model.onnx"]


@pytest.mark.parametrize(("precision", "flags"), [("int8", " --int8 --fp16"), ("fp16", " --fp16"), ("fp32", "")])
def test_command_for_a_device_too_old_for_edgetl(precision: Precision, flags: str, trt_target: MakeTarget) -> None:
    target = trt_target("tensorrt", "7.2", on_device=True, engine_version="8.5")
    profiles = profiles_for({"image": (-1, 3, 64, 64), "scale": (4,)}, BatchRange(min=1, max=8))
    shapes = " --minShapes=image:1x3x64x64 --optShapes=image:1x3x64x64 --maxShapes=image:8x3x64x64"
    start = "trtexec --onnx=model.onnx --saveEngine=model.engine"
    assert device_command(target, precision, profiles) == start + flags + shapes
    fixed = profiles_for({"image": (1, 3, 64, 64)}, BatchRange(min=1, max=1))
    assert device_command(target, precision, fixed) == start + flags


@pytest.mark.parametrize("version", ["", "10.3", "11.4.1"])
def test_command_for_a_current_device(version: str, trt_target: MakeTarget) -> None:
    target = trt_target("tensorrt", "8.7", on_device=True, engine_version=version)
    assert device_command(target, "fp16", {}) == "edgetl compile BUNDLE --target device-of-the-test"


@pytest.mark.skipif(this_machine().is_jetson, reason="this machine is a Jetson")
def test_an_engine_that_was_not_built_is_not_opened(
    tmp_path: Path, trt_graph: MakeGraph, trt_target: MakeTarget
) -> None:
    target = trt_target("tensorrt", "8.7", on_device=True)
    TensorRTBackend().compile(request(trt_graph("fp16"), tmp_path / "engine", target))
    with pytest.raises(ProviderError, match="has not been built") as caught:
        TensorRTBackend().open(tmp_path / "engine")
    assert "edgetl compile" in (caught.value.hint or "")
    assert caught.value.exit_code == 8


@pytest.mark.skipif(this_machine().is_jetson, reason="this machine is a Jetson")
def test_a_bias_that_the_device_would_refuse_is_refused_here(
    tmp_path: Path, trt_graph: MakeGraph, trt_target: MakeTarget
) -> None:
    target = trt_target("tensorrt", "8.7", on_device=True)
    with pytest.raises(TargetError, match=r"dequantize_b.*int32 bias"):
        TensorRTBackend().compile(request(trt_graph("int8-int32-bias"), tmp_path / "engine", target, "int8"))
    assert list((tmp_path / "engine").iterdir()) == []


@pytest.mark.skipif(this_machine().is_jetson, reason="this machine is a Jetson")
def test_a_folder_that_cannot_be_written(tmp_path: Path, trt_graph: MakeGraph, trt_target: MakeTarget) -> None:
    target = trt_target("tensorrt", "8.7", on_device=True)
    wanted = request(trt_graph("fp16"), tmp_path / "engine", target)
    with pytest.raises(StorageError, match=r"model\.onnx"):
        TensorRTBackend().compile(replace(wanted, folder=tmp_path / "not" / "there"))


@pytest.mark.parametrize("content", [b"", b"not a model \xff\xff"])
def test_what_is_no_onnx_is_refused(content: bytes, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(TargetError, match=r"broken\.onnx"):
        onnx_inputs(path)


def test_weights_outside_the_file_are_refused(tmp_path: Path, trt_graph: MakeGraph) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load_model(trt_graph("fp32"))
    path = tmp_path / "outside.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    with pytest.raises(TargetError, match="must be one file"):
        onnx_inputs(path)


# --- what is missing -------------------------------------------------------------------------------------------------


def test_missing_extra(
    tmp_path: Path, trt_graph: MakeGraph, trt_target: MakeTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    backend = TensorRTBackend()
    assert backend.version() is None
    with pytest.raises(MissingExtraError, match="'tensorrt'") as caught:
        backend.compile(request(trt_graph("fp32"), tmp_path / "engine", trt_target("tensorrt", "8.6"), "fp32"))
    assert caught.value.exit_code == 8
    assert caught.value.hint == "pip install 'edgetl[tensorrt]'"


def test_missing_onnx(
    tmp_path: Path, trt_graph: MakeGraph, trt_target: MakeTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trt_graph("fp16")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match="'onnx'"):
        onnx_inputs(model)


def _record(folder: Path, backend: str = "tensorrt", provider: str = "gpu") -> None:
    folder.mkdir(exist_ok=True)
    (folder / "model.engine").write_bytes(b"ftrt" + bytes(200))
    record = EngineRecord(backend=backend, provider=provider, precision="fp16", status="ready", files=("model.engine",))
    record.write(folder)


@no_gpu
def test_opening_without_a_gpu(tmp_path: Path) -> None:
    _record(tmp_path / "engine")
    with pytest.raises(ProviderError, match=r"cannot open model\.engine on 'gpu': .*NVIDIA driver"):
        TensorRTBackend().open(tmp_path / "engine", threads=2)


def test_opening_on_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    _record(tmp_path / "engine", provider="gpu:99")
    with pytest.raises(ProviderError, match="gpu:99"):
        TensorRTBackend().open(tmp_path / "engine")


def test_opening_what_is_no_engine_folder(tmp_path: Path) -> None:
    backend = TensorRTBackend()
    with pytest.raises(BundleError, match="holds no engine"):
        backend.open(tmp_path)
    (tmp_path / "engine.json").write_text("[]")
    with pytest.raises(BundleError, match="holds no engine"):
        backend.open(tmp_path)
    _record(tmp_path, backend="openvino")
    with pytest.raises(BundleError, match="'openvino'"):
        backend.open(tmp_path)
    _record(tmp_path)
    (tmp_path / "model.engine").unlink()
    with pytest.raises(BundleError, match="is not in it"):
        backend.open(tmp_path)


@no_gpu
def test_a_failing_cuda_call_is_named() -> None:
    pytest.importorskip("cuda.bindings.runtime")
    with pytest.raises(
        ProviderError, match=r"cudaSetDevice on GPU 0 failed: (cudaError\w+ \(|Failed to dlopen libcuda)"
    ):
        Cuda(0, extra="tensorrt")


def test_missing_cuda_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(MissingExtraError, match="cuda-python"):
        Cuda(0, extra="tensorrt")


# --- what an engine tells of its layers ------------------------------------------------------------------------------


def test_layer_kinds_of_tensorrt_10_and_11() -> None:
    ten = {"LayerType": "CaskConvolution", "Outputs": [{"Name": "c", "Format/Datatype": "Int8 NHWC16"}]}
    eleven = {"LayerType": "CaskConvolution", "Outputs": [{"Name": "c", "Format": "NHWC16", "DataType": "Int8"}]}
    bare = {"LayerType": "Reformat", "Outputs": []}
    assert layer_kinds(json.dumps({"Layers": [ten, eleven, eleven, bare]})) == {
        "CaskConvolution Int8 NHWC16": 1,
        "CaskConvolution Int8": 2,
        "Reformat": 1,
    }


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"Layers": ["only", "names"]}'])
def test_layer_kinds_of_an_engine_that_does_not_tell(text: str) -> None:
    assert layer_kinds(text) == {}


# --- on a GPU --------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize(("kind", "tolerance"), [("fp32", 1e-2), ("fp16", 2e-2), ("int8", 5e-2)])
def test_built_and_run_on_the_gpu(
    kind: Precision, tolerance: float, tmp_path: Path, trt_graph: MakeGraph, trt_target: MakeTarget
) -> None:
    ort = pytest.importorskip("onnxruntime")
    model = trt_graph(kind)
    target = trt_target("tensorrt", this_machine().gpus[0].compute_capability)
    backend = TensorRTBackend(workspace_mib=256)
    assert backend.why_not_here(target, kind) is None
    record = backend.compile(request(model, tmp_path / "engine", target, kind))
    assert record.status == "ready"
    assert record.note == ""
    assert set(record.versions) == {"tensorrt", "onnx_parser", "cuda_driver", "cuda_runtime"}
    reference = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    with backend.open(tmp_path / "engine") as runner:
        assert runner.inputs[0].shape == ("batch", 16, 32, 32)
        for batch in (1, 8, 3):  # grows a buffer, then reuses a larger one
            image = rng.standard_normal((batch, 16, 32, 32)).astype(runner.inputs[0].dtype)
            logits = runner.run({"image": image})["logits"]
            assert logits.shape == (batch, 32)
            np.testing.assert_allclose(
                logits.astype(np.float32), reference.run(None, {"image": image})[0], atol=tolerance
            )
            again, copies = runner.run_apart({"image": image})
            np.testing.assert_array_equal(again["logits"], logits)
            assert set(copies) == {"host-to-device", "device-to-host"}
            assert 0 < min(copies.values()) <= max(copies.values()) < 1e9
            layers = runner.profile({"image": image}, runs=4)
            assert sum(layer.multiply_adds for layer in layers) == batch * sum(record.options["multiply_adds"].values())
            assert any(layer.time_ms for layer in layers)
            np.testing.assert_array_equal(runner.run({"image": image})["logits"], logits)
        with pytest.raises(UsageError, match=r"\[1, 16, 32, 32\] to \[8, 16, 32, 32\]"):
            runner.run({"image": np.zeros((9, 16, 32, 32), runner.inputs[0].dtype)})
        assert runner.placement().share == 1.0
    with pytest.raises(UsageError, match="closed"):
        runner.run({"image": image})


@pytest.mark.gpu
@on_gpu
def test_an_engine_file_is_timed_beside_the_graph_that_it_was_made_of(
    tmp_path: Path, trt_graph: MakeGraph, trt_target: MakeTarget
) -> None:
    """``edgetl bench model.onnx --against model.engine``."""
    pytest.importorskip("onnxruntime")
    graph, place = trt_graph("fp32"), tmp_path / "engine"
    target = trt_target("tensorrt", this_machine().gpus[0].compute_capability)
    TensorRTBackend(workspace_mib=256).compile(request(graph, place, target, "fp32"))
    plan = Plan(samples=60, processes=2, warmup=5, threads=1)
    found = bench_things([graph], against=[place / "model.engine"], plan=plan, roofline=False)
    assert [each.sampled.thing.opener for each in found.measured] == ["onnxruntime", "tensorrt"]
    (comparison,) = found.comparisons
    assert comparison.against == str(place / "model.engine")
    assert 0 < comparison.lower <= comparison.ratio <= comparison.upper


@pytest.mark.gpu
@on_gpu
def test_parser_errors_on_the_gpu(tmp_path: Path, trt_graph: MakeGraph, trt_target: MakeTarget) -> None:
    target = trt_target("tensorrt", this_machine().gpus[0].compute_capability)
    with pytest.raises(TargetError, match="NoSuchOperator"):
        TensorRTBackend().compile(request(trt_graph("unknown-op"), tmp_path / "engine", target))


@pytest.mark.gpu
@on_gpu
def test_a_broken_engine_on_the_gpu(tmp_path: Path) -> None:
    _record(tmp_path / "engine")
    with pytest.raises(ProviderError, match="does not accept"):
        TensorRTBackend().open(tmp_path / "engine")


def test_layer_nodes_count_convolutions_from_their_weights() -> None:
    convolution = {
        "Name": "conv + relu", "LayerType": "CaskConvolution", "OutMaps": 8, "Weights": {"Type": "Int8", "Count": 216},
        "Inputs": [{"Name": "x", "Dimensions": [1, 3, 4, 4], "Format/Datatype": "Int8 NC/4HW4"}],
        "Outputs": [{"Name": "y", "Dimensions": [1, 8, 4, 4], "Format/Datatype": "Half NCHW"}],
        "Metadata": "[ONNX Layer: conv]\u001e[ONNX Layer: relu]",
    }  # fmt: skip
    bare = {"LayerType": "Reformat", "Outputs": []}
    found, other = layer_nodes(json.dumps({"Layers": [convolution, bare, "only a name"]}), "gpu")
    assert (found.precision, found.output_precision, found.multiply_adds) == ("int8", "fp16", 16 * 216)
    assert (found.inputs, found.outputs, found.origins) == (("x",), ("y",), ("conv", "relu"))
    assert (other.kind, other.precision, other.multiply_adds) == ("Reformat", "unknown", 0)


def layer(of: str, *nodes: str, name: str = "", size: int = 16, kind: str = "Half NHWC8") -> dict[str, Any]:
    """As the inspector writes one: a map of 8 channels to another."""
    tensor = {"Dimensions": [2, 8, 4, size // 4], "Format/Datatype": kind}
    return {
        "Name": name or "+".join(nodes), "LayerType": of, "Inputs": [{"Name": "x", **tensor}],
        "Outputs": [{"Name": "y", **tensor}], "Metadata": "\u001e".join(f"[ONNX Layer: {node}]" for node in nodes),
    }  # fmt: skip


def test_layers_compute_what_the_nodes_do_that_they_were_made_of() -> None:
    layers = [layer("Reformat", "conv1"), layer("CaskConvolution", "conv1", "relu1"), layer("Myelin", "mul1", "mul2")]
    counts = {"conv1": 100, "mul1": 7, "mul2": 5}
    found = layer_nodes(json.dumps({"Layers": layers}), "gpu:0", multiply_adds=counts, batch=3)
    assert [node.multiply_adds for node in found] == [0, 300, 36]
    # Which of its two products Myelin computes in what, and in what its first input is, are two questions.
    assert [node.precision for node in found] == ["fp16", "fp16", "unknown"]
    assert found[1].activation_bytes == 2 * 2 * 8 * 16 * 2  # two tensors of float16
    # A product that no layer was made of could be in any: then nothing is known.
    found = layer_nodes(json.dumps({"Layers": layers}), "gpu:0", multiply_adds={**counts, "lost": 1})
    assert [node.multiply_adds for node in found] == [0, 0, 0]


def test_a_layer_of_several_products_claims_no_precision() -> None:
    text = layer("Myelin", "embed", "product1", "product2", kind="Int64")
    text["Inputs"][0]["Name"] = "ids"
    on_dla = layer("DLA", "conv1", "conv2", kind="Int8 NC/32HW32")
    for several in (text, on_dla):
        names = [name for name in ("product1", "product2", "conv1", "conv2") if name in str(several["Metadata"])]
        found = layer_nodes(json.dumps({"Layers": [several]}), "GPU", multiply_adds=dict.fromkeys(names, 150))
        placed = Placement.of("GPU", found)
        assert (dict(placed.multiply_adds), placed.int8_share) == ({"unknown": 300}, None)
        fusion = explain(found, dict.fromkeys(names, "int8"), engine="TensorRT")
        assert (fusion.float_products, fusion.misplaced, fusion.int8_share) == ((), {}, None)
    alone = layer("DLA", "conv1", "relu1", kind="Int8 NC/32HW32")
    (found_alone,) = layer_nodes(json.dumps({"Layers": [alone]}), "GPU", multiply_adds={"conv1": 150})
    assert (found_alone.precision, found_alone.multiply_adds) == ("int8", 150)
    ids = layer("Myelin", "embed", "product1", kind="Int64")
    (found_ids,) = layer_nodes(json.dumps({"Layers": [ids]}), "GPU", multiply_adds={"product1": 150})
    assert found_ids.precision == "unknown", "a product of floats whose layer reads token ids"


def test_layers_on_an_accelerator_are_told_apart() -> None:
    layers = [layer("DLA", "conv1", "conv2"), layer("CaskConvolution", "conv3")]
    found = layer_nodes(json.dumps({"Layers": layers}), "GPU", dla="DLA:0")
    assert [node.provider for node in found] == ["DLA:0", "GPU"]
    assert Placement.of("DLA:0", found).share == 0.5


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"Layers": ["only", "names"]}'])
def test_layer_nodes_of_an_engine_that_does_not_tell(text: str) -> None:
    assert layer_nodes(text, "gpu") == ()
