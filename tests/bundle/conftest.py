"""A small bundle with every kind of file but a real engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgetl.bundle import sign, write
from edgetl.runtime.preprocessing import ImagePreprocessing

LABELS = ["cat", "dog", "Zürich"]


def bundle_manifest() -> dict[str, Any]:
    def engine(target: str, precision: str, status: str, p50_ms: float | None) -> dict[str, Any]:
        return {
            "target": target, "precision": precision, "folder": f"engines/{target}/{precision}",
            "backend": "onnxruntime", "provider": "CPUExecutionProvider", "status": status, "shipped": True,
            "note": "" if status == "ready" else "trtexec on the device",
            "latency": {} if p50_ms is None else {"p50_ms": p50_ms},
        }  # fmt: skip

    return {
        "name": "pets",
        "version": "1.0.0",
        "task": "image-classification",
        "inputs": [{"name": "x", "shape": ["batch", 3, 8, 8], "dtype": "float32", "batch": [1, 4]}],
        "labels": LABELS,
        "preprocessing": ImagePreprocessing(height=8, width=8).to_json(),
        "decision": {"kind": "largest"},
        "engines": [
            engine("slow-cpu", "fp32", "ready", 9.5),
            engine("fast-cpu", "int8", "ready", 2.5),
            engine("other-cpu", "int8", "built", None),
            engine("jetson", "int8", "build-on-device", None),
        ],
    }


@pytest.fixture(scope="session")
def signing_key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A private key; its public half is beside it."""
    path = tmp_path_factory.mktemp("keys") / "key.pem"
    sign.make_key(path)
    return path


@pytest.fixture
def make_bundle(tmp_path: Path, signing_key: Path) -> Callable[..., Path]:
    """A function: name, content of model.onnx, changes of the manifest → sealed bundle."""

    def make(name: str = "pets-1.0.0", model: bytes = b"not a real graph", **changes: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "model.onnx").write_bytes(model)
        manifest = bundle_manifest() | changes
        for engine in manifest["engines"]:
            place = folder / engine["folder"]
            place.mkdir(parents=True)
            record = {key: engine[key] for key in ("backend", "provider", "status")} | {"files": ["model.bin"]}
            (place / "engine.json").write_text(json.dumps({"schema": 1, **record}), encoding="utf-8")
            (place / "model.bin").write_bytes(bytes(range(256)))
        (folder / "golden").mkdir()
        (folder / "golden" / "a.png").write_bytes(b"an image")
        np.savez(
            folder / "golden" / "golden.npz",
            names=np.array(["a.png"]),
            inputs=np.zeros((1, 3, 8, 8), np.float32),
            outputs=np.ones((1, 3), np.float32),
        )
        write.seal(folder, manifest, signing_key)
        return folder

    return make
