"""What a measurement was made on."""

from __future__ import annotations

import json

import pytest

from edgetl.benchmark import environment
from edgetl.benchmark.sensors import load
from edgetl.benchmark.sensors.reading import Reading


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


@pytest.mark.parametrize(("quota", "cores"), [(None, 16), (0.5, 1), (2.0, 2), (2.5, 3), (64.0, 16)])
def test_a_quota_of_processor_time_counts_as_so_many_processors(
    quota: float | None, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`docker run --cpus 2` leaves the affinity as it is: sixteen threads would be held back most of the time."""
    why = "" if quota else "there is none"
    reading = Reading(name="cgroup.quota", value=quota, source="cpu.max", why=why)
    monkeypatch.setattr(load, "quota", lambda: reading)
    monkeypatch.setattr(environment, "allowed_cpus", lambda: tuple(range(16)))
    assert environment.usable_cores() == cores
