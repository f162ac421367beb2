"""Ed25519 signatures of bundles."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgetl.errors import BundleError
from edgetl.runtime.bundle import SIGNATURE, canonical, fingerprint


def user_key() -> Path:
    """Where the user's own private key lies: ``$XDG_CONFIG_HOME/edgetl/signing-key.pem``."""
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "edgetl" / "signing-key.pem"


def make_key(path: Path) -> None:
    """Make a private key (PEM, PKCS #8, readable by the user alone) with ``<name>.pub.pem`` beside it.

    Two processes may do so at once: one key wins, and both use it.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    path.parent.mkdir(parents=True, exist_ok=True)
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(private)
    try:
        os.link(draft, path)  # fails where another process was first
    except FileExistsError:
        return
    finally:
        draft.unlink()
    path.with_name(f"{path.stem}.pub.pem").write_bytes(public)


def public_fingerprint(key: Path) -> str:
    """The short name of a private key's public half.

    Raises:
        BundleError: The file is not an Ed25519 private key.
    """
    return fingerprint(_load(key).public_key().public_bytes_raw())


def sign(folder: Path, manifest: Mapping[str, Any], key: Path) -> str:
    """Write ``signature.json`` over a manifest, and return the key's short name.

    Raises:
        BundleError: The file is not an Ed25519 private key.
    """
    private = _load(key)
    public = private.public_key().public_bytes_raw()
    record = {
        "schema": 1,
        "algorithm": "Ed25519",
        "signs": "manifest.json as canonical JSON (sorted keys, no spaces, UTF-8)",
        "public_key": base64.b64encode(public).decode(),
        "signature": base64.b64encode(private.sign(canonical(manifest))).decode(),
    }
    (folder / SIGNATURE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return fingerprint(public)


def _load(key: Path) -> Any:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        private = load_pem_private_key(key.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise BundleError(f"{key} is not a private key that can be used: {error}") from None
    if not isinstance(private, Ed25519PrivateKey):
        raise BundleError(f"{key} is not an Ed25519 key")
    return private
