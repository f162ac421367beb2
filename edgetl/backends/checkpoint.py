"""A checkpoint: a folder with ``model.safetensors``, and ``deploy.json``, which says how to use the weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgetl.errors import ModelError
from edgetl.runtime.preprocessing import Preprocessing
from edgetl.runtime.preprocessing import from_json as read_preprocessing
from edgetl.runtime.runner import TensorSpec

WEIGHTS, DEPLOY = "model.safetensors", "deploy.json"


@dataclass(frozen=True, kw_only=True)
class Deploy:
    """What is needed to use a checkpoint's weights: the content of ``deploy.json``."""

    backbone: str
    """As in the configuration: timm:<name>, hf:<name> …"""
    classes: tuple[str, ...]
    """In the order of the outputs; of an embedding, the people of its training."""
    preprocessing: Preprocessing
    """From a raw input to the network's."""
    config_digest: str
    """SHA-256 of the configuration that the checkpoint was made with."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What else the network is built with, as plain JSON values; see :func:`edgetl.backends.networks.build`."""

    @property
    def input(self) -> TensorSpec:
        """Of the network, with the dynamic batch."""
        contract = self.preprocessing
        return TensorSpec(name="input", shape=("batch", *contract.input_shape), dtype=contract.dtype)

    @property
    def embeds(self) -> bool:
        """Whether the network puts out embeddings, and not one logit per class."""
        return "embedding" in self.options

    @property
    def output(self) -> TensorSpec:
        """Of the network, with the dynamic batch."""
        width = int(self.options["embedding"]) if self.embeds else len(self.classes)
        return TensorSpec(name="embedding" if self.embeds else "logits", shape=("batch", width), dtype="float32")


def read_deploy(folder: Path) -> Deploy:
    """``deploy.json`` of a checkpoint, without loading its weights.

    Raises:
        ModelError: There is none, or it is not one of this version.
    """
    try:
        values = json.loads((folder / DEPLOY).read_text(encoding="utf-8"))
        return Deploy(
            backbone=values["backbone"],
            classes=tuple(values["classes"]),
            preprocessing=read_preprocessing(values["preprocessing"]),
            config_digest=values["config_digest"],
            options=values["options"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder} is not a checkpoint of edgetl: {error}") from None
