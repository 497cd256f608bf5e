"""Telling the agent, and through it the audit log, of requests that were refused before anything was done.

Anybody who reaches the ingress can cause refusals, so their rate is bounded; what exceeds it is counted in the log.
"""

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from bulkhead.errors import (
    AgentUnavailableError,
    AuditLeaseError,
    BulkheadError,
    InvalidRequestError,
    QueueFullError,
    ShuttingDownError,
    TicketError,
)
from bulkhead.protocol.envelope import Envelope
from bulkhead.protocol.tickets import TicketClaims, TicketVerifier
from data_plane.session.messages import AgentLink, WorkerRefused

__all__ = ["RefusalReporter"]

_log = structlog.get_logger(__name__)

REPORTS_PER_S: Final = 20.0  # above it the spool would fill with one attacker's noise
BURST: Final = 100.0
_OPERATIONAL: Final = (AuditLeaseError, QueueFullError, ShuttingDownError)


class RefusalReporter:
    """Reports of one worker.

    Args:
        link: to the agent.
        tickets: tells whose authentic ticket was refused.
        monotonic_s: seconds that never go backwards.
    """

    def __init__(self, *, link: AgentLink, tickets: TicketVerifier, monotonic_s: Callable[[], float]) -> None:
        self._link = link
        self._tickets = tickets
        self._monotonic_s = monotonic_s
        self._allowance = BURST
        self._counted_s = monotonic_s()
        self._suppressed = 0
        self._sending: set[asyncio.Task[None]] = set()

    def refused_envelope(self, error: BulkheadError, envelope: bytes) -> None:
        """Report a request whose envelope (untrusted) was refused with ``error``."""
        self.refused_ticket(error, _ticket_of(envelope))

    def claims_of(self, envelope: bytes) -> TicketClaims | None:
        """Return what the issuer signed of the ticket in an envelope (untrusted); it may not hold here or now."""
        try:
            return self._tickets.authenticate(_ticket_of(envelope))
        except TicketError:
            return None

    def refused_ticket(self, error: BulkheadError, ticket: str) -> None:
        """Report a call whose ticket (untrusted, or empty) was refused with ``error``.

        That the worker is busy, draining or without a lease says nothing about the caller and is not reported.
        """
        if isinstance(error, _OPERATIONAL):
            return
        now_s = self._monotonic_s()
        self._allowance = min(BURST, self._allowance + (now_s - self._counted_s) * REPORTS_PER_S)
        self._counted_s = now_s
        if self._allowance < 1:
            self._suppressed += 1
            return
        self._allowance -= 1
        if self._suppressed:
            _log.warning("worker.refusals_not_reported", count=self._suppressed)
            self._suppressed = 0
        session_id, tenant_id = self._owner_of(ticket)
        message = WorkerRefused(code=error.code, session_id=session_id, tenant_id=tenant_id)
        task = asyncio.create_task(self._send(message))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    def _owner_of(self, ticket: str) -> tuple[str, str]:
        try:
            claims = self._tickets.authenticate(ticket)
        except TicketError:
            return "", ""
        return claims.session, claims.tenant

    async def _send(self, message: WorkerRefused) -> None:
        try:
            await self._link.send(message)
        except AgentUnavailableError:
            _log.warning("worker.refusal_not_reported", code=message.code)


def _ticket_of(envelope: bytes) -> str:
    try:
        return Envelope.parse(envelope).ticket
    except InvalidRequestError:
        return ""
