"""Deliberate defects in bundles with real engines: each is caught by verify, and named."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from edgetl import backends, catalog  # noqa: E402
from edgetl.backends import inside  # noqa: E402
from edgetl.backends.base import CompileRequest  # noqa: E402
from edgetl.bundle import sign, write  # noqa: E402
from edgetl.diagnosis import departures  # noqa: E402
from edgetl.diagnosis.recorded import Recorded  # noqa: E402
from edgetl.errors import BundleError, ParityError  # noqa: E402
from edgetl.pipeline.check import Checked, verify_bundle  # noqa: E402
from edgetl.pipeline.engines import open_graph  # noqa: E402
from edgetl.pipeline.precisions import facts_of  # noqa: E402
from edgetl.quantize import graph, recipes, schemes  # noqa: E402
from edgetl.quantize.tools import Tools  # noqa: E402
from edgetl.runtime.bundle import open_bundle  # noqa: E402
from edgetl.runtime.preprocessing import ImagePreprocessing  # noqa: E402
from edgetl.specs import BatchRange, Estimator, Recipe  # noqa: E402

CONTRACT = ImagePreprocessing(
    height=16, width=16, mean=(0.45, 0.4, 0.35), std=(0.25, 0.22, 0.27), interpolation="bilinear"
)
LABELS = ["ant", "bee", "cat", "dog", "eel"]
PAIRS = [("x86-64-cpu", "int8"), ("intel-cpu", "int8"), ("x86-64-cpu", "fp32"), ("intel-cpu", "fp32")]
ENGINES = [pytest.param(*pair, id="-".join(pair)) for pair in PAIRS]
PARITY = {"int8": {"agreement": 0.97, "sqnr_db": 30.0}, "fp32": {"agreement": 1.0, "sqnr_db": 110.0}}
Change = Callable[[Any], None]
"""Of an ONNX model, in place."""


def pictures(count: int, seed: int) -> list[bytes]:
    """Smooth colour pictures."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        small = Image.fromarray(random.integers(0, 255, (5, 6, 3), dtype=np.uint8))
        buffer = BytesIO()
        small.resize((30, 24), Image.Resampling.BICUBIC).save(buffer, "PNG")
        found.append(buffer.getvalue())
    return found


def tensors(contract: ImagePreprocessing, sources: Iterable[bytes]) -> np.ndarray:
    return contract.together([contract(source) for source in sources])


