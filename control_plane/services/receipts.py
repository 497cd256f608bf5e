"""Agents' events into the audit log: nothing is acknowledged before its record is durable.

Receipts of a session are gathered into one `receipts` record with their range, Merkle root and totals: every
``receipts_interval_s``, when the session has ended, and at once when a spool presses (workers stop at 1,024
unacknowledged receipts); :mod:`~control_plane.services.receipt_batches` sees to it that each counts once. Steps of
partitions and refusals get records of their own within a second. An agent's events are acknowledged up to the first
that is not recorded yet; what was not acknowledged the agent sends again.

An agent answers for its own partitions only: an event that names another tenant than the partition's goes to the
platform's log as a refusal and touches no tenant's.
"""

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from audit.records import PlatformReason, access_denied, agent_refused, platform_cause
from bulkhead.encoding import MAX_SAFE_INTEGER
from bulkhead.errors import (
    AgentUnavailableError,
    BulkheadError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
)
from control_plane.domain.fleet import EventAck, PartitionStep, ReceiptReported, RefusalReported, SpooledEvent
from control_plane.domain.partitions import Partition, PartitionState
from control_plane.domain.sessions import HOLDING, Session
from control_plane.services.book import PartitionBook
from control_plane.services.commands import Outbox
from control_plane.services.journal import Journal
from control_plane.services.lifecycle import Lifecycle, platform_origin
from control_plane.services.receipt_batches import Batches, Told
from control_plane.services.settings import FleetSettings
from control_plane.storage.engine import Database, Transaction
from control_plane.storage.partitions import Agents, Partitions
from control_plane.storage.sessions import Sessions

__all__ = ["Receipts", "Spool"]

MAX_PENDING: Final = 8_192  # of one agent; its workers stop at 1,024 receipts, the rest is steps and refusals
US_PER_S: Final = 1_000_000
SECONDS_PER_DAY: Final = 86_400
DIGEST_BYTES: Final = 32  # SHA-256
STATUSES: Final = ("ok", "cancelled", "failed")

log = structlog.get_logger(__name__)


class Spool:
    """The events of one agent's spool that are not acknowledged yet."""

    def __init__(self, *, agent_id: str, spool_id: str, committed_seq: int) -> None:
        self.agent_id = agent_id
        self.spool_id = spool_id
        self.committed_seq = committed_seq
        self.stored_seq = committed_seq
        self.outbox: Outbox | None = None
        self._pending: dict[int, tuple[int, SpooledEvent]] = {}
        self._recorded: set[int] = set()

    def add(self, event: SpooledEvent, *, now_us: int) -> None:
        """Take an event; one that was taken before is passed over.

        Raises:
            InvalidRequestError: it is of another spool, has no number, or too many wait.
        """
        if event.spool_id != self.spool_id or event.seq < 1:
            raise InvalidRequestError("the event is not of the spool that the hello named")
        if event.seq <= self.committed_seq or event.seq in self._recorded or event.seq in self._pending:
            return
        if len(self._pending) + len(self._recorded) >= MAX_PENDING:
            raise InvalidRequestError(f"more than {MAX_PENDING} unacknowledged events")
        self._pending[event.seq] = (now_us, event)

    def waiting(self) -> tuple[tuple[int, SpooledEvent], ...]:
        """Return (arrival time, event) of everything that is not recorded yet, in order of number."""
        return tuple(self._pending[seq] for seq in sorted(self._pending))

    def oldest_us(self) -> int | None:
        """Return when the oldest unrecorded event came, or None."""
        return min((arrived for arrived, _ in self._pending.values()), default=None)

    def recorded(self, seq: int) -> None:
        """Note that an event's record is durable; move the mark over what is complete."""
        self._pending.pop(seq, None)
        self._recorded.add(seq)
        while self.committed_seq + 1 in self._recorded:
            self.committed_seq += 1
            self._recorded.discard(self.committed_seq)


