"""One attack each on a sealed request, and the one error that it gives."""

import copy
from dataclasses import replace

import pytest

from bulkhead.attestation import Tier
from bulkhead.errors import (
    ChunkReflectedError,
    ChunkReorderedError,
    ChunkRepeatedError,
    ClockSkewError,
    DowngradeError,
    InternalError,
    KeyMismatchError,
    MalformedRequestError,
    MessageTooLargeError,
    ReceiptCountError,
    ReceiptError,
    ReplayError,
    SealError,
    SignatureError,
    StaleKeyError,
    TicketError,
    TicketExpiredError,
    TicketRevokedError,
    TruncatedError,
    WindowFullError,
)
from bulkhead.protocol.context import Method, RequestInfo
from bulkhead.protocol.envelope import Envelope
from bulkhead.protocol.grant import verify_grant
from bulkhead.protocol.payloads import Delta, End, Usage
from bulkhead.protocol.receipts import ReceiptStatus, SignedReceipt, sign_receipt, verify_signed_receipt
from bulkhead.sealing import ChunkOpener, ChunkSealer, Direction, PaddingMode, WorkerKeys
from bulkhead.sealing.padding import pad
from tests.simulator.sealed_world import MODEL_DIGEST, NOW_S, World

USAGE = Usage(prompt_tokens=3, completion_tokens=2)
END = End(finish_reason="stop", usage=USAGE)
PROMPT = b"canary-prompt " * 10_000  # three chunks


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.fixture(scope="module")
def grant(world):
    return world.grant()


@pytest.fixture
def client(world, grant):
    return world.client(grant)


@pytest.fixture
def server(world):
    return world.make_server()


@pytest.fixture
def sent(client):
    return client.begin(Method.GENERATE, PROMPT, now_s=NOW_S)


def change(envelope, **changes):
    return replace(Envelope.parse(envelope), **changes).encode()


def resigned(world, grant, envelope, **changes):
    """Return the envelope with changes, signed anew by the session key: an attack by the tenant itself."""
    parsed = replace(Envelope.parse(envelope), **changes)
    info = RequestInfo(
        scope=grant.claims.scope, request_id=parsed.request_id, sequence=parsed.sequence, method=parsed.method
    )
    signature = world.session_key.sign(info.transcript_hash(parsed.sealed_secret))
    return replace(parsed, signature=signature).encode()


def second_session(world):
    """Return a client with another session of the tenant on the same worker."""
    other = World(seed=31, tenant=world.tenant)
    for name in ("issuer", "partition", "keys", "authority"):
        setattr(other, name, getattr(world, name))
    return other.client()


def opened(server, sent):
    served = server.open(sent.envelope, now_s=NOW_S)
    for chunk in sent.chunks:
        served.receive(chunk)
    sent.accept(served.worker_random)
    return served


