"""What a bundle recorded of quantization: it is missing, damaged, or tells of another engine."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from sealed import OPENVINO, ORT, Change, Parts, Seal, scale_of_weights, sealed_again, times, verified  # noqa: E402

from edgetl.errors import BundleError, ParityError  # noqa: E402


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
