"""Labelled texts: read out of CSV, Parquet or JSON Lines, checked and split; and a tokenizer learned from them."""

from __future__ import annotations

import csv
import difflib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetl.config import Data
from edgetl.data.dataset import SPLITS, UNLABELLED, Dataset, Sample
from edgetl.data.leaks import check_groups, check_leaks
from edgetl.data.splits import split_val
from edgetl.data.verify import Progress
from edgetl.errors import DataError, MissingExtraError, UsageError
from edgetl.tomlfile import did_you_mean

TEXT_SUFFIXES = (".csv", ".parquet", ".jsonl", ".ndjson")
PAD = 0
"""Id of the padding of :func:`train_tokenizer`'s tokenizers."""
_COLUMNS = ("text", "label", "split", "group")
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]")
_MAX_NAMED = 20
_LONGEST = 1 << 27
"""Characters of one CSV field; the module's own limit of 131,072 is less than a long document has."""


@dataclass(frozen=True)
class _Row:
    text: str
    label: str | None
    split: str | None
    group: str | None
    where: str


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
    rows = _rows(config)
    classes = _classes(config, rows)
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
    entries = [f"{split}\0{path.suffix.lower()}\0{_digest(path)}" for split, path in _files(config).items()]
    return hashlib.sha256("\n".join(entries).encode()).hexdigest()


def load_text_samples(path: Path, classes: Sequence[str] = ()) -> tuple[Sample, ...]:
    """Read texts that need no labels: for calibration, or for verifying a bundle on other data.

    With a column label and ``classes`` they are labelled, else ``UNLABELLED``. A column split is not looked at.

    Args:
        path: Of a .csv, .parquet, .jsonl or .ndjson file with a column text.
        classes: Names in the order of the model's outputs; empty where they are not known.

    Raises:
        DataError: As :func:`load_texts`; or a label is not one of the classes.
        MissingExtraError: Parquet without pyarrow.
    """
    rows = _read(path, needs=("text",))
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
    return hashlib.sha256(f"{path.suffix.lower()}\0{_digest(path)}".encode()).hexdigest()


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
    except ImportError:
        raise MissingExtraError("tokenizers", extra="text", needed_for="learning a tokenizer") from None
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


def _files(config: Data) -> dict[str, Path]:
    """The files of the user by split; "all" for one that says so itself."""
    if config.manifest is not None:
        return {"all": config.manifest}
    named = {"train": config.train, "val": config.val, "test": config.test}
    return {split: path for split, path in named.items() if path is not None}


def _rows(config: Data) -> dict[str, list[_Row]]:
    """The rows of every split that the user gave."""
    files = _files(config)
    if "all" not in files:
        return {split: _split_rows(split, path) for split, path in files.items()}
    listed = _read(files["all"], needs=("text", "label", "split"))
    rows = {split: [row for row in listed if row.split == split] for split in SPLITS}
    for split in ("train", "test"):
        if not rows[split]:
            raise DataError(f"{files['all']}: no row has the split '{split}'")
    return rows if rows["val"] else {"train": rows["train"], "test": rows["test"]}


def _split_rows(split: str, path: Path) -> list[_Row]:
    rows = _read(path, needs=("text", "label"))
    for row in rows:
        if row.split not in (None, split):
            raise DataError(
                f"{path}: {row.where}: split is '{row.split}' in the file that was given as data.{split}",
                hint="give one file for all splits as data.manifest",
            )
    return rows


def _classes(config: Data, rows: Mapping[str, Sequence[_Row]]) -> tuple[str, ...]:
    classes = config.classes or tuple(sorted({row.label or "" for row in rows["train"]}))
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
    return Sample(row.text, label, row.group, hashlib.sha256(row.text.encode("utf-8")).hexdigest())


def _digest(path: Path) -> str:
    content = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                content.update(block)
    except FileNotFoundError:
        raise DataError(f"there is no file {path}") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    return content.hexdigest()


_Record = Mapping[str, Any] | str
_Records = Iterable[tuple[str, "_Record"]]


