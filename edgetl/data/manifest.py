"""What the user's files list: folders with one sub-folder per class, and CSV or Parquet manifests.

Nothing is decoded here. Every function returns rows in an order that depends on names alone: folders sorted by
relative path, manifests in the order of their lines.
"""

from __future__ import annotations

import csv
import difflib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetl.data.dataset import SPLITS
from edgetl.errors import DataError, MissingExtraError
from edgetl.tomlfile import did_you_mean

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
MANIFEST_SUFFIXES = (".csv", ".parquet")
# Formats that people keep photographs in and that would be left out without a word if they were merely not listed.
_REFUSED_SUFFIXES = (".gif", ".heic", ".heif", ".avif", ".jfif", ".jp2", ".ppm", ".pgm", ".tga", ".dng")
_COLUMNS = ("path", "label", "split", "group")
_MAX_NAMED = 20


@dataclass(frozen=True)
class Row:
    """One image that is listed, not yet opened."""

    path: Path
    """Absolute."""
    label: str | None
    """Name of the class, or names with ';' between; None where there is none."""
    split: str | None
    """train, val or test; None where the source does not say."""
    group: str | None
    where: str
    """Where it is listed, for messages: file and line of a manifest, or the image itself."""


def is_manifest(path: Path) -> bool:
    """Whether a path is a manifest by its suffix (.csv, .parquet); anything else is taken for a folder."""
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
            f"{folder}: {len(beside)} images lie beside the class folders, as '{beside[0]}'",
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
    path: Path, *, needs: Sequence[str] = ("path", "label", "split"), may_be_empty: Collection[str] = ()
) -> list[Row]:
    """The rows of a CSV or Parquet manifest.

    Columns: path (relative to the manifest's folder, or absolute), label, split (train, val or test) and group
    (optional; empty: the sample is alone). Other columns are ignored. Blanks around values are removed. A CSV file
    is UTF-8 with commas and a header.

    Args:
        path: Ends in .csv or .parquet.
        needs: The columns that must be there and be filled in every row.
        may_be_empty: Of those, the ones that need not be filled: ("label",) where a sample may have no class at all.

    Raises:
        DataError: The file is not there or cannot be parsed, a column is missing, or rows are wrong; the rows are
            named by line.
        MissingExtraError: Parquet without pyarrow.
    """
    if not path.is_file():
        raise DataError(f"there is no manifest {path}")
    columns, records = _read_parquet(path) if path.suffix.lower() == ".parquet" else read_csv(path)
    _check_columns(path, columns, needs)
    checker = _RowChecker(_absolute(path).parent, set(needs) - set(may_be_empty))
    rows = [row for where, record in records if (row := checker.row(where, record)) is not None]
    if checker.problems:
        total = len(checker.problems)
        listed = "\n".join(f"  {problem}" for problem in checker.problems[:_MAX_NAMED])
        more = f"\n  … and {total - _MAX_NAMED} more" if total > _MAX_NAMED else ""
        raise DataError(f"{path}: {total} {'rows are' if total > 1 else 'row is'} wrong:\n{listed}{more}")
    if not rows:
        raise DataError(f"{path} is empty: it has a header and no rows")
    return rows


class _RowChecker:
    """Turns records into rows and collects what is wrong with them, so that all of it is told at once."""

    def __init__(self, folder: Path, filled: set[str]) -> None:
        self.problems: list[str] = []
        self._folder = folder
        self._filled = filled
        self._first: dict[Path, str] = {}

    def row(self, where: str, record: Mapping[str, str] | str) -> Row | None:
        """The row, or None where something is wrong with it."""
        problem = record if isinstance(record, str) else self._problem(record)
        if problem or isinstance(record, str):
            self.problems.append(f"{where}: {problem}")
            return None
        path = _absolute(self._folder / record["path"])
        earlier = self._first.setdefault(path, where)
        if earlier != where:
            self.problems.append(f"{where}: duplicate path '{record['path']}', already on {earlier}")
            return None
        if not path.is_file():
            self.problems.append(f"{where}: there is no file '{record['path']}'")
            return None
        label, split, group = (record.get(name) or None for name in ("label", "split", "group"))
        return Row(path, label, split, group, where)

    def _problem(self, record: Mapping[str, str]) -> str | None:
        for name in ("path", "label", "split"):
            if name in self._filled and not record.get(name):
                return f"{name} is empty"
        split = record.get("split")
        if split and split not in SPLITS:
            return f"unknown split '{split}'; {did_you_mean(split, SPLITS)}"
        return None


