"""The log keys: one Ed25519 key per origin, all derived from one secret file.

Derivation: HKDF-SHA256(secret, info = label ‖ lp(origin)), so that a log needs no file of its own and a lost process
loses no key. A key service replaces this class by another that returns :class:`~bulkhead.transparency.note.NoteSigner`
values whose ``sign`` calls it.
"""

import contextlib
import hmac
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from bulkhead.encoding import b64decode, b64encode, lp
from bulkhead.errors import ConfigError, MalformedRequestError
from bulkhead.transparency.note import NoteSigner
from bulkhead.transparency.rounds import SALT_BYTES

__all__ = ["LogKeys"]

_FILE: Final = "log-root.key"
_SECRET_BYTES: Final = 32
_MAX_FILE_BYTES: Final = 1024
_LABEL_LOG: Final = b"bulkhead/v1 log key"
_LABEL_SALT: Final = b"bulkhead/v1 round salt"


class LogKeys:
    """Derives signers and round salts from one 32-byte secret."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._salt_key = self._derive(_LABEL_SALT)
        self._signers: dict[str, NoteSigner] = {}

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read the secret.

        Raises:
            ConfigError: there is none, it is malformed, or others than its owner may read it.
        """
        path = directory / _FILE
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            with os.fdopen(fd, "rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                text = file.read(_MAX_FILE_BYTES)
        except OSError as error:
            raise ConfigError(f"the log key file {path} cannot be read: {error.strerror}") from error
        if mode & 0o077:
            raise ConfigError(f"the log key file {path} must be private to its owner (mode 0600)")
        try:
            secret = b64decode(text.decode("ascii").strip(), what="log key file")
        except (MalformedRequestError, UnicodeDecodeError) as error:
            raise ConfigError(f"the log key file {path} is malformed") from error
        if len(secret) != _SECRET_BYTES:
            raise ConfigError(f"the log key file {path} is malformed")
        return cls(secret)

    @classmethod
    def load_or_create(cls, directory: Path, *, random_bytes: Callable[[int], bytes]) -> Self:
        """Read the secret, or make one the first time; never replaces one that is there.

        Raises:
            ConfigError: as :meth:`load`, or it cannot be written.
        """
        path = directory / _FILE
        if not path.exists():
            try:
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                _write_new(path, b64encode(random_bytes(_SECRET_BYTES)) + "\n")
            except OSError as error:
                raise ConfigError(f"the log key file {path} cannot be written: {error.strerror}") from error
        return cls.load(directory)

    def signer(self, origin: str) -> NoteSigner:
        """Return the signer of a log."""
        signer = self._signers.get(origin)
        if signer is None:
            signer = NoteSigner.from_seed(origin, self._derive(_LABEL_LOG + lp(origin.encode("utf-8"))))
            self._signers[origin] = signer
        return signer

    def salt(self, round_number: int, slot: int) -> bytes:
        """Return the salt of one slot in one round."""
        message = round_number.to_bytes(8, "big") + slot.to_bytes(8, "big")
        return hmac.digest(self._salt_key, message, "sha256")[:SALT_BYTES]

    def _derive(self, info: bytes) -> bytes:
        return HKDF(algorithm=SHA256(), length=_SECRET_BYTES, salt=None, info=info).derive(self._secret)


def _write_new(path: Path, text: str) -> None:
    """Write a private file whole or not at all, and never over one that is there."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):  # another process was first: its file holds
            os.link(temporary, path)
    finally:
        temporary.unlink()
