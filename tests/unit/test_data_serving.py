"""A worker's requests without transport: sealed outcomes, receipts before final chunks, leases, limits, ends."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from bulkhead.errors import (
    AuditLeaseError,
    BulkheadError,
    ContextLengthError,
    MalformedRequestError,
    NotFoundError,
    QueueFullError,
    ReplayError,
    SealError,
    ShuttingDownError,
    SignatureError,
    TicketError,
    TicketRevokedError,
)
from bulkhead.ids import REQUEST, new_id
from bulkhead.protocol.client import ClientEvent, ClientRequest, Complete
from bulkhead.protocol.context import Method
from bulkhead.protocol.payloads import (
    MAX_TRACE_BYTES,
    Delta,
    EmbedRequest,
    End,
    Failure,
    GenerateRequest,
    Message,
    Trace,
    Usage,
    encode_embed_request,
    encode_generate_request,
)
from bulkhead.protocol.receipts import ReceiptStatus, read_receipt
from bulkhead.protocol.server import SealedServer
from bulkhead.protocol.tickets import TicketLimits, TicketVerifier
from bulkhead.sealing import PaddingMode
from bulkhead.transparency.totals import SessionTotal
from data_plane.inference.port import EngineState, TokenDelta
from data_plane.inference.sampling_params import SamplingParams
from data_plane.session import exchange as exchange_module
from data_plane.session import receipts as receipts_module
from data_plane.session.lease import WorkerLease
from data_plane.session.messages import (
    FromWorker,
    LeaseGrant,
    NamedEvidence,
    ReceiptDurable,
    ReceiptReady,
    ToWorker,
    WorkerRefused,
)
from data_plane.session.receipts import ReceiptDesk
from data_plane.session.refusals import RefusalReporter
from data_plane.session.response import SealedPart
from data_plane.session.serving import RequestServer
from tests.simulator.scripted_engine import ScriptedEngine
from tests.simulator.sealed_world import World


class AgentEnd:
    """The agent at the other end of the socket pair: makes receipts durable, or not, or never answers."""

    def __init__(self) -> None:
        self.durable: bool | None = True
        self.sent: list[FromWorker] = []
        self.desk: ReceiptDesk | None = None

    async def send(self, message: FromWorker) -> None:
        """Take a message."""
        self.sent.append(message)
        if isinstance(message, ReceiptReady) and self.durable is not None and self.desk is not None:
            answer = ReceiptDurable(receipt_number=message.receipt_number, durable=self.durable)
            asyncio.get_running_loop().call_soon(self.desk.settle, answer)

    async def receive(self) -> ToWorker | None:
        """Say nothing."""
        return None

    def receipts(self) -> list[ReceiptReady]:
        """Return the receipts announced."""
        return [message for message in self.sent if isinstance(message, ReceiptReady)]

    def refusals(self) -> list[WorkerRefused]:
        """Return the refusals reported."""
        return [message for message in self.sent if isinstance(message, WorkerRefused)]


@dataclass
class Bench:
    """A request server and everything around it."""

    world: World
    engine: ScriptedEngine
    agent: AgentEnd
    lease: WorkerLease
    server: RequestServer

    def grant(self, *, seconds: float = 30, revoked: frozenset[str] = frozenset(), waiting: int = 0) -> None:
        """Renew the lease."""
        self.lease.grant(
            LeaseGrant(
                valid_until_ms=int((self.world.now_s + seconds) * 1000),
                revoked_sessions=revoked,
                unacknowledged_receipts=waiting,
            )
        )

    def begin(self, **options: Any) -> ClientRequest:
        """Seal a request."""
        request = GenerateRequest(messages=(Message(role="user", content="hi"),), **options)
        return self.client.begin(Method.GENERATE, encode_generate_request(request), now_s=self.world.now_s)

    def serve(self, request: ClientRequest, method: Method = Method.GENERATE) -> Any:
        """Hand a request to the server."""
        return self.server.serve(method, request.envelope, request.chunks)

    async def events(self, request: ClientRequest, parts: AsyncIterator[SealedPart] | None = None) -> list[ClientEvent]:
        """Open everything that comes back."""
        found: list[ClientEvent] = []
        async for part in parts or self.serve(request):
            found.extend(opened(request, part))
        return found


def opened(request: ClientRequest, part: SealedPart) -> list[ClientEvent]:
    if part.worker_random:
        request.accept(part.worker_random)
    return [request.receive(chunk) for chunk in part.chunks]


def make(
    *script: Any,
    in_flight: int = 8,
    limits: TicketLimits | None = None,
    padding: PaddingMode = PaddingMode.DEFAULT,
) -> Bench:
    world = World(seed=3, padding=padding)
    agent = AgentEnd()
    engine = ScriptedEngine(*(script or ("a", "b")))
    lease = WorkerLease(wall_s=lambda: world.now_s, monotonic_s=lambda: 0.0)
    desk = agent.desk = ReceiptDesk(link=agent, monotonic_s=lambda: 0.0)
    tickets = TicketVerifier(issuer_keys=[world.issuer.public_key])
    server = RequestServer(
        sealed=world.server,
        engine=engine,
        lease=lease,
        desk=desk,
        refusals=RefusalReporter(link=agent, tickets=tickets, monotonic_s=lambda: 0.0),
        max_in_flight=in_flight,
        max_output_tokens=0,
        wall_s=lambda: world.now_s,
    )
    bench = Bench(world, engine, agent, lease, server)
    bench.client = world.client(world.grant(**({"limits": limits} if limits else {})))  # type: ignore[attr-defined]
    bench.grant()
    return bench


async def test_an_answer_ends_with_a_receipt_that_was_made_durable_first() -> None:
    """Deltas, end and receipt arrive; the receipt was announced with its digest and counts before the final chunk."""
    bench = make("Par", "is")
    bench.agent.durable = None
    request = bench.begin()
    parts = bench.serve(request)
    found = opened(request, await anext(parts))
    while not bench.agent.receipts():
        waiting = asyncio.ensure_future(anext(parts))
        await asyncio.sleep(0.01)
        if waiting.done():
            found += opened(request, waiting.result())
    assert not request.complete
    announced = bench.agent.receipts()[0]
    assert bench.agent.desk is not None
    bench.agent.desk.settle(ReceiptDurable(receipt_number=announced.receipt_number, durable=True))
    found += opened(request, await waiting)
    assert "".join(event.text for event in found if isinstance(event, Delta)) == "Paris"
    end, complete = found[-2:]
    assert isinstance(end, End)
    assert (end.usage.prompt_tokens, end.usage.completion_tokens) == (5, 2)
    assert isinstance(complete, Complete)
    assert announced.receipt_digest == complete.signed.digest
    assert (announced.session_id, announced.status) == (bench.world.session, "ok")
    with pytest.raises(StopAsyncIteration):
        await anext(parts)


async def test_without_a_durable_receipt_there_is_no_final_chunk() -> None:
    """When the spool does not take the receipt the call fails and the answer never looks whole."""
    bench = make("secret")
    bench.agent.durable = False
    request = bench.begin()
    with pytest.raises(AuditLeaseError):
        await bench.events(request)
    assert not request.complete
    with pytest.raises(BulkheadError):
        request.end_of_stream()


async def test_an_agent_that_does_not_answer_does_not_hang_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the spool is bounded."""
    monkeypatch.setattr(receipts_module, "DURABLE_TIMEOUT_S", 0.05)
    bench = make("x")
    bench.agent.durable = None
    with pytest.raises(AuditLeaseError):
        await bench.events(bench.begin())


