"""The query index: rows copied from leaves, in commit order, behind the log.

One process at a time has the turn (a row of `audit_writer`; SQLite has one writing process anyway). Bringing the index
up to date takes what is behind; rebuilding it writes the rows of a range of leaves anew, so that while it goes on, the
index is never less than it was: other processes append, bring it up to date and read meanwhile.
"""

import dataclasses
import json

from sqlalchemy import Connection, Dialect, delete, func, or_, select, tuple_

from audit.model import IndexRow, StoredLeaf
from audit.sql.driver import driver_of
from audit.sql.queries import as_int, stored_leaf
from audit.sql.statements import LAST_INDEXED, LEAVES_BEHIND, PROJECTOR_LOCK, PROJECTOR_TURN, insert_many
from audit.sql.tables import audit_index, audit_leaf
from bulkhead.errors import AuditUnavailableError, RecordError
from bulkhead.transparency.leaf import parse_leaf

__all__ = ["Projector"]


class Projector:
    """Writes index rows inside write transactions that the store opens."""

    def __init__(self, dialect: Dialect, *, shared: bool) -> None:
        self._shared = shared
        self._insert = insert_many(audit_index, dialect)

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
            self._insert.run(driver_of(connection), rows)
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
        self._insert.run(driver_of(connection), rows)
        return last


def _rows(connection: Connection, after: int, limit: int) -> list[tuple[object, ...]]:
    found = connection.execute(LEAVES_BEHIND, {"done": after, "limit": limit})
    return [_row(stored_leaf(row)) for row in found]


def _row(stored: StoredLeaf) -> tuple[object, ...]:
    """Return the row that belongs to a leaf, as :class:`~audit.model.IndexRow` orders it.

    A leaf was checked when it was made, and is again whenever it is read: here its members are only picked out. One
    that is not as expected is parsed strictly, for the error that says what is wrong with it.

    Raises:
        AuditUnavailableError: the leaf is damaged; names it.
    """
    row = _picked(stored)
    if row is not None:
        return row
    try:
        fields = parse_leaf(stored.leaf)
    except RecordError as error:
        raise AuditUnavailableError(
            f"leaf {stored.index} of log {stored.log_id} ({stored.record_id}): {error}"
        ) from error
    return dataclasses.astuple(IndexRow.of(stored.pos, stored.log_id, stored.index, fields))


def _picked(stored: StoredLeaf) -> tuple[object, ...] | None:
    try:
        leaf = json.loads(stored.leaf)
        subject = leaf.get("subject")
        row = (
            leaf["ts_us"], leaf["action"], leaf.get("decision", ""), "" if subject is None else subject["id"],
            leaf.get("session", ""), leaf.get("pair_id", ""),
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    if type(row[0]) is not int or any(type(value) is not str for value in row[1:]):
        return None
    return (stored.pos, stored.log_id, stored.index, *row)
