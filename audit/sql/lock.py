"""The lock store of several hosts: one row in a second PostgreSQL database, replaced by compare-and-swap.

The database must not be on the audit database's server, nor in its backups: what restores both restores nothing that
could tell.
"""

from collections.abc import Callable
from typing import Final, TypeVar

from sqlalchemy import BigInteger, Column, Connection, LargeBinary, MetaData, Table, Text, inspect, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from audit.chain import GENESIS, LockState
from audit.model import Failpoint, no_failpoint
from audit.sql.postgres import fileno, postgres_engine
from audit.sql.watchdog import Watchdog
from bulkhead.errors import AuditUnavailableError, LogForkError

__all__ = ["SqlLockStore", "audit_lock"]

_CONNECTIONS: Final = 2  # the writer's, and readers'
_T = TypeVar("_T")

audit_lock = Table(
    "audit_lock",
    MetaData(),
    Column("name", Text, primary_key=True),
    Column("seq", BigInteger, nullable=False),
    Column("chain", LargeBinary(32), nullable=False),
)


class SqlLockStore:
    """A :class:`~audit.store.LockStore` in PostgreSQL."""

    def __init__(
        self,
        url: str,
        *,
        name: str,
        limit_s: float,
        high_availability: bool = False,
        failpoint: Failpoint = no_failpoint,
    ) -> None:
        """Describe the row.

        Args:
            url: `postgresql://…` of the second database.
            name: whose lock it is, as the database may hold those of several platforms.
            limit_s: longest that one call takes.
            high_availability: see :func:`audit.sql.postgres.open_postgres`.
            failpoint: called before and after the row is written.

        Raises:
            ConfigError: the URL is malformed.
        """
        self._name = name
        self._failpoint = failpoint
        self._watchdog = Watchdog(limit_s)
        self._engine = postgres_engine(
            url, read_only=False, threads=_CONNECTIONS, limit_s=limit_s, high_availability=high_availability
        )

    def open(self, *, create: bool) -> None:
        """Open it; make the row, at genesis, if ``create``.

        Raises:
            LogForkError: there is no row and ``create`` is false.
            AuditUnavailableError: the database cannot be used.
        """

        def prepare(connection: Connection) -> bool:
            if create:
                audit_lock.create(connection, checkfirst=True)
                row = {"name": self._name, "seq": GENESIS.seq, "chain": GENESIS.chain}
                connection.execute(insert(audit_lock).on_conflict_do_nothing(), row)
            return inspect(connection).has_table(audit_lock.name) and self._held(connection) is not None

        if not self._do(prepare):
            raise LogForkError("the audit database has commits but its lock store has no row of it; writing is refused")

    def read(self) -> LockState:
        """Return the current state.

        Raises:
            LogForkError: the row is gone.
            AuditUnavailableError: the database cannot be read.
        """
        return self._found(self._do(self._held))

    def move(self, expected: LockState, new: LockState) -> LockState:
        """Replace ``expected`` by ``new``; return what the row holds then.

        Raises:
            LogForkError: the row is gone.
            AuditUnavailableError: the database cannot be written; whether it was is unknown, so read it again.
        """
        row = audit_lock.c
        swap = (
            update(audit_lock)
            .where(row.name == self._name, row.seq == expected.seq, row.chain == expected.chain)
            .values(seq=new.seq, chain=new.chain)
        )

        def swapped(connection: Connection) -> LockState | None:
            if connection.execute(swap).rowcount == 1:
                self._failpoint("lock.written")
                return new
            return self._held(connection)

        held = self._found(self._do(swapped))
        if held == new:
            self._failpoint("lock.synced")
        return held

    def close(self) -> None:
        """Release the connections."""
        self._engine.dispose()

    def _held(self, connection: Connection) -> LockState | None:
        found = connection.execute(select(audit_lock).where(audit_lock.c.name == self._name)).first()
        return None if found is None else LockState(found.seq, found.chain)

    @staticmethod
    def _found(held: LockState | None) -> LockState:
        if held is None:
            raise LogForkError("the lock store's row is gone; writing is refused")
        return held

    def _do(self, work: Callable[[Connection], _T]) -> _T:
        try:
            try:
                return self._once(work)
            except DBAPIError as error:
                if not error.connection_invalidated:
                    raise
                return self._once(work)  # a connection that died while nobody used it; a swap done twice is done once
        except SQLAlchemyError as error:
            cause = str(getattr(error, "orig", None) or error).strip()
            raise AuditUnavailableError(f"the lock store cannot be used: {cause}") from error

    def _once(self, work: Callable[[Connection], _T]) -> _T:
        with (
            self._engine.connect() as connection,
            self._watchdog.watching(fileno(connection.connection.dbapi_connection)),
            connection.begin(),
        ):
            return work(connection)
