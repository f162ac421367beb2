"""The null backend: the shapes of the graph, zeros, and no library."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgetl.backends import backend
from edgetl.backends.base import CompileRequest
from edgetl.errors import BundleError, UsageError
from edgetl.parity.compare import compare
from edgetl.specs import BatchRange, Target

pytest.importorskip("onnx_ir")


@pytest.fixture
def engine(small_graph: Callable[..., Path], here: Callable[..., Target], tmp_path: Path) -> Path:
    folder = tmp_path / "engine"
    folder.mkdir()
    request = CompileRequest(
        model=small_graph(), folder=folder, target=here(), precision="fp32", batch=BatchRange(min=1, max=8)
    )
    record = backend("null").compile(request)
    assert (record.status, record.backend, record.provider) == ("ready", "null", "CPUExecutionProvider")
    return folder


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_zeros_of_the_graphs_shapes(engine: Path, batch: int) -> None:
    with backend("null").open(engine) as runner:
        assert (runner.inputs[0].name, runner.inputs[0].shape, runner.inputs[0].dtype) == ("x", ("batch", 3), "float32")
        found = runner.run({"x": np.ones((batch, 3), np.float32)})
        assert runner.placement().share == 1.0
    assert list(found) == ["y"]
    assert backend("null").nodes(engine) == ()
    assert (found["y"].shape, found["y"].dtype) == ((batch, 2), np.float32)
    assert not found["y"].any()


def test_it_checks_its_feeds_like_a_real_one(engine: Path) -> None:
    with backend("null").open(engine) as runner, pytest.raises(UsageError, match=r"float32\[1, 9\]"):
        runner.run({"x": np.zeros((1, 9), np.float32)})


def test_it_runs_everywhere(here: Callable[..., Target]) -> None:
    assert backend("null").why_not_here(here(), "int8") is None
    assert backend("null").version() == "1"


def test_a_folder_without_a_record(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="holds no engine"):
        backend("null").open(tmp_path)


def test_parity_rejects_it(engine: Path) -> None:
    reference = np.tile(np.array([[0.0, 5.0]], np.float32), (500, 1))
    with backend("null").open(engine) as runner:
        outputs = runner.run({"x": np.ones((500, 3), np.float32)})["y"]
    found = compare(reference, np.asarray(outputs, np.float32), np.ones(500, int), max_drop=0.01, confidence=0.95)
    assert not found.passed
