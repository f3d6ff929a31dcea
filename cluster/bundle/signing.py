"""Ed25519 signatures over a bundle's checksums. Owns the one private key of an installation."""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from cluster.errors import ArtifactError, ConfigError

PrivateKey = Ed25519PrivateKey


def own_key(path: Path) -> PrivateKey:
    """The key in `path`, made there, readable by its owner only, where there is none yet.

    Raises:
        ConfigError: what is there is not such a key.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        made = Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        # Never readable by others, not even for a moment; another process may have made it first.
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as stream:
                stream.write(made)
        except FileExistsError:
            pass
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} is not a signing key: move it away") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path} is not an Ed25519 key: move it away")
    return key


def public_pem(key: PrivateKey) -> bytes:
    """The public key, as `openssl pkeyutl -verify -rawin` takes it."""
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def sign(key: PrivateKey, content: bytes) -> bytes:
    """The signature of `content`."""
    return key.sign(content)


def fingerprint(pem: bytes) -> str:
    """The short name people compare a public key by, as OpenSSH writes it.

    Raises:
        ArtifactError: it is not an Ed25519 public key.
    """
    raw = _public(pem).public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return "SHA256:" + base64.b64encode(hashlib.sha256(raw).digest()).decode().rstrip("=")


def verify(pem: bytes, content: bytes, signature: bytes) -> None:
    """Raise unless `signature` is the key's over `content`.

    Raises:
        ArtifactError: it is not.
    """
    try:
        _public(pem).verify(signature, content)
    except InvalidSignature as error:
        raise ArtifactError("the checksums are not what was signed: it was altered") from error


def _public(pem: bytes) -> Ed25519PublicKey:
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, TypeError) as error:
        raise ArtifactError("the signer's public key cannot be read") from error
    if not isinstance(key, Ed25519PublicKey):
        raise ArtifactError("the signer's public key is not an Ed25519 key")
    return key
