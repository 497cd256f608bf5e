"""`bulkhead-admin principal`, `key` and `certificate`: who may call, and with what."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from bulkhead.cli.console import emit, emit_rows, example, json_option, note, time_text
from bulkhead.cli.settings import on_channel
from bulkhead.errors import AlreadyExistsError, InvalidRequestError

if TYPE_CHECKING:
    from bulkhead.client.transport import Channel
    from bulkhead.client.views import CredentialView, IssuedKey, PrincipalView

__all__ = ["certificate", "key", "principal"]

DAY_S: Final = 86_400
MAX_KEY_DAYS: Final = 366
MAX_CERTIFICATE_BYTES: Final = 64 * 1024


@click.group()
def principal() -> None:
    """People and programs that may hold credentials."""


@principal.command("create", epilog=example("bulkhead-admin principal create ci --tenant acme --role developer"))
@click.argument("name")
@click.option("--tenant", help="Name or identifier; leave out for admins and platform officers.")
@click.option("--role", type=click.Choice(("developer", "officer", "admin")), required=True)
@json_option
@click.pass_context
def create_principal(ctx: click.Context, name: str, *, tenant: str | None, role: str, as_json: bool) -> None:
    """Create the principal NAME."""
    from bulkhead.client.tenancy import TenancyAdmin

    async def work(channel: "Channel") -> "PrincipalView":
        admin = TenancyAdmin(channel)
        tenant_id = (await admin.tenant(tenant)).tenant_id if tenant else ""
        return await admin.create_principal(tenant_id=tenant_id, name=name, role=role)

    made = on_channel(ctx, work)
    emit(made, as_json=as_json, text=f"created {made.role} {made.name}: {made.principal_id}")


@principal.command("list", epilog=example("bulkhead-admin principal list --tenant acme"))
@click.option("--tenant", help="Name or identifier; without it everybody.")
@json_option
@click.pass_context
def list_principals(ctx: click.Context, *, tenant: str | None, as_json: bool) -> None:
    """List principals with their pseudonyms in audit records."""
    from bulkhead.client.tenancy import TenancyAdmin

    async def work(channel: "Channel") -> list["PrincipalView"]:
        admin = TenancyAdmin(channel)
        tenant_id = (await admin.tenant(tenant)).tenant_id if tenant else ""
        return [item async for item in admin.principals(tenant_id)]

    emit_rows(
        on_channel(ctx, work),
        as_json=as_json,
        columns={
            "name": lambda item: item.name,
            "role": lambda item: item.role,
            "tenant": lambda item: item.tenant_id,
            "principal": lambda item: item.principal_id,
            "subject": lambda item: item.subject_id,
        },
        empty="no principals",
    )


@click.group()
def key() -> None:
    """API keys."""


@key.command("create", epilog=example("bulkhead-admin key create prin_01h… --days 30 --out acme.key"))
@click.argument("principal_id")
@click.option("--scope", "scopes", multiple=True, help="Repeatable; without it every scope of the role.")
@click.option("--days", type=click.IntRange(1, MAX_KEY_DAYS), default=90, show_default=True, help="Lifetime.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="New file (mode 0600) for the key.")
@json_option
@click.pass_context
def create_key(
    ctx: click.Context, principal_id: str, *, scopes: tuple[str, ...], days: int, out: Path | None, as_json: bool
) -> None:
    """Issue a key for PRINCIPAL_ID. Its secret is written to --out, or shown this once."""
    from bulkhead.client.tenancy import TenancyAdmin

    target = None if out is None else _new_secret_file(out)  # before the key exists: a full disk must not lose it

    async def work(channel: "Channel") -> "IssuedKey":
        return await TenancyAdmin(channel).create_api_key(principal_id, scopes=scopes, lifetime_s=days * DAY_S)

    try:
        issued = on_channel(ctx, work)
    except BaseException:
        if target is not None and out is not None:
            os.close(target)
            out.unlink()
        raise
    until = time_text(issued.credential.expires_unix_s)
    if target is not None:
        with os.fdopen(target, "w", encoding="ascii") as file:
            file.write(f"{issued.api_key}\n")
        summary = f"{issued.credential.credential_id} until {until}; key in {out}"
        emit(issued.credential, as_json=as_json, text=summary)
        return
    note(f"{issued.credential.credential_id} until {until}; this key is shown once:")
    emit({"credential": issued.credential, "api_key": issued.api_key}, as_json=as_json, text=issued.api_key)


@key.command("list", epilog=example("bulkhead-admin key list prin_01h…"))
@click.argument("principal_id")
@json_option
@click.pass_context
def list_keys(ctx: click.Context, principal_id: str, *, as_json: bool) -> None:
    """List the credentials of PRINCIPAL_ID, without secrets."""
    from bulkhead.client.tenancy import TenancyAdmin

    async def work(channel: "Channel") -> list["CredentialView"]:
        return [item async for item in TenancyAdmin(channel).credentials(principal_id)]

    emit_rows(
        on_channel(ctx, work),
        as_json=as_json,
        columns={
            "credential": lambda item: item.credential_id,
            "kind": lambda item: item.kind,
            "created": lambda item: time_text(item.created_unix_s),
            "expires": lambda item: time_text(item.expires_unix_s),
            "revoked": lambda item: time_text(item.revoked_unix_s),
            "scopes": lambda item: item.scopes,
        },
        empty="no credentials",
    )


@key.command("revoke", epilog=example("bulkhead-admin key revoke cred_01h…"))
@click.argument("credential_id")
@json_option
@click.pass_context
def revoke_key(ctx: click.Context, credential_id: str, *, as_json: bool) -> None:
    """Revoke a key or certificate: at once for new calls, within seconds for open sessions."""
    from bulkhead.client.tenancy import TenancyAdmin

    revoked = on_channel(ctx, lambda channel: TenancyAdmin(channel).revoke_credential(credential_id))
    emit(revoked, as_json=as_json, text=f"revoked {revoked.credential_id} at {time_text(revoked.revoked_unix_s)}")


@click.group()
def certificate() -> None:
    """Client certificates."""


@certificate.command("register", epilog=example("bulkhead-admin certificate register prin_01h… client.pem"))
@click.argument("principal_id")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--scope", "scopes", multiple=True, help="Repeatable; without it every scope of the role.")
@json_option
@click.pass_context
def register_certificate(
    ctx: click.Context, principal_id: str, file: Path, *, scopes: tuple[str, ...], as_json: bool
) -> None:
    """Register the client certificate in FILE (PEM or DER) for PRINCIPAL_ID by its SHA-256 fingerprint."""
    from bulkhead.client.tenancy import TenancyAdmin

    if file.stat().st_size > MAX_CERTIFICATE_BYTES:
        raise InvalidRequestError(f"{file}: too large for a certificate")
    data = file.read_bytes()
    if b"PRIVATE KEY" in data:
        raise InvalidRequestError(f"{file} holds a private key; register the certificate alone")
    made = on_channel(
        ctx, lambda channel: TenancyAdmin(channel).register_certificate(principal_id, data, scopes=scopes)
    )
    emit(made, as_json=as_json, text=f"registered {made.credential_id} until {time_text(made.expires_unix_s)}")


def _new_secret_file(path: Path) -> int:
    """Return a descriptor of a new file that its owner alone can read."""
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise AlreadyExistsError(f"{path} exists; name a new file") from error
    except OSError as error:
        raise InvalidRequestError(f"cannot write {path}: {error.strerror}") from error
