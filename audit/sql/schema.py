"""The schema's version, and bringing a database to it."""

from pathlib import Path
from typing import Final

from sqlalchemy import Connection, inspect, text

from bulkhead.errors import AuditUnavailableError

__all__ = ["SCHEMA_REVISION", "check_schema", "migrate"]

SCHEMA_REVISION: Final = "0005"
_MIGRATIONS: Final = Path(__file__).parent / "migrations"


def migrate(connection: Connection, revision: str = SCHEMA_REVISION) -> None:
    """Bring the database to ``revision`` (by default this build's). The caller commits.

    Raises:
        AuditUnavailableError: the database was made by a newer build.
    """
    current = _current(connection)
    if current == revision:
        return
    if current is not None and current > SCHEMA_REVISION:
        raise AuditUnavailableError(f"the audit database has schema {current}; this build knows {SCHEMA_REVISION}")
    from alembic import command  # half a second to import, and only needed when the schema changes
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.attributes["connection"] = connection
    if current is not None and (revision == "base" or revision < current):
        command.downgrade(config, revision)
    else:
        command.upgrade(config, revision)


def check_schema(connection: Connection, name: str) -> None:
    """Check that the database, which a message calls ``name``, has this build's schema.

    Raises:
        AuditUnavailableError: it is not an audit database, or of another version.
    """
    current = _current(connection)
    if current != SCHEMA_REVISION:
        raise AuditUnavailableError(f"{name} holds {_found(current)}")


def _found(current: str | None) -> str:
    if current is None:
        return "no audit log"
    older = "; this build's platform brings it there when it starts" if current < SCHEMA_REVISION else ""
    return f"schema {current}, this build knows {SCHEMA_REVISION}{older}"


def _current(connection: Connection) -> str | None:
    if not inspect(connection).has_table("audit_schema"):
        return None
    return connection.execute(text("SELECT version_num FROM audit_schema")).scalar()
