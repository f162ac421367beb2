"""Defects of int8 engines: their constants are held against calibration and the float graph, and named."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ml_dtypes = pytest.importorskip("ml_dtypes")
ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from sealed import (  # noqa: E402
    JETSON,
    OPENVINO,
    ORT,
    Change,
    Parts,
    Seal,
    constant,
    integers_of,
    network,
    quantized,
    rewrite,
    scale_of_weights,
    times,
    verified,
)

from edgetl import catalog  # noqa: E402
from edgetl.errors import BundleError, ParityError  # noqa: E402
from edgetl.specs import Estimator  # noqa: E402


@pytest.mark.parametrize("target", [ORT, OPENVINO])
def test_a_float_engine_in_the_place_of_an_int8_one(seal: Seal, parts: Parts, target: str) -> None:
    """Its answers are better than those that were measured; it is slower, and nobody would know why."""
    float_graph = onnx.load(parts.model(target, "fp32"))
    bundle = seal(target, "int8", change=lambda model: model.CopyFrom(float_graph))
    for layers in (False, True):
        with pytest.raises(ParityError, match=r"no activation in it is quantized, and calibration chose \d+ scales"):
            verified(bundle, layers=layers)


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


def swap_channels(model: Any) -> None:
    rewrite(model, integers_of(model, "wide_conv"), lambda array: array[[0, 7, *range(2, 7), 1, *range(8, 32)]])


def turn_scales(model: Any) -> None:
    rewrite(model, scale_of_weights(model, "wide_conv"), lambda array: array[::-1])


def saturate(model: Any) -> None:
    """The weights of a layer with half their scale."""
    rewrite(model, integers_of(model, "wide_conv"), lambda array: np.clip(array.astype(int) * 2, -127, 127))
    times(model, scale_of_weights(model, "wide_conv"), 0.5)


def leave_out_bias(model: Any, layer: str = "head") -> None:
    del next(node for node in model.graph.node if node.name == layer).input[2:]


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


# --- engines that wait for their device -------------------------------------------------------------------------------


def test_the_graph_of_an_engine_that_waits_for_its_device_is_read(seal: Seal) -> None:
    (engine,) = verified(seal(JETSON, "int8"), layers=False).engines
    assert "is not the device" in engine.skipped
    assert (engine.golden, engine.scales_skipped, engine.layers) == (0, "", None)
    assert engine.graph_agreeing is not None and engine.graph_agreeing >= 7
    assert engine.graph_db is not None and engine.graph_db > 15


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda model: times(model, scale_of_weights(model, "wide_conv"), 2), "the weights of 'wide_conv' are twice"),
        (swap_channels, "what is channel 1 in the float graph is channel 7"),
        (
            lambda model: leave_out_bias(model, "wide_conv"),
            "the biases of 'wide_conv' are zero, and are not in the float",
        ),
        (lambda model: times(model, "sum_scale", 2), "the scale of the tensor 'sum' is twice what calibration chose"),
    ],
)
def test_the_graph_of_an_engine_that_waits_for_its_device_is_another(seal: Seal, change: Change, said: str) -> None:
    """It was found out on the device, after the engine was built there."""
    with pytest.raises(ParityError, match=f"jetson-orin-nano int8, which does not run here, is of .*\n.*{said}"):
        verified(seal(JETSON, "int8", change=change), layers=False)


def one_bias_is_nan(model: Any) -> None:
    rewrite(model, "head_b", lambda array: np.where(np.arange(5) == 4, np.nan, array))


def other_head(model: Any) -> None:
    rewrite(model, "head_w", lambda array: -array)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_head, r"is -\d.* dB from PyTorch on the golden inputs: it is of another model"),
        (one_bias_is_nan, "returned NaN or infinite values for 8 of 8 golden inputs"),
    ],
)
def test_the_graph_of_an_engine_that_waits_answers_the_golden_inputs(seal: Seal, change: Change, said: str) -> None:
    """What stays in float there is in no scale."""
    with pytest.raises(ParityError, match=f"the graph of jetson-orin-nano int8, which does not run here, {said}"):
        verified(seal(JETSON, "int8", change=change), layers=False)


def test_a_graph_of_an_engine_that_waits_with_other_outputs(seal: Seal) -> None:
    def four_classes(model: Any) -> None:
        for name in ("head_w", "head_b"):
            rewrite(model, name, lambda array: array[:4])
        model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 4

    said = r"nano/int8/model.onnx, the engine's graph, does not run the golden inputs: it answers with arrays of \[4\]"
    with pytest.raises(BundleError, match=said):
        verified(seal(JETSON, "int8", change=four_classes), layers=False)


def test_a_graph_of_an_engine_that_waits_which_only_the_device_can_compute(seal: Seal) -> None:
    def in_bfloat16(model: Any) -> None:
        node = next(each for each in model.graph.node if each.name == "head")
        for name in node.input[1:]:
            item = constant(model, name)
            item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item).astype(ml_dtypes.bfloat16), name))
        for each in (node.input, node.output):
            each[0] = f"{each[0]}_bf16"
        place, to, back = list(model.graph.node).index(node), node.input[0], node.output[0]
        casts = (
            helper.make_node("Cast", [to.removesuffix("_bf16")], [to], to=TensorProto.BFLOAT16),
            helper.make_node("Cast", [back], [back.removesuffix("_bf16")], to=TensorProto.FLOAT16),
        )
        model.graph.node.insert(place, casts[0])
        model.graph.node.insert(place + 2, casts[1])

    (engine,) = verified(seal(JETSON, "int8", change=in_bfloat16), layers=False).engines
    assert engine.graph_db is None and engine.graph_skipped.startswith("ONNX Runtime does not compute it here: ")
