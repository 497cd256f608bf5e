"""Signing keys of models: Ed25519, PKCS #8 PEM in a file that only its owner can read."""

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bulkhead.key_files import create_key_file, load_key_file

__all__ = ["create_signer", "load_signer"]


def create_signer(path: Path) -> Ed25519PrivateKey:
    """Make a signing key in a new file; errors as :func:`bulkhead.key_files.create_key_file`."""
    return create_key_file(path)


def load_signer(path: Path) -> Ed25519PrivateKey:
    """Return the signing key in a file; errors as :func:`bulkhead.key_files.load_key_file`."""
    return load_key_file(path, what="signing key of models")
