"""A real node agent process on a simulated tray, its fake control plane, and tenants who talk to its workers."""

import asyncio
import contextlib
import hashlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from bulkhead.attestation import EvidenceKind, Tier, TrustPolicy
from bulkhead.attestation.model_digest import model_digest
from bulkhead.ids import PARTITION, TENANT, new_id
from bulkhead.protocol.client import ClientEvent, ClientRequest, ClientSession, Complete
from bulkhead.protocol.context import Method, session_context
from bulkhead.protocol.grant import SessionOffer, TrustAnchors, verify_grant
from bulkhead.protocol.payloads import Delta, End, Failure, GenerateRequest, Message, encode_generate_request
from bulkhead.protocol.tickets import TicketIssuer
from bulkhead.sealing.keyset import Keyset
from bulkhead.transparency.merkle import leaf_hash
from bulkhead.v1 import inference_pb2, inference_pb2_grpc
from service.bulkhead_fleet.v1 import fleet_pb2
from service.tls import spiffe_uri
from tests.simulator.fleet_plane import TRUST_DOMAIN, FleetPlane
from tests.simulator.sealed_world import MODEL, POLICY_DIGEST, World
from tests.simulator.tiny_model import make_tiny_model

AGENT_ID = "rack1-tray00"
CONFIG = """
agent_id = "{agent_id}"
state_directory = "state"
run_directory = "{run}"
model_directory = "models"
evidence_key = "state/evidence.pem"
drain_s = 3.0
heartbeat_s = 0.2

[control_plane]
addresses = ["127.0.0.1:{port}"]
retry_min_s = 0.05
retry_max_s = 0.3

[tls]
certificate = "agent.pem"
private_key = "agent.key"
authority = "ca/ca.pem"

[inventory]
backend = "{backend}"
rack = "rack1"
region = "eu-central"
process_slots = 4

[worker]
kv_cache_mib = 16
max_running_requests = 4
max_queued_requests = 4
threads = 1
start_timeout_s = 60.0

[sandbox]
user = "off"
network = "if_possible"

[log]
level = "{level}"
"""


@dataclass
class Placed:
    """A partition that was created."""

    partition_id: str
    tenant: str
    tier: Tier
    created: fleet_pb2.PartitionCreated


