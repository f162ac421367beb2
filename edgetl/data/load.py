"""From the ``[data]`` table of edgetl.toml to a verified data set of images."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from edgetl.config import Data
from edgetl.data.dataset import UNLABELLED, Dataset, Sample
from edgetl.data.labels import identities, label_sets, names_of, split_people
from edgetl.data.leaks import check_groups, check_leaks
from edgetl.data.manifest import Row, class_folders, is_manifest, list_images
from edgetl.data.parts import Part
from edgetl.data.sources import Source, by_split, labelled_images, named, own_classes, source_of, sources_of
from edgetl.data.splits import split_val
from edgetl.data.verify import Progress, threads, verify_images
from edgetl.data.webdataset import is_shards
from edgetl.errors import DataError
from edgetl.runtime.decision import SEPARATOR
from edgetl.tomlfile import did_you_mean


def load_dataset(config: Data, *, progress: Progress | None = None) -> Dataset:
    """Read, verify and split a labelled data set.

    Classes are in the order of ``config.classes``, else of a data set's ``ClassLabel``, else the labels of train in
    plain sorted order (by code point: "10" comes before "2"). Every image is decoded once. Where val is left out, it is
    taken out of train.

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
    rows, config = _rows(config)
    classes, labels = _labelled(config, rows)
    everything = [row for listed in rows.values() for row in listed]
    digests = iter(verify_images([row.raw for row in everything], max_pixels=config.max_pixels, progress=progress))
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
    path: Path,
    classes: Sequence[str] = (),
    *,
    several: bool = False,
    max_pixels: int = 64_000_000,
    progress: Progress | None = None,
) -> tuple[Sample, ...]:
    """Read and verify samples that need no labels: for calibration, or for a model without a data set.

    A folder whose sub-folders are named after classes, or a manifest, shards or a saved data set with labels, gives
    labelled samples. A folder of images, at any depth, whose sub-folders are not classes gives samples labelled
    ``UNLABELLED``, and so does everything where ``classes`` is empty. A manifest's column split is not looked at.

    Args:
        path: A folder, a manifest, shards, or a folder that ``Dataset.save_to_disk`` wrote.
        classes: Names in the order of the model's outputs; empty where they are not known.
        several: Whether an image may have several labels; one without any then has no class, where others have some.
        max_pixels: An image with more is refused.
        progress: Called with the number of images verified and the total.

    Raises:
        DataError: No such folder, no image in it, or some sub-folders or labels are classes and others are not.
        ImageError: Images are damaged or too large.
        MissingExtraError: A Parquet manifest without pyarrow.
    """
    rows = _loose_rows(path, classes, several=several)
    labels = _loose_labels(rows, classes, several=several)
    digests = verify_images([row.raw for row in rows], max_pixels=max_pixels, progress=progress)
    return tuple(_sample(row, label, digest) for row, label, digest in zip(rows, labels, digests, strict=True))


def label_names(path: Path) -> tuple[str, ...]:
    """The labels that a folder's sub-folders, or the images of a manifest, of shards or of a data set have, sorted.

    Raises:
        DataError: It is not there, or it is damaged.
    """
    source = source_of(path)
    if not _is_plain_folder(source):
        rows = labelled_images(source, needs=(), several=False)
        return tuple(sorted({row.label for row in rows if row.label}))
    return tuple(sorted(class_folders(path)[0]))


def source_digest(config: Data) -> str:
    """SHA-256 of where the data lies and of every byte of it, in hexadecimal; no image is decoded.

    The location is in it because a stored :class:`Dataset` holds paths: a data set that moved must be read again. Its
    :meth:`Dataset.digest` is then the same, so nothing after it is done again.

    Raises:
        DataError: As :func:`load_dataset`, as far as it shows without decoding; or a file cannot be read.
    """
    rows, config = _rows(config)
    entries = [
        f"{split}\0{_place(row)}\0{row.label}\0{row.group or ''}\0{content}\0{row.slices}"
        for (split, row), content in _with_content((split, row) for split, listed in rows.items() for row in listed)
    ]
    # Of a data set, its own order of the classes, which no row says.
    entries.append("\0".join(config.classes))
    return hashlib.sha256("\n".join(entries).encode("utf-8", "surrogateescape")).hexdigest()


