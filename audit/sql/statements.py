"""The statements of a commit, compiled once per database, and those of frequent reads, built once.

A commit runs them thousands of times a second; compiling them ahead spares half of what SQLAlchemy does per call.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import ClauseElement, Connection, CursorResult, Dialect, Table, bindparam, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from audit.sql.tables import (
    PROJECTOR,
    SEQUENCER,
    audit_checkpoint,
    audit_commit,
    audit_head,
    audit_index,
    audit_leaf,
    audit_log,
    audit_round,
    audit_tile,
    audit_writer,
)

__all__ = [
    "CHAIN_AT",
    "HEADS_OF",
    "LAST_INDEXED",
    "LAST_ROUND",
    "LEAF_HASHES",
    "LEAVES",
    "LEAVES_BEHIND",
    "MAX_ROWS",
    "PLACES_OF",
    "PROJECTOR_LOCK",
    "PROJECTOR_TURN",
    "ROUND_AT",
    "WRITER_LOCK",
    "CommitStatements",
    "InsertMany",
    "Prepared",
    "keep_checkpoint",
]

MAX_ROWS: Final = 4096  # leaves in one read: 64 MiB at the most, well inside a second
_LEAF: Final = audit_leaf.c
_BETWEEN: Final = (_LEAF.log_id == bindparam("log"), _LEAF.idx >= bindparam("start"), _LEAF.idx < bindparam("stop"))

CHAIN_AT: Final = select(audit_commit.c.chain).where(audit_commit.c.seq == bindparam("at"))
HEADS_OF: Final = (
    select(audit_head.c.log_id, audit_head.c.size, audit_head.c.frontier, audit_log.c.origin)
    .join_from(audit_head, audit_log, audit_head.c.log_id == audit_log.c.log_id)
    .where(audit_head.c.log_id.in_(bindparam("ids", expanding=True)))
)
PLACES_OF: Final = select(audit_leaf.c.record_id, audit_leaf.c.log_id, audit_leaf.c.idx, audit_leaf.c.leaf_hash).where(
    audit_leaf.c.record_id.in_(bindparam("ids", expanding=True))
)
LEAVES: Final = select(audit_leaf).where(*_BETWEEN).order_by(_LEAF.idx).limit(MAX_ROWS)
LEAF_HASHES: Final = select(_LEAF.leaf_hash).where(*_BETWEEN).order_by(_LEAF.idx).limit(MAX_ROWS)
LEAVES_BEHIND: Final = (
    select(audit_leaf).where(_LEAF.pos > bindparam("done")).order_by(_LEAF.pos).limit(bindparam("limit"))
)
LAST_ROUND: Final = select(func.max(audit_round.c.round))
LAST_INDEXED: Final = select(func.max(audit_index.c.pos))
ROUND_AT: Final = select(audit_round.c.round).where(audit_round.c.round == bindparam("at")).limit(1)
WRITER_LOCK: Final = select(audit_writer.c.id).where(audit_writer.c.id == SEQUENCER).with_for_update()
_PROJECTOR: Final = select(audit_writer.c.id).where(audit_writer.c.id == PROJECTOR)
PROJECTOR_LOCK: Final = _PROJECTOR.with_for_update(skip_locked=True)  # no row while another process has the turn
PROJECTOR_TURN: Final = _PROJECTOR.with_for_update()


class Prepared:
    """A statement as text of one database's dialect. Parameters are passed as they are: integers, text, bytes."""

    def __init__(self, statement: ClauseElement, dialect: Dialect, *, names: Sequence[str] | None = None) -> None:
        compiled: Any = statement.compile(dialect=dialect, column_keys=names)
        self._text: str = str(compiled)
        self._names: tuple[str, ...] | None = tuple(compiled.positiontup) if compiled.positional else None

    def run(self, connection: Connection, parameters: Mapping[str, object]) -> CursorResult[Any]:
        """Execute it once."""
        return connection.exec_driver_sql(self._text, self._bound(parameters))

    def run_many(self, connection: Connection, parameters: Sequence[Mapping[str, object]]) -> None:
        """Execute it for each set of parameters."""
        connection.exec_driver_sql(self._text, [self._bound(each) for each in parameters])

    def run_tuples(self, connection: Connection, rows: Sequence[tuple[object, ...]]) -> None:
        """Execute it for each tuple of positional parameters."""
        connection.exec_driver_sql(self._text, list(rows))

    def _bound(self, parameters: Mapping[str, object]) -> Any:
        return dict(parameters) if self._names is None else tuple(parameters[name] for name in self._names)


