"""Bringing the state database to this build's schema, when a process starts."""

from pathlib import Path
from typing import Final

from sqlalchemy import Connection, Engine, inspect, text

from bulkhead.errors import StateUnavailableError
from control_plane.storage.engine import Database

__all__ = ["SCHEMA_REVISION", "migrate"]

SCHEMA_REVISION: Final = "0005"

_VERSION_TABLE: Final = "state_schema"
_MIGRATIONS: Final = Path(__file__).parent / "migrations"


async def migrate(database: Database) -> None:
    """Bring the database to :data:`SCHEMA_REVISION`, in one transaction.

    Raises:
        StateUnavailableError: it is out of reach, or a newer build made it.
    """
    await database.run_blocking(_migrate)


def _migrate(engine: Engine) -> None:
    with engine.begin() as connection:
        current = _current(connection)
        if current == SCHEMA_REVISION:
            return
        if current is not None and current > SCHEMA_REVISION:
            raise StateUnavailableError(f"the state database has schema {current}; this build knows {SCHEMA_REVISION}")
        from alembic import command  # half a second to import, and only needed when the schema changes
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS))
        config.attributes["connection"] = connection
        command.upgrade(config, SCHEMA_REVISION)


def _current(connection: Connection) -> str | None:
    if not inspect(connection).has_table(_VERSION_TABLE):
        return None
    found: str | None = connection.execute(text(f"SELECT version_num FROM {_VERSION_TABLE}")).scalar()  # noqa: S608  a constant
    return found
