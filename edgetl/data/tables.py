"""Tables: rows of files and data sets as samples, and the preprocessing contract that is fitted on train alone."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from edgetl.config import Data
from edgetl.data.dataset import SPLITS, UNLABELLED, Dataset, Sample
from edgetl.data.leaks import check_groups, check_leaks, tells_rows_apart, with_labels
from edgetl.data.records import refuse
from edgetl.data.sources import Source, content_digest, own_classes, source_of, sources_of
from edgetl.data.splits import split_val
from edgetl.data.table_rows import MISSING, NUMBER, Row, Table, read_table, samples_of, typed_row
from edgetl.data.verify import Progress
from edgetl.errors import DataError
from edgetl.runtime.preprocessing.tables import Categorical, Ignored, Numeric, TablePreprocessing
from edgetl.tomlfile import did_you_mean

MAX_VALUES = 64
"""Different values that a column of names may have in train."""

_LABEL, _CONSTANT = "the label", "the same in every row of train: "
_ENOUGH = 10


def load_table(config: Data, *, progress: Progress | None = None) -> Dataset:
    """Read, check and split a table.

    A sample's ``raw`` is its row as canonical JSON (sorted keys, no blanks) of the columns that are not ignored:
    numbers as numbers, names as text, missing values as null. Whether a column holds numbers is decided on train.
    Where val is left out, it is taken out of train; rows of one group, and equal rows, stay together.

    The same row with the same label in two splits is an error where rows can be told apart: where at least 99% of
    train are unique. In other tables equal rows are expected, and are no leak; see :func:`repeated`.

    Args:
        config: The ``[data]`` table, with absolute paths.
        progress: Called with the number of rows read and the total.

    Raises:
        DataError: A file that is not there or cannot be parsed, wrong columns, wrong values (named by line), labels
            that are missing or no class, fewer than two classes, a class missing in a split, a column that is all
            missing, of mixed kinds, or with more than 64 names.
        LeakError: Two splits share a row or a group.
        MissingExtraError: Parquet without pyarrow.
    """
    sources = sources_of(config)
    tables = _split_tables(config, sources)
    names = _features(config, tables)
    present = {row.get(config.label) for table in tables.values() for _, row in table.rows}
    classes, labels = _labels(config, tables, config.classes or own_classes(sources, config.label, present))
    numbers = _columns_of_numbers(config, tables["train"], names)
    never_missing = {name for name, is_number in numbers.items() if is_number and not _lacking(tables["train"], name)}
    splits, done, total = {}, 0, sum(len(table.rows) for table in tables.values())
    for split, table in tables.items():
        needed = never_missing if split != "train" else set()
        group = "group" if "group" in table.columns and "group" not in config.ignore else None
        splits[split] = samples_of(
            table, labels[split], partial(typed_row, numbers=numbers, needed=needed), group=group, slices=config.slices
        )
        done += len(table.rows)
        if progress:
            progress(done, total)
        if split != "train":
            _check_known(table, tables["train"], [name for name, is_number in numbers.items() if not is_number])
    if tells_rows_apart(splits["train"]):
        check_leaks({split: with_labels(samples) for split, samples in splits.items()})
    check_groups(splits)
    if "val" not in splits:
        splits["train"], splits["val"] = _draw_val(config, splits["train"], classes)
    return Dataset(classes, splits["train"], splits["val"], splits["test"])


def table_digest(config: Data) -> str:
    """SHA-256 of every byte of the table's files and of which split each is, in hexadecimal; nothing is parsed.

    Their location is not in it: a sample holds its row itself.

    Raises:
        DataError: A file is not there or cannot be read.
    """
    entries = [f"{split}\0{content_digest(source)}" for split, source in sources_of(config).items()]
    return hashlib.sha256("\n".join(entries).encode()).hexdigest()


def rows_digest(path: Path) -> str:
    """SHA-256 of every byte of a table, in hexadecimal.

    Raises:
        DataError: It is not there or cannot be read.
    """
    return content_digest(source_of(path))


def load_rows(path: Path, contract: TablePreprocessing, classes: Sequence[str] = ()) -> tuple[Sample, ...]:
    """Read rows for a network that has been trained: for calibration, or to verify a bundle.

    Where classes are given and the file has the column that was the label, rows are labelled; else their label is
    ``UNLABELLED``. A column split is not looked at.

    Args:
        path: A CSV, Parquet or JSON Lines file, or a folder that ``Dataset.save_to_disk`` wrote.
        contract: Of the network; every row is tried on it.
        classes: Names in the order of the network's outputs; empty where labels do not matter.

    Raises:
        DataError: The file is not there or cannot be parsed, a column is missing or unknown, or rows are wrong; the
            rows are named by line.
        MissingExtraError: Parquet without pyarrow.
    """
    table = read_table(source_of(path))
    contract.check_columns(set(table.columns), str(path))
    numbers = {column.name: isinstance(column, Numeric) for column in contract.columns}
    # Kept, so that a row has the digest here that it has in the data set.
    kept = [entry.name for entry in contract.ignored if entry.reason.startswith(_CONSTANT)]
    label = next((entry.name for entry in contract.ignored if entry.reason == _LABEL), None)
    index = {name: position for position, name in enumerate(classes)}
    problems: list[str] = []
    labels = [UNLABELLED] * len(table.rows)
    if classes and label in table.columns:
        for place, (where, row) in enumerate(table.rows):
            labels[place] = index.get(row[label], UNLABELLED)
            if labels[place] == UNLABELLED:
                problems.append(f"{where}: {_no_class(row[label], classes)}")
    refuse(path, problems)

    def typed(row: Mapping[str, str]) -> Row:
        values = typed_row(row, numbers, set())
        contract.apply(values)
        guessed = {name: bool(NUMBER.fullmatch(row[name])) for name in kept if name in row}
        return values | typed_row(row, guessed, set())

    return samples_of(table, labels, typed)


def fit_table(config: Data, samples: Sequence[Sample]) -> TablePreprocessing:
    """The contract of a table: mean, standard deviation and median of every column of numbers, values of every other.

    Columns are in the order of their names, so that their order in the file does not matter. A column with the same
    value in every row is left out, and the contract says so.

    Args:
        config: The ``[data]`` table.
        samples: Of train, and of nothing else; from :func:`load_table`.

    Raises:
        DataError: A column has no value, no column is left, or numbers are too large for float64's square.
    """
    rows: list[Row] = [json.loads(str(sample.raw)) for sample in samples]
    ignored = dict.fromkeys(config.ignore, "data.ignore")
    ignored |= {"split": "how rows are split", "group": "rows that belong together", config.label: _LABEL}
    columns: list[Numeric | Categorical] = []
    for name in sorted({name for row in rows for name in row}):
        values = [row[name] for row in rows]
        present = [value for value in values if value is not None]
        missing = len(present) < len(values)
        if not present:
            raise _all_missing(name)
        if not missing and min(present) == max(present):
            ignored[name] = f"{_CONSTANT}{present[0]}"
        elif isinstance(present[0], str):
            columns.append(Categorical(name=name, values=tuple(sorted(set(present))), missing=missing))
        else:
            columns.append(_numeric(name, present, missing=missing))
    if not columns:
        raise DataError("no column is left that could tell anything", hint="look at data.ignore in edgetl.toml")
    return TablePreprocessing(
        columns=tuple(columns), ignored=tuple(Ignored(name=name, reason=ignored[name]) for name in sorted(ignored))
    )


def repeated(dataset: Dataset) -> dict[str, int]:
    """How many rows of val and of test stand in train, too: the same values in every column."""
    known = {sample.digest for sample in dataset.train}
    return {
        name: sum(sample.digest in known for sample in samples)
        for name, samples in dataset.splits().items()
        if name != "train"
    }


# --- files ------------------------------------------------------------------------------------------------------------


def _split_tables(config: Data, sources: Mapping[str, Source]) -> dict[str, Table]:
    """The rows of every split that the user gave; train comes first."""
    tables = {split: read_table(source) for split, source in sources.items()}
    for split, table in tables.items():
        if split == "all" and "split" not in table.columns:
            raise DataError(
                f"{table.path}: column 'split' is missing; {did_you_mean('split', table.columns)}",
                hint="it says train, val or test for every row; or give data.train and data.test instead of "
                "data.manifest",
            )
        if "split" in table.columns and "split" not in config.ignore:
            allowed = SPLITS if split == "all" else (split, "")
            problems = [
                f"{where}: split is '{row['split']}', not {' or '.join(name for name in allowed if name)}"
                for where, row in table.rows
                if row["split"] not in allowed
            ]
            refuse(table.path, problems)
    if "all" not in tables:
        return tables
    whole = tables["all"]
    parts = {name: tuple(entry for entry in whole.rows if entry[1]["split"] == name) for name in SPLITS}
    for split in ("train", "test"):
        if not parts[split]:
            raise DataError(f"{whole.path}: no row has the split '{split}'")
    return {split: Table(whole.path, whole.columns, rows) for split, rows in parts.items() if rows}


# --- columns and labels -----------------------------------------------------------------------------------------------


def _features(config: Data, tables: Mapping[str, Table]) -> tuple[str, ...]:
    """The columns that the network may see; they are the same in every split."""
    train = tables["train"]
    for key, names in (("label", (config.label,)), ("ignore", config.ignore), ("categorical", config.categorical)):
        for name in names:
            somewhere = key == "ignore" and any(name in table.columns for table in tables.values())
            if name not in train.columns and not somewhere:
                hint = "values of a CSV file have commas between them" if len(train.columns) == 1 else None
                raise DataError(
                    f"{train.path}: data.{key} names the column '{name}', which is not there; "
                    f"{did_you_mean(name, train.columns)}",
                    hint=hint,
                )
            if key != "label" and name == config.label:
                raise DataError(f"data.{key} names '{name}', which is the label", hint="leave it out there")
            if key == "categorical" and name in config.ignore:
                raise DataError(f"data.ignore and data.categorical both name '{name}'", hint="decide for one of them")
    _check_slices(config, tables)
    unseen = {config.label, "split", "group", *config.ignore}
    names = tuple(name for name in train.columns if name not in unseen)
    for split, table in tables.items():
        absent = [name for name in (config.label, *names) if name not in table.columns]
        if absent:
            raise DataError(f"{table.path}: {split} has no column '{absent[0]}', which train has")
        extra = [name for name in table.columns if name not in unseen and name not in names]
        if extra:
            raise DataError(
                f"{table.path}: {split} has the column '{extra[0]}', which train does not have",
                hint=f"ignore = ['{extra[0]}'] in [data], or remove it",
            )
    if not names:
        raise DataError(f"{train.path} has no column that the network could learn from")
    return names


def _check_slices(config: Data, tables: Mapping[str, Table]) -> None:
    for table in tables.values():
        for name in config.slices:
            if name not in table.columns:
                raise DataError(
                    f"{table.path}: data.slices names the column '{name}', which is not there; "
                    f"{did_you_mean(name, table.columns)}"
                )


def _labels(
    config: Data, tables: Mapping[str, Table], given: tuple[str, ...]
) -> tuple[tuple[str, ...], dict[str, list[int]]]:
    """The classes, as given or as train has them, and the index of every row's class."""
    train = tables["train"]
    found = {row[config.label] for _, row in train.rows} - MISSING
    classes = given or tuple(sorted(found))
    if len(set(classes)) < max(2, len(classes)):
        named = ", ".join(f"'{name}'" for name in classes) or "none"
        raise DataError(
            f"{train.path}: two different classes are needed at least; the classes are {named}",
            hint=f"look at data.label = '{config.label}' and data.classes in edgetl.toml",
        )
    index = {name: position for position, name in enumerate(classes)}
    labels = {}
    for split, table in tables.items():
        refuse(
            table.path,
            [
                f"{where}: {_no_class(row[config.label], classes)}"
                for where, row in table.rows
                if row[config.label] not in index
            ],
        )
        labels[split] = [index[row[config.label]] for _, row in table.rows]
        empty = [name for name in classes if index[name] not in set(labels[split])]
        if empty:
            raise DataError(
                f"{split} has no row of {len(empty)} of {len(classes)} classes: "
                + ", ".join(f"'{name}'" for name in empty[:10]),
                hint=f"add rows of them to {split}, or leave the classes out of every split",
            )
    return classes, labels


