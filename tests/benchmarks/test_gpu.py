"""benchmarks/gpu.py: its whole path, on the processor where there is no GPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu
import pytest

from edgetl import catalog, tomlfile
from edgetl.backends.tensorrt_rtx import TensorRTRTXBackend
from edgetl.benchmark import environment
from edgetl.config.reading import load
from edgetl.runtime.nvidia import Gpu, Machine


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
    with pytest.raises(SystemExit, match="no NVIDIA GPU here; --target x86-64-vnni"):
        gpu.main([])


def test_tensorrt_is_a_target_where_it_is_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    card = Gpu(index=0, name="NVIDIA H200", compute_capability="9.0")
    machine = Machine(architecture="x86_64", is_jetson=False, gpus=(card,), cuda_version="13.0", problem="")
    monkeypatch.setattr(gpu, "this_machine", lambda: machine)
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    assert gpu.tensorrt(tmp_path) == []
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: name)
    (path,) = gpu.tensorrt(tmp_path)
    target = catalog.target(path)
    assert (target.name, target.backend, target.hardware.compute_capability) == (
        "tensorrt-here", "tensorrt", ("9.0",)
    )  # fmt: skip


@pytest.mark.slow
def test_it_writes_parity_latency_conditions_and_throughput(
    make_project: Callable[..., Any],
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for name in ("OMP_NUM_THREADS", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, environment[name])
    project = make_project(tmp_path / "project")
    head, *targets = project.config.read_text(encoding="utf-8").split("[[target]]")
    project.config.write_text(f"{head}[[target]]{targets[0]}", encoding="utf-8")
    project.edit(("roofline = false", "roofline = true"))
    given = ["--config", project.config, "--target", "x86-64-cpu", "--seconds", "0.2", "--results", tmp_path / "found"]
    gpu.main([str(each) for each in given])
    (file,) = (tmp_path / "found").iterdir()
    found = json.loads(file.read_text(encoding="utf-8"))
    assert set(found["parity"]) == {"x86-64-cpu int8", "x86-64-cpu fp32"}
    for parity in found["parity"].values():
        assert parity["drop_lower"] <= parity["drop"] <= parity["drop_upper"] < 0.05
        assert parity["confidence"] == 0.95 and parity["samples"] == 102
    assert set(found["latency"]) > set(found["parity"])
    assert all(latency["p50_ms"] > 0 for latency in found["latency"].values())
    sampled = {series["name"]: series for series in found["conditions"]["series"]}
    assert sampled["cpu.busy"]["source"] and found["conditions"]["load"]["own"] > 0
    assert set(found["energy"]) == set(found["latency"]) and all(found["energy"].values())
    assert [phase["train"] for phase in found["training"]] == ["head", "all"]
    assert all(phase["images_per_s"] > 0 and phase["device"] for phase in found["training"])
    assert found["environment"]["threads"] == 1 and found["created"] and found["seconds"] > 0
    (shipped,) = [engine for engine in found["engines"].values() if engine["shipped"]]
    assert shipped["single-stream"]["latency_ms"]["p50"] > 0 and shipped["offline"]["samples_per_s"] > 0
    assert shipped["fixed-rate"]["queries"] >= 64
    assert shipped["stages"]["stages_ms"]["compute"] > 0
    assert shipped["layers"].startswith("SQNR ")
    for roofline in found["roofline"].values():
        assert len(roofline["layers"]) <= gpu.LAYERS
    assert not (project.folder / ".edgetl").exists() and not project.bundle.exists()


def test_a_target_that_there_is_not_is_said(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="nope"):
        gpu.main(["--target", "nope", "--results", str(tmp_path / "found")])
    assert not (tmp_path / "found").exists()


def test_a_project_is_built_without_the_engines_that_cannot_be(tmp_path: Path) -> None:
    file = tmp_path / "edgetl.toml"
    file.write_text(PROJECT, encoding="utf-8")
    (first, offered), (second, precisions) = gpu.asked(file, [])
    assert (offered, precisions) == (("int8", "fp32"), catalog.target("intel-cpu-vnni").precisions)
    assert gpu.asked(file, ["x86-64-cpu"]) == [(first, offered)]
    assert gpu.asked(tmp_path / "none.toml", []) == gpu.asked(file, ["nope"]) == []
    flag, value = gpu.only([(first, ["fp32"]), (second, precisions)])
    assert flag == "--set"
    key, _, text = value.partition("=")
    kept = load(file, {key: text}).target
    assert [(each.device, each.precisions, each.budget) for each in kept] == [
        ("x86-64-cpu", ("fp32",), first.budget), ("intel-cpu-vnni", precisions, second.budget)
    ]  # fmt: skip
    assert first.budget.p90_ms == 5.5
    odd = 'größe/\U0001f600 "2".toml'
    file.write_text(gpu.only([(first.model_copy(update={"device": odd}), ["fp32"])])[1], encoding="utf-8")
    assert tomlfile.read(file)["target"][0]["device"] == odd


PROJECT = """\
schema = 1
project = { name = "two", version = "1" }
data = { manifest = "manifest.csv" }

[[target]]
device = "x86-64-cpu"
precisions = ["int8", "fp32"]
budget = { p90_ms = 5.5 }

