"""The audit lease: who may begin requests, and until when (docs/protocol.md, "Audit lease").

The control plane vouches for 30 s at a time that it commits receipts and that its revocation list is current. The
agent joins what its replicas say (:class:`AgentLease`) and hands it to each worker (:class:`WorkerLease`). Time is
counted on a monotonic clock from the moment a grant arrives, and never for longer than :data:`LEASE_S`, so that
neither a clock that is set back nor one that runs ahead elsewhere prolongs a lease.
"""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from bulkhead.errors import AuditLeaseError
from data_plane.session.live_evidence import LiveEvidence
from data_plane.session.messages import LeaseGrant
from data_plane.session.spool import MAX_UNACKNOWLEDGED_RECEIPTS

__all__ = ["LEASE_S", "AgentLease", "WorkerLease"]

LEASE_S: Final = 30.0
MAX_REVOKED: Final = 65_536  # sessions revoked within a ticket's life of 15 minutes; more end the lease instead
_MS: Final = 1000


@dataclass(frozen=True, slots=True)
class _Grant:
    until_s: float
    revoked: frozenset[str]


class AgentLease:
    """What the control plane's replicas granted, joined: the longest time, every revocation.

    Args:
        wall_s: Unix seconds; grants name their end in it.
        monotonic_s: seconds that never go backwards.
    """

    def __init__(self, *, wall_s: Callable[[], float], monotonic_s: Callable[[], float]) -> None:
        self._wall_s = wall_s
        self._monotonic_s = monotonic_s
        self._grants: dict[str, _Grant] = {}

    def grant(self, replica: str, *, valid_until_ms: int, revoked: frozenset[str]) -> None:
        """Take a grant of ``replica``, in place of its last one. One with too many revocations grants nothing."""
        rest_s = min(valid_until_ms / _MS - self._wall_s(), LEASE_S)
        if len(revoked) > MAX_REVOKED:
            rest_s = 0.0
        self._grants[replica] = _Grant(self._monotonic_s() + rest_s, revoked)

    @property
    def remaining_s(self) -> float:
        """Seconds until the lease ends; zero or less when it has."""
        return max((grant.until_s for grant in self._grants.values()), default=0.0) - self._monotonic_s()

    @property
    def revoked(self) -> frozenset[str]:
        """Sessions that any replica revoked in a grant that has not ended.

        A replica that went away keeps its word until its grant ends; the others know of it by then.
        """
        now_s = self._monotonic_s()
        live = [grant.revoked for grant in self._grants.values() if grant.until_s > now_s]
        return frozenset().union(*live) if live else frozenset()


class WorkerLease:
    """A worker's copy. Nothing begins without it; what runs goes on.

    Args:
        wall_s: Unix seconds.
        monotonic_s: seconds that never go backwards.
    """

    def __init__(self, *, wall_s: Callable[[], float], monotonic_s: Callable[[], float]) -> None:
        self._wall_s = wall_s
        self._monotonic_s = monotonic_s
        self._until_s = monotonic_s()
        self._unacknowledged = 0
        self._evidence = LiveEvidence()
        self._granted = asyncio.Event()
        self.revoked: frozenset[str] = frozenset()

    def grant(self, grant: LeaseGrant) -> None:
        """Replace what was granted before; evidence adds to what is known and holds still."""
        self._granted.set()
        self._granted = asyncio.Event()
        self._until_s = self._monotonic_s() + min(grant.valid_until_ms / _MS - self._wall_s(), LEASE_S)
        self._unacknowledged = grant.unacknowledged_receipts
        self._evidence.expire(self._wall_s())
        for item in grant.evidence:
            self._evidence.add(item.digest, item.not_after_s)
        self.revoked = grant.revoked_sessions

    def check(self) -> None:
        """Return if a request may begin.

        Raises:
            AuditLeaseError: the lease has run out, or too many receipts wait for the audit log.
        """
        if self._monotonic_s() >= self._until_s:
            raise AuditLeaseError("the audit log has not been reached for 30 s: no new requests until it is")
        if self._unacknowledged >= MAX_UNACKNOWLEDGED_RECEIPTS:
            raise AuditLeaseError(f"{self._unacknowledged} receipts wait for the audit log: no new requests until then")

    async def next_grant(self, *, timeout_s: float) -> None:
        """Return when another grant has come, or after ``timeout_s``."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._granted.wait()

    def knows_evidence(self, digest: bytes) -> bool:
        """Tell whether evidence of this digest (32 bytes) was issued for this worker and holds still."""
        return self._evidence.holds(digest, self._wall_s())