async def test_tokens_are_joined_while_the_reader_is_busy() -> None:
    """What piles up while a part is being written leaves as one chunk."""
    gate = asyncio.Event()
    bench = make("a", gate, *"bcdefgh", asyncio.Event())
    request = bench.begin()
    parts = bench.serve(request)
    assert opened(request, await anext(parts)) == [Delta(text="a", tokens=1)]
    gate.set()
    await asyncio.sleep(0.02)
    assert opened(request, await anext(parts)) == [Delta(text="bcdefgh", tokens=7)]
    bench.server.end_all(ShuttingDownError("over"))
    await bench.events(request, parts)
    assert request.complete


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (ContextLengthError("too long"), "CONTEXT_LENGTH"),
        (QueueFullError("busy"), "QUEUE_FULL"),
        (ValueError("the prompt was: top secret"), "INTERNAL"),
    ],
)
async def test_failures_are_sealed_and_receipted(raised: Exception, code: str) -> None:
    """Whatever fails after opening is a sealed record with our code; a defect's text stays inside the worker."""
    bench = make("a", raised)
    found = await bench.events(bench.begin())
    failure = next(event for event in found if isinstance(event, Failure))
    assert failure.code == code
    assert "secret" not in failure.message
    assert isinstance(found[-1], Complete)
    assert found[-1].receipt.status is ReceiptStatus.FAILED
    assert bench.agent.receipts()[0].status == "failed"


