"""Content-addressed results of stages.

A result is a folder under ``<root>/<stage>/<key>``, where the key is the hash of everything that can change it. It is
written under a temporary name, flushed to the disk and renamed, so that it is either whole or not there: two builds
on one store need no lock, and a build that was killed leaves nothing that a later one could mistake for a result.
What is read is hashed again first.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import Any, TextIO

from edgetl.drafts import draft_name, is_abandoned
from edgetl.errors import StorageError, UsageError

_LISTING = "artifact.json"
_LOOKS = 3
"""At a folder whose listing is missing, before it counts as damaged."""


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A finished result."""

    stage: str
    key: str
    """SHA-256 of what it was made from."""
    digest: str
    """SHA-256 of what it contains: the next stage's key is made from this."""
    folder: Path
    cached: bool
    """True where it was there already."""

    def __truediv__(self, name: str) -> Path:
        return self.folder / name


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON value's canonical text, in hexadecimal.

    Raises:
        TypeError: The value holds something that is not JSON.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def versions_of(*packages: str) -> dict[str, str]:
    """Installed versions by distribution name, without importing anything; "" for one that is not installed."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = ""
    return found


def code_digest(*parts: str) -> str:
    """SHA-256 of the sources of modules and packages of edgetl, as ``code_digest("quantize", "specs.py")``."""
    root = Path(str(files("edgetl")))
    digest = hashlib.sha256()
    for part in parts:
        place = root / part
        sources = [place]
        if place.is_dir():  # style sheets and templates are code too
            sources = sorted(p for p in place.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
        for source in sources:
            digest.update(source.relative_to(root).as_posix().encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()


class Store:
    """Results of stages in a folder.

    Args:
        root: Made where it is not there.

    Raises:
        StorageError: The folder cannot be made or written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        check_folder(root)
        check_folder(root / "tmp")
        self._sweep()

    def find(self, stage: str, key: str) -> Artifact | None:
        """The result of a stage, hashed again; a damaged one is moved out of the way and counts as not there."""
        folder = self.root / stage / key
        for _ in range(_LOOKS):
            there = folder.exists()
            try:
                listing = json.loads((folder / _LISTING).read_text(encoding="utf-8"))
                whole = all(file_digest(folder / name) == digest for name, digest in listing["files"].items())
            except FileNotFoundError:
                if not there or not folder.exists():
                    return None
                continue  # damaged, or another process put its result there between the two looks
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                break  # whatever a damaged listing looks like
            if whole:
                return Artifact(stage=stage, key=key, digest=digest_of(listing["files"]), folder=folder, cached=True)
            break
        self._discard(folder)
        return None

    def get(
        self, stage: str, inputs: Mapping[str, Any], make: Callable[[Path], None], *, force: bool = False
    ) -> Artifact:
        """The result of a stage, made where it is not there.

        Args:
            stage: Its name.
            inputs: JSON values: everything that can change the result.
            make: Fills an empty folder.
            force: Make it even where it is there.

        Raises:
            StorageError: The disk is full, or the store cannot be written. Nothing half-written stays.
        """
        key = digest_of(dict(inputs))
        found = self.find(stage, key)
        if found and not force:
            return found
        draft = self.root / "tmp" / draft_name()
        try:
            with storage_errors(self.root):
                draft.mkdir(parents=True)
                make(draft)
                return self._publish(draft, stage, key, replace=force)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def unfinished(self, key: str) -> Path:
        """A folder, which need not be there, for what a stage that was killed goes on from; by the stage's key.

        Unlike a draft it outlives its process. Whoever wrote it deletes it when the stage has its result.
        """
        return self.root / "unfinished" / key

    def _publish(self, draft: Path, stage: str, key: str, *, replace: bool) -> Artifact:
        names = sorted(path.relative_to(draft).as_posix() for path in draft.rglob("*") if path.is_file())
        listing = {"stage": stage, "key": key, "files": {name: file_digest(draft / name) for name in names}}
        (draft / _LISTING).write_text(json.dumps(listing, indent=1), encoding="utf-8")
        sync_tree(draft)
        final = self.root / stage / key
        final.parent.mkdir(parents=True, exist_ok=True)
        if replace and final.exists():
            self._discard(final)
        # Where another build finished the same result first, that one stays: the other build may be reading it.
        other = self.find(stage, key)
        if other is None:
            try:
                draft.rename(final)
            except OSError:
                other = self.find(stage, key)
                if other is None:
                    raise
        if other is not None:
            return other
        sync_folder(final.parent)
        return Artifact(stage=stage, key=key, digest=digest_of(listing["files"]), folder=final, cached=False)

    def _discard(self, folder: Path) -> None:
        """Move a folder aside before deleting it, so that no reader sees it half gone."""
        aside = self.root / "tmp" / draft_name()
        try:
            folder.rename(aside)
        except FileNotFoundError:
            return
        shutil.rmtree(aside, ignore_errors=True)

    def _sweep(self) -> None:
        """Delete drafts of processes that are no more."""
        for draft in (self.root / "tmp").iterdir():
            if is_abandoned(draft):
                if draft.is_dir():
                    shutil.rmtree(draft, ignore_errors=True)
                else:
                    draft.unlink(missing_ok=True)


