"""Verdicts by the command line: what is said before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def project(built, make_project, tmp_path):
    """The small project, whose weights are those that it came to, in one phase on 32 pixels."""
    checkpoint = next(path for path in (built.store / "finetune").iterdir() if (path / "deploy.json").is_file())
    made = make_project(tmp_path / "project")
    made.edit(
        ('weights = "none"', f'weights = "{checkpoint}"'),
        ('{ train = "head", epochs = 2 }, { train = "all", epochs = 10, lr = 5e-3, batchnorm = "train" }',
         '{ train = "all", epochs = 1, lr = 1e-3, batchnorm = "frozen-statistics" }'),
    )  # fmt: skip
    return made


def trained(project) -> list[Path]:
    return list((project.store / "finetune").glob("*"))


def test_training_from_scratch_one_sample_at_a_time_is_refused_before_anything_is_trained(edgetl, project) -> None:
    """Fine-tuning itself gets through, with the statistics that it was given."""
    alone = ("--set", "finetune.accumulate=16")
    said = ("training from scratch: phase 1: finetune.accumulate = 16 of finetune.batch_size = 16 leaves a single",)
    edgetl("train", "--verdict", project.folder, *alone).failed(2, *said, hint="finetune.accumulate = 8 or less")
    assert not trained(project)
    edgetl("build", project.folder, *alone, "--set", 'finetune.verdict="report"').failed(2, *said)
    assert not trained(project)
    assert edgetl("train", project.folder, *alone).code == 0 and len(trained(project)) == 1

    done = edgetl("train", "--verdict", project.folder, "--set", "finetune.accumulate=8", "--json")
    assert done.code == 0, done.err
    assert {name: len(each) for name, each in done.document["result"]["scores"].items()} == dict.fromkeys(
        ("fine-tuned", "linear-probe", "scratch"), 3
    )


def test_a_build_with_nothing_to_transfer_is_refused_before_it_trains(edgetl, project) -> None:
    asked = ("--set", "model.weights=none", "--set", 'finetune.verdict="report"')
    edgetl("build", project.folder, *asked).failed(2, "nothing pretrained is transferred", hint="name pretrained")
    assert not trained(project)


def test_the_command_fails_where_transfer_was_to_help_and_did_not(edgetl, project) -> None:
    """Random weights are no better a start than random weights, where nothing is learned from either."""
    judged = edgetl("train", "--verdict", project.folder, "--require-helped", "--json")
    assert judged.code == 0 and judged.document["result"]["verdict"]["outcome"] == "helped", judged.err
    random = [
        path for path in (project.store / "backbone").iterdir() if "random" in (path / "weights.json").read_text()
    ]
    idle = ("--set", f"model.weights={random[0]}", "--set", 'finetune.phases=[{train="all", epochs=1, lr=1e-9}]')
    done = edgetl("train", "--verdict", project.folder, *idle, "--require-helped")
    done.failed(4, "transfer did not help: neutral:", hint="another backbone or source of weights")
    assert "neutral: fine-tuning and training from scratch differ by" in done.out
    assert edgetl("train", "--verdict", project.folder, *idle).code == 0
