"""The preprocessing contract of tables: from a row, as a JSON object, to a float32 vector."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import DataError, ModelError
from edgetl.runtime.preprocessing.base import Array, Readable, digest_of_contract, stacked

_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class Numeric:
    """A column of numbers: one feature, (x − mean) / std, and perhaps a flag."""

    name: str
    mean: float
    """Over the rows of train that have a value."""
    std: float
    """Over the same rows; above 0."""
    fill: float
    """What stands for a missing value, in the column's unit: the median of train."""
    missing: bool = False
    """Whether train had missing values. A second feature then is 1 where the value is missing; otherwise a missing
    value is an error, because the network has never seen one."""

    @property
    def features(self) -> tuple[str, ...]:
        """Names of what it becomes."""
        return (self.name, f"{self.name} is missing") if self.missing else (self.name,)


@dataclass(frozen=True, kw_only=True)
class Categorical:
    """A column of names: one feature per value, 1 where a row has it; all zeros for one that train did not have."""

    name: str
    values: tuple[str, ...]
    """Of train, sorted."""
    missing: bool = False
    """Whether train had missing values, which then have a feature of their own; otherwise a missing value is one that
    train did not have."""

    @property
    def features(self) -> tuple[str, ...]:
        """Names of what it becomes."""
        own = tuple(f"{self.name} = {value}" for value in self.values)
        return (*own, f"{self.name} is missing") if self.missing else own


