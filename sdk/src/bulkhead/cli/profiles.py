"""`bulkhead profile`."""

from typing import TYPE_CHECKING

import click

from bulkhead.cli.console import emit, emit_rows, example, json_option
from bulkhead.cli.settings import on_channel, settings_of

if TYPE_CHECKING:
    from bulkhead.client.config import Profile
    from bulkhead.client.transport import Channel

__all__ = ["profile"]


@click.group()
def profile() -> None:
    """Profiles: address, credential and pins, kept in one file."""


@profile.command("list", epilog=example("bulkhead profile list"))
@json_option
@click.pass_context
def list_all(ctx: click.Context, *, as_json: bool) -> None:
    """List the profiles of the configuration file."""
    from bulkhead.client.config import config_path, list_profiles

    path = settings_of(ctx).config_path or config_path()
    names, default = list_profiles(path)
    emit_rows(
        [{"name": name, "default": name == default} for name in names],
        as_json=as_json,
        columns={"profile": lambda item: item["name"], "default": lambda item: item["default"]},
        empty=f"no profiles in {path}",
    )


@profile.command("check", epilog=example("bulkhead --profile acme profile check"))
@json_option
@click.pass_context
def check(ctx: click.Context, *, as_json: bool) -> None:
    """Read the profile, reach its control plane and try its credential."""
    from bulkhead.client.trust import Trust

    chosen = settings_of(ctx).profile()
    findings = {
        "profile": chosen.name,
        "file": str(chosen.path),
        "address": chosen.address,
        "role": chosen.role,
        "credential": "API key" if chosen.api_key else "client certificate",
        "log_key_pinned": chosen.log_vkey is not None,
        "tenant_root": chosen.root.fingerprint.hex() if chosen.root.fingerprint is not None else "none",
        "development_mode": chosen.development_mode,
    }
    if chosen.role == "developer":
        Trust.from_profile(chosen)
    _check_log_key(chosen)
    on_channel(ctx, lambda channel: _try_credential(channel, chosen))
    lines = [f"{name.replace('_', ' '):17} {value}" for name, value in findings.items()]
    if chosen.development_mode:
        lines.append("warning: development mode accepts SIMULATED evidence, which proves nothing")
    emit(findings | {"reachable": True, "credential_accepted": True}, as_json=as_json, text="\n".join([*lines, "ok"]))


def _check_log_key(chosen: "Profile") -> None:
    from bulkhead.errors import CheckpointError, ConfigError
    from bulkhead.transparency.note import NoteVerifier

    if chosen.log_vkey is not None:
        try:
            NoteVerifier.from_vkey(chosen.log_vkey)
        except CheckpointError as error:
            raise ConfigError(f"profile {chosen.name}: log_vkey: {error.message}") from error


async def _try_credential(channel: "Channel", chosen: "Profile") -> None:
    """Make the cheapest call that the profile's role may make."""
    from bulkhead.client.audit import AuditLog
    from bulkhead.client.fleet import FleetAdmin
    from bulkhead.client.opening import SessionControl

    if chosen.role == "admin":
        await FleetAdmin(channel).agents()
    elif chosen.role == "officer":
        await AuditLog(channel).checkpoint(tenant_id=chosen.tenant_id or "platform")
    else:
        async for _ in SessionControl(channel).sessions(open_only=True):
            return