class TestEnvelope:
    def test_replayed_request_is_refused(self, server, sent):
        """The same envelope opens once."""
        server.open(sent.envelope, now_s=NOW_S)
        with pytest.raises(ReplayError):
            server.open(sent.envelope, now_s=NOW_S)

    def test_replay_is_refused_long_after(self, server, client, sent):
        """After a thousand and more further requests the first is still known."""
        server.open(sent.envelope, now_s=NOW_S)
        claim = server._replay.claim
        for sequence in range(1, 3_000):
            claim(client.grant.claims.scope, sequence)
        with pytest.raises(ReplayError):
            server.open(sent.envelope, now_s=NOW_S)

    def test_sequence_far_ahead_is_refused(self, world, grant, server, sent):
        """A number a whole window ahead is refused even when the session key signs it."""
        with pytest.raises(WindowFullError):
            server.open(resigned(world, grant, sent.envelope, sequence=1_024), now_s=NOW_S)

    def test_unsigned_request_claims_no_sequence(self, server, sent):
        """A forger without the session key uses up nothing: the honest request still opens."""
        with pytest.raises(SignatureError):
            server.open(change(sent.envelope, signature=bytes(64)), now_s=NOW_S)
        assert server.open(sent.envelope, now_s=NOW_S)

    @pytest.mark.parametrize("field", ["sequence", "request_id", "method", "sealed_secret"])
    def test_changed_field_breaks_the_signature(self, server, sent, field):
        """Sequence, request id, method and encapsulation are under the session key's signature."""
        value = {
            "sequence": 7,
            "request_id": "req_01h455vb4pex5vsknk084sn02q",
            "method": Method.EMBED,
            "sealed_secret": bytes(1168),
        }[field]
        with pytest.raises(SignatureError):
            server.open(change(sent.envelope, **{field: value}), now_s=NOW_S)

    @pytest.mark.parametrize("field", ["sequence", "request_id", "method"])
    def test_context_is_under_the_encapsulation_too(self, world, grant, server, sent, field):
        """Even the session key cannot move an encapsulated secret to another sequence, request id or method."""
        value = {"sequence": 7, "request_id": "req_01h455vb4pex5vsknk084sn02q", "method": Method.EMBED}[field]
        with pytest.raises(SealError):
            server.open(resigned(world, grant, sent.envelope, **{field: value}), now_s=NOW_S)

    def test_key_confusion_is_refused(self, server, sent):
        """A request whose key id is not the one in its ticket is refused before it is authenticated further."""
        with pytest.raises(KeyMismatchError):
            server.open(change(sent.envelope, key_id=bytes(32)), now_s=NOW_S)

    def test_sealed_to_another_worker(self, world, server, sent):
        """Secrets sealed to another worker's keyset are stale here: the ticket names keys that nobody holds."""
        other = WorkerKeys.generate(authority=world.authority, now_s=NOW_S)
        fresh = copy.copy(world)
        fresh.keys = other
        with pytest.raises(StaleKeyError):
            fresh.make_server().open(sent.envelope, now_s=NOW_S)

    def test_destroyed_key_is_stale(self, world):
        """After the keys are retired a recorded request opens never again, and the error says renew."""
        own = World(seed=11)
        recorded = own.client().begin(Method.GENERATE, PROMPT, now_s=NOW_S)
        own.server.retire_keys(own.keys.key_id)
        with pytest.raises(StaleKeyError):
            own.server.open(recorded.envelope, now_s=NOW_S)
        with pytest.raises(StaleKeyError):
            own.keys.open_request(Envelope.parse(recorded.envelope).sealed_secret, info=b"")

    def test_keys_end_on_time(self):
        """Keys past their end are not used, though the worker still holds them."""
        own = World(seed=12)
        own.keys = WorkerKeys.generate(authority=own.authority, now_s=NOW_S, life_s=100)
        own.server = own.make_server()
        claims = own.claims(evidence_digest=bytes(32), decision_leaf_hash=bytes(32))
        envelope = Envelope(
            ticket=own.issuer.issue(claims),
            key_id=own.keys.key_id,
            sequence=0,
            request_id="req_01h455vb4pex5vsknk084sn02q",
            method=Method.GENERATE,
            sealed_secret=bytes(1168),
            signature=bytes(64),
        )
        with pytest.raises(SignatureError):
            own.server.open(envelope.encode(), now_s=NOW_S + 99)
        for now_s in (NOW_S + 100, NOW_S):  # a clock that is set back revives no key
            with pytest.raises(StaleKeyError):
                own.server.open(envelope.encode(), now_s=now_s)

    def test_rotated_worker_serves_both_generations(self):
        """In the grace period requests to the old and to the new keys open."""
        own = World(seed=13)
        old = own.client()
        own.keys = WorkerKeys.generate(authority=own.authority, now_s=NOW_S)
        own.server.add_keys(own.keys)
        for client in (old, own.client()):
            sent = client.begin(Method.GENERATE, b"x", now_s=NOW_S)
            assert opened(own.server, sent).payload == b"x"

    def test_oversized_and_garbage(self, server):
        """Size comes first, then the layout."""
        with pytest.raises(MessageTooLargeError):
            server.open(bytes(100_000_000), now_s=NOW_S)
        for garbage in (b"", b"\0", b"\1", b"\xff" * 500):
            with pytest.raises(MalformedRequestError):
                server.open(garbage, now_s=NOW_S)


