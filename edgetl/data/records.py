"""Rows of CSV, Parquet and JSON Lines files: read by one function, checked by one, and told about by one.

Values stay as the file has them; what is stripped, what is missing and what is a number is up to who asked.
"""

from __future__ import annotations

import csv
import difflib
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from edgetl.errors import DataError, MissingExtraError
from edgetl.runtime.decision import SEPARATOR

RECORD_SUFFIXES = (".csv", ".parquet", ".jsonl", ".ndjson")
_LONGEST = 1 << 27
"""Characters of one CSV field; the module's own limit of 131,072 is less than a long document has."""
_MAX_NAMED = 20

Record = dict[str, Any]
"""Value by column; a missing one is None or not there."""
_Parsed = TypeVar("_Parsed")


class WrongRow(ValueError):  # noqa: N818  it is collected, and becomes a DataError
    """What is wrong with one row, in words that follow its place."""


@dataclass(frozen=True)
class Records:
    """The rows of a file."""

    source: str
    """The file, for messages."""
    columns: tuple[str, ...]
    """As they stand there, twice or without a name as they may be."""
    rows: tuple[tuple[str, Record | str], ...]
    """Where each begins (line 7; of Parquet, row 7 counted from 1), and its values, or what is wrong with it."""
    hint: str | None = None
    """What to do where a column is missing."""


def read_records(path: Path, columns: Collection[str] | None = None) -> Records:
    """Read a CSV, Parquet or JSON Lines file; lines of CSV and JSON Lines that are blank are left out.

    A CSV file is UTF-8 with commas and a header; its values are text as it stands there. A column of JSON Lines is what
    any of the objects has.

    Args:
        path: Ends in one of :data:`RECORD_SUFFIXES`.
        columns: Of Parquet, read only these where they are there.

    Raises:
        DataError: It is not there, of another kind, damaged, or not UTF-8.
        MissingExtraError: Parquet without pyarrow.
    """
    suffix = path.suffix.lower()
    if suffix not in RECORD_SUFFIXES:
        raise DataError(f"{path} is no file of rows", hint=f"rows are read from {' '.join(RECORD_SUFFIXES)} files")
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    if suffix == ".csv":
        return _read_csv(path)
    return _read_parquet(path, columns) if suffix == ".parquet" else _read_json_lines(path)


def check_columns(records: Records, needs: Sequence[str], known: Sequence[str]) -> None:
    """Refuse a file whose columns are not what they should be.

    Args:
        records: Of the file.
        needs: Columns that must be there.
        known: All columns that mean something, the file's key column first.

    Raises:
        DataError: A column is missing, stands there twice, or is nearly called "group".
    """
    refuse_twice(records)
    others = [name for name in records.columns if name and name not in known]
    hint = records.hint or f"{known[0]},label,split[,group]"
    for name in needs:
        if name not in records.columns:
            near = difflib.get_close_matches(name, others, n=1)
            there = ", ".join(records.columns) or "none"
            meant = f"did you mean '{near[0]}'?" if near else f"the columns are: {there}"
            raise DataError(f"{records.source}: column '{name}' is missing; {meant}", hint=hint)
    # A misspelt optional column would be ignored, and with it the promise that a group is never torn apart.
    near = difflib.get_close_matches("group", others, n=1, cutoff=0.75)
    if near and "group" not in records.columns:
        raise DataError(
            f"{records.source}: unknown column '{near[0]}'; did you mean 'group'?", hint=f"rename '{near[0]}'"
        )


def refuse_twice(records: Records) -> None:
    """Refuse a column that stands there twice.

    Raises:
        DataError: One does.
    """
    twice = sorted({name for name in records.columns if name and records.columns.count(name) > 1})
    if twice:
        raise DataError(f"{records.source}: column '{twice[0]}' stands there twice")


def parsed(records: Records, parse: Callable[[str, Record], _Parsed | None]) -> list[_Parsed]:
    """What a function makes of every row; rows of which it makes None are left out.

    Args:
        records: Of a file.
        parse: Takes where a row stands and its values; raises :class:`WrongRow`.

    Raises:
        DataError: Rows are wrong; up to twenty are named.
    """
    found, problems = [], []
    for where, record in records.rows:
        if isinstance(record, str):
            problems.append(f"{where}: {record}")
            continue
        try:
            result = parse(where, record)
        except WrongRow as error:
            problems.append(f"{where}: {error}")
            continue
        if result is not None:
            found.append(result)
    refuse(records.source, problems)
    return found


