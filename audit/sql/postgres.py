"""PostgreSQL behind the store: connections, deadlines, and what the server must promise.

Any number of processes may append; each commit locks the row in `audit_writer`. A server that would lose what it has
acknowledged is refused, at the start and whenever a connection is made again (another server may answer by then):

1. `fsync` and `full_page_writes` are on.
2. With high availability, `synchronous_standby_names` is set: a standby that lost commits could be promoted.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DBAPIError, DisconnectionError, SQLAlchemyError
from sqlalchemy.pool import QueuePool

from audit.model import Failpoint, no_failpoint
from audit.sql.schema import check_schema, migrate
from audit.sql.store import SqlAuditStore
from audit.sql.watchdog import Watchdog
from bulkhead.errors import AuditUnavailableError, ConfigError

__all__ = ["fileno", "on_one_server", "open_postgres", "open_postgres_for_reading", "postgres_engine"]

READ_LIMIT_S: Final = 1.0  # as for SQLite; the server ends a statement then, the client its connection a little later
_LONG_READ_LIMIT_S: Final = 30.0  # likewise
_READERS: Final = 4
_CONNECT_S: Final = 2  # libpq's least
_GRACE: Final = 1.5  # client's deadline over the server's
_MIGRATION_LOCK: Final = 0x62686C6F67  # "bhlog": two processes that start at once migrate one after the other
_TRANSIENT: Final = frozenset(
    {
        "40001",  # serialization_failure
        "40P01",  # deadlock_detected
        "57P01",  # admin_shutdown
        "57P02",  # crash_shutdown
    }
)


class _Server:
    """The store's :class:`~audit.sql.backend.Backend`."""

    def __init__(self, limit_s: float) -> None:
        self._watchdog = Watchdog(limit_s)

    shared = True
    begin = ("BEGIN ISOLATION LEVEL READ COMMITTED", "SET LOCAL synchronous_commit = on")

    def check(self) -> None:
        """Nothing to check: the lock store shows another database."""

    @contextmanager
    def guard(self, connection: DBAPIConnection) -> Iterator[None]:
        """Cut the connection when the transaction takes too long."""
        with self._watchdog.watching(fileno(connection)):
            yield

    def pipeline(self, driver: Any) -> AbstractContextManager[object]:
        """Send a commit in two trips: up to its first answer, and the rest."""
        pipeline: AbstractContextManager[object] = driver.pipeline()
        return pipeline

    def is_transient(self, error: SQLAlchemyError) -> bool:
        """Whether the server ended the transaction for a reason of its own, or an old connection was found dead."""
        if not isinstance(error, DBAPIError):
            return False
        state: str | None = getattr(error.orig, "sqlstate", None)
        return state in _TRANSIENT or (error.connection_invalidated and state is None)

    def maintain(self, connection: DBAPIConnection, *, idle: bool) -> None:
        """Nothing: the server looks after itself."""

    def release(self) -> None:
        """Nothing: the watchdog's thread ends by itself."""


def open_postgres(
    url: str, *, busy_timeout_s: float, high_availability: bool = False, failpoint: Failpoint = no_failpoint
) -> SqlAuditStore:
    """Open an audit database for writing, migrating it at need.

    Args:
        url: `postgresql://…`, as libpq takes it.
        busy_timeout_s: how long a commit waits for another writer's; the whole of it may take twice that.
        high_availability: standbys may be promoted; obligation 2 applies. Found by itself where the server shows it.
        failpoint: called at each step of a commit.

    Raises:
        AuditUnavailableError: it cannot be reached, or a newer build made it.
        ConfigError: the URL is malformed, or 1 or 2 does not hold.
    """
    writer = postgres_engine(
        url, read_only=False, threads=1, limit_s=busy_timeout_s, high_availability=high_availability
    )
    try:
        with writer.begin() as connection:
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})"))
            migrate(connection)
    except SQLAlchemyError as error:
        raise AuditUnavailableError(f"the audit database cannot be opened: {_cause(error)}") from error
    return SqlAuditStore(
        writer=writer,
        reader=postgres_engine(url, read_only=True, threads=_READERS, limit_s=READ_LIMIT_S),
        backend=_Server(2 * busy_timeout_s),
        failpoint=failpoint,
    )


def open_postgres_for_reading(url: str) -> Engine:
    """Return a reading engine, for long work beside the platform.

    Raises:
        AuditUnavailableError: it cannot be reached, or is not an audit database of this build's schema.
        ConfigError: the URL is malformed.
    """
    engine = postgres_engine(url, read_only=True, threads=_READERS, limit_s=_LONG_READ_LIMIT_S)
    try:
        with engine.begin() as connection:
            check_schema(connection, "the audit database")
    except SQLAlchemyError as error:
        raise AuditUnavailableError(f"the audit database cannot be read: {_cause(error)}") from error
    return engine


