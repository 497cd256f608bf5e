"""Key schedule of one request: everything derives from its 32-byte secret (docs/protocol.md section 5).

Secrets stand in byte arrays that are overwritten when they are no longer needed: :meth:`KeySchedule.wipe` here, key
material by whoever made it into a cipher. How far that goes in Python: docs/threat-model.md, "What is not stopped".
"""

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
        self._secret = bytearray(secret)
        self._transcript_hash = transcript_hash

    def client_to_server(self) -> bytearray:
        """Return key and nonce base (44 bytes) of the request's chunks.

        Raises:
            SealError: the secret was wiped.
        """
        return self._derive(self._transcript_hash, b"c2s", KEY_MATERIAL_BYTES)

    def server_to_client(self, *, request_digest: bytes, worker_random: bytes) -> bytearray:
        """Return key and nonce base (44 bytes) of the response's chunks.

        Args:
            request_digest: SHA-256 over ``lp`` of every request chunk on the wire, in order.
            worker_random: the 32 bytes that open the response.

        Raises:
            SealError: the secret was wiped.
        """
        salt = hashlib.sha256(self._transcript_hash + request_digest + worker_random).digest()
        return self._derive(salt, b"s2c", KEY_MATERIAL_BYTES)

    def commitment(self) -> bytearray:
        """Return the HMAC-SHA256 key (32 bytes) of the receipt's commitments; errors as :meth:`client_to_server`."""
        return self._derive(self._transcript_hash, b"commit", _COMMIT_KEY_BYTES)

    def wipe(self) -> None:
        """Overwrite the secret: nothing further derives from it."""
        self._secret[:] = bytes(len(self._secret))
        self._secret.clear()

    def _derive(self, salt: bytes, info: bytes, length: int) -> bytearray:
        if not self._secret:
            raise SealError("the request's secret was wiped")
        derived = bytearray(length)
        HKDF(algorithm=SHA256(), length=length, salt=salt, info=info).derive_into(self._secret, derived)
        return derived
