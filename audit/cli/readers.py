"""`reader`: database roles that query the audit views in SQL."""

from typing import Any

import click

from audit.sql.readers import VIEWS, add_reader, list_readers, remove_reader
from bulkhead.cli.console import emit, emit_rows, example, json_option
from bulkhead.ids import TENANT, check_id

__all__ = ["reader"]


def _url(function: Any) -> Any:
    return click.option(
        "--db", "url", required=True, envvar="BULKHEAD_AUDIT_DB", show_envvar=True, metavar="URL",
        help="postgresql://… of the audit database, as a superuser.",
    )(function)  # fmt: skip


@click.group()
def reader() -> None:
    """Roles of a PostgreSQL audit database that read the documented views, and nothing else."""


@reader.command(
    "add", epilog=example("bulkhead-audit reader add officer_acme --db postgresql://… --tenant tenant_01h…")
)
@click.argument("role")
@_url
@click.option("--tenant", help="Whose records the role sees; without it, every log.")
@json_option
def add(role: str, *, url: str, tenant: str | None, as_json: bool) -> None:
    """Make ROLE a reader: it may log in (give it a password or a pg_hba entry) and select from the views.

    What it reads is not in the audit log; the server logs each of its statements instead.
    """
    add_reader(url, role, tenant=None if tenant is None else check_id(tenant, TENANT))
    value = {"role": role, "tenant": tenant, "views": list(VIEWS)}
    emit(value, as_json=as_json, text=f"{role} reads {', '.join(VIEWS)} of {tenant or 'every log'}.")


@reader.command("remove", epilog=example("bulkhead-audit reader remove officer_acme --db postgresql://…"))
@click.argument("role")
@_url
@json_option
def remove(role: str, *, url: str, as_json: bool) -> None:
    """Drop ROLE."""
    remove_reader(url, role)
    emit({"role": role, "removed": True}, as_json=as_json, text=f"{role} is gone.")


@reader.command("list", epilog=example("bulkhead-audit reader list --db postgresql://…"))
@_url
@json_option
def list_roles(*, url: str, as_json: bool) -> None:
    """List readers and what they see."""
    found = [{"role": role, "tenant": tenant} for role, tenant in list_readers(url)]
    emit_rows(
        found,
        as_json=as_json,
        columns={"role": lambda item: item["role"], "sees": lambda item: item["tenant"] or "every log"},
        empty="no readers",
    )
