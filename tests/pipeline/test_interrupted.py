"""Builds that are killed, interrupted, damaged or two at once: the next one resumes, and comes to the same."""

from __future__ import annotations

import random
import shutil
import signal
import time

import pytest

pytestmark = pytest.mark.slow
STAGES = ("finetune", "calibrate", "quantize", "half", "compile", "reference", "verify", "bench", "bundle")


def test_killed_at_any_stage_the_next_build_resumes(edgetl, start, built, make_project, tmp_path):
    project = make_project(tmp_path / "killed")
    for name in ("data", "backbone"):  # what needs no proof, to save time
        shutil.copytree(built.store / name, project.store / name)
    chance = random.Random(2)
    for stage in (
        "finetune   phase 2",
        "export",
        "compile    rtx",
        "verify",
        "bundle",
    ):
        process = start("build", project.folder)
        for line in process.stderr:
            if line.startswith(stage) and line.rstrip().endswith("…"):
                break
        else:
            pytest.fail(f"the build ended before {stage}")
        time.sleep(chance.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stderr.close()
        if project.bundle.exists():  # killed after the rename: then it is whole
            assert edgetl("verify", project.bundle).code == 0
    done = edgetl("build", project.folder)
    assert done.code == 0, done.err
    assert list((project.store / "tmp").iterdir()) == []
    assert edgetl("verify", project.bundle).code == 0
    assert edgetl("build", project.folder).out == done.out
    mine, theirs = project.manifest, built.manifest
    assert mine["provenance"]["checkpoint_sha256"] == theirs["provenance"]["checkpoint_sha256"]
    assert mine["files"]["model.onnx"] == theirs["files"]["model.onnx"]


def test_two_builds_at_once_on_one_store_both_succeed(edgetl, start, variant):
    variant.forget("finetune", "compile", "verify", "bundle")
    processes = [start("build", variant.folder) for _ in range(2)]
    errors = [process.communicate(timeout=200)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    variant.assert_clean()
    assert edgetl("verify", variant.bundle).code == 0
    assert edgetl("build", variant.folder).made == set()


def test_an_interruption_ends_with_130_and_keeps_what_was_finished(edgetl, start, variant):
    variant.forget(*STAGES)
    process = start("build", variant.folder)
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith("finetune   phase 2"):
            break
    process.send_signal(signal.SIGINT)
    said.append(process.stderr.read())
    assert process.wait(timeout=60) == 130
    assert "interrupted" in said[-1]
    assert "Traceback" not in said[-1]
    variant.assert_unpublished()
    assert "finetune" in edgetl("build", variant.folder, "--dry-run", "--json").document["result"]["would_run"]


def test_a_damaged_result_in_the_store_is_made_again(edgetl, variant):
    checkpoint = next((variant.store / "export").glob("*/model.onnx"))
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1] + b"!")
    done = edgetl("export", variant.folder)
    assert done.code == 0, done.err
    assert done.made == {"export"}
