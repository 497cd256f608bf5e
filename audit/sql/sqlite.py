"""SQLite behind the store: connections, pragmas, one writing process, housekeeping.

One connection writes, used by one thread at a time; it alone checkpoints the WAL, because versions up to 3.51.2 can
corrupt a database when two connections write or checkpoint at once. A lock on a file beside the database keeps a
second writing process away. Readers cannot write and are stopped after a second.
"""

import fcntl
import os
import sqlite3
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.pool import QueuePool, StaticPool

from audit.model import Failpoint, no_failpoint
from audit.sql.driver import Driver
from audit.sql.schema import check_schema, migrate
from audit.sql.store import SqlAuditStore
from bulkhead.errors import AuditUnavailableError, LogForkError

__all__ = ["READ_LIMIT_S", "SqliteFile", "open_for_reading", "open_sqlite", "read_engine"]

READ_LIMIT_S: Final = 1.0  # a longer read would hold the WAL back
_LONG_READ_LIMIT_S: Final = 30.0  # of verification, exports and the like: a busy machine must not end them
_READERS: Final = 4
_OPS_PER_CHECK: Final = 10_000  # of SQLite's virtual machine, between two looks at the clock
_WAL_LIMIT_BYTES: Final = 64 * 1024 * 1024  # beyond it the WAL is checkpointed even under load
_WAL_IDLE_BYTES: Final = 1024 * 1024  # below it an idle checkpoint is not worth its fsyncs
_NO_GUARD: Final = nullcontext()


class SqliteFile:
    """The store's :class:`~audit.sql.backend.Backend`: one writing process, the same file as long as it is open.

    Use :meth:`acquire` before the engine connects.
    """

    shared = False
    begin = ("BEGIN IMMEDIATE",)

    def __init__(self, path: Path) -> None:
        self.path = path
        self._guard = -1
        self._identity: tuple[int, int] | None = None

    def acquire(self) -> None:
        """Become the one writing process.

        Raises:
            AuditUnavailableError: another process is, or the directory cannot be written.
        """
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._guard = os.open(f"{self.path}.writer", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.release()
            raise AuditUnavailableError(f"another process writes to the audit database {self.path}") from error
        except OSError as error:
            self.release()
            raise AuditUnavailableError(f"the audit database {self.path} cannot be opened: {error.strerror}") from error

    def release(self) -> None:
        """Let another process write."""
        if self._guard >= 0:
            os.close(self._guard)
            self._guard = -1

    def check(self) -> None:
        """Check that the path still names the file that was opened.

        Raises:
            LogForkError: it names another one, or none.
        """
        try:
            found = self.path.stat()
        except OSError as error:
            raise LogForkError(f"the audit database {self.path} is gone while in use; writing has stopped") from error
        identity = (found.st_dev, found.st_ino)
        if self._identity is None:
            self._identity = identity
        elif identity != self._identity:
            raise LogForkError(f"the audit database {self.path} was replaced while in use; writing has stopped")

    def guard(self, connection: DBAPIConnection) -> AbstractContextManager[None]:  # noqa: ARG002 - the port's shape
        """Nothing to bound: a statement waits for a locked database as long as the connection was told to."""
        return _NO_GUARD

    def pipeline(self, driver: Driver) -> AbstractContextManager[object]:  # noqa: ARG002 - the port's shape
        """Nothing to wait for together."""
        return _NO_GUARD

    def is_transient(self, error: SQLAlchemyError) -> bool:  # noqa: ARG002 - the port's shape
        """Nothing that trying again at once would mend."""
        return False

    def maintain(self, connection: DBAPIConnection, *, idle: bool) -> None:
        """Checkpoint the write-ahead log when it is worth it."""
        if self._wal_bytes() > (_WAL_IDLE_BYTES if idle else _WAL_LIMIT_BYTES):
            cursor = connection.cursor()
            cursor.execute(f"PRAGMA wal_checkpoint({'PASSIVE' if idle else 'RESTART'})").fetchall()
            cursor.close()

    def _wal_bytes(self) -> int:
        try:
            return Path(f"{self.path}-wal").stat().st_size
        except OSError:
            return 0


def open_sqlite(path: Path, *, busy_timeout_s: float, failpoint: Failpoint = no_failpoint) -> SqlAuditStore:
    """Open an audit database for writing, creating or migrating it at need.

    Raises:
        AuditUnavailableError: another process writes to it, it cannot be opened, or a newer build made it.
    """
    file = SqliteFile(path)
    file.acquire()
    try:
        writer = _write_engine(path, busy_timeout_s)
        with writer.begin() as connection:
            migrate(connection)
        path.chmod(0o600)
        file.check()
        return SqlAuditStore(
            writer=writer,
            reader=read_engine(path, busy_timeout_s=busy_timeout_s),
            backend=file,
            failpoint=failpoint,
        )
    except (SQLAlchemyError, OSError) as error:
        file.release()
        raise AuditUnavailableError(f"the audit database {path} cannot be opened: {_cause(error)}") from error
    except BaseException:
        file.release()
        raise


def read_engine(path: Path, *, busy_timeout_s: float = 1.0, limit_s: float = READ_LIMIT_S) -> Engine:
    """Return an engine that can only read, each transaction for at most ``limit_s``."""
    engine = create_engine(
        "sqlite://",
        creator=lambda: sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=busy_timeout_s, check_same_thread=False
        ),
        poolclass=QueuePool,
        pool_size=_READERS,
        max_overflow=0,
        pool_timeout=limit_s,
    )

    @event.listens_for(engine, "connect")
    def _connected(dbapi_connection: DBAPIConnection, record: Any) -> None:
        _prepare(dbapi_connection, "query_only=ON", "trusted_schema=OFF", "cell_size_check=ON")
        deadline: list[float] = [0.0]
        record.info["deadline"] = deadline
        dbapi_connection.set_progress_handler(lambda: time.monotonic() > deadline[0], _OPS_PER_CHECK)

    @event.listens_for(engine, "begin")
    def _begun(connection: Any) -> None:
        connection.info["deadline"][0] = time.monotonic() + limit_s
        _begin(connection, "BEGIN")

    return engine


