"""How a model's outputs become answers: a recorded value, like the preprocessing contract."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import ModelError

SEPARATOR = ";"
"""Between the labels of a sample that has several."""

_TOP = 5


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a model says of one input."""

    label: str
    """The answer; with several labels those that are present, with ``;`` between, empty where none is."""
    probability: float
    """Of the answer, 0 to 1; with several labels of the least probable present one, 0 where none is."""
    top: tuple[tuple[str, float], ...]
    """The five most probable labels with their probabilities."""
    present: tuple[tuple[str, float], ...] = ()
    """With several labels: those that are present, the most probable first."""


class Decision(Protocol):
    """From outputs to answers: an immutable value that can be compared and written as JSON."""

    @property
    def kind(self) -> str:
        """largest, threshold, multi-label or similarity."""

    def decide(self, outputs: NDArray[np.floating]) -> NDArray[Any]:
        """The answers as numbers.

        Args:
            outputs: Of the model, (n, k).

        Returns:
            The classes, int64 (n,); with several labels per sample a flag for each, uint8 (n, k).

        Raises:
            ModelError: The outputs are not those of such a model, or hold NaN or infinite values.
        """

    def answers(self, outputs: NDArray[np.floating], labels: Sequence[str]) -> list[Prediction]:
        """The answers for people.

        Args:
            outputs: Of the model, (n, k).
            labels: Of the outputs, k.

        Raises:
            ModelError: As :meth:`decide`, or there are more or fewer labels than outputs.
        """

    def to_json(self) -> dict[str, Any]:
        """Plain values; :func:`from_json` is the inverse."""


