"""What the user's files list: folders with one sub-folder per class, and manifests in CSV, Parquet or JSON Lines.

Nothing is decoded here. Every function returns rows in an order that depends on names alone: folders sorted by
relative path, manifests in the order of their lines.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetl.data.dataset import SPLITS
from edgetl.data.parts import Part
from edgetl.data.records import (
    RECORD_SUFFIXES,
    Record,
    WrongRow,
    check_columns,
    is_blank,
    label_text,
    parsed,
    read_records,
)
from edgetl.errors import DataError
from edgetl.numbers import counted
from edgetl.tomlfile import did_you_mean

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
MANIFEST_SUFFIXES = RECORD_SUFFIXES
REFUSED_SUFFIXES = (".gif", ".heic", ".heif", ".avif", ".jfif", ".jp2", ".ppm", ".pgm", ".tga", ".dng")
"""Formats that people keep photographs in and that would be left out without a word if they were merely not listed."""
_COLUMNS = ("path", "label", "split", "group")


@dataclass(frozen=True)
class Row:
    """One image that is listed, not yet opened."""

    raw: Path | Part
    """A file, its path absolute; or a part of one."""
    label: str | None
    """Name of the class, or names with ';' between; None where there is none."""
    split: str | None
    """train, val or test; None where the source does not say."""
    group: str | None
    where: str
    """Where it is listed, for messages: the line of a manifest, or the image itself."""
    slices: tuple[str, ...] = ()
    """What stands in each of the columns of data.slices."""

    @property
    def path(self) -> Path:
        """Of an image that is a file of its own, as in a folder or a manifest."""
        assert isinstance(self.raw, Path)
        return self.raw


def is_manifest(path: Path) -> bool:
    """Whether a path is a manifest by its suffix (.csv, .parquet, .jsonl, .ndjson)."""
    return path.suffix.lower() in MANIFEST_SUFFIXES


def read_folder(folder: Path) -> list[Row]:
    """The images of a folder with one sub-folder per class, at any depth below it, sorted by relative path.

    Names that begin with a dot are ignored, and so are files that are not images.

    Raises:
        DataError: No such folder, no class sub-folder, a class sub-folder without an image, an image beside the
            class sub-folders, or an image in a format that edgetl does not read.
    """
    classes, beside = class_folders(folder)
    if beside:
        raise DataError(
            f"{folder}: {counted(len(beside), 'image lies', 'images lie')} beside the class folders, as '{beside[0]}'",
            hint="move each into the sub-folder of its class",
        )
    if not classes:
        raise DataError(
            f"{folder} is empty: it has no sub-folder with images",
            hint="put the images of each class into a sub-folder that is named after the class",
        )
    rows = []
    for name in classes:
        found = [Row(path, name, None, None, str(path)) for path in list_images(folder / name)]
        if not found:
            raise DataError(
                f"{folder / name}: class '{name}' has no image",
                hint=f"read are {' '.join(IMAGE_SUFFIXES)}; add images or remove the folder",
            )
        rows += found
    return rows


def class_folders(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the sub-folders and of the images directly in a folder, both sorted, hidden ones left out.

    Raises:
        DataError: There is no such folder, or it cannot be listed.
    """
    entries = _entries(_absolute(folder))
    folders = [entry.name for entry in entries if entry.is_dir()]
    images = [entry.name for entry in entries if not entry.is_dir() and _is_image(entry)]
    return folders, images


def list_images(folder: Path) -> list[Path]:
    """Absolute paths of the images in a folder and below it, sorted by relative path.

    Symbolic links are followed, except one that leads back to a folder it lies in.

    Raises:
        DataError: No such folder, it cannot be listed, or an image has a format that edgetl does not read.
    """
    # Folders lie on a common path, so sorting by parts is sorting by relative path.
    return sorted(_walk(_absolute(folder), frozenset()), key=lambda path: path.parts)


