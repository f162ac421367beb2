"""What tests of several commands share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgetl.bundle import sign, write
from edgetl.runtime.preprocessing import ImagePreprocessing

FOLDER = "engines/x86-64-cpu/fp32"


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
