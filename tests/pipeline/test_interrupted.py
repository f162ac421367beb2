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


def test_a_training_killed_between_saves_and_at_the_boundary_of_phases_ends_with_the_same_bits(
    edgetl, start, make_project, tmp_path
):
    """Random changes of images are read by two processes where it is killed, and by none where it is not."""
    whole, killed = make_project(tmp_path / "whole"), make_project(tmp_path / "killed")
    for project in (whole, killed):
        project.edit(
            ("image_size = 32", "image_size = 32\naugment = { flip = 0.5, rotate = 10, noise = 0.05, mixup = 0.2 }"),
            ('{ train = "head", epochs = 2 }', '{ train = "head", epochs = 2, views = 2 }'),
            ("epochs = 10", "epochs = 2"),
            ("batch_size = 16", "batch_size = 16\naccumulate = 2\nema = 0.9\nsave_every_s = 0.02"),
        )
    killed.edit(("save_every_s = 0.02", "save_every_s = 0.02\nworkers = 2"))
    assert edgetl("train", whole.folder).code == 0
    chance = random.Random(time.time_ns())

    def saves():
        return {(path, path.stat().st_mtime_ns) for path in killed.store.glob("unfinished/*/state.pt")}

    kills = 0
    for wait in ("boundary", "saves", "saves"):
        process = start("train", killed.folder)
        if wait == "boundary":
            for line in process.stderr:
                if line.startswith("finetune   phase 2"):
                    break
        else:
            for _ in range(chance.randint(1, 4)):
                before = saves()
                while process.poll() is None and saves() <= before:
                    time.sleep(0.002)
            time.sleep(chance.uniform(0, 0.05))
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stderr.close()
    assert kills >= 2, "it ended before it was killed: the test shows little"
    done = edgetl("train", killed.folder)
    assert done.code == 0, done.err
    assert not list(killed.store.glob("unfinished/*/*")) and not list((killed.store / "tmp").iterdir())
    one, other = (
        {path.parent.name: path.read_bytes() for path in project.store.glob("finetune/*/model.safetensors")}
        for project in (whole, killed)
    )
    assert len(one) == 2 and one == other


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
