"""Where every epoch is written: a CSV file beside the checkpoint, and the trackers that the user asks for."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from edgetl.config import Finetune, Phase
from edgetl.errors import SetupError
from edgetl.finetune.phases import Epoch
from edgetl.store import check_folder

if TYPE_CHECKING:
    from accelerate import Accelerator

CSV = "training.csv"


def write_csv(path: Path, epochs: Sequence[Epoch]) -> None:
    """Every epoch of a phase, a line each, with a header."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Epoch)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(epoch) for epoch in epochs)


def installed(names: Sequence[str]) -> list[str] | None:
    """The trackers of ``finetune.log``, when all of them are installed; None where none is asked for.

    Raises:
        SetupError: One is not: accelerate would go on without it.
    """
    for name in names:
        if find_spec(name) is None:
            raise SetupError(
                f"finetune.log = [\"{name}\"] needs the Python package '{name}', which is not installed",
                hint=f"pip install {name}",
            )
    return list(names) or None


def opened(
    accelerator: Accelerator, phase: Phase, finetune: Finetune, *, run: str, metric: str
) -> Callable[[Epoch], None] | None:
    """Begin a run in every tracker of the accelerator; what is to be called at the end of an epoch, None without any.

    Args:
        accelerator: Made with the trackers of ``finetune.log``; who made it finishes them.
        phase: Recorded as the run's settings, with ``finetune``.
        finetune: Likewise.
        run: Name of the run.
        metric: Name of the curve on val.

    Raises:
        SetupError: A tracker cannot begin: its server does not answer, or it has no key; or the folder of the logs
            cannot be written.
    """
    if not finetune.log:
        return None
    check_folder(finetune.log_dir)
    # What a phase leaves open is as [finetune] says, and must not hide it.
    own = phase.model_dump(mode="json", exclude_none=True)
    settings = {**finetune.of(phase).model_dump(mode="json", exclude={"phases"}), **own}
    # TensorBoard takes numbers and texts alone.
    plain = {name: value if isinstance(value, (int, float, str)) else str(value) for name, value in settings.items()}
    if "mlflow" in finetune.log:
        _into(finetune.log_dir)
    try:
        accelerator.init_trackers(run, config=plain, init_kwargs={"wandb": {"dir": str(finetune.log_dir)}})
    except tuple(_failures()) as error:
        hint = next(hint for kind, hint in _failures().items() if isinstance(error, kind))
        reason = str(error).strip().partition("\n")[0]
        raise SetupError(f"finetune.log = {list(finetune.log)} cannot begin: {reason}", hint=hint) from error

    def on_epoch(epoch: Epoch) -> None:
        values = {"train/loss": epoch.train_loss, f"val/{metric}": epoch.val_score, "seconds": epoch.seconds}
        accelerator.log(values, step=epoch.epoch)

    return on_epoch


def _into(folder: Path) -> None:
    """Let MLflow keep its runs in a folder, where neither its environment nor a caller names a place."""
    import mlflow

    if not mlflow.is_tracking_uri_set():
        mlflow.set_tracking_uri(f"sqlite:///{(folder / 'mlflow.db').resolve()}")


def _failures() -> dict[type[Exception], str]:
    """What trackers raise of their own, and what helps; a package that is not imported has raised nothing."""
    places = (
        ("mlflow.exceptions", "MlflowException", "MLFLOW_TRACKING_URI, or `pip install mlflow` for a file in log_dir"),
        ("wandb.errors", "Error", "`wandb login`, or WANDB_MODE=offline"),
    )
    return {getattr(sys.modules[module], name): hint for module, name, hint in places if module in sys.modules}