def _check_columns(path: Path, columns: Sequence[str], needs: Iterable[str]) -> None:
    twice = sorted({name for name in columns if name and columns.count(name) > 1})
    if twice:
        raise DataError(f"{path}: column '{twice[0]}' stands there twice")
    others = [name for name in columns if name and name not in _COLUMNS]
    for name in needs:
        if name not in columns:
            near = difflib.get_close_matches(name, others, n=1)
            meant = f"did you mean '{near[0]}'?" if near else f"the columns are: {', '.join(columns) or 'none'}"
            raise DataError(f"{path}: column '{name}' is missing; {meant}", hint="path,label,split[,group]")
    # A misspelt optional column would be ignored, and with it the promise that a group is never torn apart.
    near = difflib.get_close_matches("group", others, n=1, cutoff=0.75)
    if near and "group" not in columns:
        raise DataError(f"{path}: unknown column '{near[0]}'; did you mean 'group'?", hint=f"rename '{near[0]}'")


_Records = Iterable[tuple[str, "dict[str, str] | str"]]


def read_csv(path: Path) -> tuple[list[str], _Records]:
    """The column names, and per row its place and its values by column, or what is wrong with it."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            columns = [name.strip() for name in next(reader, [])]
            records: list[tuple[str, dict[str, str] | str]] = []
            for values in reader:
                if any(value.strip() for value in values):
                    records.append((f"line {reader.line_num}", _record(columns, values)))
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: not valid CSV: {error}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8: {error}", hint="save the manifest as UTF-8") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}") from error
    return columns, records


def _record(columns: Sequence[str], values: Sequence[str]) -> dict[str, str] | str:
    if len(values) != len(columns):
        return f"{len(values)} values for {len(columns)} columns"
    return {name: value.strip() for name, value in zip(columns, values, strict=True)}


def _read_parquet(path: Path) -> tuple[list[str], _Records]:
    """As :func:`read_csv`; rows are counted from 1."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise MissingExtraError("pyarrow", extra="train", needed_for=f"reading {path}") from None
    try:
        names = [str(name) for name in parquet.read_schema(path).names]
        table: dict[str, list[Any]] = parquet.read_table(
            path, columns=[name for name in names if name in _COLUMNS]
        ).to_pydict()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not valid Parquet: {error}") from None
    count = max((len(values) for values in table.values()), default=0)
    records = (
        (
            f"row {index + 1}",
            {name: "" if values[index] is None else str(values[index]).strip() for name, values in table.items()},
        )
        for index in range(count)
    )
    return names, records


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
            f"{folder} is neither a folder nor a manifest", hint=f"manifests end in {' or '.join(MANIFEST_SUFFIXES)}"
        ) from None
    except OSError as error:
        raise DataError(f"cannot list {folder}: {error}") from error


def _is_image(entry: os.DirEntry[str]) -> bool:
    suffix = Path(entry.name).suffix.lower()
    if suffix in _REFUSED_SUFFIXES:
        raise DataError(
            f"{entry.path}: images of the kind {suffix} are not read",
            hint=f"convert it; read are {' '.join(IMAGE_SUFFIXES)}",
        )
    return suffix in IMAGE_SUFFIXES


def _absolute(path: Path) -> Path:
    """Without "." and "..", but with symbolic links as they are: a message should show the path that was given."""
    return Path(os.path.normpath(path.absolute()))
