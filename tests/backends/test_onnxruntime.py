"""ONNX Runtime: never another provider than the one that was asked for, never a library's own message."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgetl.backends import backend, names
from edgetl.backends import onnxruntime as ort_backend
from edgetl.backends.base import Backend, CompileRequest, EngineRecord
from edgetl.backends.onnxruntime import OnnxRuntimeBackend
from edgetl.benchmark._worker import RUN_OUT_S
from edgetl.errors import BundleError, MissingExtraError, ModelError, ProviderError, UnknownNameError, UsageError
from edgetl.runtime import _ort_profile
from edgetl.runtime import onnxruntime as ort_runtime
from edgetl.runtime.nvidia import this_machine
from edgetl.runtime.onnxruntime import OnnxRuntimeRunner, _spinning
from edgetl.specs import BatchRange, Target

pytest.importorskip("onnxruntime")
SmallGraph = Callable[..., Path]
MakeTarget = Callable[..., Target]


def compiled(model: Path, folder: Path, target: Target) -> EngineRecord:
    folder.mkdir()
    request = CompileRequest(
        model=model, folder=folder, target=target, precision="fp32", batch=BatchRange(min=1, max=8)
    )
    return backend("onnxruntime").compile(request)


# --- the runner ------------------------------------------------------------------------------------------------------


def test_runs_what_the_graph_says(small_graph: SmallGraph) -> None:
    with OnnxRuntimeRunner(small_graph(), threads=1) as runner:
        (given_,), (got,) = runner.inputs, runner.outputs
        assert (given_.name, given_.shape, given_.dtype) == ("x", ("batch", 3), "float32")
        assert (got.name, got.shape, got.dtype) == ("y", ("batch", 2), "float32")
        assert runner.metadata() == {"who": "a test"}
        x = np.array([[1, 2, 3], [-1, -2, -3]], np.float32)
        np.testing.assert_allclose(runner.run({"x": x})["y"], [[4, 6], [0, 0]])  # relu(x · w)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(batch=st.integers(1, 9), seed=st.integers(0, 99))
def test_every_sample_of_a_batch_is_as_alone(small_graph: SmallGraph, batch: int, seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(batch, 3)).astype(np.float32)
    with OnnxRuntimeRunner(small_graph(), threads=1) as runner:
        together = runner.run({"x": x})["y"]
        alone = np.concatenate([runner.run({"x": row[None]})["y"] for row in x])
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)


def test_the_caller_owns_the_outputs(small_graph: SmallGraph) -> None:
    with OnnxRuntimeRunner(small_graph()) as runner:
        one = runner.run({"x": np.ones((1, 3), np.float32)})["y"]
        before = one.copy()
        runner.run({"x": np.zeros((1, 3), np.float32)})
        np.testing.assert_array_equal(one, before)


WRONG_FEEDS = {
    "no input": ({}, "inputs are .* given were"),
    "another name": ({"z": np.zeros((1, 3), np.float32)}, r"\['x'\]; given were \['z'\]"),
    "one too many": ({"x": np.zeros((1, 3), np.float32), "z": np.zeros(1)}, r"given were \['x', 'z'\]"),
    "double": ({"x": np.zeros((1, 3))}, r"input 'x' is float32.*given was float64\[1, 3\]"),
    "wrong width": ({"x": np.zeros((1, 4), np.float32)}, r"given was float32\[1, 4\]"),
    "no batch": ({"x": np.zeros(3, np.float32)}, r"given was float32\[3\]"),
}


@pytest.mark.parametrize(("feeds", "said"), WRONG_FEEDS.values(), ids=WRONG_FEEDS.keys())
def test_wrong_feeds(small_graph: SmallGraph, feeds: dict[str, np.ndarray], said: str) -> None:
    with OnnxRuntimeRunner(small_graph()) as runner, pytest.raises(UsageError, match=said):
        runner.run(feeds)


def test_a_fixed_batch_is_held(small_graph: SmallGraph) -> None:
    with OnnxRuntimeRunner(small_graph(batch=2)) as runner, pytest.raises(UsageError, match=r"float32\[2, 3\]"):
        runner.run({"x": np.zeros((3, 3), np.float32)})


def test_placement_counts_the_nodes_that_ran(small_graph: SmallGraph, tmp_path: Path) -> None:
    with OnnxRuntimeRunner(small_graph()) as runner:
        found = runner.placement()
    assert found.provider == "CPUExecutionProvider"
    assert set(found.nodes) == {"CPUExecutionProvider"}
    assert sum(found.nodes.values()) == sum(found.kinds.values()) >= 1
    assert found.share == 1.0
    assert not list(tmp_path.glob("*.json"))  # the profile is not left behind


@pytest.mark.parametrize("provider", ["NoSuchProvider", "DmlExecutionProvider", ""])
def test_a_provider_that_is_not_there_is_never_replaced(small_graph: SmallGraph, provider: str) -> None:
    with pytest.raises(ProviderError, match=f"ONNX Runtime has no {provider} here; it has .*CPUExecutionProvider"):
        OnnxRuntimeRunner(small_graph(), provider=provider)
    assert ort_runtime.why_no_provider(provider) == f"ONNX Runtime has no {provider} here"


def test_a_provider_that_cannot_start_is_never_replaced(small_graph: SmallGraph) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this build has no CUDA provider")
    if not this_machine().problem:
        pytest.skip("this machine has an NVIDIA GPU")
    with pytest.raises(ProviderError, match=r"could not start CUDAExecutionProvider( and would have used|: )"):
        OnnxRuntimeRunner(small_graph(), provider="CUDAExecutionProvider")
    assert "does not start here" in str(ort_runtime.why_no_provider("CUDAExecutionProvider"))


@pytest.mark.parametrize("provider", ["CUDAExecutionProvider", "TensorrtExecutionProvider"])
def test_a_provider_that_fails_prints_nothing(
    provider: str, small_graph: SmallGraph, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """ONNX Runtime printed a banner into the JSON of a command, and went on with other providers."""
    import onnxruntime

    if provider not in onnxruntime.get_available_providers():
        pytest.skip(f"this build has no {provider}")
    if not this_machine().problem:
        pytest.skip("this machine has an NVIDIA GPU")
    with pytest.raises(ProviderError, match=f"could not start {provider}"):
        OnnxRuntimeRunner(small_graph(), provider=provider)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"cannot load broken\.onnx"):
        OnnxRuntimeRunner(broken, provider=provider)
    assert capfd.readouterr().out == ""


def test_what_clips_an_input_ahead_of_a_quantizer(tmp_path: Path) -> None:
    """ONNX Runtime before 1.24 cannot load it as it is, and bias correction computes such parts of a network."""
    onnx = pytest.importorskip("onnx")
    from onnx import helper, numpy_helper

    nodes = [
        helper.make_node("Relu", ["x"], ["r"], "relu"),
        helper.make_node("QuantizeLinear", ["r", "scale", "zero"], ["q"], "quantize"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], "dequantize"),
    ]
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4]) for name in "xy"]
    constants = [numpy_helper.from_array(np.float32(0.5), "scale"), numpy_helper.from_array(np.uint8(0), "zero")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], constants)
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), str(path))
    found = OnnxRuntimeRunner(path).run({"x": np.array([-1, 0.1, 0.9, 200], np.float32)})["y"]
    np.testing.assert_array_equal(found, [0.0, 0.0, 1.0, 127.5])


def test_an_operator_without_a_kernel_says_what_to_do(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    from onnx import helper

    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.BFLOAT16, [4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Erf", ["x"], ["y"], "erf")], "g", [x], [y])
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), str(path))
    with pytest.raises(ModelError, match=r"cannot load m\.onnx: .*NOT_IMPLEMENTED") as raised:
        OnnxRuntimeRunner(path)
    assert "has no kernel for it" in str(raised.value.hint)


_ELSEWHERE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import onnxruntime
from edgetl.runtime.onnxruntime import why_no_provider
assert onnxruntime.__file__.startswith(sys.argv[1])
why_no_provider("CUDAExecutionProvider")
print("libcublasLt" in Path("/proc/self/maps").read_text(), file=sys.stderr)
"""


