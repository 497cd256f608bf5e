"""The audit store in SQL: one writing connection, pooled readers, errors of the driver turned into ours."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from sqlalchemy import Connection, Engine, func, select
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from audit.chain import GENESIS, LockState
from audit.model import Failpoint, Head, LogInfo, Page, RecordFilter, RoundHead, StoredLeaf
from audit.sql.appender import Appender
from audit.sql.backend import Backend
from audit.sql.driver import Driver, driver_of, transaction
from audit.sql.projector import Projector
from audit.sql.queries import as_bytes, as_int, as_text, read_heads, read_logs, run_open_pairs, run_query, stored_leaf
from audit.sql.statements import (
    LAST_ROUND,
    LEAF_HASHES,
    LEAVES,
    MAX_ROWS,
    NEWEST_ROUND,
    ROUND_HEADS,
    SIZES_IN_ROUND,
    keep_checkpoints,
)
from audit.sql.tables import (
    audit_checkpoint,
    audit_commit,
    audit_index,
    audit_leaf,
    audit_tile,
)
from audit.store import Committed, IndexedLeaves, NewLeaf, Survey
from bulkhead.errors import AuditUnavailableError, BulkheadError, ProofError

__all__ = ["SqlAuditReader", "SqlAuditStore", "read_errors"]

_RETRY_S: Final = 0.5  # a transaction that failed later than this is not tried again: the caller's time is short


@contextmanager
def read_errors() -> Iterator[None]:
    """Turn the database's errors into ours.

    Raises:
        AuditUnavailableError: the database cannot be used.
    """
    try:
        yield
    except (SQLAlchemyError, ProofError) as error:
        raise unavailable(error) from error


def unavailable(error: SQLAlchemyError | ProofError) -> AuditUnavailableError:
    """Return our error for the database's."""
    if isinstance(error, ProofError):
        return AuditUnavailableError(f"the audit database is damaged: {error.message}")
    cause: object = getattr(error, "orig", None) or error
    if getattr(cause, "sqlite_errorname", "") == "SQLITE_INTERRUPT" or getattr(cause, "sqlstate", "") == "57014":
        return AuditUnavailableError(
            "a read of the audit log took too long and was stopped: ask for less, such as a shorter span of time"
        )
    return AuditUnavailableError(f"the audit database cannot be used: {cause}")


