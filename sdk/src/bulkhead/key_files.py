"""Ed25519 private keys in files: PKCS #8 PEM, which only their owner can read."""

import os
import stat
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from bulkhead.errors import AlreadyExistsError, ConfigError
from bulkhead.files import create_file

__all__ = ["create_key_file", "load_key_file"]

MAX_KEY_BYTES: Final = 4096


def create_key_file(path: Path) -> Ed25519PrivateKey:
    """Make a key in a new file.

    Raises:
        AlreadyExistsError: there is a file.
        ConfigError: it cannot be written.
    """
    key = Ed25519PrivateKey.generate()
    try:
        create_file(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    except FileExistsError as error:
        raise AlreadyExistsError(f"{path}: exists already; a key is never overwritten") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
    return key


def load_key_file(path: Path, *, what: str) -> Ed25519PrivateKey:
    """Return the key in a file.

    Args:
        path: of the file.
        what: names the key in errors, e.g. "signing key".

    Raises:
        ConfigError: unreadable, readable by others, or not an Ed25519 key.
    """
    try:
        with path.open("rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            key = load_pem_private_key(stream.read(MAX_KEY_BYTES), password=None)
    except OSError as error:
        raise ConfigError(f"{path}: the {what} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path}: is not a private key in PEM without a password") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"{path}: others can read the {what}: chmod 600")
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path}: the {what} must be an Ed25519 key")
    return key