class storage_errors:  # noqa: N801 - reads as a statement: with storage_errors(folder)
    """Turn the operating system's refusal to write into a :class:`StorageError` that names the place.

    Args:
        place: What is written to, or into.
        alone: Nothing but writing to it is done here, so that any error of the system is such a refusal: a folder that
            is there and takes no file (/proc) is "not found", as is what a defect of edgetl's looks for.
    """

    def __init__(self, place: Path, *, alone: bool = False) -> None:
        self.place = place
        self.alone = alone

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        number = _refusal(error)
        reason = _REFUSALS.get(number or 0)
        if self.alone and reason is None and isinstance(error, OSError):
            reason = _ALONE.get(error.errno or 0, error.strerror or str(error))
        if error is None or reason is None:
            return
        place = None if self.alone else getattr(error, "filename", None)
        raise StorageError(
            f"cannot write to {self.place}: {reason}" + (f" ({place})" if place else ""),
            hint="choose another place"
            if _is_device(self.place)
            else "make room there, or choose another folder; nothing half-written was left"
            if number in _FULL
            else "choose another folder",
        ) from error


_REFUSALS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file would be larger than the system allows",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.ENOTDIR: "a file is in the way",
    errno.EEXIST: "a file is in the way",
    errno.EISDIR: "it is a folder",
}
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ALONE = {errno.ENOENT: "no file or folder can be made there"}


def _refusal(error: BaseException | None) -> int | None:
    """The operating system's error number behind an exception; None where there is none.

    ``shutil.copytree`` collects errors as text, and libraries that write with code of their own (safetensors,
    OpenVINO, torch) raise types of their own: there the text is all that tells of a full disk.
    """
    if isinstance(error, shutil.Error):
        found = re.search(r"\[Errno (\d+)\]", str(error))
        return int(found[1]) if found else None
    if isinstance(error, OSError):
        return error.errno
    if isinstance(error, Exception) and "no space left on device" in str(error).lower():
        return errno.ENOSPC
    return None


def _is_device(place: Path) -> bool:
    """Whether a place is neither a folder nor a file, nor one that could be made."""
    return os.path.exists(place) and not os.path.isdir(place) and not os.path.isfile(place)  # noqa: PTH110, PTH112, PTH113


def check_folder(folder: Path) -> None:
    """Make a folder of the user's where it is not there, and see that a file can be written into it.

    To be called before work that would be lost.

    Raises:
        StorageError: It cannot be made or written.
    """
    with storage_errors(folder, alone=True):
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / draft_name()
        probe.touch()
        probe.unlink()


def check_output(flag: str, path: Path, name: str) -> None:
    """See that a file of the user's can be written; the folders around it are made where they are not there.

    Args:
        flag: The option that named it.
        path: The file.
        name: That it could have, for who named a folder.

    Raises:
        UsageError: It is a folder, or a link to where no file can be.
        StorageError: It cannot be written.
    """
    if path.is_dir():
        raise UsageError(f"{flag} {path} is a folder", hint=f"{flag} {path / name}")
    if path.is_symlink() and not path.exists():
        place = Path(os.path.realpath(path))
        if place.is_symlink() or not place.parent.is_dir():  # a link to itself stays one
            where = f"{path} is a link to {path.readlink()}"
            raise UsageError(f"{flag} {where}, where no file can be", hint=f"{flag} {path.with_name(name)}")
    if not _written_in_place(path):  # a pipe that is opened and closed again has ended for who reads it
        check_folder(path.parent)


def _written_in_place(path: Path) -> bool:
    """Whether nothing can take a file's place: a pipe, a device; or a link, as /dev/stdout is one."""
    return path.is_symlink() or (path.exists() and not path.is_file())


def _opened_in_place(path: Path) -> TextIO:
    """What takes the place of nothing, to be written.

    By the name /dev/stdout, a file that a shell has opened (``> FILE``) would be cut off, and be written over by what
    comes next on stdout.
    """
    with contextlib.suppress(OSError):  # it is not there yet
        if os.path.samestat(path.stat(), os.fstat(1)):
            sys.stdout.flush()
            return open(os.dup(1), "w", encoding="utf-8")  # noqa: PTH123 - whoever asked closes it
    return path.open("w", encoding="utf-8")


def write_whole(path: Path, text: str) -> None:
    """Write a file of the user's, as UTF-8: all of it, or what was there stays.

    Raises:
        StorageError: Its folder cannot be written, or the disk is full.
    """
    if _written_in_place(path):
        with storage_errors(path, alone=True), _opened_in_place(path) as file:
            file.write(text)
        return
    with storage_errors(path.parent, alone=True):
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            beside.write_text(text, encoding="utf-8")
            with contextlib.suppress(OSError):  # there was none, or its file system knows no permissions
                shutil.copymode(path, beside)
            _take_the_place(beside, path, text)
        finally:
            beside.unlink(missing_ok=True)


def _take_the_place(beside: Path, path: Path, text: str) -> None:
    try:
        beside.replace(path)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        path.write_text(text, encoding="utf-8")  # a mount of its own, as a file of a container: nothing takes its place


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename in it survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Flush all files below a folder, and the folders, to the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        else:
            sync_folder(path)
    sync_folder(folder)
