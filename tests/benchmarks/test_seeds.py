from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("scipy", reason="pip install 'edgetl[dev]'")

import seeds

from edgetl.errors import DataError


def written(folder: Path, name: str, tool: str, top1: float) -> None:
    engine = {"sqnr_db": 20.0 + top1, "typical_db": 25.0, "agreement": 0.9, "top1": top1, "top1_float": 0.8}
    engine |= {"lost": 3, "won": 1}
    facts = {"tool": tool, "onnxruntime": engine, "openvino": {"error": "no"}}
    (folder / f"{name}.{tool}.json").write_text(json.dumps(facts))


def test_a_row_is_of_every_training(tmp_path: Path) -> None:
    for name, top1 in (("m", 0.79), ("m@1", 0.80), ("m@2", 0.78)):
        written(tmp_path, name, "mine", top1)
    written(tmp_path, "m", "once", 0.7)
    (tmp_path / "m.model.json").write_text("{}")
    lines = seeds.table("m", [0, 1, 2], tmp_path).splitlines()
    (row,) = lines[2:]
    # Half the interval: 4.303 times a standard deviation of 1 point over the root of 3.
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        "ONNX Runtime", "mine", "-1.00", "-3.48 to +1.48", "3", "9", "0.900", "20.8", "25.0",
    ]  # fmt: skip


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    written(tmp_path, "m", "mine", 0.79)
    with pytest.raises(DataError, match="no results of m@1"):
        seeds.table("m", [0, 1], tmp_path)
    with pytest.raises(DataError, match="one training"):
        seeds.table("m", [0], tmp_path)
