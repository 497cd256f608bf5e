"""Reading the server name out of a TLS ClientHello, without taking part in the handshake.

The bytes come from strangers. The parser is total: any input gives a name, a wish for more bytes, or
:class:`~bulkhead.errors.MalformedRequestError`. It routes only what it understood completely, because a relay and a
worker that read one hello differently would be a way to another tenant's worker; the worker's own certificate, which
clients pin, is what authenticates the end of the route.

Sources: RFC 8446 sections 4.1.2 (ClientHello), 4.2 (no extension twice) and 5.1 (records); RFC 6066 section 3
(server_name: one host_name).
"""

import re
from typing import Final

from bulkhead.errors import MalformedRequestError

__all__ = ["MAX_HELLO_BYTES", "parse_server_name"]

MAX_HELLO_BYTES: Final = 16_384  # a hello with a post-quantum key share and a ticket has about 2 kB
MAX_EXTENSIONS: Final = 64  # common clients send fewer than 20

_RECORD_HEADER_BYTES: Final = 5
_HANDSHAKE_HEADER_BYTES: Final = 4
_HANDSHAKE_RECORD: Final = 22
_TLS_MAJOR: Final = 3
_CLIENT_HELLO: Final = 1
_SERVER_NAME: Final = 0
_HOST_NAME: Final = 0
_MAX_RECORD_BYTES: Final = 16_384
_MAX_SESSION_ID_BYTES: Final = 32
_DNS_NAME: Final = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)*"
)


class _Reader:
    """Takes fields off the front of a byte string; running out is the sender's fault."""

    __slots__ = ("_data", "_position")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def take(self, count: int) -> bytes:
        end = self._position + count
        if end > len(self._data):
            raise MalformedRequestError("TLS ClientHello: a length runs past its end")
        taken = self._data[self._position : end]
        self._position = end
        return taken

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count), "big")

    def vector(self, length_bytes: int) -> bytes:
        return self.take(self.number(length_bytes))

    def __bool__(self) -> bool:
        return self._position < len(self._data)


def parse_server_name(data: bytes) -> str | None:
    """Return the lower-case host name that a TLS client asks for, or None if more bytes are needed.

    Args:
        data: the first bytes of a connection; what follows the hello is not looked at.

    Raises:
        MalformedRequestError: not a TLS ClientHello with exactly one well-formed host name, or one above
            :data:`MAX_HELLO_BYTES`.
    """
    hello = _handshake_message(data)
    if hello is None:
        if len(data) >= MAX_HELLO_BYTES:
            raise MalformedRequestError("TLS ClientHello: too long")
        return None
    reader = _Reader(hello)
    reader.take(2)  # legacy_version
    reader.take(32)  # random
    if len(reader.vector(1)) > _MAX_SESSION_ID_BYTES:
        raise MalformedRequestError("TLS ClientHello: session id too long")
    suites = reader.vector(2)
    if not suites or len(suites) % 2:
        raise MalformedRequestError("TLS ClientHello: cipher suites")
    if not reader.vector(1):
        raise MalformedRequestError("TLS ClientHello: compression methods")
    extensions = reader.vector(2)
    if reader:
        raise MalformedRequestError("TLS ClientHello: bytes after the extensions")
    return _host_name(_server_name_extension(extensions))


def _handshake_message(data: bytes) -> bytes | None:
    """Return the body of the first handshake message, joined from its records, or None while it is incomplete."""
    message = bytearray()
    position = 0
    while True:
        header = data[position : position + _RECORD_HEADER_BYTES]
        if (len(header) > 0 and header[0] != _HANDSHAKE_RECORD) or (len(header) > 1 and header[1] != _TLS_MAJOR):
            raise MalformedRequestError("not a TLS handshake")
        if len(header) < _RECORD_HEADER_BYTES:
            return None
        length = int.from_bytes(header[3:], "big")
        if not 0 < length <= _MAX_RECORD_BYTES:
            raise MalformedRequestError("TLS record: length out of range")
        position += _RECORD_HEADER_BYTES
        message += data[position : position + length]
        position += length
        if message and message[0] != _CLIENT_HELLO:
            raise MalformedRequestError("the first TLS handshake message is not a ClientHello")
        if len(message) >= _HANDSHAKE_HEADER_BYTES:
            end = _HANDSHAKE_HEADER_BYTES + int.from_bytes(message[1:4], "big")
            if end > MAX_HELLO_BYTES:
                raise MalformedRequestError("TLS ClientHello: too long")
            if len(message) >= end:
                return bytes(message[_HANDSHAKE_HEADER_BYTES:end])
        if position > len(data):
            return None


def _server_name_extension(extensions: bytes) -> bytes:
    reader = _Reader(extensions)
    found: dict[int, bytes] = {}
    while reader:
        kind = reader.number(2)
        content = reader.vector(2)
        if kind in found or len(found) >= MAX_EXTENSIONS:
            raise MalformedRequestError("TLS ClientHello: an extension twice, or too many")
        found[kind] = content
    if _SERVER_NAME not in found:
        raise MalformedRequestError("TLS ClientHello: no server name")
    return found[_SERVER_NAME]


def _host_name(extension: bytes) -> str:
    outer = _Reader(extension)
    names = _Reader(outer.vector(2))
    kind = names.number(1)
    name = names.vector(2)
    if kind != _HOST_NAME or names or outer:
        raise MalformedRequestError("TLS ClientHello: server name is not exactly one host name")
    try:
        text = name.decode("ascii").lower()
    except UnicodeDecodeError as error:
        raise MalformedRequestError("TLS ClientHello: server name is not ASCII") from error
    if not _DNS_NAME.fullmatch(text):
        raise MalformedRequestError("TLS ClientHello: server name is not a DNS name")
    return text