class TestTicket:
    def _ticket(self, world, grant, **changes):
        return world.issuer.issue(replace(grant.claims, **changes))

    @pytest.mark.parametrize(
        "changes",
        [
            {"tenant": "tenant_other"},
            {"partition": "part_other"},
            {"model_digest": bytes(32)},
            {"audience": "part-2.example"},
        ],
        ids=lambda changes: next(iter(changes)),
    )
    def test_ticket_of_another_worker(self, world, grant, server, sent, changes):
        """A valid ticket for another tenant, partition, model or worker is useless here."""
        with pytest.raises(TicketError):
            server.open(change(sent.envelope, ticket=self._ticket(world, grant, **changes)), now_s=NOW_S)

    def test_request_spliced_between_sessions(self, world, server, sent):
        """Nothing of one session's request holds in another's envelope: ticket and signature belong together."""
        other = Envelope.parse(second_session(world).begin(Method.GENERATE, PROMPT, now_s=NOW_S).envelope)
        for field in ("ticket", "sealed_secret", "signature"):
            with pytest.raises(SignatureError):
                server.open(change(sent.envelope, **{field: getattr(other, field)}), now_s=NOW_S)

    def test_clock_skew(self, world, sent):
        """A ticket more than a minute in the future is an error of clocks; up to a minute is taken."""
        with pytest.raises(ClockSkewError):
            world.make_server().open(sent.envelope, now_s=NOW_S - 61)
        assert world.make_server().open(sent.envelope, now_s=NOW_S - 60)

    def test_ticket_of_another_session(self, world, grant, server, sent):
        """Another session's ticket under this request breaks the signature: the transcript names the session."""
        other = self._ticket(world, grant, session="sess_other")
        with pytest.raises(SignatureError):
            server.open(change(sent.envelope, ticket=other), now_s=NOW_S)

    def test_stolen_ticket_is_useless(self, world, grant, server):
        """Whoever holds the ticket but not the session key opens nothing."""
        thief = World(seed=21)
        stolen = replace(grant, claims=replace(grant.claims, cnf=thief.cnf))
        sent = thief.client(stolen).begin(Method.GENERATE, PROMPT, now_s=NOW_S)
        with pytest.raises(SignatureError):
            server.open(sent.envelope, now_s=NOW_S)

    def test_tenants_are_apart(self, world, sent):
        """A whole request of tenant A on tenant B's worker is refused at its ticket."""
        with pytest.raises(TicketError):
            World(seed=22).server.open(sent.envelope, now_s=NOW_S)

    def test_expired(self, server, sent):
        """An expired ticket opens nothing."""
        with pytest.raises(TicketExpiredError):
            server.open(sent.envelope, now_s=NOW_S + 300)

    def test_workers_clock_never_runs_backwards(self, server, sent):
        """A clock that is set back does not revive an expired ticket."""
        with pytest.raises(TicketExpiredError):
            server.open(sent.envelope, now_s=NOW_S + 300)
        with pytest.raises(TicketExpiredError):
            server.open(sent.envelope, now_s=NOW_S)

    def test_revoked(self):
        """A revoked session's next request is refused."""
        own = World(seed=23)
        sent = own.client().begin(Method.GENERATE, PROMPT, now_s=NOW_S)
        own.revoked.add(own.session)
        with pytest.raises(TicketRevokedError):
            own.server.open(sent.envelope, now_s=NOW_S)

    def test_foreign_evidence(self, world, sent):
        """A ticket on evidence that this worker was never issued is refused."""
        server = world.make_server()
        server._knows_evidence = lambda _digest: False
        with pytest.raises(TicketError, match="evidence"):
            server.open(sent.envelope, now_s=NOW_S)

    def test_renewed_ticket_does_not_reopen_the_window(self, world, grant, server, sent):
        """A new ticket on the same evidence and decision shares the window; one on fresh evidence breaks the seal."""
        server.open(sent.envelope, now_s=NOW_S)
        again = self._ticket(world, grant, ticket_id="tick_new")
        with pytest.raises(ReplayError):
            server.open(change(sent.envelope, ticket=again), now_s=NOW_S)
        fresh = self._ticket(world, grant, evidence_digest=bytes(32))
        with pytest.raises(SignatureError):
            server.open(change(sent.envelope, ticket=fresh), now_s=NOW_S)


