"""Example photographs: a folder of the user's, or a part of CIFAR-10."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgetl.data.dataset import SPLITS
from edgetl.data.examples.folder import Rows, other_rows, publish, write_manifest, wrong_count
from edgetl.data.manifest import Row, class_folders, read_folder
from edgetl.errors import DataError, SetupError, not_imported
from edgetl.numbers import counted

_WHAT = "the photographs"
_TEST_SHARE = 0.25
_FEWEST = 4
"""Images of a class: one for test, and three that train and val are made of."""
_PER_CLASS = {"train": 300, "test": 100}
"""Of CIFAR-10: as many as a processor learns in minutes."""
_SEED = 0
_SOURCE_HINT = "edgetl init DIR --example photos --source FOLDER, a folder with one sub-folder of photographs per class"

_Pixels = NDArray[np.uint8]


def materialise_photos(folder: Path, source: Path | None = None) -> Path:
    """Write a manifest of photographs. Val is left out of it: ``[data]`` takes it out of train.

    The folder appears complete or not at all; where it is already complete, nothing is done.

    Args:
        folder: Made with its parents; an existing one must be empty or complete.
        source: A folder with one sub-folder of images per class, of which a quarter becomes test, chosen by content; or
            with such folders in train and test, and perhaps val. Where there are only train and val, val is the test
            split. The manifest lists the images where they are, and nothing is copied. None: 300 + 100 photographs of
            each of the ten classes of CIFAR-10, which torchvision downloads (170 MB), written as PNG files.

    Returns:
        The manifest.

    Raises:
        DataError: There is no such source, it has fewer than two classes, or a class with fewer than four images; or
            the folder holds something else.
        MissingExtraError: Without a source: torchvision is not installed.
        SetupError: Without a source: CIFAR-10 cannot be downloaded.
        StorageError: The folder cannot be written, or the disk is full.
    """
    if source is None:
        count = 10 * sum(_PER_CLASS.values())
        return publish(folder, _WHAT, lambda manifest: wrong_count(manifest, count), _write_cifar)
    rows = _rows_of(source)
    return publish(folder, _WHAT, lambda manifest: other_rows(manifest, rows), lambda new: write_manifest(new, rows))


def _rows_of(source: Path) -> Rows:
    names, _ = class_folders(source)
    if "train" in names and len(names) > 1 and set(names) <= set(SPLITS):
        rows = {split: read_folder(source / split) for split in names}
        if "test" not in rows:
            rows["test"] = rows.pop("val")
    else:
        rows = _divided(read_folder(source))
    classes = {row.label for row in rows["train"]}
    if len(classes) < 2:
        raise DataError(
            f"{source} has only one class, '{classes.pop()}'",
            hint="one sub-folder per class, and two of them or more",
        )
    return [(str(row.path), row.label or "", split) for split in SPLITS for row in rows.get(split, ())]


def _divided(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """A quarter of every class for test; the hash of a file decides, and copies of a file stay together."""
    counts = Counter(row.label for row in rows)
    few = [name for name, count in counts.items() if count < _FEWEST]
    if few:
        raise DataError(
            f"class '{few[0]}' has {counted(counts[few[0]], 'image')}; it takes {_FEWEST} to have some in"
            " train, val and test",
            hint="add images, or remove the folder",
        )
    left = {name: max(1, round(_TEST_SHARE * count)) for name, count in counts.items()}
    copies: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        copies[_content(row.path)].append(row)
    tested: set[Path] = set()
    for digest in sorted(copies):
        inside = Counter(row.label for row in copies[digest])
        if all(left[name] >= count for name, count in inside.items()):
            left = {name: count - inside[name] for name, count in left.items()}
            tested.update(row.path for row in copies[digest])
    return {
        "train": [row for row in rows if row.path not in tested],
        "test": [row for row in rows if row.path in tested],
    }


def _content(path: Path) -> str:
    try:
        return hashlib.sha256(f"{_SEED}:".encode() + path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None


def _write_cifar(folder: Path) -> None:
    rows = []
    for split, count in _PER_CLASS.items():
        pixels, labels, classes = _download(folder / "download", split)
        for label, name in enumerate(classes):
            (folder / split / name).mkdir(parents=True)
            for position in _chosen(pixels, np.flatnonzero(np.asarray(labels) == label).tolist(), count):
                path = f"{split}/{name}/{position:05}.png"
                Image.fromarray(pixels[position]).save(folder / path)
                rows.append((path, name, split))
    shutil.rmtree(folder / "download", ignore_errors=True)
    write_manifest(folder, rows)


def _chosen(pixels: _Pixels, positions: Iterable[int], count: int) -> list[int]:
    """So many of the positions, by the hash of their pixels."""
    ranked = sorted(
        positions, key=lambda position: hashlib.sha256(f"{_SEED}:".encode() + pixels[position].tobytes()).digest()
    )
    return sorted(ranked[:count])


def _download(temporary: Path, split: str) -> tuple[_Pixels, list[int], list[str]]:
    """Images (n, 32, 32, 3), their labels, and the names of the classes."""
    try:
        from torchvision.datasets import CIFAR10
    except ImportError as error:
        raise not_imported(error, "torchvision", extra="train", needed_for="downloading the example 'photos'") from None
    try:
        found: Any = CIFAR10(str(temporary), train=split == "train", download=True)
    except (OSError, RuntimeError) as error:  # no network is an OSError, a damaged file a RuntimeError
        raise SetupError(f"CIFAR-10 cannot be downloaded: {error}", hint=_SOURCE_HINT) from None
    return found.data, list(found.targets), list(found.classes)
