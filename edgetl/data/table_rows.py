"""Files of tables: read as text, then row by row as canonical JSON. Every error names the lines that it is about."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetl.data.dataset import Sample
from edgetl.data.manifest import is_manifest
from edgetl.data.records import Record, WrongRow, is_blank, parsed, refuse, refuse_twice
from edgetl.data.sources import Source, rows_of
from edgetl.errors import DataError

MISSING = frozenset({"", "NA", "NaN", "null", "None", "?"})
"""What a file may write for a missing value, beside Parquet's null."""
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
"""What a number looks like."""

Row = dict[str, Any]
"""Number, text or None by column."""


@dataclass(frozen=True)
class Table:
    """A file, or the rows of one split in it."""

    path: str
    """The file, or the data set's name; for messages."""
    columns: tuple[str, ...]
    rows: tuple[tuple[str, dict[str, str]], ...]
    """Where each stands in the file, and its values as text by column."""


def read_table(source: Source) -> Table:
    """All columns and rows of a file or data set. Blanks around values are removed; blank rows are left out.

    Raises:
        DataError: The file is not there, no table, cannot be parsed, or has no rows; a column without a name, or twice;
            rows with too few or too many values, or with lists or objects for values, named by line.
        MissingExtraError: Parquet without pyarrow.
    """
    if isinstance(source, Path) and (not source.is_file() or not is_manifest(source)):
        found = "a folder" if source.is_dir() else "no table" if source.is_file() else "not there"
        raise DataError(
            f"{source} is {found}",
            hint="a table is a .csv or .parquet file, JSON Lines (.jsonl, .ndjson), or a folder that "
            "Dataset.save_to_disk wrote",
        )
    records = rows_of(source)
    if "" in records.columns:
        raise DataError(
            f"{records.source}: column {records.columns.index('') + 1} has no name",
            hint="name it; if it counts the rows, list it in data.ignore then, or remove it",
        )
    refuse_twice(records)

    def row(where: str, record: Record) -> tuple[str, dict[str, str]] | None:
        return None if is_blank(record) else (where, {name: _text(record.get(name)) for name in records.columns})

    rows = tuple(parsed(records, row))
    if not rows:
        raise DataError(f"{records.source} is empty: it has {'a header and ' if records.columns else ''}no rows")
    return Table(records.source, records.columns, rows)


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, (dict, list)):
        raise WrongRow(f"{json.dumps(value, default=str)[:80]} stands where a number or a name should")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def samples_of(
    table: Table,
    labels: Sequence[int],
    typed: Callable[[Mapping[str, str]], Row],
    *,
    group: str | None = None,
    slices: Sequence[str] = (),
) -> tuple[Sample, ...]:
    """Every row as canonical JSON.

    Args:
        table: With the rows as text.
        labels: One for each row.
        typed: Gives the values of a row; see :func:`typed_row`.
        group: The column that says which rows belong together; an empty value: the row is alone.
        slices: Columns whose text samples keep.

    Raises:
        DataError: Rows are wrong; all of them are named by line.
    """
    samples, problems = [], []
    for (where, row), label in zip(table.rows, labels, strict=True):
        try:
            values = typed(row)
        except DataError as error:
            problems.append(f"{where}: {error.message.removeprefix('the row: ')}")
            continue
        text = json.dumps(values, ensure_ascii=False, separators=(",", ":"), sort_keys=True, allow_nan=False)
        digest = hashlib.sha256(text.encode()).hexdigest()
        kept = tuple(row[name] for name in slices)
        samples.append(Sample(text, label, (group and row[group]) or None, digest, kept))
    refuse(table.path, problems)
    return tuple(samples)


def typed_row(row: Mapping[str, str], numbers: Mapping[str, bool], needed: set[str]) -> Row:
    """The values of a row: numbers as numbers, names as text, None where a value is missing.

    Raises:
        DataError: A text where train has numbers, one that no float64 holds, or nothing where a number is needed.
    """
    values: Row = {}
    for name, is_number in numbers.items():
        text = row[name]
        if text in MISSING:
            if name in needed:
                raise DataError(f"column '{name}' is missing, and it never was in train")
            values[name] = None
        elif not is_number:
            values[name] = text
        elif not NUMBER.fullmatch(text):
            raise DataError(f"column '{name}' is '{text[:40]}', where train has numbers")
        else:
            values[name] = _float(text, name)
    return values


def _float(text: str, name: str) -> float | int:
    number = float(text)
    if not math.isfinite(number):
        raise DataError(f"column '{name}' is {text[:40]}, which is too large a number")
    return int(number) if number.is_integer() and abs(number) < 2.0**53 else number
