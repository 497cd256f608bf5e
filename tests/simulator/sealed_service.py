"""A worker's request server over gRPC without process, agent and engine: for what passes between it and a client."""

import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from bulkhead.client.generation import Answer
from bulkhead.client.keeper import GrantKeeper
from bulkhead.client.link import Link
from bulkhead.client.status import Peer
from bulkhead.client.transport import Channel
from bulkhead.protocol.context import Method
from bulkhead.protocol.grant import SessionOffer, verify_grant
from bulkhead.protocol.payloads import GenerateRequest, Message, encode_generate_request
from bulkhead.protocol.tickets import TicketVerifier
from data_plane.inference.port import Engine
from data_plane.rpc.inference_server import InferenceServer
from data_plane.session.lease import WorkerLease
from data_plane.session.messages import FromWorker, LeaseGrant, ReceiptDurable, ReceiptReady, ToWorker
from data_plane.session.receipts import ReceiptDesk
from data_plane.session.refusals import RefusalReporter
from data_plane.session.serving import RequestServer
from service.tls import Identity
from tests.simulator.sealed_world import World

__all__ = ["answer", "identity_of", "link_to", "request_server", "serve", "worker_channel"]

_LEASE_S = 3_600.0


class _Agent:
    """Makes every receipt durable at once."""

    def __init__(self) -> None:
        self.desk: ReceiptDesk | None = None

    async def send(self, message: FromWorker) -> None:
        """Take a message."""
        if isinstance(message, ReceiptReady) and self.desk is not None:
            self.desk.settle(ReceiptDurable(receipt_number=message.receipt_number, durable=True))

    async def receive(self) -> ToWorker | None:
        """Say nothing."""
        return None


def request_server(world: World, engine: Engine) -> RequestServer:
    """Return the world's worker in front of an engine, with a lease that does not end."""
    agent = _Agent()
    desk = agent.desk = ReceiptDesk(link=agent, monotonic_s=time.monotonic)
    lease = WorkerLease(wall_s=time.time, monotonic_s=lambda: 0.0)
    lease.grant(
        LeaseGrant(
            valid_until_ms=int((time.time() + _LEASE_S) * 1000),
            revoked_sessions=frozenset(),
            unacknowledged_receipts=0,
        )
    )
    tickets = TicketVerifier(issuer_keys=[world.issuer.public_key])
    return RequestServer(
        sealed=world.server,
        engine=engine,
        lease=lease,
        desk=desk,
        refusals=RefusalReporter(link=agent, tickets=tickets, monotonic_s=time.monotonic),
        max_in_flight=256,
        max_output_tokens=0,
        wall_s=time.time,
    )


def identity_of(world: World) -> Identity:
    """Return the worker's TLS identity."""
    return Identity(certificate_pem=world.keys.tls_certificate, private_key_pem=world.keys.tls_private_key())


async def serve(world: World, engine: Engine, socket_path: Path) -> InferenceServer:
    """Listen on a Unix socket; the caller stops the server."""
    identity = identity_of(world)
    return await InferenceServer.start(
        request_server(world, engine), identity=lambda: identity, socket_path=socket_path
    )


def worker_channel(world: World, certificate: bytes, address: str) -> Channel:
    """Return the SDK's channel to the worker, whose certificate is given as DER."""
    roots = ssl.DER_cert_to_PEM_cert(certificate).encode()
    return Channel(peer=Peer.WORKER, address=address, roots_pem=roots, server_name=world.authority)


def link_to(world: World, offer: SessionOffer, channel: Channel) -> Link:
    """Return the SDK's link under a verified offer."""
    grant = verify_grant(offer, expectation=world.expectation(), anchors=world.anchors(), now_s=int(time.time()))
    return Link(sealing=world.client(grant), grant=grant, received=None, nonce=b"", channel=channel)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class _Keeper:
    """Stands for the SDK's keeper of one grant that needs no renewal."""

    held: Link

    async def link(self) -> Link:
        """Return the one link."""
        return self.held

    def now_s(self) -> int:
        """Return Unix seconds."""
        return int(time.time())


def answer(link: Link, prompt: str, *, max_tokens: int | None = None) -> Answer:
    """Return the SDK's answer to one prompt, to be read."""
    request = GenerateRequest(messages=(Message(role="user", content=prompt),), max_tokens=max_tokens)
    return Answer(
        keeper=cast("GrantKeeper", _Keeper(link)),
        method=Method.GENERATE,
        payload=encode_generate_request(request),
        stall_s=60.0,
    )
