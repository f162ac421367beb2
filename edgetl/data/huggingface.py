"""Data sets of Hugging Face: a folder that ``save_to_disk`` wrote, or a name on the hub.

Images are not copied: their bytes stand in memory-mapped Arrow files, and a :class:`Part` says where.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from edgetl.data.manifest import IMAGE_SUFFIXES
from edgetl.data.parts import Part
from edgetl.data.records import Records, numbered, refuse
from edgetl.errors import DataError, not_imported
from edgetl.tomlfile import did_you_mean

if TYPE_CHECKING:
    import datasets
    import pyarrow

_SPLITS = {"train": "train", "validation": "val", "val": "val", "test": "test"}
"""Name of a split there → name here."""
_MAGIC = {
    b"\x89PNG": ".png",
    b"\xff\xd8\xff": ".jpg",
    b"BM": ".bmp",
    b"RIFF": ".webp",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
}
_OWN_NAMES = "name the columns as edgetl does, as dataset.rename_column('sentence', 'text')"


@dataclass(frozen=True, eq=False)
class Saved:
    """One split of a data set."""

    name: str
    """The folder, or the name on the hub and the split; for messages."""
    data: datasets.Dataset

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(self.data.column_names)

    def class_names(self, label: str) -> tuple[str, ...]:
        """What its ``ClassLabel`` calls the classes, in its order; empty where the column has no such type."""
        feature = self.data.features.get(label)
        feature = getattr(feature, "feature", feature)  # of a list of labels, what is in the list
        return tuple(getattr(feature, "names", None) or ())

    def records(self, names: Mapping[str, str] | None = None) -> Records:
        """The rows, with names for ``ClassLabel``'s numbers; nothing is decoded.

        Args:
            names: Name of a column in the records → its name here; columns that are not there are left out. None: all
                columns by their own names.

        Raises:
            DataError: A column holds images or sound.
        """
        wanted = {
            new: old for new, old in (names or {name: name for name in self.columns}).items() if old in self.columns
        }
        for old in wanted.values():
            if hasattr(self.data.features[old], "decode_example") and hasattr(self.data.features[old], "decode"):
                raise DataError(
                    f"{self.name}: column '{old}' is of the type {type(self.data.features[old]).__name__}, not a value",
                    hint=f"dataset.remove_columns(['{old}'])",
                )
        table = self.data.select_columns(list(wanted.values())).with_format("arrow")[:]
        values = [_named(self.data.features[old], table[old].to_pylist()) for old in wanted.values()]
        columns = list(wanted)
        rest = tuple(name for name in self.columns if name not in wanted and name not in wanted.values())
        hint = f'label = "NAME OF THE COLUMN" in [data] says which column is the label; {_OWN_NAMES}'
        rows = numbered(columns, values) if columns else tuple((f"row {n + 1}", {}) for n in range(len(self.data)))
        return Records(self.name, (*columns, *rest), rows, hint)

    def images(self) -> list[Path | Part]:
        """Where the bytes of every row's image stand: part of an Arrow file, or a file that the data set points to.

        Raises:
            DataError: There is not one column of images; a row has none; the Arrow files are gone, damaged or
                compressed; or rows were picked or moved in memory.
        """
        column = self._image_column()
        found: list[Path | Part] = []
        problems: list[str] = []
        for entry in self.data.cache_files:
            found += _images_of(Path(entry["filename"]).absolute(), column, len(found), problems)
        refuse(self.name, problems)
        if len(found) != len(self.data):
            raise DataError(
                f"{self.name}: its Arrow files have {len(found)} rows, and the data set {len(self.data)}",
                hint="save it anew: dataset.save_to_disk(FOLDER)",
            )
        self._check_ends(column, found)
        return found

    def digest(self) -> str:
        """SHA-256 of its columns' types and of every byte of its Arrow files, in hexadecimal.

        Raises:
            DataError: A file cannot be read.
        """
        content = hashlib.sha256(json.dumps(self.data.features.to_dict(), sort_keys=True, default=str).encode())
        for entry in self.data.cache_files:
            content.update(file_digest(Path(entry["filename"])).encode())
        return content.hexdigest()

    def _image_column(self) -> str:
        import datasets

        features = self.data.features
        found = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
        if not found:
            raise DataError(
                f"{self.name} has no column of images; its columns are {', '.join(features)}",
                hint="dataset.cast_column('NAME', datasets.Image()), or set task in [data]",
            )
        if len(found) > 1:
            raise DataError(
                f"{self.name} has {len(found)} columns of images: {', '.join(found)}",
                hint=f"keep the one to learn from: dataset.remove_columns(['{found[-1]}'])",
            )
        return str(found[0])

    def _check_ends(self, column: str, found: Sequence[Path | Part]) -> None:
        """Compare the first and last image with what the library itself reads there."""
        rows = self.data.select_columns([column]).with_format("arrow")
        for place in (0, len(found) - 1) if found else ():
            raw = found[place]
            if isinstance(raw, Part) and raw.read_bytes() != rows[place][column][0].as_py()["bytes"]:
                raise DataError(
                    f"{self.name}: row {place + 1} is not the image that stands in {raw.file}",
                    hint="save the data set anew: dataset.save_to_disk(FOLDER)",
                )


def is_saved(path: Path) -> bool:
    """Whether a path is a folder that ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk`` wrote."""
    single = (path / "state.json").is_file() and (path / "dataset_info.json").is_file()
    return single or (path / "dataset_dict.json").is_file()


def open_saved(path: Path) -> Saved | dict[str, Saved]:
    """Open what ``save_to_disk`` wrote.

    Returns:
        A data set, or several by split: train, val where there is one, and test.

    Raises:
        DataError: It is damaged; or it has splits, and train or test is not among them.
        MissingExtraError: The package datasets is not installed.
    """
    library = _library(f"reading {path}")
    with _quiet():
        try:
            found = library.load_from_disk(str(path), keep_in_memory=False)
        except (OSError, ValueError, LookupError, TypeError) as error:  # IndexError: a split without rows
            raise DataError(f"{path}: no data set can be read there: {_short(error)}") from None
    if isinstance(found, library.DatasetDict):
        return _by_split(str(path), found)
    return Saved(str(path), found)


def open_hub(name: str) -> dict[str, Saved]:
    """Fetch a data set from the hub, or take it from the cache of the package datasets.

    Args:
        name: NAME, NAME:CONFIG, NAME@REVISION or NAME:CONFIG@REVISION.

    Returns:
        As :func:`open_saved`.

    Raises:
        DataError: There is no such data set, configuration or revision, or the hub cannot be reached and the cache does
            not have it; or train or test is not among its splits.
        MissingExtraError: The package datasets is not installed.
    """
    library = _library(f"data.hub = '{name}'")
    rest, _, revision = name.partition("@")
    repository, _, configuration = rest.partition(":")
    if Path(repository).exists():  # the library would read that instead
        raise DataError(
            f"data.hub = '{name}': there is a file or folder '{repository}' here, which is not the hub",
            hint="give a folder as data.manifest, or as data.train and data.test; or go to another folder",
        )
    from datasets.exceptions import DatasetsError

    with _quiet():
        try:
            found = library.load_dataset(repository, configuration or None, revision=revision or None)
        except (OSError, ValueError, RuntimeError, KeyError, DatasetsError) as error:
            raise DataError(
                f"data.hub = '{name}': {_short(error)}",
                hint="look for the name, configuration and revision on the hub, and whether it can be reached and "
                "HF_TOKEN is set where it must be; without a network, save the data set elsewhere with "
                "dataset.save_to_disk(FOLDER) and give that folder as data.manifest",
            ) from None
    return _by_split(f"hub:{name}", found)


def file_digest(path: Path) -> str:
    """SHA-256 of every byte of a file, in hexadecimal.

    Raises:
        DataError: It is not there or cannot be read.
    """
    content = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                content.update(block)
    except FileNotFoundError:
        raise DataError(f"cannot read {path}: there is no file of that name") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    return content.hexdigest()


def _library(needed_for: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise not_imported(error, "datasets", extra="data", needed_for=needed_for) from None
    return datasets


@contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars where nobody would see them."""
    import datasets

    hide = not sys.stderr.isatty() and not datasets.are_progress_bars_disabled()
    if hide:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            datasets.enable_progress_bars()


