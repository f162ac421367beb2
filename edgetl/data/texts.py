"""Labelled texts: read out of files or data sets, checked and split; and a tokenizer learned from them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from edgetl.config import Data
from edgetl.data.dataset import SPLITS, UNLABELLED, Dataset, Sample
from edgetl.data.leaks import check_groups, check_leaks
from edgetl.data.records import RECORD_SUFFIXES, Record, WrongRow, check_columns, parsed
from edgetl.data.sources import (
    Source,
    by_split,
    content_digest,
    named,
    own_classes,
    rows_of,
    source_of,
    sources_of,
)
from edgetl.data.splits import split_val
from edgetl.data.verify import Progress
from edgetl.errors import DataError, UsageError, not_imported
from edgetl.tomlfile import did_you_mean

TEXT_SUFFIXES = RECORD_SUFFIXES
PAD = 0
"""Id of the padding of :func:`train_tokenizer`'s tokenizers."""
_COLUMNS = ("text", "label", "split", "group")
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]")


@dataclass(frozen=True)
class _Row:
    text: str
    label: str | None
    split: str | None
    group: str | None
    where: str
    slices: tuple[str, ...] = ()


def load_texts(config: Data, *, progress: Progress | None = None) -> Dataset:
    """Read, check and split labelled texts.

    Columns: text, label, split (train, val or test; not where every split has a file of its own) and group (optional;
    empty: the text is alone). Other columns are ignored. Texts stay as they are, line breaks and all; blanks around the
    other values are removed. Classes and val as in :func:`edgetl.data.load.load_dataset`.

    Args:
        config: The ``[data]`` table, with absolute paths.
        progress: Called with the number of texts read and the total.

    Raises:
        DataError: A file is missing, damaged or not UTF-8; rows are wrong (named by line); fewer than two classes, a
            class missing in a split, a label that is no class.
        LeakError: Two splits share a text or a group.
        MissingExtraError: Parquet without pyarrow.
    """
    sources = sources_of(config)
    rows = _rows(config, sources)
    classes = _classes(config, rows, sources)
    for split, listed in rows.items():
        _check_labels(split, listed, classes)
    index = {name: position for position, name in enumerate(classes)}
    splits = {split: tuple(_sample(row, index[row.label or ""]) for row in listed) for split, listed in rows.items()}
    if progress is not None:
        progress(total := sum(map(len, splits.values())), total)
    check_leaks(splits)
    check_groups(splits)
    if "val" not in splits:
        splits["train"], splits["val"] = split_val(splits["train"], config.val_fraction, config.split_seed, classes)
    return Dataset(classes, splits["train"], splits["val"], splits["test"])


def texts_digest(config: Data) -> str:
    """SHA-256 of every byte of the files behind a ``[data]`` table, in hexadecimal; nothing in them is looked at.

    Their location is not in it: a stored :class:`Dataset` holds the texts themselves.

    Raises:
        DataError: A file is missing or cannot be read.
    """
    entries = [f"{split}\0{content_digest(source)}" for split, source in sources_of(config).items()]
    return hashlib.sha256("\n".join(entries).encode()).hexdigest()


def load_text_samples(path: Path, classes: Sequence[str] = ()) -> tuple[Sample, ...]:
    """Read texts that need no labels: for calibration, or for verifying a bundle on other data.

    With a column label and ``classes`` they are labelled, else ``UNLABELLED``. A column split is not looked at.

    Args:
        path: Of a .csv, .parquet, .jsonl or .ndjson file with a column text, or of a saved data set.
        classes: Names in the order of the model's outputs; empty where they are not known.

    Raises:
        DataError: As :func:`load_texts`; or a label is not one of the classes.
        MissingExtraError: Parquet without pyarrow.
    """
    rows = _read(source_of(path), needs=("text",), classes=classes)
    index = {name: position for position, name in enumerate(classes)}
    for row in rows:
        if classes and row.label is not None and row.label not in index:
            raise DataError(
                f"{path}: {row.where}: '{row.label}' is not a class of the model; {did_you_mean(row.label, classes)}"
            )
    return tuple(_sample(row, index[row.label] if classes and row.label is not None else UNLABELLED) for row in rows)