def on_one_server(first: str, second: str) -> bool:
    """Whether two URLs lead to one server, as far as the server tells; an unreachable one is taken for another.

    Raises:
        ConfigError: a URL is malformed.
    """
    found = []
    for url in (first, second):
        engine = postgres_engine(url, read_only=True, threads=1, limit_s=READ_LIMIT_S)
        try:
            with engine.connect() as connection:
                found.append(connection.execute(text("SELECT system_identifier FROM pg_control_system()")).scalar())
        except SQLAlchemyError:  # out of reach, or not allowed to ask: opening it will say so
            return False
        finally:
            engine.dispose()
    return found[0] == found[1]


def postgres_engine(
    url: str, *, read_only: bool, threads: int, limit_s: float, high_availability: bool = False
) -> Engine:
    """Return an engine whose transactions are begun on the driver, durable or read-only.

    Raises:
        ConfigError: the URL is malformed, or the driver is not installed.
    """
    try:
        engine = create_engine(
            _driver_url(url),
            poolclass=QueuePool,
            pool_size=threads,
            max_overflow=0,
            pool_timeout=READ_LIMIT_S,
            connect_args={"connect_timeout": _CONNECT_S, "application_name": "bulkhead-audit"},
        )
    except ImportError as error:
        raise ConfigError("PostgreSQL needs the `postgres` extra: psycopg is not installed") from error

    @event.listens_for(engine, "connect")
    def _connected(dbapi_connection: Any, _record: Any) -> None:
        dbapi_connection.autocommit = True  # transactions begin below, and end by an explicit COMMIT or ROLLBACK
        limit_ms = int(limit_s * 1_000)
        dbapi_connection.execute(
            f"SET lock_timeout = {limit_ms}; SET idle_in_transaction_session_timeout = {10 * limit_ms}"
            + (f"; SET statement_timeout = {limit_ms}" if read_only else "")
        )
        if not read_only:
            _check_promises(dbapi_connection, high_availability=high_availability)

    if read_only:
        _begin_reads_at_checkout(engine, Watchdog(limit_s * _GRACE))
    else:

        @event.listens_for(engine, "begin")
        def _begun(connection: Connection) -> None:
            driver: Any = connection.connection.dbapi_connection
            _run(connection, driver, "; ".join(_Server.begin))

    return engine


def _begin_reads_at_checkout(engine: Engine, watchdog: Watchdog) -> None:
    """Begin when a connection leaves the pool: one trip both begins and finds out whether the connection is alive."""

    @event.listens_for(engine, "checkout")
    def _taken(dbapi_connection: Any, record: Any, _proxy: Any) -> None:
        _give_back(record)
        record.info["watched"] = watchdog.watch(fileno(dbapi_connection))
        try:
            dbapi_connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        except engine.dialect.loaded_dbapi.Error as error:
            _give_back(record)
            raise DisconnectionError("the connection is dead") from error  # the pool makes a new one

    @event.listens_for(engine, "checkin")
    def _returned(_dbapi_connection: Any, record: Any) -> None:
        _give_back(record)

    def _give_back(record: Any) -> None:
        handle = record.info.pop("watched", None)
        if handle is not None:
            watchdog.release(handle)


def _check_promises(driver: Any, *, high_availability: bool) -> None:
    found = dict(
        driver.execute(
            "SELECT name, setting FROM pg_settings"
            " WHERE name IN ('fsync', 'full_page_writes', 'synchronous_standby_names')"
        ).fetchall()
    )
    for name in ("fsync", "full_page_writes"):  # 1
        if found.get(name) != "on":
            raise ConfigError(f"PostgreSQL runs with {name} off: it would lose acknowledged records")
    standbys = driver.execute("SELECT count(*) FROM pg_stat_replication WHERE state IN ('streaming', 'catchup')")
    if not found.get("synchronous_standby_names") and (high_availability or standbys.fetchone()[0]):  # 2
        raise ConfigError(
            "PostgreSQL has standbys but no synchronous_standby_names: a promoted standby would lack acknowledged "
            "records"
        )


def _run(connection: Connection, driver: Any, statement: str) -> None:
    """Run a statement on the driver's connection, errors as SQLAlchemy would raise them."""
    loaded: Any = connection.dialect.loaded_dbapi
    try:
        driver.execute(statement)
    except loaded.Error as error:
        gone = connection.dialect.is_disconnect(error, driver, None)
        if gone:
            connection.invalidate(error)
        raise DBAPIError.instance(
            statement, None, error, loaded.Error, connection_invalidated=gone, dialect=connection.dialect
        ) from error


def _driver_url(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ConfigError("audit database: not a URL that SQLAlchemy takes") from error
    if parsed.get_backend_name() != "postgresql":
        raise ConfigError("audit database: expected a path, or a URL that begins with postgresql://")
    return parsed.set(drivername="postgresql+psycopg")


def fileno(connection: Any) -> int:
    """Return the socket of a driver's connection."""
    number: int = connection.fileno()
    return number


def _cause(error: SQLAlchemyError) -> str:
    return str(getattr(error, "orig", None) or error).strip()
