"""What keeps the books true: after a crash once, and every second while the process runs.

After a start, before any port is open:

1. Sessions that were being opened are given up, and their slots are free. Open ones stay open: their tickets hold, and
   their partitions wait for their agents' hello.
2. Allowed decisions without an outcome get one, ``unknown``: nobody was given a ticket that a record does not show. A
   log whose index is behind is looked through once the index is there; the start does not wait for it for long.

Every second: records that wait are sent again; silent agents are disconnected, and gone ones lose their partitions;
sessions that ran out, whose credential was revoked or whose tenant is not active, are ended; partitions that nobody
uses are released after their grace, or at once if their tenant is not active; denials are summed up. Every hour the
digests of long past receipts are forgotten.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from audit.model import ListedRecord, LogInfo, Page, RecordFilter, RecordPage
from audit.records import Action, Decision, PlatformReason, outcome, platform_cause
from bulkhead.errors import BulkheadError
from control_plane.domain.partitions import PartitionState
from control_plane.domain.sessions import Session, SessionState
from control_plane.services.book import PartitionBook
from control_plane.services.fleet import Fleet
from control_plane.services.issuers import Issuers
from control_plane.services.journal import Journal
from control_plane.services.lifecycle import platform_origin
from control_plane.services.receipts import Receipts
from control_plane.services.release import Releaser
from control_plane.services.session_end import SessionEnder
from control_plane.services.sessions.denials import DenialLimiter
from control_plane.services.sessions.service import SessionService
from control_plane.storage.engine import Database, Transaction
from control_plane.storage.sessions import Sessions

__all__ = ["Reconciler"]

TICK_S: Final = 1.0
SEEN_EVERY: Final = 10  # ticks between two writes of when agents were last heard of
FORGET_EVERY: Final = 3_600  # ticks between two looks for digests of receipts that are kept no longer
# A crash leaves open decisions at the end of a log. An open's records lie close together, so this many reach back far.
LOOK_BACK: Final = 500
INDEX_WAIT_S: Final = 10.0  # at a start, for the audit index to reach the ends of all logs after a crash
_INDEX_PAUSE_S: Final = 0.05
US_PER_S: Final = 1_000_000
_IN_USE: Final = (PartitionState.READY, PartitionState.ATTESTING)

log = structlog.get_logger(__name__)


class Reconciler:
    """Keeps state, fleet and log in agreement.

    Args:
        database: the state.
        journal: the audit log.
        sessions: ends sessions.
        ender: loads what ended sessions left.
        denials: sums of denials.
        fleet: the agents.
        receipts: agents' events.
        book: partitions and their users.
        releaser: gives partitions back.
        issuers: follow what other replicas change.
        idle_grace_s: a partition that no session has used this long is released.
        now_us: wall clock, microseconds since the epoch.
    """

    def __init__(
        self,
        *,
        database: Database,
        journal: Journal,
        sessions: SessionService,
        ender: SessionEnder,
        denials: DenialLimiter,
        fleet: Fleet,
        receipts: Receipts,
        book: PartitionBook,
        releaser: Releaser,
        issuers: Issuers,
        idle_grace_s: int,
        now_us: Callable[[], int],
    ) -> None:
        self._database = database
        self._journal = journal
        self._sessions = sessions
        self._ender = ender
        self._denials = denials
        self._fleet = fleet
        self._receipts = receipts
        self._book = book
        self._releaser = releaser
        self._issuers = issuers
        self._idle_grace_us = idle_grace_s * US_PER_S
        self._now_us = now_us
        self._idle_since_us: dict[str, int] = {}
        self._unwitnessed: dict[str, str] = {}
        self._unclosed: dict[LogInfo, int] = {}  # logs to look through, and their sizes at the start

    async def at_start(self) -> None:
        """Take up where the process before ended; before any port is open.

        Raises:
            StateUnavailableError, AuditUnavailableError: this process must not serve yet.
        """
        await self._fleet.load()
        await self._database.write(_give_up_openings)  # 1
        await self._ender.load()
        audit = self._journal.audit
        self._unclosed = {info: audit.size(info.log_id) for info in audit.logs() if info.tenant is not None}
        await self._close_decisions()  # 2
        waited_s = 0.0
        while self._unclosed and waited_s < INDEX_WAIT_S:
            await asyncio.sleep(_INDEX_PAUSE_S)
            waited_s += _INDEX_PAUSE_S
            await self._close_decisions()
        if self._unclosed:
            log.warning("reconcile.index_behind", logs=len(self._unclosed), unindexed=audit.health().unindexed)

    async def run(self) -> None:
        """Keep the books until cancelled."""
        ticks = 0
        while True:
            await self._guarded("journal", self._journal.retry)
            await self._guarded("decisions", self._close_decisions)
            await self._guarded("fleet", self._fleet.watch)
            await self._guarded("sessions", self._end_sessions)
            await self._guarded("partitions", self._release_idle)
            await self._guarded("denials", self._denials.sum_up)
            self._tell_of_witnesses()
            await self._guarded("issuers", self._issuers.refresh)
            if ticks % SEEN_EVERY == 0:
                await self._guarded("agents", self._fleet.note_seen)
            if ticks % FORGET_EVERY == 0:
                await self._guarded("forgetting", self._receipts.forget)
            ticks += 1
            await asyncio.sleep(TICK_S)

    async def record_events(self) -> None:
        """Record agents' events until cancelled; apart from the rest, since leases depend on it."""
        while True:
            await self._guarded("receipts", self._receipts.flush)
            await asyncio.sleep(TICK_S)

    async def at_stop(self) -> None:
        """Record what was gathered; what cannot be recorded now the agents send again."""
        await self._receipts.flush(everything=True)
        await self._denials.sum_up(everything=True)
        await self._journal.retry()

    async def _guarded(self, name: str, work: Callable[[], Awaitable[object]]) -> None:
        try:
            await work()
        except BulkheadError as error:  # state or audit is out of reach: the next tick tries again
            log.warning("reconcile.postponed", what=name, code=error.code)

    def _tell_of_witnesses(self) -> None:
        """Say, once each, which witness does not cosign the platform's log, and when all do again."""
        failing = dict(self._journal.audit.health().witnesses)
        for name, reason in failing.items():
            if self._unwitnessed.get(name) != reason:
                log.warning("audit.unwitnessed", witness=name, reason=reason)
        if self._unwitnessed and not failing:
            log.info("audit.witnessed")
        self._unwitnessed = failing

    async def _end_sessions(self) -> None:
        await self._sessions.sweep_expired()
        credentials, tenants = await self._database.read(lambda tx: Sessions(tx.connection).ended_by_others())
        for credential_id in credentials:
            await self._sessions.revoke_credential(credential_id)
        for tenant_id in tenants:
            await self._sessions.suspend_tenant(tenant_id)

    async def _release_idle(self) -> None:
        now_us, idle = self._now_us(), {}
        for partition in self._book.all():
            if partition.state not in _IN_USE or self._book.users(partition.partition_id):
                continue
            since_us = self._idle_since_us.get(partition.partition_id, now_us)
            idle[partition.partition_id] = since_us
            if now_us - since_us >= self._idle_grace_us:
                origin = platform_origin(PlatformReason.PLACEMENT)
                self._releaser.release_soon(partition, origin, reason="no session uses it")
        self._idle_since_us = idle

    async def _close_decisions(self) -> None:
        """Close what the processes before left open, in the logs that are left and whose index has got there."""
        for info, size in list(self._unclosed.items()):
            end = f"i{size}"
            page = await self._newest(info, Action.DECISION, end)
            if page.indexed >= size:
                await self._close(info, page.records, end)
                del self._unclosed[info]

    async def _close(self, info: LogInfo, decisions: tuple[ListedRecord, ...], end: str) -> None:
        if not decisions:
            return
        closed = {
            record.fields.pair_id
            for action in (Action.OUTCOME, Action.SESSION_RENEWED)
            for after in (end, "")  # another control plane may have closed some just now
            for record in (await self._newest(info, action, after)).records
        }
        for record in decisions:
            fields = record.fields
            if fields.decision != Decision.ALLOW or not fields.session or fields.pair_id in closed:
                continue
            closed.add(fields.pair_id)  # a decision that was made twice has one outcome
            await self._journal.write(
                outcome(
                    self._journal.stamp(),
                    tenant=fields.tenant or "",
                    subject=None,
                    cause=platform_cause(PlatformReason.RECONCILER),
                    session=fields.session,
                    pair_id=fields.pair_id,
                    result="unknown",
                    model=fields.model,
                    message="the control plane ended before the outcome was recorded",
                )
            )

    async def _newest(self, info: LogInfo, action: Action, after: str) -> RecordPage:
        """Return a log's newest records of an action behind a page token, going back."""
        query = RecordFilter(log_id=info.log_id, action=action.value)
        return await self._journal.audit.records(query, Page(limit=LOOK_BACK, after=after))


def _give_up_openings(tx: Transaction) -> tuple[Session, ...]:
    sessions = Sessions(tx.connection)
    found = sessions.in_state(SessionState.OPENING)
    for session in found:
        sessions.abandon(session.session_id, session.pair_id, before=None)
    return found
