"""What every preprocessing contract can do, whatever it is fed with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_SHOWN = 160


class Readable(Protocol):
    """An input that is read when it is needed: a file, or a part of one. Its ``str()`` names it in messages."""

    def read_bytes(self) -> bytes:
        """All of it."""


class Preprocessing(Protocol):
    """From a raw input, as it comes on the device, to the array that a model takes: one recorded, hashed function.

    It is an immutable value that can be pickled, compared, and written as JSON.
    """

    @property
    def kind(self) -> str:
        """What it takes: image, text or table."""

    @property
    def input_shape(self) -> tuple[int | str, ...]:
        """Of one sample, without the batch; a string is the name of a dimension that differs between samples."""

    @property
    def dtype(self) -> str:
        """NumPy's name of the array's: float32 or int64."""

    def __call__(self, raw: Readable | bytes | str) -> Array:
        """The array of one sample.

        Args:
            raw: A file or a part of one, its bytes, or its text.

        Raises:
            DataError: It cannot be read.
        """

    def decode(self, raw: Readable | bytes | str) -> Any:
        """The first half of a call: what is in a raw input, before anything is computed from it.

        Returns:
            Pixels, a row or a text, for :meth:`prepare`.

        Raises:
            DataError: It cannot be read.
        """

    def prepare(self, decoded: Any) -> Array:
        """The second half of a call: the array of one sample, from what :meth:`decode` gave."""

    def together(self, samples: Sequence[Array]) -> Array:
        """A batch of samples: shape (n, *input_shape), where a dimension that differs is as large as it must be."""

    def to_json(self) -> dict[str, Any]:
        """Plain values; :func:`edgetl.runtime.preprocessing.from_json` is the inverse."""

    def digest(self) -> str:
        """SHA-256 of the canonical JSON, in hexadecimal."""


def digest_of_contract(values: Mapping[str, Any]) -> str:
    """SHA-256 of plain values as canonical JSON, in hexadecimal."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def described(values: Mapping[str, Any]) -> dict[str, str]:
    """The plain values of a contract for people: a tokenizer's thousands of words are cut short."""
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    return {name: text if len(text) <= _SHOWN else f"{text[:_SHOWN]} …" for name, text in texts.items()}


def stacked(samples: Sequence[Array]) -> Array:
    """A batch of samples that are all of one shape."""
    return np.stack(samples)
