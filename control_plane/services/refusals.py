"""Records of refused calls: who could not be authenticated, and who was and may not.

What policy decided is recorded with the decision and not here. Records are limited per source and overall, so that a
flood of bad calls cannot fill the log or slow a tenant's commits; what is left out is counted in the process log. A
refusal stands whether or not it could be recorded.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import structlog

from audit.records import (
    PlatformReason,
    Record,
    Subject,
    access_denied,
    agent_refused,
    authentication_failed,
    platform_cause,
    tenant_cause,
)
from bulkhead.errors import (
    BulkheadError,
    EvidenceError,
    NotFoundError,
    PermissionDeniedError,
    PolicyDeniedError,
    TicketError,
    UnauthenticatedError,
    UnknownObligationError,
)
from bulkhead.transparency.leaf import Cause
from control_plane.domain.roles import Caller
from control_plane.services.journal import Journal

__all__ = ["RateLimiter", "RefusalRecorder", "cause_of", "subject_of"]

BURST: Final = 5  # enough to see a mistyped key, or one person trying doors
PER_SOURCE_PER_S: Final = 0.1
OVERALL_BURST: Final = 100
OVERALL_PER_S: Final = 20.0  # a hundredth of what the log takes
MAX_SOURCES: Final = 4_096  # remembered; a forgotten source starts with a full burst, the overall limit still holds
OVERALL: Final = "overall"

_RECORDED: Final = (PermissionDeniedError, NotFoundError, TicketError)
_RECORDED_OF_AGENTS: Final = (UnauthenticatedError, PermissionDeniedError, EvidenceError)
_RECORDED_BY_DECISION: Final = (PolicyDeniedError, UnknownObligationError)

log = structlog.get_logger(__name__)


class RateLimiter:
    """Token buckets by key, the least recently used forgotten.

    Args:
        burst: tokens of a full bucket.
        per_s: tokens that flow in each second.
        max_keys: buckets remembered.
        monotonic_s: clock in seconds.
    """

    def __init__(self, *, burst: int, per_s: float, max_keys: int, monotonic_s: Callable[[], float]) -> None:
        self._burst = float(burst)
        self._per_s = per_s
        self._max_keys = max_keys
        self._monotonic_s = monotonic_s
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str) -> bool:
        """Take a token of ``key``'s bucket; return whether there was one."""
        now_s = self._monotonic_s()
        tokens, seen_s = self._buckets.pop(key, (self._burst, now_s))
        tokens = min(self._burst, tokens + (now_s - seen_s) * self._per_s)
        taken = tokens >= 1.0
        self._buckets[key] = (tokens - 1.0 if taken else tokens, now_s)
        if len(self._buckets) > self._max_keys:
            self._buckets.popitem(last=False)
        return taken


class RefusalRecorder:
    """Writes the records of refused calls.

    Args:
        journal: the audit log.
        monotonic_s: clock in seconds, for the limits.
    """

    def __init__(self, *, journal: Journal, monotonic_s: Callable[[], float]) -> None:
        self._journal = journal
        self._sources = RateLimiter(burst=BURST, per_s=PER_SOURCE_PER_S, max_keys=MAX_SOURCES, monotonic_s=monotonic_s)
        self._overall = RateLimiter(burst=OVERALL_BURST, per_s=OVERALL_PER_S, max_keys=1, monotonic_s=monotonic_s)
        self._suppressed = 0

    async def unauthenticated(
        self, *, method: str, error: UnauthenticatedError, caller: Caller | None, source: str
    ) -> None:
        """Record that a caller was not admitted.

        Args:
            method: full method name.
            error: what they are told.
            caller: the holder of a genuine credential that no longer holds, else None.
            source: address of the peer; limits by it and is not recorded.
        """
        if not self._may_record(source if caller is None else caller.credential_id):
            return
        record = authentication_failed(
            self._journal.stamp(),
            method=method,
            code=error.code,
            tenant=None if caller is None else caller.tenant_id or None,
            credential="" if caller is None else caller.credential_id,
        )
        await self._write(record, method, error)

    async def denied(self, *, method: str, error: BulkheadError, caller: Caller, request_id: str) -> None:
        """Record that a known caller was refused something; other errors than refusals are left alone."""
        if not isinstance(error, _RECORDED) or isinstance(error, _RECORDED_BY_DECISION):
            return
        if not self._may_record(caller.principal_id):
            return
        record = access_denied(
            self._journal.stamp(),
            tenant=caller.tenant_id or None,
            subject=subject_of(caller),
            cause=cause_of(caller, request_id),
            method=method,
            code=error.code,
            message=error.message,
        )
        await self._write(record, method, error)

    async def agent_denied(self, *, method: str, error: BulkheadError, agent_id: str) -> None:
        """Record that a node agent, known by its certificate, was refused; other errors than refusals are left alone.

        What stands in the record are this platform's words and the certificate's name, nothing that the agent said.
        """
        if not isinstance(error, _RECORDED_OF_AGENTS) or not self._may_record(agent_id):
            return
        record = agent_refused(self._journal.stamp(), agent=agent_id, code=error.code, message=error.message)
        await self._write(record, method, error)

    async def _write(self, record: Record, method: str, error: BulkheadError) -> None:
        try:
            await self._journal.write(record)
        except BulkheadError as failure:
            log.warning("refusal.unrecorded", method=method, code=error.code, because=failure.code)

    def _may_record(self, source: str) -> bool:
        if self._sources.take(source) and self._overall.take(OVERALL):
            if self._suppressed:
                log.warning("refusal.suppressed", count=self._suppressed)
                self._suppressed = 0
            return True
        self._suppressed += 1
        return False


def subject_of(caller: Caller) -> Subject:
    """Return the caller as records name them."""
    return Subject(caller.subject_id, (caller.role.value,))


def cause_of(caller: Caller, request_id: str) -> Cause:
    """Return the cause of what the caller's request brings about: a tenant's own, or an administrator's."""
    if caller.tenant_id:
        return tenant_cause(credential=caller.credential_id, request_id=request_id)
    return platform_cause(PlatformReason.ADMIN, credential=caller.credential_id, request_id=request_id)