def _read(path: Path, *, needs: Sequence[str]) -> list[_Row]:
    """The rows of a file, all of them right.

    Raises:
        DataError: It is not there or damaged, a column is missing, or rows are wrong; up to 20 are named.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path} is not a table of texts", hint=f"texts are read from {' '.join(TEXT_SUFFIXES)} files")
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    columns, records = reader(path)
    _check_columns(path, columns, needs)
    rows: list[_Row] = []
    problems: list[str] = []
    for where, record in records:
        problem = record if isinstance(record, str) else _problem(record, needs)
        if problem or isinstance(record, str):
            problems.append(f"{where}: {problem}")
            continue
        label, split, group = (_value(record.get(name)) or None for name in ("label", "split", "group"))
        rows.append(_Row(record["text"], label, split, group, where))
    if problems:
        total = len(problems)
        listed = "\n".join(f"  {problem}" for problem in problems[:_MAX_NAMED])
        more = f"\n  … and {total - _MAX_NAMED} more" if total > _MAX_NAMED else ""
        raise DataError(f"{path}: {total} {'rows are' if total > 1 else 'row is'} wrong:\n{listed}{more}")
    if not rows:
        raise DataError(f"{path} is empty: it has no rows")
    return rows


def _problem(record: Mapping[str, Any], needs: Sequence[str]) -> str | None:
    text = record.get("text")
    if text is None or text == "":
        return "text is empty"
    if not isinstance(text, str):
        return f"text is {text!r}, which is no text"
    if not text.strip():
        return "text is empty: it is blank"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "text holds half a character: a lone surrogate"
    for name in ("label", "split", "group"):
        value = record.get(name)
        if isinstance(value, bool) or not isinstance(value, (str, int, type(None))):
            return f"{name} is {value!r}; it should be a name or a whole number"
        if name in needs and not _value(value):
            return f"{name} is empty"
    split = _value(record.get("split"))
    if split and split not in SPLITS:
        return f"unknown split '{split}'; {did_you_mean(split, SPLITS)}"
    return None


def _value(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _check_columns(path: Path, columns: Sequence[str], needs: Sequence[str]) -> None:
    twice = sorted({name for name in columns if name and columns.count(name) > 1})
    if twice:
        raise DataError(f"{path}: column '{twice[0]}' stands there twice")
    others = [name for name in columns if name and name not in _COLUMNS]
    for name in needs:
        if name not in columns:
            near = difflib.get_close_matches(name, others, n=1)
            meant = f"did you mean '{near[0]}'?" if near else f"the columns are: {', '.join(columns) or 'none'}"
            raise DataError(f"{path}: column '{name}' is missing; {meant}", hint="text,label,split[,group]")
    # A misspelt optional column would be ignored, and with it the promise that a group is never torn apart.
    near = difflib.get_close_matches("group", others, n=1, cutoff=0.75)
    if near and "group" not in columns:
        raise DataError(f"{path}: unknown column '{near[0]}'; did you mean 'group'?", hint=f"rename '{near[0]}'")


def _read_csv(path: Path) -> tuple[list[str], _Records]:
    """The column names, and per row the line where it begins and its values, or what is wrong with it."""
    limit = csv.field_size_limit(_LONGEST)
    line = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            columns = [name.strip() for name in next(reader, [])]
            records: list[tuple[str, _Record]] = []
            line = reader.line_num + 1
            for values in reader:
                if len(values) > 1 or any(value.strip() for value in values):
                    wrong = f"{len(values)} values for {len(columns)} columns"
                    fits = len(values) == len(columns)
                    records.append((f"line {line}", dict(zip(columns, values, strict=True)) if fits else wrong))
                line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}: line {line}: not valid CSV: {error}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8: {error}", hint="save the file as UTF-8") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    finally:
        csv.field_size_limit(limit)
    return columns, records


def _read_parquet(path: Path) -> tuple[list[str], _Records]:
    """As :func:`_read_csv`; rows are counted from 1."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise MissingExtraError("pyarrow", extra="train", needed_for=f"reading {path}") from None
    try:
        names = [str(name) for name in parquet.read_schema(path).names]
        wanted = [name for name in names if name in _COLUMNS]
        table: dict[str, list[Any]] = parquet.read_table(path, columns=wanted).to_pydict()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not valid Parquet: {error}") from None
    count = max((len(values) for values in table.values()), default=0)
    records = [(f"row {row + 1}", {name: values[row] for name, values in table.items()}) for row in range(count)]
    return names, records


def _read_json_lines(path: Path) -> tuple[list[str], _Records]:
    """As :func:`_read_csv`, for one JSON object per line; a column is what any of them has."""
    columns: dict[str, None] = {}
    records: list[tuple[str, _Record]] = []
    for number, line in _lines(path):
        try:
            values = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: line {number}: not UTF-8: {error}", hint="save the file as UTF-8") from None
        except (ValueError, RecursionError) as error:
            records.append((f"line {number}", f"not valid JSON: {error}"))
            continue
        if isinstance(values, dict):
            columns |= dict.fromkeys(values)
            records.append((f"line {number}", values))
        else:
            records.append((f"line {number}", "not a JSON object"))
    return list(columns) or list(_COLUMNS), records


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, counted from 1: cut at line feeds alone, since other breaks may stand in a text."""
    try:
        content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip():
            yield number, line


_READERS: dict[str, Callable[[Path], tuple[list[str], _Records]]] = {
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
}
