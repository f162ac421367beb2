"""What was taken over from pretrained weights, and what was not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Mismatch:
    """A tensor that the network and the weights both have, in different shapes."""

    name: str
    """In the network."""
    there: tuple[int, ...]
    """Shape in the weights."""
    here: tuple[int, ...]
    """Shape in the network."""

    def __str__(self) -> str:
        return f"{self.name} ({list(self.there)}, not {list(self.here)})"


@dataclass(frozen=True, kw_only=True)
class Copied:
    """What was taken over from pretrained weights. Every tensor of the network is copied, skipped or mismatched."""

    source: str
    """Where they came from."""
    copied: tuple[str, ...] = ()
    """Tensors of the network that have the values of the weights now."""
    skipped: tuple[str, ...] = ()
    """Tensors of the network that are new: they are not in the weights, or belong to a head that could not be copied
    whole. A classifier is zero then, the others are random."""
    mismatched: tuple[Mismatch, ...] = ()
    """Tensors of the network that keep their random values, since their shapes differ."""
    unused: tuple[str, ...] = ()
    """Tensors of the weights that the network does not have, under their names there."""
    resampled: tuple[str, ...] = ()
    """Of those copied, position embeddings that were interpolated to another image size."""
    head_kept: bool = False
    """Whether the classifier was taken over too."""

    @property
    def tensors(self) -> int:
        """How many were copied."""
        return len(self.copied)

    @property
    def statement(self) -> str:
        """How many, in one sentence without the source."""
        total = len(self.copied) + len(self.skipped) + len(self.mismatched)
        if not self.copied:
            return f"all {total} tensors of the network are new"
        parts = [f"{len(self.copied)} of the network's {total} tensors copied"]
        if self.resampled:
            parts[0] += f" ({len(self.resampled)} of them resampled)"
        if self.skipped:
            parts.append(f"{len(self.skipped)} new ({some(self.skipped)})")
        if self.mismatched:
            parts.append(f"{len(self.mismatched)} of another shape ({some(map(str, self.mismatched))})")
        if self.unused:
            parts.append(f"{len(self.unused)} of the weights not used")
        return ", ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """For a run's record; :meth:`from_json` is the inverse."""
        return {**asdict(self), "tensors": self.tensors}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Copied:
        """From what :meth:`to_json` gave, perhaps by way of a file."""
        names = ("copied", "skipped", "unused", "resampled")
        return cls(
            source=values["source"],
            head_kept=values["head_kept"],
            mismatched=tuple(
                Mismatch(name=each["name"], there=tuple(each["there"]), here=tuple(each["here"]))
                for each in values["mismatched"]
            ),
            **{name: tuple(values[name]) for name in names},
        )


def some(names: Iterable[str]) -> str:
    """The first three, for a message."""
    listed = list(names)
    return ", ".join(listed[:3]) + (" …" if len(listed) > 3 else "")
