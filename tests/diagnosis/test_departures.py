"""Where engines leave their graphs, layer by layer: defects in bundles with real engines are caught, and named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from onnx import numpy_helper  # noqa: E402
from sealed import (  # noqa: E402
    ENGINES,
    OPENVINO,
    ORT,
    SLOW,
    Seal,
    constant,
    rewrite,
    scale_of_weights,
    times,
    verified,
)

from edgetl.backends import inside  # noqa: E402
from edgetl.diagnosis import departures  # noqa: E402
from edgetl.diagnosis.meter import Meter  # noqa: E402
from edgetl.diagnosis.recorded import Recorded  # noqa: E402
from edgetl.errors import MissingExtraError, ParityError  # noqa: E402
from edgetl.pipeline.check import verify_bundle  # noqa: E402


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


def test_layers_are_told_of_an_engine_that_is_refused_though_it_keeps_to_its_graph(seal: Seal) -> None:
    """Its graph is not the float graph's: the message of --layers was that of verify without."""

    def other_biases(model: Any) -> None:
        layer = next(item for item in model.graph.node if item.name == "head")
        integers = next(item for item in model.graph.node if layer.input[2] in item.output).input[0]
        rewrite(model, integers, lambda array: np.roll(array, 1) * 3)

    with pytest.raises(ParityError, match=r"the engine against its graph .* at Gemm 'head', tensor 'y'"):
        verified(seal(ORT, "int8", change=other_biases))


def other_name(model: Any) -> None:
    """The output under another name than in the float graph."""
    for node in model.graph.node:
        node.output[:] = ["scores" if name == "y" else name for name in node.output]
    model.graph.output[0].name = "scores"


def test_an_output_of_another_name_is_told_where_layers_are_looked_at(seal: Seal) -> None:
    (engine,) = verified(seal("x86-64-cpu", "fp32", change=other_name)).engines
    assert engine.layers is None and "its output 'scores' is no tensor of model.onnx" in engine.layers_skipped


class Chain:
    """x → a = 2x → b = a + 1 → y = 3b, in numpy: an engine that is wrong where it fuses a into b."""

    places = tuple(
        inside.Place(name=name, layer=f"Mul '{name}'", before=before)
        for name, before in (("a", ()), ("b", ("a",)), ("y", ("b",)))
    )
    quantizers: tuple[inside.Quantizer, ...] = ()
    restored: tuple[inside.Restored, ...] = ()
    tensors = ("a", "b", "y")
    together = 4
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
    meter = Meter(chain, chain, bundle, golden)  # type: ignore[arg-type]
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


# --- of a bundle that is not kept ------------------------------------------------------------------------------------


def test_layers_of_an_engine_that_is_refused_are_compared_at_once(seal: Seal) -> None:
    """And of no other one: on a device each look may build an engine."""
    told: list[str] = []
    verify_bundle(seal(ORT, "fp32"), told=told.append)
    assert told == []


def test_that_layers_of_a_refused_engine_cannot_be_compared_is_said(
    seal: Seal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(*_: object) -> None:
        raise MissingExtraError("onnx_ir", extra="export", needed_for="looking into an engine")

    bundle = seal(ORT, "fp32", change=lambda model: times(model, "wide_w", 2))
    told: list[str] = []
    with pytest.raises(ParityError, match=r"leaves the float graph at Conv 'wide_conv'"):
        verify_bundle(bundle, told=told.append)
    assert told == ["x86-64-cpu fp32 is refused: its layers are compared"]
    monkeypatch.setattr(departures, "look_into", without)
    with pytest.raises(
        ParityError, match=r"golden inputs.*\n  its layers were not compared: looking into an engine needs"
    ):
        verify_bundle(bundle, told=told.append)