def _no_class(label: str, classes: Sequence[str]) -> str:
    if label in MISSING:
        return "the label is missing"
    return f"the label '{label}' is not a class; {did_you_mean(label, classes)}"


def _columns_of_numbers(config: Data, train: Table, names: Sequence[str]) -> dict[str, bool]:
    """Every column, and whether it holds numbers.

    Raises:
        DataError: A column is all missing, has a few texts among numbers, or too many names.
    """
    result = {}
    for name in names:
        present = [(where, row[name]) for where, row in train.rows if row[name] not in MISSING]
        if not present:
            raise _all_missing(name)
        texts = [entry for entry in present if not NUMBER.fullmatch(entry[1])]
        result[name] = not texts and name not in config.categorical
        if 0 < 2 * len(texts) < len(present) and name not in config.categorical:
            shown = ", ".join(f"{where}: '{text[:40]}'" for where, text in texts[:3])
            raise DataError(
                f"{train.path}: column '{name}' holds numbers, but for {len(texts)} of {len(present)} values: {shown}",
                hint=f"correct or empty them; or list '{name}' in data.categorical, if its numbers are names",
            )
        values = {text for _, text in present}
        if not result[name] and len(values) > MAX_VALUES:
            raise DataError(
                f"{train.path}: column '{name}' has {len(values)} different values in train, as "
                f"'{min(values)[:40]}'; a column of names may have {MAX_VALUES}",
                hint=f"ignore = ['{name}'] in [data], or group its values, or make numbers of them",
            )
    return result


