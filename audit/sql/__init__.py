"""The audit store in SQL, through SQLAlchemy Core: SQLite in a file, or PostgreSQL."""

from pathlib import Path

from sqlalchemy import Engine

from audit.model import Failpoint, no_failpoint
from audit.sql.lock import SqlLockStore
from audit.sql.postgres import on_one_server, open_postgres, open_postgres_for_reading
from audit.sql.sqlite import open_for_reading, open_sqlite
from audit.sql.store import SqlAuditReader, SqlAuditStore

__all__ = [
    "SqlAuditReader",
    "SqlAuditStore",
    "SqlLockStore",
    "on_one_server",
    "open_postgres",
    "open_reader",
    "open_sqlite",
    "open_store",
]


def open_store(
    database: Path | str,
    *,
    busy_timeout_s: float,
    high_availability: bool = False,
    failpoint: Failpoint = no_failpoint,
) -> SqlAuditStore:
    """Open an audit database for writing: a path is SQLite's, a URL PostgreSQL's.

    Raises:
        AuditUnavailableError: it cannot be opened.
        ConfigError: the URL is malformed, or the server would lose records.
    """
    if isinstance(database, Path):
        return open_sqlite(database, busy_timeout_s=busy_timeout_s, failpoint=failpoint)
    return open_postgres(
        database, busy_timeout_s=busy_timeout_s, high_availability=high_availability, failpoint=failpoint
    )


def open_reader(database: Path | str) -> SqlAuditReader:
    """Open an audit database, or a copy of one, for reading.

    Raises:
        AuditUnavailableError: it cannot be read, or is not an audit database of this build's schema.
        ConfigError: the URL is malformed.
    """
    engine: Engine = open_for_reading(database) if isinstance(database, Path) else open_postgres_for_reading(database)
    return SqlAuditReader(engine)
