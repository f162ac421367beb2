"""Signing keys: made once, even by several processes; and what is no key."""

from __future__ import annotations

import base64
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from edgetl.bundle import sign
from edgetl.errors import BundleError
from edgetl.runtime.seal import check_signature, fingerprint

MAKE = """
import sys, time
from pathlib import Path
from edgetl.bundle import sign
import cryptography.hazmat.primitives.asymmetric.ed25519
print("ready", flush=True)
sys.stdin.readline()
sign.make_key(Path(sys.argv[1]))
print(sign.public_fingerprint(Path(sys.argv[1])))
"""


def pem(key: object) -> bytes:
    return key.private_bytes(  # type: ignore[attr-defined,no-any-return]
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def public_of(path: Path) -> str:
    key = serialization.load_pem_public_key(path.read_bytes())
    assert isinstance(key, ed25519.Ed25519PublicKey)
    return fingerprint(key.public_bytes_raw())


def test_a_new_key_is_the_users_alone_and_has_its_public_half_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "signing-key.pem"
    sign.make_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sign.public_fingerprint(path) == public_of(path.with_name("signing-key.pub.pem"))
    assert sorted(found.name for found in path.parent.iterdir()) == ["signing-key.pem", "signing-key.pub.pem"]


def test_an_existing_key_is_kept_and_a_lost_public_half_made_again(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    sign.make_key(path)
    before, public = path.read_bytes(), (tmp_path / "key.pub.pem").read_bytes()
    (tmp_path / "key.pub.pem").unlink()
    sign.make_key(path)
    assert path.read_bytes() == before
    assert (tmp_path / "key.pub.pem").read_bytes() == public


def test_processes_that_make_the_key_at_once_agree(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    processes = [
        subprocess.Popen([sys.executable, "-c", MAKE, str(path)], stdin=-1, stdout=-1, text=True) for _ in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    found = {process.communicate(timeout=60)[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0] * 4
    assert found == {sign.public_fingerprint(path)} == {public_of(tmp_path / "key.pub.pem")}
    assert sorted(each.name for each in tmp_path.iterdir()) == ["key.pem", "key.pub.pem"]


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff" * 64, b"-----BEGIN PRIVATE KEY-----\n"])
def test_a_file_that_is_no_key(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "key.pem").write_bytes(content)
    with pytest.raises(BundleError, match="not a private key that can be used"):
        sign.public_fingerprint(tmp_path / "key.pem")
    with pytest.raises(BundleError, match="not a private key that can be used"):
        sign.make_key(tmp_path / "key.pem")
    assert (tmp_path / "key.pem").read_bytes() == content  # never written over
    assert [found.name for found in tmp_path.iterdir()] == ["key.pem"]


def test_no_file_a_folder_and_a_public_key_are_no_keys(tmp_path: Path) -> None:
    sign.make_key(tmp_path / "key.pem")
    for name in ("nothing.pem", ".", "key.pub.pem"):
        with pytest.raises(BundleError, match="not a private key that can be used"):
            sign.sign(tmp_path, {}, tmp_path / name)
    assert not (tmp_path / "signature.json").exists()


def test_a_key_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "rsa.pem").write_bytes(pem(rsa.generate_private_key(public_exponent=65537, key_size=2048)))
    with pytest.raises(BundleError, match="is not an Ed25519 key"):
        sign.public_fingerprint(tmp_path / "rsa.pem")


def test_a_key_on_a_curve_that_nobody_here_knows(tmp_path: Path) -> None:
    """SM2's, in the place of P-256's: cryptography has an error of its own for it."""
    sign.make_key(tmp_path / "mine.pem")
    sign.sign(tmp_path, {}, tmp_path / "mine.pem")
    key = ec.generate_private_key(ec.SECP256R1())
    plain, public = serialization.NoEncryption(), serialization.PublicFormat.SubjectPublicKeyInfo
    der = serialization.Encoding.DER
    for kind, content in (
        ("PRIVATE", key.private_bytes(der, serialization.PrivateFormat.PKCS8, plain)),
        ("PUBLIC", key.public_key().public_bytes(der, public)),
    ):
        other = content.replace(bytes.fromhex("2a8648ce3d030107"), bytes.fromhex("2a811ccf5501822d"))
        body = base64.encodebytes(other).decode()
        (tmp_path / kind).write_text(f"-----BEGIN {kind} KEY-----\n{body}-----END {kind} KEY-----\n", encoding="utf-8")
    with pytest.raises(BundleError, match="not a private key that can be used"):
        sign.public_fingerprint(tmp_path / "PRIVATE")
    with pytest.raises(BundleError, match="not a public key in PEM"):
        check_signature(tmp_path, {}, tmp_path / "PUBLIC")


def test_a_key_with_a_password(tmp_path: Path) -> None:
    locked = ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    (tmp_path / "key.pem").write_bytes(locked)
    with pytest.raises(BundleError, match="not a private key that can be used"):
        sign.public_fingerprint(tmp_path / "key.pem")


def test_the_users_key_lies_in_the_users_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert sign.user_key() == tmp_path / "edgetl" / "signing-key.pem"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert sign.user_key() == tmp_path / ".config" / "edgetl" / "signing-key.pem"