@dataclass(frozen=True, kw_only=True)
class Ignored:
    """A column that a row may have and that the network does not see."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class TablePreprocessing:
    """How a row becomes a float32 vector: numbers standardised, missing values flagged, categories one-hot.

    A row is a JSON object: a number, a text or null for every column. Order of its keys does not matter.
    """

    kind: ClassVar[str] = "table"
    dtype: ClassVar[str] = "float32"

    columns: tuple[Numeric | Categorical, ...]
    """What the network sees, in the order of the features."""
    ignored: tuple[Ignored, ...] = ()
    """What a row may have besides. Any other column is an error."""
    clip: float = 8.0
    """Standard deviations at which a number is cut off: one wild value cannot decide an answer, nor widen the range
    that int8 has to cover."""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TablePreprocessing:
        """The inverse of :meth:`to_json`.

        Raises:
            ModelError: A field is missing or unknown, or its value is of the wrong kind.
        """
        fields = _fields(values, {"columns": list}, {"kind": str, "ignored": list, "clip": float}, "it")
        columns = tuple(_column(column) for column in fields["columns"])
        ignored = tuple(
            Ignored(**_fields(entry, {"name": str, "reason": str}, {}, "an ignored column"))
            for entry in fields.get("ignored", [])
        )
        names = [column.name for column in columns] + [entry.name for entry in ignored]
        twice = sorted({name for name in names if names.count(name) > 1})
        clip = fields.get("clip", cls.clip)
        if twice:
            raise _damaged(f"column '{twice[0]}' stands there twice")
        if not columns:
            raise _damaged("it has no columns")
        if clip <= 0:
            raise _damaged(f"clip is {clip}; it must be above 0")
        return cls(columns=columns, ignored=ignored, clip=clip)

    def to_json(self) -> dict[str, Any]:
        """Plain values; ``TablePreprocessing.from_json(p.to_json()) == p``."""
        return {"kind": self.kind, **json.loads(json.dumps(asdict(self), allow_nan=False))}

    def digest(self) -> str:
        """SHA-256 of the canonical JSON, in hexadecimal."""
        return digest_of_contract(self.to_json())

    @cached_property
    def features(self) -> tuple[str, ...]:
        """What each input of the network is: "Income", "Income is missing", "Home = rent"."""
        return tuple(name for column in self.columns for name in column.features)

    @property
    def input_shape(self) -> tuple[int]:
        """(features,)."""
        return (len(self.features),)

    def together(self, samples: Sequence[Array]) -> Array:
        """A batch: float32 (n, features)."""
        return stacked(samples)

    def __call__(self, raw: Readable | bytes | str) -> NDArray[np.float32]:
        """The vector of a row.

        Args:
            raw: A JSON object, or the path of a file that holds one.

        Returns:
            float32, shape (features,).

        Raises:
            DataError: No such file, not a JSON object, a column that is not there or that nobody knows, a value of the
                wrong type, NaN or infinity, or a missing number where train had none; the message names the column.
        """
        return self.prepare(self.decode(raw))

    def decode(self, raw: Readable | bytes | str) -> tuple[dict[str, Any], str]:
        """The values of a row, see :func:`read_row`, and how messages name it."""
        return read_row(raw), "the row" if isinstance(raw, (bytes, str)) else str(raw)

    def prepare(self, decoded: tuple[Mapping[str, Any], str]) -> NDArray[np.float32]:
        """The vector of a row that has been read; see :meth:`apply`."""
        row, where = decoded
        return self.apply(row, where=where)

    def apply(self, row: Mapping[str, Any], *, where: str = "the row") -> NDArray[np.float32]:
        """The vector of a row that has been read; see :meth:`__call__`.

        Args:
            row: Values by column, as JSON has them.
            where: How messages name it.
        """
        layout = self._layout
        if row.keys() != layout.names:
            self.check_columns(row.keys(), where)
        vector = np.zeros(len(self.features), dtype=np.float32)
        numbers: list[float] = []
        hot: list[int] = []
        for column, flag in layout.numeric:
            value = row[column.name]
            if value is None:
                if flag is None:
                    raise _never_missing(column.name, where)
                hot.append(flag)
                numbers.append(column.fill)
            elif type(value) is float and math.isfinite(value):
                numbers.append(value)
            else:
                numbers.append(_number(value, column.name, where))
        for name, places, missing in layout.categorical:
            value = row[name]
            place = missing if value is None else places.get(_name(value, name, where))
            if place is not None:
                hot.append(place)
        scaled = np.asarray(numbers, dtype=np.float64)
        # A quotient beyond float64 is beyond the clip, too.
        with np.errstate(over="ignore"):
            scaled = (scaled - layout.mean) / layout.std
        vector[layout.places] = scaled.clip(-self.clip, self.clip)
        vector[hot] = 1.0
        return vector

    def check_columns(self, found: Set[str], where: str) -> None:
        """See that a row, or a file of rows, has the columns that the network needs, and none that nobody knows.

        Args:
            found: Names of its columns.
            where: How messages name it.

        Raises:
            DataError: A column is missing or unknown.
        """
        missing = [column.name for column in self.columns if column.name not in found]
        if missing:
            raise DataError(
                f"{where} has no column {_listed(missing)}",
                hint="null says that a value is missing; the network needs: " + ", ".join(c.name for c in self.columns),
            )
        extra = sorted(found - self._layout.names - {entry.name for entry in self.ignored})
        if extra:
            ignored = ", ".join(entry.name for entry in self.ignored) or "none"
            raise DataError(
                f"{where} has the column {_listed(extra)}, which the network was not trained with",
                hint=f"leave it out; ignored are: {ignored}",
            )

    @cached_property
    def _layout(self) -> _Layout:
        return _layout(self.columns)

    def __getstate__(self) -> dict[str, Any]:
        # Without what is computed from the fields.
        return {"columns": self.columns, "ignored": self.ignored, "clip": self.clip}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Where everything stands in the vector, computed once per contract."""

    names: frozenset[str]
    numeric: tuple[tuple[Numeric, int | None], ...]
    """Column, and the place of its flag."""
    categorical: tuple[tuple[str, dict[str, int], int | None], ...]
    """Name, places by value, and the place of missing."""
    places: NDArray[np.intp]
    """Of the numeric columns."""
    mean: NDArray[np.float64]
    std: NDArray[np.float64]


def _layout(columns: Sequence[Numeric | Categorical]) -> _Layout:
    numeric: list[tuple[Numeric, int | None]] = []
    categorical: list[tuple[str, dict[str, int], int | None]] = []
    places: list[int] = []
    place = 0
    for column in columns:
        last = place + len(column.features) - 1
        flag = last if column.missing else None
        if isinstance(column, Numeric):
            numeric.append((column, flag))
            places.append(place)
        else:
            categorical.append((column.name, {value: place + at for at, value in enumerate(column.values)}, flag))
        place = last + 1
    return _Layout(
        names=frozenset(column.name for column in columns),
        numeric=tuple(numeric),
        categorical=tuple(categorical),
        places=np.asarray(places, dtype=np.intp),
        mean=np.asarray([column.mean for column, _ in numeric], dtype=np.float64),
        std=np.asarray([column.std for column, _ in numeric], dtype=np.float64),
    )


