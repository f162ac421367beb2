"""Stages: sums of simulated times, and a real engine behind a bundle's preprocessing."""

from __future__ import annotations

import io
import json
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgetl.benchmark.stages import STAGES, add_up, measure_stages
from edgetl.errors import DataError, UsageError
from edgetl.runtime.bundle import Bundle, EngineEntry, Predictor, Verified
from edgetl.runtime.preprocessing import ImagePreprocessing
from edgetl.runtime.runner import TensorSpec

US = 1000
ON_A_CPU = {"decode": 400 * US, "preprocess": 100 * US, "compute": 450 * US, "postprocess": 50 * US}


def test_stages_that_add_up() -> None:
    found = add_up([ON_A_CPU] * 5, [1_010 * US] * 5)
    assert found.sum_ns == 1_000 * US
    assert found.gap == pytest.approx(-0.0099, abs=1e-4)
    assert found.adds_up
    assert found.note == ""
    document = json.loads(json.dumps(found.to_json()))
    assert list(document["stages_ms"]) == list(ON_A_CPU)  # a CPU has no copies, not copies of 0
    assert document["shares"]["decode"] == 0.4
    assert document["whole_ms"] == 1.01


def test_stages_that_do_not_add_up_are_said() -> None:
    found = add_up([ON_A_CPU], [1_030 * US])
    assert not found.adds_up
    assert "add up to 1.000 ms, and the whole takes 1.030 ms (-2.9%)" in found.note


def test_stages_come_in_their_order() -> None:
    shuffled = dict.fromkeys(reversed(STAGES), 1)
    assert list(add_up([shuffled], [6]).stages_ns) == list(STAGES)


