"""What is refused before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgetl.config import Config
from edgetl.errors import ConfigError, TargetError
from edgetl.pipeline import engines
from edgetl.runtime.nvidia import this_machine

TARGETS = Path(__file__).parents[2] / "targets"


def check(device: str, precision: str, *, texts: bool = False, most: int = 1) -> None:
    task, backbone = ("text", "text:bilstm") if texts else ("image", "timm:resnet18")
    asked = Config.model_validate(
        {
            "schema": 1,
            "project": {"name": "p"},
            "data": {"task": f"{task}-classification", "manifest": "m.csv"},
            "model": {"backbone": backbone, "weights": "none"},
            "export": {"batch": {"min": 1, "max": most}},
            "target": [{"device": device, "precisions": [precision]}],
        }
    )
    engines.check_tools(asked, engines.candidates(asked), exported=True, compiled=True)


def test_an_accelerator_takes_one_batch_size_and_no_texts() -> None:
    check("jetson-agx-orin-dla", "fp16")
    with pytest.raises(ConfigError, match="jetson-agx-orin-dla is a DLA, which takes one batch size"):
        check("jetson-agx-orin-dla", "fp16", most=8)
    with pytest.raises(ConfigError, match="no dynamic shapes, and texts have no fixed length") as caught:
        check("jetson-agx-orin-dla", "fp16", texts=True)
    assert "without dla_core" in (caught.value.hint or "")
    check("jetson-agx-orin", "fp16", texts=True)


@pytest.mark.skipif(this_machine().is_jetson, reason="this machine is a Jetson")
def test_int8_for_an_accelerator_needs_a_tensorrt_that_takes_it(tmp_path: Path) -> None:
    shipped = (TARGETS / "jetson-agx-orin-dla.toml").read_text(encoding="utf-8")
    old = tmp_path / "old-dla.toml"
    old.write_text(shipped.replace('engine_version = "10.3"', 'engine_version = "8.5"'), encoding="utf-8")
    check("jetson-agx-orin-dla", "int8")
    check(str(old), "fp16")
    with pytest.raises(TargetError, match=r"needs TensorRT 10 or newer there, and 8\.5 is stated"):
        check(str(old), "int8")