def network(path: Path) -> Path:
    """Eight products, a residual, a depthwise convolution; outputs of some size."""
    random = np.random.default_rng(3)
    weights: dict[str, np.ndarray] = {}
    nodes = []

    def conv(source: str, output: str, out: int, into: int, kernel: int = 3, group: int = 1) -> str:
        fan = into // group * kernel * kernel
        weights[f"{output}_w"] = random.normal(size=(out, into // group, kernel, kernel)) * np.sqrt(2 / fan)
        weights[f"{output}_b"] = random.normal(size=out) * 0.1
        inputs = [source, f"{output}_w", f"{output}_b"]
        nodes.append(
            helper.make_node("Conv", inputs, [output], name=f"{output}_conv", pads=[kernel // 2] * 4, group=group)
        )
        nodes.append(helper.make_node("Relu", [output], [f"{output}_relu"], name=f"{output}_act"))
        return f"{output}_relu"

    value = conv("x", "stem", 16, 3)
    trunk = value
    value = conv(value, "expand", 32, 16, 1)
    value = conv(value, "depthwise", 32, 32, 3, 32)
    value = conv(value, "project", 16, 32, 1)
    nodes.append(helper.make_node("Add", [trunk, value], ["sum"], name="residual"))
    value = conv("sum", "wide", 32, 16)
    value = conv(value, "last", 32, 32)
    nodes.append(helper.make_node("GlobalAveragePool", [value], ["pooled"], name="pool"))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"))
    weights["head_w"], weights["head_b"] = random.normal(size=(5, 32)), random.normal(size=5)
    nodes.append(helper.make_node("Gemm", ["flat", "head_w", "head_b"], ["y"], name="head", transB=1))
    made = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@dataclass(frozen=True)
class Parts:
    """What bundles are made of."""

    folder: Path
    key: Path
    facts: dict[str, dict[str, Any]]
    """Target → the account of its quantized graph."""

    def model(self, target: str, precision: str) -> Path:
        return self.folder / ("float.onnx" if precision == "fp32" else f"{target}.onnx")


def quantized(folder: Path, target: str, recipe: Recipe) -> dict[str, Any]:
    """Bring a folder's float graph to int8; the account of it."""
    images = tensors(CONTRACT, pictures(32, seed=1))
    tools = Tools(
        samples=lambda: ({"x": images[start : start + 8]} for start in range(0, 32, 8)),
        open_runner=open_graph,
    )
    model = graph.prepare(graph.load(folder / "float.onnx"))
    statistics = recipes.calibrate(model, tools)
    scheme = catalog.target(target).scheme
    done = recipes.make(model, statistics, schemes.scheme(scheme), recipe, tools)
    ir.save(done.model, folder / f"{target}.onnx")
    return {"scheme": scheme, "targets": [target], **facts_of(done)}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    folder = tmp_path_factory.mktemp("parts")
    network(folder / "float.onnx")
    facts = {}
    for target in ("x86-64-cpu", "intel-cpu"):
        facts[target] = quantized(folder, target, catalog.recipe("int8-mse"))
    sign.make_key(folder / "key.pem")
    return Parts(folder, folder / "key.pem", facts)


Seal = Callable[..., Path]


@pytest.fixture
def seal(parts: Parts, tmp_path: Path) -> Seal:
    """A function that makes a bundle of one engine, which a defect may have been put into."""

    def make(
        target: str,
        precision: str,
        *,
        change: Change = lambda model: None,
        sources: list[bytes] | None = None,
        made_by: ImagePreprocessing = CONTRACT,
        swapped: bool = False,
        recorded: bool = True,
        facts: Iterable[dict[str, Any]] = tuple(parts.facts.values()),
        **manifest: Any,
    ) -> Path:
        chosen = catalog.target(target)
        if backends.backend(chosen.backend).version() is None:
            pytest.skip(f"{chosen.backend} is not installed")
        bundle = tmp_path / "bundle"
        place = bundle / "engines" / target / precision
        place.mkdir(parents=True)
        (bundle / "model.onnx").write_bytes((parts.folder / "float.onnx").read_bytes())
        model = onnx.load(parts.model(target, precision))
        change(model)
        onnx.save(model, tmp_path / "changed.onnx")
        request = CompileRequest(
            model=tmp_path / "changed.onnx", folder=place, target=chosen, precision=precision,
            batch=BatchRange(min=1, max=8),
        )  # fmt: skip
        record = backends.backend(chosen.backend).compile(request)
        if record.status != "ready":
            pytest.skip(record.note)
        golden_of(bundle, sources or pictures(8, seed=2), made_by, parts.folder / "float.onnx", swapped=swapped)
        if recorded:
            (bundle / "reports").mkdir()
            document = {"schema": 1, "changes": {}, "graphs": list(facts), "engines": {}}
            (bundle / "reports" / "quantization.json").write_text(json.dumps(document), encoding="utf-8")
        engine = {
            "target": target, "precision": precision, "folder": f"engines/{target}/{precision}",
            "backend": record.backend, "provider": record.provider, "status": record.status, "shipped": True,
            "note": "", "latency": {"p50_ms": 1.0}, "parity": PARITY[precision],
        }  # fmt: skip
        write.seal(bundle, {**MANIFEST, "engines": [engine], **manifest}, parts.key)
        return bundle

    return make


MANIFEST: dict[str, Any] = {
    "name": "animals",
    "version": "1.0.0",
    "task": "image-classification",
    "inputs": [{"name": "x", "shape": ["batch", 3, 16, 16], "dtype": "float32", "batch": [1, 8]}],
    "outputs": [{"name": "y", "shape": ["batch", 5], "dtype": "float32"}],
    "labels": LABELS,
    "decision": {"kind": "largest"},
    "preprocessing": CONTRACT.to_json(),
}


def golden_of(bundle: Path, sources: list[bytes], contract: ImagePreprocessing, model: Path, *, swapped: bool) -> None:
    folder = bundle / "golden"
    folder.mkdir()
    names = [f"{number}.png" for number in range(len(sources))]
    for name, source in zip(names, sources, strict=True):
        (folder / name).write_bytes(source)
    inputs = tensors(contract, sources)
    if swapped:
        mean, std = (np.asarray(values)[:, None, None] for values in (contract.mean, contract.std))
        inputs = (((inputs * std + mean)[:, ::-1] - mean) / std).astype(np.float32)
    with open_graph(model) as runner:
        outputs = np.asarray(runner.run({"x": inputs})["y"])
    np.savez(folder / "golden.npz", names=np.array(names), inputs=inputs, outputs=outputs, classes=np.array(LABELS))


def verified(bundle: Path, *, layers: bool = True) -> Checked:
    return verify_bundle(bundle, layers=layers)


def constant(model: Any, name: str) -> Any:
    found = [item for item in model.graph.initializer if item.name == name]
    assert found, sorted(item.name for item in model.graph.initializer)
    return found[0]


def times(model: Any, name: str, factor: float, where: int | None = None) -> None:
    item = constant(model, name)
    array = numpy_helper.to_array(item).copy()
    if where is None:
        array = (array * factor).astype(array.dtype)
    else:
        array[where] *= factor
    item.CopyFrom(numpy_helper.from_array(array, name))


def scale_of_weights(model: Any, node: str) -> str:
    """Name of the scales of a layer's weights."""
    layer = next(item for item in model.graph.node if item.name == node)
    return str(next(item for item in model.graph.node if layer.input[1] in item.output).input[1])


# --- without a defect ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "precision"), ENGINES)
def test_an_engine_that_keeps_to_its_graph(seal: Seal, target: str, precision: str) -> None:
    (engine,) = verified(seal(target, precision)).engines
    assert engine.agreeing >= engine.golden - 1
    seen = engine.layers
    assert seen is not None and not seen.failed and seen.engine is None
    assert seen.causes == () and seen.engine_db > (35 if precision == "int8" else 80)
    assert seen.altering == ()
    assert json.loads(json.dumps(seen.to_json()))["failed"] is False
    if precision == "int8":
        assert 15 < seen.promise_db < 60 and seen.quantization is not None
        assert "against the float graph" in seen.statement


# --- one scale doubled -----------------------------------------------------------------------------------------------

ORT, OPENVINO = "x86-64-cpu", "intel-cpu"
SLOW = pytest.mark.slow
"""OpenVINO compiles an int8 graph for each look, which takes seconds."""


@pytest.mark.parametrize(
    ("target", "node"),
    [
        (ORT, "stem_conv"),
        (ORT, "depthwise_conv"),
        (ORT, "last_conv"),
        pytest.param(OPENVINO, "depthwise_conv", marks=SLOW),
    ],
)
def test_the_scale_of_weights_is_doubled(seal: Seal, target: str, node: str) -> None:
    bundle = seal(target, "int8", change=lambda model: times(model, scale_of_weights(model, node), 2))
    for layers in (False, True):
        with pytest.raises(ParityError, match=rf"the weights of '{node}' are twice those of the float graph"):
            verified(bundle, layers=layers)


@pytest.mark.parametrize("target", [ORT, pytest.param(OPENVINO, marks=SLOW)])
def test_the_scale_of_one_channel_is_doubled(seal: Seal, target: str) -> None:
    bundle = seal(target, "int8", change=lambda model: times(model, scale_of_weights(model, "wide_conv"), 2, 5))
    with pytest.raises(ParityError, match=r"the weights of 'wide_conv' in channel 5 are twice those of the float"):
        verified(bundle)


@pytest.mark.parametrize(("target", "tensor"), [(ORT, "expand_relu"), (ORT, "sum"), (OPENVINO, "sum")])
def test_the_scale_of_an_activation_is_doubled(seal: Seal, target: str, tensor: str) -> None:
    """Its range is twice as wide then, which no decision may show: what calibration chose is recorded."""
    bundle = seal(target, "int8", change=lambda model: times(model, f"{tensor}_scale", 2))
    for layers in (False, True):
        with pytest.raises(ParityError, match=rf"the scale of the tensor '{tensor}' is twice what calibration chose"):
            verified(bundle, layers=layers)


def restore_with_twice(model: Any, tensor: str) -> None:
    """Double the scale of the DequantizeLinear alone."""
    back = next(node for node in model.graph.node if node.name == f"{tensor}_dequantize")
    array = numpy_helper.to_array(constant(model, f"{tensor}_scale"))
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(array * 2, np.float32), "doubled"))
    back.input[1] = "doubled"


@pytest.mark.parametrize(
    ("target", "tensor"), [(ORT, "x"), (ORT, "project_relu"), pytest.param(OPENVINO, "project_relu", marks=SLOW)]
)
def test_integers_are_restored_with_twice_their_scale(seal: Seal, target: str, tensor: str) -> None:
    bundle = seal(target, "int8", recorded=False, change=lambda model: restore_with_twice(model, tensor))
    with pytest.raises(ParityError, match=rf"'{tensor}' is quantized with the scale .* twice that"):
        verified(bundle)


@pytest.mark.parametrize(("target", "precision"), ENGINES[2:])
def test_weights_of_a_float_engine_are_doubled(seal: Seal, target: str, precision: str) -> None:
    """No scale is there: the layer is found."""
    bundle = seal(target, precision, change=lambda model: times(model, "wide_w", 2))
    with pytest.raises(ParityError, match=r"leaves .* graph at Conv\w* 'wide_conv', tensor 'wide_relu'"):
        verified(bundle)


@pytest.mark.parametrize("target", [ORT, OPENVINO])
def test_a_float_engine_in_the_place_of_an_int8_one(seal: Seal, parts: Parts, target: str) -> None:
    """Its answers are better than those that were measured; it is slower, and nobody would know why."""
    float_graph = onnx.load(parts.model(target, "fp32"))
    bundle = seal(target, "int8", change=lambda model: model.CopyFrom(float_graph))
    for layers in (False, True):
        with pytest.raises(ParityError, match=r"no activation in it is quantized, and calibration chose \d+ scales"):
            verified(bundle, layers=layers)


# --- zero points, channels, biases ----------------------------------------------------------------------------------


def move_zero_point(tensor: str, steps: int, *operators: str) -> Change:
    """Of the pair around a tensor, or of one of its two operators."""

    def change(model: Any) -> None:
        pair = [node for node in model.graph.node if node.name in (f"{tensor}_quantize", f"{tensor}_dequantize")]
        array = numpy_helper.to_array(constant(model, pair[0].input[2]))
        moved = np.asarray(array.astype(np.int64) + steps).astype(array.dtype)
        model.graph.initializer.append(numpy_helper.from_array(moved, "moved"))
        for node in pair:
            if not operators or node.op_type in operators:
                node.input[2] = "moved"

    return change


def rewrite(model: Any, name: str, how: Callable[[np.ndarray], np.ndarray]) -> None:
    item = constant(model, name)
    array = numpy_helper.to_array(item)
    item.CopyFrom(numpy_helper.from_array(how(array).astype(array.dtype), name))


def integers_of(model: Any, node: str) -> str:
    """Name of a layer's weights as integers."""
    layer = next(item for item in model.graph.node if item.name == node)
    return str(next(item for item in model.graph.node if layer.input[1] in item.output).input[0])


def swap_channels(model: Any) -> None:
    rewrite(model, integers_of(model, "wide_conv"), lambda array: array[[0, 7, *range(2, 7), 1, *range(8, 32)]])


def turn_scales(model: Any) -> None:
    rewrite(model, scale_of_weights(model, "wide_conv"), lambda array: array[::-1])


def saturate(model: Any) -> None:
    """The weights of a layer with half their scale."""
    rewrite(model, integers_of(model, "wide_conv"), lambda array: np.clip(array.astype(int) * 2, -127, 127))
    times(model, scale_of_weights(model, "wide_conv"), 0.5)


def leave_out_bias(model: Any) -> None:
    del next(node for node in model.graph.node if node.name == "head").input[2:]


def double_bias(node: str) -> Change:
    """Of a layer whose bias stays float, as for OpenVINO."""

    def change(model: Any) -> None:
        layer = next(item for item in model.graph.node if item.name == node)
        times(model, layer.input[2], 2)

    return change


def head_without_bias(model: Any) -> None:
    leave_out_bias(model)
    times(model, scale_of_weights(model, "head"), 2)


def other_weights(model: Any) -> None:
    for name in ("stem_conv", "wide_conv", "last_conv", "project_conv"):
        rewrite(
            model, integers_of(model, name), lambda array: array[..., ::-1] if array.shape[-1] > 1 else array[:, ::-1]
        )


@pytest.mark.parametrize(
    ("target", "change", "said"),
    [
        (ORT, move_zero_point("project_relu", 3), "the zero point of the tensor 'project_relu' is 3 above what calibr"),
        (ORT, move_zero_point("x", -5), "the zero point of the tensor 'x' is 5 below what calibration chose"),
        (ORT, move_zero_point("sum", 10, "DequantizeLinear"), "'sum' is quantized with .* another, 10 above it"),
        (OPENVINO, move_zero_point("x", -5), "the zero point of the tensor 'x' is 5 below what calibration chose"),
        (OPENVINO, move_zero_point("sum", 10, "DequantizeLinear"), "'sum' is quantized with .* another, 10 above it"),
        (ORT, swap_channels, "channels of the weights of 'wide_conv' .* channel 1 in the float graph is channel 7"),
        (OPENVINO, swap_channels, "channels of the weights of 'wide_conv' .* 1 in the float graph is channel 7"),
        (ORT, turn_scales, "the scales of the weights of 'wide_conv' stand in another order than its channels"),
        (OPENVINO, turn_scales, "the scales of the weights of 'wide_conv' stand in another order than its channels"),
        (ORT, saturate, r"the weights of 'wide_conv' are cut off in \d+% of their values: their scale is too small"),
        (OPENVINO, saturate, r"the weights of 'wide_conv' are cut off in \d+% of their values"),
        (ORT, leave_out_bias, "the biases of 'head' are zero, and are not in the float graph"),
        (OPENVINO, leave_out_bias, "the biases of 'head' are zero, and are not in the float graph"),
        (OPENVINO, head_without_bias, "the weights of 'head' are twice those of the float graph"),
        (OPENVINO, double_bias("depthwise_conv"), "the biases of 'depthwise_conv' are twice those of the float graph"),
        (OPENVINO, double_bias("head"), "the biases of 'head' are twice those of the float graph"),
        (ORT, other_weights, "the weights of 'stem_conv' are not those of the float graph in 16 of 16 .* 1 more"),
    ],
)  # fmt: skip
def test_what_rounding_does_not_explain(seal: Seal, target: str, change: Change, said: str) -> None:
    with pytest.raises(ParityError, match=said):
        verified(seal(target, "int8", change=change), layers=False)


def one_for_each_reader(model: Any, factor: float = 1.0) -> None:
    """A DequantizeLinear of its own for each reader, as other tools write them; the last with another scale."""
    for back in [node for node in model.graph.node if node.name in ("stem_relu_dequantize", "sum_dequantize")]:
        readers = [node for node in model.graph.node if back.output[0] in node.input]
        scale = numpy_helper.to_array(constant(model, back.input[1]))
        for number, reader in enumerate(readers):
            name = f"{back.name}_{number}"
            inputs = list(back.input)
            if number == len(readers) - 1:
                inputs[1] = f"{name}_scale"
                model.graph.initializer.append(
                    numpy_helper.from_array(np.asarray(scale * factor, np.float32), inputs[1])
                )
            reader.input[:] = [name if each == back.output[0] else each for each in reader.input]
            place = list(model.graph.node).index(back)
            model.graph.node.insert(place, helper.make_node("DequantizeLinear", inputs, [name], name=name))
        model.graph.node.remove(back)


@pytest.mark.parametrize("target", [ORT, OPENVINO])
def test_a_pair_for_each_reader(seal: Seal, target: str) -> None:
    """Of OpenVINO's it was said that it is restored with the scale 1."""
    (engine,) = verified(seal(target, "int8", change=one_for_each_reader)).engines
    assert engine.sqnr_db > 35 and engine.layers is not None and not engine.layers.causes


@pytest.mark.parametrize("target", [ORT, OPENVINO])
def test_a_pair_for_each_reader_of_which_one_is_off(seal: Seal, target: str) -> None:
    with pytest.raises(ParityError, match=r"'stem_relu' is quantized with the scale .* restored with .*, 1\.20 times"):
        verified(seal(target, "int8", change=lambda model: one_for_each_reader(model, 1.2)), layers=False)


def test_without_a_record_nobody_is_accused_of_what_a_recipe_may_have_done(seal: Seal) -> None:
    """SmoothQuant moves sizes between channels: only a record tells that it was not meant."""

    def smoothed(model: Any) -> None:
        times(model, scale_of_weights(model, "project_conv"), 2)
        times(model, scale_of_weights(model, "depthwise_conv"), 0.5)
        for name in ("depthwise_relu",):
            times(model, f"{name}_scale", 0.5)
        for node in ("depthwise_conv",):
            layer = next(item for item in model.graph.node if item.name == node)
            bias = next(item for item in model.graph.node if layer.input[2] in item.output)
            times(model, bias.input[1], 0.5)

    bundle = seal(ORT, "int8", change=smoothed, recorded=False)
    (engine,) = verified(bundle, layers=False).engines
    assert engine.sqnr_db > 35
    assert engine.scales_skipped.startswith("the bundle has no reports/quantization.json: what calibration chose is")
    (engine,) = verified(bundle).engines
    assert engine.layers is not None and engine.layers.statement.endswith(engine.scales_skipped)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda record: record.clear(), "it has no 'schema'"),
        (lambda record: record.pop("changes"), "it has no 'changes'"),
        (lambda record: record.update(schema=2), "it has another schema"),
        (lambda record: record["graphs"].clear(), "it has no graph of x86-64-cpu, but of none"),
        (lambda record: record["graphs"][0].update(targets=[OPENVINO]), "no graph of x86-64-cpu, but of intel-cpu"),
        (lambda record: record["graphs"][0]["params"].update(x=[0.0, 0, 0.0, 1.0]), "tensor 'x' it has the scale 0.0"),
        (lambda record: record["graphs"][0]["params"].update(x=[0.1, 0, math.nan, 1.0]), "and the range from nan"),
    ],
)
def test_a_record_of_quantization_that_does_not_tell_of_the_engine(
    seal: Seal, parts: Parts, change: Change, said: str
) -> None:
    """Without the graph of the engine nothing was compared, and nothing said so; a scale of zero was a traceback."""
    bundle = seal(ORT, "int8")
    path = bundle / "reports" / "quantization.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    change(record)
    path.write_text(json.dumps(record), encoding="utf-8")
    sealed_again(bundle, parts)
    with pytest.raises(BundleError, match=rf"quantization\.json cannot be read: .*{said}") as caught:
        verified(bundle, layers=False)
    assert caught.value.exit_code == 7


