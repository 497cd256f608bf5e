"""Fuzz targets of ``bulkhead.sealing`` and ``bulkhead.protocol``: every reader of a sealed session's bytes.

What is parsed has one encoding, so each target also encodes it again and compares. Tickets are signed here whatever
they say, so that the fuzzer gets behind the signature.
"""

import base64
from collections.abc import Callable
from contextlib import suppress

from bulkhead.encoding import lp
from bulkhead.errors import InvalidRequestError, SealError
from bulkhead.protocol.certificates import MAX_CERTIFICATE_BYTES, verify_certificate
from bulkhead.protocol.envelope import MAX_ENVELOPE_BYTES, Envelope
from bulkhead.protocol.payloads import (
    encode_record,
    parse_embed_request,
    parse_generate_request,
    parse_record,
)
from bulkhead.protocol.receipts import MAX_RECEIPT_BYTES, SignedReceipt, read_receipt
from bulkhead.protocol.saved import SavedReceipt, verify_saved
from bulkhead.protocol.tickets import MAX_TICKET_BYTES, TicketVerifier
from bulkhead.sealing import ChunkOpener, ChunkSealer, Direction, Keyset, PaddingMode
from bulkhead.sealing.keyset import MAX_KEYSET_BYTES
from bulkhead.sealing.padding import pad, unpad
from bulkhead.transparency.checkpoint import Checkpoint, open_checkpoint
from bulkhead.transparency.note import split_note
from tests.fuzz.registry import FuzzTarget

_KIB = 1024
_MATERIAL = bytes(44)
_MODES = tuple((mode, direction) for mode in PaddingMode for direction in Direction)


def _same(made: bytes, data: bytes) -> None:
    if made != data:
        raise AssertionError("what was parsed encodes to other bytes")


def _envelope(data: bytes) -> None:
    _same(Envelope.parse(data).encode(), data)


def _exchange() -> tuple[list[bytes], list[bytes], bytes, str]:
    """Return envelopes, response chunks, a signed receipt and a ticket of an honest exchange."""
    from bulkhead.protocol.context import Method
    from bulkhead.protocol.payloads import Delta, End, Usage
    from tests.simulator.sealed_world import NOW_S, World

    world = World(seed=77, rooted=True)
    grant = world.grant()
    client = world.client(grant)
    envelopes = [client.begin(method, b"{}", now_s=NOW_S).envelope for method in Method]
    sent = client.begin(Method.GENERATE, b"{}", now_s=NOW_S)
    served = world.server.open(sent.envelope, now_s=NOW_S)
    for chunk in sent.chunks:
        served.receive(chunk)
    chunks = [served.send(Delta(text="text", tokens=1)), served.end(End(finish_reason="stop", usage=Usage()))]
    return envelopes, chunks, served.make_receipt(ts_us=1).encode(), grant.ticket


def _chunk(data: bytes) -> None:
    """Open a stream of chunks, each behind its u32 length, under a fixed key; what opens is what was sealed."""
    opener = ChunkOpener(_MATERIAL, Direction.SERVER_TO_CLIENT)
    sealer = ChunkSealer(_MATERIAL, Direction.SERVER_TO_CLIENT)
    while data:
        size = int.from_bytes(data[:4], "big")
        chunk, data = data[4 : 4 + size], data[4 + size :]
        plaintext, final = opener.open(chunk)
        _same(sealer.seal(plaintext, final=final), chunk)


def _streams() -> list[bytes]:
    sealer = ChunkSealer(_MATERIAL, Direction.SERVER_TO_CLIENT)
    chunks = [sealer.seal(b"one"), sealer.seal(b""), sealer.seal(b"three", final=True)]
    return [b"".join(len(chunk).to_bytes(4, "big") + chunk for chunk in chunks[:count]) for count in (1, 3)]


def _plaintext(data: bytes) -> None:
    """Unpad under the mode and direction that the first byte chooses."""
    if not data:
        raise SealError("no mode")
    mode, direction = _MODES[data[0] % len(_MODES)]
    _same(pad(unpad(data[1:], mode, direction), mode, direction), data[1:])


def _plaintexts() -> list[bytes]:
    return [bytes([place]) + pad(b"record", *_MODES[place]) for place in (0, 1, 2, 5)]


def _record(data: bytes) -> None:
    _same(encode_record(parse_record(data)), data)


def _records() -> list[bytes]:
    from bulkhead.errors import QueueFullError
    from bulkhead.protocol.payloads import Delta, EmbedResult, End, Failure, Usage

    records = (
        Delta(text="a \u00e9\n\u20ac\U0001f600", tokens=3),
        EmbedResult(index=1, vector=(0.5, -1.0)),
        End(finish_reason="length", usage=Usage(prompt_tokens=4, completion_tokens=5)),
        Failure.of(QueueFullError("full")),
    )
    return [encode_record(record) for record in records]


def _payload(data: bytes) -> None:
    """Read a request's payload as either method would."""
    with suppress(InvalidRequestError):
        parse_embed_request(data)
    parse_generate_request(data)