class TestChunks:
    @pytest.mark.parametrize(
        ("attack", "error"),
        [
            ("reorder", ChunkReorderedError),
            ("skip", ChunkReorderedError),
            ("repeat", ChunkRepeatedError),
            ("alter", SealError),
            ("cut", SealError),
            ("early final", SealError),
        ],
    )
    def test_request_chunks(self, server, sent, attack, error):
        """Request chunks out of place, repeated, missing, altered or cut end the request, with the error of each."""
        first, second, last = sent.chunks
        served = server.open(sent.envelope, now_s=NOW_S)
        before, bad = {
            "reorder": ([], second),
            "skip": ([first], last),
            "repeat": ([first], first),
            "alter": ([first], second[:-1] + bytes([second[-1] ^ 1])),
            "cut": ([], first[:-16]),
            "early final": ([first], b"\1" + second[1:]),
        }[attack]
        for chunk in before:
            served.receive(chunk)
        with pytest.raises(SealError) as caught:
            served.receive(bad)
        assert type(caught.value) is error
        assert served.payload == b""
        with pytest.raises(SealError):
            served.receive(second)

    def test_truncated_request(self, server, sent):
        """A request without its final chunk has no payload and gets no answer."""
        served = server.open(sent.envelope, now_s=NOW_S)
        assert not any(served.receive(chunk) for chunk in sent.chunks[:-1])
        assert served.payload == b""
        with pytest.raises(InternalError):
            served.send(Delta(text="a", tokens=1))

    def test_chunk_far_out_of_place(self):
        """A chunk more than 64 places away is refused without its place being named."""
        sealer = ChunkSealer(bytes(44), Direction.CLIENT_TO_SERVER)
        opener = ChunkOpener(bytes(44), Direction.CLIENT_TO_SERVER)
        chunks = [sealer.seal(b"x") for _ in range(66)]
        with pytest.raises(SealError) as caught:
            opener.open(chunks[65])
        assert type(caught.value) is SealError

    def test_chunks_of_another_request(self, server, client, sent):
        """Chunks spliced in from another request of the same session do not open, and look like altered ones."""
        other = client.begin(Method.GENERATE, PROMPT, now_s=NOW_S)
        served = server.open(sent.envelope, now_s=NOW_S)
        with pytest.raises(SealError):
            served.receive(other.chunks[0])

    def test_endless_empty_chunks(self, grant, server, client):
        """A client cannot hold a request open with empty chunks."""
        sent = client.begin(Method.GENERATE, b"", now_s=NOW_S)
        served = server.open(sent.envelope, now_s=NOW_S)
        sealer = ChunkSealer(sent._schedule.client_to_server(), Direction.CLIENT_TO_SERVER)
        with pytest.raises(SealError, match="empty"):
            served.receive(sealer.seal(pad(b"", PaddingMode.DEFAULT, Direction.CLIENT_TO_SERVER)))

    @pytest.mark.parametrize(
        ("attack", "error"),
        [
            ("reorder", ChunkReorderedError),
            ("repeat", ChunkRepeatedError),
            ("reflect", ChunkReflectedError),
            ("alter", SealError),
            ("early final", SealError),
            ("other request", SealError),
            ("other session", SealError),
        ],
    )
    def test_response_chunks(self, world, server, client, sent, attack, error):
        """Response chunks out of place, repeated, reflected, altered or spliced in end it, with the error of each."""
        served, other = opened(server, sent), opened(server, client.begin(Method.GENERATE, PROMPT, now_s=NOW_S))
        foreign = opened(server, second_session(world).begin(Method.GENERATE, PROMPT, now_s=NOW_S))
        first, second = (served.send(Delta(text=text, tokens=1)) for text in "ab")
        before, bad = {
            "reorder": ([], second),
            "repeat": ([first], first),
            "reflect": ([], sent.chunks[0]),
            "alter": ([first], second[:-1] + bytes([second[-1] ^ 1])),
            "early final": ([first], b"\1" + second[1:]),
            "other request": ([], other.send(Delta(text="c", tokens=1))),
            "other session": ([], foreign.send(Delta(text="c", tokens=1))),
        }[attack]
        for chunk in before:
            sent.receive(chunk)
        with pytest.raises(SealError) as caught:
            sent.receive(bad)
        assert type(caught.value) is error
        with pytest.raises(SealError):
            sent.receive(second)
        with pytest.raises(TruncatedError):
            sent.end_of_stream()

    @pytest.mark.parametrize("kept", [0, 1, 2])
    def test_truncated_response(self, server, sent, kept):
        """A response cut anywhere before its final chunk is no answer."""
        served = opened(server, sent)
        chunks = [served.send(Delta(text="a", tokens=1)), served.end(END)]
        for chunk in chunks[:kept]:
            sent.receive(chunk)
        with pytest.raises(TruncatedError):
            sent.end_of_stream()

    @pytest.mark.parametrize("random_bytes", [bytes(32), b"", bytes(33)])
    def test_other_worker_bytes(self, server, sent, random_bytes):
        """Other opening bytes give other keys, so nothing opens; a wrong size is refused at once."""
        served = server.open(sent.envelope, now_s=NOW_S)
        for chunk in sent.chunks:
            served.receive(chunk)
        chunk = served.send(Delta(text="a", tokens=1))
        with pytest.raises(SealError):  # noqa: PT012 - either step may refuse
            sent.accept(random_bytes)
            sent.receive(chunk)

    def test_response_opens_once(self, server, sent):
        """A second opening of the response is refused, as is a chunk before the first."""
        served = opened(server, sent)
        with pytest.raises(SealError):
            sent.accept(served.worker_random)

    def test_chunk_before_the_opening(self, sent):
        """Nothing opens before the worker's bytes came."""
        with pytest.raises(SealError):
            sent.receive(bytes(100))

    def test_resend_after_an_accepted_byte(self, server, sent):
        """Once the response was opened the request is not to be sent again."""
        opened(server, sent)
        assert not sent.resendable


