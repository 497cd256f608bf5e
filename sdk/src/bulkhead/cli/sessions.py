"""`bulkhead session`."""

from typing import TYPE_CHECKING

import click

from bulkhead.cli.console import emit, emit_rows, example, json_option, time_text
from bulkhead.cli.settings import on_channel

if TYPE_CHECKING:
    from bulkhead.client.transport import Channel
    from bulkhead.client.views import SessionView

__all__ = ["session"]


@click.group()
def session() -> None:
    """Sessions, as the control plane knows them."""


@session.command("list", epilog=example("bulkhead session list --open"))
@click.option("--open", "open_only", is_flag=True, help="Only open ones.")
@json_option
@click.pass_context
def list_sessions(ctx: click.Context, *, open_only: bool, as_json: bool) -> None:
    """List the sessions of the profile's tenant."""
    from bulkhead.client.opening import SessionControl

    async def work(channel: "Channel") -> list["SessionView"]:
        return [item async for item in SessionControl(channel).sessions(open_only=open_only)]

    emit_rows(
        on_channel(ctx, work),
        as_json=as_json,
        columns={
            "session": lambda item: item.session_id,
            "state": lambda item: item.state,
            "model": lambda item: item.model,
            "tier": lambda item: f"{item.tier}{' (simulated)' if item.simulated else ''}",
            "purpose": lambda item: item.purpose,
            "created": lambda item: time_text(item.created_unix_s),
            "expires": lambda item: time_text(item.expires_unix_s),
        },
        empty="no sessions",
    )


@session.command("show", epilog=example("bulkhead session show sess_01h…"))
@click.argument("session_id")
@json_option
@click.pass_context
def show(ctx: click.Context, session_id: str, *, as_json: bool) -> None:
    """Show SESSION_ID. For what a worker proves, see: bulkhead evidence show."""
    from bulkhead.client.opening import SessionControl

    found = on_channel(ctx, lambda channel: SessionControl(channel).get(session_id))
    emit(found, as_json=as_json, text=_text(found))


@session.command("close", epilog=example("bulkhead session close sess_01h…"))
@click.argument("session_id")
@json_option
@click.pass_context
def close(ctx: click.Context, session_id: str, *, as_json: bool) -> None:
    """End SESSION_ID. Repeating it does nothing."""
    from bulkhead.client.opening import SessionControl

    on_channel(ctx, lambda channel: SessionControl(channel).close(session_id))
    emit({"session_id": session_id, "state": "closed"}, as_json=as_json, text=f"closed {session_id}")


def _text(view: "SessionView") -> str:
    return "\n".join(
        (
            f"session    {view.session_id}",
            f"state      {view.state}",
            f"tenant     {view.tenant_id}",
            f"model      {view.model}",
            f"tier       {view.tier}{' (SIMULATED)' if view.simulated else ''}",
            f"partition  {view.partition_id or '-'}",
            f"purpose    {view.purpose or '-'}",
            f"created    {time_text(view.created_unix_s)}",
            f"expires    {time_text(view.expires_unix_s)}",
            f"request    {view.request_id or '-'}",
        )
    )