def test_the_record_of_a_graph_in_float16_is_not_that_of_an_int8_engine(seal: Seal, parts: Parts) -> None:
    """Of a target with both, whichever came first was taken."""
    half = {**parts.facts[ORT], "scheme": "float16", "params": {}}
    bundle = seal(
        ORT, "int8", facts=[half, parts.facts[ORT], half], change=lambda model: times(model, "sum_scale", 1.2)
    )
    with pytest.raises(ParityError, match=r"the scale of the tensor 'sum' is 1\.20 times what calibration chose"):
        verified(bundle, layers=False)


@pytest.mark.parametrize("target", [ORT, OPENVINO])
@pytest.mark.parametrize(("factor", "said"), [(0.0, "0"), (-1.0, r"-0\.\d+"), (math.nan, "nan")])
def test_a_scale_that_is_none(seal: Seal, target: str, factor: float, said: str) -> None:
    """Zero and NaN were tracebacks; without a record the scale below zero passed for right."""
    bundle = seal(target, "int8", recorded=False, change=lambda model: times(model, "sum_scale", factor))
    with pytest.raises((ParityError, BundleError)) as caught:
        verified(bundle, layers=False)
    told = f"the tensor 'sum' has the scale {said}, which is none"
    assert re.search(told, caught.value.message) or "cannot be opened" in caught.value.message


