"""Defects around an engine: other inputs, outputs, batches, labels or graphs are named as what they are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from onnx import helper, numpy_helper  # noqa: E402
from sealed import CONTRACT, LABELS, ORT, Change, Parts, Seal, constant, rewrite, sealed_again, verified  # noqa: E402

from edgetl.errors import BundleError, ParityError  # noqa: E402
from edgetl.runtime.preprocessing import ImagePreprocessing  # noqa: E402


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


def test_a_bundle_without_a_float_graph(seal: Seal, parts: Parts) -> None:
    bundle = seal(ORT, "int8")
    (bundle / "model.onnx").unlink()
    checked = verified(sealed_again(bundle, parts))
    assert checked.graph_db is None and checked.graph_skipped == "the bundle has none"
    assert checked.engines[0].layers_skipped == "the bundle has no model.onnx, the float graph"
