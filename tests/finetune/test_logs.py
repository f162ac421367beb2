"""What is written of every epoch."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgetl.config import Finetune, Phase
from edgetl.errors import SetupError
from edgetl.finetune import logs
from edgetl.finetune.phases import Epoch

EPOCHS = [
    Epoch(epoch=1, train_loss=0.5, val_score=0.75, seconds=1.25),
    Epoch(epoch=2, train_loss=0.25, val_score=0.875, seconds=1.0),
]


def test_a_csv_file_has_a_line_per_epoch(tmp_path: Path) -> None:
    logs.write_csv(tmp_path / logs.CSV, EPOCHS)
    with (tmp_path / logs.CSV).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert [float(row["val_score"]) for row in rows] == [0.75, 0.875]
    logs.write_csv(tmp_path / "none.csv", [])
    assert (tmp_path / "none.csv").read_text(encoding="utf-8") == "epoch,train_loss,val_score,seconds\n"


def test_a_tracker_that_is_not_installed_is_named() -> None:
    with pytest.raises(SetupError, match="needs the Python package 'no_such_tracker'") as caught:
        logs.installed(["csv", "no_such_tracker"])
    assert caught.value.hint == "pip install no_such_tracker", "no extra of edgetl has it"
    assert logs.installed(()) is None


def log(tracker: str, folder: Path) -> None:
    """Two epochs, as a phase of fine-tuning logs them."""
    from accelerate import Accelerator

    finetune = Finetune.model_validate({"log": [tracker], "log_dir": folder})
    accelerator = Accelerator(cpu=True, log_with=logs.installed(finetune.log), project_dir=str(finetune.log_dir))
    on_epoch = logs.opened(accelerator, Phase(train="all"), finetune, run="digits-phase-1", metric="top1")
    assert on_epoch is not None
    for epoch in EPOCHS:
        on_epoch(epoch)
    for each in accelerator.trackers:
        each.finish()


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """MLflow as in a new process, with an experiment's place not yet said."""
    found = pytest.importorskip("mlflow", reason="mlflow is not installed")
    pytest.importorskip("sqlalchemy", reason="mlflow-skinny keeps no runs of its own")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    yield found
    found.set_tracking_uri(None)


def mlflow_curve(mlflow: Any, database: Path) -> list[tuple[int, float]]:
    client = mlflow.MlflowClient(f"sqlite:///{database}")
    experiment = client.get_experiment_by_name("digits-phase-1")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.params["optimizer"] == "adamw" and run.info.status == "FINISHED"
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "val/top1")]


def test_mlflow_has_the_curves_in_the_folder_of_logs(mlflow: Any, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    log("mlflow", tmp_path / "logs")
    assert mlflow_curve(mlflow, tmp_path / "logs" / "mlflow.db") == [(1, 0.75), (2, 0.875)]
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_mlflow_has_the_curves_where_its_environment_says(mlflow: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'own.db'}")
    log("mlflow", tmp_path / "logs")
    assert mlflow_curve(mlflow, tmp_path / "own.db") == [(1, 0.75), (2, 0.875)]
    assert not (tmp_path / "logs" / "mlflow.db").exists()


def test_a_server_that_does_not_answer_is_told_before_training(mlflow: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(SetupError, match=r"finetune.log = \['mlflow'\] cannot begin: API request .* failed") as caught:
        log("mlflow", tmp_path / "logs")
    assert "MLFLOW_TRACKING_URI" in (caught.value.hint or "")


def test_wandb_writes_its_run_into_the_folder_of_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    log("wandb", tmp_path / "logs")
    (run,) = (tmp_path / "logs" / "wandb").glob("offline-run-*/*.wandb")
    until = time.monotonic() + 20
    while b"0.875" not in run.read_bytes() and time.monotonic() < until:
        time.sleep(0.05)  # its own process writes the file, and goes on after finish()
    content = run.read_bytes()
    assert b"digits-phase-1" in content and b"val/top1" in content and b"0.875" in content


def test_tensorboard_has_the_curves(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log("tensorboard", tmp_path / "logs")
    events = EventAccumulator(str(next((tmp_path / "logs").rglob("events*")).parent))
    events.Reload()
    assert [event.value for event in events.Scalars("val/top1")] == [0.75, 0.875]
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2]
