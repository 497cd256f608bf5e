"""The state database behind the event loop: transactions on threads of their own, failures as our errors.

A unit of work is a plain function of a :class:`Transaction`; it runs in a worker thread, as one transaction, and its
value comes back to the coroutine. It must not block on anything but the database.

- :meth:`Database.write` is serial: one thread, SQLite ``BEGIN IMMEDIATE``; what it returned is committed.
- :meth:`Database.read` sees one snapshot and may not write.

Where several control planes share PostgreSQL, the server may refuse a transaction that cannot be put in order with
another's (a serialisation failure, a deadlock). Nothing of it happened then, and the unit runs again, a few times with
a growing pause; so a unit changes nothing but the database, and what it returns is used only once it has come back.

Every operational failure (locked, read-only, disk full, gone) is a :class:`~bulkhead.errors.StateUnavailableError`,
and nothing of the unit happened; once the database is back the next call works. Only a call that ran into
``timeout_s`` or was cancelled while it ran leaves its outcome unknown: callers make writes idempotent.
"""

import asyncio
import random
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, OperationalError, SQLAlchemyError
from sqlalchemy.pool import QueuePool

from bulkhead.errors import ConfigError, ConflictError, StateUnavailableError

__all__ = ["Database", "Transaction"]

R = TypeVar("R")

READ_THREADS: Final = 2  # SQLite reads are short; more threads only contend for the interpreter
BUSY_TIMEOUT_S: Final = 1.0  # another process holds the database: fail soon, the caller may retry
CALL_TIMEOUT_S: Final = 10.0  # queueing included
RETRIES: Final = 6  # of a transaction that the server could not put in order: half a second at the most
FIRST_PAUSE_S: Final = 0.008  # doubled each time, and scattered, so that two that met do not meet again
_OUT_OF_ORDER: Final = frozenset(
    {"40001", "40P01"}
)  # serialization_failure, deadlock_detected (PostgreSQL, appendix A)


class Transaction:
    """One transaction. Repositories are built on its ``connection``: ``Tenants(tx.connection)``."""

    __slots__ = ("connection",)

    def __init__(self, connection: Connection) -> None:
        self.connection = connection


class Database:
    """The state database.

    Args:
        url: SQLAlchemy URL, ``sqlite:////absolute/path`` or ``postgresql+psycopg://…``.
        timeout_s: longest that a call waits for its turn and its work.
        busy_timeout_s: longest that SQLite waits for another process's lock.

    Raises:
        ConfigError: the URL is malformed, or its driver is not installed.
    """

    def __init__(self, *, url: str, timeout_s: float = CALL_TIMEOUT_S, busy_timeout_s: float = BUSY_TIMEOUT_S) -> None:
        self.url = url
        self._timeout_s = timeout_s
        self._writer = _engine(url, threads=1, busy_timeout_s=busy_timeout_s, read_only=False)
        self._reader = _engine(url, threads=READ_THREADS, busy_timeout_s=busy_timeout_s, read_only=True)
        self._write_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="state-write")
        self._read_threads = ThreadPoolExecutor(max_workers=READ_THREADS, thread_name_prefix="state-read")

    async def write(self, work: Callable[[Transaction], R]) -> R:
        """Run ``work`` in one read-write transaction; return its value once committed.

        Raises:
            StateUnavailableError: see the module docstring.
            ConflictError: a constraint of the schema does not hold (a concurrent change).
            BulkheadError: whatever ``work`` raised; the transaction is rolled back.
        """
        return await self._call(self._write_thread, self._writer, work)

    async def read(self, work: Callable[[Transaction], R]) -> R:
        """Run ``work`` on one consistent snapshot; return its value.

        Raises:
            StateUnavailableError: see the module docstring.
            BulkheadError: whatever ``work`` raised.
        """
        return await self._call(self._read_threads, self._reader, work)

    async def run_blocking(self, work: Callable[[Engine], R]) -> R:
        """Run ``work`` on the write thread with the engine itself: migrations only, without a time limit."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._write_thread, lambda: _translated(lambda: work(self._writer)))

    async def close(self) -> None:
        """Let running work finish, then close every connection."""
        loop = asyncio.get_running_loop()
        for executor in (self._write_thread, self._read_threads):
            await loop.run_in_executor(None, partial(executor.shutdown, wait=True, cancel_futures=True))
        self._writer.dispose()
        self._reader.dispose()

    async def _call(self, executor: ThreadPoolExecutor, engine: Engine, work: Callable[[Transaction], R]) -> R:
        def once() -> R:
            with engine.begin() as connection:
                return work(Transaction(connection))

        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timeout_s):
                return await loop.run_in_executor(executor, lambda: _translated(lambda: _in_order(once)))
        except TimeoutError as error:
            raise StateUnavailableError(f"the state database did not answer within {self._timeout_s:.0f} s") from error
        except RuntimeError as error:  # the executor was shut down
            raise StateUnavailableError("the state database is closed") from error


def _in_order(run: Callable[[], R]) -> R:
    for tried in range(RETRIES):
        try:
            return run()
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) not in _OUT_OF_ORDER:
                raise
        time.sleep(FIRST_PAUSE_S * 2**tried * random.uniform(0.5, 1.0))  # noqa: S311 - nothing secret
    return run()


def _translated(run: Callable[[], R]) -> R:
    try:
        return run()
    except IntegrityError as error:
        raise ConflictError("the state has changed meanwhile: read again and retry") from error
    except DBAPIError as error:
        reason = type(error.orig).__name__ if error.orig is not None else type(error).__name__
        raise StateUnavailableError(f"the state database is out of reach ({reason})") from error
    except SQLAlchemyError as error:
        raise StateUnavailableError(f"the state database is out of reach ({type(error).__name__})") from error


def _engine(url: str, *, threads: int, busy_timeout_s: float, read_only: bool) -> Engine:
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() != "sqlite":
            level = "REPEATABLE READ" if read_only else "SERIALIZABLE"
            return create_engine(
                parsed,
                isolation_level=level,
                pool_size=threads,
                max_overflow=0,
                pool_pre_ping=True,
                execution_options={"postgresql_readonly": read_only},
            )
        engine = create_engine(parsed, poolclass=QueuePool, pool_size=threads, max_overflow=0)
    except (ArgumentError, ImportError) as error:
        raise ConfigError(f"database URL: {error}") from error
    if not parsed.database or parsed.database == ":memory:":
        raise ConfigError("database URL: SQLite needs a file; its connections would not share a memory database")

    @event.listens_for(engine, "connect")
    def prepare(dbapi_connection: Any, _record: object) -> None:
        dbapi_connection.isolation_level = None  # transactions begin below, not where the driver guesses
        cursor = dbapi_connection.cursor()
        for pragma in (
            f"busy_timeout = {int(busy_timeout_s * 1_000)}",
            "journal_mode = WAL",
            "synchronous = FULL",
            "foreign_keys = ON",
            f"query_only = {int(read_only)}",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A deferred transaction that turns into a writer fails at once when another wrote first; take the lock now.
        statement = "BEGIN" if read_only else "BEGIN IMMEDIATE"
        driver: Any = connection.connection  # SQLAlchemy's own way costs more than the transaction
        try:
            driver.execute(statement)
        except sqlite3.Error as error:
            raise OperationalError(statement, None, error) from error

    return engine