class TestDowngrade:
    def test_version(self, server, sent):
        """An envelope of any other version is refused before anything else of it is read."""
        for version in (0, 2, 255):
            with pytest.raises(MalformedRequestError, match="version"):
                server.open(bytes([version]) + sent.envelope[1:], now_s=NOW_S)

    @pytest.mark.parametrize("asked", PaddingMode)
    @pytest.mark.parametrize("given", PaddingMode)
    def test_padding(self, asked, given):
        """A control plane that issues a ticket with less padding than was asked for is caught before the prompt."""
        own = World(seed=41, padding=given)
        expectation = replace(own.expectation(), padding=asked)
        if given.covers(asked):
            assert verify_grant(own.offer(), expectation=expectation, anchors=own.anchors(), now_s=NOW_S)
        else:
            with pytest.raises(DowngradeError):
                verify_grant(own.offer(), expectation=expectation, anchors=own.anchors(), now_s=NOW_S)

    def test_padding_of_chunks(self, world, grant, server, client):
        """A worker under a padded ticket takes no request that is not padded so, and a client no such response."""
        lax = replace(grant, claims=replace(grant.claims, padding=PaddingMode.OFF))
        sent = world.client(lax).begin(Method.GENERATE, b"x", now_s=NOW_S)
        served = server.open(sent.envelope, now_s=NOW_S)
        with pytest.raises(SealError, match="padding"):
            served.receive(sent.chunks[0])
        honest = client.begin(Method.GENERATE, b"x", now_s=NOW_S)
        served = opened(world.make_server(), honest)
        record = pad(b'{"text":"a","tokens":1,"type":"delta"}', PaddingMode.OFF, Direction.SERVER_TO_CLIENT)
        with pytest.raises(SealError, match="padding"):
            honest.receive(served._sealer.seal(record))

    def test_filling_outside_strict_padding(self, server, sent):
        """An empty record says nothing, which only strict padding allows."""
        served = opened(server, sent)
        with pytest.raises(InternalError):
            served.fill()
        with pytest.raises(SealError):
            sent.receive(served._sealer.seal(pad(b"", PaddingMode.DEFAULT, Direction.SERVER_TO_CLIENT)))