def test_cuda_is_found_where_onnx_runtime_is_installed_in_another_folder(tmp_path: Path) -> None:
    """`pip install --target`: the CUDA libraries are beside PyTorch, and not beside ONNX Runtime."""
    import onnxruntime

    home = Path(onnxruntime.__file__).parent
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this build has no CUDA provider")
    if not list(home.parent.glob("nvidia/*/lib/libcublasLt.so.*")):
        pytest.skip("CUDA's Python packages are not installed")
    (tmp_path / "onnxruntime").symlink_to(home)
    done = subprocess.run(
        [sys.executable, "-c", _ELSEWHERE, str(tmp_path)], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(str(Path(place).absolute()) for place in sys.path if place)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "" and done.stderr.splitlines()[-1] == "True"


def test_a_provider_that_refuses_every_graph_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ProviderError("ONNX Runtime could not start CUDAExecutionProvider: CUDA failure 35: driver too old")

    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(ort_runtime, "OnnxRuntimeRunner", refuse)
    reason = ort_runtime.why_no_provider("CUDAExecutionProvider")
    assert reason == "CUDAExecutionProvider does not start here: CUDA failure 35: driver too old"


def test_the_cpu_provider_starts() -> None:
    assert ort_runtime.why_no_provider("CPUExecutionProvider") is None


@pytest.mark.parametrize("content", [b"", b"garbage" * 50, b"\x08\x08"])
def test_a_file_that_is_no_model(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=r"ONNX Runtime cannot load m\.onnx"):
        OnnxRuntimeRunner(tmp_path / "m.onnx")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"ONNX Runtime cannot load nothing\.onnx"):
        OnnxRuntimeRunner(tmp_path / "nothing.onnx")


