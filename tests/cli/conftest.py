"""What tests of several commands share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgetl.bundle import sign, write
from edgetl.runtime.preprocessing import ImagePreprocessing

FOLDER = "engines/x86-64-cpu/fp32"


def _write_graph(path: Path, *nodes: Any) -> None:
    """Images times ones, and what becomes of that product."""
    import onnx

    make, float32 = onnx.helper, onnx.TensorProto.FLOAT
    graph = make.make_graph(
        [make.make_node("Flatten", ["image"], ["f"]), make.make_node("MatMul", ["f", "w"], ["product"]), *nodes],
        "g",
        [make.make_tensor_value_info("image", float32, ["batch", 3, 8, 8])],
        [make.make_tensor_value_info("logits", float32, ["batch", 2])],
        [
            onnx.numpy_helper.from_array(np.ones((192, 2), np.float32), "w"),
            onnx.numpy_helper.from_array(np.array(True), "true"),
        ],
    )
    onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=9), path)


@pytest.fixture(scope="session")
def answers() -> Callable[[Path], None]:
    """A function: writes a graph that answers."""
    onnx = pytest.importorskip("onnx")
    return lambda path: _write_graph(path, onnx.helper.make_node("Identity", ["product"], ["logits"]))


@pytest.fixture(scope="session")
def never_answers() -> Callable[[Path], None]:
    """A function: writes a graph with a loop that goes on while true is true."""
    onnx = pytest.importorskip("onnx")

    def write(path: Path) -> None:
        make, types = onnx.helper, onnx.TensorProto
        again = [make.make_node("Identity", ["go_on"], ["again"]), make.make_node("Identity", ["kept"], ["next"])]
        takes = [
            make.make_tensor_value_info("round", types.INT64, []),
            make.make_tensor_value_info("go_on", types.BOOL, []),
            make.make_tensor_value_info("kept", types.FLOAT, None),
        ]
        gives = [
            make.make_tensor_value_info("again", types.BOOL, []),
            make.make_tensor_value_info("next", types.FLOAT, None),
        ]
        body = make.make_graph(again, "body", takes, gives)
        _write_graph(path, make.make_node("Loop", ["", "true", "product"], ["logits"], body=body))

    return write


@pytest.fixture(scope="session")
def sealed() -> Callable[[Path, Callable[[Path], None]], Path]:
    """A function: a sealed bundle with three golden images, of ONNX Runtime's engine that is written to model.onnx."""

    def make(folder: Path, write_graph: Callable[[Path], None]) -> Path:
        (folder / FOLDER).mkdir(parents=True)
        write_graph(folder / FOLDER / "model.onnx")
        library = {"backend": "onnxruntime", "provider": "CPUExecutionProvider"}
        record = {**library, "files": ["model.onnx"], "status": "ready"}
        (folder / FOLDER / "engine.json").write_text(json.dumps(record))
        (folder / "golden").mkdir()
        contract = ImagePreprocessing(height=8, width=8)
        names = [f"{at}.png" for at in range(3)]
        for at, name in enumerate(names):
            Image.fromarray(np.full((32, 32, 3), 60 * at, np.uint8)).save(folder / "golden" / name)
        batch = contract.together([contract(folder / "golden" / name) for name in names])
        np.savez(folder / "golden" / "golden.npz", names=names, inputs=batch, outputs=batch.reshape(3, -1)[:, :2])
        engine = {
            **library, "target": "x86-64-cpu", "precision": "fp32", "folder": FOLDER, "status": "ready", "latency": {},
        }  # fmt: skip
        manifest = {
            "name": "tiny",
            "version": "1.0.0",
            "task": "image-classification",
            "labels": ["dark", "bright"],
            "preprocessing": contract.to_json(),
            "decision": {"kind": "largest"},
            "inputs": [{"name": "image", "batch": [1, 4]}],
            "engines": [engine],
        }
        key = folder.with_name("key.pem")
        sign.make_key(key)
        write.seal(folder, manifest, key)
        return folder

    return make
