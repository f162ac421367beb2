"""Engines whose answers depend on how far a text is filled up, and those whose answers do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("tokenizers")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from edgetl import backends, catalog  # noqa: E402
from edgetl.backends.base import CompileRequest  # noqa: E402
from edgetl.bundle import sign, write  # noqa: E402
from edgetl.errors import ParityError  # noqa: E402
from edgetl.pipeline.check import verify_bundle  # noqa: E402
from edgetl.pipeline.engines import open_graph  # noqa: E402
from edgetl.runtime.preprocessing.text import TextPreprocessing  # noqa: E402
from edgetl.specs import BatchRange  # noqa: E402

WORDS = [f"w{number}" for number in range(30)]
TEXTS = [" ".join(WORDS[number : number + 2 + 3 * (number % 4)]) for number in range(0, 16, 2)]


def contract() -> TextPreprocessing:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(
        models.WordLevel({"[PAD]": 0, "[UNK]": 1, **{w: n + 2 for n, w in enumerate(WORDS)}}, "[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return TextPreprocessing.from_tokenizer(tokenizer.to_str(), max_length=24, pad=0)


def network(path: Path, *, masked: bool) -> Path:
    """The mean of a text's words, or of what it was filled up with, too, and a layer."""
    random = np.random.default_rng(0)
    weights = {
        "table": random.normal(size=(32, 16)).astype(np.float32),
        "head": random.normal(size=(16, 3)).astype(np.float32),
        "pad": np.asarray(0, np.int64),
        "middle": np.asarray([1], np.int64),
        "last": np.asarray([2], np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["vectors"], name="embed"),
        helper.make_node("Equal", ["ids", "pad"], ["padding"], name="equal"),
        helper.make_node("Not", ["padding"], ["real"], name="not"),
        helper.make_node("Cast", ["real"], ["mask"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["mask", "middle"], ["count"], name="count", keepdims=1),
        helper.make_node("Unsqueeze", ["mask", "last"], ["mask_3"], name="wide"),
        helper.make_node("Mul", ["vectors", "mask_3"] if masked else ["vectors", "vectors"], ["kept"], name="keep"),
        helper.make_node("ReduceSum", ["kept", "middle"], ["sum"], name="sum", keepdims=0),
        helper.make_node("Div", ["sum", "count"], ["mean"], name="divide"),
        helper.make_node("MatMul", ["mean", "head"], ["y"], name="head_product"),
    ]
    made = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["N", "length"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def bundle(folder: Path, target: str, *, masked: bool) -> Path:
    chosen = catalog.target(target)
    if backends.backend(chosen.backend).version() is None:
        pytest.skip(f"{chosen.backend} is not installed")
    place = folder / "bundle" / "engines" / target / "fp32"
    place.mkdir(parents=True)
    model = network(folder / "bundle" / "model.onnx", masked=masked)
    record = backends.backend(chosen.backend).compile(
        CompileRequest(model=model, folder=place, target=chosen, precision="fp32", batch=BatchRange(min=1, max=8),
                       longest=24)
    )  # fmt: skip
    if record.status != "ready":
        pytest.skip(record.note)
    preprocessing = contract()
    (folder / "bundle" / "golden").mkdir()
    names = [f"{number}.txt" for number in range(len(TEXTS))]
    for name, text in zip(names, TEXTS, strict=True):
        (folder / "bundle" / "golden" / name).write_text(text, encoding="utf-8")
    inputs = preprocessing.together([preprocessing(text) for text in TEXTS])
    with open_graph(model) as runner:
        outputs = np.asarray(runner.run({"ids": inputs})["y"])
    np.savez(folder / "bundle" / "golden" / "golden.npz", names=np.array(names), inputs=inputs, outputs=outputs)
    engine = {
        "target": target, "precision": "fp32", "folder": f"engines/{target}/fp32", "backend": record.backend,
        "provider": record.provider, "status": record.status, "shipped": True, "note": "", "latency": {},
        "parity": {"agreement": 1.0},
    }  # fmt: skip
    manifest: dict[str, Any] = {
        "name": "texts", "version": "1.0.0", "task": "text-classification",
        "inputs": [{"name": "ids", "shape": ["batch", "length"], "dtype": "int64", "batch": [1, 8]}],
        "outputs": [{"name": "y", "shape": ["batch", 3], "dtype": "float32"}],
        "labels": ["a", "b", "c"], "decision": {"kind": "largest"},
        "preprocessing": json.loads(json.dumps(preprocessing.to_json())), "engines": [engine],
    }  # fmt: skip
    sign.make_key(folder / "key.pem")
    write.seal(folder / "bundle", manifest, folder / "key.pem")
    return folder / "bundle"


@pytest.mark.parametrize("target", ["x86-64-cpu", "intel-cpu"])
def test_padding_that_is_masked_changes_nothing(tmp_path: Path, target: str) -> None:
    (engine,) = verify_bundle(bundle(tmp_path, target, masked=True), layers=True).engines
    assert engine.agreeing == len(TEXTS)
    assert engine.layers is not None and not engine.layers.failed


@pytest.mark.parametrize("target", ["x86-64-cpu", "intel-cpu"])
def test_padding_that_is_taken_for_words_is_named(tmp_path: Path, target: str) -> None:
    with pytest.raises(ParityError, match=r"depend on how far an input is filled up: 8 samples in their own length"):
        verify_bundle(bundle(tmp_path, target, masked=False))
