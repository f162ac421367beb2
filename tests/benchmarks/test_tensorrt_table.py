from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("onnx_ir", reason="pip install 'edgetl[export]'")
pytest.importorskip("onnxruntime", reason="pip install 'edgetl[onnxruntime]'")
pytest.importorskip("openvino", reason="pip install 'edgetl[openvino]'")

import tensorrt_graphs


def written(results: Path, scheme: str, recipe: str, **facts: object) -> None:
    place = results / f"resnet18-digits.{scheme}.{recipe}.json"
    place.write_text(json.dumps({"version": "1.7", "calibration": 100, **facts}))


def test_rows_tell_what_was_accepted_refused_and_never_asked(tmp_path: Path) -> None:
    written(tmp_path, "tensorrt", "int8-mse", refusals=[], shares={"int8": 0.9999, "fp16": 0.0001}, sqnr_db=37.23)
    written(tmp_path, "tensorrt-dla", "int8-mse", refusals=["node 'a' (Add, number 3): no |\nkernel"])
    written(tmp_path, "tensorrt-dla", "int8-mse-corrected", error="the scale is too small")
    written(tmp_path, "tensorrt", "fp16", refusals=[], shares={"fp16": 1.0}, sqnr_db=73.4)
    table = tensorrt_graphs.table(tmp_path)
    rows = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("| resnet18")]
    assert [[cell.strip() for cell in row][1:] for row in rows] == [
        ["tensorrt", "int8-mse", "accepted", "99.9%", "0%", "37.2", "-"],
        ["tensorrt-dla", "int8-mse", "refused", "-", "-", "-", "node 'a' (Add, number 3): no / kernel"],
        ["tensorrt-dla", "int8-mse-corrected", "not asked", "-", "-", "-", "the scale is too small"],
        ["both", "fp16", "accepted", "0%", "100%", "73.4", "-"],
    ]
    assert "TensorRT-RTX 1.7," in table and "100\ncalibration samples" in table


def test_transformers_are_smoothed_too() -> None:
    assert "int8-smoothquant" in tensorrt_graphs.recipes_of("vit-tiny-digits")
    assert "int8-smoothquant" not in tensorrt_graphs.recipes_of("resnet18-digits")
