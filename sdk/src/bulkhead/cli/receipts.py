"""`bulkhead receipt`: what a worker signed about a request, checked long after the session."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bulkhead.cli.console import emit, example, json_option, time_text
from bulkhead.cli.settings import settings_of

if TYPE_CHECKING:
    from bulkhead.protocol.saved import ProvenReceipt

__all__ = ["receipt"]

_US_PER_S = 1_000_000
_file = click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))


@click.group()
def receipt() -> None:
    """Receipts: what a worker signed about a request, kept by `chat --save-receipt` or the SDK."""


@receipt.command(
    "verify",
    epilog=example("bulkhead receipt verify answer.json", "bulkhead receipt verify answer.json --json"),
)
@_file
@click.option(
    "--ticket-issuer",
    "issuers",
    multiple=True,
    help="Fingerprint (SHA-256) of a ticket issuer of then, beside the profile's; repeatable.",
)
@json_option
@click.pass_context
def verify(ctx: click.Context, /, *, file: Path, issuers: tuple[str, ...], as_json: bool) -> None:
    """Verify FILE offline with the profile's own pins, as of the time the receipt names. No server is asked."""
    from bulkhead.client.saved import read_receipt_file
    from bulkhead.client.trust import Trust
    from bulkhead.protocol.saved import verify_saved

    trust = Trust.from_profile(settings_of(ctx).profile())
    saved = read_receipt_file(file)
    anchors = trust.anchors(saved.ticket_issuer, also=issuers)
    proven = verify_saved(saved, tenant=trust.tenant_id, anchors=anchors)
    emit(proven_json(proven), as_json=as_json, text=proven_text(proven))


def proven_json(proven: "ProvenReceipt") -> dict[str, Any]:
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
        "decision": {"record": proven.grant.decision.fields.record_id, "index": proven.grant.decision.index},
        "log": None
        if logged is None
        else {"record": logged.fields.record_id, "index": logged.index, "ts_us": logged.fields.ts_us},
    }


def proven_text(proven: "ProvenReceipt") -> str:
    """Return what was proven, for a person."""
    stated, logged = proven.receipt, proven.logged
    count = "counted by the client too" if proven.counted else "as the worker states; the client counted none"
    lines = [
        f"request    {stated.request_id} (receipt {stated.number} of {stated.session})",
        f"status     {stated.status}{f' {stated.code}' if stated.code else ''}",
        f"time       {time_text(stated.ts_us // _US_PER_S)}, within the life of ticket, keys and evidence",
        f"model      {stated.model} {stated.model_digest.hex()}",
        f"tier       {stated.tier}{' (SIMULATED: proves nothing)' if stated.simulated else ''}",
        f"partition  {stated.partition}",
        f"tokens     {stated.usage.prompt_tokens} + {stated.usage.completion_tokens}, {count}",
        f"decision   record {proven.grant.decision.fields.record_id}, index {proven.grant.decision.index}",
        f"log        {'not asked yet: bulkhead audit prove --receipt FILE' if logged is None else _where(proven)}",
        "verified: signed by the attested key of the worker that the session was granted",
    ]
    return "\n".join(lines)


def _where(proven: "ProvenReceipt") -> str:
    logged = proven.logged
    return "" if logged is None else f"record {logged.fields.record_id}, index {logged.index} of {logged.size}"
