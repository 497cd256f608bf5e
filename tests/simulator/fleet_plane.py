"""The control plane's side of the fleet protocol on real mutual TLS, reduced to what a test orders.

It keeps every event, grants leases while told to, and remembers nothing else.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

from bulkhead.ids import COMMAND, new_id
from service.bulkhead_fleet.v1 import fleet_pb2 as pb
from service.bulkhead_fleet.v1 import fleet_pb2_grpc
from service.tls import LocalAuthority, mutual_server_credentials, peer_certificate, spiffe_uri

TRUST_DOMAIN = "test.bulkhead"
LEASE_EVERY_S = 0.2


class FleetPlane(fleet_pb2_grpc.FleetServiceServicer):
    """One replica.

    Attributes:
        authority: issues the agent's identity too.
        port: of the internal listener, once started.
        granting: whether leases are sent.
        acknowledging: whether events are acknowledged.
        revoked: sessions in the next leases.
        events: everything the agent spooled, by number.
        hellos: first messages, in order.
        progress: what commands told on their way.
    """

    def __init__(self, directory: Path, *, ticket_issuers: list[bytes]) -> None:
        self.authority = LocalAuthority.load_or_create(directory / "ca", name="fleet test")
        self.port = 0
        self.granting = True
        self.acknowledging = True
        self.revoked: list[str] = []
        self.events: dict[int, pb.Event] = {}
        self.hellos: list[pb.Hello] = []
        self.heartbeats: list[pb.Heartbeat] = []
        self.progress: list[pb.Progress] = []
        self.peers: list[tuple[str, ...]] = []
        self.results: list[pb.Result] = []
        self._ticket_issuers = ticket_issuers
        self._outgoing: asyncio.Queue[pb.ControlMessage] | None = None
        self._connected = asyncio.Event()
        self._waiting: dict[str, asyncio.Future[pb.Result]] = {}
        self._server: grpc.aio.Server | None = None
        self._changed = asyncio.Condition()

    async def start(self, *, port: int = 0) -> None:
        """Listen on loopback."""
        identity = self.authority.issue_server(
            uri=spiffe_uri(TRUST_DOMAIN, "control-plane"), dns_names=["localhost"], addresses=["127.0.0.1"]
        )
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        fleet_pb2_grpc.add_FleetServiceServicer_to_server(self, self._server)
        self.port = self._server.add_secure_port(
            f"127.0.0.1:{port}", mutual_server_credentials(identity, self.authority.certificate_pem)
        )
        await self._server.start()

    async def stop(self) -> None:
        """Go away, as after kill -9: streams break."""
        self._connected.clear()
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    async def connected(self, *, timeout_s: float = 20) -> None:
        """Wait until an agent is welcomed."""
        async with asyncio.timeout(timeout_s):
            await self._connected.wait()

    async def until(self, holds: Any, *, timeout_s: float = 20) -> None:
        """Wait until ``holds()``, which is asked again after each message of the agent."""
        async with asyncio.timeout(timeout_s), self._changed:
            await self._changed.wait_for(holds)

    def of_kind(self, kind: str) -> list[pb.Event]:
        """Return the events of one kind, in order of their numbers."""
        return [event for _, event in sorted(self.events.items()) if event.WhichOneof("event") == kind]

    async def order(
        self, *, partition_id: str, fence: int = 1, timeout_s: float = 60, command_id: str = "", **order: Any
    ) -> pb.Result:
        """Send one command and return its result."""
        command_id = command_id or new_id(COMMAND)
        deadline_ms = int((time.time() + timeout_s) * 1000)
        message = pb.Command(
            command_id=command_id, partition_id=partition_id, fence=fence, deadline_unix_ms=deadline_ms, **order
        )
        future = asyncio.get_running_loop().create_future()
        self._waiting[command_id] = future
        await self.connected()
        self.send(pb.ControlMessage(command=message))
        async with asyncio.timeout(timeout_s + 30):
            return await future

    def send(self, message: pb.ControlMessage) -> None:
        """Send anything to the connected agent."""
        assert self._outgoing is not None
        self._outgoing.put_nowait(message)

    def lease(self, *, valid_s: float = 30.0) -> pb.ControlMessage:
        """Return a lease."""
        committed = max(self.events, default=0) if self.acknowledging else 0
        return pb.ControlMessage(
            lease=pb.Lease(
                valid_until_unix_ms=int((time.time() + valid_s) * 1000),
                committed_event_seq=committed,
                revoked_sessions=self.revoked,
            )
        )

    async def Connect(
        self, request_iterator: AsyncIterator[pb.AgentMessage], context: Any
    ) -> AsyncIterator[pb.ControlMessage]:
        """Serve one agent's stream."""
        certificate = peer_certificate(context)
        self.peers.append(certificate.uris if certificate is not None else ())
        first = await anext(request_iterator)
        self.hellos.append(first.hello)
        outgoing = self._outgoing = asyncio.Queue()
        committed = max(self.events, default=0)
        outgoing.put_nowait(
            pb.ControlMessage(welcome=pb.Welcome(committed_event_seq=committed, ticket_issuers=self._ticket_issuers))
        )
        reading = asyncio.create_task(self._read(request_iterator, outgoing))
        granting = asyncio.create_task(self._grant(outgoing))
        self._connected.set()
        try:
            while True:
                yield await outgoing.get()
        finally:
            reading.cancel()
            granting.cancel()

    async def _read(self, messages: AsyncIterator[pb.AgentMessage], outgoing: asyncio.Queue[pb.ControlMessage]) -> None:
        async for message in messages:
            match message.WhichOneof("message"):
                case "event":
                    self.events[message.event.seq] = message.event
                    if self.acknowledging:
                        outgoing.put_nowait(pb.ControlMessage(event_ack=pb.EventAck(seq=message.event.seq)))
                case "result":
                    self.results.append(message.result)
                    waiting = self._waiting.pop(message.result.command_id, None)
                    if waiting is not None and not waiting.done():
                        waiting.set_result(message.result)
                case "progress":
                    self.progress.append(message.progress)
                case "heartbeat":
                    self.heartbeats.append(message.heartbeat)
            async with self._changed:
                self._changed.notify_all()

    async def _grant(self, outgoing: asyncio.Queue[pb.ControlMessage]) -> None:
        while True:
            if self.granting:
                outgoing.put_nowait(self.lease())
            await asyncio.sleep(LEASE_EVERY_S)
