"""Files of tables: read as text, then row by row as canonical JSON. Every error names the lines that it is about."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetl.data.dataset import Sample
from edgetl.data.manifest import MANIFEST_SUFFIXES, is_manifest, read_csv
from edgetl.errors import DataError, MissingExtraError

MISSING = frozenset({"", "NA", "NaN", "null", "None", "?"})
"""What a file may write for a missing value, beside Parquet's null."""
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
"""What a number looks like."""
_MAX_NAMED = 20

Row = dict[str, Any]
"""Number, text or None by column."""


@dataclass(frozen=True)
class Table:
    """A file, or the rows of one split in it."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[tuple[str, dict[str, str]], ...]
    """Where each stands in the file, and its values as text by column."""


def read_table(path: Path) -> Table:
    """All columns and rows of a CSV or Parquet file. Blanks around values are removed; empty lines are left out.

    Raises:
        DataError: The file is not there, no table, cannot be parsed, or has no rows; a column without a name, or twice;
            rows with too few or too many values, named by line.
        MissingExtraError: Parquet without pyarrow.
    """
    if not path.is_file() or not is_manifest(path):
        found = "a folder" if path.is_dir() else "no table" if path.is_file() else "not there"
        raise DataError(f"{path} is {found}", hint=f"a table is a file that ends in {' or '.join(MANIFEST_SUFFIXES)}")
    columns, records = _read_parquet(path) if path.suffix.lower() == ".parquet" else read_csv(path)
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if "" in columns:
        raise DataError(
            f"{path}: column {columns.index('') + 1} has no name",
            hint="name it; if it counts the rows, list it in data.ignore then, or remove it",
        )
    if twice:
        raise DataError(f"{path}: column '{twice[0]}' stands there twice")
    read = list(records)
    refuse(path, [f"{where}: {record}" for where, record in read if isinstance(record, str)])
    rows = tuple((where, record) for where, record in read if not isinstance(record, str))
    if not rows:
        raise DataError(f"{path} is empty: it has {'a header and ' if columns else ''}no rows")
    return Table(path, tuple(columns), rows)


def _read_parquet(path: Path) -> tuple[list[str], Iterable[tuple[str, dict[str, str] | str]]]:
    """Column names, and per row its place, counted from 1, and its values as a CSV file would have them."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise MissingExtraError("pyarrow", extra="train", needed_for=f"reading {path}") from None
    try:
        table = parquet.read_table(path)
        names = [str(name) for name in table.column_names]
        columns = [[_text(value) for value in column.to_pylist()] for column in table.columns]
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not valid Parquet: {error}") from None
    rows = zip(*columns, strict=True)
    return names, [(f"row {number}", dict(zip(names, values, strict=True))) for number, values in enumerate(rows, 1)]


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def samples_of(
    table: Table, labels: Sequence[int], typed: Callable[[Mapping[str, str]], Row], *, group: str | None = None
) -> tuple[Sample, ...]:
    """Every row as canonical JSON.

    Args:
        table: With the rows as text.
        labels: One for each row.
        typed: Gives the values of a row; see :func:`typed_row`.
        group: The column that says which rows belong together; an empty value: the row is alone.

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
        samples.append(Sample(text, label, (group and row[group]) or None, digest))
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


def refuse(path: Path, problems: Sequence[str]) -> None:
    """Tell everything that is wrong with a file's rows at once.

    Raises:
        DataError: There is a problem; up to twenty are listed.
    """
    if problems:
        total = len(problems)
        listed = "\n".join(f"  {problem}" for problem in problems[:_MAX_NAMED])
        more = f"\n  … and {total - _MAX_NAMED} more" if total > _MAX_NAMED else ""
        raise DataError(f"{path}: {total} {'rows are' if total > 1 else 'row is'} wrong:\n{listed}{more}")
