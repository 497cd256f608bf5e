"""The envelope that opens a request: what the worker reads before anything is decrypted (docs/protocol.md section 5).

Layout, all integers big-endian, ``lp`` a u32 length and the bytes::

    u8 version (1) | lp ticket | lp certificate | 32 key id | u64 sequence | lp request id | lp method
        | lp enc+ciphertext | 64 signature

The certificate is the session key's, empty where the tenant has no root. The signature is Ed25519 by the session key
over ``th`` (32 bytes).
"""

import struct
from dataclasses import dataclass
from typing import Final

from bulkhead.encoding import lp
from bulkhead.errors import InvalidRequestError, MalformedRequestError, MessageTooLargeError
from bulkhead.fields import DIGEST_BYTES
from bulkhead.ids import MAX_ID_LENGTH, REQUEST, check_id
from bulkhead.protocol.certificates import MAX_CERTIFICATE_BYTES
from bulkhead.protocol.context import Method
from bulkhead.protocol.tickets import MAX_TICKET_BYTES
from bulkhead.sealing.hpke import ENC_BYTES, TAG_BYTES
from bulkhead.sealing.schedule import SECRET_BYTES

__all__ = ["MAX_ENVELOPE_BYTES", "SEALED_SECRET_BYTES", "Envelope"]

ENVELOPE_VERSION: Final = 1
SEALED_SECRET_BYTES: Final = ENC_BYTES + SECRET_BYTES + TAG_BYTES
SIGNATURE_BYTES: Final = 64
MAX_METHOD_BYTES: Final = 16
_LENGTHS: Final = 5 * 4
MAX_ENVELOPE_BYTES: Final = (
    1
    + MAX_TICKET_BYTES
    + MAX_CERTIFICATE_BYTES
    + DIGEST_BYTES
    + 8
    + MAX_ID_LENGTH
    + MAX_METHOD_BYTES
    + SEALED_SECRET_BYTES
    + SIGNATURE_BYTES
    + _LENGTHS
)
_U32: Final = struct.Struct(">I")
_U64: Final = struct.Struct(">Q")


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A parsed envelope; nothing in it is trusted.

    Attributes:
        ticket: compact JWT.
        key_id: keyset to which the secret is sealed, 32 bytes.
        sequence: u64.
        request_id: ``req_`` TypeID.
        method: what is asked for.
        sealed_secret: HPKE enc (1,120 bytes), ciphertext (32) and tag (16).
        signature: 64 bytes.
        certificate: of the session key, empty where the tenant has no root.
    """

    ticket: str
    key_id: bytes
    sequence: int
    request_id: str
    method: Method
    sealed_secret: bytes
    signature: bytes
    certificate: bytes = b""

    def encode(self) -> bytes:
        """Return the envelope's bytes."""
        return b"".join(
            (
                bytes((ENVELOPE_VERSION,)),
                lp(self.ticket.encode("ascii")),
                lp(self.certificate),
                self.key_id,
                _U64.pack(self.sequence),
                lp(self.request_id.encode("ascii")),
                lp(self.method.value.encode("ascii")),
                lp(self.sealed_secret),
                self.signature,
            )
        )

    @classmethod
    def parse(cls, data: bytes) -> "Envelope":
        """Return the envelope in untrusted bytes.

        Raises:
            MessageTooLargeError: longer than any envelope.
            MalformedRequestError: any other deviation from the layout, trailing bytes included.
        """
        if len(data) > MAX_ENVELOPE_BYTES:
            raise MessageTooLargeError(f"an envelope has at most {MAX_ENVELOPE_BYTES} bytes")
        reader = _Reader(data)
        if reader.take(1)[0] != ENVELOPE_VERSION:
            raise MalformedRequestError(f"envelope: only version {ENVELOPE_VERSION} is spoken here")
        ticket = reader.text(MAX_TICKET_BYTES)
        certificate = reader.prefixed(MAX_CERTIFICATE_BYTES)
        key_id = reader.take(DIGEST_BYTES)
        sequence: int = _U64.unpack(reader.take(_U64.size))[0]
        request_id = reader.text(MAX_ID_LENGTH)
        method = reader.text(MAX_METHOD_BYTES)
        sealed_secret = reader.prefixed(SEALED_SECRET_BYTES)
        signature = reader.take(SIGNATURE_BYTES)
        reader.end()
        if len(sealed_secret) != SEALED_SECRET_BYTES:
            raise MalformedRequestError(f"envelope: a sealed secret has {SEALED_SECRET_BYTES} bytes")
        try:
            return cls(
                ticket=ticket,
                key_id=key_id,
                sequence=sequence,
                request_id=check_id(request_id, REQUEST),
                method=Method(method),
                sealed_secret=sealed_secret,
                signature=signature,
                certificate=certificate,
            )
        except (ValueError, InvalidRequestError) as error:
            raise MalformedRequestError("envelope: malformed request id or unknown method") from error


class _Reader:
    """Takes exact pieces off the front of a buffer."""

    __slots__ = ("_data", "_offset")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._offset = 0

    def take(self, size: int) -> bytes:
        end = self._offset + size
        if end > len(self._data):
            raise MalformedRequestError("envelope: cut short")
        piece = self._data[self._offset : end]
        self._offset = end
        return piece

    def prefixed(self, max_bytes: int) -> bytes:
        size: int = _U32.unpack(self.take(_U32.size))[0]
        if size > max_bytes:
            raise MalformedRequestError("envelope: a field is too long")
        return self.take(size)

    def text(self, max_bytes: int) -> str:
        try:
            return self.prefixed(max_bytes).decode("ascii")
        except UnicodeDecodeError as error:
            raise MalformedRequestError("envelope: a text field is not ASCII") from error

    def end(self) -> None:
        if self._offset != len(self._data):
            raise MalformedRequestError("envelope: bytes after its end")
