"""A training of two phases on real images with a tracker, by the command line: the curves are those of training.csv."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
Curves = dict[str, list[tuple[int, float]]]
"""Run → value on val per epoch."""


def of_tensorboard(folder: Path) -> Curves:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: Curves = {}
    for run in sorted(folder.iterdir()):
        # The settings of a run are in a folder of their own below it.
        for place in sorted({path.parent for path in run.rglob("events*")}):
            events = EventAccumulator(str(place))
            events.Reload()
            if "val/top1" in events.Tags()["scalars"]:
                found[run.name] = [(event.step, event.value) for event in events.Scalars("val/top1")]
    return found


def of_mlflow(folder: Path) -> Curves:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    found: Curves = {}
    for experiment in client.search_experiments():
        for run in client.search_runs([experiment.experiment_id]):
            points = client.get_metric_history(run.info.run_id, "val/top1")
            found[experiment.name] = [(point.step, point.value) for point in points]
    return found


READERS: dict[str, Callable[[Path], Curves]] = {"tensorboard": of_tensorboard, "mlflow": of_mlflow}


@pytest.mark.parametrize("tracker", ["tensorboard", "mlflow", "wandb"])
def test_a_training_is_logged_epoch_by_epoch(
    tracker: str, edgetl: Any, make_project: Callable[..., Any], tmp_path: Path
) -> None:
    pytest.importorskip(tracker, reason=f"{tracker} is not installed")
    if tracker == "mlflow":
        pytest.importorskip("sqlalchemy", reason="mlflow-skinny keeps no runs of its own")
    project = make_project(tmp_path / "project")
    project.edit(("epochs = 10", "epochs = 2"), ("batch_size = 16", f'batch_size = 16\nlog = ["{tracker}"]'))
    done = edgetl("train", project.folder, "--json", env={"WANDB_MODE": "offline"}, cwd=tmp_path)
    assert done.code == 0, done.err
    phases = done.document["result"]["phases"]  # nothing else is on stdout
    folder = project.folder / "logs"
    names = [f"shapes-phase-{number}" for number in (1, 2)]
    if tracker == "wandb":
        assert len(list((folder / "wandb").glob("offline-run-*/*.wandb"))) == len(names)
        return
    curves = READERS[tracker](folder)
    assert sorted(name for name in curves if name in names) == names
    for name, phase in zip(names, phases, strict=True):
        epochs = [(epoch["epoch"], epoch["val_score"]) for epoch in phase["epochs"]]
        assert epochs and curves[name] == [(step, pytest.approx(value)) for step, value in epochs]
    with (Path(done.document["result"]["artifacts"]["train"]) / "training.csv").open(encoding="utf-8") as file:
        rows = [(int(row["epoch"]), float(row["val_score"])) for row in csv.DictReader(file)]
    assert curves[names[1]] == [(step, pytest.approx(value)) for step, value in rows]
