from dataclasses import replace

import pytest

from bulkhead.errors import InvalidRequestError, MalformedRequestError, MessageTooLargeError
from bulkhead.protocol.context import Method
from bulkhead.protocol.envelope import MAX_ENVELOPE_BYTES, SEALED_SECRET_BYTES, Envelope

ENVELOPE = Envelope(
    ticket="a.b.c",
    key_id=bytes(range(32)),
    sequence=2**64 - 1,
    request_id="req_01h455vb4pex5vsknk084sn02q",
    method=Method.GENERATE,
    sealed_secret=bytes(SEALED_SECRET_BYTES),
    signature=b"\x07" * 64,
    certificate=b"vouched",
)


def test_layout():
    """The fields stand in the documented order and sizes, and come back unchanged."""
    data = ENVELOPE.encode()
    assert data[:10] == b"\x01\0\0\0\x05a.b.c"
    assert data[10:21] == b"\0\0\0\x07vouched"
    assert data[21:53] == ENVELOPE.key_id
    assert data[53:61] == b"\xff" * 8
    assert data[61:65] == b"\0\0\0\x1e"
    assert data[95:107] == b"\0\0\0\x08generate"
    assert data[107:111] == (1168).to_bytes(4, "big")
    assert data[-64:] == ENVELOPE.signature
    assert len(data) == 111 + 1168 + 64
    assert Envelope.parse(data) == ENVELOPE


def test_a_tenant_without_a_root_sends_no_certificate():
    """An empty certificate is four zero bytes."""
    bare = replace(ENVELOPE, certificate=b"")
    assert bare.encode()[10:14] == bytes(4)
    assert Envelope.parse(bare.encode()) == bare


def test_every_cut_is_refused():
    """No prefix of an envelope is an envelope, nor is one with a byte more."""
    data = ENVELOPE.encode()
    for size in range(0, len(data), 7):
        with pytest.raises(MalformedRequestError):
            Envelope.parse(data[:size])
    with pytest.raises(MalformedRequestError, match="after its end"):
        Envelope.parse(data + b"\0")


def test_oversized_is_refused_first():
    """A longer message is refused by its size alone."""
    with pytest.raises(MessageTooLargeError):
        Envelope.parse(bytes(MAX_ENVELOPE_BYTES + 1))


@pytest.mark.parametrize(
    "data",
    [
        b"\x02" + ENVELOPE.encode()[1:],
        ENVELOPE.encode().replace(b"generate", b"generatf"),
        ENVELOPE.encode().replace(b"req_", b"rex_"),
        ENVELOPE.encode().replace(b"a.b.c", b"a.\xff.c"),
        b"\x01\xff\xff\xff\xff" + ENVELOPE.encode()[5:],
        replace(ENVELOPE, sealed_secret=bytes(SEALED_SECRET_BYTES - 1)).encode(),
        replace(ENVELOPE, certificate=bytes(1_025)).encode(),
    ],
    ids=["version", "method", "request id", "ticket not ASCII", "length", "sealed secret", "certificate"],
)
def test_other_content_is_refused(data):
    """Another version, an unknown method, a malformed id, text or length are malformed requests."""
    with pytest.raises(InvalidRequestError):
        Envelope.parse(data)
