"""Proofs of records as files."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from bulkhead.cli.console import emit, note
from bulkhead.cli.settings import on_channel, settings_of
from bulkhead.errors import InvalidRequestError

if TYPE_CHECKING:
    from bulkhead.client.transport import Channel

__all__ = ["write_proof"]

_PAUSE_S: Final = 1.0


def write_proof(
    ctx: click.Context,
    record: str | int,
    *,
    vkey: str,
    tenant: str,
    out: Path | None,
    wait_s: int,
    as_json: bool,
) -> None:
    """Fetch a record's tlog-proof, verify it with what the profile pins, and write or print it."""
    from bulkhead.transparency.cosignature import Witness
    from bulkhead.transparency.tlog_proof import verify_record_proof

    profile = settings_of(ctx).profile()
    text, whole = on_channel(ctx, lambda channel: _fetch(channel, record, tenant, wait_s))
    platform = profile.platform_vkey if whole else None
    proven = verify_record_proof(
        text,
        vkey=vkey,
        platform_vkey=platform,
        witnesses=[Witness.from_vkey(key) for key in profile.witnesses],
        quorum=profile.witness_quorum if platform is not None else 0,
    )
    if not whole:
        note("no round of the platform's log holds the record yet: the file proves it in its own log only")
    if out is None:
        click.echo(text, nl=False)
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InvalidRequestError(f"cannot write {out}: {error.strerror}") from error
    value = {
        "file": str(out),
        "record": proven.leaf.fields.record_id,
        "index": proven.leaf.index,
        "size": proven.leaf.size,
        "round": None if proven.round is None else proven.round.round,
        "witnesses": dict(proven.witnesses),
    }
    where = "" if proven.round is None else f", round {proven.round.round} of the platform's log"
    emit(value, as_json=as_json, text=f"wrote {out}: record {proven.leaf.index} in a tree of {proven.leaf.size}{where}")


async def _fetch(channel: "Channel", record: str | int, tenant: str, wait_s: int) -> tuple[str, bool]:
    """Return the proof's text and whether it reaches a round, waiting for one."""
    from bulkhead.client.audit import AuditLog

    log = AuditLog(channel)
    text, whole = await log.proof_file(record, tenant_id=tenant)
    while not whole and wait_s > 0:
        await asyncio.sleep(_PAUSE_S)
        wait_s -= 1
        text, whole = await log.proof_file(record, tenant_id=tenant)
    return text, whole
