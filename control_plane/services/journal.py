"""Writing to the audit log: what must be recorded before anything happens, and what is recorded because it happened.

:meth:`Journal.write` raises when the record is not durable, and nothing may be done on its strength. What has already
happened (a worker died, a session ran out) cannot be undone by a log that is down: :meth:`Journal.report` keeps such
records and sends them again until the log takes them. Their bytes never change, so that a repetition is recognised.
While any wait, :meth:`Journal.vouches` is false and no lease is renewed: workers stop within theirs.
"""

from collections import deque
from typing import Final

import structlog

from audit.log import AuditLog
from audit.model import Appended
from audit.records import Record, Stamp
from bulkhead.errors import AuditUnavailableError, BulkheadError, LogForkError

__all__ = ["Journal"]

MAX_WAITING: Final = 10_000  # about 10 MB; a log that is down longer than that has stopped every worker long before

log = structlog.get_logger(__name__)


class Journal:
    """The audit log as services use it.

    Args:
        audit: the open log.
    """

    def __init__(self, *, audit: AuditLog) -> None:
        self.audit = audit
        self._waiting: deque[Record] = deque()
        self._dropped = 0

    def stamp(self) -> Stamp:
        """Return identity and time for one record."""
        return self.audit.stamp()

    async def write(self, record: Record) -> Appended:
        """Append a record to its tenant's log (the platform's, without a tenant); return when it is durable.

        Raises:
            AuditUnavailableError: it is not known to be durable: do nothing on its strength.
        """
        try:
            return await self.audit.write(record)
        except LogForkError as error:
            raise AuditUnavailableError("the audit log has stopped: its database and lock store disagree") from error

    async def report(self, record: Record) -> None:
        """Append a record of what has already happened, now or as soon as the log can."""
        if not self._waiting:
            try:
                await self.write(record)
            except AuditUnavailableError:
                log.warning("audit.waiting", record=record.record_id, action=record.fields.action)
            else:
                return
        if len(self._waiting) >= MAX_WAITING:
            self._dropped += 1
            log.error("audit.dropped", record=record.record_id, action=record.fields.action, dropped=self._dropped)
            return
        self._waiting.append(record)

    async def retry(self) -> None:
        """Send what waits, in order, until the log fails again."""
        while self._waiting:
            record = self._waiting[0]
            try:
                await self.write(record)
            except AuditUnavailableError:
                return
            except BulkheadError as error:  # a record that the log will never take must not block the others
                log.error("audit.refused", record=record.record_id, action=record.fields.action, code=error.code)  # noqa: TRY400  codes, no stack
            if self._waiting and self._waiting[0] is record:
                self._waiting.popleft()

    def vouches(self) -> bool:
        """Return whether what happened so far is in the log, as far as this process can tell."""
        health = self.audit.health()
        return health.writable and not health.forked and not self._waiting
