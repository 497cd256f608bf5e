"""`bulkhead-admin issuer`: who signs session tickets, and the change to another key."""

import click

from bulkhead.cli.console import emit, emit_rows, example, json_option, time_text
from bulkhead.cli.settings import on_channel

__all__ = ["issuer"]


@click.group(
    epilog=example(
        "bulkhead-admin issuer add",
        "bulkhead-admin issuer activate 5f3a…    (once tenants pin both fingerprints)",
        "bulkhead-admin issuer retire 9c01…      (once tickets of the old one have expired)",
    )
)
def issuer() -> None:
    """Ticket issuers. A change is add, activate, retire, with time between for tenants to pin the new one."""


@issuer.command("list", epilog=example("bulkhead-admin issuer list"))
@json_option
@click.pass_context
def list_issuers(ctx: click.Context, *, as_json: bool) -> None:
    """List ticket issuers, with the fingerprints that tenants pin."""
    from bulkhead.client.fleet import FleetAdmin

    emit_rows(
        on_channel(ctx, lambda channel: FleetAdmin(channel).ticket_issuers()),
        as_json=as_json,
        columns={
            "issuer": lambda item: item.issuer_id,
            "status": lambda item: item.status,
            "fingerprint": lambda item: item.fingerprint,
            "created": lambda item: time_text(item.created_unix_s),
            "activated": lambda item: time_text(item.activated_unix_s),
            "replaced": lambda item: time_text(item.replaced_unix_s),
            "retired": lambda item: time_text(item.retired_unix_s),
        },
        empty="no ticket issuers",
    )


@issuer.command("add", epilog=example("bulkhead-admin issuer add --json"))
@json_option
@click.pass_context
def add(ctx: click.Context, *, as_json: bool) -> None:
    """Make a further issuer: workers take its tickets within seconds; it signs none before `activate`."""
    from bulkhead.client.fleet import FleetAdmin

    made = on_channel(ctx, lambda channel: FleetAdmin(channel).add_ticket_issuer())
    emit(
        made,
        as_json=as_json,
        text=f"added {made.issuer_id}; tenants pin it beside the present one:"
        f' ticket_issuer_fingerprint = [..., "{made.fingerprint}"]',
    )


@issuer.command("activate", epilog=example("bulkhead-admin issuer activate 5f3a…"))
@click.argument("issuer_id")
@json_option
@click.pass_context
def activate(ctx: click.Context, issuer_id: str, *, as_json: bool) -> None:
    """Have ISSUER_ID sign from now on. Clients that do not pin it refuse their next open or renewal."""
    from bulkhead.client.fleet import FleetAdmin

    changed = on_channel(ctx, lambda channel: FleetAdmin(channel).activate_ticket_issuer(issuer_id))
    emit(changed, as_json=as_json, text=f"{changed.issuer_id} signs; retire the one before when its tickets are over")


@issuer.command("retire", epilog=example("bulkhead-admin issuer retire 9c01…"))
@click.argument("issuer_id")
@click.option("--at-once", is_flag=True, help="Also while its tickets are valid (a key that leaked): sessions renew.")
@json_option
@click.pass_context
def retire(ctx: click.Context, issuer_id: str, *, at_once: bool, as_json: bool) -> None:
    """Have no worker take tickets of ISSUER_ID any more."""
    from bulkhead.client.fleet import FleetAdmin

    changed = on_channel(ctx, lambda channel: FleetAdmin(channel).retire_ticket_issuer(issuer_id, at_once=at_once))
    emit(changed, as_json=as_json, text=f"retired {changed.issuer_id}")
