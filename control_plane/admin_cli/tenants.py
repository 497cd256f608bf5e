"""`bulkhead-admin tenant`."""

from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from bulkhead.cli.console import compose, emit, emit_rows, example, json_option
from bulkhead.cli.settings import on_channel

if TYPE_CHECKING:
    from collections.abc import Callable

    from bulkhead.client.tenancy import TenantSettings
    from bulkhead.client.transport import Channel
    from bulkhead.client.views import TenantView

__all__ = ["TIERS", "tenant"]

Function = TypeVar("Function", bound="Callable[..., Any]")
TIERS: Final = ("process", "mig", "gpu", "confidential")
ROOT_BYTES: Final = 32  # SHA-256
DEFAULT_SESSION_LIMIT: Final = 20
DEFAULT_MAX_OUTPUT_TOKENS: Final = 4096


@click.group()
def tenant() -> None:
    """Tenants: who may use what, how much and where."""


def _settings_options(function: Function) -> Function:
    """Add the options that create and update share."""
    options = (
        click.option("--region", "regions", multiple=True, help="Region where data may be processed; repeatable."),
        click.option("--pack", "packs", multiple=True, help="Compliance pack, e.g. hipaa or gdpr; repeatable."),
        click.option("--model", "models", multiple=True, help="Model that it may use; repeatable."),
        click.option("--minimum-tier", type=click.Choice(TIERS), help="Least isolation tier of its sessions."),
        click.option("--session-limit", type=click.IntRange(1), help="Sessions open at the same time."),
        click.option("--max-output-tokens", type=click.IntRange(1), help="Output tokens per request."),
    )
    return compose(options, function)


@tenant.command("create", epilog=example("bulkhead-admin tenant create mercy --pack hipaa --region eu-central --json"))
@click.argument("name")
@_settings_options
@json_option
@click.pass_context
def create(ctx: click.Context, /, name: str, *, as_json: bool, **settings: Any) -> None:
    """Create the tenant NAME and its audit log.

    Without options: no region, pack or model, 20 sessions, 4096 output tokens for each request.
    """
    from bulkhead.client.tenancy import TenancyAdmin

    settings["session_limit"] = settings["session_limit"] or DEFAULT_SESSION_LIMIT
    settings["max_output_tokens"] = settings["max_output_tokens"] or DEFAULT_MAX_OUTPUT_TOKENS
    wanted = _settings(**settings)
    made = on_channel(ctx, lambda channel: TenancyAdmin(channel).create_tenant(name, wanted))
    emit(made, as_json=as_json, text=f"created tenant {made.name}\n{_text(made)}")


@tenant.command("list", epilog=example("bulkhead-admin tenant list"))
@json_option
@click.pass_context
def list_tenants(ctx: click.Context, *, as_json: bool) -> None:
    """List every tenant."""
    from bulkhead.client.tenancy import TenancyAdmin

    async def work(channel: "Channel") -> list["TenantView"]:
        return [item async for item in TenancyAdmin(channel).tenants()]

    emit_rows(
        on_channel(ctx, work),
        as_json=as_json,
        columns={
            "name": lambda item: item.name,
            "status": lambda item: item.status,
            "packs": lambda item: item.packs,
            "tier": lambda item: item.minimum_tier,
            "regions": lambda item: item.regions,
            "models": lambda item: item.models,
            "sessions": lambda item: item.session_limit,
            "tenant": lambda item: item.tenant_id,
        },
        empty="no tenants",
    )


@tenant.command("show", epilog=example("bulkhead-admin tenant show mercy"))
@click.argument("name")
@json_option
@click.pass_context
def show(ctx: click.Context, name: str, *, as_json: bool) -> None:
    """Show the tenant NAME (or identifier), the verifier key of its audit log included."""
    from bulkhead.client.tenancy import TenancyAdmin

    found = on_channel(ctx, lambda channel: TenancyAdmin(channel).tenant(name))
    emit(found, as_json=as_json, text=_text(found))