@pytest.mark.parametrize("older", [False, True])
def test_a_recipe_may_cut_weights_off(seal: Seal, tmp_path: Path, older: bool) -> None:
    """Its ranges cover 95% of the weights. What an older build wrote down does not tell of ranges of weights."""
    network(tmp_path / "float.onnx")
    recipe = replace(catalog.recipe("int8-mse"), weights=Estimator(method="percentile", percentile=95.0))
    facts = quantized(tmp_path, ORT, recipe)
    if older:
        facts["notes"].pop("weights")
    made = onnx.load(tmp_path / f"{ORT}.onnx")
    bundle = seal(ORT, "int8", change=lambda model: model.CopyFrom(made), facts=[facts])
    (engine,) = verified(bundle, layers=False).engines
    assert engine.scales_skipped == ""


# --- inputs, outputs, batches ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made_by", "swapped", "said"),
    [
        (replace(CONTRACT, mean=(0.5, 0.5, 0.5)), False, r"made with mean \(0\.5, 0\.5, 0\.5\)"),
        (replace(CONTRACT, std=(1.0, 1.0, 1.0)), False, r"standard deviation \(1, 1, 1\)"),
        (replace(CONTRACT, interpolation="nearest"), False, "and interpolation 'nearest', the contract has"),
        (replace(CONTRACT, resize="stretch"), False, "made with resize 'stretch'"),
        (CONTRACT, True, "the colours in the order blue, green, red"),
    ],
)  # fmt: skip
def test_another_preprocessing_than_the_engine_was_built_with(
    seal: Seal, made_by: ImagePreprocessing, swapped: bool, said: str
) -> None:
    bundle = seal("x86-64-cpu", "fp32", made_by=made_by, swapped=swapped)
    with pytest.raises(BundleError, match=said):
        verified(bundle, layers=False)


