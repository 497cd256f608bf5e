import json
from dataclasses import replace

import pytest

from bulkhead.encoding import canonical_json
from bulkhead.errors import (
    InternalError,
    InvalidRequestError,
    MessageTooLargeError,
    QueueFullError,
    ReceiptError,
    SignatureError,
    TicketError,
    TicketExpiredError,
    TruncatedError,
)
from bulkhead.protocol.client import ClientSession, Complete
from bulkhead.protocol.context import Method
from bulkhead.protocol.payloads import MAX_PAYLOAD_BYTES, Delta, EmbedResult, End, Failure, Usage
from bulkhead.protocol.receipts import ReceiptStatus, SignedReceipt, sign_receipt, verify_signed_receipt
from bulkhead.sealing import PaddingMode
from bulkhead.sealing.padding import BUCKETS
from tests.simulator.sealed_world import NOW_S, World

USAGE = Usage(prompt_tokens=3, completion_tokens=2)
END = End(finish_reason="stop", usage=USAGE)
DELTA = Delta(text="Paris", tokens=2)


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.fixture
def client(world):
    return world.client()


def exchange(world, client, payload=b"payload", method=Method.GENERATE):
    """Return both machines with the request delivered and the response opened."""
    sent = client.begin(method, payload, now_s=NOW_S)
    served = world.make_server().open(sent.envelope, now_s=NOW_S)
    for chunk in sent.chunks:
        whole = served.receive(chunk)
    assert whole
    sent.accept(served.worker_random)
    return sent, served


def test_whole_exchange(world, client):
    """The payload arrives, the records come back in order, and the receipt completes the answer."""
    sent, served = exchange(world, client)
    assert served.payload == b"payload"
    assert sent.receive(served.send(DELTA)) == DELTA
    assert sent.receive(served.end(END)) == END
    assert not sent.complete
    signed = served.make_receipt(ts_us=NOW_S * 10**6)
    done = sent.receive(served.finish())
    assert isinstance(done, Complete)
    assert done.signed == signed == sent.end_of_stream()
    assert sent.complete
    receipt = done.receipt
    assert (receipt.status, receipt.usage, receipt.request_id) == (ReceiptStatus.OK, USAGE, sent.request_id)
    assert (receipt.tier, receipt.simulated, receipt.partition) == (world.tier, False, world.partition)


@pytest.mark.parametrize("size", [0, 1, 65_532, 65_533, 200_000, MAX_PAYLOAD_BYTES])
def test_payload_of_any_size_arrives(world, client, size):
    """Payloads are split into chunks and come back whole, up to the limit."""
    payload = bytes(size)
    _, served = exchange(world, client, payload)
    assert served.payload == payload


def test_payload_above_the_limit_is_refused(client):
    """The client refuses before anything is sealed."""
    with pytest.raises(MessageTooLargeError):
        client.begin(Method.GENERATE, bytes(MAX_PAYLOAD_BYTES + 1), now_s=NOW_S)


def test_worker_holds_the_limit_too(world, client):
    """A client that ignores the limit is stopped by the worker while the chunks arrive."""
    sent = client.begin(Method.GENERATE, b"", now_s=NOW_S)
    served = world.make_server().open(sent.envelope, now_s=NOW_S)
    served._size = MAX_PAYLOAD_BYTES + 1
    with pytest.raises(MessageTooLargeError):
        served.receive(sent.chunks[0])


def test_embeddings_travel(world, client):
    """Method embed returns vectors under the same seal."""
    sent, served = exchange(world, client, method=Method.EMBED)
    result = EmbedResult(index=0, vector=(0.25, -2.0))
    assert sent.receive(served.send(result)) == result
    sent.receive(served.end(END))
    assert served.make_receipt(ts_us=1)
    assert sent.receive(served.finish()).receipt.method is Method.EMBED


def test_failure_is_sealed_and_receipted(world, client):
    """An error after opening arrives as a record with its class, then a receipt that says failed."""
    sent, served = exchange(world, client)
    event = sent.receive(served.fail(QueueFullError("The queue is full."), usage=Usage(prompt_tokens=3)))
    assert event == Failure(code="QUEUE_FULL", message="The queue is full.")
    served.make_receipt(ts_us=1)
    done = sent.receive(served.finish())
    assert (done.receipt.status, done.receipt.code) == (ReceiptStatus.FAILED, "QUEUE_FULL")


