"""Repository of receipt batches: a receipt's number is claimed for one record before that is written."""

from typing import Final

from sqlalchemy import Connection, RowMapping, delete, insert, or_, select, update

from bulkhead import ids
from control_plane.domain.receipts import StoredBatch
from control_plane.domain.sessions import HOLDING
from control_plane.storage.schema import receipt_batches, sessions

__all__ = ["ReceiptBatches"]

DIGEST_BYTES: Final = 32  # SHA-256
US_PER_MS: Final = 1_000


class ReceiptBatches:
    """Batches on one transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def overlapping(self, session_id: str, partition_id: str, *, low: int, high: int) -> tuple[StoredBatch, ...]:
        """Return the batches that cover a number of ``low`` to ``high`` of a session on a partition."""
        table = receipt_batches.c
        rows = self._connection.execute(
            select(receipt_batches)
            .where(
                table.session_id == session_id,
                table.partition_id == partition_id,
                table.first <= high,
                table.first + table["count"] > low,
            )
            .order_by(table.first)
        )
        return tuple(map(_batch, rows.mappings()))

    def add(self, batch: StoredBatch) -> None:
        """Claim a range for a record that is about to be written; the caller has seen that nothing overlaps."""
        self._connection.execute(
            insert(receipt_batches).values(
                session_id=batch.session_id,
                partition_id=batch.partition_id,
                first=batch.first,
                count=len(batch.digests),
                tenant_id=batch.tenant_id,
                digests=b"".join(batch.digests),
                record_id=batch.record_id,
                leaf=batch.leaf,
            )
        )

    def recorded(self, record_id: str, *, log_id: int, log_index: int) -> None:
        """Note where a batch's record stands; its bytes are kept there from now on."""
        self._connection.execute(
            update(receipt_batches)
            .where(receipt_batches.c.record_id == record_id)
            .values(leaf=None, log_id=log_id, log_index=log_index)
        )

    def forget(self, *, before_us: int, limit: int) -> int:
        """Delete recorded batches of sessions that ended before a time, and return how many.

        A session ends with its last ticket; a batch whose session's row is gone is as old as its record.

        Args:
            before_us: Unix time in microseconds.
            limit: at most so many.
        """
        # Record ids begin with their time (UUIDv7), so the smallest of a millisecond bounds all before it.
        bound = ids.new_id(ids.RECORD, now_ms=lambda: before_us // US_PER_MS, random_bytes=bytes)
        ended = sessions.c.state.not_in([state.value for state in HOLDING]) & (sessions.c.expires_us < before_us)
        old = (
            select(receipt_batches.c.record_id)
            .outerjoin(sessions, sessions.c.session_id == receipt_batches.c.session_id)
            .where(
                receipt_batches.c.record_id < bound,
                receipt_batches.c.log_index.is_not(None),
                or_(sessions.c.session_id.is_(None), ended),
            )
            .order_by(receipt_batches.c.record_id)
            .limit(limit)
        )
        found = list(self._connection.execute(old).scalars())
        if found:
            self._connection.execute(delete(receipt_batches).where(receipt_batches.c.record_id.in_(found)))
        return len(found)

    def unrecorded(self) -> tuple[StoredBatch, ...]:
        """Return the batches whose record is not known to be in the log."""
        rows = self._connection.execute(
            select(receipt_batches).where(receipt_batches.c.log_index.is_(None)).order_by(receipt_batches.c.record_id)
        )
        return tuple(map(_batch, rows.mappings()))


def _batch(row: RowMapping) -> StoredBatch:
    digests = row["digests"]
    return StoredBatch(
        tenant_id=row["tenant_id"],
        session_id=row["session_id"],
        partition_id=row["partition_id"],
        first=row["first"],
        digests=tuple(digests[at : at + DIGEST_BYTES] for at in range(0, len(digests), DIGEST_BYTES)),
        record_id=row["record_id"],
        leaf=row["leaf"] or b"",
        log_id=row["log_id"],
        log_index=row["log_index"],
    )
