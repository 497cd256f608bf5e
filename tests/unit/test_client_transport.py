"""Channels: deadlines, retries, limits, and that nothing but our own errors comes out."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager

import grpc
import grpc.aio
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from bulkhead.client.journal import RequestJournal
from bulkhead.client.status import CORE_STATUS, Peer
from bulkhead.client.transport import MAX_REQUEST_BYTES, MAX_UNARY_IN_FLIGHT, Channel, RetryPolicy, check_address
from bulkhead.errors import (
    BulkheadError,
    ConfigError,
    ConnectionFailedError,
    CredentialRevokedError,
    DeadlineError,
    InternalError,
    InvalidRequestError,
    MessageTooLargeError,
    PolicyDeniedError,
    PolicyEngineError,
    UnsupportedError,
    WorkerLostError,
)
from bulkhead.v1 import audit_pb2, audit_pb2_grpc, session_pb2, session_pb2_grpc
from tests.simulator.pki import Authority

AUTHORITY = Authority()
CERTIFICATE = AUTHORITY.issue("server.test")
Handler = Callable[[int, grpc.aio.ServicerContext], Awaitable[None]]


class _Sessions(session_pb2_grpc.SessionServiceServicer):
    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.calls = 0
        self.called = asyncio.Event()
        self.in_flight = 0
        self.most_in_flight = 0
        self.metadata: dict[str, str | bytes] = {}

    async def CloseSession(
        self, request: session_pb2.CloseSessionRequest, context: grpc.aio.ServicerContext
    ) -> session_pb2.CloseSessionResponse:
        self.calls += 1
        self.called.set()
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        self.metadata = dict(context.invocation_metadata() or ())
        try:
            await self.handler(self.calls, context)
        finally:
            self.in_flight -= 1
        return session_pb2.CloseSessionResponse()

    async def OpenSession(
        self, request: session_pb2.OpenSessionRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[session_pb2.OpenSessionEvent]:
        self.calls += 1
        yield session_pb2.OpenSessionEvent(progress=session_pb2.OpenProgress(message="placing"))
        await self.handler(self.calls, context)
        yield session_pb2.OpenSessionEvent(progress=session_pb2.OpenProgress(message="creating"))


@asynccontextmanager
async def _serving(handler: Handler, **channel: object) -> AsyncIterator[tuple[_Sessions, Channel]]:
    server = grpc.aio.server()
    servicer = _Sessions(handler)
    session_pb2_grpc.add_SessionServiceServicer_to_server(servicer, server)
    credentials = grpc.ssl_server_credentials([(CERTIFICATE.key_pem, CERTIFICATE.certificate_pem)])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    settings = {
        "peer": Peer.CONTROL_PLANE,
        "address": f"127.0.0.1:{port}",
        "roots_pem": AUTHORITY.root_pem,
        "server_name": "server.test",
        "retry": RetryPolicy(base_s=0.001),
    } | channel
    try:
        async with Channel(**settings) as client:  # type: ignore[arg-type]
            yield servicer, client
    finally:
        await server.stop(0)


async def _close(channel: Channel, *, idempotent: bool = True, deadline_s: float = 5.0) -> None:
    stub = session_pb2_grpc.SessionServiceStub(channel.raw)
    request = session_pb2.CloseSessionRequest(session_id="s")
    await channel.unary(stub.CloseSession, request, idempotent=idempotent, deadline_s=deadline_s)


def _failing(status: grpc.StatusCode, reason: str = "", metadata: dict[str, str] | None = None, times: int = 99):
    async def handler(call: int, context: grpc.aio.ServicerContext) -> None:
        if call > times:
            return
        trailers: tuple[tuple[str, bytes], ...] = ()
        if reason:
            info = error_details_pb2.ErrorInfo(reason=reason, domain="bulkhead.dev", metadata=metadata or {})
            packed = any_pb2.Any()
            packed.Pack(info)
            body = status_pb2.Status(code=status.value[0], message="said the server", details=[packed])
            trailers = (("grpc-status-details-bin", body.SerializeToString()),)
        await context.abort(status, "said the server", trailers)

    return handler


async def test_error_class_code_and_details_are_restored() -> None:
    """An ErrorInfo becomes the class of its code, with message and details."""
    reasons = json.dumps([{"code": "PURPOSE_MISSING", "policy": "hipaa", "message": "no purpose"}])
    async with _serving(_failing(grpc.StatusCode.PERMISSION_DENIED, "POLICY_DENIED", {"reasons": reasons})) as (_, at):
        with pytest.raises(PolicyDeniedError) as caught:
            await _close(at)
    assert caught.value.message == "said the server"
    assert caught.value.details["reasons"] == reasons


async def test_unknown_code_of_a_newer_server_stays_in_the_tree() -> None:
    """A code that this build does not know is an InternalError, not something outside the tree."""
    async with _serving(_failing(grpc.StatusCode.ABORTED, "INVENTED_LATER")) as (_, at):
        with pytest.raises(InternalError):
            await _close(at)


@pytest.mark.parametrize("peer", list(Peer))
@pytest.mark.parametrize("status", [status for status in grpc.StatusCode if status is not grpc.StatusCode.OK])
async def test_every_bare_status_maps_into_the_tree(status: grpc.StatusCode, peer: Peer) -> None:
    """A status without ErrorInfo gives the table's class, for the control plane and for a worker."""
    async with _serving(_failing(status), peer=peer) as (_, at):
        with pytest.raises(BulkheadError) as caught:
            await _close(at, idempotent=False)
    assert type(caught.value) is CORE_STATUS[status][peer is Peer.WORKER]


