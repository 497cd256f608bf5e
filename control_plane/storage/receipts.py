"""Repository of receipt batches: a receipt's number is claimed for one record before that is written."""

from typing import Final

from sqlalchemy import Connection, RowMapping, insert, select, update

from control_plane.domain.receipts import StoredBatch
from control_plane.storage.schema import receipt_batches

__all__ = ["ReceiptBatches"]

DIGEST_BYTES: Final = 32  # SHA-256


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
