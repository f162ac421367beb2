"""From the ``[data]`` table of edgetl.toml to a verified data set of images."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from edgetl.config import Data
from edgetl.data.dataset import SPLITS, UNLABELLED, Dataset, Sample
from edgetl.data.labels import identities, label_sets, split_people
from edgetl.data.leaks import check_groups, check_leaks
from edgetl.data.manifest import Row, class_folders, is_manifest, list_images, read_folder, read_manifest
from edgetl.data.splits import split_val
from edgetl.data.verify import Progress, threads, verify_images
from edgetl.errors import DataError
from edgetl.tomlfile import did_you_mean


def load_dataset(config: Data, *, progress: Progress | None = None) -> Dataset:
    """Read, verify and split a labelled data set.

    Classes are in the order of ``config.classes``, else the labels of train in plain sorted order (by code point:
    "10" comes before "2"). Every image is decoded once. Where val is left out, it is taken out of train.

    Args:
        config: The ``[data]`` table, with absolute paths.
        progress: Called with the number of images verified and the total.

    Raises:
        DataError: No such folder, nothing in it, fewer than two classes, a class missing in a split, a label that is
            no class, a wrong manifest.
        ImageError: Images are damaged or too large.
        LeakError: Two splits share an image or a group.
        MissingExtraError: A Parquet manifest without pyarrow.
    """
    rows = _rows(config)
    classes, labels = _labelled(config, rows)
    everything = [row for listed in rows.values() for row in listed]
    digests = iter(verify_images([row.path for row in everything], max_pixels=config.max_pixels, progress=progress))
    splits = {
        split: tuple(_sample(row, label, next(digests)) for row, label in zip(listed, labels[split], strict=True))
        for split, listed in rows.items()
    }
    check_leaks(splits)
    check_groups(splits)
    if "val" not in splits:
        splits["train"], splits["val"] = split_val(splits["train"], config.val_fraction, config.split_seed, classes)
    return Dataset(classes, splits["train"], splits["val"], splits["test"])


def load_samples(
    path: Path, classes: Sequence[str] = (), *, max_pixels: int = 64_000_000, progress: Progress | None = None
) -> tuple[Sample, ...]:
    """Read and verify samples that need no labels: for calibration, or for a model without a data set.

    A folder whose sub-folders are named after classes, or a manifest with a column label, gives labelled samples. A
    folder of images, at any depth, whose sub-folders are not classes gives samples labelled ``UNLABELLED``, and so
    does everything where ``classes`` is empty. A manifest's column split is not looked at.

    Args:
        path: A folder or a manifest.
        classes: Names in the order of the model's outputs; empty where they are not known.
        max_pixels: An image with more is refused.
        progress: Called with the number of images verified and the total.

    Raises:
        DataError: No such folder, no image in it, or some sub-folders or labels are classes and others are not.
        ImageError: Images are damaged or too large.
        MissingExtraError: A Parquet manifest without pyarrow.
    """
    rows = _loose_rows(path, classes)
    index = {name: position for position, name in enumerate(classes)}
    digests = verify_images([row.path for row in rows], max_pixels=max_pixels, progress=progress)
    return tuple(
        _sample(row, UNLABELLED if row.label is None else index[row.label], digest)
        for row, digest in zip(rows, digests, strict=True)
    )


def label_names(path: Path) -> tuple[str, ...]:
    """The labels that a folder's sub-folders or a manifest's rows have, sorted.

    Raises:
        DataError: There is no such folder or manifest, or it is damaged.
    """
    if is_manifest(path):
        return tuple(sorted({row.label for row in read_manifest(path, needs=("path",)) if row.label}))
    return tuple(sorted(class_folders(path)[0]))


def source_digest(config: Data) -> str:
    """SHA-256 of where the data lies and of every byte of it, in hexadecimal; no image is decoded.

    The location is in it because a stored :class:`Dataset` holds paths: a data set that moved must be read again. Its
    :meth:`Dataset.digest` is then the same, so nothing after it is done again.

    Raises:
        DataError: As :func:`load_dataset`, as far as it shows without decoding; or a file cannot be read.
    """
    rows = _rows(config)
    entries = [
        f"{split}\0{row.path}\0{row.label}\0{row.group or ''}\0{content}"
        for (split, row), content in _with_content((split, row) for split, listed in rows.items() for row in listed)
    ]
    return hashlib.sha256("\n".join(entries).encode("utf-8", "surrogateescape")).hexdigest()


def samples_digest(path: Path, classes: Sequence[str] = ()) -> str:
    """As :func:`source_digest`, for what :func:`load_samples` would read.

    Raises:
        DataError: As :func:`load_samples`, as far as it shows without decoding; or a file cannot be read.
    """
    rows = _loose_rows(path, classes)
    entries = [
        f"{row.path}\0{row.label or ''}\0{content}" for (_, row), content in _with_content(("", row) for row in rows)
    ]
    return hashlib.sha256("\n".join(entries).encode("utf-8", "surrogateescape")).hexdigest()


def _rows(config: Data) -> dict[str, list[Row]]:
    """The rows of every split that the user gave."""
    # An image with several labels may have none.
    empty = ("label",) if config.task == "multi-label-images" else ()
    if config.manifest is not None:
        listed = read_manifest(config.manifest, may_be_empty=empty)
        rows = {split: [row for row in listed if row.split == split] for split in SPLITS}
        for split in ("train", "test"):
            if not rows[split]:
                raise DataError(f"{config.manifest}: no row has the split '{split}'")
        return rows if rows["val"] else {"train": rows["train"], "test": rows["test"]}
    sources = {"train": config.train, "val": config.val, "test": config.test}
    return {split: _split_rows(split, path, empty) for split, path in sources.items() if path is not None}


def _split_rows(split: str, path: Path, empty: tuple[str, ...]) -> list[Row]:
    if not is_manifest(path):
        return read_folder(path)
    rows = read_manifest(path, needs=("path", "label"), may_be_empty=empty)
    for row in rows:
        if row.split not in (None, split):
            raise DataError(
                f"{path}: {row.where}: split is '{row.split}' in the manifest that was given as data.{split}",
                hint="give one manifest for all splits as data.manifest",
            )
    return rows


def _loose_rows(path: Path, classes: Sequence[str]) -> list[Row]:
    if is_manifest(path):
        rows = read_manifest(path, needs=("path",))
        labels = {row.label for row in rows if row.label is not None}
    else:
        folders, _ = class_folders(path)
        if set(folders) & set(classes):
            rows, labels = read_folder(path), set(folders)
        else:
            rows = [Row(image, None, None, None, str(image)) for image in list_images(path)]
            labels = set()
        if not rows:
            raise DataError(f"{path} is empty: it has no images", hint="give a folder of images, or a manifest")
    if not classes:
        return [Row(row.path, None, row.split, row.group, row.where) for row in rows]
    unknown = sorted(labels - set(classes))
    if unknown:
        raise DataError(f"{path}: '{unknown[0]}' is not a class of the model; {did_you_mean(unknown[0], classes)}")
    return rows


_Labels = Mapping[str, Sequence[Any]]
"""Split → label of each of its rows, as :class:`Sample` has it."""


def _labelled(config: Data, rows: dict[str, list[Row]]) -> tuple[tuple[str, ...], _Labels]:
    """The classes, and every row's label.

    Of faces, people are the classes; where val is left out, whole people are moved from train to it, in ``rows``.
    """
    if config.task == "multi-label-images":
        return label_sets(rows, config.classes)
    if config.task == "face-verification":
        if "val" not in rows:
            rows["train"], rows["val"] = split_people(rows["train"], config.val_fraction, config.split_seed)
        return identities(rows)
    classes = _classes(config, rows)
    for split, listed in rows.items():
        _check_labels(split, listed, classes)
    index = {name: position for position, name in enumerate(classes)}
    return classes, {split: [index[row.label or ""] for row in listed] for split, listed in rows.items()}


def _classes(config: Data, rows: Mapping[str, Sequence[Row]]) -> tuple[str, ...]:
    classes = config.classes or tuple(sorted({row.label or "" for row in rows["train"]}))
    twice = sorted({name for name in classes if classes.count(name) > 1})
    if twice:
        raise DataError(f"data.classes names '{twice[0]}' more than once")
    if len(classes) < 2:
        raise DataError(
            f"there is only one class, '{classes[0]}': nothing can be learned from it",
            hint="train needs samples of at least two classes",
        )
    return classes


def _check_labels(split: str, rows: Sequence[Row], classes: Sequence[str]) -> None:
    labels = {row.label or "": row.where for row in reversed(rows)}
    for label in sorted(set(labels) - set(classes)):
        raise DataError(
            f"{split} has the label '{label}' ({labels[label]}), which is not a class; {did_you_mean(label, classes)}",
            hint="the classes are those of data.classes, else the labels of train",
        )
    missing = [name for name in classes if name not in labels]
    if missing:
        named = ", ".join(f"'{name}'" for name in missing[:10]) + (" …" if len(missing) > 10 else "")
        raise DataError(
            f"{split} has no sample of {len(missing)} of {len(classes)} classes: {named}",
            hint=f"add samples of them to {split}, or leave the classes out of every split",
        )


def _sample(row: Row, label: int | tuple[int, ...], digest: str) -> Sample:
    return Sample(row.path, label, row.group, digest)


def _with_content(rows: Iterable[tuple[str, Row]]) -> Iterable[tuple[tuple[str, Row], str]]:
    """Every row with the SHA-256 of its file's bytes."""
    listed = list(rows)
    chunks = [listed[start : start + 64] for start in range(0, len(listed), 64)]
    with ThreadPoolExecutor(threads(), thread_name_prefix="edgetl-hash") as pool:
        for chunk, digests in zip(chunks, pool.map(_hash_files, chunks), strict=True):
            yield from zip(chunk, digests, strict=True)


def _hash_files(rows: Sequence[tuple[str, Row]]) -> list[str]:
    return [_hash_file(row.path) for _, row in rows]


def _hash_file(path: Path) -> str:
    content = hashlib.sha256()
    try:
        # Unbuffered: most images fit into one read, and a buffer would be allocated for each of them.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while block := os.read(descriptor, 1 << 20):
                content.update(block)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    return content.hexdigest()