async def test_escape_sequences_of_a_server_are_removed() -> None:
    """A server's text cannot move a terminal's cursor or run over several lines."""

    async def handler(call: int, context: grpc.aio.ServicerContext) -> None:
        await context.abort(grpc.StatusCode.NOT_FOUND, "a\x1b[2Jb\nc")

    async with _serving(handler) as (_, at):
        with pytest.raises(BulkheadError) as caught:
            await _close(at)
    assert "\x1b" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("status", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED])
async def test_idempotent_call_is_repeated_and_succeeds(status: grpc.StatusCode) -> None:
    """UNAVAILABLE and a server's CANCELLED are repeated for an idempotent call."""
    async with _serving(_failing(status, times=2)) as (servicer, at):
        await _close(at)
    assert servicer.calls == 3


async def test_other_call_is_not_repeated() -> None:
    """A call that is not idempotent is sent once, whatever happens."""
    async with _serving(_failing(grpc.StatusCode.UNAVAILABLE)) as (servicer, at):
        with pytest.raises(ConnectionFailedError):
            await _close(at, idempotent=False)
    assert servicer.calls == 1


@pytest.mark.parametrize(
    ("status", "reason", "calls"),
    [
        (grpc.StatusCode.UNAVAILABLE, "POLICY_ENGINE", 3),
        (grpc.StatusCode.UNAVAILABLE, "WORKER_LOST", 1),
        (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIAL_REVOKED", 1),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "", 1),
    ],
)
async def test_repetitions_are_bounded_and_only_where_they_can_help(
    status: grpc.StatusCode, reason: str, calls: int
) -> None:
    """At most three attempts, and one only for what the same call cannot heal."""
    async with _serving(_failing(status, reason)) as (servicer, at):
        with pytest.raises((PolicyEngineError, WorkerLostError, CredentialRevokedError, DeadlineError)):
            await _close(at)
    assert servicer.calls == calls


async def test_hanging_server_meets_the_deadline() -> None:
    """A server that never answers gives DeadlineError within the deadline."""

    async def hang(call: int, context: grpc.aio.ServicerContext) -> None:
        await asyncio.sleep(60)

    async with _serving(hang) as (_, at), asyncio.timeout(3):
        with pytest.raises(DeadlineError):
            await _close(at, deadline_s=0.2)


@pytest.mark.parametrize("deadline_s", [0, -1, 29.1, float("inf"), float("nan")])
async def test_deadline_is_always_below_30_s(deadline_s: float) -> None:
    """No unary call can be made without a deadline below core's 30 s."""

    async def answer(call: int, context: grpc.aio.ServicerContext) -> None: ...

    async with _serving(answer) as (servicer, at):
        with pytest.raises(InvalidRequestError):
            await _close(at, deadline_s=deadline_s)
    assert servicer.calls == 0


async def test_at_most_64_unary_calls_are_in_flight() -> None:
    """Of 300 calls at once the server sees at most 64 together, and every one succeeds."""

    async def slow(call: int, context: grpc.aio.ServicerContext) -> None:
        await asyncio.sleep(0.02)

    async with _serving(slow) as (servicer, at):
        await asyncio.gather(*(_close(at) for _ in range(300)))
    assert servicer.calls == 300
    assert servicer.most_in_flight <= MAX_UNARY_IN_FLIGHT


async def test_unimplemented_call_is_unsupported() -> None:
    """A service that the server does not offer is UnsupportedError."""

    async def answer(call: int, context: grpc.aio.ServicerContext) -> None: ...

    async with _serving(answer) as (_, at):
        stub = audit_pb2_grpc.AuditServiceStub(at.raw)
        with pytest.raises(UnsupportedError):
            await at.unary(stub.GetCheckpoint, audit_pb2.GetCheckpointRequest(), idempotent=True)


async def test_oversized_request_is_not_sent() -> None:
    """A request above 4 MiB is refused here, with both sizes."""

    async def answer(call: int, context: grpc.aio.ServicerContext) -> None: ...

    async with _serving(answer) as (servicer, at):
        stub = session_pb2_grpc.SessionServiceStub(at.raw)
        request = session_pb2.CloseSessionRequest(session_id="x" * (MAX_REQUEST_BYTES + 1))
        with pytest.raises(MessageTooLargeError):
            await at.unary(stub.CloseSession, request, idempotent=True)
    assert servicer.calls == 0


async def test_key_travels_as_a_bearer() -> None:
    """The API key is in the authorization header of each call."""

    async def answer(call: int, context: grpc.aio.ServicerContext) -> None: ...

    async with _serving(answer, api_key="bhk_x") as (servicer, at):
        await _close(at)
    assert servicer.metadata["authorization"] == "Bearer bhk_x"


async def test_cancellation_of_the_caller_is_not_repeated() -> None:
    """Cancelling the awaiting task ends the call as asyncio means it; nothing is sent again."""

    async def hang(call: int, context: grpc.aio.ServicerContext) -> None:
        await asyncio.sleep(60)

    async with _serving(hang) as (servicer, at):
        task = asyncio.ensure_future(_close(at))
        await servicer.called.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert servicer.calls == 1


async def test_closing_ends_calls_in_flight_with_our_error() -> None:
    """A call in flight while its client is closed, and one made later, raise ConnectionFailedError."""

    async def hang(call: int, context: grpc.aio.ServicerContext) -> None:
        await asyncio.sleep(60)

    async with _serving(hang) as (servicer, at):
        task = asyncio.ensure_future(_close(at))
        await servicer.called.wait()
        await at.close()
        with pytest.raises(ConnectionFailedError):
            await task
        with pytest.raises(ConnectionFailedError):
            await _close(at)


async def test_nobody_listening_is_a_failed_connection() -> None:
    """A refused connection is ConnectionFailedError within the deadline."""
    async with Channel(peer=Peer.CONTROL_PLANE, address="127.0.0.1:1", roots_pem=AUTHORITY.root_pem) as at:
        with pytest.raises(ConnectionFailedError):
            await _close(at)


@pytest.mark.parametrize("wrong", ["roots", "name"])
async def test_another_certificate_is_not_spoken_to(wrong: str) -> None:
    """A certificate of another authority or for another name ends the handshake: the handler sees nothing."""

    async def answer(call: int, context: grpc.aio.ServicerContext) -> None: ...

    other = {"roots": {"roots_pem": Authority("other").root_pem}, "name": {"server_name": "other.test"}}[wrong]
    async with _serving(answer, **other) as (servicer, at):
        with pytest.raises(ConnectionFailedError):
            await _close(at)
    assert servicer.calls == 0


async def test_silent_stream_meets_the_idle_limit() -> None:
    """A stream that stops talking raises DeadlineError after what it said was delivered."""

    async def hang(call: int, context: grpc.aio.ServicerContext) -> None:
        await asyncio.sleep(60)

    async with _serving(hang) as (_, at):
        stub = session_pb2_grpc.SessionServiceStub(at.raw)
        stream = at.stream(stub.OpenSession, session_pb2.OpenSessionRequest(), deadline_s=20, idle_s=0.2)
        assert (await anext(stream)).progress.message == "placing"
        with pytest.raises(DeadlineError):
            await anext(stream)


async def test_broken_stream_raises_after_its_messages() -> None:
    """A stream that ends with a status raises its error, never a quiet end."""
    async with _serving(_failing(grpc.StatusCode.UNAVAILABLE, "POLICY_ENGINE")) as (_, at):
        stub = session_pb2_grpc.SessionServiceStub(at.raw)
        stream = at.stream(stub.OpenSession, session_pb2.OpenSessionRequest(), deadline_s=20, idle_s=5)
        assert (await anext(stream)).progress.message == "placing"
        with pytest.raises(PolicyEngineError):
            await anext(stream)


@pytest.mark.parametrize(
    "address", ["", "host", "host:0", "host:65536", "unix:/x", "unix:/x:1", "xds:///a:1", "a b:1", "-a:1", "h:1\n"]
)
def test_other_addresses_are_refused(address: str) -> None:
    """Only host:port is dialled, whatever a server or a configuration says."""
    with pytest.raises(InvalidRequestError):
        check_address(address, "endpoint")


@pytest.mark.parametrize("address", ["localhost:8443", "10.0.0.1:1", "[::1]:65535", "a.b-c.example:443"])
def test_host_and_port_are_accepted(address: str) -> None:
    """Names, IPv4 and bracketed IPv6 addresses with a port are addresses."""
    assert check_address(address, "endpoint") == address


async def test_each_call_is_journalled_before_and_after(tmp_path) -> None:
    """A call's id is in the journal before it is sent, is the one that the server sees, in every attempt, and ends."""
    path = tmp_path / "journal"
    seen: list[str | bytes] = []

    async def handler(call: int, context: grpc.aio.ServicerContext) -> None:
        seen.append(dict(context.invocation_metadata() or ())["bulkhead-request-id"])
        assert str(seen[-1]) in path.read_text()
        if call == 1:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "again")

    async with _serving(handler, journal=RequestJournal(path)) as (_, at):
        await _close(at)
    sent, answered = (json.loads(line) for line in path.read_text().splitlines())
    assert seen == [sent["id"]] * 2
    assert (sent["event"], sent["call"]) == ("sent", "CloseSession")
    assert answered == {"v": 1, "event": "answered", "id": sent["id"], "code": ""}


