"""What is encoded is read back, in one canonical form; what is not an encoding raises an error of the tree."""

import json
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bulkhead.attestation.statement import batch_path, batch_root, root_from_path
from bulkhead.encoding import canonical_json, lp_join
from bulkhead.errors import BulkheadError, ReplayError, SealError, WindowFullError
from bulkhead.protocol.certificates import MAX_CERTIFICATE_BYTES
from bulkhead.protocol.context import Method, SessionScope
from bulkhead.protocol.envelope import SEALED_SECRET_BYTES, Envelope
from bulkhead.protocol.payloads import (
    Delta,
    EmbedResult,
    GenerateRequest,
    Message,
    encode_generate_request,
    encode_record,
    parse_generate_request,
    parse_record,
)
from bulkhead.protocol.receipts import SignedReceipt
from bulkhead.protocol.replay import WINDOW, ReplayGuard
from bulkhead.sealing import ChunkOpener, ChunkSealer, Direction, Keyset, PaddingMode
from bulkhead.sealing.padding import BUCKETS, pad, unpad

TEXT = st.text(st.characters(codec="utf-8"), max_size=200)
DIGEST = st.binary(min_size=32, max_size=32)
FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(TEXT, st.integers(0, 2**31 - 1))
def test_delta_is_canonical_and_survives(text, tokens):
    """The hand-written encoding of a delta is RFC 8785's, for every text."""
    delta = Delta(text=text, tokens=tokens)
    encoded = encode_record(delta)
    assert encoded == canonical_json({"text": text, "tokens": tokens, "type": "delta"})
    assert parse_record(encoded) == delta


@pytest.mark.parametrize(
    "data",
    [
        b'{"text":"a","tokens":01,"type":"delta"}',
        b'{"text":"a","tokens":-1,"type":"delta"}',
        b'{"text":"a","tokens":2147483648,"type":"delta"}',
        b'{"text":"a","tokens":1.0,"type":"delta"}',
        b'{"text":"\\u0061","tokens":1,"type":"delta"}',
        b'{"text":"a", "tokens":1,"type":"delta"}',
        b'{"text":"a","tokens":1,"type":"delta"}\n',
        b'{"text":"a","tokens":1,"type":"delta"',
        b'{"text":"a\n","tokens":1,"type":"delta"}',
        b'{"text":"a","text":"a","tokens":1,"type":"delta"}',
    ],
)
def test_a_delta_has_one_encoding(data):
    """What merely looks like a plain delta is refused, whichever way deltas are read."""
    with pytest.raises(SealError):
        parse_record(data)


@given(st.lists(FLOAT32, min_size=1, max_size=64), st.integers(0, 255))
def test_embedding_survives(vector, index):
    """Binary32 values come back bit for bit."""
    result = EmbedResult(index=index, vector=tuple(vector))
    assert parse_record(encode_record(result)) == result


@given(
    st.lists(st.builds(Message, role=st.sampled_from(["system", "user", "assistant"]), content=TEXT), min_size=1),
    st.none() | st.integers(1, 2**31 - 1),
    st.floats(0, 100),
    st.floats(0, 1, exclude_min=True),
    st.none() | st.integers(0, 2**53 - 1),
)
def test_generate_request_survives(messages, max_tokens, temperature, top_p, seed):
    """Any request within bounds comes back as it was."""
    request = GenerateRequest(
        messages=tuple(messages), max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed
    )
    assert parse_generate_request(encode_generate_request(request)) == request


@given(st.binary(max_size=70_000), st.sampled_from(PaddingMode), st.sampled_from(Direction))
def test_padding_is_undone(record, mode, direction):
    """Padding is a bijection onto its buckets."""
    if len(record) > BUCKETS[-1] - 4:
        return
    assert unpad(pad(record, mode, direction), mode, direction) == record


@given(st.binary(max_size=300), st.sampled_from(PaddingMode), st.sampled_from(Direction))
def test_unpad_takes_only_what_pad_makes(plaintext, mode, direction):
    """What unpads is exactly what pad made; all else is a SealError."""
    try:
        record = unpad(plaintext, mode, direction)
    except SealError:
        return
    assert plaintext == pad(record, mode, direction)