class Receipts:
    """Collects agents' events and records them.

    Args:
        database: the state: sessions, partitions, the spools' marks.
        journal: the audit log.
        batches: groups receipts under records.
        book: partitions in memory.
        lifecycle: follows what agents report of partitions.
        settings: intervals.
        now_us: wall clock, microseconds since the epoch.
    """

    def __init__(
        self,
        *,
        database: Database,
        journal: Journal,
        batches: Batches,
        book: PartitionBook,
        lifecycle: Lifecycle,
        settings: FleetSettings,
        now_us: Callable[[], int],
    ) -> None:
        self._database = database
        self._journal = journal
        self._batches = batches
        self._book = book
        self._lifecycle = lifecycle
        self._settings = settings
        self._now_us = now_us
        self._spools: dict[str, Spool] = {}
        self._flushing = asyncio.Lock()

    def open_spool(self, agent_id: str, spool_id: str, *, committed_seq: int, stream: Outbox) -> Spool:
        """Return the agent's spool for a new stream; what an earlier stream of the same spool brought is kept."""
        spool = self._spools.get(agent_id)
        if spool is None or spool.spool_id != spool_id:
            spool = Spool(agent_id=agent_id, spool_id=spool_id, committed_seq=committed_seq)
            self._spools[agent_id] = spool
        spool.outbox = stream
        return spool

    def take(self, agent_id: str, event: SpooledEvent) -> None:
        """Take one event of a connected agent.

        Raises:
            InvalidRequestError: see :meth:`Spool.add`; the stream ends.
        """
        self._spools[agent_id].add(event, now_us=self._now_us())

    def oldest_us(self, agent_id: str) -> int | None:
        """Return since when an event of the agent waits to be recorded, or None."""
        spool = self._spools.get(agent_id)
        return None if spool is None else spool.oldest_us()

    async def flush(self, *, everything: bool = False) -> None:
        """Record what is due (everything, on a stop), store and send the acknowledgements. Called every second."""
        async with self._flushing:
            await self._finish_claims()
            for spool in tuple(self._spools.values()):
                try:
                    await self._flush(spool, everything=everything)
                except BulkheadError as error:  # the log or the state is out of reach: the events stay, leases lapse
                    log.warning("receipts.waiting", agent_id=spool.agent_id, code=error.code)

    async def forget(self) -> None:
        """Forget the digests of receipts whose session ended ``receipts_kept_days`` ago.

        Raises:
            StateUnavailableError: the next call goes on.
        """
        forgotten = await self._batches.forget(before_us=self._kept_since_us())
        if forgotten:
            log.info("receipts.forgotten", batches=forgotten)

    def _kept_since_us(self) -> int:
        return self._now_us() - self._settings.receipts_kept_days * SECONDS_PER_DAY * US_PER_S

    async def _finish_claims(self) -> None:
        """Record what was claimed and is not known to be recorded, by an earlier process or before a failure."""
        try:
            await self._batches.record()
            if self._batches.has_marks:
                marked = await self._database.write(self._batches.mark)
                marked()
        except BulkheadError as error:
            log.warning("receipts.claims_waiting", code=error.code)

    async def _flush(self, spool: Spool, *, everything: bool) -> None:
        waiting = spool.waiting()
        told: dict[tuple[str, str], list[SpooledEvent]] = {}
        for _, event in waiting:
            match event.event:
                case ReceiptReported():
                    told.setdefault((event.partition_id, event.event.session_id), []).append(event)
                case PartitionStep():
                    await self._step(spool, event, event.event)
                case RefusalReported():
                    await self._refusal(spool, event, event.event)
        arrived = {event.seq: at_us for at_us, event in waiting}
        pressing = everything or sum(map(len, told.values())) >= self._settings.receipts_pressing
        due_us = self._now_us() - int(self._settings.receipts_interval_s * US_PER_S)
        due: list[Told] = []
        for (partition_id, session_id), events in told.items():
            session = await self._session(session_id)
            over = session is None or session.state not in HOLDING
            if pressing or over or min(arrived[event.seq] for event in events) <= due_us:
                due += await self._believed(spool, partition_id, session, events)
        await self._record(spool, due)
        await self._acknowledge(spool)

    async def _believed(
        self, spool: Spool, partition_id: str, session: Session | None, events: list[SpooledEvent]
    ) -> list[Told]:
        """Return what may be recorded; what is not the agent's to tell is reported instead."""
        partition = await self._partition(partition_id)
        if session is not None and session.state not in HOLDING and session.expires_us < self._kept_since_us():
            return await self._refused(spool, events, "receipts of a session that ended too long ago")
        receipts = [event.event for event in events if isinstance(event.event, ReceiptReported)]
        if partition is not None and _believable(spool, partition, session, receipts):
            return [Told(partition=partition, session=session, events=events)]
        return await self._refused(spool, events, "receipts of a session that is not the partition's")

    async def _refused(self, spool: Spool, events: list[SpooledEvent], what: str) -> list[Told]:
        await self._foreign(spool, events[0].partition_id, what)
        for event in events:
            spool.recorded(event.seq)
        return []

    async def _record(self, spool: Spool, due: list[Told]) -> None:
        contradicting = await self._batches.claim(due)
        await self._batches.record()
        for event in contradicting:
            await self._foreign(spool, event.partition_id, "another receipt under a number that has one")
        for item in due:
            for event in item.events:
                spool.recorded(event.seq)

    async def _step(self, spool: Spool, event: SpooledEvent, step: PartitionStep) -> None:
        """Follow a step that the agent took by itself; one that this side took or noted already has its record."""
        partition = self._book.get(event.partition_id)
        if partition is not None and partition.agent_id != spool.agent_id:
            await self._foreign(spool, event.partition_id, "a step of another agent's partition")
        elif partition is not None and step.to_state in _FOLLOWED:
            origin = platform_origin(PlatformReason.AGENT)
            await self._lifecycle.follow(event.partition_id, PartitionState(step.to_state), origin, reason=step.reason)
        spool.recorded(event.seq)

    async def _refusal(self, spool: Spool, event: SpooledEvent, refusal: RefusalReported) -> None:
        partition = await self._partition(event.partition_id)
        if partition is None or partition.agent_id != spool.agent_id:
            await self._foreign(spool, event.partition_id, "a refusal at another agent's partition")
        else:
            # To the partition's tenant, whose worker was tried; the other tenant is named only where it is the same.
            own = refusal.tenant_id == partition.tenant_id
            await self._journal.write(
                access_denied(
                    self._journal.stamp(),
                    tenant=partition.tenant_id,
                    subject=None,
                    cause=platform_cause(PlatformReason.SPOOL),
                    method="/bulkhead.v1.InferenceService",
                    code=refusal.code,
                    message="the worker refused a request" + ("" if own else " whose ticket is not this tenant's"),
                    session=refusal.session_id if own else "",
                )
            )
            if refusal.tenant_id and not own:
                await self._report_to_owner(refusal)
        spool.recorded(event.seq)

    async def _report_to_owner(self, refusal: RefusalReported) -> None:
        """Record in the log of the ticket's own tenant that it was tried on a worker of somebody else."""
        session = await self._session(refusal.session_id)
        if session is None or session.tenant_id != refusal.tenant_id:
            return
        await self._journal.write(
            access_denied(
                self._journal.stamp(),
                tenant=session.tenant_id,
                subject=None,
                cause=platform_cause(PlatformReason.SPOOL),
                method="/bulkhead.v1.InferenceService",
                code=refusal.code,
                message="a ticket of this session was tried on a worker that is not the session's",
                session=session.session_id,
            )
        )

    async def _foreign(self, spool: Spool, partition_id: str, what: str) -> None:
        log.error("event.foreign", agent_id=spool.agent_id, partition_id=partition_id, what=what)
        await self._journal.write(
            agent_refused(
                self._journal.stamp(),
                agent=spool.agent_id,
                code=PermissionDeniedError.code,
                message=f"the agent reported {what}",
            )
        )

    async def _acknowledge(self, spool: Spool) -> None:
        if spool.committed_seq == spool.stored_seq and not self._batches.has_marks:
            return
        seq = spool.committed_seq

        def work(tx: Transaction) -> Callable[[], None]:
            Agents(tx.connection).set_committed_seq(spool.agent_id, spool.spool_id, seq)
            return self._batches.mark(tx)

        marked = await self._database.write(work)
        marked()
        spool.stored_seq = seq
        if spool.outbox is not None:
            try:
                spool.outbox.put(EventAck(seq=seq))
            except AgentUnavailableError:
                log.info("receipts.acknowledgement_deferred", agent_id=spool.agent_id)  # its next hello asks

    async def _session(self, session_id: str) -> Session | None:
        def work(tx: Transaction) -> Session | None:
            try:
                return Sessions(tx.connection).get(session_id)
            except NotFoundError:
                return None

        return await self._database.read(work)

    async def _partition(self, partition_id: str) -> Partition | None:
        if (known := self._book.get(partition_id)) is not None:
            return known

        def work(tx: Transaction) -> Partition | None:
            try:
                return Partitions(tx.connection).get(partition_id)
            except NotFoundError:
                return None

        return await self._database.read(work)


_FOLLOWED: Final = frozenset(
    state.value
    for state in (
        PartitionState.LOST,
        PartitionState.DRAINING,
        PartitionState.SCRUBBING,
        PartitionState.FREE,
        PartitionState.CORDONED,
    )
)


def _believable(spool: Spool, partition: Partition, session: Session | None, told: list[ReceiptReported]) -> bool:
    return (
        partition.agent_id == spool.agent_id
        and (session is None or session.tenant_id == partition.tenant_id)
        and all(item.tenant_id == partition.tenant_id for item in told)
        and all(len(item.receipt_digest) == DIGEST_BYTES and item.status in STATUSES for item in told)
        and all(0 < item.session_number <= MAX_SAFE_INTEGER for item in told)
    )
