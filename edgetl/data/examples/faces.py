"""Example faces: portraits of people, of whom every split has others."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgetl.data.examples.folder import Rows, other_rows, publish, write_manifest, wrong_count
from edgetl.data.manifest import read_folder
from edgetl.errors import DataError, SetupError, not_imported
from edgetl.numbers import counted

_WHAT = "the faces"
_SHARES = {"test": 0.25, "val": 0.15}
"""Of the people; what is left is train. Of 40 people: 24 train, 6 val, 10 test."""
_FEWEST = 6
_PEOPLE, _IMAGES = 40, 400
_SOURCE_HINT = "edgetl init DIR --example faces --source FOLDER, a folder with one sub-folder of photographs per person"

_Pixels = NDArray[np.uint8]


def materialise_faces(folder: Path, source: Path | None = None) -> Path:
    """Write a manifest of faces whose splits have different people: of 40 people 24 train, 6 val and 10 test.

    In the order of their names the first people are train, the next val, the last test. The folder appears complete or
    not at all; where it is already complete, nothing is done.

    Args:
        folder: Made with its parents; an existing one must be empty or complete.
        source: A folder with one sub-folder of images per person; the manifest lists them where they are, and nothing
            is copied. None: the 400 portraits of 40 people that scikit-learn downloads as "Olivetti faces" (AT&T
            Laboratories Cambridge, 64 × 64 grey), written as PNG files.

    Returns:
        The manifest.

    Raises:
        DataError: There is no such source, it has fewer than six people, or a person with a single image; or the folder
            holds something else.
        MissingExtraError: Without a source: scikit-learn is not installed.
        SetupError: Without a source: the faces cannot be downloaded.
        StorageError: The folder cannot be written, or the disk is full.
    """
    if source is None:
        return publish(folder, _WHAT, lambda manifest: wrong_count(manifest, _IMAGES), _write_olivetti)
    rows = _rows_of(source)
    return publish(folder, _WHAT, lambda manifest: other_rows(manifest, rows), lambda new: write_manifest(new, rows))


def _rows_of(source: Path) -> Rows:
    images: dict[str, list[Path]] = {}
    for row in read_folder(source):
        images.setdefault(row.label or "", []).append(row.path)
    if len(images) < _FEWEST:
        raise DataError(
            f"{source} has the faces of {counted(len(images), 'person', 'people')}; train, val and test need two each",
            hint="one sub-folder per person, and six of them or more",
        )
    alone = [person for person, paths in images.items() if len(paths) < 2]
    if alone:
        raise DataError(
            f"{source / alone[0]}: there is one image of '{alone[0]}', and no pair to compare",
            hint="add images, or remove the folder",
        )
    splits = _splits(list(images))
    return [(str(path), person, splits[person]) for person, paths in images.items() for path in paths]


def _splits(people: Sequence[str]) -> Mapping[str, str]:
    """The split of every person: by name, the first are train, the next val, and the last test."""
    ordered = sorted(people)
    result = dict.fromkeys(ordered, "train")
    end = len(ordered)
    for split, share in _SHARES.items():
        count = max(2, round(share * len(ordered)))
        result.update(dict.fromkeys(ordered[end - count : end], split))
        end -= count
    return result


def _write_olivetti(folder: Path) -> None:
    pixels, people = _download(folder / "download")
    splits = _splits([f"s{number:02}" for number in range(1, _PEOPLE + 1)])
    rows = []
    for position, number in enumerate(people):
        person = f"s{number + 1:02}"
        (folder / person).mkdir(exist_ok=True)
        name = f"{person}/{position % 10 + 1:02}.png"
        Image.fromarray(pixels[position]).save(folder / name)
        rows.append((name, person, splits[person]))
    write_manifest(folder, rows)


def _download(temporary: Path) -> tuple[_Pixels, list[int]]:
    """Images (400, 64, 64) and the number of each one's person, from 0; of a person there are ten in a row."""
    try:
        datasets: Any = importlib.import_module("sklearn.datasets")
    except ImportError as error:
        raise not_imported(error, "scikit-learn", extra="demo", needed_for="downloading the example 'faces'") from None
    try:
        found: Any = datasets.fetch_olivetti_faces(data_home=str(temporary))
    except (OSError, ValueError) as error:  # no network is an OSError, a file that is not what it was a ValueError too
        raise SetupError(f"the Olivetti faces cannot be downloaded: {error}", hint=_SOURCE_HINT) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    images = np.asarray(found.images)
    people = [int(number) for number in found.target]
    if images.shape != (_IMAGES, 64, 64) or people != sorted(people) or len(set(people)) != _PEOPLE:
        raise DataError(f"scikit-learn has other Olivetti faces than it should: {images.shape}", hint=_SOURCE_HINT)
    return np.rint(images * 255).clip(0, 255).astype(np.uint8), people
