"""A hostile control plane, worker or network against the SDK.

No prompt goes to what was not verified, and no cut answer passes for a whole one.
"""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest

from bulkhead.attestation import EvidenceKind, Tier, TrustPolicy
from bulkhead.client import AsyncBulkhead
from bulkhead.client.session import AsyncSession
from bulkhead.errors import (
    BulkheadError,
    CapacityError,
    DeadlineError,
    EvidenceBindingError,
    EvidenceError,
    EvidencePolicyError,
    InclusionError,
    InternalError,
    PolicyDeniedError,
    ProofError,
    ReceiptError,
    RecordError,
    SealError,
    SessionLimitError,
    SignatureError,
    StaleKeyError,
    TicketError,
    TruncatedError,
    UnknownModelError,
    WorkerLostError,
)
from bulkhead.protocol.payloads import Delta, End, Usage
from bulkhead.protocol.server_request import ServerRequest
from bulkhead.sealing import WorkerKeys
from bulkhead.v1 import inference_pb2, session_pb2
from tests.simulator.fake_platform import ANSWER, FakePlatform, running_platform
from tests.simulator.sealed_world import MODEL

SealedChunks = inference_pb2.SealedChunks
Grant = session_pb2.SessionGrant


def _flip(data: bytes, at: int = -1) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


def _other_certificate(grant: Grant) -> None:
    keys = WorkerKeys.generate(authority=grant.endpoint.authority, now_s=int(time.time()))
    grant.worker_certificate = ssl.PEM_cert_to_DER_cert(keys.tls_certificate.decode())


GRANT_CHANGES: dict[str, tuple[Callable[[Grant], None], type[BulkheadError]]] = {
    "another certificate": (_other_certificate, EvidenceBindingError),
    "no certificate": (lambda grant: grant.ClearField("worker_certificate"), EvidenceBindingError),
    "altered evidence": (lambda grant: setattr(grant, "evidence", _flip(grant.evidence, 40)), EvidenceError),
    "no evidence": (lambda grant: grant.ClearField("evidence"), EvidenceError),
    "another model digest": (lambda grant: setattr(grant, "model_digest", bytes(32)), EvidenceBindingError),
    "another policy digest": (lambda grant: setattr(grant, "policy_digest", bytes(32)), RecordError),
    "altered ticket": (lambda grant: setattr(grant, "ticket", grant.ticket[:-8] + "AAAAAAAA"), TicketError),
    "no ticket": (lambda grant: setattr(grant, "ticket", ""), TicketError),
    "ticket that is no JWT": (lambda grant: setattr(grant, "ticket", "a.b.c"), TicketError),
    "another ticket issuer": (lambda grant: setattr(grant, "ticket_issuer", bytes(32)), EvidencePolicyError),
    "another authority": (lambda grant: setattr(grant.endpoint, "authority", "evil.example"), TicketError),
    "another session id": (
        lambda grant: setattr(grant, "session_id", "sess_00000000000000000000000000"),
        RecordError,
    ),
    "no session id": (lambda grant: setattr(grant, "session_id", ""), EvidenceError),
    "altered audit record": (lambda grant: setattr(grant.decision, "leaf", grant.decision.leaf + b" "), InclusionError),
    "no proof": (lambda grant: grant.decision.ClearField("proof"), InclusionError),
    "another place in the log": (lambda grant: setattr(grant.decision, "index", 0), InclusionError),
    "unsigned checkpoint": (lambda grant: setattr(grant.decision, "checkpoint", "x\n1\nAA==\n"), ProofError),
    "no decision": (lambda grant: grant.ClearField("decision"), ProofError),
    "socket path as address": (lambda grant: setattr(grant.endpoint, "address", "unix:/tmp/x"), EvidenceError),
    "no endpoint": (lambda grant: grant.ClearField("endpoint"), EvidenceError),
    "everything empty": (lambda grant: grant.Clear(), BulkheadError),
}


@pytest.mark.parametrize("name", GRANT_CHANGES)
async def test_changed_grant_is_refused_before_the_worker_is_called(name: str) -> None:
    """A control plane that changes any part of a grant gets a typed refusal; the worker sees no call."""
    change, expected = GRANT_CHANGES[name]
    async with running_platform() as platform:
        platform.change_grant = change
        async with AsyncBulkhead(profile=platform.profile()) as client:
            with pytest.raises(expected):
                await client.open_session(model=MODEL)
        assert platform.worker_calls == 0


async def test_evidence_for_another_nonce_is_refused() -> None:
    """Evidence that answers an earlier open's nonce does not open a session: no replay of evidence."""
    async with running_platform() as platform, AsyncBulkhead(profile=platform.profile()) as client:
        kept: list[bytes] = []

        def replay(grant: Grant) -> None:
            kept.append(grant.evidence)
            grant.evidence = kept[0]

        platform.change_grant = replay
        await client.open_session(model=MODEL)
        with pytest.raises(EvidenceBindingError):
            await client.open_session(model=MODEL)