class Tray:
    """One agent and its control plane; use :func:`running_tray`."""

    def __init__(self, directory: Path, *, backend: str = "simulated") -> None:
        self.directory = directory
        self.backend = backend
        self.run = directory / "r"
        self.issuer = TicketIssuer(key=World(seed=7).key())
        self.plane = FleetPlane(directory, ticket_issuers=[self.issuer.public_key])
        self.model = make_tiny_model(directory / "models" / "tiny")
        self.model_digest = model_digest(self.model)
        self.process: asyncio.subprocess.Process | None = None
        self._log = directory / "agent.log"

    async def start(self) -> None:
        """Start the control plane, write the agent's configuration, start the agent."""
        await self.plane.start()
        identity = self.plane.authority.issue_client(uri=spiffe_uri(TRUST_DOMAIN, "agent", AGENT_ID))
        identity.save(self.directory / "agent.pem", self.directory / "agent.key")
        (self.directory / "agent.toml").write_text(
            CONFIG.format(agent_id=AGENT_ID, run=self.run, port=self.plane.port, backend=self.backend, level="info"),
            "utf-8",
        )
        await self.start_agent()

    async def start_agent(self) -> None:
        """Start the agent process and wait until it is welcomed."""
        self.plane._connected.clear()
        with self._log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "data_plane", "agent", "--config", str(self.directory / "agent.toml"), stderr=log
            )
        await self.plane.connected()

    async def kill_agent(self) -> None:
        """Kill the agent without warning."""
        assert self.process is not None
        self.process.kill()
        await self.process.wait()

    async def stop(self) -> int:
        """Ask the agent to stop, and the control plane after it; return the agent's exit status."""
        status = 0
        if self.process is not None and self.process.returncode is None:
            self.process.terminate()
            async with asyncio.timeout(40):
                status = await self.process.wait()
        await self.plane.stop()
        return status

    def log(self) -> str:
        """Return what agent and workers logged."""
        return self._log.read_text("utf-8")

    @property
    def ingress(self) -> str:
        """Address of the ingress, as the agent advertises it."""
        return self.plane.hellos[-1].inventory.ingress_address

    def create_order(self, *, tenant: str, tier: Tier = Tier.PROCESS, **changes: Any) -> fleet_pb2.CreatePartition:
        """Return an order for a partition that serves the tiny model."""
        fields: dict[str, Any] = {
            "tenant_id": tenant,
            "tier": tier.value,
            "model_name": MODEL,
            "model_path": "tiny",
            "model_digest": self.model_digest,
        }
        return fleet_pb2.CreatePartition(**(fields | changes))

    async def place(self, *, tenant: str = "", tier: Tier = Tier.PROCESS, **changes: Any) -> Placed:
        """Create a partition."""
        tenant = tenant or new_id(TENANT)
        partition_id = new_id(PARTITION)
        order = self.create_order(tenant=tenant, tier=tier, **changes)
        result = await self.plane.order(partition_id=partition_id, create=order)
        assert result.WhichOneof("result") == "created", result
        return Placed(partition_id, tenant, tier, result.created)

    async def release(self, placed: Placed, *, drain_s: float = 0, fence: int = 2) -> fleet_pb2.Result:
        """Release a partition."""
        until_ms = int((time.time() + drain_s) * 1000)
        return await self.plane.order(
            partition_id=placed.partition_id,
            fence=fence,
            release=fleet_pb2.Release(reason="test", drain_until_unix_ms=until_ms),
        )

    async def session(
        self, placed: Placed, *, seed: int = 0, root: Ed25519PrivateKey | None = None, **claim_changes: Any
    ) -> "TenantSession":
        """Open a session: fresh evidence, a ticket, full verification by the client; with ``root``, by its rules."""
        kind = EvidenceKind.SIMULATED if self.backend == "simulated" else EvidenceKind.OPERATOR
        world = World(seed=seed, kind=kind, tier=placed.tier, tenant=placed.tenant, now_s=int(time.time()))
        world.partition, world.authority, world.issuer = placed.partition_id, placed.created.authority, self.issuer
        if root is not None:
            world.root, world.rooted = root, True
        leaf = world.decision_leaf()
        context = session_context(
            tenant=placed.tenant,
            session=world.session,
            cnf=world.cnf,
            model_digest=self.model_digest,
            decision_leaf_hash=leaf_hash(leaf),
            policy_digest=POLICY_DIGEST,
        )
        result = await self.plane.order(
            partition_id=placed.partition_id,
            fence=1,
            attest=fleet_pb2.Attest(
                nonce=world.nonce, session_context=context, not_after_unix_s=int(time.time()) + 600
            ),
        )
        assert result.WhichOneof("result") == "attested", result
        attested = result.attested
        claims = replace(
            world.claims(
                evidence_digest=hashlib.sha256(attested.evidence).digest(), decision_leaf_hash=leaf_hash(leaf)
            ),
            keyset_digest=Keyset.parse(attested.keyset).key_id,
            model_digest=self.model_digest,
            **claim_changes,
        )
        offer = SessionOffer(
            session=world.session,
            ticket=self.issuer.issue(claims),
            authority=world.authority,
            worker_certificate=attested.worker_certificate,
            evidence=attested.evidence,
            decision=world.audit_receipt(leaf),
            model_digest=self.model_digest,
            policy_digest=POLICY_DIGEST,
        )
        anchors = TrustAnchors(
            log_vkey=world.log.vkey,
            ticket_issuers=(self.issuer.public_key,),
            trust_policy=TrustPolicy(
                accepted_kinds=frozenset({kind}),
                operator_keys=(self.plane.hellos[-1].evidence_public_key,),
                minimum_tier=Tier.PROCESS,
            ),
            development_mode=kind is EvidenceKind.SIMULATED,
            tenant_roots=() if world.tenant_root is None else (world.tenant_root,),
        )
        grant = verify_grant(offer, expectation=world.expectation(), anchors=anchors, now_s=int(time.time()))
        certificate = world.certificate() if world.rooted else b""
        client = ClientSession(grant=grant, session_key=world.session_key, certificate=certificate)
        return TenantSession(client, self.ingress, world.session)


