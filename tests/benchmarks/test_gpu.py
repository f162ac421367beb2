"""benchmarks/gpu.py up to where a GPU is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import gpu
import pytest

from edgetl.benchmark import environment
from edgetl.config.reading import load


def test_the_project_has_the_targets_that_were_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("mlxtend")
    config = load(gpu.project(tmp_path, ["nvidia-gpu", "rtx-pc"]))
    assert [entry.device for entry in config.target] == ["nvidia-gpu", "rtx-pc"]
    assert config.model.backbone == "timm:tf_efficientnet_lite0"


@pytest.mark.parametrize(
    ("name", "file"),
    [("NVIDIA H200, 575.57.08", "nvidia-h200"), ("Intel(R) Xeon(R) @ 2.50GHz", "intel-r-xeon-r-2-50ghz")],
)
def test_the_file_is_named_after_the_gpu(name: str, file: str) -> None:
    assert gpu.slug(name) == file


def test_without_a_gpu_it_says_so_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "gpu_names", list)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit, match="no NVIDIA GPU here; --target x86-64-vnni"):
        gpu.main()