def samples_digest(path: Path, classes: Sequence[str] = ()) -> str:
    """As :func:`source_digest`, for what :func:`load_samples` would read.

    Raises:
        DataError: As :func:`load_samples`, as far as it shows without decoding; or a file cannot be read.
    """
    rows = _loose_rows(path, classes)
    entries = [
        f"{_place(row)}\0{row.label or ''}\0{content}" for (_, row), content in _with_content(("", row) for row in rows)
    ]
    return hashlib.sha256("\n".join(entries).encode("utf-8", "surrogateescape")).hexdigest()


def _rows(config: Data) -> tuple[dict[str, list[Row]], Data]:
    """The rows of every split that the user gave; and the configuration with the data set's own order of classes."""
    sources = sources_of(config)
    if "all" in sources:
        rows = by_split(_images(sources["all"], config, ("label", "split")), named(sources["all"]))
    else:
        rows = {split: _split_rows(split, source, config) for split, source in sources.items()}
    # An image with several labels has them with a separator between.
    found = {name for listed in rows.values() for row in listed for name in (row.label or "").split(SEPARATOR)}
    found |= {row.label or "" for listed in rows.values() for row in listed}
    classes = config.classes or own_classes(sources, config.label, found)
    return rows, config.model_copy(update={"classes": classes})


def _images(source: Source, config: Data, needs: tuple[str, ...]) -> list[Row]:
    several = config.task == "multi-label-images"
    return labelled_images(
        source, needs=needs, several=several, classes=config.classes, label=config.label, slices=config.slices
    )


def _split_rows(split: str, source: Source, config: Data) -> list[Row]:
    rows = _images(source, config, ("label",))
    for row in rows:
        if row.split not in (None, split):
            raise DataError(
                f"{named(source)}: {row.where}: split is '{row.split}' in the manifest that was given as data.{split}",
                hint="give one manifest for all splits as data.manifest",
            )
    return rows


def _is_plain_folder(source: Source) -> bool:
    return isinstance(source, Path) and not is_manifest(source) and not is_shards(source)


def _place(row: Row) -> str:
    return f"{row.raw}\0{row.raw.offset}\0{row.raw.size}" if isinstance(row.raw, Part) else str(row.raw)


def _loose_labels(rows: Sequence[Row], classes: Sequence[str], *, several: bool) -> list[int | tuple[int, ...]]:
    if several and any(row.label for row in rows):
        return [tuple(int(name in names_of(row)) for name in classes) for row in rows]
    index = {name: position for position, name in enumerate(classes)}
    return [UNLABELLED if row.label is None else index[row.label] for row in rows]


def _loose_rows(path: Path, classes: Sequence[str], *, several: bool = False) -> list[Row]:
    source = source_of(path)
    if not _is_plain_folder(source):
        rows = labelled_images(source, needs=(), several=several or not classes, classes=classes)
        labels = {name for row in rows if row.label for name in (names_of(row) if several else (row.label,))}
    else:
        folders, _ = class_folders(path)
        if set(folders) & set(classes):
            rows, labels = labelled_images(path, needs=("label",), several=False), set(folders)
        else:
            rows = [Row(image, None, None, None, str(image)) for image in list_images(path)]
            labels = set()
        if not rows:
            raise DataError(f"{path} is empty: it has no images", hint="give a folder of images, or a manifest")
    if not classes:
        return [Row(row.raw, None, row.split, row.group, row.where) for row in rows]
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
    return Sample(row.raw, label, row.group, digest, row.slices)


def _with_content(rows: Iterable[tuple[str, Row]]) -> Iterable[tuple[tuple[str, Row], str]]:
    """Every row with the SHA-256 of its file's bytes."""
    listed = list(rows)
    chunks = [listed[start : start + 64] for start in range(0, len(listed), 64)]
    with ThreadPoolExecutor(threads(), thread_name_prefix="edgetl-hash") as pool:
        for chunk, digests in zip(chunks, pool.map(_hash_files, chunks), strict=True):
            yield from zip(chunk, digests, strict=True)


def _hash_files(rows: Sequence[tuple[str, Row]]) -> list[str]:
    return [_hash(row.raw) for _, row in rows]


def _hash(raw: Path | Part) -> str:
    return hashlib.sha256(raw.read_bytes()).hexdigest() if isinstance(raw, Part) else _hash_file(raw)


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