@pytest.mark.parametrize(
    ("trust", "tier"),
    [
        (TrustPolicy(accepted_kinds=frozenset({EvidenceKind.HARDWARE}), minimum_tier=Tier.GPU), Tier.GPU),
        (TrustPolicy(accepted_kinds=frozenset({EvidenceKind.OPERATOR}), minimum_tier=Tier.GPU), Tier.GPU),
        (None, Tier.MIG),
    ],
    ids=["kind not accepted", "operator's key not pinned", "weaker tier than asked for"],
)
async def test_trust_policy_is_the_tenants_own(trust: TrustPolicy | None, tier: Tier) -> None:
    """A worker that the tenant's trust policy or its own request excludes is refused, whatever was decided."""
    async with running_platform(tier=tier) as platform:
        profile = platform.profile() if trust is None else platform.profile(trust=trust)
        async with AsyncBulkhead(profile=profile) as client:
            with pytest.raises((EvidencePolicyError, RecordError)):
                await client.open_session(model=MODEL, tier="gpu")
        assert platform.worker_calls == 0


async def test_pinned_model_digest_is_held() -> None:
    """A model whose digest is not the pinned one is refused."""
    async with running_platform() as platform:
        profile = platform.profile(model_digests={MODEL: b"\x07" * 32})
        async with AsyncBulkhead(profile=profile) as client:
            with pytest.raises(EvidencePolicyError, match="digest"):
                await client.open_session(model=MODEL)


async def test_renewal_may_not_weaken() -> None:
    """A renewal whose worker is of a weaker tier is refused; the verified grant stays in use."""
    async with (
        running_platform(tier=Tier.GPU) as platform,
        AsyncBulkhead(profile=platform.profile()) as client,
        client.open_session(model=MODEL) as session,
    ):
        platform.world.tier = Tier.MIG
        with pytest.raises((EvidencePolicyError, RecordError)):
            await session.renew()
        assert session.tier is Tier.GPU
        platform.world.tier = Tier.GPU
        assert (await session.generate_text("hi")).text == "".join(ANSWER)


async def test_worker_with_another_tls_key_gets_no_prompt() -> None:
    """Behind the verified address listens somebody else's certificate: no connection, a typed error, no call seen."""
    async with (
        running_platform() as honest,
        running_platform() as other,
        AsyncBulkhead(profile=honest.profile()) as client,
    ):
        honest.worker_address = other.worker_address
        async with client.open_session(model=MODEL) as session:
            with pytest.raises(WorkerLostError):
                await session.generate_text("secret")
        assert other.worker_calls == 0


@pytest.mark.parametrize(
    "refusal",
    [
        PolicyDeniedError("denied", details={"reasons": '[{"code":"X","policy":"p","message":"m"}]'}),
        SessionLimitError("limit"),
        CapacityError("full"),
        UnknownModelError("no such model"),
    ],
    ids=lambda refusal: refusal.code,
)
async def test_refusals_keep_class_message_and_details(refusal: BulkheadError) -> None:
    """Each refusal of the control plane arrives as its own class with what it says."""

    async def refuse(request: session_pb2.OpenSessionRequest) -> None:
        raise refusal

    async with running_platform() as platform, AsyncBulkhead(profile=platform.profile()) as client:
        platform.before_open = refuse
        with pytest.raises(type(refusal)) as caught:
            await client.open_session(model=MODEL)
    assert (caught.value.message, dict(caught.value.details)) == (refusal.message, dict(refusal.details))


async def test_hanging_control_plane_meets_the_deadline() -> None:
    """An open that is never answered ends with DeadlineError at the caller's limit."""

    async def hang(request: session_pb2.OpenSessionRequest) -> None:
        await asyncio.sleep(60)

    async with running_platform() as platform, AsyncBulkhead(profile=platform.profile()) as client:
        platform.before_open = hang
        async with asyncio.timeout(5):
            with pytest.raises(DeadlineError):
                await client.open_session(model=MODEL, timeout_s=0.5)


async def _first(request: ServerRequest) -> SealedChunks:
    return SealedChunks(worker_nonce=request.worker_random, chunk=[request.send(Delta(text="The", tokens=1))])


def _ending(request: ServerRequest) -> list[bytes]:
    end = request.end(End(finish_reason="stop", usage=Usage(prompt_tokens=5, completion_tokens=1)))
    request.make_receipt(ts_us=1)
    return [end, request.finish()]


async def _quiet_end(platform: FakePlatform, request: ServerRequest) -> AsyncIterator[SealedChunks]:
    yield await _first(request)


async def _no_message(platform: FakePlatform, request: ServerRequest) -> AsyncIterator[SealedChunks]:
    for message in ():
        yield message


