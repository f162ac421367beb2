"""What really runs in 8 bits: quantized graphs in real engines, and products that fall back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from edgetl import backends, catalog  # noqa: E402
from edgetl.backends.base import CompileRequest  # noqa: E402
from edgetl.config import TargetEntry  # noqa: E402
from edgetl.pipeline import fused, quantized  # noqa: E402
from edgetl.pipeline.choice import Decision  # noqa: E402
from edgetl.pipeline.engines import Candidate, Engine, open_graph  # noqa: E402
from edgetl.pipeline.precisions import facts_of  # noqa: E402
from edgetl.pipeline.proof import Proven  # noqa: E402
from edgetl.quantize import graph, recipes, schemes  # noqa: E402
from edgetl.quantize.fusion import explain  # noqa: E402
from edgetl.quantize.tools import Tools  # noqa: E402
from edgetl.runtime.runner import EngineNode  # noqa: E402
from edgetl.specs import BatchRange  # noqa: E402
from edgetl.store import Artifact  # noqa: E402

IMAGES = np.random.default_rng(0).normal(size=(16, 3, 16, 16)).astype(np.float32)


def network(path: Path) -> Path:
    """Stem, a second convolution, a pool and a head: three products."""
    generator = np.random.default_rng(0)
    weights = {
        "w1": generator.normal(size=(16, 3, 3, 3)),
        "w2": generator.normal(size=(16, 16, 3, 3)) * 0.1,
        "w3": generator.normal(size=(16, 5)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], name="stem", pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], name="body", pads=[1] * 4),
        helper.make_node("Relu", ["c2"], ["r2"], name="relu2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("MatMul", ["f", "w3"], ["y"], name="head"),
    ]
    made = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def artifact(folder: Path) -> Artifact:
    return Artifact(stage="any", key="k", digest="d", folder=folder, cached=False)


def made(folder: Path, target: str, recipe: str = "int8-mse") -> tuple[Engine, Artifact]:
    """An engine for a target, and the quantized graph that it is made of."""
    chosen = catalog.target(target)
    model = graph.prepare(graph.load(network(folder / "float.onnx")))
    tools = Tools(
        samples=lambda: ({"x": IMAGES[start : start + 8]} for start in (0, 8)),
        open_runner=open_graph,
    )
    done = recipes.make(
        model,
        recipes.calibrate(model, tools),
        schemes.scheme(chosen.scheme),
        catalog.recipe(recipe),
        tools,
    )
    ir.save(done.model, folder / "model.onnx")
    facts = {"scheme": chosen.scheme, "recipe": recipe, **facts_of(done)}
    (folder / "quantize.json").write_text(json.dumps(facts), encoding="utf-8")
    place = folder / "engine"
    place.mkdir()
    record = backends.backend(chosen.backend).compile(
        CompileRequest(
            model=folder / "model.onnx", folder=place, target=chosen, precision="int8", batch=BatchRange(min=1, max=8)
        )
    )
    candidate = Candidate(target=chosen, precision="int8", entry=TargetEntry(device=target))
    return Engine(candidate=candidate, artifact=artifact(place), record=record), artifact(folder)


@pytest.mark.parametrize(
    ("target", "library"), [("x86-64-cpu", "ONNX Runtime"), ("x86-64-vnni", "ONNX Runtime"), ("intel-cpu", "OpenVINO")]
)
def test_engines_run_every_product_in_int8_and_keep_the_inputs_quantizer(
    target: str, library: str, tmp_path: Path
) -> None:
    if backends.backend(catalog.target(target).backend).version() is None:
        pytest.skip(f"{library} is not installed")
    engine, source = made(tmp_path, target)
    if engine.record.status != "ready":
        pytest.skip(engine.record.note)
    found = fused.of_engine(engine, source)
    assert found is not None
    assert (found["view"], found["engine"], found["int8_share"]) == ("engine", library, 1.0)
    assert fused.expected(source) == {"stem": "int8", "body": "int8", "head": "int8"}
    assert found["fallen_back"] == {}
    assert not [pair for pair in found["unfused"] if pair["defect"]]
    assert [pair["rule"] for pair in found["unfused"]].count("graph input") == 1
    assert sum(found["counts"].values()) == len(found["unfused"])
    json.dumps(found)  # plain values
    said = fused.told("it", found)
    assert len(said) == 1
    assert f"it: multiply-adds in int8 100% in {library}'s own graph" in said[0]


def test_a_float_graph_has_no_account(tmp_path: Path) -> None:
    engine, source = made(tmp_path, "x86-64-cpu")
    (tmp_path / "quantize.json").unlink()
    assert fused.of_engine(engine, source) is None
    assert not fused.can_parse(engine, source)


def test_a_dynamic_graph_shows_its_share_and_no_pairs(tmp_path: Path) -> None:
    engine, source = made(tmp_path, "x86-64-cpu", "int8-dynamic")
    found = fused.of_engine(engine, source)
    assert found is not None
    assert 0 < found["int8_share"] < 0.01  # the head alone
    assert found["unfused"] == []
    assert found["counts"] == {}
    assert found["fallen_back"] == {}
    assert sorted(fused.expected(source).values()) == ["fp32", "fp32", "int8"]


def test_an_engine_that_runs_a_planned_product_in_float_is_named(tmp_path: Path) -> None:
    """The engine is made of the float graph, the plan is of the quantized one: nothing runs as planned."""
    engine, source = made(tmp_path, "x86-64-cpu")
    (tmp_path / "engine" / "model.onnx").write_bytes((tmp_path / "float.onnx").read_bytes())
    found = fused.of_engine(engine, source)
    assert found is not None
    assert found["int8_share"] == 0.0
    assert len(found["fallen_back"]) == 3
    assert set(found["fallen_back"].values()) == {"fp32"}
    assert "head" in found["fallen_back"]
    said = fused.told("x86-64-cpu int8", found)
    assert "x86-64-cpu int8: 'head' was to run in int8 and runs in fp32" in said


def product(name: str, precision: str, *origins: str) -> EngineNode:
    return EngineNode(name=name, kind="Conv", precision=precision, multiply_adds=10, origins=origins)


@pytest.mark.parametrize(
    ("nodes", "planned", "wanted"),
    [
        ([product("a", "int8"), product("b", "fp32")], {"a": "int8", "b": "fp32"}, {}),
        ([product("a", "bf16"), product("b", "bf16")], {"a": "int8", "b": "fp32"}, {"a": "bf16"}),
        ([product("z", "fp32", "a")], {"a": "int8"}, {"a": "fp32"}),
        ([product("a", "int8"), product("renamed", "fp32")], {"a": "int8", "b": "fp32"}, {}),  # b by another name
        ([product("a", "int8"), product("renamed", "fp32")], {"a": "int8", "b": "int8"}, {"renamed": "fp32"}),
        ([product("p", "fp32"), product("q", "fp32")], {"a": "int8", "b": "fp32"}, {"p": "fp32", "q": "fp32"}),
        ([], {"a": "int8"}, {}),
    ],
)
def test_which_products_fell_back(nodes: list[EngineNode], planned: dict[str, str], wanted: dict[str, str]) -> None:
    assert fused.fallen_back(explain(nodes, planned, engine="E"), nodes, planned) == wanted


def test_what_an_engine_does_not_tell_is_no_product_that_fell_back() -> None:
    nodes = [product("a", "int8"), product("Myelin", "unknown", "b", "c"), product("d", "fp16")]
    planned = dict.fromkeys("abcd", "int8")
    fusion = explain(nodes, planned, engine="TensorRT")
    fell = fused.fallen_back(fusion, nodes, planned)
    assert (fusion.int8_share, fell) == (None, {"d": "fp16"})
    found = {"view": "engine", **fusion.as_json(), "fallen_back": fell}
    assert fused.told("jetson int8", found) == [
        "jetson int8: TensorRT does not tell what 33.3% of the multiply-adds run in; 33.3% run in int8 for certain",
        "jetson int8: 'd' was to run in int8 and runs in fp16",
    ]


def test_the_parsers_view_of_a_jetsons_graph(tmp_path: Path) -> None:
    if fused.tensorrt_rtx_version() is None:
        pytest.skip("TensorRT-RTX is not installed")
    engine, source = made(tmp_path, "jetson-orin-nano")
    assert engine.record.status == "build-on-device"
    assert fused.can_parse(engine, source)
    found = fused.of_parser(source)
    assert found["view"] == "parser"
    planned = fused.expected(source)
    assert planned["body"] == "int8"
    assert 0.5 < found["int8_share"] <= 1.0
    assert {node["name"] for node in found["float_products"]} == {name for name in planned if planned[name] == "fp32"}
    assert (found["unfused"], found["fallen_back"]) == ([], {})
    assert fused.told("j", found)[0].endswith("by TensorRT's parser, before fusion")


def test_what_the_parser_refuses_is_said_and_stops_nothing(tmp_path: Path) -> None:
    if fused.tensorrt_rtx_version() is None:
        pytest.skip("TensorRT-RTX is not installed")
    _, source = made(tmp_path, "jetson-orin-nano")
    model = onnx.load(tmp_path / "model.onnx")
    model.graph.node[-1].op_type = "Fancy"
    onnx.save(model, tmp_path / "model.onnx")
    found = fused.of_parser(source)
    assert "Fancy" in found["refused"]
    said = fused.told("jetson int8", found)
    assert len(said) == 1
    assert said[0].startswith("jetson int8: TensorRT's parser refuses the graph: ")


@pytest.mark.parametrize(
    ("share", "text"), [(1.0, "100%"), (0.99999, "99.9%"), (0.983, "98.3%"), (0.0, "0%"), (0.5, "50%")]
)
def test_a_hundred_percent_is_all_of_it(share: float, text: str) -> None:
    assert fused.percent(share) == text


# --- the account in manifest and report ------------------------------------------------------------------------------


def test_the_manifest_has_the_share_and_each_reason(tmp_path: Path) -> None:
    engine, source = made(tmp_path, "x86-64-cpu")
    with backends.backend("onnxruntime").open(engine.artifact.folder) as runner:
        placed = {"share": runner.placement().share}
    proven = Proven(engine=engine, comparison=None, placement=placed, fusion=fused.of_engine(engine, source))
    found = quantized.placement(Decision(proven=proven, latency=None, shipped=True, reason=""))
    assert found["share"] == 1.0
    assert found["int8"]["int8_share"] == 1.0
    assert found["int8"]["counts"]["graph input"] == 1
    assert {"name": "x_quantize", "reason": "the engine's input is float: it is quantized once"} in found["int8"][
        "unfused"
    ]
    bare = Proven(engine=engine, comparison=None, placement=None)
    assert quantized.placement(Decision(proven=bare, latency=None, shipped=True, reason="")) == {}


def test_remarks_say_what_was_done() -> None:
    notes: dict[str, Any] = {
        "activations": "mse",
        "searched_activations_db": {"mse": 31.24, "minmax": 28.0},
        "channels_widened_against_saturation": {"stem": 1},
        "corrected": [
            {"node": "a", "shift": 0.5, "output_rms": 10.0, "rounding_gain": 0.0},
            {"node": "b", "shift": 0.3, "output_rms": 2.0, "rounding_gain": 0.4},
            {"node": "c", "shift": 0.0, "output_rms": 0.0, "rounding_gain": 0.25},
        ],
    }
    changes = {
        "equalized": [{"method": "reach"}, {"method": None}],
        "separated": [{"channels": [3]}, {"channels": []}],
        "smoothed": [{"alpha": None}],
    }
    assert quantized.remarks(notes, changes) == (
        "Activation ranges by mse, of those tried at the output: mse 31.2 dB, minmax 28.0 dB.",
        "Cross-layer equalization changed 1 of 2 pairs of convolutions.",
        "1 outlier channel of 1 activation is multiplied in float.",
        "SmoothQuant changed 0 of 1 group of matrix products.",
        "The scales of 1 channel in 1 layer are wider, so that no pair of products saturates 16 bits.",
        "Bias correction moved 2 biases, most that of b: by 15% of its output.",
        "Rounding was learned for 2 layers: the squared error fell by 25% to 40%.",
    )
    assert quantized.remarks({}, {}) == ()
    unclear = {"activations": "mse", "searched_activations_db": {"mse": 31.2, "percentile 99.99": 31.3}}
    assert quantized.remarks(unclear, {}) == (
        "Activation ranges by mse, of those tried at the output: mse 31.2 dB, percentile 99.99 31.3 dB. "
        "None of the 0.1 dB more is clear on the samples one by one.",
    )
    equal = {"activations": "mse", "searched_activations_db": {"mse": 33.14, "mse drop": 33.17}}
    assert "0.0 dB" not in quantized.remarks(equal, {})[0]


def test_figures_that_are_none_are_no_nan_in_json() -> None:
    found = quantized.without_nan([{"norm": "n", "error": float("nan"), "alpha": 0.5, "count": 1}])
    assert found == [{"norm": "n", "error": None, "alpha": 0.5, "count": 1}]
