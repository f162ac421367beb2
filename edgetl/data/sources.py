"""Where samples come from: folders, manifests and files of rows, WebDataset shards, and data sets of Hugging Face."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from edgetl.config import Data
from edgetl.data.dataset import SPLITS
from edgetl.data.huggingface import Saved, file_digest, is_saved, open_hub, open_saved
from edgetl.data.manifest import Row, is_manifest, read_folder, read_manifest
from edgetl.data.records import Record, Records, WrongRow, class_name, label_text, parsed, read_records
from edgetl.data.webdataset import is_shards, read_shards
from edgetl.errors import DataError
from edgetl.tomlfile import did_you_mean

Source = Path | Saved
"""A path, or a data set that was opened."""


class _Split(Protocol):
    @property
    def split(self) -> str | None: ...


_Row = TypeVar("_Row", bound=_Split)


def sources_of(config: Data) -> dict[str, Source]:
    """The sources of a ``[data]`` table by split; one that says itself which split a sample is in is "all".

    Raises:
        DataError: A data set cannot be opened, or has not the splits that it needs.
        MissingExtraError: The package datasets is not installed.
    """
    if config.hub is not None:
        return dict(open_hub(config.hub))
    if config.manifest is not None:
        opened = open_saved(config.manifest) if is_saved(config.manifest) else config.manifest
        return dict(opened) if isinstance(opened, dict) else {"all": opened}
    named = {"train": config.train, "val": config.val, "test": config.test}
    return {split: source_of(path) for split, path in named.items() if path is not None}


def source_of(path: Path) -> Source:
    """The source that a path is.

    Raises:
        DataError: A data set cannot be opened, or has several splits.
        MissingExtraError: The package datasets is not installed.
    """
    if not is_saved(path):
        return path
    opened = open_saved(path)
    if isinstance(opened, dict):
        raise DataError(
            f"{path} has several splits: {', '.join(opened)}",
            hint=f"give {path} as data.manifest, or the folder of one split, as {path / 'train'}",
        )
    return opened


def named(source: Source) -> str:
    """How a message names a source."""
    return source.name if isinstance(source, Saved) else str(source)


def content_digest(source: Source) -> str:
    """SHA-256 of every byte of a file or data set of rows, in hexadecimal; where it lies is not in it.

    Raises:
        DataError: It cannot be read.
    """
    if isinstance(source, Saved):
        return source.digest()
    if not source.is_file():
        raise DataError(f"cannot read {source}: there is no file of that name")
    return hashlib.sha256(f"{source.suffix.lower()}\0{file_digest(source)}".encode()).hexdigest()


def rows_of(
    source: Source, columns: Collection[str] | None = None, *, label: str = "label", classes: Sequence[str] = ()
) -> Records:
    """The rows of a file or data set.

    Args:
        source: Of rows.
        columns: The columns that are looked at; None: all.
        label: The column of a data set that is the label; it is called "label" in what is returned, unless ``columns``
            is None.
        classes: Of a data set whose labels are numbers without names: the names, where they are known.

    Raises:
        DataError: It cannot be read, or the data set has no such label column.
        MissingExtraError: Parquet without pyarrow.
    """
    if not isinstance(source, Saved):
        return read_records(source, columns)
    if columns is None:
        return source.records()
    _check_label(source, label)
    records = source.records({name: label if name == "label" else name for name in columns})
    if not classes:
        return records

    def with_name(row: Record | str) -> Record | str:
        number = isinstance(row, dict) and isinstance(row.get("label"), int) and not isinstance(row["label"], bool)
        return {**row, "label": class_name(row["label"], classes)} if number and isinstance(row, dict) else row

    rows = tuple((where, with_name(row)) for where, row in records.rows)
    return Records(records.source, records.columns, rows, records.hint)


def own_classes(sources: Mapping[str, Source], label: str, found: Collection[str | None]) -> tuple[str, ...]:
    """The classes in the order of a data set's ``ClassLabel``, without those that no sample has.

    Args:
        sources: From :func:`sources_of`.
        label: The column with the label.
        found: Labels that samples have.

    Returns:
        Empty where train has no such column.
    """
    train = sources.get("train", sources.get("all"))
    names = train.class_names(label) if isinstance(train, Saved) else ()
    return tuple(name for name in names if name in found)


def by_split(rows: Sequence[_Row], source: str) -> dict[str, list[_Row]]:
    """The rows of a source that says itself in which split each is; val is left out where it has none.

    Raises:
        DataError: No row is in train, or in test.
    """
    splits = {split: [row for row in rows if row.split == split] for split in SPLITS}
    for split in ("train", "test"):
        if not splits[split]:
            raise DataError(f"{source}: no row has the split '{split}'")
    return {split: listed for split, listed in splits.items() if listed}


# --- images -----------------------------------------------------------------------------------------------------------


def labelled_images(
    source: Source,
    *,
    needs: Sequence[str],
    several: bool,
    classes: Sequence[str] = (),
    label: str = "label",
    slices: Sequence[str] = (),
) -> list[Row]:
    """The images of a source and their labels; nothing is decoded.

    Args:
        source: A folder with one sub-folder per class, a manifest, shards or a data set.
        needs: Of "label" and "split", what every image must have.
        several: Whether an image may have several labels, or none.
        classes: The names, where they are known: a label that is a number is an index into them.
        label: Of a data set: the column with the label.
        slices: Columns whose values rows keep.

    Raises:
        DataError: It is not there or damaged, or images lack something; they are named.
        MissingExtraError: A package for its format is not installed.
    """
    if isinstance(source, Saved):
        return _saved_images(source, needs, several=several, classes=classes, label=label, slices=slices)
    if is_manifest(source):
        empty = ("label",) if several else ()
        return read_manifest(source, needs=("path", *needs), may_be_empty=empty, slices=slices)
    if slices:
        raise DataError(
            f"data.slices names the column '{slices[0]}', and {source} has no columns",
            hint="give a manifest or a data set of Hugging Face",
        )
    if "split" in needs:
        raise DataError(
            f"data.manifest is {source}, which does not say which split an image is in",
            hint="a manifest is a .csv, .parquet or .jsonl file, or a folder that DatasetDict.save_to_disk wrote; "
            "give folders and shards as data.train and data.test",
        )
    if is_shards(source):
        return read_shards(source, classes, needs_label="label" in needs, several=several)
    return read_folder(source)


def _check_label(saved: Saved, label: str) -> None:
    if label != "label" and label not in saved.columns:
        raise DataError(
            f"{saved.name}: data.label names the column '{label}', which is not there; "
            f"{did_you_mean(label, saved.columns)}",
        )


def _saved_images(
    saved: Saved, needs: Sequence[str], *, several: bool, classes: Sequence[str], label: str, slices: Sequence[str]
) -> list[Row]:
    _check_label(saved, label)
    records = saved.records({"label": label, "split": "split", "group": "group", **{name: name for name in slices}})
    for name in (*needs, *slices):
        if name not in records.columns:
            raise DataError(
                f"{saved.name}: column '{name}' is missing; the columns are: {', '.join(saved.columns)}",
                hint=records.hint,
            )
    images = iter(saved.images())

    def row(where: str, record: Record) -> Row:
        raw = next(images)
        text = label_text(record.get("label"), classes, several=several)
        if "label" in needs and not text and not several:
            raise WrongRow("label is empty")
        split, group = (str(record.get(name) or "").strip() or None for name in ("split", "group"))
        if "split" in needs and split not in SPLITS:
            raise WrongRow(f"split is '{split or ''}'; {did_you_mean(split or '', SPLITS)}")
        kept = tuple("" if record.get(name) is None else str(record[name]).strip() for name in slices)
        return Row(raw, text or None, split, group, f"{saved.name}: {where}", kept)

    rows = parsed(records, row)
    if not rows:
        raise DataError(f"{saved.name} is empty: it has no rows")
    return rows