def test_shuffled_labels(seal: Seal) -> None:
    bundle = seal("x86-64-cpu", "fp32", labels=["bee", "ant", *LABELS[2:]])
    with pytest.raises(BundleError, match="output 0 is 'bee' there, and was 'ant'"):
        verified(bundle, layers=False)


def turn_outputs(model: Any) -> None:
    for name in ("head_w", "head_b"):
        item = constant(model, name)
        item.CopyFrom(numpy_helper.from_array(np.roll(numpy_helper.to_array(item), 1, axis=0), name))


def turn_colours(model: Any) -> None:
    item = constant(model, "stem_w")
    item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item)[:, ::-1].copy(), "stem_w"))


def normalise_again(model: Any) -> None:
    """Mean and standard deviation in the graph: it wants pixels from 0 to 1."""
    mean, std = (np.asarray(values, np.float32)[None, :, None, None] for values in (CONTRACT.mean, CONTRACT.std))
    model.graph.initializer.extend([numpy_helper.from_array(mean, "mean"), numpy_helper.from_array(std, "std")])
    model.graph.node[0].input[0] = "normal"
    model.graph.node.insert(0, helper.make_node("Div", ["centred", "std"], ["normal"], name="by_std"))
    model.graph.node.insert(0, helper.make_node("Sub", ["x", "mean"], ["centred"], name="less_mean"))


