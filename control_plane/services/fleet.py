"""Node agents: who is connected, what they have, and what becomes of their partitions when they come and go.

- An agent is known by its certificate; a hello that names another agent, or comes from a simulated tray where that is
  not allowed, or shows another evidence key than the pinned one, is refused.
- One live stream per agent: a newer one replaces an older one.
- A hello is compared with SQL. Workers that are alive and that this platform created are taken over; others are
  released. Partitions that the agent does not run any more are lost, and their sessions with them.
- An agent that falls silent, or whose stream ends, is disconnected: nothing new is placed there. After a grace its
  partitions are lost. A restart of the control plane counts as a disconnection of every agent.
"""

import hashlib
from collections.abc import Callable, Iterable
from typing import Final

import structlog

from audit.records import Action, PlatformReason, Record, administered, platform_cause
from bulkhead.encoding import Json
from bulkhead.errors import (
    AgentUnavailableError,
    BulkheadError,
    CredentialInvalidError,
    EvidencePolicyError,
    InvalidRequestError,
    SimulatedEvidenceError,
)
from control_plane.authz.input import PlatformFacts
from control_plane.domain.fleet import (
    AgentReport,
    CommandProgress,
    CommandResult,
    Heartbeat,
    Hello,
    PartitionReport,
    SpooledEvent,
    Welcome,
)
from control_plane.domain.partitions import LIVE, Partition, PartitionState
from control_plane.placement.place import Host
from control_plane.services.agents import Agent, Stream
from control_plane.services.book import PartitionBook
from control_plane.services.issuers import Issuers
from control_plane.services.journal import Journal
from control_plane.services.lifecycle import Lifecycle, platform_origin
from control_plane.services.receipts import Receipts
from control_plane.services.release import Releaser
from control_plane.services.settings import FleetSettings
from control_plane.storage.engine import Database, Transaction
from control_plane.storage.partitions import AgentRow, Agents

__all__ = ["Fleet"]

US_PER_S: Final = 1_000_000
RESERVATION_S: Final = 10  # between a reservation and its command lie two commits
RELEASE_RETRY_S: Final = 30  # a release that failed while the agent was there is tried again
_TAKEN_OVER: Final = (PartitionState.READY, PartitionState.ATTESTING)
_BY_AGENT: Final = platform_origin(PlatformReason.AGENT)

log = structlog.get_logger(__name__)


