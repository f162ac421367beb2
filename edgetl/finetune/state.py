"""The state of an interrupted training, on disk: written whole or not at all."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

FILE = "state.pt"


def save(folder: Path, state: dict[str, Any]) -> None:
    """Replace the state in a folder, which is made where it is not there; a reader sees the old one or the new."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f"{FILE}.{os.getpid()}"
    try:
        with draft.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(folder / FILE)
    finally:
        draft.unlink(missing_ok=True)


def load(folder: Path) -> dict[str, Any] | None:
    """The state in a folder; None where there is none, or it cannot be read: training then starts from its beginning.

    Only tensors and plain values are read; nothing in the file is run.
    """
    import torch

    try:
        state: dict[str, Any] = torch.load(folder / FILE, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError):
        return None
    return state