def _payloads() -> list[bytes]:
    from bulkhead.protocol.payloads import GenerateRequest, Message, encode_generate_request

    messages = (Message(role="system", content="Be brief."), Message(role="user", content="Why?"))
    full = GenerateRequest(messages=messages, max_tokens=8, temperature=0.7, top_p=0.9, top_k=5, seed=1, stop=("x",))
    return [encode_generate_request(full), encode_generate_request(GenerateRequest(messages=messages[1:]))]


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _ticket() -> Callable[[bytes], None]:
    """Return a reader of ``header NUL claims`` that signs both and hands the token to a verifier."""
    from tests.simulator.sealed_world import NOW_S, World

    world = World(seed=77)
    verifier = TicketVerifier(issuer_keys=[world.issuer.public_key])
    key = world.issuer._key

    def read(data: bytes) -> None:
        header, _, claims = data.partition(b"\0")
        signed = f"{_b64(header)}.{_b64(claims)}"
        token = f"{signed}.{_b64(key.sign(signed.encode()))}"
        verifier.verify(token, now_s=NOW_S, audience=world.authority)

    return read


def _tickets() -> list[bytes]:
    header, claims, _ = _exchange()[3].split(".")
    return [b"\0".join(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in (header, claims))]


def _certificate() -> Callable[[bytes], None]:
    """Return a reader of what a root might sign, and of what only looks signed."""
    from tests.simulator.sealed_world import NOW_S, World

    world = World(seed=77, rooted=True)
    fingerprint = world.tenant_root or b""

    def read(data: bytes) -> None:
        if not data.startswith(b'{"certificate"'):
            signature = _b64(world.root.sign(b"bulkhead/v1 session key" + lp(data)))
            data = b'{"certificate":' + data + b',"signature":"' + signature.encode() + b'"}'
        found = verify_certificate(data, root_fingerprint=fingerprint, tenant=world.tenant, cnf=world.cnf, now_s=NOW_S)
        if found.encoded not in data:
            raise AssertionError("what was parsed encodes to other bytes")

    return read


def _certificates() -> list[bytes]:
    from bulkhead.protocol.certificates import read_certificate
    from tests.simulator.sealed_world import World

    whole = World(seed=77, rooted=True).certificate()
    return [read_certificate(whole).encoded, whole]


def _receipt(data: bytes) -> None:
    signed = SignedReceipt.parse(data)
    _same(signed.encode(), data)
    read_receipt(signed.receipt)


def _saved() -> Callable[[bytes], None]:
    """Return a reader of saved receipts that also verifies them, with the pins of whoever saved the seeds."""
    from tests.simulator.sealed_world import World

    world = World(seed=77)
    anchors = world.anchors()

    def read(data: bytes) -> None:
        saved = SavedReceipt.parse(data)
        _same(saved.encode(), data)
        verify_saved(saved, tenant=world.tenant, anchors=anchors)

    return read


def _saved_receipts() -> list[bytes]:
    from bulkhead.attestation.collateral import CollateralEntry, CollateralKind
    from tests.simulator.saved_receipts import logged, saved_answer
    from tests.simulator.sealed_world import NOW_S, World

    world = World(seed=77)
    entry = CollateralEntry(
        kind=CollateralKind.AMD_CRL, name="genoa", data=b"crl", chain=b"", fetched_s=NOW_S, source="https://kds"
    )
    saved = saved_answer(world, collateral=(entry,))
    return [saved.encode(), saved.with_log(logged(world, saved)).encode()]


def _keyset(data: bytes) -> None:
    _same(Keyset.parse(data).encoded, data)


def _keysets() -> list[bytes]:
    from tests.simulator.sealed_world import World

    return [World(seed=77).keys.keyset.encoded]


def _checkpoint() -> Callable[[bytes], None]:
    """Return a reader of signed notes, also without their signatures."""
    from tests.simulator.sealed_world import ORIGIN, World

    vkey = World(seed=77).log.vkey

    def read(data: bytes) -> None:
        note = data.decode("latin-1" if data[:1] >= b"\x80" else "utf-8", errors="replace")
        text, _ = split_note(note)
        if Checkpoint.parse(text).text() != text:
            raise AssertionError("a checkpoint has two texts")
        open_checkpoint(note, vkey=vkey, origin=ORIGIN)

    return read


def _checkpoints() -> list[bytes]:
    from tests.simulator.sealed_world import World

    world = World(seed=77)
    return [world.audit_receipt(world.decision_leaf()).checkpoint.encode()]


TARGETS: tuple[FuzzTarget, ...] = (
    FuzzTarget(name="envelope", parse=_envelope, seeds=lambda: _exchange()[0], max_bytes=MAX_ENVELOPE_BYTES + 64),
    FuzzTarget(name="chunk-stream", parse=_chunk, seeds=_streams, max_bytes=4 * _KIB),
    FuzzTarget(name="chunk-plaintext", parse=_plaintext, seeds=_plaintexts, max_bytes=17 * _KIB),
    FuzzTarget(name="response-record", parse=_record, seeds=_records, max_bytes=4 * _KIB),
    FuzzTarget(name="request-payload", parse=_payload, seeds=_payloads, max_bytes=4 * _KIB),
    FuzzTarget(name="ticket", parse=_ticket(), seeds=_tickets, max_bytes=MAX_TICKET_BYTES),
    FuzzTarget(name="session-certificate", parse=_certificate(), seeds=_certificates, max_bytes=MAX_CERTIFICATE_BYTES),
    FuzzTarget(name="receipt", parse=_receipt, seeds=lambda: [_exchange()[2]], max_bytes=MAX_RECEIPT_BYTES),
    FuzzTarget(name="saved-receipt", parse=_saved(), seeds=_saved_receipts, max_bytes=32 * _KIB),
    FuzzTarget(name="keyset", parse=_keyset, seeds=_keysets, max_bytes=MAX_KEYSET_BYTES + 64),
    FuzzTarget(name="checkpoint", parse=_checkpoint(), seeds=_checkpoints, max_bytes=4 * _KIB),
)
