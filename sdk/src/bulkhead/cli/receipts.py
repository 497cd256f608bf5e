"""`bulkhead receipt`: what a worker signed about a request, checked long after the session."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from bulkhead.cli.console import compose, emit, example, json_option, time_text
from bulkhead.cli.settings import on_channel, settings_of
from bulkhead.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bulkhead.client.trust import Trust
    from bulkhead.protocol.saved import ProvenReceipt, PublicPins, SavedReceipt
    from bulkhead.transparency import LeafFields, ReceiptBatch, UsageReport
    from bulkhead.transparency.tlog_proof import ProvenRecord

__all__ = ["pins_of_then", "prove_receipt", "receipt"]

_US_PER_S: Final = 1_000_000
_file = click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
_pins_of_then = (
    click.option(
        "--ticket-issuer",
        "issuers",
        multiple=True,
        help="Fingerprint (SHA-256) of a ticket issuer of then, beside the profile's; repeatable.",
    ),
    click.option(
        "--tenant-root",
        "roots",
        multiple=True,
        help="Fingerprint (SHA-256) of the tenant's root of then, beside the profile's; repeatable.",
    ),
)


def pins_of_then(function: Any) -> Any:
    """Add the options that name what receipts from before a change rest on, beside what the profile pins now."""
    return compose(_pins_of_then, function)


@click.group()
def receipt() -> None:
    """Receipts: what a worker signed about a request, kept by `chat --save-receipt` or the SDK."""


@receipt.command(
    "verify",
    epilog=example("bulkhead receipt verify answer.json", "bulkhead receipt verify answer.json --json"),
)
@_file
@pins_of_then
@click.option("--platform-key", help="Verifier key (vkey) of the platform's log: its round in FILE must hold.")
@click.option("--witness-key", "witness_keys", multiple=True, help="Verifier key of a pinned witness; repeatable.")
@click.option("--quorum", type=click.IntRange(0), default=0, help="How many of them must have cosigned that round.")
@json_option
@click.pass_context
def verify(
    ctx: click.Context,
    /,
    *,
    file: Path,
    issuers: tuple[str, ...],
    roots: tuple[str, ...],
    platform_key: str | None,
    witness_keys: tuple[str, ...],
    quorum: int,
    as_json: bool,
) -> None:
    """Verify FILE offline with the profile's own pins, as of the time the receipt names. No server is asked."""
    from bulkhead.protocol.saved import PublicPins
    from bulkhead.transparency.cosignature import Witness

    pins = None
    if platform_key is not None or witness_keys or quorum:
        pins = PublicPins(
            platform_vkey=platform_key, witnesses=tuple(map(Witness.from_vkey, witness_keys)), quorum=quorum
        )
    proven = _verified(ctx, file, issuers, pins, roots=roots)
    emit(_proven_json(proven), as_json=as_json, text=_proven_text(proven))


@receipt.command(
    "usage",
    epilog=example("bulkhead audit export log.jsonl && bulkhead receipt usage --export log.jsonl receipts/*.json"),
)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--export",
    "export_file",
    required=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="An export of the tenant's log, made after the receipts.",
)
@pins_of_then
@json_option
@click.pass_context
def usage(
    ctx: click.Context,
    /,
    *,
    files: tuple[Path, ...],
    export_file: Path,
    issuers: tuple[str, ...],
    roots: tuple[str, ...],
    as_json: bool,
) -> None:
    """Hold the usage in the log against all saved receipts of the sessions: usage without a receipt is refused.

    Offline: receipts and export are verified with the profile's own pins. FILES must be every receipt of their
    sessions; sessions of which none is given are not looked at.
    """
    proven = [_verified(ctx, file, issuers, roots=roots) for file in files]
    sessions = {item.receipt.session for item in proven}
    report = _check_usage(proven, _batches(ctx, export_file, sessions))
    text = (
        f"{report.records} records over {report.receipts} receipts of {len(sessions)} sessions:"
        f" {report.prompt_tokens} + {report.completion_tokens} tokens, each shown by a receipt"
    )
    if report.unrecorded:
        text += f"\n{len(report.unrecorded)} receipts are in no record of the export"
    if report.untold:
        text += f"\n{len(report.untold)} receipts' usage is in no session's total of the export"
    emit({"verified": True, "sessions": sorted(sessions), "report": report}, as_json=as_json, text=text)


def prove_receipt(
    ctx: click.Context,
    file: Path,
    *,
    issuers: tuple[str, ...],
    roots: tuple[str, ...],
    save: bool,
    as_json: bool,
) -> None:
    """Verify a saved receipt, fetch where the log holds it, verify that, and print both."""
    from bulkhead.client.audit import AuditLog
    from bulkhead.client.saved import read_receipt_file, write_receipt

    before = _verified(ctx, file, issuers, roots=roots)
    logged = on_channel(ctx, lambda channel: AuditLog(channel).receipt_proof(before.receipt, before.digest))
    whole = read_receipt_file(file).with_log(logged)
    proven = _verify(ctx, whole, issuers, roots=roots)
    if save:
        write_receipt(file, whole.encode())
    emit(_proven_json(proven), as_json=as_json, text=_proven_text(proven))


def _check_usage(proven: "Sequence[ProvenReceipt]", batches: "Sequence[ReceiptBatch]") -> "UsageReport":
    """Return the report over verified receipts (:func:`bulkhead.transparency.check_usage`)."""
    from bulkhead.sealing import PaddingMode
    from bulkhead.transparency import ReceiptEntry, check_usage

    entries = [
        ReceiptEntry(
            session=item.receipt.session,
            partition=item.receipt.partition,
            number=item.receipt.number,
            digest=item.digest,
            prompt_tokens=item.receipt.usage.prompt_tokens,
            completion_tokens=item.receipt.usage.completion_tokens,
            in_total=item.grant.claims.padding is PaddingMode.STRICT,
        )
        for item in proven
    ]
    return check_usage(batches, entries)


