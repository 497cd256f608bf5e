"""`bulkhead audit list`."""

import asyncio
import datetime as dt
import json
import re
from typing import TYPE_CHECKING, Any, Final

import click

from bulkhead.cli.console import compose, emit_rows, example, json_option, note, one_line, to_json
from bulkhead.cli.record_text import US_PER_S, what, when, where, who, why
from bulkhead.cli.settings import on_channel, settings_of
from bulkhead.encoding import MAX_SAFE_INTEGER
from bulkhead.errors import UnavailableError

if TYPE_CHECKING:
    from bulkhead.client.audit import AuditLog, AuditRecord, RecordFilter
    from bulkhead.client.transport import Channel

__all__ = ["list_records"]

_AGO: Final = re.compile(r"([1-9][0-9]{0,5})([smhd])")
_UNIT_S: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_OPTIONS: Final = (
    click.option("--tenant", default="", help="Tenant id, or `platform`; without it the own tenant's log."),
    click.option("--action", default="", help="Action, e.g. decision or outcome; a group of them ends in `.`."),
    click.option("--decision", type=click.Choice(("allow", "deny", "error")), help="Outcome of a decision."),
    click.option("--session", default="", help="Session id."),
    click.option("--subject", default="", help="Subject id (pseudonym)."),
    click.option("--since", help="Not before: 30m, 24h, 7d, or 2026-01-31T10:00:00Z."),
    click.option("--until", help="Before; as --since."),
    click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="Most records shown."),
    click.option("--after", type=click.IntRange(0), help="Continue a list of one log: index of the last record seen."),
    click.option("--oldest-first", is_flag=True, help="Begin with the oldest record."),
    click.option("--follow", is_flag=True, help="Then show further records as they come, until interrupted."),
    click.option("--interval", type=click.IntRange(1), default=5, show_default=True, help="With --follow: seconds."),
)


def _options(function: Any) -> Any:
    return compose(_OPTIONS, function)


@click.command(
    "list",
    epilog=example(
        "bulkhead audit list --decision deny --since 24h",
        "bulkhead audit list --session sess_01h… --json",
        "bulkhead audit list --action partition. --follow",
    ),
)
@_options
@json_option
@click.pass_context
def list_records(
    ctx: click.Context,
    /,
    *,
    limit: int,
    after: int | None,
    oldest_first: bool,
    follow: bool,
    interval: int,
    as_json: bool,
    **chosen: Any,
) -> None:
    """List records, newest first. What is listed is the server's word: `prove` and `verify` check it."""
    wanted = _filter(**chosen)
    one_log = bool(wanted.tenant_id or settings_of(ctx).profile().tenant_id)
    if not one_log and (follow or after is not None):
        raise click.UsageError(
            "--follow and --after are of one log: give --tenant, whose log (`platform` for the platform's)"
        )
    if follow:
        on_channel(ctx, lambda channel: _follow(channel, wanted, limit, interval, as_json=as_json))
        return
    records, unindexed = on_channel(
        ctx, lambda channel: _records(channel, wanted, limit, after=after, oldest_first=oldest_first)
    )
    _table(records, as_json=as_json)
    if len(records) == limit and not as_json:
        continues = f"--after {records[-1].index} continues, " if one_log else ""
        note(f"the first {limit}; {continues}--limit shows more")
    if unindexed:
        note(f"{unindexed} records are not in the index yet and were not looked at: ask again in a moment")


def _table(records: "list[AuditRecord]", *, as_json: bool) -> None:
    emit_rows(
        records,
        as_json=as_json,
        columns={
            "index": lambda item: item.index,
            "when": lambda item: when(item.fields),
            "who": lambda item: who(item.fields),
            "what": lambda item: what(item.fields),
            "why": lambda item: why(item.fields),
            "where": lambda item: where(item.fields),
            "record": lambda item: item.fields.record_id,
        },
        empty="no records",
    )


async def _records(
    channel: "Channel", wanted: "RecordFilter", limit: int, *, after: int | None, oldest_first: bool
) -> "tuple[list[AuditRecord], int]":
    """Return records, and how many the index did not hold yet."""
    from bulkhead.client.audit import AuditLog

    unindexed = 0

    def on_page(indexed: int, size: int) -> None:
        nonlocal unindexed
        unindexed = max(size - indexed, 0)

    found = await _take(AuditLog(channel), wanted, limit, after=after, oldest_first=oldest_first, on_page=on_page)
    return found, unindexed


async def _take(
    log: "AuditLog", wanted: "RecordFilter", limit: int, *, after: int | None, oldest_first: bool, **told: Any
) -> "list[AuditRecord]":
    from contextlib import aclosing

    records: list[AuditRecord] = []
    async with aclosing(log.records(wanted, after=after, oldest_first=oldest_first, **told)) as found:
        async for record in found:
            records.append(record)
            if len(records) >= limit:
                break
    return records


async def _follow(channel: "Channel", wanted: "RecordFilter", limit: int, interval_s: int, *, as_json: bool) -> None:
    """Show the newest records, then those that come. The log is read only when it has grown by more than that read."""
    from bulkhead.client.audit import AuditLog
    from bulkhead.transparency.checkpoint import Checkpoint
    from bulkhead.transparency.note import split_note

    log = AuditLog(channel)

    async def size() -> int:
        signed, _ = await log.checkpoint(tenant_id=wanted.tenant_id)
        return Checkpoint.parse(split_note(signed)[0]).size

    seen = await size()
    for record in reversed(await _take(log, wanted, limit, after=None, oldest_first=False)):
        _line(record, as_json=as_json)
    last, quiet = seen - 1, seen + 1
    while True:
        await asyncio.sleep(interval_s)
        try:
            seen = await size()
            if seen <= quiet:
                continue
            came = await _take(log, wanted, seen, after=last, oldest_first=True)
        except UnavailableError as error:  # whoever follows waits for a server that is away
            note(one_line(error))
            continue
        for record in came:
            _line(record, as_json=as_json)
            last = max(last, record.index)
        last, quiet = max(last, seen - 1), seen + 1


def _line(record: "AuditRecord", *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(to_json(record), ensure_ascii=False))
        return
    fields = record.fields
    parts = (when(fields), record.index, who(fields), what(fields), why(fields), where(fields))
    click.echo("  ".join(str(part) for part in parts if part != ""))


def _filter(
    *,
    tenant: str,
    action: str,
    decision: str | None,
    session: str,
    subject: str,
    since: str | None,
    until: str | None,
) -> "RecordFilter":
    from bulkhead.client.audit import RecordFilter

    return RecordFilter(
        tenant_id=tenant,
        action=action,
        decision=decision or "",
        session_id=session,
        subject=subject,
        from_us=_moment_us(since, "--since"),
        until_us=_moment_us(until, "--until"),
    )


def _moment_us(text: str | None, option: str) -> int:
    if text is None:
        return 0
    ago = _AGO.fullmatch(text)
    try:
        if ago is not None:
            moment = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=int(ago[1]) * _UNIT_S[ago[2]])
        else:
            moment = dt.datetime.fromisoformat(text)
    except (ValueError, OverflowError) as error:
        raise click.UsageError(f"{option}: expected 30m, 24h, 7d or an ISO 8601 time") from error
    found_us = int((moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).timestamp() * US_PER_S)
    if not 0 < found_us <= MAX_SAFE_INTEGER:  # 0 would mean no bound
        raise click.UsageError(f"{option}: {text} is before 1970 or after 2255")
    return found_us
