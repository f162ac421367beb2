"""Networks that describe an image by a vector: the body of a classifier, a linear layer, and unit length.

In training mode the network compares its vectors with one prototype per person and puts out cosines (n, people), which
a margin loss takes; in eval mode it puts out the vectors themselves, (n, embedding). Only eval mode is exported, so
that neither the prototypes nor the number of people is in an engine.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from edgetl.backends import backbones
from edgetl.backends.backbones import Stage
from edgetl.errors import ModelError, not_imported
from edgetl.numbers import counted

if TYPE_CHECKING:
    import torch
    from torch import nn

HEAD = "head"
"""Name of the head in ``named_modules()`` of an embedding network."""

_SHORTEST = 1e-12
"""A vector is divided by its length, or by this where it is shorter: as torch.nn.functional.normalize does."""


def build(
    backbone: str, people: int, embedding: int, *, dropout: float | None = None, image_size: int | None = None
) -> nn.Module:
    """An embedding network with random weights.

    Args:
        backbone: timm:<name> or torchvision:<name>.
        people: In training: rows of the prototypes.
        embedding: Numbers per image.
        dropout: As in :func:`edgetl.backends.backbones.build`.
        image_size: As there.

    Raises:
        MissingExtraError: A library is not installed.
        ModelError: As there; or fewer than two people or numbers.
    """
    _check_sizes(people, embedding)
    classifier = backbones.build(backbone, people, dropout=dropout, image_size=image_size)
    return from_classifier(classifier, people, embedding)


def from_classifier(classifier: nn.Module, people: int, embedding: int) -> nn.Module:
    """An embedding network on the body of a classifier, whose own head is taken off.

    The linear layer starts orthogonal: as far as it is not narrower than the features, cosines between them stay what
    they were, and a narrower one is a random projection, which nearly keeps them (Johnson and Lindenstrauss 1984).

    Args:
        classifier: From :func:`edgetl.backends.backbones.build`; changed in place.
        people: In training: rows of the prototypes.
        embedding: Numbers per image.

    Returns:
        A module with ``body``, float32 (n, 3, H, W) → (n, features); ``head``, a module of its own, (n, features) →
        cosines (n, people) in training mode and unit vectors (n, embedding) in eval mode; and ``features(images)``.

    Raises:
        ModelError: The classifier does not end in a linear layer; or fewer than two people or numbers.
    """
    from torch import nn

    _check_sizes(people, embedding)
    name, linear = backbones.head_of(classifier)
    _put(classifier, name, nn.Identity())
    made = _classes()
    head = made.head(linear.in_features, embedding, people)
    network: nn.Module = made.network(classifier, name, head)
    return network


def embedding_stages(network: nn.Module) -> tuple[Stage, ...]:
    """Every parameter exactly once, in stages from the input to the output.

    Args:
        network: From :func:`build`; or its head alone, which is one stage.

    Returns:
        The stages of the body with "body." before their names, but for the first, "stem"; the last is "head".

    Raises:
        ModelError: It is no embedding network.
    """
    if isinstance(network, _classes().head):
        return (Stage(name=HEAD, parameters=tuple(name for name, _ in network.named_parameters())),)
    with as_classifier(network) as body:
        found = backbones.stages(body)[:-1]
    inside = [
        Stage(
            name=stage.name if stage.name == "stem" else f"body.{stage.name}",
            parameters=tuple(f"body.{name}" for name in stage.parameters),
        )
        for stage in found
    ]
    head = tuple(f"{HEAD}.{name}" for name, _ in network.get_submodule(HEAD).named_parameters())
    return (*inside, Stage(name=HEAD, parameters=head))


@contextmanager
def as_classifier(network: nn.Module) -> Iterator[nn.Module]:
    """The body with a linear head again, as long as the context lasts: what pretrained weights of a classifier fit.

    Args:
        network: From :func:`build`. Its body is changed in place, and what is copied into it stays there; the linear
            head, (n, features) → (n, 1), is thrown away.

    Raises:
        ModelError: It is no embedding network.
    """
    from torch import nn

    if not isinstance(network, _classes().network):
        raise ModelError(f"{type(network).__name__} is no embedding network: it has no body and prototypes")
    body, name = network.get_submodule("body"), str(network.body_head)
    width: Any = network.get_submodule(HEAD).get_submodule("linear").in_features
    training = body.training
    _put(body, name, nn.Linear(width, 1))
    try:
        yield body
    finally:
        _put(body, name, nn.Identity())
        body.train(training)


def _check_sizes(people: int, embedding: int) -> None:
    if people < 2:
        there = counted(people, "person", "people")
        raise ModelError(
            f"an embedding was asked for with {there} to train with; it takes at least two",
            hint="images of more people in data.train",
        )
    if embedding < 2:
        raise ModelError(
            f"an embedding of {embedding} numbers was asked for; it takes two or more", hint="model.embedding"
        )


def _put(module: nn.Module, name: str, part: nn.Module) -> None:
    """Replace a sub-module by its name in ``named_modules()``."""
    parent, _, leaf = name.rpartition(".")
    owner = module.get_submodule(parent)
    part.train(owner.training)
    if leaf.isdecimal() and leaf in dict(owner.named_children()):
        owner._modules[leaf] = part  # of a Sequential
    else:
        setattr(owner, leaf, part)


class _Classes(NamedTuple):
    head: Any
    network: Any


@functools.cache
def _classes() -> _Classes:
    """The classes of the modules, made where torch is there."""
    try:
        import torch
        from torch import nn
        from torch.nn import functional
    except ImportError as error:
        raise not_imported(error, "torch", extra="train", needed_for="building the network") from None

    class EmbeddingHead(nn.Module):
        """(n, features) → cosines with the prototypes (n, people), or unit vectors (n, embedding)."""

        def __init__(self, features: int, embedding: int, people: int) -> None:
            super().__init__()
            self.linear = nn.Linear(features, embedding)
            self.prototypes = nn.Parameter(torch.randn(people, embedding))
            nn.init.orthogonal_(self.linear.weight)
            nn.init.zeros_(self.linear.bias)

        def forward(self, features: torch.Tensor, cosines: bool | None = None) -> torch.Tensor:
            """Cosines or vectors; None: cosines in training mode."""
            vectors = self.linear(features).float()
            unit: torch.Tensor = vectors / vectors.norm(dim=1, keepdim=True).clamp_min(_SHORTEST)
            if not (self.training if cosines is None else cosines):
                return unit
            # A margin is smaller than what bfloat16 tells apart.
            with torch.autocast(unit.device.type, enabled=False):
                return unit @ functional.normalize(self.prototypes.float()).T

    class EmbeddingNetwork(nn.Module):
        """Images (n, 3, H, W) → as the head."""

        def __init__(self, body: nn.Module, body_head: str, head: EmbeddingHead) -> None:
            super().__init__()
            self.body = body
            self.body_head = body_head
            self.head = head

        def features(self, images: torch.Tensor) -> torch.Tensor:
            """What the head is fed: (n, features)."""
            found: torch.Tensor = self.body(images)
            return found

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            """Cosines in training mode, vectors in eval mode."""
            # The network's mode decides: a head of which nothing is trained is in eval mode by itself.
            result: torch.Tensor = self.head(self.features(images), self.training)
            return result

    return _Classes(EmbeddingHead, EmbeddingNetwork)
