"""What differs between the databases behind the store."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import SQLAlchemyError

from audit.sql.driver import Driver

__all__ = ["Backend"]


class Backend(Protocol):
    """One database's own ways."""

    @property
    def begin(self) -> Sequence[str]:
        """The statements that begin a write transaction."""
        ...

    @property
    def shared(self) -> bool:
        """Whether other processes may append to the database, too."""
        ...

    def check(self) -> None:
        """Check that the database is still the one that was opened.

        Raises:
            LogForkError: it is not.
        """
        ...

    def guard(self, connection: DBAPIConnection) -> AbstractContextManager[None]:
        """Bound the time of a write transaction; beyond it the connection fails."""
        ...

    def pipeline(self, driver: Driver) -> AbstractContextManager[object]:
        """Let statements go to the server together, and wait for them once."""
        ...

    def is_transient(self, error: SQLAlchemyError) -> bool:
        """Whether the same transaction may well succeed at once if it is tried again."""
        ...

    def maintain(self, connection: DBAPIConnection, *, idle: bool) -> None:
        """Do the database's own housekeeping."""
        ...

    def release(self) -> None:
        """Let go of what :meth:`check` and :meth:`guard` hold."""
        ...
