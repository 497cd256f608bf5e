"""Frames between agent and worker: round trips, bounds, and what ends the channel."""

import asyncio
import random
import socket
import struct
from collections.abc import Awaitable, Callable

import pytest

from bulkhead.errors import AgentUnavailableError, MalformedRequestError, WorkerLostError
from data_plane.inference.metrics import FIRST_TOKEN_S, EngineCounters, EngineMetrics, Histogram
from data_plane.rpc import control_channel
from data_plane.rpc.control_channel import MAX_FRAME_BYTES, AgentChannel, WorkerChannel
from data_plane.session.messages import (
    Drain,
    FromWorker,
    LeaseGrant,
    NamedEvidence,
    ReceiptDurable,
    ReceiptReady,
    StartWorker,
    ToWorker,
    WorkerFailed,
    WorkerLoad,
    WorkerLoading,
    WorkerMetrics,
    WorkerReady,
    WorkerRefused,
)

TO_WORKER: list[ToWorker] = [
    StartWorker(
        partition_id="part_1",
        tenant_id="tenant_1",
        tier="mig",
        simulated=True,
        model_name="m",
        model_directory="/models/m",
        model_digest=bytes(32),
        socket_path="/run/w.sock",
        authority="a.example",
        ticket_issuers=(bytes(32), b"1" * 32),
        threads=2,
        max_output_tokens=7,
        max_running_requests=3,
        max_queued_requests=4,
        kv_cache_mib=64,
        weights="bf16",
        key_life_s=3600,
        tenant_root=b"r" * 32,
    ),
    LeaseGrant(
        valid_until_ms=5,
        revoked_sessions=frozenset({"a", "b"}),
        unacknowledged_receipts=9,
        ticket_issuers=(b"i" * 32,),
        evidence=(NamedEvidence(digest=bytes(32), not_after_s=5),),
    ),
    Drain(until_ms=7),
    ReceiptDurable(receipt_number=3, durable=True),
]
FROM_WORKER: list[FromWorker] = [
    WorkerLoading(text="loading"),
    WorkerReady(keyset=b"{}", certificate=b"der", model_digest=bytes(32), context_length=512, sandbox=("a", "b")),
    WorkerFailed(code="CONFIG", message="no"),
    ReceiptReady(
        receipt_number=1,
        session_id="s",
        session_number=4,
        request_id="r",
        receipt_digest=bytes(32),
        prompt_tokens=1,
        completion_tokens=2,
        status="ok",
    ),
    WorkerLoad(running_requests=1, queued_requests=2),
    WorkerMetrics(
        metrics=EngineMetrics(
            counters=EngineCounters(steps=3, produced_tokens=2**40, busy_s=0.5, guessed=1),
            kv_use=0.25,
            prompt_tokens=7,
            cut=2,
            first_token=Histogram(tuple(range(len(FIRST_TOKEN_S) + 1)), 1.5),
        )
    ),
    WorkerRefused(code="TICKET_INVALID", session_id="s", tenant_id="t"),
]


async def repeat(send: Callable[[], Awaitable[None]]) -> None:
    for _ in range(100):
        await send()
        await asyncio.sleep(0.001)


async def pair() -> tuple[WorkerChannel, AgentChannel]:
    mine, theirs = socket.socketpair()
    return await WorkerChannel.open(mine), await AgentChannel.open(theirs)


async def raw() -> tuple[WorkerChannel, socket.socket]:
    mine, theirs = socket.socketpair()
    theirs.setblocking(False)
    return await WorkerChannel.open(mine), theirs


@pytest.mark.parametrize("message", TO_WORKER, ids=lambda message: type(message).__name__)
async def test_the_worker_reads_what_its_agent_sent(message: ToWorker) -> None:
    """Each message to a worker arrives with every field."""
    agent, worker = await pair()
    await agent.send(message)
    assert await worker.receive() == message
    agent.close()
    assert await worker.receive() is None


@pytest.mark.parametrize("message", FROM_WORKER, ids=lambda message: type(message).__name__)
async def test_the_agent_reads_what_its_worker_sent(message: FromWorker) -> None:
    """Each message of a worker arrives with every field."""
    agent, worker = await pair()
    await worker.send(message)
    assert await agent.receive() == message
    worker.close()
    assert await agent.receive() is None


@pytest.mark.parametrize(
    "frame", [struct.pack(">I", MAX_FRAME_BYTES + 1), struct.pack(">I", 0), struct.pack(">I", 3) + b"\xff\xff\xff"]
)
async def test_frames_that_are_none_are_refused(frame: bytes) -> None:
    """A frame that is too long, says nothing or does not decode is our own error."""
    agent, worker = await raw()
    await asyncio.get_running_loop().sock_sendall(worker, frame)
    with pytest.raises(MalformedRequestError):
        await agent.receive()
    worker.close()


async def test_a_channel_that_ends_inside_a_frame_has_ended() -> None:
    """Half a frame is no message."""
    agent, worker = await raw()
    await asyncio.get_running_loop().sock_sendall(worker, struct.pack(">I", 100) + b"half")
    worker.close()
    assert await agent.receive() is None


async def test_random_frames_never_raise_anything_else() -> None:
    """Whatever a worker sends, the agent gets a message, the end, or our own error."""
    chance = random.Random(5)
    for _ in range(300):
        agent, worker = await raw()
        body = chance.randbytes(chance.randrange(60))
        await asyncio.get_running_loop().sock_sendall(worker, struct.pack(">I", len(body)) + body)
        worker.close()
        try:
            await agent.receive()
        except MalformedRequestError:
            pass
        finally:
            agent.close()


async def test_sending_to_a_peer_that_is_gone_is_typed() -> None:
    """Each side tells which peer it has lost."""
    agent, worker = await pair()
    worker.close()
    with pytest.raises(WorkerLostError):
        await repeat(lambda: agent.send(Drain(until_ms=1)))
    agent, worker = await pair()
    agent.close()
    with pytest.raises(AgentUnavailableError):
        await repeat(lambda: worker.send(WorkerLoading(text="x")))


async def test_a_peer_that_does_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that takes no messages does not hold its agent up for longer than the time-out."""
    monkeypatch.setattr(control_channel, "SEND_TIMEOUT_S", 0.1)
    agent, worker = await raw()
    many = frozenset(str(number) for number in range(100_000))
    large = LeaseGrant(valid_until_ms=1, revoked_sessions=many, unacknowledged_receipts=0)
    with pytest.raises(WorkerLostError):
        await repeat(lambda: agent.send(large))
    worker.close()
    agent.close()
