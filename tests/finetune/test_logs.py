"""What is written of every epoch."""

from __future__ import annotations

import csv
from importlib.util import find_spec
from pathlib import Path

import pytest

from edgetl.config import Finetune, Phase
from edgetl.errors import MissingExtraError
from edgetl.finetune import logs
from edgetl.finetune.trainer import Epoch

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
    missing = [name for name in ("wandb", "mlflow", "tensorboard") if find_spec(name) is None]
    if not missing:
        pytest.skip("every tracker is installed here")
    with pytest.raises(MissingExtraError, match=missing[0]):
        logs.installed(missing[:1])
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


def test_mlflow_has_the_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)
    log("mlflow", tmp_path / "logs")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("digits-phase-1")
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "val/top1")
    assert [(point.step, point.value) for point in history] == [(1, 0.75), (2, 0.875)]
    assert run.data.params["optimizer"] == "adamw"


def test_wandb_writes_its_run_into_the_folder_of_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    log("wandb", tmp_path / "logs")
    (run,) = (tmp_path / "logs" / "wandb").glob("offline-run-*/*.wandb")
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