class Fleet:
    """The node agents.

    Args:
        database: the state.
        journal: the audit log.
        book: partitions in memory.
        lifecycle: takes their steps.
        releaser: ends them.
        receipts: takes agents' events into the audit log.
        settings: time-outs, pinned keys.
        issuers: whose tickets workers take.
        now_us: wall clock, microseconds since the epoch.
    """

    def __init__(
        self,
        *,
        database: Database,
        journal: Journal,
        book: PartitionBook,
        lifecycle: Lifecycle,
        releaser: Releaser,
        receipts: Receipts,
        settings: FleetSettings,
        issuers: Issuers,
        now_us: Callable[[], int],
    ) -> None:
        self._database = database
        self._journal = journal
        self._book = book
        self._lifecycle = lifecycle
        self._releaser = releaser
        self._receipts = receipts
        self._settings = settings
        self._issuers = issuers
        self._now_us = now_us
        self._agents: dict[str, Agent] = {}

    async def load(self) -> None:
        """Read agents and partitions after a start; every agent counts as disconnected since now."""
        rows = await self._database.read(lambda tx: Agents(tx.connection).all())
        await self._lifecycle.reload()
        for row in rows:
            agent = Agent(row=row, now_us=self._now_us)
            self._agents[row.agent_id] = agent
            self._releaser.know(agent)

    def agents(self) -> tuple[Agent, ...]:
        """Return every agent that ever connected, by name."""
        return tuple(self._agents[name] for name in sorted(self._agents))

    def agent(self, agent_id: str) -> Agent:
        """Return a connected agent.

        Raises:
            AgentUnavailableError: it is not connected.
        """
        agent = self._agents.get(agent_id)
        if agent is None or not agent.connected:
            raise AgentUnavailableError("the node agent of the partition is not connected")
        return agent

    def hosts(self) -> tuple[Host, ...]:
        """Return what placement chooses from."""
        return self._book.hosts(self._agents.values())

    def platform_facts(self) -> PlatformFacts:
        """Return what policy is told of the fleet: what connected, uncordoned agents offer."""
        return _offered(agent for agent in self._agents.values() if agent.connected and not agent.cordoned)

    def whole_facts(self) -> PlatformFacts | None:
        """Return what the fleet would offer if every known, uncordoned agent were connected; None if every one is."""
        usable = [agent for agent in self._agents.values() if not agent.cordoned]
        return None if all(agent.connected for agent in usable) else _offered(usable)

    async def connect(self, identity: str, hello: Hello, stream: Stream) -> Agent:
        """Admit an agent on a new stream and settle its partitions.

        Args:
            identity: agent id in the peer's certificate, verified by the port.
            hello: the stream's first message.
            stream: where notices go; closed when a newer one replaces it.

        Raises:
            CredentialInvalidError: the hello names another agent than the certificate.
            SimulatedEvidenceError: a simulated tray where none is allowed.
            EvidencePolicyError: another evidence key than the pinned one, or hardware evidence without a policy.
            InvalidRequestError, UnsupportedError: the hello or its inventory is malformed, or unknown geometry.
            StateUnavailableError: it could not be noted; the agent tries again.
        """
        if hello.agent_id != identity:
            raise CredentialInvalidError("the hello names another agent than the certificate")
        hello.check()
        self._check_evidence_key(hello)
        known = self._agents.get(identity)
        row, committed_seq = await self._database.write(lambda tx: self._note(tx, hello))
        agent = known or Agent(row=row, now_us=self._now_us)
        self._agents[identity] = agent
        self._releaser.know(agent)
        same_process = agent.row.boot_id == hello.boot_id
        changed_key = known is not None and known.row.evidence_public_key != hello.evidence_public_key
        spool = self._receipts.open_spool(identity, hello.spool_id, committed_seq=committed_seq, stream=stream)
        stream.put(Welcome(committed_event_seq=spool.committed_seq, ticket_issuers=self._issuers.accepted))
        agent.attach(row, stream, spool=spool, same_process=same_process)
        await self._journal.report(self._connected(hello, enrolled=known is None, changed_key=changed_key))
        await self._settle(agent, hello.partitions)
        log.info("agent.connected", agent_id=identity, boot_id=hello.boot_id, partitions=len(hello.partitions))
        return agent

    def disconnect(self, agent: Agent, stream: Stream) -> None:
        """Note that a stream is over; one that was replaced already changes nothing."""
        if agent.detach(stream):
            log.info("agent.disconnected", agent_id=agent.agent_id)

    async def take(self, agent: Agent, report: AgentReport) -> None:
        """Take one message of a connected agent.

        Raises:
            InvalidRequestError: a second hello, or an event that the spool does not allow: the stream ends.
        """
        agent.heard()
        match report:
            case CommandResult():
                agent.commands.resolve(report)
            case CommandProgress():
                agent.commands.report(report)
            case SpooledEvent():
                self._receipts.take(agent.agent_id, report)
            case Heartbeat():
                await self._compare(agent, report.partitions)
            case Hello():
                raise InvalidRequestError("a stream has one hello, its first message")

    async def set_cordoned(self, agent_id: str, *, cordoned: bool) -> Agent:
        """Cordon or uncordon an agent; what runs there goes on.

        Raises:
            NotFoundError: no such agent ever connected.
        """
        await self._database.write(lambda tx: Agents(tx.connection).set_cordoned(agent_id, cordoned=cordoned))
        return self.note_cordoned(agent_id, cordoned=cordoned)

    def note_cordoned(self, agent_id: str, *, cordoned: bool) -> Agent:
        """Take over what was written to SQL by an administrative change."""
        agent = self._agents[agent_id]
        agent.cordoned = cordoned
        return agent

    async def watch(self) -> None:
        """Disconnect agents that fell silent, and lose the partitions of those gone too long; called every second."""
        now_us = self._now_us()
        for agent in tuple(self._agents.values()):
            silent_s = (now_us - agent.last_seen_us) / US_PER_S
            if agent.connected and silent_s > self._settings.heartbeat_timeout_s:
                log.warning("agent.silent", agent_id=agent.agent_id, silent_s=round(silent_s, 1))
                agent.drop_stream()
            if agent.connected:
                self._retry_releases(agent)
            gone_us = agent.disconnected_us
            if gone_us is not None and now_us - gone_us > self._settings.agent_grace_s * US_PER_S:
                await self._lose_all(agent)

    async def note_seen(self) -> None:
        """Write to SQL when agents were last heard of."""
        seen = {agent.agent_id: agent.last_seen_us for agent in self._agents.values() if agent.connected}
        if seen:
            await self._database.write(lambda tx: Agents(tx.connection).touch(seen))

    def _check_evidence_key(self, hello: Hello) -> None:
        if hello.inventory.simulated and not self._settings.allow_simulated:
            raise SimulatedEvidenceError("the tray is simulated, and this platform does not allow that")
        if hello.inventory.evidence_kind == "hardware" and self._settings.hardware_policy is None:
            raise EvidencePolicyError("this platform has no policy for hardware evidence (fleet.hardware_policy)")
        pinned = self._settings.evidence_keys.get(hello.agent_id)
        if pinned is not None and bytes.fromhex(pinned) != hello.evidence_public_key:
            raise EvidencePolicyError("the agent's evidence key is not the one pinned for it")

    def _note(self, tx: Transaction, hello: Hello) -> tuple[AgentRow, int]:
        now_us, inventory = self._now_us(), hello.inventory
        agents = Agents(tx.connection)
        row = agents.put(
            AgentRow(
                agent_id=hello.agent_id,
                boot_id=hello.boot_id,
                rack=inventory.rack,
                tray=inventory.tray,
                region=inventory.region,
                simulated=inventory.simulated,
                evidence_kind=inventory.evidence_kind,
                evidence_public_key=hello.evidence_public_key,
                ingress_address=inventory.ingress_address,
                inventory=inventory.to_json(),
                cordoned=False,
                first_seen_us=now_us,
                last_seen_us=now_us,
            )
        )
        return row, agents.committed_seq(hello.agent_id, hello.spool_id)

    def _connected(self, hello: Hello, *, enrolled: bool, changed_key: bool) -> Record:
        details: dict[str, Json] = {
            "boot_id": hello.boot_id,
            "simulated": hello.inventory.simulated,
            "region": hello.inventory.region,
            "evidence_key_sha256": hashlib.sha256(hello.evidence_public_key).hexdigest(),
            "evidence_key_changed": changed_key,
        }
        return administered(
            self._journal.stamp(),
            action=Action.AGENT_ENROLLED if enrolled else Action.AGENT_CONNECTED,
            tenant=None,
            subject=None,
            cause=platform_cause(PlatformReason.AGENT),
            resource=("agent", hello.agent_id),
            details=details,
        )

    async def _settle(self, agent: Agent, reported: Iterable[PartitionReport]) -> None:
        """Compare what a hello reports with what this platform placed there."""
        alive = {report.partition_id: report for report in reported}
        for partition in self._book.of_agent(agent.agent_id):
            report = alive.pop(partition.partition_id, None)
            if agent.commands.concern(partition.partition_id):
                continue  # whoever sent the command goes on when it is answered
            if report is None:
                await self._gone(partition)
            elif partition.state not in _TAKEN_OVER or report.fence > partition.version:
                # Half made, being ended, lost before, or under a fence that this database never gave.
                self._releaser.release_soon(partition, _BY_AGENT, reason="not taken over from the agent")
        for report in alive.values():
            self._releaser.release_stranger(agent, report)

    async def _gone(self, partition: Partition) -> None:
        """The agent is there and does not run it: its process has ended."""
        if partition.state is PartitionState.CORDONED:
            return  # an unproven scrub stays unproven
        if partition.state is PartitionState.RESERVED:
            if self._now_us() - partition.changed_us > RESERVATION_S * US_PER_S:  # of a process that crashed
                await self._lifecycle.follow(
                    partition.partition_id, PartitionState.FREE, _BY_AGENT, reason="never created"
                )
            return
        await self._lifecycle.follow(
            partition.partition_id, PartitionState.LOST, _BY_AGENT, reason="the agent no longer runs it"
        )
        self._releaser.release_soon(partition, _BY_AGENT, reason="the agent no longer runs it")

    async def _compare(self, agent: Agent, reported: Iterable[PartitionReport]) -> None:
        """Find ready partitions that heartbeats have left out for a while: their loss was never told."""
        named = {report.partition_id for report in reported}
        patience_us = self._settings.heartbeat_timeout_s * US_PER_S
        for partition in self._book.of_agent(agent.agent_id):
            settled = self._now_us() - max(partition.changed_us, agent.connected_us) > patience_us
            if partition.state is PartitionState.READY and settled and partition.partition_id not in named:
                await self._gone(partition)

    def _retry_releases(self, agent: Agent) -> None:
        for partition in self._book.of_agent(agent.agent_id):
            stuck = self._now_us() - partition.changed_us > RELEASE_RETRY_S * US_PER_S
            if partition.state is PartitionState.LOST and stuck:
                self._releaser.release_soon(partition, _BY_AGENT, reason="the agent is back")

    async def _lose_all(self, agent: Agent) -> None:
        live = [partition for partition in self._book.of_agent(agent.agent_id) if partition.state in LIVE]
        for partition in live:
            state = PartitionState.FREE if partition.state is PartitionState.RESERVED else PartitionState.LOST
            await self._lifecycle.follow(partition.partition_id, state, _BY_AGENT, reason="the agent is gone")
        if not agent.reported_lost:
            agent.reported_lost = True
            try:
                await self._journal.report(
                    administered(
                        self._journal.stamp(),
                        action=Action.AGENT_LOST,
                        tenant=None,
                        subject=None,
                        cause=platform_cause(PlatformReason.AGENT),
                        resource=("agent", agent.agent_id),
                        details={"partitions_lost": len(live)},
                    )
                )
            except BulkheadError as error:
                log.warning("agent.loss_unrecorded", agent_id=agent.agent_id, code=error.code)


def _offered(agents: Iterable[Agent]) -> PlatformFacts:
    usable = tuple(agents)
    return PlatformFacts(
        tiers=tuple(sorted({tier for agent in usable for tier in agent.inventory.tiers})),
        regions=tuple(sorted({agent.inventory.region for agent in usable})),
        simulated=any(agent.inventory.simulated for agent in usable),
    )
