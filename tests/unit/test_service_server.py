import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from bulkhead.errors import BulkheadError, CredentialMissingError, PolicyDeniedError, SessionLimitError
from bulkhead.v1 import fleet_pb2, fleet_pb2_grpc, session_pb2, session_pb2_grpc
from service.errors_rpc import MAX_DETAILS_BYTES, MAX_ENCODED_MESSAGE_BYTES, status_of
from service.interceptors import current_request_id
from service.server import add_health, add_reflection, new_server

FLEET = "bulkhead.v1.FleetQueryService"
REQUEST_ID = "req_01h455vb4pex5vsknk084sn02q"


class _Fleet(fleet_pb2_grpc.FleetQueryServiceServicer):
    """Fails in the way that the request's tenant id names."""

    async def ListPartitions(self, request: Any, context: Any) -> Any:
        match request.tenant_id:
            case "deny":
                raise PolicyDeniedError("not for you", details={"reasons": "[]"})
            case "huge":
                raise SessionLimitError("x" * 5_000, details={"a": "y" * 9_000, "kept": "z"})
            case "script":
                raise PolicyDeniedError("\u6f22" * 5_000, details={"reasons": "r" * 2_000})
            case "defect":
                raise ValueError("quotes the prompt")
            case "slow":
                await asyncio.sleep(30)
        return fleet_pb2.ListPartitionsResponse(next_page_token=current_request_id())


class _Sessions(session_pb2_grpc.SessionServiceServicer):
    """Streams without end, and notes that it was closed."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()

    async def OpenSession(self, request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            while True:
                yield session_pb2.OpenSessionEvent()
                await asyncio.sleep(0.05)
        finally:
            self.closed.set()

    async def CloseSession(self, request: Any, context: Any) -> Any:
        return session_pb2.CloseSessionResponse()

    async def RenewSession(self, request: Any, context: Any) -> Any:
        return session_pb2.RenewSessionResponse(grant=session_pb2.SessionGrant(session_id=current_request_id()))


@contextlib.asynccontextmanager
async def _serving(**options: Any) -> AsyncIterator[tuple[grpc.aio.Channel, _Sessions]]:
    options = {"max_call_s": 1.0, **options}
    server = new_server(**options)
    sessions = _Sessions()
    fleet_pb2_grpc.add_FleetQueryServiceServicer_to_server(_Fleet(), server)
    session_pb2_grpc.add_SessionServiceServicer_to_server(sessions, server)
    health = await add_health(server, [FLEET])
    add_reflection(server, [FLEET])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            await health.set_serving(serving=False)
            yield channel, sessions
    finally:
        await server.stop(0)


async def _fail(call: Any) -> tuple[grpc.StatusCode, str, error_details_pb2.ErrorInfo]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return _read(caught.value)


def _read(error: grpc.aio.AioRpcError) -> tuple[grpc.StatusCode, str, error_details_pb2.ErrorInfo]:
    info = error_details_pb2.ErrorInfo()
    metadata = dict(error.trailing_metadata() or ())
    if "grpc-status-details-bin" in metadata:
        status = status_pb2.Status.FromString(metadata["grpc-status-details-bin"])  # type: ignore[arg-type]
        assert status.details[0].Unpack(info)
        assert status.code == error.code().value[0]
    return error.code(), error.details() or "", info


async def _drain(call: Any) -> None:
    async for _event in call:
        pass


def _list(channel: grpc.aio.Channel, tenant: str, **options: Any) -> Any:
    stub = fleet_pb2_grpc.FleetQueryServiceStub(channel)
    return stub.ListPartitions(fleet_pb2.ListPartitionsRequest(tenant_id=tenant), **options)


async def test_our_errors_travel_with_their_code() -> None:
    """A BulkheadError becomes its status, with code, domain and details as ErrorInfo."""
    async with _serving() as (channel, _):
        code, message, info = await _fail(_list(channel, "deny"))
    assert (code, message) == (grpc.StatusCode.PERMISSION_DENIED, "not for you")
    assert (info.reason, info.domain, dict(info.metadata)) == ("POLICY_DENIED", "bulkhead.dev", {"reasons": "[]"})


async def test_long_errors_in_any_script_still_arrive() -> None:
    """A message whose every character takes nine bytes on the wire is cut, not lost with its code."""
    async with _serving() as (channel, _):
        code, message, info = await _fail(_list(channel, "script"))
    assert (code, info.reason) == (grpc.StatusCode.PERMISSION_DENIED, "POLICY_DENIED")
    assert set(message) == {"\u6f22"}
    assert 3 * len(message.encode()) <= MAX_ENCODED_MESSAGE_BYTES
    assert dict(info.metadata) == {"reasons": "r" * 2_000}


async def test_oversized_errors_still_arrive() -> None:
    """Message and details that would exceed the header limit are cut, and what was dropped is named."""
    async with _serving() as (channel, _):
        code, message, info = await _fail(_list(channel, "huge"))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert 0 < len(message) < 1_000
    assert dict(info.metadata) == {"kept": "z", "details_dropped": "a"}
    assert sum(map(len, info.metadata.values())) < MAX_DETAILS_BYTES


async def test_a_defect_shows_no_stack() -> None:
    """An unexpected exception is INTERNAL with a request id to quote, and nothing of its text."""
    async with _serving() as (channel, _):
        code, message, info = await _fail(_list(channel, "defect"))
    assert code is grpc.StatusCode.INTERNAL
    assert info.metadata["request_id"] in message
    assert "prompt" not in message
    assert "ValueError" not in message


async def test_undecodable_messages_are_invalid_arguments() -> None:
    """Bytes that are no message of the method, and text that is not UTF-8, are MALFORMED_REQUEST."""
    async with _serving() as (channel, _):
        for data in (b"\xff\xff\xff", b"\x0a\x02\xff\xfe"):
            call = channel.unary_unary(f"/{FLEET}/ListPartitions")(data)
            code, _message, info = await _fail(call)
            assert (code, info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")


async def test_admission_comes_before_decoding_and_handler() -> None:
    """Who is not admitted learns nothing else: the refusal is the same for good and for broken messages."""

    async def refuse(_method: str, _context: Any) -> None:
        raise CredentialMissingError("no credential")

    told: list[tuple[str, str]] = []

    async def on_refusal(method: str, error: BulkheadError) -> None:
        told.append((method, error.code))

    async with _serving(admit=refuse, on_refusal=on_refusal) as (channel, _):
        for data in (b"", b"\xff\xff\xff"):
            code, _message, info = await _fail(channel.unary_unary(f"/{FLEET}/ListPartitions")(data))
            assert (code, info.reason) == (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIAL_MISSING")
    assert told == [(f"/{FLEET}/ListPartitions", "CREDENTIAL_MISSING")] * 2


async def test_a_call_without_deadline_gets_the_maximum() -> None:
    """A call that names no deadline, or one beyond the maximum, ends at the server's maximum."""
    async with _serving(max_call_s=0.3) as (channel, _):
        for options in ({}, {"timeout": 60}):
            started = asyncio.get_running_loop().time()
            code, _message, info = await _fail(_list(channel, "slow", **options))
            assert (code, info.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
            assert asyncio.get_running_loop().time() - started < 3


async def test_a_stream_past_its_deadline_is_closed() -> None:
    """The deadline ends an endless stream, and the handler's generator is closed rather than leaked."""
    async with _serving(max_call_s=0.4) as (channel, sessions):
        call = session_pb2_grpc.SessionServiceStub(channel).OpenSession(session_pb2.OpenSessionRequest())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _drain(call)
        assert _read(caught.value)[2].reason == "DEADLINE_EXCEEDED"
        await asyncio.wait_for(sessions.closed.wait(), 2)


async def test_a_caller_who_leaves_ends_the_handler() -> None:
    """Cancelling a streaming call closes the handler's generator."""
    async with _serving(max_call_s=30) as (channel, sessions):
        call = session_pb2_grpc.SessionServiceStub(channel).OpenSession(session_pb2.OpenSessionRequest())
        await anext(aiter(call))
        call.cancel()
        await asyncio.wait_for(sessions.closed.wait(), 2)


async def test_request_ids_are_taken_only_in_form() -> None:
    """A request id of the right form is the call's; anything else is replaced, so that logs hold no free text."""
    async with _serving() as (channel, _):
        stub = session_pb2_grpc.SessionServiceStub(channel)
        made = (await stub.RenewSession(session_pb2.RenewSessionRequest())).grant.session_id
        assert made.startswith("req_")
        call = channel.unary_stream(
            "/bulkhead.v1.SessionService/OpenSession",
            request_serializer=session_pb2.OpenSessionRequest.SerializeToString,
        )(session_pb2.OpenSessionRequest(request_id="a\nforged line"))
        await anext(aiter(call))
        call.cancel()


async def test_reflection_tells_of_its_own_port_only() -> None:
    """Reflection lists the port's services, and describes no other protocol that the process happens to know."""
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=FLEET),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="bulkhead.v1.SessionService"),
    ]
    async with _serving() as (channel, _):
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[no-untyped-call]
        replies = [reply async for reply in stub.ServerReflectionInfo(iter(requests))]
    assert [service.name for service in replies[0].list_services_response.service] == [
        FLEET,
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    ]
    assert replies[1].HasField("file_descriptor_response")
    assert replies[2].error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