class TenantSession:
    """A verified session and a pinned channel to its worker."""

    def __init__(self, client: ClientSession, ingress: str, session_id: str) -> None:
        self.client = client
        self.session_id = session_id
        self.channel = worker_channel(ingress, client.grant.worker_certificate, authority=client.grant.claims.audience)
        self.stub = inference_pb2_grpc.InferenceServiceStub(self.channel)

    async def close(self) -> None:
        """Close the channel."""
        await self.channel.close()

    def begin(self, text: str = "hello", *, request_id: str | None = None, **options: Any) -> ClientRequest:
        """Seal a request of one user turn, greedy unless it says otherwise."""
        request = GenerateRequest(messages=(Message(role="user", content=text),), **{"temperature": 0.0, **options})
        return self.client.begin(
            Method.GENERATE, encode_generate_request(request), now_s=int(time.time()), request_id=request_id
        )

    def call(self, request: ClientRequest) -> Any:
        """Send a request."""
        message = inference_pb2.SealedRequest(envelope=request.envelope, chunk=request.chunks)
        return self.stub.Generate(message, timeout=30)

    async def events(self, request: ClientRequest, call: Any = None) -> AsyncIterator[ClientEvent]:
        """Send a request and open what comes back."""
        async for message in call or self.call(request):
            if message.worker_nonce:
                request.accept(message.worker_nonce)
            for chunk in message.chunk:
                yield request.receive(chunk)

    async def ask(self, text: str = "hello", **options: Any) -> "Answer":
        """Ask and return the whole answer."""
        request = self.begin(text, **options)
        return Answer.of([event async for event in self.events(request)])


@dataclass(frozen=True)
class Answer:
    """What came back."""

    text: str
    tokens: int
    end: End | Failure | None
    complete: Complete | None

    @classmethod
    def of(cls, events: list[ClientEvent]) -> "Answer":
        """Collect events."""
        deltas = [event for event in events if isinstance(event, Delta)]
        return cls(
            text="".join(delta.text for delta in deltas),
            tokens=sum(delta.tokens for delta in deltas),
            end=next((event for event in events if isinstance(event, End | Failure)), None),
            complete=next((event for event in events if isinstance(event, Complete)), None),
        )


def worker_channel(ingress: str, certificate_der: bytes, *, authority: str) -> grpc.aio.Channel:
    """Return a channel to a worker with its certificate as sole root."""
    pem = x509.load_der_x509_certificate(certificate_der).public_bytes(Encoding.PEM)
    return grpc.aio.secure_channel(
        ingress,
        grpc.ssl_channel_credentials(root_certificates=pem),
        options=[("grpc.ssl_target_name_override", authority), ("grpc.use_local_subchannel_pool", 1)],
    )


@contextlib.asynccontextmanager
async def running_tray(directory: Path, *, backend: str = "simulated") -> AsyncIterator[Tray]:
    """Run a tray; at the end nothing of it is left."""
    tray = Tray(directory, backend=backend)
    await tray.start()
    try:
        yield tray
    finally:
        await tray.stop()


def worker_pids(agent_pid: int) -> list[int]:
    """Return the workers of an agent, by process tree."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                fields = (entry / "stat").read_text("utf-8").rpartition(")")[2].split()
                if int(fields[1]) == agent_pid and fields[0] != "Z":
                    found.append(int(entry.name))
    return found


def is_alive(pid: int) -> bool:
    """Tell whether a process exists and is no zombie."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text("utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill(pid: int) -> None:
    """Kill a process without warning."""
    os.kill(pid, signal.SIGKILL)
