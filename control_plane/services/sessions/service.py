"""Sessions as the servicers use them, and as other services end them."""

from collections.abc import Callable

from audit.records import PlatformReason, platform_cause
from bulkhead import ids
from bulkhead.errors import CredentialRevokedError, PermissionDeniedError, TicketExpiredError
from control_plane.domain.roles import Caller
from control_plane.domain.sessions import OpenRequest, Session, SessionState
from control_plane.services.book import PartitionBook
from control_plane.services.lifecycle import platform_origin
from control_plane.services.refusals import cause_of, subject_of
from control_plane.services.release import Releaser
from control_plane.services.session_end import SessionEnder
from control_plane.services.sessions.grant import Grant
from control_plane.services.sessions.open import SessionOpener
from control_plane.services.sessions.renew import SessionRenewer
from control_plane.services.sessions.serve import Report
from control_plane.storage.engine import Database, Transaction
from control_plane.storage.sessions import Sessions

__all__ = ["SessionService"]

SWEEP_LIMIT = 500  # sessions closed in one transaction; the next second takes more
_ENDABLE = (SessionState.OPEN, SessionState.OPENING, SessionState.LOST)


class SessionService:
    """Sessions.

    Args:
        database: the state.
        opener: opens.
        renewer: renews.
        ender: ends.
        releaser: gives partitions back.
        book: who uses which partition.
        expiry_grace_s: a session whose last ticket ended this long ago is closed.
        now_us: wall clock, microseconds since the epoch.
    """

    def __init__(
        self,
        *,
        database: Database,
        opener: SessionOpener,
        renewer: SessionRenewer,
        ender: SessionEnder,
        releaser: Releaser,
        book: PartitionBook,
        expiry_grace_s: int,
        now_us: Callable[[], int],
    ) -> None:
        self._database = database
        self._opener = opener
        self._renewer = renewer
        self._ender = ender
        self._releaser = releaser
        self._book = book
        self._expiry_grace_s = expiry_grace_s
        self._now_us = now_us

    async def open(self, caller: Caller, request: OpenRequest, report: Report) -> Grant:
        """Open a session; see :meth:`SessionOpener.open`."""
        return await self._opener.open(caller, request, report)

    async def renew(self, caller: Caller, session_id: str, nonce: bytes) -> Grant:
        """Renew a session; see :meth:`SessionRenewer.renew`."""
        return await self._renewer.renew(caller, session_id, nonce)

    async def close(self, caller: Caller, session_id: str) -> None:
        """Close a session of the caller's tenant; closing it again does nothing.

        Raises:
            NotFoundError: the tenant has no such session.
            InvalidRequestError: the id is none.
        """
        session = await self.get(caller, session_id)
        if session.state not in _ENDABLE:
            return
        cause = cause_of(caller, session.request_id)
        await self._ender.close([session], cause=cause, subject=subject_of(caller))

    async def get(self, caller: Caller, session_id: str) -> Session:
        """Return a session of the caller's tenant.

        Raises:
            NotFoundError: the tenant has no such session, or the caller belongs to none.
            InvalidRequestError: the id is none.
        """
        ids.check_id(session_id, ids.SESSION)
        tenant_id = caller.tenant_id or "-"  # no tenant is called that: the platform's people see no sessions here
        return await self._database.read(lambda tx: Sessions(tx.connection).get(session_id, tenant_id=tenant_id))

    async def page(self, caller: Caller, *, open_only: bool, after: str, limit: int) -> tuple[Session, ...]:
        """Return sessions of the caller's tenant, newest first, before the id ``after``."""
        if after:
            ids.check_id(after, ids.SESSION)
        return await self._database.read(
            lambda tx: Sessions(tx.connection).page(
                tenant_id=caller.tenant_id, open_only=open_only, after=after, limit=limit
            )
        )

    async def revoke_credential(self, credential_id: str) -> int:
        """End every session that was opened with a credential, and tell its worker at once; return how many."""
        return await self._end_all(CredentialRevokedError.code, credential_id=credential_id)

    async def suspend_tenant(self, tenant_id: str) -> int:
        """End every session of a tenant and release its partitions at once; return how many sessions ended."""
        ended = await self._end_all(PermissionDeniedError.code, tenant_id=tenant_id)
        for partition in self._book.all():
            if partition.tenant_id == tenant_id:
                origin = platform_origin(PlatformReason.ADMIN)
                self._releaser.release_soon(partition, origin, reason="the tenant was suspended")
        return ended

    async def sweep_expired(self) -> int:
        """Close sessions that were not renewed in time; return how many."""
        before_us = self._now_us() - self._expiry_grace_s * 1_000_000
        expired = await self._database.read(lambda tx: Sessions(tx.connection).expired(before_us, limit=SWEEP_LIMIT))
        ended = await self._ender.close(
            expired, cause=platform_cause(PlatformReason.LEASE), subject=None, code=TicketExpiredError.code
        )
        return len(ended)

    async def _end_all(self, code: str, *, credential_id: str = "", tenant_id: str = "") -> int:
        def work(tx: Transaction) -> list[Session]:
            sessions = Sessions(tx.connection)
            return [
                session
                for state in _ENDABLE
                for session in sessions.in_state(state, credential_id=credential_id, tenant_id=tenant_id)
            ]

        found = await self._database.read(work)
        ended = await self._ender.close(found, cause=platform_cause(PlatformReason.ADMIN), subject=None, code=code)
        return len(ended)