def test_failure_without_receipt_is_the_workers_error(world, client):
    """An authentic error whose receipt never comes is raised as itself, never as an answer."""
    sent, served = exchange(world, client)
    sent.receive(served.fail(QueueFullError("full")))
    with pytest.raises(QueueFullError):
        sent.end_of_stream()
    assert not sent.complete


def test_cut_stream_is_truncated(world, client):
    """Without the final chunk no prefix of an answer is an answer, not even with its end record."""
    for chunks in (0, 1, 2):
        sent, served = exchange(world, client)
        for chunk in (served.send(DELTA), served.end(END))[:chunks]:
            sent.receive(chunk)
        with pytest.raises(TruncatedError) as caught:
            sent.end_of_stream()
        assert caught.value.details == {"request_id": sent.request_id}
        assert not sent.complete


def test_cancelled_request_has_a_receipt_and_no_final_chunk(world, client):
    """A cancelled request is receipted, fetched and checked by request id; no final chunk can be released."""
    sent, served = exchange(world, client)
    sent.receive(served.send(DELTA))
    served.cancel(usage=USAGE)
    signed = served.make_receipt(ts_us=1)
    with pytest.raises(InternalError):
        served.finish()
    assert sent.check_receipt(signed).status is ReceiptStatus.CANCELLED
    assert client.check_fetched_receipt(signed, request_id=sent.request_id).usage == USAGE
    with pytest.raises(ReceiptError):
        client.check_fetched_receipt(signed, request_id="req_other")


def test_fetching_a_receipt_takes_the_session_key(world, client):
    """The session key signs for one request id; a ticket alone fetches nothing."""
    server = world.make_server()
    sent = client.begin(Method.GENERATE, b"", now_s=NOW_S)
    arguments = {"ticket": client.grant.ticket, "request_id": sent.request_id, "now_s": NOW_S}
    signature = client.sign_receipt_fetch(sent.request_id)
    assert server.authorise_receipt_fetch(**arguments, signature=signature).session == world.session
    for bad in (bytes(64), b"", client.sign_receipt_fetch("req_other")):
        with pytest.raises(SignatureError):
            server.authorise_receipt_fetch(**arguments, signature=bad)


@pytest.mark.parametrize(
    ("step", "arguments"),
    [("send", [DELTA]), ("end", [END]), ("fail", [QueueFullError("full")]), ("finish", [])],
)
def test_steps_out_of_order_are_defects(world, client, step, arguments):
    """Before the request is whole nothing is sent, and nothing after the response ended."""
    sent = client.begin(Method.GENERATE, b"", now_s=NOW_S)
    served = world.make_server().open(sent.envelope, now_s=NOW_S)
    with pytest.raises(InternalError):
        getattr(served, step)(*arguments)
    with pytest.raises(InternalError):
        served.make_receipt(ts_us=1)
    served.receive(sent.chunks[0])
    served.end(END)
    with pytest.raises(InternalError):
        getattr(served, step)(*arguments)
    with pytest.raises(InternalError):
        served.cancel()
    served.make_receipt(ts_us=1)
    served.finish()
    with pytest.raises(InternalError):
        served.finish()
    with pytest.raises(InternalError):
        served.make_receipt(ts_us=1)


def test_record_that_cannot_be_sealed_leaves_room_for_the_error(world, client):
    """A record that is too long is refused without spoiling the stream, which then reports an error."""
    sent, served = exchange(world, client)
    with pytest.raises(MessageTooLargeError):
        served.send(Delta(text="x" * 70_000, tokens=1))
    assert isinstance(sent.receive(served.fail(InternalError("too long"))), Failure)


def test_default_padding_hides_lengths(world, client):
    """With default padding short and long deltas, errors and ends look the same on the wire."""
    _, served = exchange(world, client)
    sizes = {len(served.send(Delta(text="x" * length, tokens=1))) for length in (0, 1, 50, 200)}
    assert sizes == {BUCKETS[0] + 17} == {len(served.end(END))}
    _, failed = exchange(world, client)
    assert len(failed.fail(QueueFullError("The worker's queue is full."))) == BUCKETS[0] + 17