class SqlAuditReader:
    """The reading side: any thread; each call is one short transaction."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def close(self) -> None:
        """Release the connections."""
        self._engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Open a read transaction.

        Raises:
            AuditUnavailableError: the database cannot be read.
        """
        with read_errors(), self._engine.connect() as connection, connection.begin():
            yield connection

    def last_commit(self) -> LockState:
        """Return the last commit, or genesis."""
        with self.reading() as connection:
            row = connection.execute(
                select(audit_commit.c.seq, audit_commit.c.chain).order_by(audit_commit.c.seq.desc()).limit(1)
            ).first()
            return GENESIS if row is None else LockState(as_int(row.seq), as_bytes(row.chain))

    def chain_at(self, seq: int) -> bytes | None:
        """Return a commit's chain value."""
        if seq == 0:
            return GENESIS.chain
        with self.reading() as connection:
            return connection.execute(select(audit_commit.c.chain).where(audit_commit.c.seq == seq)).scalar()

    def logs(self) -> tuple[LogInfo, ...]:
        """Return every log by id."""
        with self.reading() as connection:
            return read_logs(connection)

    def heads(self) -> tuple[Head, ...]:
        """Return every head."""
        with self.reading() as connection:
            return read_heads(connection)

    def leaves(self, log_id: int, start: int, stop: int) -> tuple[StoredLeaf, ...]:
        """Return leaves of a log in order; at most 4,096 at a time."""
        with self.reading() as connection:
            found = connection.execute(LEAVES, {"log": log_id, "start": start, "stop": stop})
            return tuple(stored_leaf(row) for row in found)

    def find(self, record_id: str) -> StoredLeaf | None:
        """Return the leaf of a record, or None."""
        with self.reading() as connection:
            row = connection.execute(select(audit_leaf).where(audit_leaf.c.record_id == record_id)).first()
            return None if row is None else stored_leaf(row)

    def latest_checkpoint(self, log_id: int, *, cosigned: bool = False) -> tuple[int, str] | None:
        """Return the largest kept (or cosigned) checkpoint of a log as (size, note with cosignatures), or None."""
        table = audit_checkpoint.c
        wanted = select(table.size, table.note, table.cosigs).where(table.log_id == log_id)
        if cosigned:
            wanted = wanted.where(table.cosigs.is_not(None))
        with self.reading() as connection:
            row = connection.execute(wanted.order_by(table.size.desc()).limit(1)).first()
            return None if row is None else (as_int(row.size), as_text(row.note) + as_text(row.cosigs))

    def leaf_hashes(self, log_id: int, start: int, stop: int) -> tuple[bytes, ...]:
        """Return leaf hashes of a log in order; at most 4,096 at a time."""
        with self.reading() as connection:
            found = connection.execute(LEAF_HASHES, {"log": log_id, "start": start, "stop": stop})
            return tuple(as_bytes(value) for value in found.scalars())

    def tile(self, log_id: int, level: int, number: int) -> bytes | None:
        """Return a full tile."""
        wanted = select(audit_tile.c.hashes).where(
            audit_tile.c.log_id == log_id, audit_tile.c.level == level, audit_tile.c.n == number
        )
        with self.reading() as connection:
            row = connection.execute(wanted).first()
            return None if row is None else as_bytes(row.hashes)

    def checkpoints(self, log_id: int, start: int, stop: int) -> tuple[tuple[int, str], ...]:
        """Return kept checkpoints, with their cosignatures, in order; at most 4,096 at a time."""
        table = audit_checkpoint.c
        wanted = (
            select(table.size, table.note, table.cosigs)
            .where(table.log_id == log_id, table.size >= start, table.size < stop)
            .order_by(table.size)
            .limit(MAX_ROWS)
        )
        with self.reading() as connection:
            found = connection.execute(wanted)
            return tuple((as_int(row.size), as_text(row.note) + as_text(row.cosigs)) for row in found)

    def last_round(self) -> int | None:
        """Return the last round's number."""
        with self.reading() as connection:
            return connection.execute(LAST_ROUND).scalar()

    def newest_round(self, log_id: int, size: int) -> int | None:
        """Return the last round with a row in which a log was smaller."""
        with self.reading() as connection:
            return connection.execute(NEWEST_ROUND, {"log": log_id, "size": size}).scalar()

    def sizes_in_round(self, number: int) -> Mapping[int, int]:
        """Return the size of each log in a round, by log id."""
        with self.reading() as connection:
            found = connection.execute(SIZES_IN_ROUND, {"number": number})
            return {as_int(row.log_id): as_int(row.size) for row in found if row.size is not None}

    def round_heads(self, start: int, stop: int) -> tuple[RoundHead, ...]:
        """Return the rows of rounds, by round and log id."""
        with self.reading() as connection:
            found = connection.execute(ROUND_HEADS, {"start": start, "stop": stop})
            return tuple(RoundHead(as_int(row.round), as_int(row.log_id), as_int(row.size)) for row in found)

    def unindexed(self) -> int:
        """Return how far the index is behind."""
        with self.reading() as connection:
            last = connection.execute(select(func.max(audit_leaf.c.pos))).scalar() or 0
            return last - (connection.execute(select(func.max(audit_index.c.pos))).scalar() or 0)

    def query(self, query: RecordFilter, page: Page) -> IndexedLeaves:
        """Return a page of the index."""
        with self.reading() as connection:
            return run_query(connection, query, page)

    def open_pairs(self, log_id: int, start: int, stop: int) -> IndexedLeaves:
        """Return the open pairs among some places of a log."""
        with self.reading() as connection:
            return run_open_pairs(connection, log_id, start, stop)