class InsertMany:
    """Adds many rows of one table at once: on PostgreSQL as arrays, in one statement and one trip."""

    def __init__(self, table: Table, names: Sequence[str], dialect: Dialect) -> None:
        """Prepare for the columns ``names``."""
        self._names = tuple(names)
        self._each = None if dialect.name == "postgresql" else Prepared(insert(table), dialect, names=names)
        kinds = {name: table.c[name].type.compile(dialect).partition(" ")[0] for name in names}  # without collation
        arrays = ", ".join(f"%({name})s::{kind}[]" for name, kind in kinds.items())
        self._text = f"INSERT INTO {table.name} ({', '.join(names)}) SELECT * FROM unnest({arrays})"  # noqa: S608 - names

    def run(self, connection: Connection, rows: Sequence[tuple[object, ...]]) -> None:
        """Insert rows, each a tuple in the order of the columns."""
        if self._each is not None:
            self._each.run_tuples(connection, rows)
        else:
            columns = zip(*rows, strict=True)
            connection.exec_driver_sql(self._text, {n: list(c) for n, c in zip(self._names, columns, strict=True)})


def keep_checkpoint(dialect: Dialect) -> Prepared:
    """Return the statement that keeps a checkpoint; one that is there stays."""
    insert_of = postgresql.insert if dialect.name == "postgresql" else sqlite.insert
    values = insert_of(audit_checkpoint).values({name: bindparam(name) for name in ("log_id", "size", "note")})
    return Prepared(values.on_conflict_do_nothing(), dialect)


class CommitStatements:
    """The statements that every commit, or many of them, run."""

    def __init__(self, dialect: Dialect) -> None:
        leaf, tile = audit_leaf.c, audit_tile.c
        self.last: Final = Prepared(
            select(audit_commit.c.seq, audit_commit.c.chain, audit_commit.c.pos).where(
                audit_commit.c.seq == select(func.max(audit_commit.c.seq)).scalar_subquery()
            ),
            dialect,
        )
        self.hashes: Final = Prepared(
            select(leaf.leaf_hash)
            .where(leaf.log_id == bindparam("log"), leaf.idx >= bindparam("low"), leaf.idx < bindparam("high"))
            .order_by(leaf.idx),
            dialect,
        )
        self.tile: Final = Prepared(
            select(tile.hashes).where(
                tile.log_id == bindparam("log"), tile.level == bindparam("lev"), tile.n == bindparam("num")
            ),
            dialect,
        )
        self.add_leaves: Final = InsertMany(audit_leaf, [column.name for column in audit_leaf.c], dialect)
        self.add_tile: Final = Prepared(insert(audit_tile), dialect)
        self.add_commit: Final = Prepared(insert(audit_commit), dialect)
        self.add_head: Final = Prepared(insert(audit_head), dialect)
        self.set_heads: Final = _set_heads(dialect)


def _set_heads(dialect: Dialect) -> Callable[[Connection, Sequence[tuple[int, int, bytes]]], None]:
    """Return what moves heads, given as (log id, size, frontier)."""
    head = audit_head.c
    moved = (
        update(audit_head)
        .where(head.log_id == bindparam("log"))
        .values(size=bindparam("new_size"), frontier=bindparam("new_frontier"))
    )
    if dialect.name != "postgresql":
        each = Prepared(moved, dialect)
        return lambda connection, rows: each.run_many(
            connection, [{"log": log_id, "new_size": size, "new_frontier": nodes} for log_id, size, nodes in rows]
        )
    text = (
        "UPDATE audit_head SET size = v.size, frontier = v.frontier FROM"
        " unnest(%(logs)s::integer[], %(sizes)s::bigint[], %(frontiers)s::bytea[]) AS v (log_id, size, frontier)"
        " WHERE audit_head.log_id = v.log_id"
    )

    def run(connection: Connection, rows: Sequence[tuple[int, int, bytes]]) -> None:
        logs, sizes, frontiers = zip(*rows, strict=True)
        found = {"logs": list(logs), "sizes": list(sizes), "frontiers": list(frontiers)}
        connection.exec_driver_sql(text, found)

    return run