def test_a_truncated_model(small_graph: SmallGraph) -> None:
    path = small_graph()
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ModelError):
        OnnxRuntimeRunner(path)


def test_without_the_package(small_graph: SmallGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    path = small_graph()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match="needs the Python package 'onnxruntime'") as caught:
        OnnxRuntimeRunner(path)
    assert caught.value.hint == "pip install 'edgetl[ort]'"


# --- the backend -----------------------------------------------------------------------------------------------------


def test_is_a_backend() -> None:
    found: Backend = backend("onnxruntime")
    assert (found.name, found.extra) == ("onnxruntime", "ort")
    assert found.version()


def test_every_listed_backend_has_its_name() -> None:
    assert [backend(name).name for name in names()] == list(names())
    with pytest.raises(UnknownNameError, match="there is no backend 'onnxruntme'; did you mean 'onnxruntime'"):
        backend("onnxruntme")


def test_compile_and_open(small_graph: SmallGraph, here: MakeTarget, tmp_path: Path) -> None:
    record = compiled(small_graph(), tmp_path / "engine", here())
    assert (record.status, record.note, record.files) == ("ready", "", ("model.onnx",))
    assert EngineRecord.read(tmp_path / "engine") == record
    with backend("onnxruntime").open(tmp_path / "engine", threads=1) as runner:
        assert runner.run({"x": np.ones((1, 3), np.float32)})["y"].shape == (1, 2)


def test_threads_with_nothing_to_do_go_to_sleep(small_graph: SmallGraph) -> None:
    x = {"x": np.ones((1, 3), np.float32)}
    with OnnxRuntimeRunner(small_graph(), threads=2) as runner:
        runner.run(x)
        time.sleep(RUN_OUT_S)  # as between two engines that take turns
        before = time.process_time()
        time.sleep(0.2)
        assert time.process_time() - before < 0.05  # by ONNX Runtime's default they spin for 60 ms and more


