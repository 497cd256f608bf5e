"""Evidence that leases name: once each, so that an open costs the same however many sessions live."""

import hashlib
import secrets
import time
from pathlib import Path
from types import SimpleNamespace

from bulkhead.attestation.tiers import Tier
from bulkhead.ids import COMMAND, PARTITION, TENANT, new_id
from bulkhead.sealing import WorkerKeys
from data_plane.evidence.issuing import IssuedEvidence
from data_plane.partitions import HostBackend
from data_plane.ports import Assignment, PartitionSpec, PartitionState
from data_plane.rpc.control_channel import WorkerChannel, _decode_to_worker, _encode_to_worker
from data_plane.session.agent import Agent, AgentFacts
from data_plane.session.commands import Attest, Attested, Command
from data_plane.session.lease import AgentLease, WorkerLease
from data_plane.session.live_evidence import LiveEvidence
from data_plane.session.messages import WorkerReady
from data_plane.session.partition import Partition, PartitionPorts
from data_plane.session.spool import Spool

MANY, FEW = 1_000, 10


class Link:
    """A worker at the other end of the socket; it remembers how long what it was told is."""

    def __init__(self) -> None:
        self.lease = WorkerLease(wall_s=time.time, monotonic_s=time.monotonic)
        self.sizes: list[int] = []
        self.named: list[int] = []

    async def send(self, message) -> None:
        """Take a lease as it goes over the socket."""
        data = _encode_to_worker(message).SerializeToString()
        self.sizes.append(len(data))
        taken = _decode_to_worker(data)
        self.named.append(len(taken.evidence))
        self.lease.grant(taken)


class Issuer:
    """Makes evidence that is random bytes."""

    async def issue(self, request, *, keyset, descriptor, not_after_s) -> IssuedEvidence:
        """Return it."""
        return IssuedEvidence(evidence=secrets.token_bytes(64), not_after_s=not_after_s)


def serving(tmp_path: Path) -> tuple[Agent, Partition, Link]:
    """An agent with one partition, whose worker is a :class:`Link`."""
    spool, link = Spool(path=tmp_path / "spool", new_id=lambda: "s"), Link()
    ports = PartitionPorts(spool=spool, open_link=WorkerChannel.open, now_us=lambda: 0, stop_timeout_s=1)
    spec = PartitionSpec(partition_id=new_id(PARTITION), tenant_id=new_id(TENANT), tier=Tier.PROCESS)
    partition = Partition(spec=spec, fence=1, slot=0, assignment=Assignment(device_uuids=(), memory_mib=0), ports=ports)
    keys = WorkerKeys.generate(authority="w.example", now_s=int(time.time()))
    partition.model_name = "tiny"
    partition.ready = WorkerReady(
        keyset=keys.keyset.encoded, certificate=b"", model_digest=bytes(32), context_length=1, sandbox=()
    )
    partition.state = PartitionState.ATTESTING
    partition._link = link
    agent = Agent(
        facts=AgentFacts(agent_id="a", software="s"),
        backend=HostBackend(rack="r", tray=0, region="eu", process_slots=1),
        scrubber=None,
        evidence=Issuer(),
        starter=SimpleNamespace(ticket_issuers=lambda: (bytes(32),)),
        ports=ports,
        spool=spool,
        lease=AgentLease(wall_s=time.time, monotonic_s=time.monotonic),
        ingress=None,
        run=None,
    )
    agent._partitions[spec.partition_id] = partition
    return agent, partition, link


async def opened(agent: Agent, partition: Partition, *, life_s: int = 600) -> bytes:
    """Have evidence made for an open, and return its digest."""
    now_s = int(time.time())
    result = await agent.handle(
        Command(
            command_id=new_id(COMMAND),
            partition_id=partition.partition_id,
            fence=1,
            deadline_ms=(now_s + 60) * 1_000,
            order=Attest(nonce=bytes(32), session_context=b"c", not_after_s=now_s + life_s),
        ),
        lambda _phase, _text: None,
    )
    assert isinstance(result, Attested), result
    return hashlib.sha256(result.evidence).digest()


async def test_an_open_among_a_thousand_costs_what_one_among_ten_does(tmp_path: Path) -> None:
    """Each lease names the one new piece of evidence, at 10 live sessions as at 1,000; the worker knows them all."""
    agent, partition, link = serving(tmp_path)
    digests = [await opened(agent, partition) for _ in range(MANY + 1)]
    assert link.named == [1] * (MANY + 1)
    assert link.sizes[MANY] == link.sizes[FEW] < 200
    assert all(link.lease.knows_evidence(digest) for digest in digests)
    assert not link.lease.knows_evidence(bytes(32))
    await partition.grant(agent._grant(partition))  # as every second
    assert (link.named[-1], link.sizes[-1] < link.sizes[FEW]) == (0, True)
    assert all(link.lease.knows_evidence(digest) for digest in digests)


class Compared(int):
    """Counts how often ends of evidence are compared."""

    count = 0

    def __lt__(self, other: int) -> bool:
        Compared.count += 1
        return int(self) < int(other)

    def __le__(self, other: int) -> bool:
        Compared.count += 1
        return int(self) <= int(other)

    def __gt__(self, other: int) -> bool:
        Compared.count += 1
        return int(self) > int(other)

    def __eq__(self, other: object) -> bool:
        Compared.count += 1
        return isinstance(other, int) and int(self) == int(other)

    __hash__ = int.__hash__


def test_adding_and_forgetting_evidence_look_at_few_others() -> None:
    """Among 1,000 pieces, one that comes and one that ends cost a few comparisons for each doubling."""

    def cost(known: int) -> int:
        live = LiveEvidence()
        for number in range(known):
            live.add(number.to_bytes(32, "big"), Compared(1_000 + number * 7 % known))
        Compared.count = 0
        live.add(b"n" * 32, Compared(5_000))
        live.expire(1_000)
        assert len(live) == known
        return Compared.count

    assert cost(MANY) <= cost(FEW) + 60


def test_evidence_is_known_until_its_later_end() -> None:
    """Ended pieces are forgotten; of one that was named twice the later end counts, in either order."""
    for ends in ((10, 20), (20, 10)):
        live = LiveEvidence()
        for end in ends:
            live.add(b"a", end)
        live.add(b"b", 10)
        live.expire(9)
        assert (len(live), live.holds(b"b", 9)) == (2, True)
        assert not live.holds(b"b", 10)
        live.expire(10)
        assert (len(live), live.holds(b"a", 10), live.holds(b"b", 9)) == (1, True, False)
        live.expire(20)
        assert (len(live), live.holds(b"a", 19)) == (0, False)
