"""WebDataset shards: uncompressed tar archives in which the members of one name are one sample.

``000123.jpg`` and ``000123.cls`` belong together: the key of a member is its path up to the first dot of its last part,
and what follows is its kind (https://github.com/webdataset/webdataset, "The WebDataset Format"). Shards are indexed and
not unpacked: an image is a :class:`Part` of its shard.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

from edgetl.data.manifest import IMAGE_SUFFIXES, REFUSED_SUFFIXES, Row
from edgetl.data.parts import Part
from edgetl.data.records import WrongRow, label_text, refuse
from edgetl.errors import DataError, not_imported

LABEL_KINDS = ("cls", "json", "txt")
"""Kinds of members that hold a label, the strongest first."""
_COMPRESSED = {
    ".tar.gz": "gunzip", ".tgz": "gunzip", ".tar.bz2": "bunzip2", ".tbz2": "bunzip2", ".tar.xz": "unxz", ".txz": "unxz",
    ".tar.zst": "unzstd", ".tzst": "unzstd",
}  # fmt: skip
_MAGIC = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}
_WILD = re.compile(r"[*?\[]")
_BRACES = re.compile(r"\{[^{}]*(,|\.\.)[^{}]*\}")
_MEMBER = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)
_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}", re.ASCII)
"""An index as it is written: "007" is a name."""
_LARGEST_LABEL = 1 << 20
_BLOCK = 512
_PIECE = 1 << 20


@dataclass
class _Found:
    """The members of one key."""

    images: list[Part] = field(default_factory=list)
    members: dict[str, tarfile.TarInfo] = field(default_factory=dict)
    """By kind."""


def is_shards(path: Path) -> bool:
    """Whether a path stands for shards: .tar, also compressed; a pattern of such; or a folder of .tar files."""
    name = path.name.lower()
    if path.is_dir():
        return bool(_inside(path))
    if _is_archive(name):
        return True
    # A pattern may hide the suffix, as in "*" or "train.{tar,tgz}"; it is one where no such file is there.
    return bool(_WILD.search(str(path)) or _BRACES.search(str(path))) and not path.exists() and ".tar" in str(path)


def find_shards(pattern: Path) -> list[Path]:
    """The shards that a path, a folder, a glob or braces stand for, sorted by name.

    Only what follows the deepest folder that is there is a pattern, so that a folder may be called "[2024]".

    Args:
        pattern: Absolute, as ``/data/train-{000000..000009}.tar``, ``/data/train-*.tar`` or ``/data/train``.

    Raises:
        DataError: A shard is not there, is compressed, or is named twice; or nothing matches.
        MissingExtraError: Braces without the package braceexpand.
    """
    shards = _inside(pattern) if pattern.is_dir() else _matching(pattern)
    for path in shards:
        _refuse_compressed(path)
        if not path.is_file():
            raise DataError(f"there is no shard {path}", hint="shards are files on this machine; fetch them first")
    twice = sorted({path for path in shards if shards.count(path) > 1}) if len(set(shards)) < len(shards) else []
    if twice:
        raise DataError(f"{pattern} names the shard {twice[0].name} twice")
    return sorted(shards)


def read_shards(
    pattern: Path, classes: Sequence[str] = (), *, needs_label: bool = True, several: bool = False
) -> list[Row]:
    """The images of shards, in the order of the shards' names and of their members; none is decoded or unpacked.

    A label is the text of a .cls member (a whole number is an index into ``classes``, where none of them is named so),
    else "label" of a .json member (text, number, or a list for several), else the text of a .txt member. "group" of a
    .json member says which samples belong together. Members of other kinds are ignored, and so are names that begin
    with a dot or have none.

    Args:
        pattern: See :func:`find_shards`.
        classes: Names in the order of the model's outputs; empty where they are not known.
        needs_label: Whether every image must have a label.
        several: Whether an image may have several, or none.

    Raises:
        DataError: As :func:`find_shards`; a shard is empty, cut, damaged or no archive; members are links or sparse;
            samples have no image, two, or no label. All samples that are wrong in a shard are named at once.
        MissingExtraError: Braces without the package braceexpand.
    """
    rows = []
    for shard in find_shards(pattern):
        rows += _rows(shard, classes, needs_label=needs_label, several=several)
    return rows


# --- names ------------------------------------------------------------------------------------------------------------


def _is_archive(name: str) -> bool:
    return name.endswith((".tar", *_COMPRESSED))


def _inside(folder: Path) -> list[Path]:
    """The archives of a folder; none where they lie beside images or folders, which are then what is meant."""
    try:
        entries = [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError:
        return []  # whoever lists it says why it cannot be listed
    if any(path.suffix.lower() in IMAGE_SUFFIXES or path.is_dir() for path in entries):
        return []
    return [path for path in entries if _is_archive(path.name.lower())]


def _matching(pattern: Path) -> list[Path]:
    base = next(folder for folder in pattern.parents if folder.is_dir())
    rest = str(pattern.relative_to(base))
    expanded = _expanded(rest) if _BRACES.search(rest) and not pattern.exists() else [rest]
    found: list[Path] = []
    for name in expanded:
        path = base / name
        if path.exists() or not _WILD.search(name):
            found.append(path)
            continue
        try:
            matches = [match for match in base.glob(name) if not match.name.startswith(".")]
        except (ValueError, NotImplementedError) as error:
            raise DataError(f"the pattern {path} cannot be used: {error}") from None
        if not matches:
            raise DataError(f"no shard matches {path}", hint=f"the folder that is there is {base}")
        found += matches
    return found


def _expanded(pattern: str) -> list[str]:
    try:
        from braceexpand import braceexpand
    except ImportError as error:
        raise not_imported(error, "braceexpand", extra="data", needed_for=f"the braces of {pattern}") from None
    try:
        return list(braceexpand(pattern, escape=False))
    except ValueError as error:
        raise DataError(f"the braces of {pattern} do not match: {error}") from None


def _refuse_compressed(path: Path) -> None:
    name = path.name.lower()
    tool = next((tool for suffix, tool in _COMPRESSED.items() if name.endswith(suffix)), None)
    if tool is None and path.is_file():
        try:
            with path.open("rb") as file:
                begin = file.read(8)
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from None
        tool = next((tool for magic, tool in _MAGIC.items() if begin.startswith(magic)), None)
    if tool is not None:
        raise DataError(
            f"{path} is compressed, so that no image in it can be read by itself",
            hint=f"{tool} < {path.name} > {path.name.partition('.')[0]}-plain.tar; an image is compressed by itself, "
            "and a plain .tar is hardly larger",
        )


# --- one shard --------------------------------------------------------------------------------------------------------


def _rows(shard: Path, classes: Sequence[str], *, needs_label: bool, several: bool) -> list[Row]:
    samples: dict[str, _Found] = {}
    problems: list[str] = []
    last = ""
    with _opened(shard) as archive:
        for member in _members(archive, shard):
            split = _key(member, problems)
            if split is None:
                continue
            key, kind = split
            if key in samples and key != last:
                problems.append(
                    f"{member.name}: members of the sample '{key}' do not stand together, or it is there twice"
                )
                continue
            last = key
            _add(samples.setdefault(key, _Found()), shard, member, kind, problems)
    rows = []
    with shard.open("rb", buffering=0) as file:
        for key, found in samples.items():
            try:
                rows.append(_row(file, found, classes, needs_label=needs_label, several=several))
            except WrongRow as error:
                problems.append(f"{key}: {error}")
    refuse(shard, problems, "sample")
    if not rows:
        raise DataError(f"{shard} is empty: it has no images")
    return rows


def _opened(shard: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(shard, mode="r:")
    except tarfile.ReadError as error:
        if shard.stat().st_size == 0:
            raise DataError(f"{shard} is empty: 0 bytes") from None
        raise DataError(f"{shard} is no tar archive: {error}") from None
    except OSError as error:
        raise DataError(f"cannot read {shard}: {error.strerror or error}") from None


def _members(archive: tarfile.TarFile, shard: Path) -> Iterator[tarfile.TarInfo]:
    """All members of an archive that is whole.

    tarfile takes a header that it cannot read for the end of the archive, so what stands there is looked at.
    """
    size, end = shard.stat().st_size, 0
    with shard.open("rb") as file:
        if not file.read(_BLOCK).strip(b"\0"):  # nothing but the end: tarfile of Python 3.10 fails there
            _check_end(shard, end)
            return
    while True:
        try:
            member = archive.next()
        except (tarfile.TarError, OSError, ValueError) as error:
            raise DataError(f"{shard} is cut or damaged behind byte {end}: {error}", hint="copy it again") from None
        if member is None:
            break
        archive.members = []  # type: ignore[attr-defined]  # kept by tarfile for as long as the archive is open
        end = archive.offset
        if member.isreg() and not member.issparse() and member.offset_data + member.size > size:
            raise DataError(
                f"{shard} is cut: '{member.name}' should end at byte {member.offset_data + member.size:,}, and the "
                f"file has {size:,}",
                hint="copy it again",
            )
        yield member
    _check_end(shard, end)


def _check_end(shard: Path, end: int) -> None:
    """Refuse an archive whose last member is not followed by zeros, and by nothing else."""
    with shard.open("rb") as file:
        file.seek(end)
        if len(file.read(_BLOCK).strip(b"\0")) or file.tell() < end + _BLOCK:
            raise DataError(
                f"{shard} is cut or damaged behind byte {end:,}: there is neither a member nor the end of an archive",
                hint="copy it again, or write it anew",
            )
        while piece := file.read(_PIECE):
            if piece.strip(b"\0"):
                raise DataError(
                    f"{shard}: after the archive's end, at byte {end:,}, more follows: several were put into one file",
                    hint="join archives with tar --concatenate, or list them one by one",
                )


def _key(member: tarfile.TarInfo, problems: list[str]) -> tuple[str, str] | None:
    """Key and kind of a member; None for what is no part of a sample."""
    base = member.name.rpartition("/")[2]
    if member.isdir() or base.startswith("."):
        return None
    fits = _MEMBER.fullmatch(member.name)
    if member.issym() or member.islnk():
        problems.append(f"{member.name}: a link to '{member.linkname}'; write it anew with tar --dereference")
    elif member.issparse():
        problems.append(f"{member.name}: stored as a sparse file; write it anew without tar --sparse")
    elif not member.isreg():
        problems.append(f"{member.name}: not a plain file")
    elif fits is not None:
        return fits[1], fits[2].lower()
    return None


def _add(found: _Found, shard: Path, member: tarfile.TarInfo, kind: str, problems: list[str]) -> None:
    suffix = "." + kind.rpartition(".")[2]
    if kind in found.members:
        problems.append(f"{member.name}: is there twice")
    elif suffix in REFUSED_SUFFIXES:
        problems.append(f"{member.name}: images of the kind {suffix} are not read; read are {' '.join(IMAGE_SUFFIXES)}")
    found.members[kind] = member
    if suffix in IMAGE_SUFFIXES:
        found.images.append(Part(shard.absolute(), member.offset_data, member.size, member.name))


def _row(file: FileIO, found: _Found, classes: Sequence[str], *, needs_label: bool, several: bool) -> Row:
    if len(found.images) != 1:
        kinds = ", ".join(f".{kind}" for kind in found.members)
        if not found.images:
            raise WrongRow(f"no image among its members ({kinds})")
        raise WrongRow(f"{len(found.images)} images ({kinds}); a name goes to its first dot, and one image has one")
    about = _json(file, found)
    label = _label(file, found, about, classes, several=several)
    if label is None and needs_label:
        raise WrongRow('no label: it has no .cls, no .json with "label", and no .txt')
    if not label and needs_label and not several:
        raise WrongRow("label is empty")
    group = about.get("group")
    if isinstance(group, bool) or not isinstance(group, (str, int, type(None))):
        raise WrongRow(f"group is {group!r}; it should be a name or a whole number")
    part = found.images[0]
    return Row(part, label or None, None, None if group is None else str(group).strip() or None, str(part))


def _label(file: FileIO, found: _Found, about: dict[str, Any], classes: Sequence[str], *, several: bool) -> str | None:
    """The label, "" for an image of no class; None where nothing says it."""
    if "cls" in found.members:
        text = _text(file, found.members["cls"])
        names: list[Any] = [name.strip() for name in text.split(";")] if several and text else [text]
        values = [int(name) if _NUMBER.fullmatch(name) else name for name in names]
        return label_text(values if len(values) > 1 else values[0], classes, several=several)
    if "label" in about:
        return label_text(about["label"], classes, several=several)
    return _text(file, found.members["txt"]) if "txt" in found.members else None


def _json(file: FileIO, found: _Found) -> dict[str, Any]:
    if "json" not in found.members:
        return {}
    try:
        about = json.loads(_text(file, found.members["json"]))
    except (ValueError, RecursionError) as error:
        raise WrongRow(f".json is not valid JSON: {error}") from None
    if not isinstance(about, dict):
        raise WrongRow(".json is not a JSON object")
    return about


def _text(file: FileIO, member: tarfile.TarInfo) -> str:
    """The text of a small member, without blanks around it."""
    if member.size > _LARGEST_LABEL:
        raise WrongRow(f"{member.name} has {member.size:,} bytes, which is no label")
    try:
        return os.pread(file.fileno(), member.size, member.offset_data).decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise WrongRow(f"{member.name} is not UTF-8") from None
    except OSError as error:
        raise DataError(f"cannot read {file.name!s}: {error.strerror or error}") from None
