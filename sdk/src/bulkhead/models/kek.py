"""Key encryption keys: what wraps a model's data key, in a file or in a PKCS#11 token.

A wrapped key is a random nonce (12 bytes), the encrypted data key and a tag (16 bytes): AES-256-GCM whose AAD is the
context of the model, so that it unwraps for the same model, version and digest only. Both implementations make the
same bytes; in a token the key never leaves it.
"""

import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import parse_qs, unquote

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bulkhead.errors import AlreadyExistsError, ConfigError, ModelKeyError
from bulkhead.files import create_file
from bulkhead.models.manifest import WRAP_NONCE_BYTES, SealedManifest

__all__ = ["FileKek", "KeyEncryptionKey", "create_kek", "open_kek", "unwrap_key"]

KEK_BYTES: Final = 32
_ID_LABEL: Final = b"bulkhead/v1 key encryption key"


class KeyEncryptionKey(Protocol):
    """Port: wraps and unwraps data keys. Methods may block on a token."""

    @property
    def kek_id(self) -> str:
        """Names the key in manifests; secret-free, stable, 1 to 256 characters."""
        ...

    def wrap(self, key: bytes | bytearray, *, context: bytes) -> bytes:
        """Return ``key`` wrapped for ``context`` (:func:`bulkhead.models.manifest.wrapping_context`).

        Raises:
            KeyBrokerError: the key store is out of reach.
        """
        ...

    def unwrap(self, wrapped: bytes, *, context: bytes) -> bytearray:
        """Return the data key; the caller overwrites it.

        Raises:
            ModelKeyError: wrapped by another key, for another context, or altered.
            KeyBrokerError: the key store is out of reach.
        """
        ...


class FileKek:
    """A key in a file of 32 bytes that only its owner can read.

    Args:
        path: of the file.

    Raises:
        ConfigError: unreadable, of another length, or readable by others.
    """

    def __init__(self, path: Path, *, random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> None:
        try:
            with path.open("rb") as stream:
                mode = os.fstat(stream.fileno()).st_mode
                key = stream.read(KEK_BYTES + 1)
        except OSError as error:
            raise ConfigError(f"{path}: the key encryption key cannot be read: {error.strerror}") from error
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigError(f"{path}: others can read the key encryption key: chmod 600")
        if len(key) != KEK_BYTES:
            raise ConfigError(f"{path}: a key encryption key has {KEK_BYTES} bytes")
        self._aead = AESGCM(key)
        self._id = f"file:{hashlib.sha256(_ID_LABEL + key).hexdigest()[:32]}"
        self._random_bytes = random_bytes

    @classmethod
    def create(cls, path: Path) -> "FileKek":
        """Make a key in a new file.

        Raises:
            AlreadyExistsError: there is a file: a key that is overwritten takes its models with it.
            ConfigError: it cannot be written.
        """
        try:
            create_file(path, secrets.token_bytes(KEK_BYTES))
        except FileExistsError as error:
            raise AlreadyExistsError(f"{path}: exists already; a key is never overwritten") from error
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
        return cls(path)

    @property
    def kek_id(self) -> str:
        """``file:`` and 128 bits of a hash of the key."""
        return self._id

    def wrap(self, key: bytes | bytearray, *, context: bytes) -> bytes:
        """See :meth:`KeyEncryptionKey.wrap`."""
        nonce = self._random_bytes(WRAP_NONCE_BYTES)
        return nonce + self._aead.encrypt(nonce, key, context)

    def unwrap(self, wrapped: bytes, *, context: bytes) -> bytearray:
        """See :meth:`KeyEncryptionKey.unwrap`."""
        try:
            return bytearray(self._aead.decrypt(wrapped[:WRAP_NONCE_BYTES], wrapped[WRAP_NONCE_BYTES:], context))
        except (InvalidTag, ValueError) as error:
            raise ModelKeyError("the wrapped key is of another key encryption key or model, or was altered") from error


def unwrap_key(manifest: SealedManifest, keks: Iterable[KeyEncryptionKey]) -> bytearray:
    """Return a sealed model's data key, unwrapped by the first of ``keks`` that its manifest names.

    Args:
        manifest: opened and trusted by the caller.
        keks: the caller's.

    Raises:
        ModelKeyError: it is wrapped by none of them, or does not unwrap.
        KeyBrokerError: the key store is out of reach.
    """
    wrapped = {item.kek: item.data for item in manifest.wrapped}
    for kek in keks:
        if (data := wrapped.get(kek.kek_id)) is not None:
            return kek.unwrap(data, context=manifest.wrapping_context)
    raise ModelKeyError(f"the model's key is wrapped by {', '.join(wrapped)}, of which none is here")


def open_kek(uri: str) -> KeyEncryptionKey:
    """Return the key encryption key that ``uri`` names.

    Args:
        uri: ``file:PATH``, or a PKCS#11 URI (RFC 7512) with ``token`` and ``object``, and in its query ``module-path``
            and ``pin-source`` (a file that holds the PIN):
            ``pkcs11:token=bulkhead;object=models?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=/etc/pin``.

    Raises:
        ConfigError: another form, or what it names cannot be used.
        KeyBrokerError: the token is out of reach.
    """
    return _at(uri, file=FileKek, token=_token_kek)


def create_kek(uri: str) -> KeyEncryptionKey:
    """Make the key encryption key that ``uri`` names, and return it.

    Raises:
        AlreadyExistsError: there is one already.
        ConfigError, KeyBrokerError: as :func:`open_kek`.
    """
    return _at(uri, file=FileKek.create, token=_create_token_kek)


def _token_kek(**place: Any) -> KeyEncryptionKey:
    from bulkhead.models.kek_pkcs11 import TokenKek

    return TokenKek(**place)


def _create_token_kek(**place: Any) -> KeyEncryptionKey:
    from bulkhead.models.kek_pkcs11 import TokenKek

    return TokenKek.create(**place)


def _at(
    uri: str, *, file: Callable[[Path], KeyEncryptionKey], token: Callable[..., KeyEncryptionKey]
) -> KeyEncryptionKey:
    scheme, _, rest = uri.partition(":")
    if scheme == "file" and rest:
        return file(Path(rest))
    if scheme != "pkcs11":
        raise ConfigError("a key encryption key is file:PATH or a PKCS#11 URI (RFC 7512)")
    path, _, query = rest.partition("?")
    try:
        attributes = {name: unquote(value) for name, _, value in (item.partition("=") for item in path.split(";"))}
        options = {name: values[0] for name, values in parse_qs(query, strict_parsing=True).items()}
    except ValueError as error:
        raise ConfigError("the PKCS#11 URI has a malformed query") from error
    if attributes.keys() != {"token", "object"} or options.keys() != {"module-path", "pin-source"}:
        raise ConfigError("the PKCS#11 URI has token and object, and the options module-path and pin-source")
    return token(
        module=Path(options["module-path"]),
        token=attributes["token"],
        label=attributes["object"],
        pin_file=Path(options["pin-source"]),
    )
