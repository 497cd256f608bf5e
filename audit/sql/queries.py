"""Pages of the index: filters and keyset paging, by place within a log or by commit order across logs."""

import re
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, asc, desc, func, select

from audit.model import MAX_PAGE, Head, IndexRow, LogInfo, Order, Page, RecordFilter, StoredLeaf
from audit.records import Action, Decision
from audit.sql.tables import audit_head, audit_index, audit_leaf, audit_log
from audit.store import IndexedLeaf, IndexedLeaves
from bulkhead.errors import InvalidRequestError
from bulkhead.transparency.merkle import Frontier

__all__ = [
    "as_bytes",
    "as_int",
    "as_text",
    "index_row",
    "read_heads",
    "read_logs",
    "run_open_pairs",
    "run_query",
    "stored_leaf",
]

_TOKEN: Final = re.compile(r"([ip])(0|[1-9][0-9]{0,17})")
_INDEX: Final = audit_index.c
_LEAF: Final = audit_leaf.c
_INDEX_COLUMNS: Final = len(_INDEX)
_LEAF_COLUMNS: Final = (
    _LEAF.pos.label("leaf_pos"), _LEAF.log_id, _LEAF.idx, _LEAF.record_id, _LEAF.leaf, _LEAF.leaf_hash
)  # fmt: skip
_PAIRS: Final = 500  # looked up at once
_CLOSING: Final = frozenset({Action.OUTCOME.value, Action.SESSION_RENEWED.value})


def run_query(connection: Connection, query: RecordFilter, page: Page) -> IndexedLeaves:
    """Return a page.

    Raises:
        InvalidRequestError: a limit out of range, or a token of another list.
    """
    if not 1 <= page.limit <= MAX_PAGE:
        raise InvalidRequestError(f"a page holds 1 to {MAX_PAGE} records")
    key = _INDEX.pos if query.log_id is None else _INDEX.idx
    conditions = _conditions(query)
    newest = page.order is Order.NEWEST_FIRST
    after = _after(query, page)
    if after is not None:
        conditions.append(key < after if newest else key > after)
    order = desc if newest else asc
    # The page's places first, their rows and leaves then: with all at once the database would fetch both of every place
    # that it sorts, of an hour's 200,000 for a page of 100.
    span = query.since_us is not None and query.until_us is not None
    # A span is sorted by something that no index is in order of: a planner that took the index by place, hoping to meet
    # the span soon, would read the log down to it.
    ordered = key + 0 if span else key
    places = select(key).where(*conditions).order_by(order(ordered)).limit(page.limit + 1).subquery()
    placed = key == places.c[key.name]
    found = connection.execute(
        select(audit_index, *_LEAF_COLUMNS)
        .join_from(places, audit_index, placed if query.log_id is None else placed & (_INDEX.log_id == query.log_id))
        .join(audit_leaf, _INDEX.pos == _LEAF.pos, isouter=True)
        .order_by(order(key))
    ).all()
    rows = tuple(IndexedLeaf(index_row(row), _leaf_beside(row)) for row in found[: page.limit])
    token = ""
    if len(found) > page.limit:
        last = rows[-1].row
        token = f"p{last.pos}" if query.log_id is None else f"i{last.index}"
    return IndexedLeaves(rows, token, *_sizes(connection, query.log_id))


def run_open_pairs(connection: Connection, log_id: int, start: int, stop: int) -> IndexedLeaves:
    """Return the open pairs among a log's places; see :meth:`audit.store.AuditReader.open_pairs`.

    Two look-ups rather than one statement that leaves out what has an outcome: of that a planner may make a reading of
    the whole index.
    """
    decided = connection.execute(
        select(_INDEX.idx, _INDEX.pair_id).where(
            _INDEX.log_id == log_id,
            _INDEX.action == Action.DECISION.value,
            _INDEX.decision == Decision.ALLOW.value,
            _INDEX.session != "",
            _INDEX.idx >= start,
            _INDEX.idx < stop,
        )
    ).all()
    pairs = sorted({as_text(row.pair_id) for row in decided})
    closed: set[str] = set()
    for first in range(0, len(pairs), _PAIRS):
        these = _INDEX.pair_id.in_(pairs[first : first + _PAIRS])
        found = connection.execute(select(_INDEX.pair_id, _INDEX.log_id, _INDEX.action).where(these))
        closed |= {row.pair_id for row in found if row.log_id == log_id and row.action in _CLOSING}
    places = sorted((row.idx for row in decided if row.pair_id not in closed), reverse=True)
    rows: list[IndexedLeaf] = []
    for first in range(0, len(places), _PAIRS):
        here = (_INDEX.log_id == log_id) & _INDEX.idx.in_(places[first : first + _PAIRS])
        rows += _with_leaves(connection, here)
    return IndexedLeaves(tuple(rows), "", *_sizes(connection, log_id))