async def _end_without_receipt(platform: FakePlatform, request: ServerRequest) -> AsyncIterator[SealedChunks]:
    yield await _first(request)
    yield SealedChunks(chunk=_ending(request)[:1])


async def _receipt_without_end(platform: FakePlatform, request: ServerRequest) -> AsyncIterator[SealedChunks]:
    yield await _first(request)
    yield SealedChunks(chunk=_ending(request)[1:])


async def _altered(platform: FakePlatform, request: ServerRequest) -> AsyncIterator[SealedChunks]:
    yield await _first(request)
    yield SealedChunks(chunk=[_flip(request.send(Delta(text="x", tokens=1)), 9)])


async def _swapped(platform: FakePlatform, request: ServerRequest) -> AsyncIterator[SealedChunks]:
    yield await _first(request)
    second, third = (request.send(Delta(text=text, tokens=1)) for text in "ab")
    yield SealedChunks(chunk=[third, second])


async def _repeated(platform: FakePlatform, request: ServerRequest) -> AsyncIterator[SealedChunks]:
    first = await _first(request)
    yield first
    yield SealedChunks(chunk=first.chunk)


async def _left_out(platform: FakePlatform, request: ServerRequest) -> AsyncIterator[SealedChunks]:
    yield await _first(request)
    request.send(Delta(text="not ", tokens=1))
    yield SealedChunks(chunk=_ending(request))


async def _garbage(platform: FakePlatform, request: ServerRequest) -> AsyncIterator[SealedChunks]:
    yield SealedChunks(worker_nonce=bytes(32), chunk=[b"\x00" * 300])


async def _short_nonce(platform: FakePlatform, request: ServerRequest) -> AsyncIterator[SealedChunks]:
    yield SealedChunks(worker_nonce=bytes(31), chunk=[])


async def _second_nonce(platform: FakePlatform, request: ServerRequest) -> AsyncIterator[SealedChunks]:
    yield await _first(request)
    yield SealedChunks(worker_nonce=bytes(32))


async def _no_nonce(platform: FakePlatform, request: ServerRequest) -> AsyncIterator[SealedChunks]:
    yield SealedChunks(chunk=[request.send(Delta(text="x", tokens=1))])


async def _reflected(platform: FakePlatform, request: ServerRequest) -> AsyncIterator[SealedChunks]:
    yield SealedChunks(worker_nonce=request.worker_random, chunk=[b"\x00" + request._transcript_hash * 9])


async def _unavailable(platform: FakePlatform, request: ServerRequest) -> AsyncIterator[SealedChunks]:
    yield await _first(request)
    raise WorkerLostError("gone")


async def _crash(platform: FakePlatform, request: ServerRequest) -> AsyncIterator[SealedChunks]:
    yield await _first(request)
    raise RuntimeError("defect")


async def _stale_hint_late(platform: FakePlatform, request: ServerRequest) -> AsyncIterator[SealedChunks]:
    yield await _first(request)
    raise StaleKeyError("resend please")


async def _foreign_receipt(platform: FakePlatform, request: ServerRequest) -> AsyncIterator[SealedChunks]:
    yield await _first(request)
    request._keys = WorkerKeys.generate(authority="x.example", now_s=1)
    yield SealedChunks(chunk=_ending(request))


async def _other_counts(platform: FakePlatform, request: ServerRequest) -> AsyncIterator[SealedChunks]:
    yield await _first(request)
    end = request.end(End(finish_reason="stop", usage=Usage(prompt_tokens=5, completion_tokens=1)))
    request._usage = Usage(prompt_tokens=500, completion_tokens=100)
    request.make_receipt(ts_us=1)
    yield SealedChunks(chunk=[end, request.finish()])


CONDUCT = {
    "ends quietly after a delta": (_quiet_end, TruncatedError),
    "ends quietly at once": (_no_message, TruncatedError),
    "keeps the receipt": (_end_without_receipt, TruncatedError),
    "skips the end": (_receipt_without_end, SealError),
    "alters a chunk": (_altered, SealError),
    "swaps chunks": (_swapped, SealError),
    "repeats a chunk": (_repeated, SealError),
    "leaves a chunk out": (_left_out, SealError),
    "sends garbage": (_garbage, SealError),
    "sends a short nonce": (_short_nonce, SealError),
    "opens the response twice": (_second_nonce, SealError),
    "sends no nonce": (_no_nonce, SealError),
    "reflects": (_reflected, SealError),
    "goes away": (_unavailable, WorkerLostError),
    "crashes": (_crash, InternalError),
    "asks to resend after answering": (_stale_hint_late, StaleKeyError),
    "signs with another key": (_foreign_receipt, SignatureError),
    "states other token counts": (_other_counts, ReceiptError),
}


