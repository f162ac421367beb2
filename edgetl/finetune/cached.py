"""Cached features as training samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgetl.finetune import features
from edgetl.finetune.features import Features
from edgetl.finetune.samplers import Key

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class CachedFeatures:
    """Features by key (epoch, index), for a torch DataLoader; epoch e has the view e modulo their number."""

    features: Features

    @classmethod
    def read(cls, folder: Path) -> CachedFeatures:
        """Of a folder that :func:`edgetl.finetune.features.write` filled.

        Raises:
            DataError: It is damaged.
        """
        return cls(features.read(folder))

    def __len__(self) -> int:
        return len(self.features.labels)

    def __getitems__(self, keys: Sequence[Key]) -> tuple[torch.Tensor, torch.Tensor]:
        """A batch at once, which a DataLoader asks for where it can: float32 (n, width), and labels int64 (n,)."""
        import torch

        views = np.asarray([epoch for epoch, _ in keys]) % len(self.features.values)
        indices = np.asarray([index for _, index in keys])
        return (
            torch.from_numpy(self.features.values[views, indices]),
            torch.from_numpy(self.features.labels[indices].astype(np.int64)),
        )

    @staticmethod
    def collate(batch: Any) -> Any:
        """A batch is one already."""
        return batch
