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
_READING: Final = "audit.read"
PATIENCE: Final = 60  # intervals until a log is read that may have grown by others' readings only
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
    """Show the newest records, then those that come.

    Each reading is itself a record of the log, so that it is read only when it has grown by more than readings explain:
    the last ones here, and as many of others who follow it as came the last time, if nothing else did. Growth that may
    be theirs alone is read after a while none the less.
    """
    from bulkhead.client.audit import AuditLog

    following = _Following(AuditLog(channel), wanted)
    await following.look()
    for record in await following.newest(limit):
        _line(record, as_json=as_json)
    while True:
        await asyncio.sleep(interval_s)
        try:
            came = await following.further() if await following.look() else []
        except UnavailableError as error:  # whoever follows waits for a server that is away
            note(one_line(error))
            continue
        for record in came:
            _line(record, as_json=as_json)


class _Following:
    """Where somebody who follows a log stands.

    Args:
        log: read through here only.
        wanted: which records, of one log.
    """

    def __init__(self, log: "AuditLog", wanted: "RecordFilter") -> None:
        self._log = log
        self._wanted = wanted
        self._size = 0  # of the log, when it was last looked at
        self._read = 0  # all of it below this was read; what the index did not hold then is still to come
        self._pages = 0  # of the last reading: so many records it made
        self._readings = 0  # that the log may grow by without anything else having happened
        self._looks = 0  # since the last reading

    async def look(self) -> bool:
        """Return whether the log should be read."""
        from bulkhead.transparency.checkpoint import Checkpoint
        from bulkhead.transparency.note import split_note

        signed, _ = await self._log.checkpoint(tenant_id=self._wanted.tenant_id)
        self._size = Checkpoint.parse(split_note(signed)[0]).size
        self._looks += 1
        explained = self._readings if self._looks < PATIENCE else self._pages
        return self._size > self._read + explained

    async def newest(self, limit: int) -> "list[AuditRecord]":
        """Return the newest records, oldest first."""
        return (await self._reading(limit, after=None, oldest_first=False))[::-1]

    async def further(self) -> "list[AuditRecord]":
        """Return what came since."""
        came = await self._reading(self._size, after=self._read - 1 if self._read else None, oldest_first=True)
        if came and all(record.fields.action == _READING for record in came):
            self._readings = max(self._pages, len(came))
        return came

    async def _reading(self, limit: int, *, after: int | None, oldest_first: bool) -> "list[AuditRecord]":
        pages, indexed = 0, self._size

        def on_page(held: int, _size: int) -> None:
            nonlocal pages, indexed
            pages, indexed = pages + 1, min(indexed, held)

        found = await _take(self._log, self._wanted, limit, after=after, oldest_first=oldest_first, on_page=on_page)
        self._read = max([self._read, indexed, *(record.index + 1 for record in found)])
        self._pages = self._readings = max(pages, 1)
        self._looks = 0
        return found


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
