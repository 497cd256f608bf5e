"""Attacks on workers and what stands before them: foreign tickets, replays, confusion of names, garbage, floods."""

import asyncio
import contextlib
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from bulkhead.client.status import Peer, error_from_rpc
from bulkhead.protocol.envelope import Envelope
from bulkhead.protocol.payloads import Failure
from bulkhead.v1 import inference_pb2
from tests.simulator.sealed_world import World
from tests.simulator.tray import Placed, TenantSession, Tray, running_tray, worker_channel, worker_pids

pytestmark = pytest.mark.asyncio(loop_scope="module")

CANARY = "the-patient-has-a-rare-condition"
SECRET_OF_AGENT = "agent-secret-7f3a"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tray(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Tray]:
    os.environ["BULKHEAD_TEST_SECRET"] = SECRET_OF_AGENT
    try:
        async with running_tray(tmp_path_factory.mktemp("tray")) as running:
            yield running
    finally:
        del os.environ["BULKHEAD_TEST_SECRET"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(tray: Tray) -> tuple[Placed, Placed]:
    """Partitions of two tenants on one tray."""
    first, second = await asyncio.gather(tray.place(), tray.place())
    return first, second


@pytest_asyncio.fixture(loop_scope="module")
async def mine(tray: Tray, pair: tuple[Placed, Placed]) -> AsyncIterator[TenantSession]:
    """An honest session of the first tenant; after each test it must still be served."""
    session = await tray.session(pair[0], seed=int(time.time_ns() % 1_000_000))
    yield session
    assert (await session.ask("still there?", max_tokens=3)).complete is not None
    await session.close()


@pytest_asyncio.fixture(loop_scope="module")
async def theirs(tray: Tray, pair: tuple[Placed, Placed]) -> AsyncIterator[TenantSession]:
    """An honest session of the second tenant; it must still be served too."""
    session = await tray.session(pair[1], seed=int(time.time_ns() % 1_000_000) + 1_000_000)
    yield session
    assert (await session.ask("still there?", max_tokens=3)).complete is not None
    await session.close()


async def refused(call: Any) -> str:
    """Return our code of a call that must fail without a single message."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await anext(aiter(call))
    return error_from_rpc(caught.value, Peer.WORKER).code


async def send(session: TenantSession, envelope: bytes, chunks: Any = ()) -> str:
    """Send a raw request to a session's worker and return the code it is refused with."""
    message = inference_pb2.SealedRequest(envelope=envelope, chunk=chunks)
    return await refused(session.stub.Generate(message, timeout=20))


async def reported(tray: Tray, placed: Placed, code: str, session: TenantSession) -> Any:
    """Wait until a refusal that names a session is in the control plane's hands."""

    def found() -> list[Any]:
        return [
            event.refusal
            for event in tray.plane.of_kind("refusal")
            if (event.partition_id, event.refusal.code, event.refusal.session_id)
            == (placed.partition_id, code, session.session_id)
        ]

    await tray.plane.until(found)
    return found()[0]


async def test_anothers_ticket_is_useless_and_its_use_is_reported(
    tray: Tray, pair: tuple[Placed, Placed], mine: TenantSession, theirs: TenantSession
) -> None:
    """Tenant B's sealed request, sent to A's worker, is refused; the report stands at A's partition and names B."""
    request = theirs.begin("hello")
    assert await send(mine, request.envelope, request.chunks) == "TICKET_INVALID"
    refusal = await reported(tray, pair[0], "TICKET_INVALID", theirs)
    assert refusal.tenant_id == pair[1].tenant


async def test_a_ticket_renamed_to_another_worker_needs_the_issuer(mine: TenantSession, theirs: TenantSession) -> None:
    """A ticket signed by anybody but the issuer is refused, whatever it says."""
    forger = World(seed=99, now_s=int(time.time()))
    claims = replace(mine.client.grant.claims, tenant="tenant_01m85f4qb9ech9dc5sd19j68db")
    request = mine.begin("hello")
    envelope = replace(Envelope.parse(request.envelope), ticket=forger.issuer.issue(claims))
    assert await send(mine, envelope.encode(), request.chunks) == "TICKET_INVALID"
    assert await send(theirs, envelope.encode(), request.chunks) == "TICKET_INVALID"


async def test_a_stolen_ticket_is_useless_without_the_session_key(
    tray: Tray, pair: tuple[Placed, Placed], mine: TenantSession
) -> None:
    """Whoever has the ticket but not the key gets SIGNATURE_INVALID, and the owner's log hears of it."""
    request = mine.begin("hello")
    thief = World(seed=5).key()
    envelope = replace(Envelope.parse(request.envelope), signature=thief.sign(bytes(32)))
    assert await send(mine, envelope.encode(), request.chunks) == "SIGNATURE_INVALID"
    assert (await reported(tray, pair[0], "SIGNATURE_INVALID", mine)).tenant_id == pair[0].tenant


async def test_a_recorded_request_is_useless(tray: Tray, pair: tuple[Placed, Placed], mine: TenantSession) -> None:
    """The same bytes a second time are refused as a replay, also when sent at the same moment many times."""
    request = mine.begin("hello", max_tokens=3)
    assert [event async for event in mine.events(request)]
    codes = await asyncio.gather(*(send(mine, request.envelope, request.chunks) for _ in range(5)))
    assert set(codes) == {"SEQUENCE_REPLAYED"}
    await reported(tray, pair[0], "SEQUENCE_REPLAYED", mine)


async def test_a_race_of_replays_is_served_once(mine: TenantSession) -> None:
    """Of equal requests in flight together exactly one is served."""
    request = mine.begin("hello", max_tokens=3)
    message = inference_pb2.SealedRequest(envelope=request.envelope, chunk=request.chunks)

    async def outcome() -> bool:
        try:
            return bool([part async for part in mine.stub.Generate(message, timeout=20)])
        except grpc.aio.AioRpcError as error:
            assert error_from_rpc(error, Peer.WORKER).code == "SEQUENCE_REPLAYED"  # noqa: PT017  either is right
            return False

    assert sum(await asyncio.gather(*(outcome() for _ in range(8)))) == 1


@pytest.mark.parametrize(
    ("claim", "value", "code"),
    [
        ("evidence_digest", bytes(32), "TICKET_INVALID"),
        ("keyset_digest", bytes(32), "STALE_KEY"),
        ("model_digest", bytes(32), "TICKET_INVALID"),
        ("partition", "part_01m85f4qb9fg18ms61891vbckm", "TICKET_INVALID"),
        ("tenant", "tenant_01m85f4qb9ech9dc5sd19j68db", "TICKET_INVALID"),
        ("audience", "part-elsewhere.worker.bulkhead.internal", "TICKET_INVALID"),
    ],
)
async def test_a_genuine_ticket_must_fit_this_worker(
    tray: Tray, mine: TenantSession, claim: str, value: Any, code: str
) -> None:
    """Even signed by the issuer, a ticket for other evidence, keys, model, partition or tenant is refused."""
    ticket = tray.issuer.issue(replace(mine.client.grant.claims, **{claim: value}))
    request = mine.begin("hello")
    envelope = replace(Envelope.parse(request.envelope), ticket=ticket)
    assert await send(mine, envelope.encode(), request.chunks) == code


async def test_an_expired_ticket_is_refused(tray: Tray, mine: TenantSession) -> None:
    """A ticket after its expiry opens nothing."""
    now_s = int(time.time())
    claims = replace(mine.client.grant.claims, issued_at_s=now_s - 400, expires_at_s=now_s - 100)
    envelope = replace(Envelope.parse(mine.begin("hello").envelope), ticket=tray.issuer.issue(claims))
    assert await send(mine, envelope.encode()) == "TICKET_EXPIRED"


async def test_the_wrong_name_never_reaches_the_right_worker(
    tray: Tray, mine: TenantSession, theirs: TenantSession
) -> None:
    """With A's certificate pinned, B's name leads to a failed handshake, as does A's name with B's certificate."""
    a, b = mine.client.grant, theirs.client.grant
    for certificate, authority in (
        (a.worker_certificate, b.claims.audience),
        (b.worker_certificate, a.claims.audience),
    ):
        channel = worker_channel(tray.ingress, certificate, authority=authority)
        stub = health_pb2_grpc.HealthStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        await channel.close()


async def test_the_http_authority_does_not_choose_the_worker(
    tray: Tray, mine: TenantSession, theirs: TenantSession
) -> None:
    """A connection to B's worker that claims A's host inside still speaks to B's worker, which refuses A's request."""
    grant = theirs.client.grant
    channel = worker_channel(tray.ingress, grant.worker_certificate, authority=grant.claims.audience)
    call = channel.unary_stream(
        "/bulkhead.v1.InferenceService/Generate",
        request_serializer=inference_pb2.SealedRequest.SerializeToString,
        response_deserializer=inference_pb2.SealedChunks.FromString,
    )
    request = mine.begin("hello")
    message = inference_pb2.SealedRequest(envelope=request.envelope, chunk=request.chunks)
    assert await refused(call(message, metadata=(("host", mine.client.grant.claims.audience),), timeout=20)) == (
        "TICKET_INVALID"
    )
    await channel.close()


async def test_garbage_at_every_door_changes_nothing(
    tray: Tray, pair: tuple[Placed, Placed], mine: TenantSession, theirs: TenantSession
) -> None:
    """Noise at the ingress, at the worker's socket, and inside TLS closes the noisy connection only."""
    host, port = tray.ingress.rsplit(":", 1)
    sockets = [tray.run / placed.partition_id.rpartition("_")[2] / "w.sock" for placed in pair]
    for noise in (
        b"",
        b"\0" * 4096,
        b"GET / HTTP/1.1\r\n\r\n",
        os.urandom(70_000),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ):
        for open_connection in (
            lambda: asyncio.open_connection(host, int(port)),
            lambda: asyncio.open_unix_connection(sockets[0]),
        ):
            reader, writer = await open_connection()
            with contextlib.suppress(OSError):
                writer.write(noise)
                writer.write_eof()
                await asyncio.wait_for(reader.read(), 10)
            writer.close()
    await asyncio.to_thread(noise_inside_tls, host, int(port), mine.client.grant.claims.audience)


def noise_inside_tls(host: str, port: int, authority: str) -> None:
    """Finish a handshake with the worker and send nonsense where HTTP/2 is expected."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with socket.create_connection((host, port), 10) as plain, contextlib.suppress(OSError):
        secure = context.wrap_socket(plain, server_hostname=authority)
        secure.sendall(os.urandom(20_000))
        secure.recv(10)


async def test_messages_that_are_none_are_typed(mine: TenantSession) -> None:
    """Undecodable, empty, oversized and overlong messages each give a clear code, no stack, and do not hang."""
    call = mine.channel.unary_stream(
        "/bulkhead.v1.InferenceService/Generate",
        request_serializer=bytes,
        response_deserializer=inference_pb2.SealedChunks.FromString,
    )
    assert await refused(call(b"\xff" * 100, timeout=20)) == "MALFORMED_REQUEST"
    assert await refused(call(b"", timeout=20)) == "MALFORMED_REQUEST"
    assert await send(mine, b"x" * 100_000) == "MESSAGE_TOO_LARGE"
    assert await send(mine, b"x", [b"y"] * 1000) == "MESSAGE_TOO_LARGE"
    assert await refused(call(bytes(100 << 20), timeout=60)) == "EXHAUSTED"
    fetch = inference_pb2.GetReceiptRequest(ticket="t" * 10_000, request_id="r", signature=b"s")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await mine.stub.GetReceipt(fetch, timeout=20)
    assert error_from_rpc(caught.value, Peer.WORKER).code == "MESSAGE_TOO_LARGE"


async def test_receipts_are_nobody_elses(mine: TenantSession, theirs: TenantSession) -> None:
    """B's ticket and signature fetch nothing of A's worker, and A's receipt is not found at B's."""
    request = mine.begin("hello", max_tokens=3)
    assert [event async for event in mine.events(request)]
    for session, stub, code in ((theirs, mine.stub, "TICKET_INVALID"), (theirs, theirs.stub, "NOT_FOUND")):
        fetch = inference_pb2.GetReceiptRequest(
            ticket=session.client.grant.ticket,
            request_id=request.request_id,
            signature=session.client.sign_receipt_fetch(request.request_id),
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetReceipt(fetch, timeout=20)
        assert error_from_rpc(caught.value, Peer.WORKER).code == code


async def test_a_worker_shows_health_and_no_reflection(mine: TenantSession) -> None:
    """Health is SERVING; a worker does not describe itself to strangers."""
    health = await health_pb2_grpc.HealthStub(mine.channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    assert health.status == health_pb2.HealthCheckResponse.SERVING
    method = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    request = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        # As one batch: a streaming call may be refused before its message is out, which grpc tells as INTERNAL.
        await mine.channel.unary_unary(method)(request, timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_session_beyond_its_share_does_not_starve_the_other_tenant(
    mine: TenantSession, theirs: TenantSession
) -> None:
    """While one tenant floods its worker far beyond its limits the other's requests are answered."""

    async def flood() -> str:
        try:
            answer = await mine.ask("flood", max_tokens=60)
            return answer.end.code if hasattr(answer.end, "code") else "OK"
        except grpc.aio.AioRpcError as error:
            return error_from_rpc(error, Peer.WORKER).code

    flooding = [asyncio.create_task(flood()) for _ in range(60)]
    assert (await asyncio.wait_for(theirs.ask("hello", max_tokens=5), 20)).complete is not None
    outcomes = set(await asyncio.gather(*flooding))
    assert "OK" in outcomes
    assert outcomes <= {"OK", "QUEUE_FULL", "RATE_LIMITED"}
    assert outcomes - {"OK"}


async def test_a_worker_process_is_confined(tray: Tray) -> None:
    """Running workers gain no privileges, hold no capability, dump no core, and know nothing of the environment."""
    assert tray.process is not None
    pids = worker_pids(tray.process.pid)
    assert len(pids) == 2
    for pid in pids:
        status, limits, environment = await asyncio.to_thread(what_proc_tells, pid)
        assert status["NoNewPrivs"] == "1"
        assert int(status["CapEff"], 16) == 0
        assert limits.split("Max core file size", 1)[1].split()[:2] == ["0", "0"]
        assert SECRET_OF_AGENT.encode() not in environment
        assert b"BULKHEAD" not in environment


def what_proc_tells(pid: int) -> tuple[dict[str, str], str, bytes]:
    """Return status, limits and environment of a process."""
    process = Path(f"/proc/{pid}")
    lines = (process / "status").read_text("utf-8").splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    return status, (process / "limits").read_text("utf-8"), (process / "environ").read_bytes()


async def test_no_prompt_is_written_anywhere(tray: Tray, mine: TenantSession) -> None:
    """A canary prompt is in no log, spool, record or event of the tray, nor in what the control plane was told."""
    request = mine.begin(CANARY, max_tokens=8)
    assert [event async for event in mine.events(request)]
    refused_one = await mine.ask(CANARY + "z" * 1_900_000)
    assert isinstance(refused_one.end, Failure)
    assert refused_one.end.code == "CONTEXT_LENGTH"
    await asyncio.sleep(0.3)
    written = [path for path in tray.directory.rglob("*") if path.is_file() and "models" not in path.parts]
    assert any(path.name == "events.spool" for path in written)
    for path in written:
        assert CANARY.encode() not in path.read_bytes()
    told = b"".join(event.SerializeToString() for event in tray.plane.events.values())
    assert CANARY.encode() not in told
    assert "Traceback" not in tray.log()
