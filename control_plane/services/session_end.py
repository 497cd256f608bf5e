"""How sessions end: closed by their tenant, run out, revoked, or lost with their worker.

Each end is written to SQL, put on the revocation list while tickets live, taken off its partition, and recorded.
"""

from collections.abc import Callable, Iterable, Sequence

from audit.records import PlatformReason, Subject, platform_cause, session_closed
from bulkhead.errors import SessionClosedError, WorkerLostError
from bulkhead.transparency.leaf import Cause
from control_plane.domain.partitions import Partition
from control_plane.domain.sessions import Session, SessionState
from control_plane.services.book import PartitionBook
from control_plane.services.journal import Journal
from control_plane.services.revocations import Revocations
from control_plane.storage.engine import Database, Transaction
from control_plane.storage.sessions import Sessions

__all__ = ["SessionEnder"]


class SessionEnder:
    """Ends sessions.

    Args:
        database: the state.
        journal: the audit log.
        revocations: what leases carry.
        book: who uses which partition.
        now_us: wall clock, microseconds since the epoch.
    """

    def __init__(
        self,
        *,
        database: Database,
        journal: Journal,
        revocations: Revocations,
        book: PartitionBook,
        now_us: Callable[[], int],
    ) -> None:
        self._database = database
        self._journal = journal
        self._revocations = revocations
        self._book = book
        self._now_us = now_us

    async def close(
        self, sessions: Sequence[Session], *, cause: Cause, subject: Subject | None, code: str = ""
    ) -> tuple[Session, ...]:
        """Close open and lost sessions, and undo the opening ones; return those that were open or lost.

        Args:
            sessions: as read; one that has ended meanwhile is passed over.
            cause: the tenant's request, or the platform's.
            subject: who asked, if somebody did.
            code: says why where the tenant did not ask for it.
        """
        ended = await self._settle(sessions, SessionState.CLOSED, reason=code or SessionClosedError.code)
        for session in ended:
            await self._report(session, cause=cause, subject=subject, code=code)
        return ended

    async def lose(self, partition: Partition, *, reason: str) -> None:
        """End the sessions of a partition that serves no more: they can be opened again elsewhere."""
        found = await self._database.read(
            lambda tx: Sessions(tx.connection).in_state(SessionState.OPEN, partition_id=partition.partition_id)
        )
        for session in await self._settle(found, SessionState.LOST, reason=reason):
            cause = platform_cause(PlatformReason.AGENT)
            await self._report(session, cause=cause, subject=None, code=WorkerLostError.code)

    async def load(self) -> None:
        """Fill the revocation list and the partitions' users from SQL, after a restart."""
        now_us = self._now_us()

        def work(tx: Transaction) -> tuple[tuple[Session, ...], tuple[Session, ...]]:
            sessions = Sessions(tx.connection)
            return sessions.ended_with_tickets(now_us), sessions.in_state(SessionState.OPEN)

        ended, live = await self._database.read(work)
        self._revocations.add(ended)
        for session in live:
            self._book.join(session.partition_id, session.session_id)

    async def _settle(self, found: Iterable[Session], state: SessionState, *, reason: str) -> tuple[Session, ...]:
        wanted, now_us = tuple(found), self._now_us()
        if not wanted:
            return ()

        def work(tx: Transaction) -> tuple[Session, ...]:
            sessions = Sessions(tx.connection)
            for session in wanted:
                if session.state is SessionState.OPENING:  # its open finds the row gone and ends by itself
                    sessions.abandon(session.session_id, session.pair_id, before=None)
            settled = (sessions.settle(item.session_id, state, reason=reason, now_us=now_us) for item in wanted)
            return tuple(item for item in settled if item is not None)

        ended = await self._database.write(work)
        self._revocations.add(ended)
        for session in ended:
            self._book.leave(session.partition_id, session.session_id)
        return ended

    async def _report(self, session: Session, *, cause: Cause, subject: Subject | None, code: str) -> None:
        await self._journal.report(
            session_closed(
                self._journal.stamp(),
                tenant=session.tenant_id,
                subject=subject,
                cause=cause,
                session=session.session_id,
                pair_id=session.pair_id,
                partition=session.partition_id,
                code=code,
            )
        )
