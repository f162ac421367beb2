"""Bundles: put together under a temporary name, published in one step."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgetl.bundle import sign
from edgetl.drafts import draft_name, is_abandoned
from edgetl.errors import StorageError
from edgetl.runtime.seal import MANIFEST, SIGNATURE, manifest_text
from edgetl.store import check_folder, digest_of, file_digest, storage_errors, sync_folder, sync_tree

_STORES_OWN = "artifact.json"
"""The store's own file in the folder of an artifact, which is no part of a bundle."""


def seal(folder: Path, manifest: Mapping[str, Any], key: Path) -> None:
    """List a folder's files in its manifest, and sign it.

    Args:
        folder: Complete, but for ``manifest.json`` and ``signature.json``.
        manifest: Everything but ``files``.
        key: Ed25519 private key.
    """
    files = {
        path.relative_to(folder).as_posix(): {"sha256": file_digest(path), "size": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path not in (folder / MANIFEST, folder / SIGNATURE)
    }
    whole = {"schema": 1, **manifest, "files": files}
    (folder / MANIFEST).write_bytes(manifest_text(whole))
    sign.sign(folder, whole, key)


def engine_digest(folder: Path) -> str:
    """SHA-256 of the names of an engine's files and their SHA-256, in hexadecimal: ``files_sha256`` in a manifest.

    Args:
        folder: Of the engine, with nothing else in it.
    """
    files = (path for path in folder.rglob("*") if path.is_file())
    return digest_of({path.relative_to(folder).as_posix(): file_digest(path) for path in files})


def check_place(destination: Path) -> None:
    """See that a bundle can be published, before the work that makes one.

    Raises:
        StorageError: The place cannot be written, or something stands there that is not a bundle.
    """
    if _is_somebody_elses(destination):
        raise StorageError(
            f"{destination} is there and is not a bundle; it is left as it is",
            hint="another bundle.output, project.name or project.version; of edgetl compile, another -o",
        )
    check_folder(destination.parent)


def publish(source: Path, destination: Path) -> None:
    """Copy a sealed bundle to where the user wants it; readers see the old one whole, or the new one whole.

    Where it stands already it stays as it is. What killed processes left beside it is deleted.

    Raises:
        StorageError: The place cannot be written, the disk is full, or something stands there that is not a bundle.
            What was there stays.
    """
    draft = _beside(destination)
    with storage_errors(destination.parent):
        _sweep(destination)
        if same(source, destination):
            return
        check_place(destination)
        try:
            shutil.copytree(source, draft, ignore=shutil.ignore_patterns(_STORES_OWN))
            sync_tree(draft)
            _replace(draft, destination)
            sync_folder(destination.parent)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def same(source: Path, destination: Path) -> bool:
    """Whether a published bundle is the sealed one: nothing in it changed, and nothing was added."""
    try:
        names = (MANIFEST, SIGNATURE)
        if any((source / name).read_bytes() != (destination / name).read_bytes() for name in names):
            return False
        listed = json.loads((source / MANIFEST).read_text(encoding="utf-8"))["files"]
        there = {path.relative_to(destination).as_posix() for path in destination.rglob("*") if not path.is_dir()}
        return there == {*listed, *names} and all(
            file_digest(destination / name) == facts["sha256"] for name, facts in listed.items()
        )
    except OSError:
        return False


def _beside(destination: Path) -> Path:
    """A new name beside a bundle, with the number of the process that it belongs to."""
    return destination.with_name(_prefix(destination) + draft_name())


def _prefix(destination: Path) -> str:
    return f".{destination.name}."


def _sweep(destination: Path) -> None:
    """Delete what stands beside a bundle under such names of processes that are no more."""
    if not destination.parent.is_dir():
        return
    for path in destination.parent.iterdir():
        if is_abandoned(path, _prefix(destination)):
            shutil.rmtree(path, ignore_errors=True)


def _is_somebody_elses(destination: Path) -> bool:
    """Whether publishing would delete something other than an older bundle or an empty folder."""
    if not os.path.lexists(destination):
        return False
    if not destination.is_dir():
        return True
    return not (destination / MANIFEST).is_file() and any(destination.iterdir())


def _replace(draft: Path, destination: Path) -> None:
    """Rename; where an older bundle stands, exchange the two in one system call, so that a name is never empty."""
    if not destination.exists():
        try:
            draft.rename(destination)
            return
        except OSError:
            if not destination.exists():
                raise
    if not _exchange(draft, destination):
        old = _beside(destination)
        destination.rename(old)
        draft.rename(destination)
        shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Linux's renameat2(RENAME_EXCHANGE); False where the system or file system has none."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    at_cwd, exchange = -100, 2
    return bool(libc.renameat2(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), exchange) == 0)