def refuse(source: Path | str, problems: Sequence[str], what: str = "row") -> None:
    """Tell everything that is wrong with a file's rows at once.

    Args:
        source: The file.
        problems: One for each wrong row.
        what: One of them, for the message.

    Raises:
        DataError: There is a problem; up to twenty are listed.
    """
    if problems:
        total = len(problems)
        listed = "\n".join(f"  {problem}" for problem in problems[:_MAX_NAMED])
        more = f"\n  … and {total - _MAX_NAMED} more" if total > _MAX_NAMED else ""
        are = f"{what}s are" if total > 1 else f"{what} is"
        raise DataError(f"{source}: {total} {are} wrong:\n{listed}{more}")


def is_blank(record: Record) -> bool:
    """Whether a row holds nothing, as the empty rows at the end of a spreadsheet do."""
    return all(value is None or (isinstance(value, str) and not value.strip()) for value in record.values())


def class_name(value: Any, classes: Sequence[str] = ()) -> str:
    """The name of a class, without blanks around it.

    Args:
        value: A text, or a whole number: an index into the classes, where none of them is named so.
        classes: Names in the order of the model's outputs; empty where they are not known.

    Raises:
        WrongRow: It is neither.
    """
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool) or not isinstance(value, int):
        raise WrongRow(f"label is {value!r}; it should be a name or a whole number")
    return classes[value] if str(value) not in classes and 0 <= value < len(classes) else str(value)


def label_text(value: Any, classes: Sequence[str] = (), *, several: bool) -> str:
    """A label as a manifest has it: one name, or names with ';' between; "" where there is none.

    Args:
        value: None, what :func:`class_name` takes, or a list of that.
        classes: As there.
        several: Whether a sample may have several.

    Raises:
        WrongRow: It is nothing of the kind, or a list of several where a sample has one.
    """
    if value is None:
        return ""
    if not isinstance(value, (list, tuple)):
        return class_name(value, classes)
    names = [class_name(each, classes) for each in value]
    if len(names) > 1 and not several:
        raise WrongRow(f"label is {value!r}: {len(names)} classes, where the task gives a sample one")
    wrong = [name for name in names if not name or SEPARATOR in name]
    if wrong:
        raise WrongRow(f"label has the name '{wrong[0]}'; in a list, none may be empty or hold '{SEPARATOR}'")
    return SEPARATOR.join(names)


# --- the formats ------------------------------------------------------------------------------------------------------


def _read_csv(path: Path) -> Records:
    limit = csv.field_size_limit(_LONGEST)
    line = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            columns = tuple(name.strip() for name in next(reader, []))
            rows: list[tuple[str, Record | str]] = []
            line = reader.line_num + 1
            for values in reader:
                if len(values) == len(columns) > 1 or any(value.strip() for value in values):
                    wrong = f"{len(values)} values for {len(columns)} columns"
                    fits = len(values) == len(columns)
                    rows.append((f"line {line}", dict(zip(columns, values, strict=True)) if fits else wrong))
                line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}: line {line}: not valid CSV: {error}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8: {error}", hint="save the file as UTF-8") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    finally:
        csv.field_size_limit(limit)
    return Records(str(path), columns, tuple(rows))


def _read_parquet(path: Path, wanted: Collection[str] | None) -> Records:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise MissingExtraError("pyarrow", extra="train", needed_for=f"reading {path}") from None
    try:
        names = [str(name) for name in parquet.read_schema(path).names]
        read = names if wanted is None else [name for name in names if name in wanted]
        table = parquet.read_table(path, columns=None if wanted is None else read)
        values = [column.to_pylist() for column in table.columns]
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not valid Parquet: {error}") from None
    return Records(str(path), tuple(names), numbered([str(name) for name in table.column_names], values))


def numbered(names: Sequence[str], columns: Sequence[Sequence[Any]]) -> tuple[tuple[str, Record | str], ...]:
    """Columns of values as rows, counted from 1."""
    rows = enumerate(zip(*columns, strict=True), 1)
    return tuple((f"row {number}", dict(zip(names, values, strict=True))) for number, values in rows)


def _read_json_lines(path: Path) -> Records:
    columns: dict[str, None] = {}
    rows: list[tuple[str, Record | str]] = []
    for number, line in _lines(path):
        try:
            values = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: line {number}: not UTF-8: {error}", hint="save the file as UTF-8") from None
        except (ValueError, RecursionError) as error:
            rows.append((f"line {number}", f"not valid JSON: {error}"))
            continue
        if isinstance(values, dict):
            columns |= dict.fromkeys(values)
        rows.append((f"line {number}", values if isinstance(values, dict) else "not a JSON object"))
    if not rows:
        raise DataError(f"{path} is empty: it has no rows")
    if not columns:
        refuse(path, [f"{where}: {row}" for where, row in rows if isinstance(row, str)])
    return Records(str(path), tuple(columns), tuple(rows))


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, counted from 1: cut at line feeds alone, since other breaks may stand in a text."""
    try:
        content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip():
            yield number, line