def read_manifest(
    path: Path,
    *,
    needs: Sequence[str] = ("path", "label", "split"),
    may_be_empty: Collection[str] = (),
    slices: Sequence[str] = (),
) -> list[Row]:
    """The rows of a CSV, Parquet or JSON Lines manifest.

    Columns: path (relative to the manifest's folder, or absolute), label, split (train, val or test) and group
    (optional; empty: the sample is alone). Other columns are ignored. Blanks around values are removed. A CSV file
    is UTF-8 with commas and a header.

    Args:
        path: Ends in one of :data:`MANIFEST_SUFFIXES`.
        needs: The columns that must be there and be filled in every row.
        may_be_empty: Of those, the ones that need not be filled: ("label",) where a sample may have no class at all,
            or several: in Parquet and JSON Lines its label may then be a list.
        slices: Other columns that must be there, and whose values rows keep.

    Raises:
        DataError: The file is not there or cannot be parsed, a column is missing, or rows are wrong; the rows are
            named by line.
        MissingExtraError: Parquet without pyarrow.
    """
    if not path.is_file():
        raise DataError(f"there is no manifest {path}")
    records = read_records(path, (*_COLUMNS, *slices))
    check_columns(records, (*needs, *slices), _COLUMNS)
    rows = parsed(records, _RowChecker(_absolute(path).parent, set(needs), set(may_be_empty), slices).row)
    if not rows:
        raise DataError(f"{path} is empty: it has a header and no rows")
    return rows


class _RowChecker:
    """Turns records into rows, and knows which paths stood there before."""

    def __init__(self, folder: Path, needs: set[str], may_be_empty: set[str], slices: Sequence[str]) -> None:
        self._folder = folder
        self._slices = slices
        self._filled = needs - may_be_empty
        self._several = "label" in may_be_empty
        self._first: dict[Path, str] = {}

    def row(self, where: str, record: Record) -> Row | None:
        """The row; None where it is blank.

        Raises:
            WrongRow: Something is wrong with it.
        """
        if is_blank(record):
            return None
        values = {name: _text(record.get(name)) for name in ("path", "split", "group")}
        label = record.get("label")
        values["label"] = label_text(label, several=self._several) if isinstance(label, list) else _text(label)
        for name in ("path", "label", "split"):
            if name in self._filled and not values[name]:
                raise WrongRow(f"{name} is empty")
        if values["split"] and values["split"] not in SPLITS:
            raise WrongRow(f"unknown split '{values['split']}'; {did_you_mean(values['split'], SPLITS)}")
        path = _absolute(self._folder / values["path"])
        earlier = self._first.setdefault(path, where)
        if earlier != where:
            raise WrongRow(f"duplicate path '{values['path']}', already on {earlier}")
        if not path.is_file():
            raise WrongRow(f"there is no file '{values['path']}'")
        slices = tuple(_text(record.get(name)) for name in self._slices)
        return Row(path, values["label"] or None, values["split"] or None, values["group"] or None, where, slices)


def _text(value: Any) -> str:
    if isinstance(value, (dict, list)):
        raise WrongRow(f"{json.dumps(value, ensure_ascii=False)[:80]} stands where a name should")
    return "" if value is None else str(value).strip()


def _walk(folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[Path]:
    entries = _entries(folder)
    state = folder.stat()
    identity = (state.st_dev, state.st_ino)
    if identity in above:
        return
    for entry in entries:
        if entry.is_dir():
            yield from _walk(Path(entry.path), above | {identity})
        elif _is_image(entry):
            yield Path(entry.path)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except FileNotFoundError:
        raise DataError(f"there is no folder {folder}") from None
    except NotADirectoryError:
        raise DataError(
            f"{folder} is neither a folder nor a manifest",
            hint=f"manifests end in {' or '.join(MANIFEST_SUFFIXES)}, shards in .tar",
        ) from None
    except OSError as error:
        raise DataError(f"cannot list {folder}: {error}") from error


def _is_image(entry: os.DirEntry[str]) -> bool:
    suffix = Path(entry.name).suffix.lower()
    if suffix in REFUSED_SUFFIXES:
        raise DataError(
            f"{entry.path}: images of the kind {suffix} are not read",
            hint=f"convert it; read are {' '.join(IMAGE_SUFFIXES)}",
        )
    return suffix in IMAGE_SUFFIXES


def _absolute(path: Path) -> Path:
    """Without "." and "..", but with symbolic links as they are: a message should show the path that was given."""
    return Path(os.path.normpath(path.absolute()))
