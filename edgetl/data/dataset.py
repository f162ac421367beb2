"""The values of this stage: samples whose content is known, and a data set of three splits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetl.data.parts import Part
from edgetl.errors import DataError

SPLITS = ("train", "val", "test")
_SHOWN = 80
UNLABELLED = -1
"""The label of a calibration sample whose class is not known."""


@dataclass(frozen=True)
class Sample:
    """One sample of a split, read once and found whole."""

    raw: Path | Part | str
    """What the preprocessing contract takes: the absolute path of an image, or its place in a larger file; a text; or a
    row as the text of a JSON object."""
    label: int | tuple[int, ...]
    """Index of the class in ``Dataset.classes``, or 0 or 1 for each of them where a sample may have several;
    ``UNLABELLED`` for calibration samples without a class."""
    group: str | None
    """Samples of one group belong together (one patient, one burst of photographs); None: alone."""
    digest: str
    """SHA-256, in hexadecimal, of the content: of an image the size and the decoded RGB pixels, which are equal for a
    copy saved without loss."""
    slices: tuple[str, ...] = ()
    """What stands in each of the columns of data.slices; "" where nothing does."""

    @property
    def present(self) -> tuple[int, ...]:
        """Indices of its classes."""
        if isinstance(self.label, int):
            return (self.label,)
        return tuple(index for index, flag in enumerate(self.label) if flag)

    @property
    def where(self) -> str:
        """For messages: the file or the part of one, or the beginning of a text or row."""
        if not isinstance(self.raw, str):
            return str(self.raw)
        return self.raw if len(self.raw) <= _SHOWN else self.raw[:_SHOWN] + " …"


@dataclass(frozen=True)
class Dataset:
    """Three disjoint splits over the same classes."""

    classes: tuple[str, ...]
    """Names in the order of the model's outputs."""
    train: tuple[Sample, ...]
    val: tuple[Sample, ...]
    test: tuple[Sample, ...]

    def digest(self) -> str:
        """SHA-256 of what training and measuring can see, in hexadecimal.

        It covers the classes in their order and, for every split in its order, label, group and pixel digest of
        each sample. Paths are left out, so that a data set which was moved keeps its digest.
        """
        splits = {
            name: [[sample.label, sample.group, sample.digest] for sample in samples]
            for name, samples in self.splits().items()
        }
        return _sha256({"classes": list(self.classes), "splits": splits})

    def classes_digest(self) -> str:
        """SHA-256 of the class names in their order, in hexadecimal."""
        return _sha256(list(self.classes))

    def splits(self) -> dict[str, tuple[Sample, ...]]:
        """The samples by split name: train, val, test."""
        return {"train": self.train, "val": self.val, "test": self.test}

    def to_json(self) -> dict[str, Any]:
        """Plain values; ``Dataset.from_json(d.to_json()) == d``. Paths are written as they are."""
        files = any(not isinstance(sample.raw, str) for samples in self.splits().values() for sample in samples)
        splits = {name: [_values(sample) for sample in samples] for name, samples in self.splits().items()}
        return {"schema": 1, "classes": list(self.classes), "raw": "files" if files else "texts", **splits}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Dataset:
        """The inverse of :meth:`to_json`.

        Raises:
            DataError: A field is missing or of the wrong kind, or the schema is not 1.
        """
        if values.get("schema") != 1:
            raise DataError(f"the stored data set has schema {values.get('schema')!r}; this edgetl reads schema 1")
        try:
            classes = tuple(str(name) for name in values["classes"])
            files = {"files": True, "texts": False}[values["raw"]]
            paths = _Paths()
            splits = {
                name: tuple(_sample(row, len(classes), paths if files else None) for row in values[name])
                for name in SPLITS
            }
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"the stored data set cannot be read: {error!r}") from None
        return cls(classes=classes, **splits)


class _Paths(dict[str, Path]):
    """One object for each path: a shard has thousands of samples."""

    def __missing__(self, text: str) -> Path:
        return self.setdefault(text, Path(text))


def _values(sample: Sample) -> list[Any]:
    return [_plain(sample.raw), sample.label, sample.group, sample.digest, list(sample.slices)]


def _plain(raw: Path | Part | str) -> str | list[str | int]:
    return [str(raw.file), raw.offset, raw.size, raw.name] if isinstance(raw, Part) else str(raw)


def _raw(value: Any, paths: _Paths | None) -> Path | Part | str:
    if isinstance(value, str):
        return value if paths is None else Path(value)
    file, offset, size, name = value
    fits = type(offset) is int and type(size) is int and offset >= 0 and size >= 0
    if paths is None or not fits or not isinstance(file, str) or not isinstance(name, str):
        raise TypeError(f"not a part of a file: {value!r}")
    return Part(paths[file], offset, size, name)


def _sample(row: Any, classes: int, paths: _Paths | None) -> Sample:
    raw, label, group, digest, slices = row
    named = isinstance(slices, list) and all(isinstance(value, str) for value in slices)
    if not isinstance(digest, str) or not isinstance(group, (str, type(None))) or not named:
        raise TypeError(f"not a sample: {row!r}")
    several = isinstance(label, (list, tuple))
    if several:
        label = tuple(label)
        fits = len(label) == classes and all(type(flag) is int and flag in (0, 1) for flag in label)
    else:
        fits = type(label) is int and UNLABELLED <= label < classes
    if not fits:
        raise ValueError(f"label {label!r} does not fit {classes} classes")
    return Sample(_raw(raw, paths), label, group, digest, tuple(slices))


def digest_of_samples(samples: Sequence[Sample]) -> str:
    """SHA-256, in hexadecimal, of samples' content and labels, in their order."""
    return _sha256([[sample.digest, sample.label] for sample in samples])


def _sha256(value: Any) -> str:
    text = json.dumps(value, separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