[[target]]
device = "intel-cpu-vnni"
"""

HOPPER = """\
schema = 1
description = "A GPU that TensorRT for RTX does not build for"
backend = "tensorrt_rtx"
provider = "GPU"
scheme = ""
precisions = ["fp16"]
built_on_device = false

[hardware]
architecture = "x86-64"
processor = "H200"
compute_capability = ["9.0"]
"""


@pytest.mark.slow
def test_a_target_that_cannot_be_built_costs_the_others_nothing(
    variant: Any, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx_libs")
    for name in ("OMP_NUM_THREADS", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, environment[name])
    hopper = tmp_path / "hopper.toml"
    hopper.write_text(HOPPER, encoding="utf-8")
    head, *_ = variant.config.read_text(encoding="utf-8").split("[[target]]")
    two = f'[[target]]\ndevice = "{hopper}"\n\n[[target]]\ndevice = "x86-64-cpu"\nprecisions = ["fp32"]\n'
    variant.config.write_text(head + two, encoding="utf-8")
    given = ["--config", variant.config, "--target", hopper, "--target", "x86-64-cpu", "--seconds", "0.1"]
    given += ["--store", variant.store]
    with pytest.raises(SystemExit, match=r"edgetl build ended with exit code 6: 'hopper' has compute capability 9\.0"):
        gpu.main([str(each) for each in [*given, "--results", tmp_path / "found"]])
    (file,) = (tmp_path / "found").iterdir()
    found = json.loads(file.read_text(encoding="utf-8"))
    assert "exit code 6" in found["left_out"]["hopper fp16"] and len(found["failures"]) == 1
    assert found["engines"]["x86-64-cpu fp32"]["single-stream"]["latency_ms"]["p50"] > 0


@pytest.mark.slow
def test_the_figures_of_a_build_that_is_refused_are_kept(
    variant: Any, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("OMP_NUM_THREADS", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, environment[name])
    head, *_ = variant.config.read_text(encoding="utf-8").split("[[target]]")
    budget = '[[target]]\ndevice = "x86-64-cpu"\nprecisions = ["fp32"]\nbudget = { p50_ms = 0.0001 }\n'
    variant.config.write_text(head + budget, encoding="utf-8")
    with pytest.raises(SystemExit, match="edgetl build ended with exit code 5: the latency budget was missed"):
        given = ["--config", variant.config, "--target", "x86-64-cpu", "--store", variant.store]
        gpu.main([str(each) for each in [*given, "--results", tmp_path / "found"]])
    (file,) = (tmp_path / "found").iterdir()
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["latency"]["x86-64-cpu fp32"]["p50_ms"] > 0 and found["parity"]["x86-64-cpu fp32"]["samples"] == 102
    assert found["engines"] == {} and "the latency budget was missed" in found["failures"][0]


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_a_part_that_fails_does_not_keep_the_others_from_running(tmp_path: Path) -> None:
    for name, code in (("python", 3), ("edgetl", 0)):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/ran"\nexit {code}\n', encoding="utf-8")
        program.chmod(0o755)
    (tmp_path / "installed").touch()
    os.utime(tmp_path / "installed", (2e9, 2e9))  # newer than what is to be installed
    done = subprocess.run(
        ["make", "gpu-check", f"BIN={tmp_path}", f"STAMP={tmp_path / 'installed'}"],
        cwd=Path(gpu.__file__).parents[1], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    ran = (tmp_path / "ran").read_text(encoding="utf-8").splitlines()
    assert ran == ["doctor", "benchmarks/gpu.py", "benchmarks/training.py", "-m pytest -m gpu"]
    assert all(part in done.stderr.partition("failed;")[2] for part in ran[1:]) and "doctor" not in done.stderr


def test_a_target_whose_library_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TensorRTRTXBackend, "version", lambda self: None)
    kept, left_out = gpu.installed(["x86-64-vnni", "rtx-pc"])
    assert kept == ["x86-64-vnni"]
    assert left_out == {"rtx-pc": "tensorrt_rtx is not installed: pip install 'edgetl[tensorrt-rtx]'"}


def test_nothing_is_waited_for_when_the_time_is_over() -> None:
    run = gpu.Run(minutes=0.001)
    assert run.edgetl("doctor") == (None, "edgetl doctor was ended: the 0.001 minutes are over")
    assert run.edgetl("doctor") == (None, "edgetl doctor was not begun: the 0.001 minutes are over")


def test_what_is_no_json_is_a_failure() -> None:
    found, failed = gpu.Run(minutes=1.0).edgetl("doctor", "--help")
    assert (found, failed) == (None, "edgetl doctor ended with exit code 0: see above")


@pytest.mark.slow
def test_what_the_build_refuses_it_refuses(
    make_project: Callable[..., Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    project = make_project(tmp_path / "project")
    with pytest.raises(SystemExit, match="edgetl build ended with exit code 2: the project has no target nope"):
        gpu.main(["--config", str(project.config), "--target", "nope", "--results", str(tmp_path / "found")])
    assert not (tmp_path / "found").exists()
    assert "the project has no target nope" in capfd.readouterr().err