@pytest.mark.parametrize(
    ("version", "key"),
    [("1.23.2", "force_spinning_stop"), ("1.25.0", "force_spinning_stop"), ("1.26.0", "spin_duration_us"),
     ("1.31.1", "spin_duration_us"), ("2.0.0", "spin_duration_us"), ("1.26.0.dev20260101", "spin_duration_us")],
)  # fmt: skip
def test_how_long_threads_wait_awake_is_limited_by_every_version(version: str, key: str) -> None:
    name, value = _spinning(version)
    assert name.startswith("session.") and name.endswith(key) and int(value) > 0


def test_for_another_machine_it_is_built_and_says_why(
    small_graph: SmallGraph, here: MakeTarget, tmp_path: Path
) -> None:
    other = {"x86-64": "arm64", "arm64": "x86-64"}[here().hardware.architecture]
    record = compiled(small_graph(), tmp_path / "a", here(architecture=other))
    assert record.status == "built"
    assert f"the target {other}" in record.note
    record = compiled(small_graph(), tmp_path / "b", here(cpu_features=("no_such_extension",)))
    assert record.note == "not run here: this processor lacks no_such_extension"


def test_a_target_with_a_provider_that_is_not_here(small_graph: SmallGraph, here: MakeTarget, tmp_path: Path) -> None:
    record = compiled(small_graph(), tmp_path / "e", replace(here(), provider="NoSuchProvider"))
    assert (record.status, record.provider) == ("built", "NoSuchProvider")
    with pytest.raises(ProviderError, match="has no NoSuchProvider"):
        backend("onnxruntime").open(tmp_path / "e")


def test_not_installed(monkeypatch: pytest.MonkeyPatch, here: MakeTarget, tmp_path: Path) -> None:
    monkeypatch.setattr(ort_backend, "versions_of", lambda *packages: dict.fromkeys(packages, ""))
    found = backend("onnxruntime")
    assert found.version() is None
    assert found.why_not_here(here(), "fp32") == "onnxruntime is not installed"
    with pytest.raises(MissingExtraError):
        found.open(tmp_path)


def test_unknown_machines_are_named(monkeypatch: pytest.MonkeyPatch, here: MakeTarget) -> None:
    target = here()
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert ort_backend.why_not_this_processor(target) == (
        f"this machine is riscv64, the target {target.hardware.architecture}"
    )


# --- records ---------------------------------------------------------------------------------------------------------


def test_a_record_reads_back(tmp_path: Path) -> None:
    record = EngineRecord(
        backend="b", provider="p", precision="int8", status="built", files=("a", "b"), versions={"v": "1"},
        options={"o": [1, {"deep": None}]}, note="why",
    )  # fmt: skip
    record.write(tmp_path)
    assert EngineRecord.read(tmp_path) == record


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", '"text"', "3", "{}", '{"schema": 2}', '{"schema": 1, "files": []}', '{"schema": 1, "files": 3}'],
)
def test_a_record_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "engine.json").write_text(text, encoding="utf-8")
    with pytest.raises(BundleError, match="holds no engine that this version can read"):
        EngineRecord.read(tmp_path)


def test_a_record_with_unknown_fields_is_of_another_version(tmp_path: Path) -> None:
    EngineRecord(backend="b", provider="p", precision="int8", status="ready", files=("a",)).write(tmp_path)
    path = tmp_path / "engine.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), "new": 1}), encoding="utf-8")
    with pytest.raises(BundleError):
        EngineRecord.read(tmp_path)


# --- the nodes of the engine's own graph -----------------------------------------------------------------------------


