"""The agent's streams to the control plane: one to each replica, dialled again with a growing, jittered pause.

- A stream begins with the agent's greeting and the replica's welcome, within the connect time-out.
- Commands run beside each other; results, progress, heartbeats and events share one writer. A result whose stream is
  gone is not lost: the command comes again and is answered from the agent's memory.
- Events go to one replica at a time, in order, at most :data:`EVENT_WINDOW` ahead of its acknowledgements. When they
  stall or the stream ends, another replica gets them from the first unacknowledged one on.
- A write that takes longer than :data:`WRITE_TIMEOUT_S` ends the stream. A replica that is silently gone is found by
  HTTP/2 keep-alive.
"""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import grpc
import structlog

from bulkhead.errors import BulkheadError, ConnectionFailedError, MalformedRequestError
from data_plane.config import ControlPlaneConfig
from data_plane.rpc.convert import command_from, event_message, hello_message, result_message, status_message
from data_plane.session.agent import Agent
from data_plane.session.commands import Greeting
from data_plane.session.lease import AgentLease
from data_plane.session.spool import Spool
from service.bulkhead_fleet.v1 import fleet_pb2 as pb
from service.bulkhead_fleet.v1 import fleet_pb2_grpc

__all__ = ["FleetClient", "FleetPorts", "TicketIssuers"]

if TYPE_CHECKING:  # the class is generic in the stubs only
    Call: TypeAlias = grpc.aio.StreamStreamCall[pb.AgentMessage, pb.ControlMessage]
else:
    Call = Any

_log = structlog.get_logger(__name__)

MAX_MESSAGE_BYTES: Final = 4 << 20
WRITE_TIMEOUT_S: Final = 10.0
EVENT_WINDOW: Final = 4_096  # the control plane holds 8,192 unrecorded events of an agent
EVENT_BATCH: Final = 256
EVENT_STALL_S: Final = 60.0  # receipts are gathered for 10 s before they are acknowledged
MAX_COMMANDS: Final = 4_096
MAX_OUTGOING: Final = 8_192
MAX_ISSUERS: Final = 4  # as many as a partition descriptor names
_KEY_BYTES: Final = 32
_MS: Final = 1000


class TicketIssuers:
    """The keys that the replicas named, for workers to be started."""

    def __init__(self) -> None:
        self._by_replica: dict[str, tuple[bytes, ...]] = {}

    def take(self, replica: str, keys: tuple[bytes, ...]) -> None:
        """Replace what ``replica`` named.

        Raises:
            MalformedRequestError: no key, too many, or one that is none.
        """
        if not 0 < len(keys) <= MAX_ISSUERS or any(len(key) != _KEY_BYTES for key in keys):
            raise MalformedRequestError(f"there are 1 to {MAX_ISSUERS} ticket issuers, keys of {_KEY_BYTES} bytes")
        self._by_replica[replica] = keys

    def current(self) -> tuple[bytes, ...]:
        """Return all of them, at most :data:`MAX_ISSUERS`, those named last first."""
        keys = dict.fromkeys(key for named in reversed(self._by_replica.values()) for key in named)
        return tuple(keys)[:MAX_ISSUERS]


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetPorts:
    """What every stream works with.

    Attributes:
        agent: carries out commands.
        spool: holds events.
        lease: takes grants.
        issuers: takes ticket issuers.
        greeting: makes the first message.
        credentials: makes the channel's credentials, read anew for each stream so that a renewed certificate counts.
        heartbeat_s: pause between heartbeats.
        wall_s: Unix seconds.
        events: held by the stream that carries the events.
    """

    agent: Agent
    spool: Spool
    lease: AgentLease
    issuers: TicketIssuers
    greeting: Callable[[], Greeting]
    credentials: Callable[[], grpc.ChannelCredentials]
    heartbeat_s: float
    wall_s: Callable[[], float]
    events: asyncio.Lock


