"""The statements of a commit, compiled once per database, and those of frequent reads, built once.

Those of a commit run on the driver itself. Many rows go into one statement: on PostgreSQL as columns, in one trip; on
SQLite as one list of values, since the driver lets go of the interpreter once a statement, and taking it back from a
busy event loop takes longer than a row.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, Final

from sqlalchemy import ClauseElement, Dialect, Table, bindparam, func, insert, select
from sqlalchemy.dialects import postgresql

from audit.sql.driver import Cursor, Driver
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
    "LAST_INDEXED",
    "LAST_ROUND",
    "LEAF_HASHES",
    "LEAVES",
    "LEAVES_BEHIND",
    "MAX_ROWS",
    "NEWEST_ROUND",
    "PROJECTOR_LOCK",
    "PROJECTOR_TURN",
    "ROUND_HEADS",
    "SIZES_IN_ROUND",
    "CommitStatements",
    "ManyRows",
    "Prepared",
    "insert_many",
    "keep_checkpoints",
]

MAX_ROWS: Final = 4096  # leaves in one read: 64 MiB at the most, well inside a second
_LEAF: Final = audit_leaf.c
_BETWEEN: Final = (_LEAF.log_id == bindparam("log"), _LEAF.idx >= bindparam("start"), _LEAF.idx < bindparam("stop"))

LEAVES: Final = select(audit_leaf).where(*_BETWEEN).order_by(_LEAF.idx).limit(MAX_ROWS)
LEAF_HASHES: Final = select(_LEAF.leaf_hash).where(*_BETWEEN).order_by(_LEAF.idx).limit(MAX_ROWS)
LEAVES_BEHIND: Final = (
    select(audit_leaf).where(_LEAF.pos > bindparam("done")).order_by(_LEAF.pos).limit(bindparam("limit"))
)
LAST_ROUND: Final = select(func.max(audit_round.c.round))
_ROUND: Final = audit_round.c
NEWEST_ROUND: Final = (  # from the end of the index by log, past those that are not published yet
    select(_ROUND.round)
    .where(_ROUND.log_id == bindparam("log"), _ROUND.size < bindparam("size"))
    .order_by(_ROUND.round.desc())
    .limit(1)
)
SIZES_IN_ROUND: Final = select(  # one step in the index by log for each log
    audit_log.c.log_id,
    select(_ROUND.size)
    .where(_ROUND.log_id == audit_log.c.log_id, _ROUND.round <= bindparam("number"))
    .order_by(_ROUND.round.desc())
    .limit(1)
    .scalar_subquery()
    .label("size"),
)
ROUND_HEADS: Final = (
    select(audit_round)
    .where(_ROUND.round >= bindparam("start"), _ROUND.round < bindparam("stop"))
    .order_by(_ROUND.round, _ROUND.log_id)
)
LAST_INDEXED: Final = select(func.max(audit_index.c.pos))
_WRITER_LOCK: Final = select(audit_writer.c.id).where(audit_writer.c.id == SEQUENCER).with_for_update()
_PROJECTOR: Final = select(audit_writer.c.id).where(audit_writer.c.id == PROJECTOR)
PROJECTOR_LOCK: Final = _PROJECTOR.with_for_update(skip_locked=True)  # no row while another process has the turn
PROJECTOR_TURN: Final = _PROJECTOR.with_for_update()
_MAX_ROWS_AT_ONCE: Final = 128  # on SQLite: times nine columns well below its limit on parameters


class Prepared:
    """A statement as text of one database's dialect. Parameters are passed as they are: integers, text, bytes."""

    def __init__(self, statement: ClauseElement, dialect: Dialect) -> None:
        compiled: Any = statement.compile(dialect=dialect)
        self._text: str = str(compiled)
        self._names: tuple[str, ...] | None = tuple(compiled.positiontup) if compiled.positional else None
        self._fixed = {name: value for name, value in compiled.params.items() if value is not None}

    def run(self, driver: Driver, **parameters: object) -> Cursor:
        """Execute it."""
        parameters.update(self._fixed)
        if self._names is None:
            return driver.execute(self._text, parameters)
        return driver.execute(self._text, [parameters[name] for name in self._names])


class ManyRows:
    """A statement over many rows at once; how it is written is the dialect's affair."""

    def __init__(self, table: Table, names: Sequence[str], dialect: Dialect, statement: str, source: str) -> None:
        """Prepare it.

        Args:
            table: it has the columns ``names``.
            names: what each row holds, in order.
            dialect: the database's.
            statement: the statement, with ``{rows}`` where the rows come from.
            source: the same for SQLite, where ``{rows}`` is a list of ``(?, ?), (?, ?)``.
        """
        self._arrays = _Arrays(table, names, statement) if dialect.name == "postgresql" else None
        row = f"({', '.join('?' * len(names))})"
        self._texts = [
            source.format(rows=", ".join([row] * (1 << power))) for power in range(_MAX_ROWS_AT_ONCE.bit_length())
        ]

    def run(self, driver: Driver, rows: Sequence[tuple[object, ...]]) -> None:
        """Execute it for rows, of which there is at least one."""
        if self._arrays is not None:
            self._arrays.run(driver, rows)
            return
        at = 0
        while left := len(rows) - at:
            power = min(left, _MAX_ROWS_AT_ONCE).bit_length() - 1
            stop = at + (1 << power)
            driver.execute(self._texts[power], list(itertools.chain.from_iterable(rows[at:stop])))
            at = stop


