"""Key schedule of one request: everything derives from its 32-byte secret (docs/protocol.md section 5)."""

import hashlib
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from bulkhead.errors import SealError
from bulkhead.sealing.chunks import KEY_MATERIAL_BYTES

__all__ = ["SECRET_BYTES", "WORKER_RANDOM_BYTES", "KeySchedule"]

SECRET_BYTES: Final = 32
WORKER_RANDOM_BYTES: Final = 32
_COMMIT_KEY_BYTES: Final = 32


class KeySchedule:
    """Derives the keys of one request.

    Args:
        secret: 32 bytes, made by the client for this request alone.
        transcript_hash: ``th``, 32 bytes; binds every key to the request's context and encapsulation.
    """

    __slots__ = ("_secret", "_transcript_hash")

    def __init__(self, secret: bytes, *, transcript_hash: bytes) -> None:
        if len(secret) != SECRET_BYTES:
            raise SealError(f"a request secret is {SECRET_BYTES} bytes")
        self._secret = secret
        self._transcript_hash = transcript_hash

    def client_to_server(self) -> bytes:
        """Return key and nonce base (44 bytes) of the request's chunks."""
        return _hkdf(self._secret, self._transcript_hash, b"c2s", KEY_MATERIAL_BYTES)

    def server_to_client(self, *, request_digest: bytes, worker_random: bytes) -> bytes:
        """Return key and nonce base (44 bytes) of the response's chunks.

        Args:
            request_digest: SHA-256 over ``lp`` of every request chunk on the wire, in order.
            worker_random: the 32 bytes that open the response.
        """
        salt = hashlib.sha256(self._transcript_hash + request_digest + worker_random).digest()
        return _hkdf(self._secret, salt, b"s2c", KEY_MATERIAL_BYTES)

    def commitment(self) -> bytes:
        """Return the HMAC-SHA256 key (32 bytes) of the receipt's commitments."""
        return _hkdf(self._secret, self._transcript_hash, b"commit", _COMMIT_KEY_BYTES)


def _hkdf(secret: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    return HKDF(algorithm=SHA256(), length=length, salt=salt, info=info).derive(secret)