def _check_known(table: Table, train: Table, names: Sequence[str]) -> None:
    """Refuse a column of names of which nothing is known: it is written otherwise than in train."""
    for name in names:
        known = {row[name] for _, row in train.rows}
        present = [row[name] for _, row in table.rows if row[name] not in MISSING]
        if len(present) >= _ENOUGH and not known.intersection(present):
            raise DataError(
                f"{table.path}: column '{name}' has no value that train has; its values are '{present[0]}' …; "
                f"{did_you_mean(present[0], sorted(known - MISSING))}",
                hint="write them alike in all splits",
            )


def _lacking(table: Table, name: str) -> bool:
    return any(row[name] in MISSING for _, row in table.rows)


def _all_missing(name: str) -> DataError:
    return DataError(f"column '{name}' has no value in train: all are missing", hint=f"ignore = ['{name}'] in [data]")


def _numeric(name: str, values: Sequence[float], *, missing: bool) -> Numeric:
    # Sorted, so that the order of the rows changes no bit.
    numbers = np.sort(np.asarray(values, dtype=np.float64))
    with np.errstate(over="ignore", invalid="ignore"):
        mean, std, fill = float(numbers.mean()), float(numbers.std()), float(np.median(numbers))
    if not (math.isfinite(mean) and math.isfinite(std) and math.isfinite(fill)):
        raise DataError(f"the numbers of column '{name}' are too large: up to {np.abs(numbers).max():.3g}")
    # One value, and rows without it: what counts is the flag.
    return Numeric(name=name, mean=mean, std=std if std > 0.0 else 1.0, fill=fill, missing=missing)


# --- splits -----------------------------------------------------------------------------------------------------------


def _draw_val(
    config: Data, samples: tuple[Sample, ...], classes: Sequence[str]
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Train without val, and val.

    Rows that lack what no remaining row of train lacks stay in train, with those that belong to them: otherwise the
    network would meet in val what it could not learn.
    """
    train, val = split_val(samples, config.val_fraction, config.split_seed, classes)
    lacks = {
        sample.digest: {name for name, value in json.loads(str(sample.raw)).items() if value is None}
        for sample in samples
    }
    seen = {name for sample in train for name in lacks[sample.digest]}
    back = {sample.digest for sample in val if lacks[sample.digest] - seen}
    before: set[str] = set()
    while back != before:
        before = back
        groups = {sample.group for sample in val if sample.digest in back and sample.group is not None}
        back = {sample.digest for sample in val if sample.digest in back or sample.group in groups}
    stay = {sample.digest for sample in train} | back
    val = tuple(sample for sample in val if sample.digest not in back)
    if {sample.label for sample in val} != {sample.label for sample in samples}:
        raise DataError(
            "val cannot be taken out of train: too few rows have a value in every column", hint="give val yourself"
        )
    return tuple(sample for sample in samples if sample.digest in stay), val
