"""A folder of example data with a manifest, which appears complete or not at all."""

from __future__ import annotations

import csv
import io
import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from edgetl.data.manifest import read_manifest
from edgetl.errors import DataError, StorageError

MANIFEST = "manifest.csv"


def publish(folder: Path, what: str, problem: Callable[[Path], str | None], write: Callable[[Path], None]) -> Path:
    """Write example data, unless it is there already.

    Args:
        folder: Made with its parents; an existing one must be empty or hold the data.
        what: Words for messages: "the digits".
        problem: Says of an existing manifest what is wrong with it or with what it lists; None: nothing.
        write: Fills a new folder that another name is given to afterwards; its manifest is ``manifest.csv``.

    Returns:
        The manifest, absolute.

    Raises:
        DataError: The folder holds something else; or as ``write``.
        StorageError: The folder cannot be written, or the disk is full.
    """
    folder = folder.absolute()
    temporary = folder.parent / f".{folder.name}.{uuid.uuid4().hex}"
    try:
        if _complete(folder, what, problem):
            return folder / MANIFEST
        temporary.mkdir(parents=True)
        write(temporary)
        try:
            temporary.rename(folder)
        except OSError:
            # Somebody else may have finished first; what stands there is then as good as ours.
            if not _complete(folder, what, problem):
                raise
    except OSError as error:
        raise StorageError(f"{what} cannot be written to {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder / MANIFEST


Rows = Sequence[tuple[str, str, str]]
"""Path, label and split of every image; a path is relative to the manifest's folder, or absolute."""


def write_manifest(folder: Path, rows: Rows) -> None:
    """Write ``manifest.csv`` into a folder."""
    (folder / MANIFEST).write_bytes(_text(rows).encode())


def other_rows(manifest: Path, rows: Rows) -> str | None:
    """What is wrong with a manifest that should be of these rows; None: nothing."""
    same = manifest.read_bytes() == _text(rows).encode()
    return None if same else f"{manifest} lists something else than these {len(rows)} images"


def wrong_count(manifest: Path, count: int) -> str | None:
    """What is wrong with a manifest that should list so many images, all of them there; None: nothing."""
    try:
        found = len(read_manifest(manifest))
    except DataError as error:
        return error.message
    return None if found == count else f"{manifest} has {found} rows, not {count}"


def _text(rows: Rows) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("path", "label", "split"))
    writer.writerows(rows)
    return file.getvalue()


def _complete(folder: Path, what: str, problem: Callable[[Path], str | None]) -> bool:
    """True where the data is there, False where there is nothing.

    Raises:
        DataError: There is something else.
    """
    if not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir())):
        return False
    hint = f"remove {folder} and run this again, or give another folder"
    if not (folder / MANIFEST).is_file():
        raise DataError(f"{folder} already exists and does not hold {what}", hint=hint)
    found = problem(folder / MANIFEST)
    if found is not None:
        raise DataError(f"{folder} does not hold {what} as it should: {found}", hint=hint)
    return True
