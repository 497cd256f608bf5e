"""`bulkhead-admin fleet`."""

from typing import TYPE_CHECKING

import click

from bulkhead.cli.console import emit, emit_rows, example, json_option, time_text
from bulkhead.cli.settings import on_channel

if TYPE_CHECKING:
    from bulkhead.client.transport import Channel
    from bulkhead.client.views import PartitionView

__all__ = ["fleet"]


@click.group()
def fleet() -> None:
    """Node agents and partitions."""


@fleet.command("agents", epilog=example("bulkhead-admin fleet agents"))
@json_option
@click.pass_context
def agents(ctx: click.Context, *, as_json: bool) -> None:
    """List node agents and what their trays hold; a simulated tray is called simulated."""
    from bulkhead.client.fleet import FleetAdmin

    emit_rows(
        on_channel(ctx, lambda channel: FleetAdmin(channel).agents()),
        as_json=as_json,
        columns={
            "agent": lambda item: item.agent_id,
            "rack": lambda item: item.rack,
            "tray": lambda item: item.tray,
            "region": lambda item: item.region,
            "gpus": lambda item: f"{item.gpus} {item.gpu_product}",
            "simulated": lambda item: item.simulated,
            "tiers": lambda item: item.tiers,
            "connected": lambda item: item.connected,
            "cordoned": lambda item: item.cordoned,
            "partitions": lambda item: item.partitions,
            "last seen": lambda item: time_text(item.last_seen_unix_s),
        },
        empty="no node agents",
    )


@fleet.command(
    "partitions",
    epilog=example("bulkhead-admin fleet partitions --tenant acme", "bulkhead-admin fleet partitions --all"),
)
@click.option("--tenant", help="Name or identifier.")
@click.option("--all", "everything", is_flag=True, help="Also partitions that are free again or lost.")
@json_option
@click.pass_context
def partitions(ctx: click.Context, *, tenant: str | None, everything: bool, as_json: bool) -> None:
    """List partitions."""
    from bulkhead.client.fleet import FleetAdmin
    from bulkhead.client.tenancy import TenancyAdmin

    async def work(channel: "Channel") -> list["PartitionView"]:
        tenant_id = (await TenancyAdmin(channel).tenant(tenant)).tenant_id if tenant else ""
        return [item async for item in FleetAdmin(channel).partitions(tenant_id=tenant_id, live_only=not everything)]

    emit_rows(
        on_channel(ctx, work),
        as_json=as_json,
        columns={
            "partition": lambda item: item.partition_id,
            "state": lambda item: item.state,
            "tier": lambda item: f"{item.tier}{' (simulated)' if item.simulated else ''}",
            "tenant": lambda item: item.tenant_id,
            "model": lambda item: item.model,
            "agent": lambda item: item.agent_id,
            "gpus": lambda item: len(item.gpu_uuids),
            "slices": _slices,
            "sessions": lambda item: item.sessions,
            "created": lambda item: time_text(item.created_unix_s),
        },
        empty="no partitions",
    )


@fleet.command("cordon", epilog=example("bulkhead-admin fleet cordon rack1-tray01"))
@click.argument("agent_id")
@json_option
@click.pass_context
def cordon(ctx: click.Context, agent_id: str, *, as_json: bool) -> None:
    """Place nothing more on the tray of AGENT_ID; open sessions run out."""
    from bulkhead.client.fleet import FleetAdmin

    changed = on_channel(ctx, lambda channel: FleetAdmin(channel).cordon(agent_id))
    emit(changed, as_json=as_json, text=f"cordoned {changed.agent_id}")


@fleet.command("uncordon", epilog=example("bulkhead-admin fleet uncordon rack1-tray01"))
@click.argument("agent_id")
@json_option
@click.pass_context
def uncordon(ctx: click.Context, agent_id: str, *, as_json: bool) -> None:
    """Place on the tray of AGENT_ID again."""
    from bulkhead.client.fleet import FleetAdmin

    changed = on_channel(ctx, lambda channel: FleetAdmin(channel).uncordon(agent_id))
    emit(changed, as_json=as_json, text=f"uncordoned {changed.agent_id}")


@fleet.command("release", epilog=example("bulkhead-admin fleet release part_01h…"))
@click.argument("partition_id")
@json_option
@click.pass_context
def release(ctx: click.Context, partition_id: str, *, as_json: bool) -> None:
    """End the worker of PARTITION_ID after its running requests, scrub and free the partition."""
    from bulkhead.client.fleet import FleetAdmin

    changed = on_channel(ctx, lambda channel: FleetAdmin(channel).release(partition_id))
    emit(changed, as_json=as_json, text=f"{changed.partition_id} is {changed.state}")


def _slices(item: "PartitionView") -> str:
    if not item.memory_slices:
        return "-"
    return f"{item.memory_slice_start}-{item.memory_slice_start + item.memory_slices - 1}"
