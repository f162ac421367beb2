"""Networks of every kind by name: images (:mod:`backbones`), texts (:mod:`encoders`), tables (:mod:`tabular`), and
embeddings on top of networks for images (:mod:`embedding`). All have one input, one output, and a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgetl.backends import backbones
from edgetl.backends.backbones import Stage
from edgetl.errors import ModelError
from edgetl.runtime.preprocessing import ImagePreprocessing, Preprocessing
from edgetl.runtime.preprocessing.text import TextPreprocessing

if TYPE_CHECKING:
    from torch import nn

KINDS = {"timm": "image", "torchvision": "image", "hf": "text", "text": "text", "tables": "table"}
"""Family of a backbone, before the colon → kind of preprocessing contract that it takes."""


def build(
    backbone: str,
    outputs: int,
    preprocessing: Preprocessing,
    *,
    options: Mapping[str, Any],
    dropout: float | None = None,
) -> nn.Module:
    """A network with random weights.

    Args:
        backbone: <family>:<name>, as in the configuration.
        outputs: Classes; of an embedding, people to train with.
        preprocessing: The contract that feeds it.
        options: What else it is built with: of images "embedding" (numbers per image) where it is to embed; of texts
            "config" (of the encoder), "vocabulary", "pad", "pooling", "width", "depth"; of tables "width", "depth".
        dropout: Before the head; None: the network's own.

    Raises:
        MissingExtraError: A library is not installed.
        ModelError: No such network, or it does not take such inputs.
    """
    family, _, name = backbone.partition(":")
    if KINDS.get(family) != preprocessing.kind:
        fitting = ", ".join(f"{each}:<name>" for each, kind in KINDS.items() if kind == preprocessing.kind)
        raise ModelError(
            f"'{backbone}' is no network for {preprocessing.kind}s", hint=f"model.backbone in edgetl.toml: {fitting}"
        )
    if isinstance(preprocessing, ImagePreprocessing):
        if "embedding" in options:
            from edgetl.backends import embedding

            return embedding.build(
                backbone, outputs, int(options["embedding"]), dropout=dropout, image_size=preprocessing.height
            )
        return backbones.build(backbone, outputs, dropout=dropout, image_size=preprocessing.height)
    if family == "tables":
        from edgetl.backends import tabular

        features = preprocessing.input_shape[0]
        assert isinstance(features, int)  # the contract of a table has as many features as it says
        return tabular.build(
            name, features, outputs, width=int(options["width"]), depth=int(options["depth"]), dropout=dropout
        )
    from edgetl.backends import encoders

    return encoders.build(
        backbone,
        outputs,
        config=options.get("config"),
        vocabulary=int(options["vocabulary"]),
        pad=int(options["pad"]),
        pooling=str(options["pooling"]),
        dropout=dropout,
        width=int(options["width"]),
        depth=int(options["depth"]),
        length=preprocessing.max_length if isinstance(preprocessing, TextPreprocessing) else None,
    )


def head_of(module: nn.Module) -> tuple[str, nn.Module]:
    """What stands behind the features (n, d): its name in ``named_modules()``, and itself.

    Raises:
        ModelError: See :func:`edgetl.backends.backbones.head_of`.
    """
    if _embeds(module):
        return "head", module.get_submodule("head")
    return backbones.head_of(module)


def stages(module: nn.Module) -> tuple[Stage, ...]:
    """Every parameter exactly once, in stages from the input to the output; the last is "head".

    Raises:
        ModelError: See :func:`edgetl.backends.backbones.stages`.
    """
    if _embeds(module):
        from edgetl.backends import embedding

        return embedding.embedding_stages(module)
    return backbones.stages(module)


def _embeds(module: nn.Module) -> bool:
    return hasattr(module, "prototypes") or hasattr(getattr(module, "head", None), "prototypes")