@given(
    st.lists(st.tuples(*[st.integers(1, 10**9)] * 4), min_size=1, max_size=60),
    st.lists(st.integers(1, 10**9), min_size=1, max_size=60),
)
def test_stages_of_the_middle_half_add_up_to_its_mean(times: list[tuple[int, ...]], whole: list[int]) -> None:
    found = add_up([dict(zip(ON_A_CPU, one, strict=True)) for one in times], whole)
    totals = sorted(map(sum, times))
    middle = totals[len(totals) // 4 : len(totals) - len(totals) // 4]
    assert found.sum_ns == pytest.approx(sum(middle) / len(middle), abs=4)
    assert min(whole) - 1 <= found.whole_ns <= max(whole) + 1


def test_an_answer_in_which_something_else_had_the_processor_changes_nothing() -> None:
    spoiled = [{**ON_A_CPU, stage: 10**9} for stage in ON_A_CPU]
    found = add_up([ON_A_CPU] * 16 + spoiled, [1_000 * US] * 20)
    assert found.stages_ns == ON_A_CPU
    assert found.adds_up


@pytest.mark.parametrize(
    ("staged", "whole", "words"),
    [
        ([], [1], "at least one"),
        ([ON_A_CPU], [], "at least one"),
        ([{"think": 1}], [1], "no stage 'think'"),
        ([ON_A_CPU, {"decode": 1}], [1], "different stages"),
    ],
)
def test_answers_that_cannot_be_summarised(staged: Any, whole: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        add_up(staged, whole)


# --- a bundle --------------------------------------------------------------------------------------------------------


class Ticking:
    """A clock that is a microsecond later whenever somebody looks."""

    def __init__(self) -> None:
        self._ticks = count()

    def __call__(self) -> int:
        return next(self._ticks) * US


class Plain:
    """An engine that doubles its input."""

    inputs = (TensorSpec(name="image", shape=("batch", 3, 8, 8), dtype="float32"),)
    outputs = (TensorSpec(name="logits", shape=("batch", 2), dtype="float32"),)

    def run(self, feeds: Any) -> dict[str, Any]:
        return {"logits": feeds["image"].reshape(len(feeds["image"]), -1)[:, :2] * 2}

    def __enter__(self) -> Plain:
        return self

    def __exit__(self, *_: object) -> None: ...


class Accelerator(Plain):
    """The same with a memory of its own, which tells its copies apart if asked."""

    def run_apart(self, feeds: Any) -> tuple[dict[str, Any], dict[str, int]]:
        return self.run(feeds), {"host-to-device": 300, "device-to-host": 100}


def bundle(decision: dict[str, Any]) -> Bundle:
    manifest = {
        "labels": ["dark", "bright"],
        "preprocessing": ImagePreprocessing(height=8, width=8).to_json(),
        "decision": decision,
        "engines": [],
        "inputs": [{"batch": [1, 4]}],
    }
    return Bundle(Path(), manifest, Verified(files=0, signed_by=None))


ENTRY = EngineEntry(
    target="x86-64-cpu", precision="fp32", folder="engines", backend="onnxruntime", provider="CPUExecutionProvider",
    status="ready", latency={},
)  # fmt: skip
LARGEST = {"kind": "largest"}


@pytest.fixture
def photo() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (240, 320, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def test_an_engine_without_a_memory_of_its_own_has_no_copies(photo: bytes) -> None:
    predictor = Predictor(bundle(LARGEST), ENTRY, Plain())  # type: ignore[arg-type]
    answers, stages = predictor.answer_in_stages(photo, Ticking())
    assert stages == {"decode": US, "preprocess": US, "compute": US, "postprocess": US}
    assert answers == predictor.answer(photo) == predictor.predict([photo])


def test_copies_are_apart_from_compute(photo: bytes) -> None:
    predictor = Predictor(bundle(LARGEST), ENTRY, Accelerator())  # type: ignore[arg-type]
    answers, stages = predictor.answer_in_stages(photo, Ticking())
    assert tuple(stages) == STAGES
    assert (stages["host-to-device"], stages["compute"], stages["device-to-host"]) == (300, 600, 100)
    assert sum(stages.values()) == 4 * US  # to the nanosecond, whatever is apart
    assert answers == predictor.predict([photo])


def test_a_model_that_embeds_has_no_postprocessing(photo: bytes) -> None:
    decision = {"kind": "similarity", "threshold": 0.5}
    predictor = Predictor(bundle(decision), ENTRY, Plain())  # type: ignore[arg-type]
    embedding, stages = predictor.answer_in_stages(photo)
    assert list(stages) == ["decode", "preprocess", "compute"]
    assert np.array_equal(np.asarray(embedding), np.asarray(predictor.answer(photo)))


def test_a_simulated_clock_adds_up_to_the_whole(photo: bytes) -> None:
    predictor = Predictor(bundle(LARGEST), ENTRY, Plain())  # type: ignore[arg-type]
    found = measure_stages(predictor, photo, samples=7, warmup=2, now=Ticking())
    assert (found.samples, found.sum_ns, found.whole_ns) == (7, 4 * US, US)  # an answer is looked at once, at its end
    assert not found.adds_up


@pytest.mark.parametrize(("samples", "warmup"), [(0, 1), (-1, 1), (3, -1)])
def test_no_samples(photo: bytes, samples: int, warmup: int) -> None:
    predictor = Predictor(bundle(LARGEST), ENTRY, Plain())  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="at least one sample"):
        measure_stages(predictor, photo, samples=samples, warmup=warmup)


def test_an_input_that_cannot_be_read() -> None:
    predictor = Predictor(bundle(LARGEST), ENTRY, Plain())  # type: ignore[arg-type]
    with pytest.raises(DataError, match="not an image"):
        measure_stages(predictor, b"not an image", samples=3)


def test_a_real_engine(photo: bytes, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from edgetl.runtime.onnxruntime import OnnxRuntimeRunner

    make, float32 = onnx.helper, onnx.TensorProto.FLOAT
    weights = onnx.numpy_helper.from_array(np.ones((192, 2), np.float32), "w")
    graph = make.make_graph(
        [make.make_node("Flatten", ["image"], ["f"]), make.make_node("MatMul", ["f", "w"], ["logits"])],
        "g",
        [make.make_tensor_value_info("image", float32, ["batch", 3, 8, 8])],
        [make.make_tensor_value_info("logits", float32, ["batch", 2])],
        [weights],
    )
    onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=9), tmp_path / "m.onnx")
    with Predictor(bundle(LARGEST), ENTRY, OnnxRuntimeRunner(tmp_path / "m.onnx", threads=1)) as predictor:
        found = measure_stages(predictor, photo, samples=50)
    assert list(found.stages_ns) == ["decode", "preprocess", "compute", "postprocess"]
    assert min(found.stages_ns.values()) > 0
    assert 0.01 < found.sum_ns / found.whole_ns < 100  # on a machine that does other things, too