def _short(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__)[:400]


def _by_split(name: str, found: Mapping[str, Any]) -> dict[str, Saved]:
    splits: dict[str, Saved] = {}
    for theirs, data in found.items():
        ours = _SPLITS.get(str(theirs))
        if ours in splits:
            raise DataError(f"{name} has both 'validation' and 'val'", hint="remove one of the two splits")
        if ours is not None:
            splits[ours] = Saved(f"{name}/{theirs}", data)
    for split in ("train", "test"):
        if split not in splits:
            raise DataError(
                f"{name} has no split '{split}'; {did_you_mean(split, [str(key) for key in found])}",
                hint="splits are called train, validation (or val) and test: DatasetDict({'train': …, 'test': …})"
                ".save_to_disk(FOLDER), with dataset.train_test_split where there is only one",
            )
    return {split: splits[split] for split in ("train", "val", "test") if split in splits}


def _named(feature: Any, values: list[Any]) -> list[Any]:
    """Values with the names of a ``ClassLabel`` in place of its numbers; its -1 stands for none."""
    names = getattr(feature, "names", None)
    if names:
        return [names[value] if value is not None and value >= 0 else None for value in values]
    inner = getattr(feature, "feature", None)
    if getattr(inner, "names", None):
        return [None if value is None else _named(inner, value) for value in values]
    return values


