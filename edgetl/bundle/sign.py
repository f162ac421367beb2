"""Ed25519 signatures of bundles."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgetl.errors import BundleError, ConfigError
from edgetl.runtime.seal import SIGNATURE, canonical, fingerprint, signature_text
from edgetl.store import storage_errors


def user_key() -> Path:
    """Where the user's own private key lies: ``$XDG_CONFIG_HOME/edgetl/signing-key.pem``."""
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "edgetl" / "signing-key.pem"


def check_key(configured: Path | None) -> None:
    """Refuse a configured key that cannot sign, before the work that it would sign.

    Raises:
        ConfigError: It is no Ed25519 private key.
    """
    if configured is None:
        return
    try:
        public_fingerprint(configured)
    except BundleError as error:
        raise ConfigError(
            f"bundle.key: {error.message}",
            hint="openssl genpkey -algorithm ed25519 -out key.pem, or leave bundle.key out: a key of yours is made",
        ) from None


def signing_key(configured: Path | None, told: Callable[[str], None]) -> Path:
    """The private key that signs: the configured one, else the user's own, which is made where there is none.

    Args:
        configured: ``bundle.key``; None where there is none.
        told: Is told of a key that was made.

    Raises:
        StorageError: The user's key cannot be written.
    """
    if configured is not None:
        return configured
    key = user_key()
    if not key.exists():
        with storage_errors(key.parent, alone=True):
            make_key(key)
        told(f"made a signing key of your own: {key}")
    return key


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
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(private)
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)  # fails where another process was first: its key is the one then
        # Of the key that won, whoever's it is; so a process that was killed before this line leaves nothing undone.
        public = (
            _load(path)
            .public_key()
            .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        )
        draft.unlink()
        draft.write_bytes(public)
        draft.replace(path.with_name(f"{path.stem}.pub.pem"))
    finally:
        draft.unlink(missing_ok=True)


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
    (folder / SIGNATURE).write_bytes(signature_text(public, private.sign(canonical(manifest))))
    return fingerprint(public)


def _load(key: Path) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        private = load_pem_private_key(key.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise BundleError(f"{key} is not a private key that can be used: {error}") from None
    if not isinstance(private, Ed25519PrivateKey):
        raise BundleError(f"{key} is not an Ed25519 key")
    return private
