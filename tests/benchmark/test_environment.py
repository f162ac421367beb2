"""What a measurement was made on."""

from __future__ import annotations

import json

import pytest

from edgetl.benchmark import environment


def test_the_environment_is_plain_json_and_knows_this_machine() -> None:
    found = environment.environment()
    assert json.loads(json.dumps(found)) == found
    assert found["cores"] >= 1
    assert found["cpu"]
    assert "numpy" in found["versions"]
    assert environment.load_average() >= 0


def test_no_nvidia_smi_means_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert environment.gpu_names() == []