# --- Arrow files ------------------------------------------------------------------------------------------------------


def _images_of(file: Path, column: str, before: int, problems: list[str]) -> list[Path | Part]:
    """The images of one Arrow file, after so many rows; what is wrong is added to the problems."""
    import pyarrow

    found: list[Path | Part] = []
    try:
        with pyarrow.memory_map(str(file)) as source:
            # One buffer for the whole file: what is read out of it points into it, and nothing is copied.
            whole = source.read_buffer()
            with pyarrow.ipc.open_stream(pyarrow.BufferReader(whole)) as reader:
                for batch in reader:
                    values = batch.column(batch.schema.get_field_index(column))
                    found += _images_in(values, file, whole, before + len(found), problems)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file}: cannot be read as an Arrow file: {_short(error)}") from None
    return found


def _images_in(
    values: pyarrow.StructArray, file: Path, whole: pyarrow.Buffer, before: int, problems: list[str]
) -> list[Path | Part]:
    """The images of one batch of rows.

    An Arrow array of bytes is one buffer with all values after each other and one with the offsets between them
    (https://arrow.apache.org/docs/format/Columnar.html, variable-size binary layout).
    """
    fields = dict(zip((field.name for field in values.type), values.flatten(), strict=True))
    content, paths = fields["bytes"], fields["path"].to_pylist()
    _, ends, data = content.buffers()
    kind = np.int64 if str(content.type).startswith("large") else np.int32
    count = content.offset + len(content) + 1
    offsets = np.frombuffer(ends, dtype=kind, count=count)[content.offset :].tolist() if len(content) else []
    start = 0 if data is None else data.address - whole.address
    if data is not None and data.size and not 0 <= start <= start + data.size <= whole.size:
        raise DataError(
            f"{file}: its images are compressed, and have no place of their own in the file",
            hint="save the data set anew: datasets.load_from_disk(OLD).save_to_disk(NEW)",
        )
    there = content.is_valid().to_pylist()
    found: list[Path | Part] = []
    for place, path in enumerate(paths):
        where = f"row {before + place + 1}"
        if there[place]:
            offset, size = start + offsets[place], offsets[place + 1] - offsets[place]
            name = _name(where, path, bytes(whole[offset : offset + min(size, 4)]))
            found.append(Part(file, offset, size, name))
            continue
        if not path or not Path(path).is_file():
            problems.append(f"{where}: " + (f"there is no file '{path}'" if path else "it has no image"))
        found.append(Path(path or "").absolute())
    return found


def _name(where: str, path: str | None, magic: bytes) -> str:
    """For messages, with the suffix that belongs to the bytes where the data set does not keep a file's name."""
    name = PurePosixPath(path).name if path else ""
    if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES:
        return f"{where}: {name}"
    suffix = next((suffix for begin, suffix in _MAGIC.items() if magic.startswith(begin)), "")
    return f"{where}: {name}{suffix}" if name else f"{where}{suffix}"
