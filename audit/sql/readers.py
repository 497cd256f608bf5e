"""Database roles that read the audit views, and nothing else (PostgreSQL)."""

import re
from typing import Final

from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError

from audit.sql.postgres import READ_LIMIT_S, postgres_engine
from bulkhead.errors import AuditUnavailableError, InvalidRequestError

__all__ = ["VIEWS", "add_reader", "list_readers", "remove_reader"]

VIEWS: Final = ("audit_logs", "audit_records", "audit_decisions", "audit_usage")
_ROLE: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")
_STATEMENT_LIMIT_MS: Final = 60_000  # a reader's query must not hold vacuum back for hours
_LARGE_OBJECTS: Final = ("lo_creat(integer)", "lo_create(oid)", "lo_from_bytea(oid, bytea)")


def add_reader(url: str, role: str, *, tenant: str | None) -> None:
    """Make a login role (without a password) that reads the views: one tenant's records, or all.

    What the role reads is no record of the audit log, which a reading transaction cannot write. The server logs each
    of its statements, and only a superuser can switch that off.

    Args:
        url: of the audit database, as a superuser.
        role: lower-case name.
        tenant: tenant id; None for every log.

    Raises:
        InvalidRequestError: not a role's name.
        AuditUnavailableError: the database cannot be reached, or does not allow it.
    """
    name = _checked(role)
    with _transaction(url) as connection:
        there = connection.execute(text("SELECT 1 FROM pg_roles WHERE rolname = :role"), {"role": role}).scalar()
        if there is None:
            connection.execute(text(f"CREATE ROLE {name} LOGIN NOINHERIT NOSUPERUSER NOCREATEDB NOCREATEROLE"))
        for setting, value in (
            ("default_transaction_read_only", "on"),
            ("statement_timeout", str(_STATEMENT_LIMIT_MS)),
            ("idle_in_transaction_session_timeout", str(_STATEMENT_LIMIT_MS)),
            ("log_statement", "all"),
        ):
            connection.execute(text(f"ALTER ROLE {name} SET {setting} = '{value}'"))
        database = connection.execute(text("SELECT quote_ident(current_database())")).scalar()
        connection.execute(text(f"REVOKE TEMPORARY ON DATABASE {database} FROM PUBLIC"))
        connection.execute(text("REVOKE CREATE ON SCHEMA public FROM PUBLIC"))
        for function in _LARGE_OBJECTS:
            connection.execute(text(f"REVOKE EXECUTE ON FUNCTION {function} FROM PUBLIC"))
        connection.execute(text(f"GRANT SELECT ON {', '.join(VIEWS)} TO {name}"))
        connection.execute(text("DELETE FROM audit_reader WHERE role_name = :role"), {"role": role})
        connection.execute(
            text("INSERT INTO audit_reader (role_name, tenant) VALUES (:role, :tenant)"),
            {"role": role, "tenant": tenant},
        )


def remove_reader(url: str, role: str) -> None:
    """Take the views away from a role and drop it.

    Raises:
        InvalidRequestError: no such reader.
        AuditUnavailableError: the database cannot be reached, or does not allow it.
    """
    name = _checked(role)
    with _transaction(url) as connection:
        gone = connection.execute(text("DELETE FROM audit_reader WHERE role_name = :role"), {"role": role})
        if gone.rowcount == 0:
            raise InvalidRequestError(f"{role} is no reader of the audit views")
        connection.execute(text(f"REVOKE ALL ON {', '.join(VIEWS)} FROM {name}"))
        connection.execute(text(f"DROP ROLE {name}"))


def list_readers(url: str) -> list[tuple[str, str | None]]:
    """Return every reader with its tenant, None for all.

    Raises:
        AuditUnavailableError: the database cannot be reached.
    """
    with _transaction(url) as connection:
        found = connection.execute(text("SELECT role_name, tenant FROM audit_reader ORDER BY role_name"))
        return [(row.role_name, row.tenant) for row in found]


class _transaction:  # noqa: N801 - used as a statement
    """One transaction with the database's errors turned into ours."""

    def __init__(self, url: str) -> None:
        self._engine = postgres_engine(url, read_only=False, threads=1, limit_s=READ_LIMIT_S)

    def __enter__(self) -> Connection:
        try:
            self._begun = self._engine.begin()
            return self._begun.__enter__()
        except SQLAlchemyError as error:
            raise AuditUnavailableError(f"the audit database cannot be reached: {_cause(error)}") from error

    def __exit__(self, *raised: object) -> None:
        error = raised[1]
        try:
            self._begun.__exit__(*raised)  # type: ignore[arg-type]  # what the statement hands over
        finally:
            self._engine.dispose()
        if isinstance(error, SQLAlchemyError):
            raise AuditUnavailableError(f"the database does not allow it: {_cause(error)}") from error


def _checked(role: str) -> str:
    if not _ROLE.fullmatch(role):
        raise InvalidRequestError("a role's name is lower-case letters, digits and underscores, at most 63")
    return f'"{role}"'


def _cause(error: SQLAlchemyError) -> str:
    return str(getattr(error, "orig", None) or error).partition("\n")[0]
