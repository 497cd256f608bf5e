"""A worker program without a process: starting, failing to start, renewing keys, ending."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bulkhead.attestation.model_digest import model_digest
from bulkhead.errors import UnsupportedError
from bulkhead.ids import PARTITION, TENANT, new_id
from bulkhead.protocol.tickets import TicketIssuer
from bulkhead.sealing.keyset import Keyset
from data_plane.engine import EngineConfig
from data_plane.inference.port import Engine
from data_plane.session.keys import KeyRing
from data_plane.session.messages import (
    Drain,
    FromWorker,
    LeaseGrant,
    StartWorker,
    ToWorker,
    WorkerFailed,
    WorkerLoad,
    WorkerLoading,
    WorkerMetrics,
    WorkerReady,
)
from data_plane.session.observing import MIN_ANSWERED, sound
from data_plane.session.serving import RequestServer
from data_plane.session.worker import WorkerProgram
from service.tls import Identity
from tests.simulator.scripted_engine import ScriptedEngine

AUTHORITY = "part-1.worker.bulkhead.internal"


class Link:
    """The agent's side: a test puts messages in and reads what came."""

    def __init__(self) -> None:
        self.inbox: asyncio.Queue[ToWorker | None] = asyncio.Queue()
        self.sent: list[FromWorker] = []
        self.changed = asyncio.Event()

    async def send(self, message: FromWorker) -> None:
        """Take a message."""
        self.sent.append(message)
        self.changed.set()

    async def receive(self) -> ToWorker | None:
        """Give the next message."""
        return await self.inbox.get()

    async def until(self, kind: type[Any], count: int = 1) -> list[Any]:
        """Wait for that many messages of a kind."""
        async with asyncio.timeout(10):
            while len(found := [message for message in self.sent if isinstance(message, kind)]) < count:
                self.changed.clear()
                await self.changed.wait()
        return found


class Transport:
    """A listener that only remembers."""

    def __init__(self) -> None:
        self.requests: RequestServer | None = None
        self.identity: Callable[[], Identity] | None = None
        self.told: list[str] = []

    async def listen(
        self, requests: RequestServer, *, identity: Callable[[], Identity], socket_path: Path
    ) -> "Transport":
        """Begin."""
        self.requests, self.identity = requests, identity
        self.told.append(f"listen {socket_path}")
        return self

    async def drain(self) -> None:
        """Take note."""
        self.told.append("drain")

    async def stop(self, *, grace_s: float) -> None:
        """Take note."""
        self.told.append("stop" if grace_s else "stop now")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}", "utf-8")
    return tmp_path / "model"


