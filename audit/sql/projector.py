"""The query index: rows copied from leaves, in commit order, behind the log.

One process at a time has the turn (a row of `audit_writer`; SQLite has one writing process anyway). Bringing the index
up to date takes what is behind; rebuilding it writes the rows of a range of leaves anew, so that while it goes on, the
index is never less than it was: other processes append, bring it up to date and read meanwhile.
"""

from sqlalchemy import Connection, Dialect, delete, func, or_, select, tuple_

from audit.model import IndexRow, StoredLeaf
from audit.sql.queries import as_int, stored_leaf
from audit.sql.statements import LAST_INDEXED, LEAVES_BEHIND, PROJECTOR_LOCK, PROJECTOR_TURN, InsertMany
from audit.sql.tables import audit_index, audit_leaf
from bulkhead.errors import AuditUnavailableError, RecordError
from bulkhead.transparency.leaf import parse_leaf

__all__ = ["Projector"]


class Projector:
    """Writes index rows inside write transactions that the store opens."""

    def __init__(self, dialect: Dialect, *, shared: bool) -> None:
        self._shared = shared
        self._insert = InsertMany(audit_index, [column.name for column in audit_index.c], dialect)

    def project(self, connection: Connection, limit: int) -> int | None:
        """Bring at most ``limit`` leaves into the index; return how many. None: another process has the turn.

        Raises:
            AuditUnavailableError: a leaf is damaged; names the record.
        """
        if self._shared and connection.execute(PROJECTOR_LOCK).scalar() is None:
            return None
        done = as_int(connection.execute(LAST_INDEXED).scalar() or 0)
        rows = _rows(connection, done, limit)
        if rows:
            self._insert.run(connection, rows)
        return len(rows)

    def rebuild(self, connection: Connection, after: int, limit: int) -> int:
        """Write the rows of at most ``limit`` leaves after position ``after`` anew; return the last one's position.

        Begin with 0, which also removes rows of no leaf; at the end of the log ``after`` comes back.

        Raises:
            AuditUnavailableError: a leaf is damaged; names the record.
        """
        if self._shared:
            connection.execute(PROJECTOR_TURN)
        index, leaf = audit_index.c, audit_leaf.c
        if after == 0:
            last_leaf = select(func.coalesce(func.max(leaf.pos), 0)).scalar_subquery()
            connection.execute(delete(audit_index).where(or_(index.pos <= 0, index.pos > last_leaf)))
        rows = _rows(connection, after, limit)
        if not rows:
            return after
        last = as_int(rows[-1][0])
        connection.execute(delete(audit_index).where(index.pos > after, index.pos <= last))
        places = select(leaf.log_id, leaf.idx).where(leaf.pos > after, leaf.pos <= last)  # taken by an edited row
        connection.execute(delete(audit_index).where(tuple_(index.log_id, index.idx).in_(places)))
        self._insert.run(connection, rows)
        return last


def _rows(connection: Connection, after: int, limit: int) -> list[tuple[object, ...]]:
    found = connection.execute(LEAVES_BEHIND, {"done": after, "limit": limit})
    return [_row(stored_leaf(row)) for row in found]


def _row(stored: StoredLeaf) -> tuple[object, ...]:
    try:
        row = IndexRow.of(stored.pos, stored.log_id, stored.index, parse_leaf(stored.leaf))
    except RecordError as error:
        raise AuditUnavailableError(
            f"leaf {stored.index} of log {stored.log_id} ({stored.record_id}): {error}"
        ) from error
    return (
        row.pos, row.log_id, row.index, row.ts_us, row.action, row.decision, row.subject, row.session, row.pair_id,
    )  # fmt: skip
