"""What keeps the books true: after a crash once, and every second while the process runs.

After a start, before any port is open: what other processes left half done is ended
(:mod:`control_plane.services.leftovers`). Open sessions stay open: their tickets hold, and their partitions wait for
their agents' hello.

Every second: what is left over of others is looked for; records that wait are sent again; silent agents are
disconnected, and gone ones lose their partitions; sessions that ran out, whose credential was revoked or whose tenant
is not active, are ended; partitions that nobody uses are released after their grace, or at once if their tenant is not
active; denials are summed up. Every hour the digests of long past receipts are forgotten.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from audit.records import PlatformReason
from bulkhead.errors import BulkheadError
from control_plane.domain.partitions import PartitionState
from control_plane.services.book import PartitionBook
from control_plane.services.fleet import Fleet
from control_plane.services.issuers import Issuers
from control_plane.services.journal import Journal
from control_plane.services.leftovers import Leftovers
from control_plane.services.lifecycle import platform_origin
from control_plane.services.receipts import Receipts
from control_plane.services.release import Releaser
from control_plane.services.session_end import SessionEnder
from control_plane.services.sessions.denials import DenialLimiter
from control_plane.services.sessions.service import SessionService
from control_plane.storage.engine import Database
from control_plane.storage.sessions import Sessions

__all__ = ["Reconciler"]

TICK_S: Final = 1.0
SEEN_EVERY: Final = 10  # ticks between two writes of when agents were last heard of, and two looks at openings
FORGET_EVERY: Final = 3_600  # ticks between two looks for digests of receipts that are kept no longer
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
        leftovers: ends what processes that are gone left.
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
        leftovers: Leftovers,
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
        self._leftovers = leftovers
        self._idle_grace_us = idle_grace_s * US_PER_S
        self._now_us = now_us
        self._idle_since_us: dict[str, int] = {}
        self._unwitnessed: dict[str, str] = {}
        self._unproven = ""

    async def at_start(self) -> None:
        """Take up where the process before ended; before any port is open.

        Raises:
            StateUnavailableError, AuditUnavailableError: this process must not serve yet.
        """
        await self._fleet.load()
        await self._ender.load()
        await self._leftovers.at_start()

    async def run(self) -> None:
        """Keep the books until cancelled."""
        ticks = 0
        while True:
            await self._guarded("journal", self._journal.retry)
            await self._guarded("decisions", self._leftovers.close_decisions)
            await self._guarded("fleet", self._fleet.watch)
            await self._guarded("sessions", self._end_sessions)
            await self._guarded("partitions", self._release_idle)
            await self._guarded("denials", self._denials.sum_up)
            self._tell_of_witnesses()
            self._tell_of_rounds()
            await self._guarded("issuers", self._issuers.refresh)
            if ticks % SEEN_EVERY == 0:
                await self._guarded("agents", self._fleet.note_seen)
                await self._guarded("openings", self._leftovers.give_up_openings)
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

    def _tell_of_rounds(self) -> None:
        """Say, once, that a past round in the database is not the one in the platform's log."""
        problem = self._journal.audit.health().rounds
        if problem and problem != self._unproven:
            log.error("audit.round_changed", reason=problem)
        self._unproven = problem

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
