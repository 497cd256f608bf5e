"""A write transaction on the driver's own connection, beside SQLAlchemy's.

A commit is a handful of statements a few hundred times a second and more; what SQLAlchemy does around each costs more
than the statement. Errors leave as SQLAlchemy's all the same, so that callers know one kind.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

__all__ = ["Cursor", "Driver", "driver_of", "transaction"]


class Cursor(Protocol):
    """What a statement found."""

    def fetchone(self) -> Sequence[Any] | None:
        """Return the next row."""
        ...

    def fetchall(self) -> Sequence[Sequence[Any]]:
        """Return every row."""
        ...


class Driver(Protocol):
    """A connection of ``sqlite3`` or ``psycopg``.

    In a pipeline a statement's errors, and the wait for it, come with the next row that is fetched or with the end.
    """

    def execute(self, text: str, parameters: Any = ..., /) -> Cursor:
        """Run, or queue, a statement."""
        ...

    def rollback(self) -> None:
        """End the transaction without effect, if there is one."""
        ...


def driver_of(connection: Connection) -> Any:
    """Return the driver's connection below: a :class:`Driver`, and SQLAlchemy's DBAPIConnection."""
    return connection.connection.dbapi_connection


@contextmanager
def transaction(
    connection: Connection, driver: Driver, begin: Sequence[str], pipeline: AbstractContextManager[object]
) -> Iterator[Driver]:
    """Run a transaction that ends with COMMIT, or without effect when its body raises.

    Args:
        connection: SQLAlchemy's, without a transaction.
        driver: the connection below it.
        begin: the statements that begin it.
        pipeline: inside which statements are run.

    Raises:
        SQLAlchemyError: the database's error; after one of the COMMIT it is not known what became of it.
    """
    loaded: Any = connection.dialect.loaded_dbapi
    try:
        try:
            with pipeline:
                for statement in begin:
                    driver.execute(statement)
                yield driver
                driver.execute("COMMIT")
        except BaseException:
            driver.rollback()
            raise
    except loaded.Error as error:
        gone = connection.dialect.is_disconnect(error, driver, None)  # type: ignore[arg-type]
        if gone:
            connection.invalidate(error)
        raise DBAPIError.instance(
            None, None, error, loaded.Error, connection_invalidated=gone, dialect=connection.dialect
        ) from error