class FleetClient:
    """The stream to one replica.

    Args:
        address: host:port of its internal port.
        config: time-outs and the name in its certificate.
        ports: see :class:`FleetPorts`.
        jitter: a number from 0 to 1.
    """

    def __init__(
        self,
        *,
        address: str,
        config: ControlPlaneConfig,
        ports: FleetPorts,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._address = address
        self._config = config
        self._ports = ports
        self._jitter = jitter

    async def run(self) -> None:
        """Hold a stream until cancelled."""
        pause_s = self._config.retry_min_s
        while True:
            stream = _Stream(self._address, self._ports)
            try:
                await self._hold(stream)
            except grpc.aio.AioRpcError as error:
                # The details of a status are the peer's words; its code says what an operator needs.
                _log.warning("fleet.stream_ended", address=self._address, status=error.code().name)
            except (BulkheadError, OSError) as error:
                _log.warning("fleet.stream_ended", address=self._address, reason=str(error))
            if stream.welcomed:
                pause_s = self._config.retry_min_s
            await asyncio.sleep(pause_s * (0.5 + 0.5 * self._jitter()))
            pause_s = min(2 * pause_s, self._config.retry_max_s)

    async def _hold(self, stream: "_Stream") -> None:
        options: list[tuple[str, Any]] = [
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.enable_retries", 0),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        if self._config.server_name:
            options.append(("grpc.ssl_target_name_override", self._config.server_name))
        async with grpc.aio.secure_channel(self._address, self._ports.credentials(), options=options) as channel:
            call = fleet_pb2_grpc.FleetServiceStub(channel).Connect()
            try:
                await stream.greet(call, timeout_s=self._config.connect_timeout_s)
                await stream.carry(call)
            finally:
                call.cancel()


class _Stream:
    """One stream's life."""

    def __init__(self, address: str, ports: FleetPorts) -> None:
        self._address = address
        self._ports = ports
        self._outgoing: asyncio.Queue[pb.AgentMessage] = asyncio.Queue(MAX_OUTGOING)
        self._commands: set[asyncio.Task[None]] = set()
        self.welcomed = False

    async def greet(self, call: Call, *, timeout_s: float) -> None:
        """Say hello and take the welcome.

        Raises:
            ConnectionFailedError: no welcome in time.
            MalformedRequestError: something else came.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await call.write(pb.AgentMessage(hello=hello_message(self._ports.greeting())))
                message: Any = await call.read()
        except TimeoutError as error:
            raise ConnectionFailedError(f"no welcome within {timeout_s:g} s") from error
        if message is grpc.aio.EOF:
            status = await call.code()
            raise ConnectionFailedError(f"the control plane refused the stream: {status.name}")
        if message.WhichOneof("message") != "welcome":
            raise MalformedRequestError("the control plane did not begin with a welcome")
        self._ports.issuers.take(self._address, tuple(message.welcome.ticket_issuers))
        await self._ports.spool.skip_to(message.welcome.committed_event_seq)
        self.welcomed = True
        _log.info("fleet.connected", address=self._address)

    async def carry(self, call: Call) -> None:
        """Carry messages until one direction ends."""
        tasks = [
            asyncio.create_task(self._read(call)),
            asyncio.create_task(self._write(call)),
            asyncio.create_task(self._beat()),
            asyncio.create_task(self._send_events()),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            # Commands go on without their stream; their results are remembered.
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, call: Call) -> None:
        while True:
            message: Any = await call.read()
            if message is grpc.aio.EOF:
                status = await call.code()
                raise ConnectionFailedError(f"the control plane ended the stream: {status.name}")
            match message.WhichOneof("message"):
                case "command":
                    self._begin(command_from(message.command))
                case "event_ack":
                    self._ports.spool.acknowledge(message.event_ack.seq)
                case "lease":
                    self._take_lease(message.lease)
                case _:
                    raise MalformedRequestError("an unexpected message of the control plane")

    def _take_lease(self, lease: pb.Lease) -> None:
        before, issuers = self._ports.lease.revoked, self._ports.issuers.current()
        if lease.ticket_issuers:
            self._ports.issuers.take(self._address, tuple(lease.ticket_issuers))
        self._ports.lease.grant(
            self._address, valid_until_ms=lease.valid_until_unix_ms, revoked=frozenset(lease.revoked_sessions)
        )
        self._ports.spool.acknowledge(min(lease.committed_event_seq, self._ports.spool.last_seq))
        if (self._ports.lease.revoked, self._ports.issuers.current()) != (before, issuers):
            self._ports.agent.renew_soon()

    def _begin(self, command: Any) -> None:
        if len(self._commands) >= MAX_COMMANDS:
            raise MalformedRequestError(f"more than {MAX_COMMANDS} commands at once")
        task = asyncio.create_task(self._carry_out(command))
        self._commands.add(task)
        task.add_done_callback(self._commands.discard)

    async def _carry_out(self, command: Any) -> None:
        def progress(phase: str, text: str) -> None:
            if not self._outgoing.full():
                told = pb.Progress(command_id=command.command_id, phase=phase, text=text)
                self._outgoing.put_nowait(pb.AgentMessage(progress=told))

        result = await self._ports.agent.handle(command, progress)
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_S):  # a stream that has ended takes nothing more
                await self._outgoing.put(pb.AgentMessage(result=result_message(command.command_id, result)))
        except TimeoutError:
            _log.warning("fleet.result_unsent", command_id=command.command_id)

    async def _write(self, call: Call) -> None:
        while True:
            message = await self._outgoing.get()
            try:
                async with asyncio.timeout(WRITE_TIMEOUT_S):
                    await call.write(message)
            except (TimeoutError, asyncio.InvalidStateError) as error:
                raise ConnectionFailedError("the control plane does not take messages") from error

    async def _beat(self) -> None:
        while True:
            partitions = [status_message(status) for status in self._ports.agent.statuses()]
            beat = pb.Heartbeat(partitions=partitions, sent_unix_ms=int(self._ports.wall_s() * _MS))
            await self._outgoing.put(pb.AgentMessage(heartbeat=beat))
            await asyncio.sleep(self._ports.heartbeat_s)

    async def _send_events(self) -> None:
        while True:
            async with self._ports.events:
                await self._send_until_stalled()
            await asyncio.sleep(0)

    async def _send_until_stalled(self) -> None:
        """Send events in order; return when no acknowledgement has come for too long, to let another replica try."""
        spool = self._ports.spool
        sent = spool.acknowledged_seq
        while True:
            if sent - spool.acknowledged_seq >= EVENT_WINDOW:
                try:
                    async with asyncio.timeout(EVENT_STALL_S):
                        await spool.wait_acknowledged(sent - EVENT_WINDOW + 1)
                except TimeoutError:
                    return
            batch = spool.pending_after(sent, limit=min(EVENT_BATCH, EVENT_WINDOW - (sent - spool.acknowledged_seq)))
            for event in batch:
                await self._outgoing.put(pb.AgentMessage(event=event_message(event, spool_id=spool.spool_id)))
                sent = event.seq
            if not batch and not await self._more_events(sent):
                return

    async def _more_events(self, sent: int) -> bool:
        """Wait for events after ``sent``; false when those before it have not been acknowledged for too long."""
        spool = self._ports.spool
        before = spool.acknowledged_seq
        try:
            async with asyncio.timeout(EVENT_STALL_S):
                await spool.wait_beyond(max(sent, spool.acknowledged_seq))
        except TimeoutError:
            return spool.acknowledged_seq > before or spool.acknowledged_seq >= sent
        return True