def over_the_batch(model: Any) -> None:
    """Batch statistics at run time, as a BatchNormalization in training mode has them."""
    model.graph.initializer.append(numpy_helper.from_array(np.asarray([0], np.int64), "batch_axis"))
    for node in model.graph.node:
        node.input[:] = ["alone" if name == "sum" else name for name in node.input]
    place = next(place for place, node in enumerate(model.graph.node) if node.name == "residual") + 1
    model.graph.node.insert(place, helper.make_node("Sub", ["sum", "centre"], ["apart"], name="less_centre"))
    model.graph.node.insert(place + 1, helper.make_node("Add", ["apart", "sum"], ["alone"], name="and_itself"))
    model.graph.node.insert(place, helper.make_node("ReduceMean", ["sum", "batch_axis"], ["centre"], name="centre"))


def one_more(operator: str, *constants: float) -> Change:
    """An operator behind the network."""

    def change(model: Any) -> None:
        for node in model.graph.node:
            node.output[:] = ["scores" if name == "y" else name for name in node.output]
        model.graph.node.append(helper.make_node(operator, ["scores", *more(model, constants)], ["y"], name="one_more"))

    return change


def before(operator: str, *constants: float, **attributes: Any) -> Change:
    """An operator in front of the network."""

    def change(model: Any) -> None:
        model.graph.node[0].input[0] = "changed"
        inputs = ["x", *more(model, constants)]
        model.graph.node.insert(0, helper.make_node(operator, inputs, ["changed"], name="before", **attributes))

    return change


def more(model: Any, constants: Iterable[float]) -> list[str]:
    arrays = {f"more_{place}": np.asarray(value, np.float32) for place, value in enumerate(constants)}
    model.graph.initializer.extend([numpy_helper.from_array(array, name) for name, array in arrays.items()])
    return list(arrays)


def grey(model: Any) -> None:
    """A mean over the colours in front of the network."""
    before("Concat", axis=1)(model)
    model.graph.node[0].input[:] = ["mean_colour"] * 3
    model.graph.initializer.append(numpy_helper.from_array(np.asarray([1], np.int64), "colours"))
    model.graph.node.insert(0, helper.make_node("ReduceMean", ["x", "colours"], ["mean_colour"], name="mean_colour"))


def only_batches_of(size: int) -> Change:
    def change(model: Any) -> None:
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].Clear()
            value.type.tensor_type.shape.dim[0].dim_value = size

    return change


@pytest.mark.parametrize("target", ["x86-64-cpu", "intel-cpu"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (turn_outputs, "what should be 'ant' .output 0. is output 1"),
        (turn_colours, "where its input has the colours in the order blue, green, red"),
        (normalise_again, "where its input is pixels from 0 to 1"),
        (over_the_batch, "its answers depend on what else is in a batch"),
        (one_more("Softmax"), "its outputs are PyTorch's behind a softmax"),
        (one_more("Mul", 2.0), "its outputs are PyTorch's times 2$"),
        (one_more("Add", 1.0), "its outputs are PyTorch's plus 1$"),
        (before("Transpose", perm=[0, 1, 3, 2]), "PyTorch does where height and width of its input are exchanged"),
        (before("Mul", 255.0), "it answers as PyTorch does to inputs that are multiplied by 255"),
        (grey, "it answers as PyTorch does to inputs that are grey"),
        (only_batches_of(1), "does not run the batch of 8 that it was built for: input 'x' is float32.1, 3, 16, 16."),
    ],
)
def test_an_engine_of_another_graph(seal: Seal, target: str, change: Change, said: str) -> None:
    with pytest.raises(ParityError, match=said):
        verified(seal(target, "fp32", change=change), layers=False)