class _Arrays:
    """The rows as one PostgreSQL array a column; bytes, whose text would double, as one value that is cut there."""

    def __init__(self, table: Table, names: Sequence[str], statement: str) -> None:
        kinds = {name: str(table.c[name].type.compile(postgresql.dialect())).partition(" ")[0] for name in names}  # type: ignore[no-untyped-call]
        arrays, aliases, columns = [], [], []
        for name, kind in kinds.items():
            if kind == "BYTEA":
                arrays += [f"%({name}_at)s::integer[]", f"%({name}_len)s::integer[]"]
                aliases += [f"{name}_at", f"{name}_len"]
                columns.append(f"substr(%({name})s, {name}_at, {name}_len) AS {name}")
            else:
                arrays.append(f"%({name})s::{kind}[]")
                aliases.append(name)
                columns.append(name)
        source = f"SELECT {', '.join(columns)} FROM unnest({', '.join(arrays)}) AS v ({', '.join(aliases)})"  # noqa: S608 - names
        self._text = statement.format(rows=source)
        self._kinds = kinds

    def run(self, driver: Driver, rows: Sequence[tuple[object, ...]]) -> None:
        parameters: dict[str, object] = {}
        for (name, kind), values in zip(self._kinds.items(), zip(*rows, strict=True), strict=True):
            if kind == "BYTEA":
                lengths = [len(value) for value in values]
                starts = itertools.accumulate(lengths[:-1], initial=1)  # PostgreSQL counts from 1
                parameters[name] = b"".join(values)
                parameters[f"{name}_at"] = _numbers(starts)
                parameters[f"{name}_len"] = _numbers(lengths)
            else:
                parameters[name] = _texts(values) if kind == "TEXT" else _numbers(values)
        driver.execute(self._text, parameters)


def _numbers(values: Iterable[int]) -> str:
    """Return PostgreSQL's notation of an array of integers."""
    return f"{{{','.join(map(str, values))}}}"


def _texts(values: Sequence[str]) -> str:
    """Return PostgreSQL's notation of an array of texts."""
    whole = '","'.join(values)
    if "\\" in whole or whole.count('"') != 2 * (len(values) - 1):
        whole = '","'.join(value.replace("\\", "\\\\").replace('"', '\\"') for value in values)
    return f'{{"{whole}"}}'


def insert_many(table: Table, dialect: Dialect) -> ManyRows:
    """Return what adds rows, each with all columns in order."""
    names = [column.name for column in table.c]
    into = f"INSERT INTO {table.name} ({', '.join(names)}) "
    return ManyRows(table, names, dialect, into + "{rows}", into + "VALUES {rows}")


def keep_checkpoints(dialect: Dialect) -> ManyRows:
    """Return what keeps checkpoints, given as (log id, size, note); one that is there stays."""
    into = "INSERT INTO audit_checkpoint (log_id, size, note) "
    end = " ON CONFLICT DO NOTHING"
    return ManyRows(
        audit_checkpoint, ["log_id", "size", "note"], dialect, into + "{rows}" + end, into + "VALUES {rows}" + end
    )


class CommitStatements:
    """The statements that every commit, or many of them, run."""

    def __init__(self, dialect: Dialect) -> None:
        leaf, tile, head = audit_leaf.c, audit_tile.c, audit_head.c
        self.lock: Final = None if dialect.name == "sqlite" else Prepared(_WRITER_LOCK, dialect)  # there BEGIN locks
        self.last: Final = Prepared(
            select(audit_commit.c.seq, audit_commit.c.chain, audit_commit.c.pos).where(
                audit_commit.c.seq == select(func.max(audit_commit.c.seq)).scalar_subquery()
            ),
            dialect,
        )
        self.chain: Final = Prepared(select(audit_commit.c.chain).where(audit_commit.c.seq == bindparam("at")), dialect)
        self.head: Final = Prepared(
            select(audit_log.c.origin, head.size, head.frontier)
            .join_from(audit_head, audit_log, head.log_id == audit_log.c.log_id)
            .where(head.log_id == bindparam("log")),
            dialect,
        )
        self.place: Final = Prepared(
            select(leaf.log_id, leaf.idx, leaf.leaf_hash).where(leaf.record_id == bindparam("record")), dialect
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
        self.taken: Final = Prepared(
            select(func.count())
            .select_from(audit_log)
            .where(
                (audit_log.c.log_id == bindparam("log"))
                | (audit_log.c.origin == bindparam("origin"))
                | ((audit_log.c.slot == bindparam("slot")) & (audit_log.c.epoch == bindparam("epoch")))
                | ((audit_log.c.tenant == bindparam("tenant")) & (audit_log.c.epoch == bindparam("epoch")))
            ),
            dialect,
        )
        self.round: Final = Prepared(
            select(func.count()).select_from(audit_round).where(audit_round.c.round == bindparam("at")), dialect
        )
        self.add_log: Final = Prepared(insert(audit_log), dialect)
        self.add_rounds: Final = insert_many(audit_round, dialect)
        self.add_leaves: Final = insert_many(audit_leaf, dialect)
        self.add_tiles: Final = insert_many(audit_tile, dialect)
        self.add_heads: Final = insert_many(audit_head, dialect)
        self.add_commit: Final = Prepared(insert(audit_commit), dialect)
        self.set_heads: Final = ManyRows(
            audit_head,
            ["log_id", "size", "frontier"],
            dialect,
            "UPDATE audit_head SET size = n.size, frontier = n.frontier FROM ({rows}) AS n"
            " WHERE audit_head.log_id = n.log_id",
            "WITH n (log_id, size, frontier) AS (VALUES {rows}) UPDATE audit_head SET size = n.size,"
            " frontier = n.frontier FROM n WHERE audit_head.log_id = n.log_id",
        )
