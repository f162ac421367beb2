"""The finished bundle is checked as `edgetl verify` checks it, before anybody can have it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import helper, numpy_helper  # noqa: E402

from edgetl import config  # noqa: E402
from edgetl.backends.base import CompileRequest, EngineRecord  # noqa: E402
from edgetl.backends.onnxruntime import OnnxRuntimeBackend  # noqa: E402
from edgetl.errors import ParityError  # noqa: E402
from edgetl.pipeline import publish  # noqa: E402
from edgetl.pipeline.build import build  # noqa: E402
from edgetl.store import Store  # noqa: E402

pytestmark = pytest.mark.slow
Change = Callable[[Any], None]


def over_the_batch(model: Any, beyond: int = 1) -> None:
    """y + f · (y - mean of the batch), where f is the batch's size less ``beyond``, or 0: one sample alone is right."""
    (output,) = model.graph.output
    for node in model.graph.node:
        node.output[:] = ["y0" if name == output.name else name for name in node.output]
        node.input[:] = ["y0" if name == output.name else name for name in node.input]
    constants = {"axis0": np.asarray([0], np.int64), "first": np.asarray(0, np.int64),
                 "beyond": np.asarray(beyond, np.float32)}  # fmt: skip
    model.graph.initializer.extend([numpy_helper.from_array(array, name) for name, array in constants.items()])
    model.graph.node.extend([
        helper.make_node("ReduceMean", ["y0", "axis0"], ["centre"]),
        helper.make_node("Sub", ["y0", "centre"], ["apart"]),
        helper.make_node("Shape", ["y0"], ["sizes"]),
        helper.make_node("Gather", ["sizes", "first"], ["size"]),
        helper.make_node("Cast", ["size"], ["count"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Sub", ["count", "beyond"], ["more"]),
        helper.make_node("Relu", ["more"], ["factor"]),
        helper.make_node("Mul", ["apart", "factor"], ["share"]),
        helper.make_node("Add", ["y0", "share"], [output.name]),
    ])  # fmt: skip


def twice_a_scale(model: Any) -> None:
    """Of the first layer's weights; the network's answers may well stay as they are."""
    node = next(node for node in model.graph.node if node.op_type in ("Conv", "ConvInteger"))
    scale = next(each for each in model.graph.node if node.input[1] in each.output).input[1]
    item = next(each for each in model.graph.initializer if each.name == scale)
    item.CopyFrom(numpy_helper.from_array(np.asarray(numpy_helper.to_array(item) * 2, np.float32), scale))


@pytest.fixture
def builds(variant: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Build the small project for a processor and one precision, whose engine has a defect."""

    def run(change: Change, precision: str = "fp32", **more: Any) -> Any:
        compile_ = OnnxRuntimeBackend.compile

        def changed(self: OnnxRuntimeBackend, request: CompileRequest) -> EngineRecord:
            record = compile_(self, request)
            model = onnx.load(request.folder / "model.onnx")
            change(model)
            onnx.save(model, request.folder / "model.onnx")
            return record

        monkeypatch.setattr(OnnxRuntimeBackend, "compile", changed)
        variant.edit(('precisions = ["int8", "fp32"]', f'precisions = ["{precision}"]'))
        return build(
            config.load(variant.config), Store(variant.store), targets=("x86-64-cpu",), force=frozenset({"compile"}),
            **more,
        )  # fmt: skip

    return run


@pytest.mark.parametrize(("beyond", "size"), [(1, 8), (6, 8)])
def test_an_engine_that_is_wrong_in_batches_is_refused_by_cause(
    builds: Callable[..., Any], variant: Any, beyond: int, size: int
) -> None:
    delivered: list[Path] = []
    with pytest.raises(ParityError, match=rf"depend on what else is in a batch: {size} samples at once") as caught:
        builds(lambda model: over_the_batch(model, beyond), on_report=delivered.append)
    assert caught.value.exit_code == 4
    assert caught.value.message.startswith(
        "the finished bundle is not what was proven:\n  x86-64-cpu fp32: its answers"
    )
    variant.assert_unpublished()
    (reports,) = delivered
    assert "the finished bundle is not what was proven" in (reports / "report.html").read_text(encoding="utf-8")
    # No gate of an engine tells of it: the reports have the cause, and what servers go by has a failure.
    (failure,) = ElementTree.parse(reports / "junit.xml").getroot().iter("failure")
    assert f"depend on what else is in a batch: {size} samples at once" in failure.get("message", "")
    results = json.loads((reports / "report.sarif").read_text(encoding="utf-8"))["runs"][0]["results"]
    assert [each["message"]["text"] for each in results if each["level"] == "error"] == [failure.get("message")]


def test_a_batch_that_is_larger_than_the_golden_inputs_is_tried(builds: Callable[..., Any], variant: Any) -> None:
    """All is right as far as the golden inputs go."""
    variant.edit(("batch = { min = 1, max = 8 }", "batch = { min = 1, max = 20 }"))
    with pytest.raises(ParityError, match="depend on what else is in a batch: 20 samples at once"):
        builds(lambda model: over_the_batch(model, 8))
    variant.assert_unpublished()


def test_a_batch_that_the_engine_does_not_run_is_named(builds: Callable[..., Any], variant: Any) -> None:
    def only_four(model: Any) -> None:
        (output,) = model.graph.output
        for node in model.graph.node:
            node.output[:] = ["y0" if name == output.name else name for name in node.output]
        # Of a batch of more than four the last one's index is out of range.
        constants = {"four": np.zeros(4, np.float32), "first": np.asarray(0, np.int64), "less": np.asarray(-1)}
        model.graph.initializer.extend([numpy_helper.from_array(array, name) for name, array in constants.items()])
        model.graph.node.extend([
            helper.make_node("Shape", ["y0"], ["sizes"]),
            helper.make_node("Gather", ["sizes", "first"], ["size"]),
            helper.make_node("Add", ["size", "less"], ["last"]),
            helper.make_node("Gather", ["four", "last"], ["nothing"]),
            helper.make_node("Add", ["y0", "nothing"], [output.name]),
        ])  # fmt: skip

    delivered: list[Path] = []
    with pytest.raises(ParityError, match="does not run the batch of 8 that it was built for") as caught:
        builds(only_four, on_report=delivered.append)
    assert caught.value.hint == "a smaller export.batch.max" and len(delivered) == 1
    variant.assert_unpublished()


def test_twice_a_scale_is_named_though_parity_is_kept(builds: Callable[..., Any], variant: Any) -> None:
    variant.edit(("max_drop = 0.05", 'max_drop = 1.0\nundecided = "allow"'))
    with pytest.raises(ParityError, match="are twice those of the float graph: their scale is") as caught:
        builds(twice_a_scale, "int8")
    assert caught.value.exit_code == 4
    variant.assert_unpublished()


def test_labels_in_another_order_than_the_network_was_trained_with(
    builds: Callable[..., Any], variant: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = publish._manifest
    monkeypatch.setattr(publish, "_manifest", lambda *given: {**manifest(*given), "labels": ["cross", "box", "disc"]})
    with pytest.raises(ParityError, match="output 0 is 'cross' there, and was 'box'") as caught:
        builds(lambda model: None)
    assert caught.value.exit_code == 4
    variant.assert_unpublished()


def test_what_is_right_is_published_and_told(builds: Callable[..., Any], variant: Any) -> None:
    class Told:
        notes: list[str] = []  # noqa: RUF012

        def started(self, stage: str, what: str) -> None: ...
        def finished(self, stage: str, what: str, *, cached: bool, seconds: float) -> None: ...
        def progress(self, what: str, done: int, total: int) -> None: ...
        def note(self, text: str) -> None:
            self.notes.append(text)

    done = builds(lambda model: None, reporter=Told())
    assert done.bundle == variant.bundle and variant.bundle.exists()
    golden = len(np.load(variant.bundle / "golden" / "golden.npz")["names"])
    said = f"x86-64-cpu fp32 in the bundle: {golden} of {golden} golden inputs as PyTorch, batches of 1 to 8"
    assert said in Told.notes
    assert json.loads((variant.bundle / "manifest.json").read_text())["engines"]