@given(
    st.text(string.printable, max_size=100),
    DIGEST,
    st.integers(0, 2**64 - 1),
    st.sampled_from(Method),
    st.binary(min_size=SEALED_SECRET_BYTES, max_size=SEALED_SECRET_BYTES),
    st.binary(max_size=MAX_CERTIFICATE_BYTES),
)
def test_envelope_survives(ticket, key_id, sequence, method, sealed_secret, certificate):
    """Any envelope within bounds comes back as it was."""
    envelope = Envelope(
        ticket=ticket,
        key_id=key_id,
        sequence=sequence,
        request_id="req_01h455vb4pex5vsknk084sn02q",
        method=method,
        sealed_secret=sealed_secret,
        certificate=certificate,
        signature=bytes(64),
    )
    assert Envelope.parse(envelope.encode()) == envelope


READERS = (
    Envelope.parse,
    Keyset.parse,
    SignedReceipt.parse,
    parse_generate_request,
    parse_record,
    ChunkOpener(bytes(44), Direction.CLIENT_TO_SERVER).open,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300)
@given(
    st.sampled_from(READERS),
    st.binary(max_size=200)
    | JSON.map(lambda value: json.dumps(value, separators=(",", ":"), sort_keys=True).encode())
    | st.tuples(st.sampled_from([b'{"text":', b'{"messages":[', b"\x01\0\0\0\x05"]), st.binary(max_size=60)).map(
        b"".join
    ),
)
def test_readers_raise_within_the_tree(reader, data):
    """No reader of outside bytes raises anything but a BulkheadError."""
    try:
        reader(data)
    except BulkheadError:
        return


@given(st.lists(DIGEST, min_size=1, max_size=40), st.data())
def test_batch_paths_lead_to_the_root_from_their_leaf_only(leaves, data):
    """A path leads to the root from its leaf and place, and from no other leaf."""
    index = data.draw(st.integers(0, len(leaves) - 1))
    path, root = batch_path(leaves, index), batch_root(leaves)
    assert root_from_path(leaves[index], index=index, size=len(leaves), path=path) == root
    other = data.draw(DIGEST.filter(lambda digest: digest != leaves[index]))
    assert root_from_path(other, index=index, size=len(leaves), path=path) != root


@given(st.lists(st.integers(0, 3 * WINDOW), max_size=200))
def test_window_agrees_with_a_set(sequences):
    """The bit window accepts exactly what a set and a base would, and no number twice."""
    guard, seen = ReplayGuard(), set()
    scope = SessionScope(
        key_id=b"", tenant="", session="", model_digest=b"", evidence_digest=b"", decision_leaf_hash=b""
    )
    for sequence in sequences:
        base = next(number for number in range(len(seen) + 1) if number not in seen)
        try:
            guard.claim(scope, sequence)
        except ReplayError:
            assert sequence in seen
        except WindowFullError:
            assert sequence >= base + WINDOW
        else:
            assert sequence not in seen
            assert sequence < base + WINDOW
            seen.add(sequence)


@given(st.lists(st.binary(max_size=8), max_size=5), st.lists(st.binary(max_size=8), max_size=5))
def test_length_prefixes_are_injective(one, other):
    """Two lists of fields share their bytes only if they are the same list."""
    assert (lp_join(*one) == lp_join(*other)) == (one == other)


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=10), st.data())
def test_only_the_sent_order_opens(plaintexts, data):
    """Of all orders of a stream's chunks only the sent one opens to the end."""
    material = data.draw(st.binary(min_size=44, max_size=44))
    sealer = ChunkSealer(material, Direction.SERVER_TO_CLIENT)
    chunks = [sealer.seal(text, final=place == len(plaintexts) - 1) for place, text in enumerate(plaintexts)]
    order = data.draw(st.permutations(range(len(chunks))))
    opener = ChunkOpener(material, Direction.SERVER_TO_CLIENT)
    try:
        opened = [opener.open(chunks[place])[0] for place in order]
    except SealError:
        assert order != list(range(len(chunks)))
    else:
        assert opened == plaintexts
        assert order == list(range(len(chunks)))
