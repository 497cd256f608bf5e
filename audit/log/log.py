"""The audit log: append, prove, list, export. Being built: methods that raise UnsupportedError are not there yet."""

from typing import BinaryIO

from audit.config import AuditConfig
from audit.model import (
    Appended,
    AuditHealth,
    Failpoint,
    LogInfo,
    Page,
    Progress,
    RecordFilter,
    RecordPage,
    no_failpoint,
)
from audit.records import Record, Stamp
from bulkhead.errors import UnsupportedError
from bulkhead.transparency import AuditReceipt, RoundPath

__all__ = ["AuditLog"]


class AuditLog:
    """One writing process's audit log, used from the event loop that opened it."""

    @classmethod
    async def open(cls, config: AuditConfig, *, failpoint: Failpoint = no_failpoint) -> "AuditLog":
        """Open (and, the first time, create) the log; the platform's own log is there afterwards.

        Raises:
            AuditUnavailableError: the database cannot be opened, or another process writes to it.
            LogForkError: database and lock store disagree; nothing may be written.
            ConfigError: the key directory is not private to this user.
        """
        raise UnsupportedError("not built yet")

    async def close(self) -> None:
        """Finish what is queued and release the database."""
        raise UnsupportedError("not built yet")

    def stamp(self) -> Stamp:
        """Return identity and time for one record."""
        raise UnsupportedError("not built yet")

    @property
    def platform_log(self) -> LogInfo:
        """The platform's own log."""
        raise UnsupportedError("not built yet")

    def logs(self) -> tuple[LogInfo, ...]:
        """Return every log, the platform's first."""
        raise UnsupportedError("not built yet")

    async def ensure_log(self, tenant_id: str) -> LogInfo:
        """Return the tenant's log, creating it with its leaf 0 at first.

        Raises:
            AuditUnavailableError: it could not be created.
        """
        raise UnsupportedError("not built yet")

    async def append(self, log_id: int, record: Record) -> Appended:
        """Append a record and return when it is durable in database and lock store.

        Sending the same record again (same id, same bytes) returns the place it already has.

        Raises:
            AuditUnavailableError: it is not known to be durable; nothing may be done on its strength. Bounded by
                ``append_timeout_s``. Sending the same record again is safe.
            LogForkError: database and lock store disagree.
            InvalidRequestError: the record belongs into another log.
            ConflictError: another record has its id.
            NotFoundError: no such log.
        """
        raise UnsupportedError("not built yet")

    async def write(self, record: Record) -> Appended:
        """Append a record to the log of its tenant (created at need), or to the platform's log if it has none.

        Raises:
            As :meth:`append`.
        """
        raise UnsupportedError("not built yet")

    def vkey(self, log_id: int) -> str:
        """Return the log's public key as a C2SP vkey, to be pinned by tenants."""
        raise UnsupportedError("not built yet")

    async def checkpoint(self, log_id: int) -> str:
        """Return the log's signed checkpoint of its acknowledged size."""
        raise UnsupportedError("not built yet")

    async def receipt(self, log_id: int, index: int) -> AuditReceipt:
        """Return a record with its inclusion proof under the current checkpoint.

        Raises:
            NotFoundError: no such record is acknowledged.
            AuditUnavailableError: the database cannot be read.
        """
        raise UnsupportedError("not built yet")

    async def consistency(self, log_id: int, old_size: int, new_size: int) -> tuple[bytes, ...]:
        """Return the consistency proof between two acknowledged sizes.

        Raises:
            InvalidRequestError: not ``0 <= old_size <= new_size <= size``.
            AuditUnavailableError: the database cannot be read.
        """
        raise UnsupportedError("not built yet")

    async def round_path(self, log_id: int) -> RoundPath | None:
        """Return what ties a tenant's log to the platform's latest round; None before its first round."""
        raise UnsupportedError("not built yet")

    async def records(self, query: RecordFilter, page: Page) -> RecordPage:
        """List records through the index; each is compared with its leaf before it is returned.

        Raises:
            InvalidRequestError: a bad limit, page token or filter.
            RecordError: the index or a leaf has been tampered with; names the record.
            AuditUnavailableError: the database cannot be read.
        """
        raise UnsupportedError("not built yet")

    async def export(self, log_id: int, stream: BinaryIO, *, progress: Progress | None = None) -> int:
        """Write the log as a self-contained export (JSONL); return how many records it holds.

        Raises:
            RecordError: a stored leaf does not hold; names it.
            AuditUnavailableError: the database cannot be read.
        """
        raise UnsupportedError("not built yet")

    def health(self) -> AuditHealth:
        """Return whether the log can be written."""
        raise UnsupportedError("not built yet")