@pytest.mark.parametrize("name", CONDUCT)
async def test_answer_that_is_not_whole_raises(name: str) -> None:
    """However a worker or the way to it misbehaves, the answer ends with a typed error, once, and has no receipt."""
    conduct, expected = CONDUCT[name]
    async with (
        running_platform() as platform,
        AsyncBulkhead(profile=platform.profile()) as client,
        client.open_session(model=MODEL) as session,
    ):
        platform.respond = conduct
        generation = session.generate("hi")
        with pytest.raises(expected):
            await generation.completion()
        with pytest.raises(BulkheadError):
            _ = generation.receipt
        assert platform.worker_calls == 1


async def test_error_under_the_seal_is_authentic_and_has_a_receipt() -> None:
    """A worker's own error arrives as its class with a verified receipt of the failed request."""

    async def fail(platform: FakePlatform, request: ServerRequest) -> AsyncIterator[SealedChunks]:
        chunk = request.fail(CapacityError("no block is free"))
        request.make_receipt(ts_us=1)
        yield SealedChunks(worker_nonce=request.worker_random, chunk=[chunk, request.finish()])

    async with (
        running_platform() as platform,
        AsyncBulkhead(profile=platform.profile()) as client,
        client.open_session(model=MODEL) as session,
    ):
        platform.respond = fail
        generation = session.generate("hi")
        with pytest.raises(CapacityError, match="no block is free"):
            await generation.completion()
        assert generation.receipt.code == "NO_CAPACITY"


async def test_sealed_error_beats_the_status_outside() -> None:
    """When the stream breaks after a sealed error, the sealed error is what the caller sees."""

    async def fail(platform: FakePlatform, request: ServerRequest) -> AsyncIterator[SealedChunks]:
        yield SealedChunks(worker_nonce=request.worker_random, chunk=[request.fail(CapacityError("full"))])
        raise WorkerLostError("gone")

    async with (
        running_platform() as platform,
        AsyncBulkhead(profile=platform.profile()) as client,
        client.open_session(model=MODEL) as session,
    ):
        platform.respond = fail
        with pytest.raises(CapacityError):
            await session.generate_text("hi")


async def test_status_after_a_whole_answer_changes_nothing() -> None:
    """Once the receipt was verified the answer is whole: a failing or hanging stream behind it is not waited for."""

    async def honest_then_hang(platform: FakePlatform, request: ServerRequest) -> AsyncIterator[SealedChunks]:
        yield await _first(request)
        yield SealedChunks(chunk=_ending(request))
        await asyncio.sleep(60)

    async with (
        running_platform() as platform,
        AsyncBulkhead(profile=platform.profile()) as client,
        client.open_session(model=MODEL) as session,
    ):
        platform.respond = honest_then_hang
        async with asyncio.timeout(5):
            assert (await session.generate_text("hi")).text == "The"


async def test_silent_worker_meets_the_stall_limit() -> None:
    """A worker that stops in the middle raises DeadlineError after the stall limit, not at the ticket's end."""

    async def stall(platform: FakePlatform, request: ServerRequest) -> AsyncIterator[SealedChunks]:
        yield await _first(request)
        await asyncio.sleep(60)

    async with (
        running_platform() as platform,
        AsyncBulkhead(profile=platform.profile()) as client,
        client.open_session(model=MODEL) as opened,
    ):
        platform.respond = stall
        session = AsyncSession(keeper=opened._keeper, control=opened._control, stall_s=0.5)
        async with asyncio.timeout(5):
            with pytest.raises(DeadlineError):
                await session.generate_text("hi")


async def test_killed_worker_is_a_typed_loss() -> None:
    """A worker whose process dies in mid-stream gives WorkerLostError, after the deltas that came."""
    async with (
        running_platform() as platform,
        AsyncBulkhead(profile=platform.profile()) as client,
        client.open_session(model=MODEL) as session,
    ):
        platform.pace_s = 0.3
        generation = session.generate("hi")
        assert (await anext(generation)).text == ANSWER[0]
        for server in platform.workers:
            await server.stop(None)
        with pytest.raises(WorkerLostError):
            await generation.completion()


async def test_receipt_of_another_request_is_refused() -> None:
    """A worker that hands out another request's receipt is caught."""
    async with (
        running_platform() as platform,
        AsyncBulkhead(profile=platform.profile()) as client,
        client.open_session(model=MODEL) as session,
    ):
        first = await session.generate_text("one")
        second = await session.generate_text("two")
        kept = platform.receipts[first.request_id]
        platform.receipts[second.request_id] = kept
        with pytest.raises(ReceiptError):
            await session.fetch_receipt(second.request_id)
        platform.receipts[second.request_id] = replace(kept, signature=bytes(64))
        with pytest.raises(SignatureError):
            await session.fetch_receipt(second.request_id)
