"""The preprocessing contracts: from raw inputs to the arrays that a model was trained on.

One function serves training, calibration, parity and the device, so that they cannot differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from edgetl.errors import ModelError
from edgetl.runtime.preprocessing.base import Array, Preprocessing, Readable, described
from edgetl.runtime.preprocessing.images import INTERPOLATION, ImagePreprocessing, decode

__all__ = [
    "INTERPOLATION",
    "Array",
    "ImagePreprocessing",
    "Preprocessing",
    "Readable",
    "decode",
    "described",
    "from_json",
]


def from_json(values: Mapping[str, Any]) -> Preprocessing:
    """A contract from its plain values; the inverse of its ``to_json``.

    Raises:
        ModelError: The kind is unknown, or a field is missing, unknown or of the wrong kind.
    """
    kind = values.get("kind")
    if kind not in _READERS:
        raise ModelError(f"the preprocessing contract is of the kind {kind!r}; this edgetl reads {', '.join(_READERS)}")
    return _READERS[kind](values)


def _text(values: Mapping[str, Any]) -> Preprocessing:
    from edgetl.runtime.preprocessing.text import TextPreprocessing

    return TextPreprocessing.from_json(values)


def _table(values: Mapping[str, Any]) -> Preprocessing:
    from edgetl.runtime.preprocessing.tables import TablePreprocessing

    return TablePreprocessing.from_json(values)


_READERS: dict[Any, Callable[[Mapping[str, Any]], Preprocessing]] = {
    "image": ImagePreprocessing.from_json,
    "text": _text,
    "table": _table,
}
