"""`bulkhead audit`: for officers, and for anyone who holds an export and a log key."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from bulkhead.cli.audit_list import list_records
from bulkhead.cli.audit_proofs import write_proof
from bulkhead.cli.audit_tiles import serve_tiles
from bulkhead.cli.audit_verify import verify
from bulkhead.cli.console import emit, example, json_option
from bulkhead.cli.monitor import monitor
from bulkhead.cli.receipts import pins_of_then, prove_receipt
from bulkhead.cli.record_text import proof_text, record_text
from bulkhead.cli.settings import Settings, on_channel, settings_of
from bulkhead.errors import ConfigError, InvalidRequestError

if TYPE_CHECKING:
    from bulkhead.client.transport import Channel

__all__ = ["audit"]

_tenant_option = click.option("--tenant", default="", help="Tenant id, or `platform`; without it the own tenant's log.")
_log_key_option = click.option("--log-key", help="Verifier key (vkey) of the log; without it the profile's log_vkey.")


@click.group()
def audit() -> None:
    """The audit log: who did what, why and where, and the proof of it."""


audit.add_command(list_records)
audit.add_command(monitor)
audit.add_command(verify)
audit.add_command(serve_tiles)


@audit.command("show", epilog=example("bulkhead audit show rec_01h…", "bulkhead audit show 12 --json"))
@click.argument("record")
@_tenant_option
@json_option
@click.pass_context
def show(ctx: click.Context, record: str, *, tenant: str, as_json: bool) -> None:
    """Show RECORD (id or index) in full, as the server gives it; `prove` verifies it."""
    from bulkhead.client.audit import AuditLog
    from bulkhead.transparency import parse_leaf

    receipt = on_channel(ctx, lambda channel: AuditLog(channel).receipt(_key(record), tenant_id=tenant))
    fields = parse_leaf(receipt.leaf)
    emit({"index": receipt.index, "fields": fields}, as_json=as_json, text=record_text(receipt.index, fields))


@audit.command(
    "prove",
    epilog=example(
        "bulkhead audit prove rec_01h…",
        "bulkhead audit prove rec_01h… --format tlog-proof --out rec.tlog-proof",
        "bulkhead audit prove --receipt answer.json --save",
        "bulkhead audit prove --receipt answer.json --tenant-root 5f70bf18a086007016e9…",
    ),
)
@click.argument("record", required=False)
@click.option(
    "--receipt",
    "receipt_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A saved receipt, in place of RECORD: verifies it, and that the log holds it.",
)
@pins_of_then
@click.option("--save", is_flag=True, help="With --receipt: keep the proof in the file.")
@click.option(
    "--format",
    "form",
    type=click.Choice(("text", "tlog-proof")),
    default="text",
    show_default=True,
    help="tlog-proof: write the proof as a C2SP tlog-proof file, which verifies offline.",
)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="With tlog-proof: the file to write.")
@click.option(
    "--wait",
    "wait_s",
    type=click.IntRange(0),
    default=15,
    show_default=True,
    help="With tlog-proof: seconds to wait until a round of the platform's log holds the record.",
)
@_tenant_option
@_log_key_option
@json_option
@click.pass_context
def prove(
    ctx: click.Context,
    /,
    *,
    record: str | None,
    receipt_file: Path | None,
    issuers: tuple[str, ...],
    roots: tuple[str, ...],
    save: bool,
    form: str,
    out: Path | None,
    wait_s: int,
    tenant: str,
    log_key: str | None,
    as_json: bool,
) -> None:
    """Verify with the pinned log key that RECORD (id or index), or a saved receipt, is in the log, and print it."""
    from bulkhead.client.audit import AuditLog

    if (record is None) == (receipt_file is None):
        raise click.UsageError("give RECORD or --receipt FILE")
    if receipt_file is not None:
        prove_receipt(ctx, receipt_file, issuers=issuers, roots=roots, save=save, as_json=as_json)
        return
    if issuers or roots:
        raise click.UsageError("--ticket-issuer and --tenant-root go with --receipt: a record rests on the log's key")
    key, vkey = _key(record or ""), log_key or _pinned(settings_of(ctx))
    if form == "tlog-proof":
        write_proof(ctx, key, vkey=vkey, tenant=tenant, out=out, wait_s=wait_s, as_json=as_json)
        return
    proven = on_channel(ctx, lambda channel: AuditLog(channel).prove(key, vkey=vkey, tenant_id=tenant))
    emit(
        {
            "verified": True,
            "log": vkey.partition("+")[0],
            "index": proven.index,
            "size": proven.size,
            "root": proven.root,
            "leaf_hash": proven.leaf_hash,
            "fields": proven.fields,
        },
        as_json=as_json,
        text=proof_text(proven, vkey),
    )


@audit.command("export", epilog=example("bulkhead audit export log.jsonl && bulkhead audit verify log.jsonl"))
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@_tenant_option
@click.option("--format", "form", type=click.Choice(("jsonl",)), default="jsonl", show_default=True, help="JSON lines.")
@click.option("--first", type=click.IntRange(0), default=0, show_default=True, help="Leave out the records before it.")
@json_option
@click.pass_context
def export(ctx: click.Context, file: Path, *, tenant: str, form: str, first: int, as_json: bool) -> None:
    """Write the whole log, with its checkpoints, to FILE; it verifies offline."""
    del form  # there is one
    size = on_channel(ctx, lambda channel: _export(channel, file, tenant, first))
    emit(
        {"file": str(file), "bytes": size},
        as_json=as_json,
        text=f"wrote {size} bytes to {file}; verify with: bulkhead audit verify {file}",
    )


async def _export(channel: "Channel", file: Path, tenant: str, first: int) -> int:
    """Write to a neighbour first: what lies under the asked name is a whole export or nothing."""
    from contextlib import aclosing

    from bulkhead.client.audit import AuditLog

    partial = file.with_name(f"{file.name}.part")
    size = 0
    try:
        with partial.open("wb") as target:
            async with aclosing(AuditLog(channel).export(tenant_id=tenant, first=first)) as chunks:
                async for chunk in chunks:
                    size += target.write(chunk)
        partial.replace(file)
    except OSError as error:
        raise InvalidRequestError(f"cannot write {partial}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
    return size


def _pinned(settings: Settings) -> str:
    vkey = settings.profile().log_vkey
    if vkey is None:
        raise ConfigError("no log key is pinned: give --log-key, or log_vkey in the profile")
    return vkey


def _key(record: str) -> str | int:
    return int(record) if record.isascii() and record.isdigit() and len(record) < 19 else record
