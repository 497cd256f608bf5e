"""Reading server names out of hellos that strangers send."""

import random
import ssl

import pytest

from bulkhead.errors import MalformedRequestError
from data_plane.ingress.client_hello import MAX_HELLO_BYTES, parse_server_name

NAME = "part-01abc.worker.bulkhead.internal"


def real_hello(name: str | None = NAME) -> bytes:
    """Return what OpenSSL sends first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    outgoing = ssl.MemoryBIO()
    connection = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        connection.do_handshake()
    return outgoing.read()


def vector(data: bytes, length_bytes: int) -> bytes:
    return len(data).to_bytes(length_bytes, "big") + data


def extension(kind: int, data: bytes) -> bytes:
    return kind.to_bytes(2, "big") + vector(data, 2)


def sni(*names: bytes, kind: int = 0) -> bytes:
    return extension(0, vector(b"".join(bytes([kind]) + vector(name, 2) for name in names), 2))


def hello(*extensions: bytes, tail: bytes = b"", records: int = 1) -> bytes:
    body = b"\x03\x03" + bytes(32) + vector(bytes(32), 1) + vector(b"\x13\x01", 2) + vector(b"\0", 1)
    body += vector(b"".join(extensions), 2) + tail
    message = b"\x01" + vector(body, 3)
    size = -(-len(message) // records)
    parts = [message[start : start + size] for start in range(0, len(message), size)]
    return b"".join(b"\x16\x03\x01" + vector(part, 2) for part in parts)


def test_a_real_hello_names_its_server() -> None:
    """The hello of a common TLS stack is understood, with whatever follows it ignored."""
    assert parse_server_name(real_hello()) == NAME
    assert parse_server_name(real_hello() + b"anything") == NAME


def test_every_prefix_asks_for_more() -> None:
    """A hello that has not arrived completely is neither routed nor refused."""
    data = real_hello()
    assert all(parse_server_name(data[:length]) is None for length in range(len(data)))


@pytest.mark.parametrize("records", [1, 2, 7])
def test_a_hello_over_several_records_is_joined(records: int) -> None:
    """A handshake message may be fragmented into records (RFC 8446 section 5.1)."""
    assert parse_server_name(hello(sni(b"a.example"), records=records)) == "a.example"


def test_names_are_case_insensitive() -> None:
    """A name in capitals routes like the same in small letters."""
    assert parse_server_name(hello(sni(b"A.Example"))) == "a.example"


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x02\x00\x00\x01",
        b"\x16\x03\x01\x00\x00",
        b"\x16\x03\x01\x40\x01" + bytes(5),
        b"\x16\x03\x01\x00\x04\x02\x00\x00\x00",
        hello(),
        hello(sni(b"a"), sni(b"b")),
        hello(sni(b"a", b"b")),
        hello(sni(b"a", kind=1)),
        hello(sni(b"")),
        hello(sni(b"a\0b.example")),
        hello(sni(b"a/../b")),
        hello(sni(b"-a.example")),
        hello(sni(b"a..example")),
        hello(sni(b"a" * 64 + b".example")),
        hello(sni(b".".join([b"a" * 60] * 5))),
        hello(sni("ä.example".encode())),
        hello(extension(0, b"\0\5\0\0\2aa" + b"!")),
        hello(extension(0, b"\0\3\0\0\2aa")),
        hello(sni(b"a"), tail=b"!"),
        hello(*(extension(kind, b"") for kind in range(1, 80)), sni(b"a")),
        b"\x16\x03\x01\x40\x00\x01\x00\x50\x00",
    ],
)
def test_anything_else_is_refused(data: bytes) -> None:
    """What is no TLS hello with exactly one host name, once, is refused rather than guessed at."""
    with pytest.raises(MalformedRequestError):
        parse_server_name(data)


def test_a_hello_without_a_name_is_refused() -> None:
    """There is no default worker."""
    with pytest.raises(MalformedRequestError):
        parse_server_name(real_hello(None))


def test_an_endless_hello_is_refused_at_the_bound() -> None:
    """Bytes that never complete a hello are refused once the bound is reached."""
    data = hello(sni(b"a.example"), extension(21, bytes(20_000)))
    with pytest.raises(MalformedRequestError):
        parse_server_name(data[:MAX_HELLO_BYTES])


def test_the_parser_is_total() -> None:
    """Random bytes and damaged hellos give a name, a wish for more, or our own error; nothing else."""
    chance = random.Random(11)
    whole = real_hello()
    for _ in range(4000):
        data = bytearray(whole if chance.random() < 0.8 else chance.randbytes(chance.randrange(600)))
        for _ in range(chance.randrange(4)):
            if data:
                data[chance.randrange(len(data))] = chance.randrange(256)
        if chance.random() < 0.3:
            del data[chance.randrange(len(data) + 1) :]
        try:
            name = parse_server_name(bytes(data))
        except MalformedRequestError:
            continue
        assert name is None or (name.isascii() and name == name.lower())
