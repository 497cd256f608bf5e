"""A node agent of a simulated GB300 tray that speaks the real fleet protocol; its workers are keys and nothing else."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bulkhead import ids
from bulkhead.attestation import (
    AttestationRequest,
    EvidenceIssuer,
    EvidenceKind,
    PartitionDescriptor,
    Tier,
    key_fingerprint,
)
from bulkhead.sealing import WorkerKeys
from control_plane.placement.geometry import KNOWN_GEOMETRY
from service.bulkhead_fleet.v1 import fleet_pb2 as pb
from service.bulkhead_fleet.v1 import fleet_pb2_grpc

AGENT_METADATA = "x-test-agent"
GPU_MIB = 284_208


def inventory(tray: int, **changes: object) -> pb.Inventory:
    """The inventory of a simulated GB300 compute tray."""
    fields: dict[str, object] = {
        "rack": "rack1",
        "tray": tray,
        "region": "eu-central",
        "simulated": True,
        "tiers": ["process", "mig", "gpu"],
        "gpus": [
            pb.Gpu(
                uuid=f"GPU-{tray}-{index}",
                index=index,
                product="NVIDIA GB300",
                memory_mib=GPU_MIB,
                memory_slices=8,
                compute_slices=7,
                power_limit_w=1_400,
            )
            for index in range(4)
        ],
        "mig_profiles": [
            pb.MigProfile(
                profile_id=number,
                compute_slices=known.compute_slices,
                memory_slices=known.memory_slices,
                memory_mib=GPU_MIB // 8 * known.memory_slices,
                max_instances=known.max_instances,
                starts=known.starts,
            )
            for number, known in KNOWN_GEOMETRY.items()
        ],
        "ingress_address": f"127.0.0.1:{9000 + tray}",
        "evidence_kind": "simulated",
        "process_slots": 2,
        "driver_version": "580.173.02",
    }
    return pb.Inventory(**(fields | changes))  # type: ignore[arg-type]


Quoted = Callable[..., Sequence[bytes]]


@dataclass
class FakeWorker:
    """What a worker would hold."""

    order: pb.CreatePartition
    fence: int
    keys: WorkerKeys
    state: str = "attesting"


@dataclass
class FakeAgent:
    """The agent. Its conduct is what a test changes; everything else is as a real one does it."""

    address: str
    tray: int = 1
    inventory: pb.Inventory | None = None
    evidence_key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    boot_id: str = field(default_factory=lambda: ids.new_id("boot"))
    spool_id: str = field(default_factory=lambda: ids.new_id("spool"))
    create_delay_s: float = 0.0
    create_failure: pb.Failure | None = None
    scrubbed: bool = True
    answers: bool = True
    follows_leases: bool = True
    descriptor: Callable[[PartitionDescriptor], PartitionDescriptor] = lambda found: found
    evidence_nonce: bytes | None = None
    quoted: Quoted | None = None  # issues the evidence in place of the simulator's key
    workers: dict[str, FakeWorker] = field(default_factory=dict)
    commands: list[pb.Command] = field(default_factory=list)
    leases: list[pb.Lease] = field(default_factory=list)
    acknowledged: int = 0
    welcomes: list[pb.Welcome] = field(default_factory=list)
    last_seq: int = 0
    receipts: dict[str, int] = field(default_factory=dict)
    failure: grpc.aio.AioRpcError | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        if self.inventory is None:
            self.inventory = inventory(self.tray)
        self._outgoing: asyncio.Queue[pb.AgentMessage | None] = asyncio.Queue()
        self._channel: grpc.aio.Channel | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def agent_id(self) -> str:
        """Its name."""
        return f"rack1-tray{self.tray:02}"

    async def start(self, *, identity: str = "") -> None:
        """Connect and wait for the welcome, or for the refusal that ``failure`` then holds."""
        self._outgoing = asyncio.Queue()
        self.failure = None
        before = len(self.welcomes)
        self._channel = grpc.aio.insecure_channel(self.address)
        stub = fleet_pb2_grpc.FleetServiceStub(self._channel)
        self._say(pb.AgentMessage(hello=self.hello()))
        call = stub.Connect(self._messages(), metadata=((AGENT_METADATA, identity or self.agent_id),))
        self._spawn(self._listen(call))
        await self.until(lambda: len(self.welcomes) > before or self.failure is not None)

    async def stop(self) -> None:
        """Break the stream: to the control plane the agent is gone."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._channel is not None:
            await self._channel.close(None)
            self._channel = None

    def restarted(self) -> "FakeAgent":
        """Return the agent as a new process with the same spool: no worker has survived."""
        return replace(
            self,
            boot_id=ids.new_id("boot"),
            workers={},
            commands=[],
            leases=[],
            welcomes=[],
            changed=asyncio.Event(),
        )

    def hello(self) -> pb.Hello:
        """Return the first message of a stream."""
        return pb.Hello(
            agent_id=self.agent_id,
            boot_id=self.boot_id,
            spool_id=self.spool_id,
            last_event_seq=self.last_seq,
            inventory=self.inventory,
            partitions=self.statuses(),
            evidence_public_key=self.evidence_key.public_key().public_bytes_raw(),
        )

    def statuses(self) -> list[pb.PartitionStatus]:
        """Return what runs."""
        return [
            pb.PartitionStatus(partition_id=partition_id, fence=worker.fence, state=worker.state)
            for partition_id, worker in self.workers.items()
        ]

    def heartbeat(self) -> None:
        """Send a heartbeat."""
        self._say(pb.AgentMessage(heartbeat=pb.Heartbeat(partitions=self.statuses())))

    def event(self, partition_id: str, *, seq: int | None = None, **event: object) -> int:
        """Send one event of the spool; return its number."""
        self.last_seq = seq if seq is not None else self.last_seq + 1
        self._say(
            pb.AgentMessage(
                event=pb.Event(
                    seq=self.last_seq,
                    spool_id=self.spool_id,
                    partition_id=partition_id,
                    ts_us=time.time_ns() // 1_000,
                    **event,  # type: ignore[arg-type]
                )
            )
        )
        return self.last_seq

    def receipt(
        self, partition_id: str, session_id: str, *, tenant_id: str, digest: bytes = b"r" * 32, number: int = 0
    ) -> int:
        """Send the event of one served request, the session's next one; return the event's number."""
        if not number:
            number = self.receipts[session_id] = self.receipts.get(session_id, 0) + 1
        return self.event(
            partition_id,
            receipt=pb.ReceiptEvent(
                session_id=session_id,
                session_number=number,
                tenant_id=tenant_id,
                request_id=ids.new_id(ids.REQUEST),
                receipt_digest=digest,
                prompt_tokens=5,
                completion_tokens=7,
                status="ok",
            ),
        )

    async def until(self, holds: Callable[[], bool], *, timeout_s: float = 10.0) -> None:
        """Wait until ``holds``; every message that arrives is a chance."""
        async with asyncio.timeout(timeout_s):
            while not holds():
                self.changed.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await self.changed.wait()

    def _say(self, message: pb.AgentMessage) -> None:
        self._outgoing.put_nowait(message)

    async def _messages(self) -> AsyncIterator[pb.AgentMessage]:
        while (message := await self._outgoing.get()) is not None:
            yield message

    async def _listen(self, call: AsyncIterable[pb.ControlMessage]) -> None:
        try:
            async for message in call:
                self._take(message)
                self.changed.set()
        except grpc.aio.AioRpcError as error:
            self.failure = error
        self.changed.set()

    def _ticket_issuers(self) -> list[bytes]:
        named = list(self.leases[-1].ticket_issuers) if self.leases and self.follows_leases else []
        return named or list(self.welcomes[-1].ticket_issuers)

    def _take(self, message: pb.ControlMessage) -> None:
        match message.WhichOneof("message"):
            case "welcome":
                self.welcomes.append(message.welcome)
            case "lease":
                self.leases.append(message.lease)
            case "event_ack":
                self.acknowledged = message.event_ack.seq
            case "command":
                self.commands.append(message.command)
                if self.answers:
                    self._spawn(self._obey(message.command))

    async def _obey(self, command: pb.Command) -> None:
        match command.WhichOneof("command"):
            case "create":
                result = await self._create(command)
            case "attest":
                result = self._attest(command)
            case _:
                self.workers.pop(command.partition_id, None)
                result = pb.Result(released=pb.Released(scrubbed=self.scrubbed, detail="simulated scrub"))
        result.command_id = command.command_id
        self._say(pb.AgentMessage(result=result))

    async def _create(self, command: pb.Command) -> pb.Result:
        for phase in ("creating", "loading"):
            progress = pb.Progress(command_id=command.command_id, phase=phase, text=f"{phase} the worker")
            self._say(pb.AgentMessage(progress=progress))
        await asyncio.sleep(self.create_delay_s)
        if self.create_failure is not None:
            return pb.Result(failure=self.create_failure)
        authority = command.partition_id.replace("_", "-") + ".worker.bulkhead.internal"
        keys = WorkerKeys.generate(authority=authority, now_s=int(time.time()))
        self.workers[command.partition_id] = FakeWorker(command.create, command.fence, keys)
        return pb.Result(
            created=pb.PartitionCreated(
                authority=authority,
                worker_certificate=keys.tls_certificate,
                keyset=keys.keyset.encoded,
                context_length=8_192,
            )
        )

    def _attest(self, command: pb.Command) -> pb.Result:
        worker = self.workers.get(command.partition_id)
        if worker is None:
            return pb.Result(failure=pb.Failure(code="WORKER_LOST", message="no such worker"))
        order = worker.order
        assert self.inventory is not None
        described = PartitionDescriptor(
            partition=command.partition_id,
            tenant=order.tenant_id,
            tier=Tier(order.tier),
            simulated=self.inventory.simulated,
            region=self.inventory.region,
            rack=self.inventory.rack,
            tray=str(self.inventory.tray),
            agent=self.agent_id,
            gpus=tuple(order.gpu_uuids),
            memory_mib=order.memory_mib,
            ticket_issuers=tuple(map(key_fingerprint, self._ticket_issuers())),
            model=order.model_name,
            model_digest=order.model_digest,
            software="fake-agent",
            tenant_root=order.tenant_root or None,
        )
        issue = self.quoted or EvidenceIssuer(kind=EvidenceKind.SIMULATED, key=self.evidence_key).issue
        nonce = self.evidence_nonce or command.attest.nonce
        (evidence,) = issue(
            [AttestationRequest(nonce=nonce, context=command.attest.session_context)],
            keyset=worker.keys.keyset.encoded,
            descriptor=self.descriptor(described),
            not_after_s=command.attest.not_after_unix_s,
        )
        worker.state = "ready"
        return pb.Result(
            attested=pb.Attested(
                evidence=evidence,
                keyset=worker.keys.keyset.encoded,
                worker_certificate=worker.keys.tls_certificate,
            )
        )

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