@dataclass(frozen=True, kw_only=True)
class Largest:
    """The class with the largest output; probabilities are the softmax."""

    kind: ClassVar[str] = "largest"

    def decide(self, outputs: NDArray[np.floating]) -> NDArray[np.int64]:
        """See :meth:`Decision.decide`; of equal outputs the first."""
        classes: NDArray[np.int64] = _checked(outputs).argmax(1).astype(np.int64)
        return classes

    def answers(self, outputs: NDArray[np.floating], labels: Sequence[str]) -> list[Prediction]:
        """See :meth:`Decision.answers`."""
        return _named(self.decide(outputs), softmax(_checked(outputs, labels)), labels)

    def to_json(self) -> dict[str, Any]:
        """See :meth:`Decision.to_json`."""
        return {"kind": self.kind}


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """Of two classes the second where its probability is at least the threshold; probabilities are the softmax."""

    kind: ClassVar[str] = "threshold"

    threshold: float
    """Of the second class's probability, 0 to 1."""

    def __post_init__(self) -> None:
        _probability(self.threshold, "threshold")

    def decide(self, outputs: NDArray[np.floating]) -> NDArray[np.int64]:
        """See :meth:`Decision.decide`."""
        values = _checked(outputs)
        if values.shape[1] != 2:
            raise ModelError(f"a threshold decides between two classes, and the model has {values.shape[1]} outputs")
        return (second_probability(values) >= self.threshold).astype(np.int64)

    def answers(self, outputs: NDArray[np.floating], labels: Sequence[str]) -> list[Prediction]:
        """See :meth:`Decision.answers`; the answer need not be the most probable label."""
        second = second_probability(_checked(outputs, labels))
        return _named(self.decide(outputs), np.stack([1.0 - second, second], axis=1), labels)

    def to_json(self) -> dict[str, Any]:
        """See :meth:`Decision.to_json`."""
        return {"kind": self.kind, **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class MultiLabel:
    """Every class whose probability is at least its threshold; probabilities are the sigmoid of each output."""

    kind: ClassVar[str] = "multi-label"

    thresholds: tuple[float, ...]
    """Of the probabilities, one per class, 0 to 1."""

    def __post_init__(self) -> None:
        if not self.thresholds:
            raise ModelError("the decision's thresholds are none; it needs one per class")
        for number in self.thresholds:
            _probability(number, "thresholds")

    def decide(self, outputs: NDArray[np.floating]) -> NDArray[np.uint8]:
        """See :meth:`Decision.decide`."""
        values = _checked(outputs)
        if values.shape[1] != len(self.thresholds):
            raise ModelError(f"there are {len(self.thresholds)} thresholds for {values.shape[1]} outputs")
        return (sigmoid(values) >= np.asarray(self.thresholds)).astype(np.uint8)

    def answers(self, outputs: NDArray[np.floating], labels: Sequence[str]) -> list[Prediction]:
        """See :meth:`Decision.answers`."""
        found = []
        for flags, probabilities in zip(self.decide(outputs), sigmoid(_checked(outputs, labels)), strict=True):
            ranked = _ranked(probabilities)
            present = tuple((labels[index], share) for index, share in ranked if flags[index])
            found.append(
                Prediction(
                    label=SEPARATOR.join(name for name, _ in present),
                    probability=present[-1][1] if present else 0.0,
                    top=tuple((labels[index], share) for index, share in ranked[:_TOP]),
                    present=present,
                )
            )
        return found

    def to_json(self) -> dict[str, Any]:
        """See :meth:`Decision.to_json`."""
        return {"kind": self.kind, "thresholds": list(self.thresholds)}


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """Two samples are of one identity where the cosine of their embeddings is at least the threshold."""

    kind: ClassVar[str] = "similarity"

    threshold: float
    """Of the cosine, -1 to 1; just above 1 where no pair may be accepted."""

    def __post_init__(self) -> None:
        if not -1.0 <= self.threshold <= 1.0 + 1e-6:  # NaN is neither
            raise ModelError(f"the decision's threshold of a cosine is {self.threshold}; it is between -1 and 1")

    def same(self, first: NDArray[np.floating], second: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Whether pairs of embeddings are of one identity.

        Args:
            first: (n, d), or (1, d) to compare one with all.
            second: (n, d).

        Returns:
            bool (n,).

        Raises:
            ModelError: The shapes do not fit, or a value is not finite.
        """
        result: NDArray[np.bool_] = cosines(first, second) >= self.threshold
        return result

    def decide(self, outputs: NDArray[np.floating]) -> NDArray[Any]:
        """Nothing: an embedding on its own has no answer.

        Raises:
            ModelError: Always.
        """
        raise ModelError("embeddings are compared two by two: one on its own has no answer", hint="Similarity.same")

    def answers(self, outputs: NDArray[np.floating], labels: Sequence[str]) -> list[Prediction]:
        """Nothing; see :meth:`decide`.

        Raises:
            ModelError: Always.
        """
        raise ModelError("embeddings are compared two by two: one on its own has no answer", hint="Similarity.same")

    def to_json(self) -> dict[str, Any]:
        """See :meth:`Decision.to_json`."""
        return {"kind": self.kind, **asdict(self)}


def from_json(values: Mapping[str, Any]) -> Decision:
    """A decision from its plain values; the inverse of its ``to_json``.

    Raises:
        ModelError: The kind is unknown, or a field is missing, unknown or of the wrong kind.
    """
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in _READERS:
        raise ModelError(f"the decision is of the kind {kind!r}; this edgetl reads {', '.join(_READERS)}")
    return _READERS[kind]({name: value for name, value in values.items() if name != "kind"})


def softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Probabilities along the last axis."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    result: NDArray[np.float64] = shifted / shifted.sum(axis=-1, keepdims=True)
    return result


def sigmoid(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """1 / (1 + exp(-x)) of each element, without overflow."""
    small = np.exp(-np.abs(logits.astype(np.float64)))
    result: NDArray[np.float64] = np.where(logits >= 0, 1.0, small) / (1.0 + small)
    return result


def second_probability(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """The softmax probability of the second of two classes: (n, 2) → (n,)."""
    values = logits.astype(np.float64)
    return sigmoid(values[:, 1] - values[:, 0])


def cosines(first: NDArray[np.floating], second: NDArray[np.floating]) -> NDArray[np.float64]:
    """Cosines of pairs of embeddings; 0 with an embedding that is all zero.

    Args:
        first: (n, d), or (1, d) to compare one with all.
        second: (n, d).

    Returns:
        float64 (n,), -1 to 1.

    Raises:
        ModelError: The shapes do not fit, or a value is not finite.
    """
    one, other = _checked(first), _checked(second)
    if one.shape[1] != other.shape[1] or len(one) not in (1, len(other)):
        raise ModelError(f"embeddings {list(one.shape)} cannot be compared with embeddings {list(other.shape)}")
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    result: NDArray[np.float64] = np.clip((one * other).sum(1) / np.where(lengths > 0, lengths, 1.0), -1.0, 1.0)
    return result


def _checked(outputs: NDArray[np.floating], labels: Sequence[str] | None = None) -> NDArray[np.float64]:
    if outputs.ndim != 2 or not outputs.shape[1]:
        raise ModelError(f"a decision needs outputs of the shape (n, k), not {list(outputs.shape)}")
    if labels is not None and len(labels) != outputs.shape[1]:
        raise ModelError(f"there are {len(labels)} labels for {outputs.shape[1]} outputs")
    values = outputs.astype(np.float64)
    if not np.isfinite(values).all():
        raise ModelError("the model returned NaN or infinite values: they are no answer")
    return values


def _probability(number: float, name: str) -> None:
    if not 0.0 <= number <= 1.0:  # NaN is neither
        raise ModelError(f"the decision's {name} of a probability is {number}; it is between 0 and 1")


def _ranked(probabilities: NDArray[np.float64]) -> list[tuple[int, float]]:
    """Places and probabilities, the most probable first."""
    order = np.argsort(-probabilities, kind="stable")
    return [(int(index), float(probabilities[index])) for index in order]


def _named(classes: NDArray[np.int64], probabilities: NDArray[np.float64], labels: Sequence[str]) -> list[Prediction]:
    found = []
    for index, row in zip(classes.tolist(), probabilities, strict=True):
        top = tuple((labels[place], share) for place, share in _ranked(row)[:_TOP])
        found.append(Prediction(label=labels[index], probability=float(row[index]), top=top))
    return found


_D = TypeVar("_D", Largest, Threshold, MultiLabel, Similarity)


def _read(cls: type[_D], values: Mapping[str, Any]) -> _D:
    known = {field.name for field in fields(cls)}
    if set(values) != known:
        unknown, missing = sorted(set(values) - known), sorted(known - set(values))
        raise ModelError(f"the decision '{cls.kind}' has unknown fields {unknown}, and lacks {missing}")
    numbers: dict[str, Any] = {}
    for name, value in values.items():
        several = name == "thresholds"
        items = value if several and isinstance(value, (list, tuple)) else [value]
        if (several and items is not value) or not all(type(item) in (int, float) for item in items):
            raise ModelError(f"the decision '{cls.kind}' has the {name} {value!r}, which cannot be read")
        numbers[name] = tuple(float(item) for item in items) if several else float(items[0])
    return cls(**numbers)


_READERS: dict[str, Callable[[Mapping[str, Any]], Decision]] = {
    "largest": lambda values: _read(Largest, values),
    "threshold": lambda values: _read(Threshold, values),
    "multi-label": lambda values: _read(MultiLabel, values),
    "similarity": lambda values: _read(Similarity, values),
}