def _batches(ctx: click.Context, export_file: Path, sessions: set[str]) -> "list[ReceiptBatch]":
    """Return the batches of the sessions in a verified export."""
    from bulkhead.transparency import ReceiptBatch
    from bulkhead.transparency.batches import RECEIPTS_ACTION
    from bulkhead.transparency.export import verify_export

    found: list[LeafFields] = []

    def take(record: "LeafFields") -> None:
        if record.action == RECEIPTS_ACTION and record.session in sessions:
            found.append(record)

    trust = _trust(ctx)
    try:
        with export_file.open("rb") as stream:
            verify_export(stream, vkeys=(trust.log_vkey,), on_record=take)
    except OSError as error:
        raise InvalidRequestError(f"cannot read {export_file}: {error.strerror}") from error
    return [ReceiptBatch.of(record) for record in found]


def _trust(ctx: click.Context) -> "Trust":
    from bulkhead.client.trust import Trust

    return Trust.from_profile(settings_of(ctx).profile())


def _verified(
    ctx: click.Context,
    file: Path,
    issuers: tuple[str, ...],
    pins: "PublicPins | None" = None,
    *,
    roots: tuple[str, ...] = (),
) -> "ProvenReceipt":
    from bulkhead.client.saved import read_receipt_file

    return _verify(ctx, read_receipt_file(file), issuers, pins, roots=roots)


def _verify(
    ctx: click.Context,
    saved: "SavedReceipt",
    issuers: tuple[str, ...],
    pins: "PublicPins | None" = None,
    *,
    roots: tuple[str, ...] = (),
) -> "ProvenReceipt":
    from bulkhead.client.config import fingerprint_of
    from bulkhead.protocol.saved import verify_saved

    trust = _trust(ctx)
    anchors = trust.anchors(saved.ticket_issuer, also=issuers, also_roots=map(fingerprint_of, roots))
    return verify_saved(saved, tenant=trust.tenant_id, anchors=anchors, pins=pins)


def _proven_json(proven: "ProvenReceipt") -> dict[str, Any]:
    """Return what was proven, for programs."""
    stated, logged = proven.receipt, proven.logged
    return {
        "verified": True,
        "digest": proven.digest,
        "request_id": stated.request_id,
        "number": stated.number,
        "session": stated.session,
        "tenant": stated.tenant,
        "partition": stated.partition,
        "model": stated.model,
        "model_digest": stated.model_digest,
        "tier": stated.tier,
        "simulated": stated.simulated,
        "status": stated.status,
        "code": stated.code,
        "usage": stated.usage,
        "counted_by_client": proven.counted,
        "ts_us": stated.ts_us,
        "keyset_digest": stated.keyset_digest,
        "evidence_digest": stated.evidence_digest,
        "tenant_root": proven.grant.worker.descriptor.tenant_root,
        "decision": {"record": proven.grant.decision.fields.record_id, "index": proven.grant.decision.index},
        "log": None
        if logged is None
        else {
            "record": logged.leaf.fields.record_id,
            "index": logged.leaf.index,
            "ts_us": logged.leaf.fields.ts_us,
            "round": None if logged.round is None else {"round": logged.round.round, "ts_us": logged.round.ts_us},
            "witnesses": dict(logged.witnesses),
        },
    }


def _proven_text(proven: "ProvenReceipt") -> str:
    """Return what was proven, for a person."""
    stated, logged = proven.receipt, proven.logged
    count = "counted by the client too" if proven.counted else "as the worker states; the client counted none"
    lines = [
        f"request    {stated.request_id} (receipt {stated.number} of {stated.session})",
        f"status     {stated.status}{f' {stated.code}' if stated.code else ''}",
        f"time       {time_text(stated.ts_us // _US_PER_S)}, within the life of ticket, keys and evidence",
        f"model      {stated.model} {stated.model_digest.hex()}",
        f"tier       {stated.tier.value}{' (SIMULATED: proves nothing)' if stated.simulated else ''}",
        f"partition  {stated.partition}",
        f"root       {_root_text(proven)}",
        f"tokens     {stated.usage.prompt_tokens} + {stated.usage.completion_tokens}, {count}",
        f"decision   record {proven.grant.decision.fields.record_id}, index {proven.grant.decision.index}",
        f"log        {'not asked yet: bulkhead audit prove --receipt FILE' if logged is None else _where(logged)}",
        "verified: signed by the attested key of the worker that the session was granted",
    ]
    return "\n".join(lines)


def _root_text(proven: "ProvenReceipt") -> str:
    named = proven.grant.worker.descriptor.tenant_root
    if named is None:
        return "none: whoever issued tickets could name session keys"
    return f"{named.hex()}: the worker took session keys that it certified, and no others"


def _where(logged: "ProvenRecord") -> str:
    leaf, recorded = logged.leaf, time_text(logged.leaf.fields.ts_us // _US_PER_S)
    text = f"record {leaf.fields.record_id}, index {leaf.index} of {leaf.size}, {recorded}"
    if logged.round is not None:
        text += f"; in round {logged.round.round} of the platform's log"
    for name, time_s in logged.witnesses:
        text += f", cosigned by {name} {time_text(time_s)}"
    return text