class SqlAuditStore(SqlAuditReader):
    """The whole store. Its writing side belongs to one thread at a time."""

    def __init__(
        self,
        *,
        writer: Engine,
        reader: Engine,
        backend: Backend,
        failpoint: Failpoint,
    ) -> None:
        super().__init__(reader)
        self._writer = writer
        self._backend = backend
        self._failpoint = failpoint
        self._appender = Appender(dialect=writer.dialect, failpoint=failpoint)
        self._keep = keep_checkpoints(writer.dialect)
        self._projector = Projector(writer.dialect, shared=backend.shared)
        self._connection: Connection | None = None

    @property
    def shared(self) -> bool:
        """Whether other processes may append to the database, too."""
        return self._backend.shared

    def commit(self, batch: Sequence[NewLeaf], locked: LockState) -> Committed:
        """Append leaves in one durable transaction; see :meth:`audit.store.AuditStore.commit`.

        Raises:
            LogForkError: the lock store's state is not in this database, or the file was replaced.
            AuditUnavailableError: the database cannot be written; the outcome is unknown.
        """
        self._backend.check()
        look_up = any(leaf.opens is not None or leaf.round_heads for leaf in batch)
        until_s = time.monotonic() + _RETRY_S
        while True:
            try:
                committed = self._attempt(batch, locked, look_up=look_up)
                break
            except IntegrityError as error:  # a leaf sent again: find out where it stands
                if look_up:
                    raise AuditUnavailableError(f"the audit database refused the records: {error.orig}") from error
            except SQLAlchemyError as error:  # perhaps committed, perhaps not: find out, too
                if not self._backend.is_transient(error) or time.monotonic() > until_s:
                    raise unavailable(error) from error
            look_up = True
        self._backend.check()  # what went into a file that is no longer ours must not be acknowledged
        self._failpoint("commit.done")
        return committed

    def _attempt(self, batch: Sequence[NewLeaf], locked: LockState, *, look_up: bool) -> Committed:
        try:
            with self._committing() as driver:
                return self._appender.append(driver, batch, locked, look_up=look_up)
        except IntegrityError:
            self._appender.forget()
            raise
        except SQLAlchemyError:
            self._reset()
            raise
        except ProofError as error:
            self._reset()
            raise unavailable(error) from error
        except BaseException:
            self._appender.forget()
            raise

    def commit_break(self, batch: Sequence[NewLeaf], database: LockState, lock: LockState | None) -> Committed:
        """Append what a declared break opens, on top of both histories (:func:`~audit.chain.across_break`).

        Raises:
            ConflictError: the database's last commit is not ``database``.
            AuditUnavailableError: the database cannot be written; the outcome is unknown.
        """
        try:
            with self._committing() as driver:
                done = self._appender.append(driver, batch, lock, look_up=True, broken=database)
                for place in done.places:
                    if isinstance(place, BulkheadError):
                        raise place
        except SQLAlchemyError as error:
            self._reset()
            raise unavailable(error) from error
        finally:
            self._appender.forget()
        self._failpoint("commit.done")
        return done

    def survey(self, locked: LockState, *, known: int) -> Survey:
        """Return what all writers have committed; see :meth:`audit.store.AuditStore.survey`.

        Raises:
            LogForkError: the lock store's state is not in this database.
            AuditUnavailableError: the database cannot be used.
        """
        with self._writing() as connection:
            last, _ = self._appender.sequence(driver_of(connection), locked)
            last_round = connection.execute(LAST_ROUND).scalar()
            if last.seq == known:
                return Survey(last, (), (), last_round)
            return Survey(last, read_logs(connection), read_heads(connection), last_round)

    def put_checkpoints(self, notes: Mapping[tuple[int, int], str]) -> None:
        """Keep checkpoints; one that is there stays."""
        with self._writing() as connection:
            self._keep.run(driver_of(connection), [(log_id, size, note) for (log_id, size), note in notes.items()])

    def put_cosignatures(self, lines: Mapping[tuple[int, int], str]) -> None:
        """Keep witnesses' signature lines of kept checkpoints."""
        table = audit_checkpoint.c
        with self._writing() as connection:
            for (log_id, size), text in lines.items():
                kept = (table.log_id == log_id) & (table.size == size)
                connection.execute(audit_checkpoint.update().where(kept).values(cosigs=text))

    def project(self, limit: int) -> int | None:
        """Index up to ``limit`` further leaves; None while another process does it.

        Raises:
            AuditUnavailableError: the database cannot be written, or a leaf is damaged: it names the record.
        """
        with self._writing() as connection:
            return self._projector.project(connection, limit)

    def rebuild_index(self, after: int, limit: int) -> int:
        """Write a part of the index anew, beside other processes; see :meth:`audit.sql.projector.Projector.rebuild`.

        Raises:
            AuditUnavailableError: the database cannot be written, or a leaf is damaged: it names the record.
        """
        with self._writing() as connection:
            return self._projector.rebuild(connection, after, limit)

    def maintain(self, *, idle: bool) -> None:
        """Checkpoint the database's write-ahead log when it is worth it."""
        with read_errors():
            self._backend.maintain(driver_of(self._connected()), idle=idle)

    def close(self) -> None:
        """Release the database to another writer."""
        super().close()
        self._reset()
        self._backend.release()

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = self._writer.connect()
        return self._connection

    @contextmanager
    def _committing(self) -> Iterator[Driver]:
        connection = self._connected()
        driver = driver_of(connection)
        with (
            self._backend.guard(driver),
            transaction(connection, driver, self._backend.begin, self._backend.pipeline(driver)),
        ):
            yield driver

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        connection = self._connected()
        with self._backend.guard(driver_of(connection)), connection.begin():
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        try:
            with read_errors(), self._transaction() as connection:
                yield connection
        except AuditUnavailableError:
            self._reset()
            raise

    def _reset(self) -> None:
        """Forget the connection: after a failure its state is not known."""
        self._appender.forget()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.invalidate()
            connection.close()
        self._writer.dispose()