def read_row(raw: Readable | bytes | str) -> dict[str, Any]:
    """The values of a row by column, as JSON has them.

    Args:
        raw: A JSON object, or the path of a file that holds one.

    Raises:
        DataError: No such file, not UTF-8, not a JSON object, a column twice, or NaN or infinity in it.
    """
    where = "the row" if isinstance(raw, (bytes, str)) else str(raw)
    hint = 'a row is one JSON object, as {"Age": 30, "Home": "rent", "Income": null}'
    try:
        text: Any = raw if isinstance(raw, (bytes, str)) else raw.read_bytes()
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        row = json.loads(text, object_pairs_hook=_pairs, parse_constant=_constant)
    except OSError as error:
        raise DataError(f"cannot read {where}: {error.strerror or error}") from None
    except _RowError as error:
        raise DataError(f"{where}: {error}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8: {error}", hint=hint) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {error}", hint=hint) from None
    if not isinstance(row, dict):
        raise DataError(f"{where} is not a JSON object, but {_kind(row)}", hint=hint)
    return row


class _RowError(ValueError):
    """A row that JSON's reader takes and that must not be taken."""


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        names = [name for name, _ in pairs]
        raise _RowError(f"column '{next(name for name in names if names.count(name) > 1)}' stands there twice")
    wild = next((name for name, value in pairs if value is _WILD), None)
    if wild is not None:
        raise _RowError(f"column '{wild}' is NaN or infinity: write null where a value is missing")
    return row


_WILD = object()


def _constant(_: str) -> object:
    """In the place of NaN and Infinity, which Python takes for JSON: the column is named where its object is made."""
    return _WILD


def _number(value: Any, name: str, where: str) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
        raise DataError(f"{where}: column '{name}' is not a finite number")
    raise DataError(f"{where}: column '{name}' must be a number, and is {_kind(value)}")


def _name(value: Any, name: str, where: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    raise DataError(f"{where}: column '{name}' must be a text, and is {_kind(value)}")


def _never_missing(name: str, where: str) -> DataError:
    return DataError(
        f"{where}: column '{name}' is missing, and it never was in train: the network has not learned what that means",
        hint=f"give a number for '{name}', or train with rows that lack it",
    )


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return f"the text {value[:40]!r}"
    if isinstance(value, (bool, int, float)) or value is None:
        return json.dumps(value)[:40]
    return "a list" if isinstance(value, list) else "an object" if isinstance(value, dict) else "NaN or infinity"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(f"'{name}'" for name in names[:_NAMED]) + more


def _column(values: Any) -> Numeric | Categorical:
    if isinstance(values, Mapping) and "values" in values:
        fields = _fields(values, {"name": str, "values": list}, {"missing": bool}, "a column of names")
        texts = fields["values"]
        if not all(isinstance(text, str) for text in texts) or len(set(texts)) != len(texts) or not texts:
            raise _damaged(f"the values of column '{fields['name']}' are not different texts")
        return Categorical(**{**fields, "values": tuple(texts)})
    needed = {"name": str, "mean": float, "std": float, "fill": float}
    column = Numeric(**_fields(values, needed, {"missing": bool}, "a column of numbers"))
    if column.std <= 0:
        raise _damaged(f"the standard deviation of column '{column.name}' is {column.std}; it must be above 0")
    return column


def _fields(values: Any, needed: Mapping[str, type], more: Mapping[str, type], what: str) -> dict[str, Any]:
    """The fields of a JSON object, of the types they must have; a whole number passes for a float.

    Raises:
        ModelError: One is missing, unknown or of another type.
    """
    if not isinstance(values, Mapping):
        raise _damaged(f"{what} is {_kind(values)}, not an object")
    types = {**needed, **more}
    unknown = sorted(str(name) for name in values if name not in types)
    if unknown:
        raise _damaged(f"{what} has unknown fields: {', '.join(unknown)}")
    found: dict[str, Any] = {}
    for name in types:
        if name in values:
            value = values[name]
            if types[name] is float and type(value) is int:
                value = _finite(value)
            if type(value) is not types[name] or (isinstance(value, float) and not math.isfinite(value)):
                raise _damaged(f"{what} has {name} = {_kind(value)}; it must be of type {types[name].__name__}")
            if name != "kind":
                found[name] = value
        elif name in needed:
            raise _damaged(f"{what} has no {name}")
    return found


def _finite(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _damaged(problem: str) -> ModelError:
    return ModelError(f"the preprocessing contract of the table cannot be read: {problem}")
