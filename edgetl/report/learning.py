"""The values of a report's sections about training, what PyTorch came to, and whether transfer helped."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What was taken over from pretrained weights, by the names of tensors."""

    statement: str
    """How many, in one sentence."""
    mismatched: tuple[str, ...]
    """Tensors of the network that stayed random, since their shapes differ, with both shapes."""
    skipped: tuple[str, ...]
    """Tensors of the network that are new."""
    unused: tuple[str, ...]
    """Tensors of the weights that the network does not have."""


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One pass over the training split."""

    number: int
    """Counted from 1 within its phase."""
    train_loss: float
    """Mean cross-entropy over the training samples, in nats."""
    val_score: float
    """The metric on the validation split, as a share."""


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Trained parameters that learned alike."""

    stage: str
    """Of the network, from its input to its head."""
    lr: float
    """The peak of the learning rate."""
    weight_decay: float
    tensors: int
    parameters: int
    """Numbers in these tensors."""


@dataclass(frozen=True, kw_only=True)
class TrainingPhase:
    """One phase of fine-tuning."""

    name: str
    """What was trained: "head", "all"."""
    epochs: tuple[Epoch, ...]
    best_epoch: int | None
    """Number of the epoch whose weights were kept; None where it kept none of them."""
    seconds: float | None = None
    """Wall time of the phase."""
    groups: tuple[ParameterGroup, ...] = ()
    """What was trained; biases and normalisation are groups of their own, without decay."""
    optimizer: str = ""
    """adamw or sgd; "" where it is not known."""
    loss: str = ""
    """cross-entropy or focal; "" where it is not known."""
    label_smoothing: float = 0.0
    l1: float = 0.0
    """Weight of the sum of absolute weights in the loss."""
    dropout: float | None = None
    """Before the head; None: the backbone's own."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure of PyTorch on the test split that no gate asks for."""

    title: str
    value: float
    """As a share."""
    note: str
    """How it was found, and how far it can be believed."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to train, in a comparison of several."""

    name: str
    """fine-tuned, linear-probe or scratch."""
    epochs: int
    """Passes over the training samples."""
    scores: tuple[float, ...]
    """The metric on test, per seed, as a share."""


@dataclass(frozen=True, kw_only=True)
class SourceTask:
    """The change on the task that the pretrained network came from."""

    before: float
    """The metric on the source task's test split before fine-tuning, as a share."""
    scores: tuple[float, ...]
    """And after it, per seed."""
    samples: int
    """Of that split."""
    statements: tuple[str, ...]
    """The change, how it was measured, and the gate where there was one."""


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Whether transfer helped."""

    methods: tuple[Method, ...]
    statements: tuple[str, ...]
    """The verdict first."""
    source: SourceTask | None = None
    """None where no test split of the source task was given."""