def test_nodes_have_shapes_precisions_and_tensors(small_graph: SmallGraph, here: MakeTarget, tmp_path: Path) -> None:
    compiled(small_graph(), tmp_path / "engine", here())
    nodes = OnnxRuntimeBackend().nodes(tmp_path / "engine", threads=1)
    assert sum(node.multiply_adds for node in nodes) == 3 * 2  # x (1, 3) · w (3, 2)
    assert {node.precision for node in nodes} == {"fp32"}
    assert nodes[0].inputs == ("x",) and nodes[-1].outputs == ("y",)
    with backend("onnxruntime").open(tmp_path / "engine") as runner:
        found = runner.placement()
    assert dict(found.multiply_adds) == {"fp32": 6} and found.int8_share == 0.0
    assert sum(found.nodes.values()) == len(nodes)


def test_a_profile_is_of_the_given_inputs(small_graph: SmallGraph) -> None:
    with OnnxRuntimeRunner(small_graph(), threads=1) as runner:
        nodes = runner.profile({"x": np.ones((5, 3), np.float32)}, runs=5)
        assert dict(runner.placement().multiply_adds) == {"fp32": 6}
    assert sum(node.multiply_adds for node in nodes) == 5 * 3 * 2
    product = next(node for node in nodes if node.multiply_adds)
    assert product.weight_bytes == 4 * 3 * 2
    assert product.activation_bytes == 4 * (5 * 3 + 5 * 2)
    assert all(node.time_ms is not None and 0 <= node.time_ms < 1000 for node in nodes)


def test_channels_that_the_engine_fills_up_do_not_count(tmp_path: Path) -> None:
    """Twenty channels become 32 in registers of AVX-512, and a scaling between two layers a convolution of its own."""
    onnx = pytest.importorskip("onnx")
    make, draw = onnx.helper, np.random.default_rng(0)
    constants = {
        "a": draw.normal(size=(20, 3, 3, 3)), "b": draw.normal(size=(40, 20, 1, 1)),
        "c": draw.normal(size=(24, 20, 3, 3)), "s": np.ones(40),
        "t": draw.normal(size=40), "m": draw.normal(size=40), "v": np.ones(40),
    }  # fmt: skip
    nodes = [
        make.make_node("Conv", ["x", "a"], ["d"], pads=[1, 1, 1, 1]), make.make_node("Relu", ["d"], ["e"]),
        make.make_node("Conv", ["e", "b"], ["f"]), make.make_node("Relu", ["f"], ["g"]),
        make.make_node("BatchNormalization", ["g", "s", "t", "m", "v"], ["y"]),
        make.make_node("Conv", ["e", "c"], ["z"]),
    ]  # fmt: skip
    ports = {"x": [1, 3, 16, 16], "y": [1, 40, 16, 16], "z": [1, 24, 14, 14]}
    values = {name: make.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in ports.items()}
    weights = [onnx.numpy_helper.from_array(array.astype(np.float32), name) for name, array in constants.items()]
    graph = make.make_graph(nodes, "g", [values["x"]], [values["y"], values["z"]], weights)
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    by_hand = [20 * 27 * 16 * 16, 40 * 20 * 16 * 16, 24 * 180 * 14 * 14]
    with OnnxRuntimeRunner(tmp_path / "m.onnx", threads=1) as runner:
        found = runner.profile({"x": np.ones((1, 3, 16, 16), np.float32)}, runs=3)
        assert dict(runner.placement().multiply_adds) == {"fp32": sum(by_hand)}
    assert sorted(node.multiply_adds for node in found if node.multiply_adds) == sorted(by_hand)


def test_a_table_is_read_where_it_is_looked_up(picks: Path) -> None:
    with OnnxRuntimeRunner(picks, threads=1) as runner:
        nodes = {node.kind: node for node in runner.profile({"ids": np.array([3, 1, 4])}, runs=3)}
    assert (nodes["Gather"].weight_bytes, nodes["Gather"].activation_bytes) == (0, 2 * 3 * 8 * 4)
    assert nodes["MatMul"].multiply_adds == 3 * 8 * 4