async def test_a_failure_costs_as_much_as_a_success_on_the_wire() -> None:
    """A sealed failure has the size of a sealed delta."""
    fine, broken = make("a"), make(ContextLengthError("no"))
    sizes = []
    for bench in (fine, broken):
        parts = bench.serve(bench.begin())
        sizes.append(len((await anext(parts)).chunks[0]))
        await parts.aclose()
    assert sizes[0] == sizes[1]


async def test_priority_time_and_profile_reach_the_engine() -> None:
    """What a sealed request says of its rank, its time and a profile is what the engine is asked for."""
    bench = make()
    await bench.events(bench.begin(priority=-7, timeout_s=2.5, profile=True))
    await bench.events(bench.begin())
    asked, plain = bench.engine.requests
    assert (asked.priority, asked.profile) == (-7, True)
    assert asked.timeout_s is not None
    assert 0 < asked.timeout_s <= 2.5  # what counting its prompt took is gone
    assert (plain.priority, plain.timeout_s, plain.profile) == (0, None, False)


async def test_only_requests_that_were_answered_count_as_answered() -> None:
    """A failed, refused or empty request does not count towards what lets metrics out; one with a token does."""
    bench = make("a")
    await bench.events(bench.begin())
    assert bench.server.answered == 1
    bench.engine.script = (ContextLengthError("no"),)
    await bench.events(bench.begin())
    bench.engine.script = ()
    await bench.events(bench.begin())
    assert bench.server.answered == 1


