"""The cipher of a sealed model: AES-256-GCM over chunks, under a key for each file (docs/models.md).

A file of ``n`` plaintext bytes is ``max(1, ceil(n / chunk_bytes))`` chunks, each ciphertext and 16-byte tag; all but
the last have ``chunk_bytes``. With ``HKDF(ikm, salt, info)`` as in docs/protocol.md section 1, 32 bytes::

    file key   = HKDF(data key, salt = "", info = "bulkhead/v1 model file" ‖ lp(path))
    commitment = HKDF(data key, salt = "", info = "bulkhead/v1 model key commitment")
    nonce      = u32 file number ‖ u64 chunk number
    AAD        = u32 file number ‖ u64 chunk number ‖ u8 (1 for the file's last chunk, else 0)

So a chunk opens only in its file, at its place, and as final as it was sealed. A nonce is used once: every version of
a model has a data key of its own, and a file is sealed once under it. GCM does not commit to its key: the commitment
in the signed manifest does.
"""

import hmac
import struct
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from bulkhead.encoding import lp
from bulkhead.errors import ModelAlteredError, ModelKeyError

__all__ = ["DATA_KEY_BYTES", "TAG_BYTES", "DataKey", "FileCipher", "chunk_count", "sealed_size"]

DATA_KEY_BYTES: Final = 32
TAG_BYTES: Final = 16
_PLACE: Final = struct.Struct(">IQ")
_AAD: Final = struct.Struct(">IQB")


def chunk_count(size: int, chunk_bytes: int) -> int:
    """Return the number of chunks of a file of ``size`` bytes; an empty file has one."""
    return max(1, -(-size // chunk_bytes))


def sealed_size(size: int, chunk_bytes: int) -> int:
    """Return how many bytes a file of ``size`` bytes takes sealed."""
    return size + TAG_BYTES * chunk_count(size, chunk_bytes)


class DataKey:
    """The key of one version of one model.

    Args:
        key: 32 bytes, kept as the caller's own buffer so that :meth:`wipe` clears the only copy that Python holds.

    Raises:
        ModelKeyError: it has another length.
    """

    __slots__ = ("_key",)

    def __init__(self, key: bytearray) -> None:
        if len(key) != DATA_KEY_BYTES:
            raise ModelKeyError(f"a model's data key is {DATA_KEY_BYTES} bytes")
        self._key = key

    def commitment(self) -> bytes:
        """Return the 32 bytes by which a manifest recognises this key."""
        return self._derive(b"bulkhead/v1 model key commitment")

    def check(self, commitment: bytes) -> None:
        """Return if this is the key that ``commitment`` was made from.

        Raises:
            ModelKeyError: it is another model's, or another version's.
        """
        if not hmac.compare_digest(self.commitment(), commitment):
            raise ModelKeyError("the key is not the one that this model was sealed with")

    def file_cipher(self, path: str, *, number: int, chunks: int) -> "FileCipher":
        """Return the cipher of one file, which outlives :meth:`wipe`."""
        key = self._derive(b"bulkhead/v1 model file" + lp(path.encode()))
        return FileCipher(AESGCM(key), number=number, chunks=chunks)

    def wipe(self) -> None:
        """Overwrite the key. Copies that OpenSSL or HKDF made meanwhile may remain in memory."""
        self._key[:] = bytes(len(self._key))

    def _derive(self, info: bytes) -> bytes:
        return HKDF(algorithm=SHA256(), length=DATA_KEY_BYTES, salt=None, info=info).derive(self._key)


class FileCipher:
    """Seals and opens the chunks of one file; methods may be called from several threads at once.

    Args:
        aead: under the file's key.
        number: the file's position in the manifest.
        chunks: how many it has.
    """

    __slots__ = ("_aead", "_chunks", "_number")

    def __init__(self, aead: AESGCM, *, number: int, chunks: int) -> None:
        self._aead = aead
        self._number = number
        self._chunks = chunks

    def seal_into(self, index: int, plaintext: memoryview, target: memoryview) -> None:
        """Write ciphertext and tag of chunk ``index`` to ``target``, which is 16 bytes longer than ``plaintext``."""
        self._aead.encrypt_into(self._nonce(index), plaintext, self._aad(index), target)

    def open_into(self, index: int, sealed: memoryview, target: memoryview) -> None:
        """Write the plaintext of chunk ``index`` to ``target``, which is 16 bytes shorter than ``sealed``.

        Raises:
            ModelAlteredError: these bytes were not sealed as that chunk.
        """
        try:
            self._aead.decrypt_into(self._nonce(index), sealed, self._aad(index), target)
        except InvalidTag as error:
            raise ModelAlteredError("a chunk of the sealed model was altered") from error

    def _nonce(self, index: int) -> bytes:
        return _PLACE.pack(self._number, index)

    def _aad(self, index: int) -> bytes:
        return _AAD.pack(self._number, index, index == self._chunks - 1)
