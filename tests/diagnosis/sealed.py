"""Bundles with one real engine each, sealed after a deliberate defect was put into it or beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from edgetl import backends, catalog  # noqa: E402
from edgetl.backends.base import CompileRequest  # noqa: E402
from edgetl.bundle import sign, write  # noqa: E402
from edgetl.pipeline.check import Checked, verify_bundle  # noqa: E402
from edgetl.pipeline.engines import open_graph  # noqa: E402
from edgetl.pipeline.precisions import facts_of  # noqa: E402
from edgetl.quantize import graph, recipes, schemes  # noqa: E402
from edgetl.quantize.tools import Tools  # noqa: E402
from edgetl.runtime.preprocessing import ImagePreprocessing  # noqa: E402
from edgetl.specs import BatchRange, Recipe  # noqa: E402

CONTRACT = ImagePreprocessing(
    height=16, width=16, mean=(0.45, 0.4, 0.35), std=(0.25, 0.22, 0.27), interpolation="bilinear"
)
LABELS = ["ant", "bee", "cat", "dog", "eel"]
ORT, OPENVINO, JETSON = "x86-64-cpu", "intel-cpu", "jetson-orin-nano"
SLOW = pytest.mark.slow
"""OpenVINO compiles an int8 graph for each look, which takes seconds."""
PAIRS = [("x86-64-cpu", "int8"), ("intel-cpu", "int8"), ("x86-64-cpu", "fp32"), ("intel-cpu", "fp32")]
ENGINES = [pytest.param(*pair, id="-".join(pair)) for pair in PAIRS]
PARITY = {
    "int8": {"agreement": 0.97, "sqnr_db": 30.0},
    "fp16": {"agreement": 1.0, "sqnr_db": 50.0},
    "fp32": {"agreement": 1.0, "sqnr_db": 110.0},
}
Change = Callable[[Any], None]
"""Of an ONNX model, in place."""
Seal = Callable[..., Path]
"""What makes a bundle; see :func:`sealer`."""
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


def make_parts(folder: Path) -> Parts:
    """Of two targets, in a folder that is kept as long as they are."""
    network(folder / "float.onnx")
    facts = {target: quantized(folder, target, catalog.recipe("int8-mse")) for target in (ORT, OPENVINO, JETSON)}
    sign.make_key(folder / "key.pem")
    return Parts(folder, folder / "key.pem", facts)


def sealer(parts: Parts, folder: Path) -> Seal:
    """What makes a bundle of one engine, which a defect may have been put into; without its library it skips."""

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
        if backends.backend(chosen.backend).version() is None and not chosen.built_on_device:
            pytest.skip(f"{chosen.backend} is not installed")
        bundle = folder / "bundle"
        place = bundle / "engines" / target / precision
        place.mkdir(parents=True)
        (bundle / "model.onnx").write_bytes((parts.folder / "float.onnx").read_bytes())
        model = onnx.load(parts.model(target, precision))
        change(model)
        onnx.save(model, folder / "changed.onnx")
        request = CompileRequest(
            model=folder / "changed.onnx", folder=place, target=chosen, precision=precision,
            batch=BatchRange(min=1, max=8),
        )  # fmt: skip
        record = backends.backend(chosen.backend).compile(request)
        if record.status != "ready" and not chosen.built_on_device:
            pytest.skip(record.note)
        golden_of(bundle, sources or pictures(8, seed=2), made_by, parts.folder / "float.onnx", swapped=swapped)
        if recorded:
            (bundle / "reports").mkdir()
            document = {"schema": 1, "changes": {}, "graphs": list(facts), "engines": {}}
            (bundle / "reports" / "quantization.json").write_text(json.dumps(document), encoding="utf-8")
        engine = {
            "target": target, "precision": precision, "folder": f"engines/{target}/{precision}",
            "backend": record.backend, "provider": record.provider, "status": record.status, "shipped": True,
            "note": record.note, "latency": {"p50_ms": 1.0}, "parity": PARITY[precision],
        }  # fmt: skip
        write.seal(bundle, {**MANIFEST, "engines": [engine], **manifest}, parts.key)
        return bundle

    return make


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


def sealed_again(bundle: Path, parts: Parts) -> Path:
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    write.seal(bundle, {key: value for key, value in manifest.items() if key not in ("schema", "files")}, parts.key)
    return bundle


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


def rewrite(model: Any, name: str, how: Callable[[np.ndarray], np.ndarray]) -> None:
    item = constant(model, name)
    array = numpy_helper.to_array(item)
    item.CopyFrom(numpy_helper.from_array(how(array).astype(array.dtype), name))


def scale_of_weights(model: Any, node: str) -> str:
    """Name of the scales of a layer's weights."""
    layer = next(item for item in model.graph.node if item.name == node)
    return str(next(item for item in model.graph.node if layer.input[1] in item.output).input[1])


def integers_of(model: Any, node: str) -> str:
    """Name of a layer's weights as integers."""
    layer = next(item for item in model.graph.node if item.name == node)
    return str(next(item for item in model.graph.node if layer.input[1] in item.output).input[0])