async def test_a_trace_leaves_in_sealed_pieces() -> None:
    """A trace longer than a record comes whole, before the end, and counts no tokens."""
    trace = secrets.token_bytes(3 * MAX_TRACE_BYTES // 2)
    bench = make("a", TokenDelta(text="b", token_ids=(2,), trace=trace), "c")
    found = await bench.events(bench.begin(profile=True))
    assert b"".join(event.data for event in found if isinstance(event, Trace)) == trace
    assert "".join(event.text for event in found if isinstance(event, Delta)) == "abc"
    assert isinstance(found[-1], Complete)
    assert found[-1].receipt.usage.completion_tokens == 3


async def test_a_profile_does_not_fit_strict_padding() -> None:
    """Where every message has one size nothing that varies with the request is sent: refused before any work."""
    bench = make(padding=PaddingMode.STRICT)
    found = await bench.events(bench.begin(profile=True))
    assert [event.code for event in found if isinstance(event, Failure)] == ["INVALID_REQUEST"]
    assert bench.engine.requests == []


async def test_a_payload_that_is_no_request_is_refused_under_the_seal() -> None:
    """An authentic request with nonsense inside gets a sealed INVALID_REQUEST."""
    bench = make()
    request = bench.client.begin(Method.GENERATE, b'{"messages":[]}', now_s=bench.world.now_s)
    found = await bench.events(request)
    assert [event.code for event in found if isinstance(event, Failure)] == ["INVALID_REQUEST"]
    assert bench.engine.requests == []


async def test_embedding_on_a_decoder_is_unsupported_under_the_seal() -> None:
    """A model that is no encoder says so, typed and sealed."""
    bench = make()
    payload = encode_embed_request(EmbedRequest(inputs=("x",)))
    request = bench.client.begin(Method.EMBED, payload, now_s=bench.world.now_s)
    found = await bench.events(request, bench.serve(request, Method.EMBED))
    assert [event.code for event in found if isinstance(event, Failure)] == ["UNSUPPORTED"]


async def test_the_sealed_method_counts() -> None:
    """A request sealed for one method and sent to the other is refused under the seal."""
    bench = make()
    request = bench.begin()
    found = await bench.events(request, bench.serve(request, Method.EMBED))
    assert [event.code for event in found if isinstance(event, Failure)] == ["INVALID_REQUEST"]


async def test_limits_of_ticket_and_context_reach_the_engine() -> None:
    """The answer's limit is the least of what is asked, the ticket's limit and, where nothing is asked, the context."""
    bench = make(limits=TicketLimits(max_tokens=50, max_concurrent_requests=4))
    for options in ({}, {"max_tokens": 20}, {"max_tokens": 70}):
        await bench.events(bench.begin(**options))
    bench.engine.context_tokens = 30
    await bench.events(bench.begin())
    assert [request.sampling.max_tokens for request in bench.engine.requests] == [50, 20, 50, 25]


async def test_no_token_at_all_is_within_every_limit() -> None:
    """A request for what the prompt tells alone passes a ticket of fewer tokens than answers; echo takes logprobs."""
    bench = make(limits=TicketLimits(max_tokens=1, max_concurrent_requests=4))
    await bench.events(bench.begin(max_tokens=0, n=2, echo=True, logprobs=3))
    (request,) = bench.engine.requests
    assert (request.sampling.max_tokens, request.sampling.prompt_logprobs) == (0, 3)


async def test_a_models_default_limit_is_no_limit_that_was_asked_for() -> None:
    """generation_config.json's max_new_tokens yields to the context and the ticket; a request's own may be refused."""
    bench = make(limits=TicketLimits(max_tokens=50, max_concurrent_requests=4))
    for default, context in ((20, 100), (70, 100), (2048, 100), (2048, 30)):
        bench.engine.defaults, bench.engine.context_tokens = SamplingParams(max_tokens=default), context
        await bench.events(bench.begin())
    await bench.events(bench.begin(max_tokens=45))
    assert [request.sampling.max_tokens for request in bench.engine.requests] == [20, 50, 50, 25, 45]


async def test_a_prompt_is_counted_as_it_is_to_run() -> None:
    """A prompt cut to what its answer leaves is cut for the limit that holds: receipts say what was computed."""
    bench = make(limits=TicketLimits(max_tokens=50, max_concurrent_requests=4))
    for options in ({"max_tokens": 20}, {"max_tokens": 70}):
        await bench.events(bench.begin(truncate_prompt_tokens=-1, **options))
    assert [request.sampling.max_tokens for request in bench.engine.counted] == [20, 50]
    assert [request.sampling.max_tokens for request in bench.engine.requests] == [20, 50]


async def test_a_requests_time_runs_while_its_prompt_is_counted() -> None:
    """A tokenizer, or a template, that takes longer than the request allows ends it by its deadline."""
    bench = make()
    bench.engine.count_s = 60.0
    events = await asyncio.wait_for(bench.events(bench.begin(timeout_s=0.02)), 30)
    (failure,) = [event for event in events if isinstance(event, Failure)]
    assert failure.code == "DEADLINE_EXCEEDED"
    assert not bench.engine.requests


async def test_no_lease_no_request() -> None:
    """Without a lease, or with 1,024 receipts waiting, requests are refused unopened, and not reported."""
    bench = make()
    request = bench.begin()
    bench.grant(seconds=0)
    with pytest.raises(AuditLeaseError):
        await bench.events(request)
    bench.grant(waiting=1024)
    with pytest.raises(AuditLeaseError):
        await bench.events(request)
    bench.grant()
    await bench.events(request)  # its sequence number was not used up
    assert request.complete
    assert bench.agent.refusals() == []


async def test_a_running_request_outlives_the_lease() -> None:
    """What runs when the lease ends may finish."""
    gate = asyncio.Event()
    bench = make("a", gate, "b")
    request = bench.begin()
    parts = bench.serve(request)
    found = opened(request, await anext(parts))
    bench.grant(seconds=0)
    gate.set()
    found += await bench.events(request, parts)
    assert request.complete


async def test_a_revoked_session_ends_mid_stream() -> None:
    """A revocation ends the running answer with a sealed TICKET_REVOKED, stops the engine, and refuses the next one."""
    bench = make("a", asyncio.Event())
    request = bench.begin()
    parts = bench.serve(request)
    opened(request, await anext(parts))
    bench.world.revoked.add(bench.world.session)
    bench.grant(revoked=frozenset({bench.world.session}))
    bench.server.end_revoked()
    found = await bench.events(request, parts)
    assert [event.code for event in found if isinstance(event, Failure)] == ["TICKET_REVOKED"]
    assert bench.engine.closed == 1
    with pytest.raises(TicketRevokedError):
        await bench.events(bench.begin())
    await asyncio.sleep(0)
    assert [(r.code, r.session_id) for r in bench.agent.refusals()] == [("TICKET_REVOKED", bench.world.session)]


async def test_no_stream_outlives_its_ticket() -> None:
    """A stream that is still running when its ticket expires ends with a sealed TICKET_EXPIRED."""
    bench = make("a", asyncio.Event())
    request = bench.begin()
    bench.world.now_s += 299  # one second is left; the timer runs on the loop's clock
    found = await asyncio.wait_for(bench.events(request), 5)
    assert [event.code for event in found if isinstance(event, Failure)] == ["TICKET_EXPIRED"]


async def test_a_client_that_goes_away_frees_the_engine_and_gets_a_receipt() -> None:
    """Cancellation reaches the engine at once; the cancelled request's receipt can be fetched with its counts."""
    bench = make("a", asyncio.Event())
    request = bench.begin()
    parts = bench.serve(request)
    opened(request, await anext(parts))
    await parts.aclose()
    await bench.server.quiet()
    assert bench.engine.closed == 1
    assert [(r.status, r.completion_tokens) for r in bench.agent.receipts()] == [("cancelled", 1)]
    signed = bench.server.fetch_receipt(
        ticket=bench.client.grant.ticket,
        request_id=request.request_id,
        signature=bench.client.sign_receipt_fetch(request.request_id),
    )
    receipt = bench.client.check_fetched_receipt(signed, request_id=request.request_id)
    assert receipt.status is ReceiptStatus.CANCELLED
    assert bench.server.load().running_requests == 0


async def test_a_reader_who_takes_nothing_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call whose reader leaves a part unread is cancelled after the time-out and counted as cancelled."""
    monkeypatch.setattr(exchange_module, "STALL_S", 0.05)
    bench = make("a", asyncio.Event())

    async def stalled() -> None:
        async with contextlib.aclosing(bench.serve(bench.begin())) as parts:
            async for _ in parts:
                await asyncio.sleep(60)

    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(asyncio.create_task(stalled()), 5)
    await bench.server.quiet()
    assert [receipt.status for receipt in bench.agent.receipts()] == ["cancelled"]
    assert bench.engine.closed == 1


async def test_a_slow_reader_costs_bounded_memory() -> None:
    """While a part waits for its reader the engine is taken from only up to the buffer's bound."""
    bench = make(*(["x" * 4000] * 200))
    parts = bench.serve(bench.begin())
    await anext(parts)
    await asyncio.sleep(0.1)
    (running,) = bench.server._exchanges
    assert 0 < running._response.buffer._size <= 2 * 65_536
    await parts.aclose()


async def test_requests_in_flight_are_bounded() -> None:
    """One request more than may be in flight is refused before it is opened; a place that is freed is used again."""
    gate = asyncio.Event()
    bench = make("a", gate, in_flight=2)
    held = [bench.serve(bench.begin()) for _ in range(2)]
    for parts in held:
        await anext(parts)
    with pytest.raises(QueueFullError):
        await bench.events(bench.begin())
    await held[0].aclose()
    gate.set()
    request = bench.begin()
    await bench.events(request)
    assert request.complete
    await held[1].aclose()


async def test_requests_of_one_session_are_bounded_by_its_ticket() -> None:
    """A session beyond its own limit gets a sealed RATE_LIMITED while the worker has room."""
    gate = asyncio.Event()
    bench = make("a", gate, limits=TicketLimits(max_tokens=9, max_concurrent_requests=1))
    held = bench.serve(bench.begin())
    await anext(held)
    found = await bench.events(bench.begin())
    assert [event.code for event in found if isinstance(event, Failure)] == ["RATE_LIMITED"]
    await held.aclose()


async def test_a_replayed_request_is_refused_and_reported() -> None:
    """The same sealed request a second time is refused before the engine sees it; the report names the session."""
    bench = make()
    request = bench.begin()
    await bench.events(request)
    with pytest.raises(ReplayError):
        await bench.events(bench.begin(), bench.serve(request))
    await asyncio.sleep(0)
    assert len(bench.engine.requests) == 1
    (refusal,) = bench.agent.refusals()
    assert (refusal.code, refusal.session_id, refusal.tenant_id) == (
        "SEQUENCE_REPLAYED",
        bench.world.session,
        bench.world.tenant,
    )


async def test_a_foreign_ticket_is_refused_and_its_owner_named() -> None:
    """A ticket that the issuer made for another worker is refused; the report says whose it is."""
    bench = make()
    other = World(seed=9)
    other.issuer = bench.world.issuer
    other.authority = "part-2.tray-1.example"
    foreign = other.client(other.grant()).begin(
        Method.GENERATE,
        encode_generate_request(GenerateRequest(messages=(Message(role="user", content="x"),))),
        now_s=other.now_s,
    )
    with pytest.raises(TicketError):
        await bench.events(foreign)
    await asyncio.sleep(0)
    (refusal,) = bench.agent.refusals()
    assert (refusal.code, refusal.tenant_id) == ("TICKET_INVALID", other.tenant)


@pytest.mark.parametrize("comes", [True, False])
async def test_a_ticket_younger_than_the_lease_waits_for_the_next_grant(*, comes: bool) -> None:
    """A genuine ticket on evidence that the lease does not name yet is served once it does, and else refused."""
    bench = make()
    world = bench.world
    bench.server._sealed = SealedServer(
        authority=world.authority,
        tenant=world.tenant,
        partition=world.partition,
        model_digest=bench.client.grant.claims.model_digest,
        tickets=TicketVerifier(issuer_keys=[world.issuer.public_key]),
        keys=world.keys,
        is_revoked=lambda _: False,
        knows_evidence=bench.lease.knows_evidence,
    )
    request = bench.begin()
    serving = asyncio.create_task(bench.events(request))
    await asyncio.sleep(0.05)
    assert not serving.done()
    if comes:
        bench.lease.grant(
            LeaseGrant(
                valid_until_ms=int((world.now_s + 30) * 1000),
                revoked_sessions=frozenset(),
                unacknowledged_receipts=0,
                evidence=(
                    NamedEvidence(digest=bench.client.grant.claims.evidence_digest, not_after_s=world.now_s + 60),
                ),
            )
        )
        await serving
        assert request.complete
    else:
        with pytest.raises(TicketError):
            await serving


async def test_garbage_is_refused_and_its_reports_are_bounded() -> None:
    """Nonsense in place of an envelope is malformed; a flood of it gives a bounded number of reports."""
    bench = make()
    for number in range(300):
        with pytest.raises(BulkheadError):
            await anext(bench.server.serve(Method.GENERATE, bytes([number % 256]) * number, ()))
    await asyncio.sleep(0)
    assert 50 <= len(bench.agent.refusals()) <= 120
    assert all(refusal.session_id == "" for refusal in bench.agent.refusals())


@pytest.mark.parametrize("damage", ["truncated", "altered", "swapped"])
async def test_damaged_request_chunks_end_the_request(damage: str) -> None:
    """A request whose chunks are cut, altered or another request's is refused unsealed, reported, and receipted."""
    bench = make()
    request, other = bench.begin(), bench.begin(seed=1)
    chunks = {
        "truncated": (),
        "altered": (request.chunks[0][:-1] + bytes([request.chunks[0][-1] ^ 1]),),
        "swapped": other.chunks,
    }[damage]
    with pytest.raises(MalformedRequestError if damage == "truncated" else SealError):
        await anext(bench.server.serve(Method.GENERATE, request.envelope, chunks))
    await bench.server.quiet()
    assert bench.engine.requests == []
    assert len(bench.agent.refusals()) == 1
    assert [receipt.status for receipt in bench.agent.receipts()] == ["cancelled"]


async def test_receipts_are_fetched_by_their_own_session_only() -> None:
    """Another session's key, a made-up request id or a signature over another id gives nothing."""
    bench = make()
    request = bench.begin()
    await bench.events(request)
    ticket, request_id = bench.client.grant.ticket, request.request_id
    with pytest.raises(SignatureError):
        bench.server.fetch_receipt(ticket=ticket, request_id=request_id, signature=bytes(64))
    with pytest.raises(SignatureError):
        bench.server.fetch_receipt(
            ticket=ticket, request_id=request_id, signature=bench.client.sign_receipt_fetch(new_id(REQUEST))
        )
    unknown = new_id(REQUEST)
    with pytest.raises(NotFoundError):
        bench.server.fetch_receipt(
            ticket=ticket, request_id=unknown, signature=bench.client.sign_receipt_fetch(unknown)
        )
    with pytest.raises(TicketError):
        bench.server.fetch_receipt(ticket="not.a.ticket", request_id=request_id, signature=bytes(64))


async def test_a_draining_worker_finishes_what_runs_and_takes_nothing_new() -> None:
    """New requests are refused as SHUTTING_DOWN while a running one completes; quiet returns after it."""
    gate = asyncio.Event()
    bench = make("a", gate, "b")
    request = bench.begin()
    parts = bench.serve(request)
    opened(request, await anext(parts))
    bench.server.begin_drain()
    quiet = asyncio.create_task(bench.server.quiet())
    with pytest.raises(ShuttingDownError):
        await bench.events(bench.begin())
    assert not quiet.done()
    gate.set()
    await bench.events(request, parts)
    await asyncio.wait_for(quiet, 1)
    assert request.complete


async def test_when_the_agent_is_gone_running_answers_fail_closed() -> None:
    """Without an agent no receipt becomes durable: the reader gets a sealed error and no final chunk."""
    bench = make("a", asyncio.Event())
    request = bench.begin()
    parts = bench.serve(request)
    opened(request, await anext(parts))
    assert bench.agent.desk is not None
    bench.agent.desk.close()
    bench.server.end_all(AuditLeaseError("the node agent is gone"))
    found = opened(request, await anext(parts))
    assert [event.code for event in found if isinstance(event, Failure)] == ["AUDIT_LEASE_EXPIRED"]
    with pytest.raises(AuditLeaseError):
        await anext(parts)
    assert not request.complete


async def test_a_failed_engine_is_noticed() -> None:
    """After an engine's step failed the worker knows that it has to end."""
    bench = make("a")
    bench.engine.state = EngineState.FAILED
    await bench.events(bench.begin())
    assert bench.server.engine_failed.is_set()


async def test_answers_of_any_length_fit_into_chunks() -> None:
    """A text longer than a chunk is cut and arrives whole, with its tokens counted once."""
    text = "\x01ä€" * 20_000
    bench = make(text)
    found = await bench.events(bench.begin())
    deltas = [event for event in found if isinstance(event, Delta)]
    assert "".join(delta.text for delta in deltas) == text
    assert sum(delta.tokens for delta in deltas) == 1


async def test_text_that_cannot_be_encoded_is_a_sealed_failure() -> None:
    """A lone surrogate from an engine ends the answer with INTERNAL, not with a broken stream."""
    bench = make("ok", "\ud800")
    found = await bench.events(bench.begin())
    assert [event.code for event in found if isinstance(event, Failure)] == ["INTERNAL"]
    assert isinstance(found[-1], Complete)


async def answers(bench: Bench) -> list[Usage]:
    """Serve three requests with answers of 1, 2 and 5 tokens, all at once; return what their receipts state."""
    asked, serving = [], []
    for tokens in (1, 2, 5):
        bench.engine.script = ("a",) * tokens
        asked.append(bench.begin())
        serving.append(asyncio.ensure_future(bench.events(asked[-1])))
        begun = len(bench.engine.requests)
        while len(bench.engine.requests) == begun:  # noqa: ASYNC110  the scripted engine tells nobody
            await asyncio.sleep(0)
    await asyncio.gather(*serving)
    assert bench.agent.desk is not None
    kept = [
        bench.agent.desk.fetch(session_id=bench.world.session, request_id=item.request_id)
        for item in bench.agent.receipts()
        if item.request_id in {request.request_id for request in asked}
    ]
    return [read_receipt(signed.receipt).usage for signed in kept]


async def test_under_strict_padding_the_agent_sees_a_sessions_total_only() -> None:
    """Its receipts differ in nothing that depends on usage; one total follows the session's end, and no sooner."""
    bench = make("a", "b", padding=PaddingMode.STRICT)
    usages = await answers(bench)
    assert {usage.completion_tokens for usage in usages} == {1, 2, 5}
    told = bench.agent.receipts()
    assert [(item.prompt_tokens, item.completion_tokens) for item in told] == [(0, 0)] * 3
    await bench.server.tell_totals()
    assert len(bench.agent.receipts()) == 3
    bench.grant(revoked=frozenset({bench.world.session}))
    await bench.server.tell_totals()
    await bench.server.tell_totals()
    (total,) = bench.agent.receipts()[3:]
    expected = SessionTotal(
        session=bench.world.session,
        partition=bench.world.partition,
        number=4,
        receipts=3,
        prompt_tokens=sum(usage.prompt_tokens for usage in usages),
        completion_tokens=sum(usage.completion_tokens for usage in usages),
    )
    assert (total.session_number, total.receipt_digest) == (4, expected.digest)
    assert (total.prompt_tokens, total.completion_tokens) == (expected.prompt_tokens, expected.completion_tokens)


async def test_totals_are_told_before_the_worker_ends() -> None:
    """A worker that drains tells what it has summed up, also of sessions that have not ended."""
    bench = make("a", "b", padding=PaddingMode.STRICT)
    usages = await answers(bench)
    await bench.server.tell_totals(all_sessions=True)
    assert bench.agent.receipts()[-1].completion_tokens == sum(usage.completion_tokens for usage in usages)


async def test_a_total_that_the_spool_refuses_is_told_later_and_an_unknown_one_never_twice() -> None:
    """A definite no keeps the sum; an answer that never came gives it up, since usage must not be stated twice."""
    bench = make("a", "b", padding=PaddingMode.STRICT)
    usages = await answers(bench)
    bench.agent.durable = False
    await bench.server.tell_totals(all_sessions=True)
    bench.agent.durable = True
    await bench.server.tell_totals(all_sessions=True)
    refused, told = bench.agent.receipts()[3:]
    assert (refused.session_number, told.session_number) == (4, 5)
    assert told.completion_tokens == sum(usage.completion_tokens for usage in usages)
    await answers(bench)
    assert bench.agent.desk is not None
    bench.agent.desk.close()
    await bench.server.tell_totals(all_sessions=True)
    assert bench.agent.desk.untold(lambda _session: True) == ()


async def test_other_padding_tells_each_requests_usage() -> None:
    """Where nothing is hidden from whoever bills, each receipt's counts are told, and no total."""
    bench = make("a", "b")
    usages = await answers(bench)
    await bench.server.tell_totals(all_sessions=True)
    told = sorted((item.prompt_tokens, item.completion_tokens) for item in bench.agent.receipts())
    assert told == sorted((usage.prompt_tokens, usage.completion_tokens) for usage in usages)