def open_for_reading(path: Path) -> Engine:
    """Return a reading engine for a database file or a copy of one, for long work beside the platform.

    Raises:
        AuditUnavailableError: it is not an audit database of this build's schema.
    """
    engine = read_engine(path, limit_s=_LONG_READ_LIMIT_S)
    try:
        with engine.begin() as connection:
            check_schema(connection, str(path))
    except SQLAlchemyError as error:
        raise AuditUnavailableError(f"{path} is not a readable audit database: {_cause(error)}") from error
    return engine


def _write_engine(path: Path, busy_timeout_s: float) -> Engine:
    engine = create_engine(
        "sqlite://",
        creator=lambda: sqlite3.connect(path, timeout=busy_timeout_s, check_same_thread=False),
        poolclass=StaticPool,
    )

    @event.listens_for(engine, "connect")
    def _connected(dbapi_connection: DBAPIConnection, _record: Any) -> None:
        _prepare(
            dbapi_connection,
            "journal_mode=WAL",
            "synchronous=FULL",
            "wal_autocheckpoint=0",
            "trusted_schema=OFF",
            "cell_size_check=ON",
        )

    @event.listens_for(engine, "begin")
    def _begun(connection: Any) -> None:
        _begin(connection, SqliteFile.begin[0])

    return engine


def _begin(connection: Any, statement: str) -> None:
    """Begin a transaction on the driver's connection: SQLAlchemy's way costs more than SQLite's part of a read."""
    try:
        connection.connection.execute(statement)
    except sqlite3.Error as error:
        raise OperationalError(statement, None, error) from error


def _prepare(dbapi_connection: DBAPIConnection, *pragmas: str) -> None:
    dbapi_connection.isolation_level = None  # the engine's "begin" event begins transactions, not the driver
    cursor = dbapi_connection.cursor()
    for pragma in pragmas:
        cursor.execute(f"PRAGMA {pragma}").fetchall()
    cursor.close()


def _cause(error: BaseException) -> str:
    return str(getattr(error, "orig", None) or error)