class TestReceipt:
    def _finished(self, server, sent, **changes):
        """Return the final chunk of a worker that signs what it likes."""
        served = opened(server, sent)
        sent.receive(served.send(Delta(text="a", tokens=USAGE.completion_tokens)))
        sent.receive(served.end(END))
        honest = verify_signed_receipt(served.make_receipt(ts_us=1), key=served._keys.keyset.receipt_key)
        served._signed = sign_receipt(replace(honest, **changes), sign=served._keys.sign_receipt)
        return served.finish()

    @pytest.mark.parametrize(
        ("changes", "code"),
        [
            ({"request_id": "req_other"}, "RECEIPT_INVALID"),
            ({"ticket_id": "tick_other"}, "RECEIPT_INVALID"),
            ({"tenant": "tenant_other"}, "RECEIPT_INVALID"),
            ({"session": "sess_other"}, "RECEIPT_INVALID"),
            ({"cnf": bytes(32)}, "RECEIPT_INVALID"),
            ({"method": Method.EMBED}, "RECEIPT_INVALID"),
            ({"transcript_hash": bytes(32)}, "RECEIPT_DIGEST"),
            ({"keyset_digest": bytes(32)}, "RECEIPT_DIGEST"),
            ({"evidence_digest": bytes(32)}, "RECEIPT_DIGEST"),
            ({"model": "other"}, "RECEIPT_MODEL"),
            ({"model_digest": bytes(32)}, "RECEIPT_DIGEST"),
            ({"partition": "part_other"}, "RECEIPT_INVALID"),
            ({"tier": Tier.CONFIDENTIAL}, "RECEIPT_TIER"),
            ({"simulated": True}, "RECEIPT_TIER"),
            ({"usage": Usage(prompt_tokens=3, completion_tokens=2_000)}, "RECEIPT_COUNT"),
            ({"usage": Usage(prompt_tokens=300, completion_tokens=1)}, "RECEIPT_COUNT"),
            ({"status": ReceiptStatus.FAILED}, "RECEIPT_INVALID"),
            ({"code": "INTERNAL"}, "RECEIPT_INVALID"),
            ({"request_commitment": bytes(32)}, "RECEIPT_DIGEST"),
            ({"response_commitment": bytes(32)}, "RECEIPT_DIGEST"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_receipt_of_something_else(self, server, sent, changes, code):
        """A signed receipt that differs in any field is refused by name, and leaves the answer incomplete."""
        with pytest.raises(ReceiptError) as refused:
            sent.receive(self._finished(server, sent, **changes))
        assert refused.value.code == code
        assert not sent.complete
        with pytest.raises(TruncatedError):
            sent.end_of_stream()

    def test_unchanged_receipt_completes(self, server, sent):
        """The same worker with nothing changed completes the answer: the refusals above are of the change."""
        sent.receive(self._finished(server, sent))
        assert sent.complete

    def test_counts_beyond_what_was_sent(self, server, sent):
        """A worker that counts more tokens than it sent, in its last record and its receipt alike, is refused."""
        served = opened(server, sent)
        sent.receive(served.send(Delta(text="a", tokens=1)))
        sent.receive(served.end(End(finish_reason="stop", usage=Usage(prompt_tokens=3, completion_tokens=2))))
        served.make_receipt(ts_us=1)
        with pytest.raises(ReceiptCountError):
            sent.receive(served.finish())

    def test_receipt_by_another_key(self, server, sent):
        """A receipt signed by a key outside the keyset is refused."""
        served = opened(server, sent)
        sent.receive(served.end(END))
        signed = served.make_receipt(ts_us=1)
        served._signed = SignedReceipt(receipt=signed.receipt, signature=bytes(64))
        with pytest.raises(SignatureError):
            sent.receive(served.finish())

    def test_final_chunk_before_the_end(self, server, sent):
        """A receipt without an end record does not complete an answer."""
        served = opened(server, sent)
        served.end(END)
        served.make_receipt(ts_us=1)
        served._sealer._counter = 0
        with pytest.raises(SealError, match="final chunk"):
            sent.receive(served.finish())

    def test_record_after_the_end(self, server, sent):
        """After the end record only the final chunk may come."""
        served = opened(server, sent)
        sent.receive(served.end(END))
        record = b'{"text":"more","tokens":1,"type":"delta"}'
        smuggled = served._sealer.seal(pad(record, PaddingMode.DEFAULT, Direction.SERVER_TO_CLIENT))
        with pytest.raises(SealError):
            sent.receive(smuggled)


def test_nothing_on_the_wire_shows_prompt_or_answer(server, sent):
    """The canaries appear in no envelope and in no chunk of either direction."""
    served = opened(server, sent)
    wire = [sent.envelope, *sent.chunks, served.worker_random]
    wire.append(served.send(Delta(text="canary-answer", tokens=1)))
    wire.append(served.end(END))
    receipt = served.make_receipt(ts_us=1)
    wire.extend((served.finish(), receipt.encode()))
    assert not any(b"canary" in part for part in wire)
    assert MODEL_DIGEST.hex().encode() in receipt.receipt