@tenant.command("update", epilog=example("bulkhead-admin tenant update mercy --minimum-tier gpu --session-limit 50"))
@click.argument("name")
@_settings_options
@click.option("--activate", is_flag=True, help="Lift a suspension.")
@json_option
@click.pass_context
def update(ctx: click.Context, /, name: str, *, activate: bool, as_json: bool, **settings: Any) -> None:
    """Change what is named for the tenant NAME (or identifier), and nothing else."""
    wanted = _settings(status="active" if activate else None, **settings)
    if not wanted.named():
        raise click.UsageError("name at least one thing to change")
    _change(ctx, name, wanted, as_json=as_json, what="updated")


@tenant.command("suspend", epilog=example("bulkhead-admin tenant suspend mercy"))
@click.argument("name")
@json_option
@click.pass_context
def suspend(ctx: click.Context, name: str, *, as_json: bool) -> None:
    """Refuse new sessions of the tenant NAME (or identifier)."""
    _change(ctx, name, _settings(status="suspended"), as_json=as_json, what="suspended")


@tenant.command("set-root", epilog=example("bulkhead-admin tenant set-root mercy 3f7a…  (64 hexadecimal digits)"))
@click.argument("name")
@click.argument("fingerprint")
@json_option
@click.pass_context
def set_root(ctx: click.Context, name: str, fingerprint: str, *, as_json: bool) -> None:
    """Record FINGERPRINT as the root of the tenant NAME (or identifier), in place of one that is recorded.

    The tenant makes the root (`bulkhead root new`) and tells its fingerprint. Workers started from now on take session
    keys that it certified, and no others; sessions on workers of the root before are renewed no more, and end within
    five minutes. The tenant's audit log says which root was replaced by which.
    """
    try:
        root = bytes.fromhex(fingerprint)
    except ValueError as error:
        raise click.UsageError("FINGERPRINT is 64 hexadecimal digits: `bulkhead root show` prints it") from error
    if len(root) != ROOT_BYTES:
        raise click.UsageError("FINGERPRINT is 64 hexadecimal digits: `bulkhead root show` prints it")
    _change(ctx, name, _settings(tenant_root=root), as_json=as_json, what="recorded the root of")


@tenant.command("clear-root", epilog=example("bulkhead-admin tenant clear-root mercy"))
@click.argument("name")
@json_option
@click.pass_context
def clear_root(ctx: click.Context, name: str, *, as_json: bool) -> None:
    """Take the root out of the record of the tenant NAME (or identifier): no session of tier confidential then."""
    _change(ctx, name, _settings(tenant_root=b""), as_json=as_json, what="took away the root of")


def _change(ctx: click.Context, name: str, wanted: "TenantSettings", *, as_json: bool, what: str) -> None:
    from bulkhead.client.tenancy import TenancyAdmin

    async def work(channel: "Channel") -> "TenantView":
        admin = TenancyAdmin(channel)
        found = await admin.tenant(name)
        return await admin.update_tenant(found.tenant_id, wanted)

    changed = on_channel(ctx, work)
    emit(changed, as_json=as_json, text=f"{what} tenant {changed.name}\n{_text(changed)}")


def _settings(
    *,
    status: str | None = None,
    regions: tuple[str, ...] = (),
    packs: tuple[str, ...] = (),
    models: tuple[str, ...] = (),
    minimum_tier: str | None = None,
    session_limit: int | None = None,
    max_output_tokens: int | None = None,
    tenant_root: bytes | None = None,
) -> "TenantSettings":
    from bulkhead.client.tenancy import TenantSettings

    return TenantSettings(
        status=status,
        regions=regions or None,
        packs=packs or None,
        models=models or None,
        minimum_tier=minimum_tier,
        session_limit=session_limit,
        max_output_tokens=max_output_tokens,
        tenant_root=tenant_root,
    )


def _text(view: "TenantView") -> str:
    return "\n".join(
        (
            f"tenant             {view.tenant_id}",
            f"status             {view.status}",
            f"regions            {', '.join(view.regions) or '-'}",
            f"packs              {', '.join(view.packs) or '-'}",
            f"models             {', '.join(view.models) or '-'}",
            f"minimum tier       {view.minimum_tier or '-'}",
            f"session limit      {view.session_limit}",
            f"max output tokens  {view.max_output_tokens}",
            f"revision           {view.revision}",
            f"audit log key      {view.log_vkey or '-'}",
            f"tenant root        {view.tenant_root.hex() or '-'}",
        )
    )