def test_an_engines_own_failure_is_a_model_error(picks: Path) -> None:
    with OnnxRuntimeRunner(picks, threads=1) as runner:
        for call in (runner.run, runner.nodes, lambda feeds: runner.profile(feeds, runs=1)):
            with pytest.raises(ModelError, match=r"ONNX Runtime failed on picks.onnx.*indices"):
                call({"ids": np.array([1000])})
        with pytest.raises(UsageError, match="inputs are"):
            runner.profile({}, runs=1)


def test_nodes_need_onnx_ir(
    small_graph: SmallGraph, here: MakeTarget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled(small_graph(), tmp_path / "engine", here())
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    with pytest.raises(MissingExtraError, match="needs the Python package 'onnx_ir'"):
        OnnxRuntimeBackend().nodes(tmp_path / "engine")


def test_nodes_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        OnnxRuntimeBackend().nodes(tmp_path)


@pytest.mark.parametrize(
    ("kind", "inputs", "outputs", "multiply_adds", "precision"),
    [
        ("QLinearConv", [("uint8", [1, 4, 4, 3]), ("float", []), ("uint8", []), ("int8", [8, 3, 3, 3])],
         [("uint8", [1, 4, 4, 8])], 16 * 8 * 27, "int8"),
        ("FusedConv", [("float", [1, 6, 4, 4]), ("float", [6, 1, 3, 3])], [("float", [1, 6, 4, 4])], 864, "fp32"),
        ("ConvTranspose", [("float", [1, 2, 3, 3]), ("float", [2, 5, 2, 2])], [("float", [1, 5, 4, 4])], 360, "fp32"),
        ("QGemm", [("int8", [1, 7]), ("float", []), ("int8", []), ("int8", [5, 7])], [("float", [1, 5])], 35, "int8"),
        ("MatMulIntegerToFloat", [("uint8", [1, 9, 4]), ("int8", [4, 2])], [("float", [1, 9, 2])], 72, "int8"),
        ("DynamicQuantizeMatMul", [("float", [1, 4]), ("int8", [4, 2])], [("float", [1, 2])], 8, "int8"),
        ("MatMul", [("float16", [2, 3, 4]), ("float16", [2, 4, 5])], [("float16", [2, 3, 5])], 120, "fp16"),
        ("MatMulNBits", [("float", [1, 64]), ("uint8", [8, 2, 16])], [("float", [1, 8])], 512, "fp32"),
        ("LSTM", [("float", [3, 2, 5]), ("float", [1, 28, 5]), ("float", [1, 28, 7])], [("float", [3, 1, 2, 7])],
         2016, "fp32"),
        ("MaxPool", [("uint8", [1, 2, 4, 4])], [("uint8", [1, 2, 2, 2])], 0, "int8"),
        ("Gemm", [("float", [1, 2])], [("float", [1, 2])], 0, "fp32"),
        ("Shape", [("int64", [1])], [("int64", [1])], 0, "int64"),
        ("Anything", [], [], 0, "unknown"),
    ],
)  # fmt: skip
def test_a_node_of_the_profile(
    kind: str, inputs: list[tuple[str, list[int]]], outputs: list[tuple[str, list[int]]], multiply_adds: int,
    precision: str,
) -> None:  # fmt: skip
    event = {
        "name": "conv_1_token_12_kernel_time",
        "args": {
            "op_name": kind,
            "provider": "CPUExecutionProvider",
            "input_type_shape": [{name: shape} for name, shape in inputs],
            "output_type_shape": [{name: shape} for name, shape in outputs],
        },
    }
    node = _ort_profile.node(event)
    assert (node.kind, node.multiply_adds, node.precision) == (kind, multiply_adds, precision)
    assert (node.name, node.origins) == ("conv_1_token_12", ("conv_1",))