async def test_health_begins_not_serving() -> None:
    """A server says NOT_SERVING until it is told that it serves."""
    async with _serving() as (channel, _):
        reply = await health_pb2_grpc.HealthStub(channel).Check(  # type: ignore[no-untyped-call]
            health_pb2.HealthCheckRequest(service=FLEET)
        )
    assert reply.status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_three_thousand_calls_at_once_all_get_an_answer() -> None:
    """A burst of 3,000 calls on one channel is served: the backlog options are still core's names."""
    async with _serving(max_call_s=30) as (channel, _):
        replies = await asyncio.gather(*(_list(channel, "", timeout=30) for _ in range(3_000)))
    assert len(replies) == 3_000


async def test_messages_beyond_the_limit_are_refused() -> None:
    """A message above the server's limit is RESOURCE_EXHAUSTED before any handler."""
    async with _serving(max_message_bytes=10_000) as (channel, _):
        code, _message, _info = await _fail(_list(channel, "x" * 20_000))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_every_code_has_a_status() -> None:
    """Each class of the error tree maps to a gRPC status."""

    def classes(base: type[BulkheadError]) -> list[type[BulkheadError]]:
        return [base, *(found for child in base.__subclasses__() for found in classes(child))]

    assert all(status_of(kind("x")) is not grpc.StatusCode.OK for kind in classes(BulkheadError))


@pytest.mark.parametrize(("given", "kept"), [(REQUEST_ID, True), ("nonsense", False), ("", False)])
async def test_a_request_id_may_come_in_the_metadata(given, kept) -> None:
    """A call whose message has no field for it is known by the caller's id in the metadata, if it has an id's form."""
    async with _serving() as (channel, _):
        stub = fleet_pb2_grpc.FleetQueryServiceStub(channel)
        metadata = (("bulkhead-request-id", given),) if given else ()
        reply = await stub.ListPartitions(fleet_pb2.ListPartitionsRequest(), metadata=metadata, timeout=5)
    assert (reply.next_page_token == REQUEST_ID) == kept
    assert reply.next_page_token.startswith("req_")
