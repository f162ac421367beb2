"""Networks for tables: from a float32 vector per row to logits, through one linear head."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from edgetl.errors import ModelError, not_imported
from edgetl.tomlfile import did_you_mean

if TYPE_CHECKING:
    from torch import nn

NAMES = ("mlp", "resnet")
DROPOUT = 0.2
"""Where none is asked for."""


def build(name: str, features: int, outputs: int, *, width: int, depth: int, dropout: float | None) -> nn.Module:
    """A network with random weights: float32 (n, features) → logits (n, outputs).

    Both are those of Gorishniy et al. 2021, arXiv:2106.11959, section 3. The hidden layer of a block of the ResNet is
    twice as wide as the block.

    Args:
        name: mlp: depth × (linear, ReLU, dropout). resnet: linear, then depth × (x + (BatchNorm, linear, ReLU, dropout,
            linear, dropout)(x)), BatchNorm, ReLU.
        features: Inputs.
        outputs: Classes.
        width: Units per layer or block: the head sees so many features.
        depth: Hidden layers or blocks.
        dropout: Probability of dropping a unit; None: 0.2.

    Raises:
        MissingExtraError: torch is not installed.
        ModelError: No such network, or a size below 1, or a dropout that is no probability.
    """
    rate = DROPOUT if dropout is None else dropout
    if name not in NAMES:
        known = tuple(f"tables:{each}" for each in NAMES)
        raise ModelError(
            f"there is no network 'tables:{name}'; {did_you_mean(f'tables:{name}', known)}",
            hint="model.backbone in edgetl.toml",
        )
    for what, size in (("features", features), ("outputs", outputs), ("width", width), ("depth", depth)):
        if size < 1:
            raise ModelError(f"tables:{name} was asked for {what} = {size}; it needs at least one")
    if not 0.0 <= rate < 1.0:
        raise ModelError(f"dropout is {rate}; it is a probability from 0 to below 1")
    try:
        from torch import nn
    except ImportError as error:
        raise not_imported(error, "torch", extra="train", needed_for="building the network") from None
    parts = _mlp(features, width, depth, rate) if name == "mlp" else _resnet(features, width, depth, rate)
    # The head is registered last: that is how it is found.
    return nn.Sequential(OrderedDict([*parts, ("head", nn.Linear(width, outputs))]))


def _mlp(features: int, width: int, depth: int, rate: float) -> list[tuple[str, nn.Module]]:
    from torch import nn

    def layer(inputs: int) -> nn.Module:
        parts = [("linear", nn.Linear(inputs, width)), ("relu", nn.ReLU()), ("dropout", nn.Dropout(rate))]
        return nn.Sequential(OrderedDict(parts))

    return [("stem", layer(features)), ("blocks", nn.Sequential(*(layer(width) for _ in range(depth - 1))))]


def _resnet(features: int, width: int, depth: int, rate: float) -> list[tuple[str, nn.Module]]:
    import torch
    from torch import nn

    class Residual(nn.Sequential):
        """x + what is in it."""

        def forward(self, x_nd: torch.Tensor) -> torch.Tensor:
            out_nd: torch.Tensor = super().forward(x_nd)  # type: ignore[no-untyped-call]
            return x_nd + out_nd

    def block() -> nn.Module:
        parts = [
            ("norm", nn.BatchNorm1d(width)),
            ("wide", nn.Linear(width, 2 * width)),
            ("relu", nn.ReLU()),
            ("dropout", nn.Dropout(rate)),
            ("narrow", nn.Linear(2 * width, width)),
            ("dropout2", nn.Dropout(rate)),
        ]
        return Residual(OrderedDict(parts))

    return [
        ("stem", nn.Linear(features, width)),
        ("blocks", nn.Sequential(*(block() for _ in range(depth)))),
        ("norm", nn.BatchNorm1d(width)),
        ("relu", nn.ReLU()),
    ]
