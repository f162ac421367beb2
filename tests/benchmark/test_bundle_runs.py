"""Scenarios and stages of a bundle with a real engine."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgetl.benchmark import bundle_runs
from edgetl.benchmark.bundle_runs import Drive, EngineChoice, bench_scenario, bench_stages, rows
from edgetl.benchmark.peak_rate import PeakRate
from edgetl.benchmark.scenarios import ScenarioResult
from edgetl.benchmark.schedules import SCENARIOS, Plan
from edgetl.benchmark.stages import Stages
from edgetl.errors import UnknownNameError, UsageError
from edgetl.runtime.bundle import Bundle, Verified
from edgetl.runtime.preprocessing import ImagePreprocessing

SHORT: dict[str, Any] = {"min_duration_s": 0.05, "min_queries": 70}
FOLDER = "engines/x86-64-cpu/fp32"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A flatten and a matrix product behind the preprocessing of images; not sealed, for nothing here checks that."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    folder: Path = tmp_path_factory.mktemp("bundle")
    engine = folder / FOLDER
    engine.mkdir(parents=True)
    make, float32 = onnx.helper, onnx.TensorProto.FLOAT
    graph = make.make_graph(
        [make.make_node("Flatten", ["image"], ["f"]), make.make_node("MatMul", ["f", "w"], ["logits"])],
        "g",
        [make.make_tensor_value_info("image", float32, ["batch", 3, 8, 8])],
        [make.make_tensor_value_info("logits", float32, ["batch", 2])],
        [onnx.numpy_helper.from_array(np.ones((192, 2), np.float32), "w")],
    )
    onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=9), engine / "model.onnx")
    record = {"backend": "onnxruntime", "provider": "CPUExecutionProvider", "files": ["model.onnx"], "status": "ready"}
    (engine / "engine.json").write_text(json.dumps(record))
    (folder / "golden").mkdir()
    contract = ImagePreprocessing(height=8, width=8)
    names, inputs = [f"{at}.png" for at in range(3)], []
    for at, name in enumerate(names):
        path = folder / "golden" / name
        Image.fromarray(np.full((32, 32, 3), 60 * at, np.uint8)).save(path)
        inputs.append(contract(path))
    batch = contract.together(inputs)
    np.savez(folder / "golden" / "golden.npz", names=names, inputs=batch, outputs=batch.reshape(3, -1)[:, :2])
    manifest = {
        "labels": ["dark", "bright"],
        "preprocessing": contract.to_json(),
        "decision": {"kind": "largest"},
        "inputs": [{"name": "image", "batch": [1, 4]}],
        "files": {f"{FOLDER}/engine.json": {}, "golden/golden.npz": {}},
        "engines": [
            {
                "target": "x86-64-cpu", "precision": "fp32", "folder": FOLDER, "backend": "onnxruntime",
                "provider": "CPUExecutionProvider", "status": "ready", "latency": {},
            }
        ],
    }  # fmt: skip
    return Bundle(folder, manifest, Verified(files=0, signed_by=None))


def plan(scenario: str, **changes: Any) -> Plan:
    rate = {"rate_per_s": 500.0, "bound_ms": 500.0} if scenario in ("server", "fixed-rate") else {}
    return Plan(**{"scenario": scenario, **SHORT, **rate, **changes})


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_scenario_of_a_bundle(bundle: Bundle, scenario: str) -> None:
    per_query = 8 if scenario in ("multi-stream", "offline") else 1
    found = bench_scenario(bundle, plan(scenario, per_query=per_query), Drive(threads=1))
    assert isinstance(found, ScenarioResult)
    assert found.plan.samples == 3
    assert found.queries * per_query == found.times.samples >= 70
    shown = dict(rows(found))
    assert shown["driver"] == "edgetl"
    assert shown["samples per second"]
    assert ("p50" in shown) == (scenario != "offline")
    assert ("bound of 500 ms" in shown) == (scenario in ("server", "fixed-rate"))


def test_a_percentile_of_queries_that_are_alike_is_told_to_have_no_interval(bundle: Bundle) -> None:
    found = bench_scenario(bundle, plan("single-stream"), Drive(threads=1))
    assert isinstance(found, ScenarioResult)
    drifting = found.times.scheduled_ns + 1_000_000 + 1000 * np.arange(found.queries)
    slow = ScenarioResult(plan=found.plan, times=replace(found.times, ended_ns=drifting))
    assert set(slow.intervals_ms) <= {"p50"}
    assert "(no interval: too few queries are independent of each other)" in dict(rows(slow))["p90"]
    assert slow.to_json()["latency_ms"]["p90"] > 1


@pytest.mark.parametrize("count", [12, 200, 20_000])
def test_what_never_has_an_interval_is_not_told_why(bundle: Bundle, count: int) -> None:
    """Of 12 queries there are no intervals at all, however independent they are."""
    found = bench_scenario(bundle, plan("single-stream"), Drive(threads=1))
    assert isinstance(found, ScenarioResult)
    began = np.arange(count) * 10_000_000
    took = np.random.default_rng(count).integers(1_000_000, 2_000_000, count)
    times = replace(found.times, scheduled_ns=began, begun_ns=began, ended_ns=began + took, samples=count)
    shown = dict(rows(steady := ScenarioResult(plan=found.plan, times=times)))
    assert steady.intervals_ms.keys() == {12: set(), 200: {"p50", "p90"}}.get(count, {"p50", "p90", "p99", "p999"})
    assert all(
        ("95%" in value) == (name.replace("p99.9", "p999") in steady.intervals_ms)
        for name, value in shown.items()
        if name in {"mean", "min", "max", "p50", "p90", "p95", "p99", "p99.9"}
    )
    assert {"mean", "min", "max", "p50"} <= shown.keys() and ("p95" in shown) == (count > 12)
    assert not [name for name, value in shown.items() if "no interval" in value]
    drifting = replace(times, ended_ns=began + 1_000_000 + 1000 * np.arange(count))
    told = dict(rows(ScenarioResult(plan=found.plan, times=drifting)))
    assert not [name for name in ("mean", "min", "max", "p95") if "no interval" in told.get(name, "")]


def test_the_highest_rate(bundle: Bundle) -> None:
    wanted = plan("server", min_queries=459, min_duration_s=0.0, rate_per_s=2000.0)
    found = bench_scenario(bundle, wanted, Drive(threads=1, find_rate=True))
    assert isinstance(found, PeakRate)
    assert found.runs[0].plan.rate_per_s == 2000.0
    assert dict(rows(found))["runs"] == str(len(found.runs))


def test_loadgen_drives_a_bundle(bundle: Bundle) -> None:
    pytest.importorskip("mlperf_loadgen")
    found = bench_scenario(bundle, plan("single-stream"), Drive(threads=1, loadgen=True))
    assert dict(rows(found))["driver"].startswith("MLPerf LoadGen")


def test_stages_of_a_bundle(bundle: Bundle) -> None:
    found = bench_stages(bundle, EngineChoice(threads=1), samples=30)
    assert isinstance(found, Stages)
    names = [name for name, _ in rows(found)]
    assert names[:5] == ["decode", "preprocess", "compute", "postprocess", "whole"]
    assert bench_stages(bundle, source=bundle.folder / "golden" / "2.png", samples=3).samples == 3


def test_what_does_not_fit_together(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="in the scenario server"):
        bench_scenario(bundle, plan("offline"), Drive(find_rate=True))
    with pytest.raises(UsageError, match="in the scenario server"):
        bench_scenario(bundle, plan("server"), Drive(find_rate=True, loadgen=True))
    with pytest.raises(UnknownNameError, match="no engine for mars"):
        bench_scenario(bundle, plan("server"), Drive(target="mars"))
    with pytest.raises(UsageError, match="at least one sample"):
        bench_stages(bundle, samples=0)


def test_warming_up_an_engine_of_slow_queries_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline queries of thousands of samples take seconds each: forty of them were made before the run."""
    monkeypatch.setattr(bundle_runs, "_WARMUP_S", 0.05)
    asked: list[int] = []

    def issue(indices: Sequence[int]) -> None:
        asked.append(len(indices))
        time.sleep(0.03)

    took_ms = bundle_runs._warm(issue, Plan(scenario="offline", per_query=64))
    assert 2 <= len(asked) <= 6 and set(asked) == {64}
    assert took_ms >= 30