def test_padding_off_is_honoured():
    """A ticket with padding off adds nothing."""
    world = World(padding=PaddingMode.OFF)
    client = world.client()
    sent, served = exchange(world, client, b"abc")
    assert [len(chunk) for chunk in sent.chunks] == [1 + 4 + 3 + 16]
    assert sent.receive(served.send(DELTA)) == DELTA


def test_resent_request_keeps_its_id_and_nothing_else(world, client):
    """A resent request has the same id, another sequence and secret, and its own receipt."""
    server = world.make_server()
    first = client.begin(Method.GENERATE, b"again", now_s=NOW_S)
    assert first.resendable
    second = client.begin(Method.GENERATE, b"again", now_s=NOW_S, request_id=first.request_id)
    assert second.request_id == first.request_id
    assert set(first.chunks).isdisjoint(second.chunks)
    receipts = set()
    for sent in (first, second):
        served = server.open(sent.envelope, now_s=NOW_S)
        served.receive(sent.chunks[0])
        sent.accept(served.worker_random)
        assert not sent.resendable
        sent.receive(served.send(DELTA))
        sent.receive(served.end(END))
        served.make_receipt(ts_us=1)
        receipts.add(sent.receive(served.finish()).signed.digest)
    assert len(receipts) == 2


def test_expired_grant_begins_nothing(client):
    """At the grant's end the client asks for a renewal instead of sending."""
    with pytest.raises(TicketExpiredError):
        client.begin(Method.GENERATE, b"", now_s=client.grant.not_after_s)


def test_another_session_key_makes_no_session(world):
    """A grant is usable only with the key it was issued for."""
    with pytest.raises(TicketError):
        ClientSession(grant=world.grant(), session_key=world.key())


def test_request_id_is_checked(client):
    """A request id that is none is the caller's mistake."""
    with pytest.raises(InvalidRequestError):
        client.begin(Method.GENERATE, b"", now_s=NOW_S, request_id="sess_x")


@pytest.fixture
def signed(world, client):
    _, served = exchange(world, client)
    served.end(END)
    return served.make_receipt(ts_us=5)


def test_signed_receipt_survives_as_canonical_json(world, signed):
    """A kept receipt is RFC 8785 and parses back to the same bytes, digest and content."""
    encoded = signed.encode()
    assert canonical_json(json.loads(encoded)) == encoded
    assert SignedReceipt.parse(encoded) == signed
    receipt = verify_signed_receipt(signed, key=world.keys.keyset.receipt_key)
    assert canonical_json(receipt.to_json()) == signed.receipt
    assert sign_receipt(receipt, sign=world.keys.sign_receipt) == signed


def test_changed_receipt_is_refused(world, signed):
    """Every field of a receipt is under its signature."""
    key = world.keys.keyset.receipt_key
    value = json.loads(signed.receipt)
    for name in value:
        changed = value | {name: 7 if isinstance(value[name], int) else "x"}
        with pytest.raises(SignatureError):
            verify_signed_receipt(replace(signed, receipt=canonical_json(changed)), key=key)
    with pytest.raises(SignatureError):
        verify_signed_receipt(signed, key=World(seed=3).keys.keyset.receipt_key)


@pytest.mark.parametrize("changes", [{"version": 2}, {"more": 1}, {"tier": "best"}, {"ts_us": -1}, {"cnf": "AA"}])
def test_signed_nonsense_is_a_receipt_error(world, signed, changes):
    """A receipt that the right key signed and that is none of version 1 is refused."""
    encoded = canonical_json(json.loads(signed.receipt) | changes)
    message = b"bulkhead/v1 receipt" + len(encoded).to_bytes(4, "big") + encoded
    nonsense = SignedReceipt(receipt=encoded, signature=world.keys.sign_receipt(message))
    with pytest.raises(ReceiptError):
        verify_signed_receipt(nonsense, key=world.keys.keyset.receipt_key)


@pytest.mark.parametrize("data", [b"", b"{}", b'{"receipt":{},"signature":"AA"}', b"\xff", b" " * 9_000])
def test_garbage_is_a_receipt_error(data):
    """Bytes that are no signed receipt raise ReceiptError."""
    with pytest.raises(ReceiptError):
        SignedReceipt.parse(data)