async def test_a_refusal_is_journalled_by_its_code(tmp_path) -> None:
    """What a call was refused with stands in the journal."""
    path = tmp_path / "journal"
    refusing = _failing(grpc.StatusCode.PERMISSION_DENIED, "POLICY_DENIED", {"reasons": "[]"})
    async with _serving(refusing, journal=RequestJournal(path)) as (_, at):
        with pytest.raises(PolicyDeniedError):
            await _close(at)
    assert json.loads(path.read_text().splitlines()[-1])["code"] == "POLICY_DENIED"


async def test_a_request_that_cannot_be_journalled_is_not_sent(tmp_path) -> None:
    """With a journal that cannot be written, nothing reaches the server."""
    journal = RequestJournal(tmp_path / "missing" / "journal")
    async with _serving(_failing(grpc.StatusCode.INTERNAL), journal=journal) as (servicer, at):
        with pytest.raises(ConfigError):
            await _close(at)
    assert servicer.calls == 0


async def test_a_stream_that_was_read_as_far_as_wanted_is_answered(tmp_path) -> None:
    """A stream's id in its message is the journal's; leaving the stream after a message counts as answered."""
    path = tmp_path / "journal"

    async def wait(call: int, context: grpc.aio.ServicerContext) -> None:
        await asyncio.sleep(5)

    async with _serving(wait, journal=RequestJournal(path)) as (_, at):
        stub = session_pb2_grpc.SessionServiceStub(at.raw)
        request = session_pb2.OpenSessionRequest(request_id="req_01h455vb4pex5vsknk084sn02q")
        async with aclosing(at.stream(stub.OpenSession, request, deadline_s=5, idle_s=5)) as messages:
            async for _ in messages:
                break
    events = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(event["event"], event["id"]) for event in events] == [
        ("sent", request.request_id),
        ("answered", request.request_id),
    ]


async def test_of_requests_prepared_at_once_each_is_sent_before_the_next_is_made() -> None:
    """A task that a request's maker starts runs before the maker of the next request, in the order they asked."""
    happened: list[str] = []
    sending: list[asyncio.Task[None]] = []

    async def send(number: int) -> None:
        happened.append(f"sent {number}")

    async def make(channel: Channel, number: int) -> None:
        await channel.turn()
        happened.append(f"made {number}")
        sending.append(asyncio.create_task(send(number)))

    async with _worker_channel() as channel:
        await asyncio.gather(*(make(channel, number) for number in range(5)))
        await asyncio.gather(*sending)
    assert happened == [f"{what} {number}" for number in range(5) for what in ("made", "sent")]


async def test_who_gives_up_waiting_for_a_turn_holds_up_nobody() -> None:
    """A caller that is cancelled before its turn is passed over."""
    async with _worker_channel() as channel:
        first, second, third = (asyncio.create_task(channel.turn()) for _ in range(3))
        second.cancel()
        async with asyncio.timeout(30):
            await asyncio.gather(first, third)
        assert second.cancelled()


def _worker_channel() -> Channel:
    return Channel(peer=Peer.WORKER, address="localhost:1", roots_pem=CERTIFICATE.certificate_pem)