def read_logs(connection: Connection) -> tuple[LogInfo, ...]:
    """Return every log by id."""
    return tuple(
        LogInfo(
            log_id=as_int(row.log_id),
            origin=as_text(row.origin),
            tenant=None if row.tenant is None else as_text(row.tenant),
            epoch=as_int(row.epoch),
            slot=None if row.slot is None else as_int(row.slot),
        )
        for row in connection.execute(select(audit_log).order_by(audit_log.c.log_id))
    )


def read_heads(connection: Connection) -> tuple[Head, ...]:
    """Return every log's head.

    Raises:
        ProofError: one is damaged.
    """
    rows = connection.execute(select(audit_head)).all()
    return tuple(Head(as_int(row.log_id), Frontier.decode(as_int(row.size), as_bytes(row.frontier))) for row in rows)


def as_bytes(value: object) -> bytes:
    """Return ``value`` if it is bytes; else none.

    SQLite stores any type in any column. A value of the wrong type is somebody's edit: it must fail the check that is
    due, with that check's name for it, and not the code that reads it.
    """
    return value if isinstance(value, bytes) else b""


def as_text(value: object) -> str:
    """Return ``value`` if it is text; else none. See :func:`as_bytes`."""
    return value if isinstance(value, str) else ""


def as_int(value: object) -> int:
    """Return ``value`` if it is an integer; else -1. See :func:`as_bytes`."""
    return value if isinstance(value, int) else -1


def index_row(row: Sequence[Any]) -> IndexRow:
    """Return a row that begins with the columns of ``audit_index`` as a value; its texts are only ever compared."""
    pos, log_id, index, *rest = row[:_INDEX_COLUMNS]  # by place: names cost as much as the rest of it
    return IndexRow(as_int(pos), as_int(log_id), as_int(index), *rest)


def stored_leaf(row: Sequence[Any]) -> StoredLeaf:
    """Return a row of ``audit_leaf`` as a value."""
    pos, log_id, index, record_id, leaf, leaf_hash = row
    return StoredLeaf(
        as_int(pos), as_int(log_id), as_int(index), as_text(record_id), as_bytes(leaf), as_bytes(leaf_hash)
    )


def _with_leaves(connection: Connection, wanted: ColumnElement[bool]) -> list[IndexedLeaf]:
    found = connection.execute(
        select(audit_index, *_LEAF_COLUMNS)
        .join_from(audit_index, audit_leaf, _INDEX.pos == _LEAF.pos, isouter=True)
        .where(wanted)
        .order_by(desc(_INDEX.idx))
    )
    return [IndexedLeaf(index_row(row), _leaf_beside(row)) for row in found]


def _leaf_beside(row: Row[Any]) -> StoredLeaf | None:
    return None if row.leaf_pos is None else stored_leaf(row[_INDEX_COLUMNS:])


def _conditions(query: RecordFilter) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if query.log_id is not None:
        conditions.append(_INDEX.log_id == query.log_id)
    if query.action.endswith("."):  # "partition." up to "partition/": '/' follows '.' in ASCII
        conditions += [_INDEX.action >= query.action, _INDEX.action < f"{query.action[:-1]}/"]
    elif query.action:
        conditions.append(_INDEX.action == query.action)
    exact = (
        (_INDEX.decision, query.decision),
        (_INDEX.subject, query.subject),
        (_INDEX.session, query.session),
        (_INDEX.pair_id, query.pair_id),
    )
    conditions += [column == value for column, value in exact if value]
    if query.since_us is not None:
        conditions.append(_INDEX.ts_us >= query.since_us)
    if query.until_us is not None:
        conditions.append(_INDEX.ts_us < query.until_us)
    return conditions


def _after(query: RecordFilter, page: Page) -> int | None:
    if not page.after:
        return None
    match = _TOKEN.fullmatch(page.after)
    if match is None or match[1] != ("p" if query.log_id is None else "i"):
        raise InvalidRequestError("the page token is not one of this list")
    return int(match[2])


def _sizes(connection: Connection, log_id: int | None) -> tuple[int, int]:
    """Return how many records are indexed and committed, of one log or of all."""
    if log_id is None:
        indexed = connection.execute(select(func.max(_INDEX.pos))).scalar() or 0
        return indexed, connection.execute(select(func.max(_LEAF.pos))).scalar() or 0
    last = connection.execute(select(func.max(_INDEX.idx)).where(_INDEX.log_id == log_id)).scalar()
    size = connection.execute(select(audit_head.c.size).where(audit_head.c.log_id == log_id)).scalar()
    return (0 if last is None else last + 1), size or 0
