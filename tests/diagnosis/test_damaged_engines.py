"""Engines whose files, records or numbers are damaged, and weights in files beside their graphs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from onnx import numpy_helper  # noqa: E402
from sealed import (  # noqa: E402
    JETSON,
    OPENVINO,
    ORT,
    Parts,
    Seal,
    constant,
    network,
    sealed_again,
    sealer,
    times,
    verified,
)

from edgetl.bundle import sign  # noqa: E402
from edgetl.errors import BundleError, ParityError  # noqa: E402
from edgetl.quantize import graph  # noqa: E402
from edgetl.quantize.half import to_half  # noqa: E402
from edgetl.runtime.bundle import open_bundle  # noqa: E402


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


@pytest.mark.parametrize("content", [b"", b"not a graph", b"\x08\x07\x12\x00"])
def test_a_damaged_graph_of_an_engine_that_waits(seal: Seal, parts: Parts, content: bytes) -> None:
    """Nothing opens it before its scales are read."""
    bundle = seal(JETSON, "int8")
    (bundle / "engines" / JETSON / "int8" / "model.onnx").write_bytes(content)
    sealed_again(bundle, parts)
    with pytest.raises(
        BundleError, match=r"engines/jetson-orin-nano/int8/model.onnx, the engine's graph, cannot be read"
    ):
        verified(bundle, layers=False)


@pytest.mark.parametrize("change", [{"files": 1}, {"graph": 1}, {"graph": "../../model.onnx"}, {"graph": "other"}])
def test_a_damaged_record_of_an_engine_that_waits(seal: Seal, parts: Parts, change: dict[str, Any]) -> None:
    bundle = seal(JETSON, "int8")
    path = bundle / "engines" / JETSON / "int8" / "engine.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **change}), encoding="utf-8")
    sealed_again(bundle, parts)
    with pytest.raises(BundleError, match=r"jetson-orin-nano/int8"):
        verified(bundle, layers=False)


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


def beyond_half(path: Path, peak: float) -> None:
    """A float graph in which what one layer computes is large, and the next takes that back."""
    model = onnx.load(path)
    times(model, "wide_w", peak)
    times(model, "wide_b", peak)
    times(model, "last_w", 1.0 / peak)
    onnx.save(model, path)


@pytest.mark.parametrize("peak", [1e3, 1e6])
def test_values_that_float16_cannot_hold(peak: float, tmp_path: Path) -> None:
    """They reach 16 times the peak. ONNX Runtime rounds to float16 on a processor only what is put out."""
    place = tmp_path / "parts"
    place.mkdir()
    beyond_half(network(place / "float.onnx"), peak)
    ir.save(to_half(graph.prepare(graph.load(place / "float.onnx"))).model, place / f"{ORT}.onnx")
    sign.make_key(place / "key.pem")
    seal = sealer(Parts(place, place / "key.pem", {}), tmp_path)
    if peak < 4000:
        (engine,) = verified(seal(ORT, "fp16", recorded=False)).engines
        assert engine.layers is not None and engine.layers.causes == ()
        return
    with pytest.raises(
        ParityError, match=r"the values of 'wide_relu' reach 1\.\d+e\+07 in the float graph; float16 ends"
    ):
        verified(seal(ORT, "fp16", recorded=False))
