"""The preprocessing contract of texts: from a text to the numbers of its tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import DataError, ModelError, TokenizerError, not_imported
from edgetl.runtime.preprocessing.base import Array, Readable, digest_of_contract

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BOM = "\ufeff"
_SHOWN = 60


@dataclass(frozen=True, kw_only=True)
class TextPreprocessing:
    """How a text becomes token ids, int64 (length,), with the whole tokenizer in the contract.

    What stands in a text is text: "[PAD]" or "<s>" in it is cut into ordinary tokens. A byte order mark in front is
    left out.
    """

    kind: ClassVar[str] = "text"
    dtype: ClassVar[str] = "int64"
    input_shape: ClassVar[tuple[str, ...]] = ("length",)

    tokenizer: str = field(repr=False)
    """``Tokenizer.to_str()`` of the package tokenizers, with neither truncation nor padding in it."""
    max_length: int
    """Tokens, the special ones among them; a longer text loses its end and keeps its special tokens."""
    pad: int
    """Id that fills a batch up behind shorter texts. No token of a text has it: it is what the network tells padding
    by."""

    def __post_init__(self) -> None:
        for name in ("max_length", "pad"):
            value = getattr(self, name)
            if type(value) is not int or value < (1 if name == "max_length" else 0):
                raise ModelError(f"the preprocessing contract has {name} {value!r}")
        values = _parsed(self.tokenizer)
        for name in ("truncation", "padding"):
            if values.get(name) is not None:
                raise ModelError(f"the tokenizer of the preprocessing contract has {name} of its own")

    @classmethod
    def from_tokenizer(cls, tokenizer: str, *, max_length: int, pad: int) -> TextPreprocessing:
        """The contract of a tokenizer, tried on an empty text.

        Args:
            tokenizer: The content of a tokenizer.json; truncation and padding in it are switched off.
            max_length: See the field.
            pad: See the field.

        Raises:
            ModelError: It is no tokenizer, or leaves no room for a word in ``max_length``.
            TokenizerError: It puts the pad id into texts.
            MissingExtraError: The package tokenizers is not installed.
        """
        values = {**_parsed(tokenizer), "truncation": None, "padding": None}
        text = json.dumps(values, ensure_ascii=False, separators=(",", ":"))
        contract = cls(tokenizer=text, max_length=max_length, pad=pad)
        _opened(text, max_length, pad)
        return contract

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TextPreprocessing:
        """The inverse of :meth:`to_json`; the package tokenizers is not needed for it.

        Raises:
            ModelError: A field is missing or unknown, or its value is of the wrong kind.
        """
        known = {entry.name for entry in fields(cls)}
        found = {name for name in values if name != "kind"}
        if found != known:
            wrong = [f"{name} is missing" for name in sorted(known - found)]
            wrong += [f"{name} is unknown" for name in sorted(found - known)]
            raise ModelError(f"the preprocessing contract of texts cannot be read: {', '.join(wrong)}")
        return cls(**{name: values[name] for name in known})

    def to_json(self) -> dict[str, Any]:
        """Plain values; ``TextPreprocessing.from_json(p.to_json()) == p``."""
        return {"kind": self.kind, "tokenizer": self.tokenizer, "max_length": self.max_length, "pad": self.pad}

    def digest(self) -> str:
        """SHA-256 of the canonical JSON, in hexadecimal."""
        return digest_of_contract(self.to_json())

    @property
    def vocabulary(self) -> int:
        """One more than the largest id that the tokenizer gives or pads with: rows that an embedding needs.

        Raises:
            ModelError: The tokenizer cannot be used.
            MissingExtraError: The package tokenizers is not installed.
        """
        return vocabulary_of(self.tokenizer, self.pad)

    def __call__(self, raw: Readable | bytes | str) -> NDArray[np.int64]:
        """The token ids of a text.

        Args:
            raw: The text itself, its UTF-8 bytes, or a file that holds them.

        Returns:
            int64, shape (length,), 1 ≤ length ≤ ``max_length``; none is ``pad``.

        Raises:
            DataError: It cannot be read, is not UTF-8, or comes to no token at all.
            ModelError: The tokenizer cannot be used.
            TokenizerError: It gives the pad id to a token.
            MissingExtraError: The package tokenizers is not installed.
        """
        return self.prepare(self.decode(raw))

    def decode(self, raw: Readable | bytes | str) -> tuple[str, str]:
        """The text, and how messages name it."""
        return _text(raw)

    def prepare(self, decoded: tuple[str, str]) -> NDArray[np.int64]:
        """The token ids of a text that has been read; see :meth:`__call__`."""
        text, name = decoded
        ids = np.asarray(_opened(self.tokenizer, self.max_length, self.pad).encode(text).ids, dtype=np.int64)
        if not len(ids):
            raise DataError(f"{name} has no token: it is empty, or of characters that the tokenizer leaves out")
        if (ids == self.pad).any():
            raise TokenizerError(
                f"the tokenizer gives a token of {name} the id {self.pad}, which is the padding's",
                hint="take a tokenizer whose padding has an id of its own",
            )
        return ids

    def together(self, samples: Sequence[Array]) -> Array:
        """A batch: int64 (n, longest), shorter samples filled up with ``pad`` on the right."""
        batch = np.full((len(samples), max(map(len, samples), default=0)), self.pad, dtype=np.int64)
        for row, sample in zip(batch, samples, strict=True):
            row[: len(sample)] = sample
        return batch


def vocabulary_of(tokenizer: str, pad: int = 0) -> int:
    """One more than the largest id that a tokenizer gives, or pads with.

    Args:
        tokenizer: The content of a tokenizer.json.
        pad: Id of the padding.

    Raises:
        ModelError: It is no tokenizer.
        MissingExtraError: The package tokenizers is not installed.
    """
    ids = _read(tokenizer).get_vocab(with_added_tokens=True).values()
    return max(pad, max(ids, default=0)) + 1


def _text(raw: Readable | bytes | str) -> tuple[str, str]:
    """The text without a byte order mark, and how a message names it."""
    if isinstance(raw, str):
        try:
            raw.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(f"the text is not Unicode: {error.reason} at character {error.start}") from None
        short = raw if len(raw) <= _SHOWN else raw[:_SHOWN] + " …"
        return raw.removeprefix(_BOM), f"the text {short!r}"
    name = "the text" if isinstance(raw, bytes) else str(raw)
    try:
        content = raw if isinstance(raw, bytes) else raw.read_bytes()
        return content.decode("utf-8").removeprefix(_BOM), name
    except FileNotFoundError:
        raise DataError(f"{name}: there is no such file") from None
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not UTF-8: {error.reason} at byte {error.start}", hint="save it as UTF-8") from None


def _parsed(tokenizer: Any) -> dict[str, Any]:
    try:
        values = json.loads(tokenizer)
    except (TypeError, ValueError, RecursionError) as error:
        raise ModelError(f"the tokenizer is not the JSON that it should be: {error}") from None
    if not isinstance(values, dict) or "model" not in values:
        raise ModelError("the tokenizer is JSON, but not a tokenizer: it has no 'model'")
    return values


def _read(tokenizer: str) -> Tokenizer:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise not_imported(error, "tokenizers", extra="text", needed_for="reading texts") from None
    try:
        return Tokenizer.from_str(tokenizer)
    except Exception as error:  # the package raises Exception itself
        raise ModelError(f"the tokenizer cannot be read: {error}") from error


@lru_cache(maxsize=8)
def _opened(tokenizer: str, max_length: int, pad: int) -> Tokenizer:
    """The tokenizer of a contract, made once per process: reading a vocabulary takes longer than many texts."""
    opened = _read(tokenizer)
    special = opened.num_special_tokens_to_add(False)
    if max_length <= special:
        raise ModelError(
            f"texts of at most {max_length} tokens have no room for words: the tokenizer adds {special} of its own",
            hint="a larger data.max_length in edgetl.toml",
        )
    opened.no_padding()
    opened.enable_truncation(max_length)
    opened.encode_special_tokens = True  # else "[PAD]" in a text would be padding in the middle of it
    if pad in opened.encode("").ids:
        raise TokenizerError(
            f"the tokenizer puts the token {opened.id_to_token(pad)!r} around every text, and its id {pad} is that of"
            " the padding",
            hint="take a tokenizer whose padding has an id of its own",
        )
    return opened
