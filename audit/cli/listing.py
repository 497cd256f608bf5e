"""`list`, `tail` and `show`: records, each compared with its leaf."""

import json
import time
from pathlib import Path
from typing import Any, Final

import click

from audit.cli.options import database_option, find_log, moment_us, reading, record_json
from audit.export import check_leaf
from audit.log.listing import list_records as listed
from audit.model import MAX_PAGE, ListedRecord, LogInfo, Order, Page, RecordFilter, RecordPage
from bulkhead.cli.console import emit, emit_rows, example, json_option, note, time_text
from bulkhead.encoding import JsonObject
from bulkhead.errors import NotFoundError
from bulkhead.ids import RECORD, check_id

__all__ = ["list_records", "show", "tail"]

_FOLLOW_S: Final = 1.0
_MOMENT: Final = click.DateTime(formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d %H:%M:%S"])


def _filters(function: Any) -> Any:
    for option in reversed(
        (
            click.option("--tenant", default="", help="Tenant id, or 'platform' for the platform's own log."),
            click.option("--log", "origin", default="", help="A log by its origin."),
            click.option("--action", default="", help="An action, or a group of them ending in '.' (partition.)."),
            click.option("--decision", type=click.Choice(["allow", "deny", "error"]), default=None),
            click.option("--session", default="", help="Session id."),
            click.option("--subject", default="", help="Subject id."),
            click.option("--since", type=_MOMENT, callback=moment_us, help="From this time on, UTC."),
            click.option("--until", type=_MOMENT, callback=moment_us, help="Before this time, UTC."),
            click.option("--limit", type=click.IntRange(1, MAX_PAGE), default=50, show_default=True),
        )
    ):
        function = option(function)
    return database_option(json_option(function))


@click.command(
    "list",
    epilog=example(
        "bulkhead-audit list --db audit.db --action decision --decision deny --since 2026-01-01",
        "bulkhead-audit list --db audit.db --tenant tenant_01h… --json",
    ),
)
@_filters
@click.option("--after", default="", help="Continue a list: the token that the page before ended with.")
@click.option("--oldest-first", is_flag=True, help="Begin with the oldest record.")
def list_records(database: Path, *, as_json: bool, limit: int, after: str, oldest_first: bool, **chosen: Any) -> None:
    """List records, newest first; each is compared with its leaf."""
    order = Order.OLDEST_FIRST if oldest_first else Order.NEWEST_FIRST
    with reading(database) as reader:
        logs = reader.logs()
        page = listed(reader, _query(logs, **chosen), Page(limit=limit, after=after, order=order))
        if as_json:
            emit(_page_json(logs, page), as_json=True, text="")
            return
        _print(logs, page.records)
        following = f" Next page: --after {page.next}" if page.next else ""
        note(f"{page.indexed:,} of {page.size:,} records indexed.{following}")


@click.command("tail", epilog=example("bulkhead-audit tail --db audit.db --follow"))
@_filters
@click.option("--follow", is_flag=True, help="Wait for further records until interrupted.")
def tail(database: Path, *, as_json: bool, limit: int, follow: bool, **chosen: Any) -> None:
    """Show the newest records, oldest of them first, and with --follow those that come."""
    with reading(database) as reader:
        query = _query(reader.logs(), **chosen)
        page = listed(reader, query, Page(limit=limit))
        _lines(reader.logs(), page.records[::-1], as_json=as_json)
        mark = _end(query, page)
        while follow:
            time.sleep(_FOLLOW_S)
            page = listed(reader, query, Page(limit=MAX_PAGE, after=mark, order=Order.OLDEST_FIRST))
            _lines(reader.logs(), page.records, as_json=as_json)
            mark = page.next or _end(query, page)


@click.command("show", epilog=example("bulkhead-audit show --db audit.db rec_01h…"))
@database_option
@click.argument("record_id")
@json_option
def show(database: Path, record_id: str, *, as_json: bool) -> None:
    """Show one record in full."""
    check_id(record_id, RECORD)
    with reading(database) as reader:
        stored = reader.find(record_id)
        if stored is None:
            raise NotFoundError(f"there is no record {record_id}")
        origin = {log.log_id: log.origin for log in reader.logs()}.get(stored.log_id, "")
        fields = check_leaf(origin, stored.index, stored)
    value = record_json(origin, stored.index, fields, stored.leaf)
    emit(value, as_json=as_json, text=json.dumps(value, indent=2, ensure_ascii=False))


def _query(
    logs: tuple[LogInfo, ...],
    *,
    tenant: str,
    origin: str,
    action: str,
    decision: str | None,
    session: str,
    subject: str,
    since: int | None,
    until: int | None,
) -> RecordFilter:
    log = find_log(logs, tenant=tenant, origin=origin)
    return RecordFilter(
        log_id=None if log is None else log.log_id,
        action=action,
        decision=decision or "",
        session=session,
        subject=subject,
        since_us=since,
        until_us=until,
    )


def _end(query: RecordFilter, page: RecordPage) -> str:
    """Return the page token behind everything that is indexed."""
    if query.log_id is None:
        return f"p{page.indexed}"
    return f"i{page.indexed - 1}" if page.indexed else ""


def _page_json(logs: tuple[LogInfo, ...], page: RecordPage) -> JsonObject:
    origins = {log.log_id: log.origin for log in logs}
    return {
        "records": [
            record_json(origins.get(item.log_id, ""), item.index, item.fields, item.leaf) for item in page.records
        ],
        "next": page.next,
        "indexed": page.indexed,
        "size": page.size,
    }


def _lines(logs: tuple[LogInfo, ...], records: tuple[ListedRecord, ...], *, as_json: bool) -> None:
    """Print records as they come, one line each."""
    names = {log.log_id: log for log in logs}
    for item in records:
        log = names[item.log_id]
        if as_json:
            click.echo(json.dumps(record_json(log.origin, item.index, item.fields, item.leaf), ensure_ascii=False))
            continue
        fields = item.fields
        codes = ",".join(reason["code"] for reason in fields.reasons)
        parts = (log.tenant or "platform", item.index, fields.action, fields.decision, codes, fields.session)
        click.echo(f"{time_text(fields.ts_us / 1_000_000)}  {'  '.join(str(part) for part in parts if part != '')}")


def _print(logs: tuple[LogInfo, ...], records: tuple[ListedRecord, ...]) -> None:
    tenants = {log.log_id: log.tenant or "platform" for log in logs}
    emit_rows(
        records,
        as_json=False,
        columns={
            "time": lambda item: time_text(item.fields.ts_us / 1_000_000),
            "tenant": lambda item: tenants.get(item.log_id, "?"),
            "index": lambda item: item.index,
            "action": lambda item: item.fields.action,
            "decision": lambda item: item.fields.decision,
            "reasons": lambda item: tuple(reason["code"] for reason in item.fields.reasons),
            "subject": lambda item: item.fields.subject,
            "model": lambda item: item.fields.model,
            "tier": lambda item: item.fields.tier,
            "partition": lambda item: item.fields.partition,
            "session": lambda item: item.fields.session,
        },
        empty="No record matches.",
    )