def text_samples_digest(path: Path) -> str:
    """As :func:`texts_digest`, for what :func:`load_text_samples` would read.

    Raises:
        DataError: The file is missing or cannot be read.
    """
    return hashlib.sha256(content_digest(source_of(path)).encode()).hexdigest()


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> str:
    """A tokenizer for words and parts of words, learned from texts: byte-pair encoding on lower-case NFC.

    (Sennrich et al. 2016, arXiv:1508.07909; a mark in front of every word says where it begins.) The same texts give
    the same tokenizer: WordPiece, which BERT has, numbers its parts in another order on every run. Every text begins
    with the token [CLS], so that none is empty.

    Args:
        texts: Of train alone.
        vocabulary: Tokens at most; fewer where the texts do not have so many.

    Returns:
        The content of a tokenizer.json; the padding is :data:`PAD`.

    Raises:
        UsageError: ``vocabulary`` has no room beside the special tokens.
        DataError: There is no text.
        MissingExtraError: The package tokenizers is not installed.
    """
    try:
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    except ImportError as error:
        raise not_imported(error, "tokenizers", extra="text", needed_for="learning a tokenizer") from None
    if vocabulary <= len(_SPECIAL):
        raise UsageError(f"a vocabulary of {vocabulary} was asked for; {len(_SPECIAL)} tokens are special ones")
    listed = list(texts)
    if not listed:
        raise DataError("there is no text to learn a tokenizer from")
    pad, unknown, begin = _SPECIAL
    tokenizer: Any = Tokenizer(models.BPE(unk_token=unknown))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase(), normalizers.NFC()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Metaspace(prepend_scheme="always", split=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[pad, unknown, begin],
        limit_alphabet=max(1, min(1000, vocabulary - len(_SPECIAL))),
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator(listed, trainer, length=len(listed))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, 2)])
    return str(tokenizer.to_str())


def _rows(config: Data, sources: Mapping[str, Source]) -> dict[str, list[_Row]]:
    """The rows of every split that the user gave."""
    if "all" not in sources:
        return {split: _split_rows(split, source, config) for split, source in sources.items()}
    listed = _read(sources["all"], needs=("text", "label", "split"), **_as(config))
    return by_split(listed, named(sources["all"]))


def _split_rows(split: str, source: Source, config: Data) -> list[_Row]:
    rows = _read(source, needs=("text", "label"), **_as(config))
    for row in rows:
        if row.split not in (None, split):
            raise DataError(
                f"{named(source)}: {row.where}: split is '{row.split}' in the file that was given as data.{split}",
                hint="give one file for all splits as data.manifest",
            )
    return rows


def _classes(config: Data, rows: Mapping[str, Sequence[_Row]], sources: Mapping[str, Source]) -> tuple[str, ...]:
    labels = {row.label for listed in rows.values() for row in listed}
    classes = config.classes or own_classes(sources, config.label, labels)
    classes = classes or tuple(sorted({row.label or "" for row in rows["train"]}))
    twice = sorted({name for name in classes if classes.count(name) > 1})
    if twice:
        raise DataError(f"data.classes names '{twice[0]}' more than once")
    if len(classes) < 2:
        raise DataError(f"there is only one class, '{classes[0]}': nothing can be learned from it")
    return classes


def _check_labels(split: str, rows: Sequence[_Row], classes: Sequence[str]) -> None:
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
            f"{split} has no text of {len(missing)} of {len(classes)} classes: {named}",
            hint=f"add texts of them to {split}, or leave the classes out of every split",
        )


def _sample(row: _Row, label: int) -> Sample:
    return Sample(row.text, label, row.group, hashlib.sha256(row.text.encode("utf-8")).hexdigest(), row.slices)


def _as(config: Data) -> dict[str, Any]:
    """How the rows of a project are read."""
    return {"label": config.label, "classes": config.classes, "slices": config.slices}


def _read(
    source: Source,
    *,
    needs: Sequence[str],
    label: str = "label",
    classes: Sequence[str] = (),
    slices: Sequence[str] = (),
) -> list[_Row]:
    """The rows of a file or of a data set, all of them right.

    Raises:
        DataError: It is not there or damaged, a column is missing, or rows are wrong; up to 20 are named.
    """
    if isinstance(source, Path) and source.suffix.lower() not in TEXT_SUFFIXES:
        hint = f"texts are read from {' '.join(TEXT_SUFFIXES)} files, and from folders that Dataset.save_to_disk wrote"
        raise DataError(f"{source} is not a table of texts", hint=hint)
    records = rows_of(source, (*_COLUMNS, *slices), label=label, classes=classes)
    check_columns(records, (*needs, *slices), _COLUMNS)
    rows = parsed(records, partial(_row, needs=needs, slices=slices))
    if not rows:
        raise DataError(f"{records.source} is empty: it has no rows")
    return rows


def _row(where: str, record: Record, *, needs: Sequence[str], slices: Sequence[str] = ()) -> _Row:
    text = record.get("text")
    if text is None or text == "":
        raise WrongRow("text is empty")
    if not isinstance(text, str):
        raise WrongRow(f"text is {text!r}, which is no text")
    if not text.strip():
        raise WrongRow("text is empty: it is blank")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise WrongRow("text holds half a character: a lone surrogate") from None
    values = {}
    for name in ("label", "split", "group"):
        value = record.get(name)
        if isinstance(value, bool) or not isinstance(value, (str, int, type(None))):
            raise WrongRow(f"{name} is {value!r}; it should be a name or a whole number")
        values[name] = "" if value is None else str(value).strip()
        if name in needs and not values[name]:
            raise WrongRow(f"{name} is empty")
    if values["split"] and values["split"] not in SPLITS:
        raise WrongRow(f"unknown split '{values['split']}'; {did_you_mean(values['split'], SPLITS)}")
    kept = tuple("" if record.get(name) is None else str(record[name]).strip() for name in slices)
    return _Row(text, values["label"] or None, values["split"] or None, values["group"] or None, where, kept)