def start_message(model: Path) -> StartWorker:
    return StartWorker(
        partition_id=new_id(PARTITION),
        tenant_id=new_id(TENANT),
        tier="process",
        simulated=True,
        model_name="m",
        model_directory=str(model),
        model_digest=model_digest(model),
        socket_path="/nowhere/w.sock",
        authority=AUTHORITY,
        ticket_issuers=(bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"),),
        threads=1,
        max_output_tokens=0,
        max_running_requests=2,
        max_queued_requests=2,
        kv_cache_mib=1,
        weights="fp32",
        key_life_s=86_400,
    )


@asynccontextmanager
async def running(
    *, load: Callable[[EngineConfig], Any] | None = None, **settings: Any
) -> AsyncIterator[tuple[Link, Transport, WorkerProgram, "asyncio.Task[bool]"]]:
    link, transport = Link(), Transport()

    async def scripted(_: EngineConfig) -> Engine:
        return ScriptedEngine("x")

    program = WorkerProgram(
        link=link,
        listen=transport.listen,
        sandbox=("limits",),
        wall_s=time.time,
        monotonic_s=time.monotonic,
        load=load or scripted,
        **settings,
    )
    task = asyncio.create_task(program.run())
    yield link, transport, program, task
    await link.inbox.put(None)
    await asyncio.wait({task}, timeout=10)
    task.cancel()


async def test_a_worker_serves_and_ends_when_told(model: Path) -> None:
    """Progress, then ready with keys for its name; a drain ends it in an orderly way, transport last."""
    async with running() as (link, transport, _, task):
        await link.inbox.put(start_message(model))
        (ready,) = await link.until(WorkerReady)
        assert len(await link.until(WorkerLoading, 2)) == 2
        assert ready.sandbox == ("limits",)
        assert Keyset.parse(ready.keyset).not_after_s > time.time() + 23 * 3600
        await link.inbox.put(Drain(until_ms=int(time.time() * 1000)))
        assert await asyncio.wait_for(task, 5)
        assert transport.told == ["listen /nowhere/w.sock", "drain", "stop"]


async def test_a_worker_whose_agent_is_gone_ends(model: Path) -> None:
    """The end of the channel ends the worker, and that is no orderly end."""
    async with running() as (link, _, _, task):
        await link.inbox.put(start_message(model))
        await link.until(WorkerReady)
        await link.inbox.put(None)
        assert not await asyncio.wait_for(task, 5)


async def test_another_digest_is_a_typed_failure_before_anything_is_loaded(model: Path) -> None:
    """Files that are not the registered ones are never opened by the engine."""
    loaded = []

    async def load(config: EngineConfig) -> Engine:
        loaded.append(config)
        return ScriptedEngine()

    async with running(load=load) as (link, _, _, task):
        message = start_message(model)
        (model / "config.json").write_text('{"changed": 1}', "utf-8")
        await link.inbox.put(message)
        (failed,) = await link.until(WorkerFailed)
        assert failed.code == "CONFIG"
        assert not await asyncio.wait_for(task, 5)
    assert loaded == []


@pytest.mark.parametrize("missing", [True, False])
async def test_a_model_that_cannot_be_served_is_a_typed_failure(model: Path, *, missing: bool) -> None:
    """A missing directory, or an architecture that the engine does not run, is said in our codes."""

    async def load(_: EngineConfig) -> Engine:
        raise UnsupportedError("no such architecture")

    async with running(load=load) as (link, _, _, task):
        message = start_message(model)
        await link.inbox.put(replace(message, model_directory="/nowhere") if missing else message)
        (failed,) = await link.until(WorkerFailed)
        assert failed.code == ("INVALID_REQUEST" if missing else "UNSUPPORTED")
        assert not await asyncio.wait_for(task, 5)


async def test_a_worker_that_is_ended_while_loading_does_not_wait_for_its_model(model: Path) -> None:
    """The end of the agent, or a drain, is noticed while a model loads."""

    async def load(_: EngineConfig) -> Engine:
        await asyncio.sleep(60)
        raise AssertionError

    for last in (None, Drain(until_ms=0)):
        async with running(load=load) as (link, _, _, task):
            await link.inbox.put(start_message(model))
            await link.until(WorkerLoading, 2)
            await link.inbox.put(last)
            assert not await asyncio.wait_for(task, 5)


async def test_keys_are_renewed_at_half_life_and_destroyed_at_its_end(model: Path) -> None:
    """The agent hears of a new keyset, TLS moves to it, and older generations are given up when their time is over."""
    async with running() as (link, transport, _, _task):
        await link.inbox.put(replace(start_message(model), key_life_s=2))
        first, second, third = (await link.until(WorkerReady, 3))[:3]
        assert len({ready.keyset for ready in (first, second, third)}) == 3
        assert transport.identity is not None
        assert transport.requests is not None
        held = transport.requests._sealed._keys
        assert len(held) <= 3
        async with asyncio.timeout(5):
            while Keyset.parse(first.keyset).key_id in held:
                await asyncio.sleep(0.05)
                held = transport.requests._sealed._keys


def test_generations_follow_the_clock() -> None:
    """Nothing is due before half-life; then one rotation; the older generation stays until its own end."""
    now = 1_900_000_000.0
    ring = KeyRing(authority=AUTHORITY, wall_s=lambda: now, life_s=1000)
    first = ring.current
    assert ring.due_s == 500
    assert ring.rotate() is None
    now += 500
    second = ring.rotate()
    assert second is ring.current is not first
    assert ring.identity().certificate_pem == second.tls_certificate
    assert ring.rotate() is None
    assert ring.take_expired() == ()
    now += 500
    assert ring.take_expired() == (first,)
    assert ring.rotate() is not None


async def test_a_lease_changes_whose_tickets_count(model: Path) -> None:
    """Issuers that a lease names take the place of those of the start; a lease that names none leaves them."""
    async with running() as (link, _, program, _task):
        await link.inbox.put(start_message(model))
        await link.until(WorkerReady)
        assert program._tickets is not None
        keys = [TicketIssuer(key=Ed25519PrivateKey.generate()) for _ in range(2)]
        for named in (tuple(key.public_key for key in keys), ()):
            await link.inbox.put(
                LeaseGrant(
                    valid_until_ms=0,
                    revoked_sessions=frozenset(),
                    unacknowledged_receipts=0,
                    ticket_issuers=named,
                )
            )
            for key in keys:
                async with asyncio.timeout(5):
                    while key.fingerprint.hex() not in program._tickets._keys:  # noqa: ASYNC110  nobody is told
                        await asyncio.sleep(0.01)


async def test_metrics_leave_when_enough_was_answered(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker sends a snapshot when it is due, and none however long it runs without answers."""
    monkeypatch.setattr("data_plane.session.observing.PERIOD_S", 0.0)
    monkeypatch.setattr("data_plane.session.worker.REPORT_EVERY_S", 0.001)
    async with running() as (link, transport, _, task):
        await link.inbox.put(start_message(model))
        await link.until(WorkerLoad, 20)
        assert not any(isinstance(message, WorkerMetrics) for message in link.sent)
        assert transport.requests is not None
        transport.requests.answered += MIN_ANSWERED
        (sent,) = await link.until(WorkerMetrics)
        assert sound(sent.metrics)
        said = len(await link.until(WorkerLoad))
        await link.until(WorkerLoad, said + 20)
        assert len(await link.until(WorkerMetrics)) == 1
        await link.inbox.put(Drain(until_ms=0))
        assert await task
