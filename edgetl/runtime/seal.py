"""A bundle's manifest and signature: how they are written, and whether files are those that they tell of."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from edgetl.errors import BundleError, not_imported

MANIFEST, SIGNATURE = "manifest.json", "signature.json"


def read_manifest(folder: Path) -> dict[str, Any]:
    """A bundle's manifest, as it was written.

    Raises:
        BundleError: There is none, it is of another schema, or a byte of it was changed.
    """
    path = folder / MANIFEST
    try:
        text = path.read_bytes()
        manifest = json.loads(text)
        as_written = isinstance(manifest, dict) and text == manifest_text(manifest)
    except (FileNotFoundError, NotADirectoryError):
        why = f"it has no {MANIFEST}" if folder.is_dir() else "it is a file" if folder.exists() else "it is not there"
        raise BundleError(f"{folder} is not a bundle: {why}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("schema") != 1:
        raise BundleError(f"{path} is of another schema; this version of edgetl reads schema 1")
    if not as_written:
        raise BundleError(f"{path} was changed after it was written")
    return manifest


def canonical(manifest: Mapping[str, Any]) -> bytes:
    """The bytes of a manifest that are signed: UTF-8 JSON, keys sorted, no spaces."""
    return json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def manifest_text(manifest: Mapping[str, Any]) -> bytes:
    """The bytes of ``manifest.json``. There is one way to write a manifest, so that no byte can change unseen."""
    return (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode()


def signature_text(public_key: bytes, signature: bytes) -> bytes:
    """The bytes of ``signature.json``, in the one way to write them.

    Args:
        public_key: 32 bytes.
        signature: 64 bytes, over :func:`canonical`.
    """
    record = {
        "schema": 1,
        "algorithm": "Ed25519",
        "signs": "manifest.json as canonical JSON (sorted keys, no spaces, UTF-8)",
        "public_key": base64.b64encode(public_key).decode(),
        "signature": base64.b64encode(signature).decode(),
    }
    return (json.dumps(record, indent=2) + "\n").encode()


def fingerprint(public_key: bytes) -> str:
    """A short name of an Ed25519 public key (32 bytes): the start of its SHA-256."""
    return "ed25519:" + hashlib.sha256(public_key).hexdigest()[:16]


def check_files(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Every listed file is there and unchanged, and no other file is.

    Raises:
        BundleError: That is not so, or a file cannot be read.
    """
    try:
        _check_files(folder, manifest)
    except OSError as error:
        raise BundleError(f"{folder}: a file cannot be read: {error}") from None


def _check_files(folder: Path, manifest: Mapping[str, Any]) -> None:
    listed = manifest.get("files", {})
    for name, facts in listed.items():
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts:
            raise BundleError(f"{folder}: the manifest names a file outside the bundle: {name}")
        path = folder / pure
        if path.is_symlink() or not path.is_file():
            raise BundleError(f"{folder}: the file {name} is missing")
        if path.stat().st_size != facts["size"] or _sha256(path) != facts["sha256"]:
            raise BundleError(f"{folder}: the file {name} is not the one that the manifest describes")
    there = {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()
    }
    added = sorted(there - set(listed) - {MANIFEST, SIGNATURE})
    if added:
        raise BundleError(f"{folder}: files that the manifest does not know: {', '.join(added[:5])}")


def check_signature(folder: Path, manifest: Mapping[str, Any], key: Path | None) -> str | None:
    """Whose signature a bundle has.

    Args:
        folder: Of the bundle.
        manifest: That was signed.
        key: An Ed25519 public key (PEM) that must have signed it; None: whichever did.

    Returns:
        The :func:`fingerprint` of the key; None where the bundle is not signed.

    Raises:
        BundleError: The signature does not fit, is by another key, or a key was given and there is none.
        MissingExtraError: cryptography is not installed.
    """
    path = folder / SIGNATURE
    if not path.is_file():
        if key is not None:
            raise BundleError(f"{folder} is not signed, and a signature by {key} was asked for")
        return None
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ImportError as error:
        raise not_imported(error, "cryptography", extra="ort", needed_for="checking a signature") from None
    try:
        text = path.read_bytes()
        record = json.loads(text)
        public, signature = base64.b64decode(record["public_key"]), base64.b64decode(record["signature"])
        if text != signature_text(public, signature):
            raise ValueError("it was changed after it was written")
        Ed25519PublicKey.from_public_bytes(public).verify(signature, canonical(manifest))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read: {error}") from None
    except InvalidSignature:
        raise BundleError(f"{folder}: the signature does not fit the manifest") from None
    if key is not None:
        trusted = _public_key(key)
        if not isinstance(trusted, Ed25519PublicKey) or trusted.public_bytes_raw() != public:
            raise BundleError(f"{folder} was signed by {fingerprint(public)}, not by the key in {key}")
    return fingerprint(public)


def _public_key(key: Path) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    hint = "openssl pkey -in {} -pubout -out release.pub.pem"
    try:
        text = key.read_bytes()
        if b"PRIVATE KEY-----" in text:
            raise BundleError(f"{key} is not a public key in PEM: it is a private one", hint=hint.format(key))
        return load_pem_public_key(text)
    except FileNotFoundError:
        raise BundleError(f"there is no public key {key}", hint=hint.format("key.pem")) from None
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise BundleError(f"{key} is not a public key in PEM: {error}", hint=hint.format("key.pem")) from None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