def test_layers_are_told_of_an_engine_that_is_refused_though_it_keeps_to_its_graph(seal: Seal) -> None:
    """Its graph is not the float graph's: the message of --layers was that of verify without."""

    def other_biases(model: Any) -> None:
        layer = next(item for item in model.graph.node if item.name == "head")
        integers = next(item for item in model.graph.node if layer.input[2] in item.output).input[0]
        rewrite(model, integers, lambda array: np.roll(array, 1) * 3)

    with pytest.raises(ParityError, match=r"the engine against its graph .* at Gemm 'head', tensor 'y'"):
        verified(seal(ORT, "int8", change=other_biases))


def sealed_again(bundle: Path, parts: Parts) -> Path:
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    write.seal(bundle, {key: value for key, value in manifest.items() if key not in ("schema", "files")}, parts.key)
    return bundle


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_the_float_graph_of_another_model(seal: Seal, parts: Parts, precision: str) -> None:
    """Nothing but --layers ran it; of an int8 engine the scales were accused."""
    bundle = seal(ORT, precision)
    model = onnx.load(bundle / "model.onnx")
    for name in ("wide_w", "last_w"):
        rewrite(model, name, lambda array: array[::-1])
    onnx.save(model, bundle / "model.onnx")
    sealed_again(bundle, parts)
    for layers in (False, True):
        with pytest.raises(BundleError, match=r"model.onnx, the float graph, is .* of another model than the engines"):
            verified(bundle, layers=layers)


def test_golden_outputs_of_another_model(seal: Seal, parts: Parts) -> None:
    bundle = seal(ORT, "fp32")
    with np.load(bundle / "golden" / "golden.npz") as arrays:
        found = dict(arrays)
    found["outputs"] = np.random.default_rng(0).normal(size=found["outputs"].shape).astype(np.float32)
    np.savez(bundle / "golden" / "golden.npz", **found)
    with pytest.raises(ParityError, match=r"does: the golden outputs are of another model$") as caught:
        verified(sealed_again(bundle, parts), layers=False)
    assert caught.value.hint == "build the bundle again; golden/ may be of another build"


def test_scales_without_a_name_are_told_not_to_be_compared(seal: Seal) -> None:
    """As of an engine that a tool wrote anew: nothing was said of it, and a scale might be anything."""

    def renamed(model: Any) -> None:
        kept = {"", *(value.name for value in (*model.graph.input, *model.graph.output))}
        for node in model.graph.node:
            node.name = f"n_{node.name}"
            for names in (node.input, node.output):
                names[:] = [name if name in kept else f"t_{name}" for name in names]
        for item in model.graph.initializer:
            item.name = f"t_{item.name}"

    def inside_too(model: Any) -> None:
        renamed(model)
        model.graph.input[0].name = "picture"
        for node in model.graph.node:
            node.input[:] = ["picture" if name == "x" else name for name in node.input]

    (engine,) = verified(seal(ORT, "int8", change=inside_too), layers=False).engines
    assert engine.scales_skipped.startswith("its tensors and layers have other names than those of model.onnx")


def test_a_bundle_without_a_float_graph(seal: Seal, parts: Parts) -> None:
    bundle = seal(ORT, "int8")
    (bundle / "model.onnx").unlink()
    checked = verified(sealed_again(bundle, parts))
    assert checked.graph_db is None and checked.graph_skipped == "the bundle has none"
    assert checked.engines[0].layers_skipped == "the bundle has no model.onnx, the float graph"


def beside(path: Path) -> Path:
    """Move a graph's weights into a file beside it, as other tools write large models."""
    onnx.save(onnx.load(path), path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=64)
    return path.with_name(f"{path.name}.data")


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_weights_in_files_beside_the_graphs(seal: Seal, parts: Parts, precision: str) -> None:
    """Of an engine with such weights --layers ended with exit code 2: its copy did not find them."""
    bundle = seal(ORT, precision)
    beside(bundle / "engines" / ORT / precision / "model.onnx")
    beside(bundle / "model.onnx")
    sealed_again(bundle, parts)
    (engine,) = verified(bundle, layers=False).engines
    assert engine.sqnr_db > 35 and not engine.scales_skipped
    (engine,) = verified(bundle).engines
    assert engine.layers is not None and not engine.layers.failed


@pytest.mark.parametrize(
    ("where", "said"), [("model.onnx", "model.onnx, the float graph, does not run"), ("engines", "cannot be opened")]
)
@pytest.mark.parametrize("cut", [False, True])
def test_weights_beside_a_graph_that_are_missing_or_cut_off(
    seal: Seal, parts: Parts, where: str, said: str, cut: bool
) -> None:
    bundle = seal(ORT, "int8")
    data = beside(bundle / (where if where == "model.onnx" else f"engines/{ORT}/int8/model.onnx"))
    if cut:
        data.write_bytes(data.read_bytes()[:100])
    else:
        data.unlink()
    sealed_again(bundle, parts)
    for layers in (False, True):
        with pytest.raises(BundleError, match=said):
            verified(bundle, layers=layers)


@pytest.mark.parametrize("target", [ORT, OPENVINO])
@pytest.mark.parametrize("content", [b"", b"not a graph"])
def test_a_damaged_int8_engine(seal: Seal, parts: Parts, target: str, content: bytes) -> None:
    """Its scales were read before it was opened: the damage was a traceback."""
    bundle = seal(target, "int8")
    (bundle / "engines" / target / "int8" / ("model.onnx" if target == ORT else "model.xml")).write_bytes(content)
    sealed_again(bundle, parts)
    for layers in (False, True):
        with pytest.raises(BundleError, match=f"the engine for {target} int8 cannot be opened"):
            verified(bundle, layers=layers)


@pytest.mark.parametrize("target", [ORT, OPENVINO])
@pytest.mark.parametrize("change", [{"files": []}, {"files": [1]}, {"provider": None}, {"options": []}])
def test_a_damaged_record_of_an_int8_engine(seal: Seal, parts: Parts, target: str, change: dict[str, Any]) -> None:
    bundle = seal(target, "int8")
    path = bundle / "engines" / target / "int8" / "engine.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **change}), encoding="utf-8")
    sealed_again(bundle, parts)
    for layers in (False, True):
        with pytest.raises(BundleError, match="int8 holds no engine that this version can open"):
            verified(bundle, layers=layers)


def one_weight_is_nan(model: Any) -> None:
    """In the last layer, for one class: seven of eight pictures would still be named rightly, were it not looked at."""
    item = constant(model, "head_b")
    array = numpy_helper.to_array(item).copy()
    array[4] = np.nan
    item.CopyFrom(numpy_helper.from_array(array, item.name))


@pytest.mark.parametrize("target", ["x86-64-cpu", "intel-cpu"])
def test_an_engine_that_returns_nan_is_named_as_one(seal: Seal, target: str) -> None:
    bundle = seal(target, "fp32", change=one_weight_is_nan)
    said = "fp32 returned NaN or infinite values for 8 of 8 golden inputs"
    with pytest.raises(ParityError, match=said):
        verified(bundle, layers=False)
    with pytest.raises(ParityError, match=said):
        open_bundle(bundle).open()


def other_name(model: Any) -> None:
    """The output under another name than in the float graph."""
    for node in model.graph.node:
        node.output[:] = ["scores" if name == "y" else name for name in node.output]
    model.graph.output[0].name = "scores"


def test_an_output_of_another_name_is_told_where_layers_are_looked_at(seal: Seal) -> None:
    (engine,) = verified(seal("x86-64-cpu", "fp32", change=other_name)).engines
    assert engine.layers is None and "its output 'scores' is no tensor of model.onnx" in engine.layers_skipped


# --- looking changes what is looked at --------------------------------------------------------------------------------


class Chain:
    """x → a = 2x → b = a + 1 → y = 3b, in numpy: an engine that is wrong where it fuses a into b."""

    places = tuple(
        inside.Place(name=name, layer=f"Mul '{name}'", before=before)
        for name, before in (("a", ()), ("b", ("a",)), ("y", ("b",)))
    )
    quantizers: tuple[inside.Quantizer, ...] = ()
    restored: tuple[inside.Restored, ...] = ()
    tensors = ("a", "b", "y")
    constants: dict[tuple[str, str], np.ndarray] = {}  # noqa: RUF012

    def __init__(self, apart: float = 1.0) -> None:
        self.apart = apart

    def engine(self, names: list[str]) -> inside.Looking:
        return self._open(names, self.apart if "a" not in names else 1.0)

    def promise(self, names: list[str]) -> inside.Looking:
        return self._open(names, 1.0)

    def _open(self, names: list[str], factor: float) -> Any:
        @contextmanager
        def opened() -> Iterator[Any]:
            def run(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
                a = 2.0 * feeds["x"]
                b = factor * a + 1.0
                looking.outputs = 3.0 * b
                return {name: {"a": a, "b": b, "y": 3.0 * b}[name] for name in names}

            looking = SimpleNamespace(run=run, outputs=np.empty(0))
            yield looking

        return opened()


def seen_in(apart: float) -> departures.EngineLayers:
    golden = SimpleNamespace(inputs=np.random.default_rng(0).normal(size=(4, 6)))
    bundle = SimpleNamespace(manifest={"inputs": [{"name": "x", "batch": [1, 8]}]})
    chain: Any = Chain(apart)
    meter = departures._Meter(chain, chain, bundle, golden)  # type: ignore[arg-type]
    return departures._found(meter, chain, chain, Recorded(), "int8")


def test_an_engine_that_is_right_as_soon_as_it_is_looked_at() -> None:
    found = seen_in(3.0)
    assert found.failed and found.engine is not None and found.engine_db < 10
    assert "it does not where 'a' is put out: what is fused around that tensor is at fault" in found.statement
    assert "a" in found.altering


def test_an_engine_that_is_right_anyway() -> None:
    found = seen_in(1.0)
    assert not found.failed and found.engine is None and found.altering == ()
    assert found.statement.startswith("SQNR 200.0 dB against the float graph")
