"""`bulkhead evidence`."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bulkhead.cli.asking import Wanted, kind_of, opened, session_options
from bulkhead.cli.console import EXIT_REFUSED, emit, example, json_option, run, time_text, to_json
from bulkhead.cli.evidence_files import TECHNOLOGIES, EvidenceFiles, parse_time, policy_table, verifier_of
from bulkhead.cli.settings import settings_of
from bulkhead.errors import EvidenceError, InvalidRequestError

if TYPE_CHECKING:
    from bulkhead.client.session import AsyncSession

__all__ = ["evidence"]

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group()
def evidence() -> None:
    """What a worker proves about itself."""


@evidence.command("show", epilog=example("bulkhead evidence show --tier gpu", "bulkhead evidence show --json"))
@session_options
@json_option
@click.pass_context
def show(ctx: click.Context, /, *, as_json: bool, **options: Any) -> None:
    """Open a session, verify its worker, and say what that rests on; nothing is asked of the model."""
    logging.getLogger("bulkhead.client").setLevel(logging.ERROR)  # the text says what the log would
    profile = settings_of(ctx).profile()

    async def work() -> dict[str, Any]:
        async with opened(profile, Wanted(**options), quiet=as_json) as session:
            return _facts(session)

    facts = run(work())
    emit(facts, as_json=as_json, text=_text(facts))


@evidence.command(
    "verify",
    epilog=example(
        "bulkhead evidence verify --type snp report.bin --certs vcek.der --policy trust.toml --nonce 0a1b…",
        "bulkhead evidence verify --type snp report.hex vcek.pem --product milan --nonce 00 --at 2026-03-01 --json",
    ),
)
@click.option("--type", "technology", type=click.Choice(tuple(TECHNOLOGIES)), required=True, help="Technology.")
@click.argument("evidence_files", metavar="FILE...", nargs=-1, required=True, type=_FILE)
@click.option("--certs", multiple=True, type=_FILE, help="Certificates: DER, PEM, hexadecimal or base64; repeatable.")
@click.option("--collateral", multiple=True, type=_FILE, help="The vendor's signed statements; repeatable.")
@click.option("--crl", multiple=True, type=_FILE, help="Revocation list, any encoding; repeatable.")
@click.option("--rim", multiple=True, type=_FILE, help="Reference manifest; repeatable.")
@click.option("--product", default="", help="Product, for evidence that does not name it.")
@click.option("--policy", type=_FILE, help="Trust policy (TOML); without it the strict defaults, which name no guest.")
@click.option("--nonce", required=True, help="What the evidence must answer, hexadecimal; short ones fill with zeros.")
@click.option("--at", help="Time of verification: 2026-03-01, 2026-03-01T12:00:00Z or @seconds; without it now.")
@json_option
@click.pass_context
def verify(
    ctx: click.Context, /, *, technology: str, policy: Path | None, nonce: str, at: str | None, as_json: bool,
    **options: Any,
) -> None:  # fmt: skip
    """Verify hardware evidence in files, here and offline, against a trust policy: nothing is fetched."""
    files = EvidenceFiles(
        evidence=options["evidence_files"],
        certificates=options["certs"],
        collateral=options["collateral"],
        crls=options["crl"],
        rims=options["rim"],
        product=options["product"],
        policy=policy_table(policy, technology),
        nonce=_nonce(nonce),
        now_s=parse_time(at),
    )
    try:
        facts = {"verified": True, "type": technology, **verifier_of(technology)(files)}
    except EvidenceError as error:
        if not as_json:
            raise
        from bulkhead.attestation.obligations import obligation_of  # cryptography: not for --help

        failure = {"verified": False, "type": technology, "code": error.code, "message": error.message}
        emit({**failure, "obligation": obligation_of(error)}, as_json=True, text="")
        ctx.exit(EXIT_REFUSED)
    emit(facts, as_json=as_json, text="\n".join(f"{name:20} {_cell(value)}" for name, value in to_json(facts).items()))


def _nonce(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise InvalidRequestError("--nonce must be hexadecimal") from error


def _cell(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    return ", ".join(str(item) for item in value) if isinstance(value, list) else str(value)


def _facts(session: "AsyncSession") -> dict[str, Any]:
    from hashlib import sha256

    grant = session.link.grant
    descriptor = grant.worker.descriptor
    return {
        "kind": kind_of(session),
        "verified": not grant.simulated,
        "simulated": grant.simulated,
        "tier": grant.worker.tier,
        "tenant": descriptor.tenant,
        "session": session.session_id,
        "partition": descriptor.partition,
        "region": descriptor.region,
        "rack": descriptor.rack,
        "tray": descriptor.tray,
        "agent": descriptor.agent,
        "gpus": descriptor.gpus,
        "memory_mib": descriptor.memory_mib,
        "model": descriptor.model,
        "model_digest": descriptor.model_digest,
        "software": descriptor.software,
        "nonce": session.link.nonce,
        "evidence_digest": grant.worker.evidence_digest,
        "keyset_digest": grant.keyset.key_id,
        "tls_certificate_sha256": sha256(grant.worker_certificate).hexdigest(),
        "ticket_issuer_sha256": sha256(session.link.received.ticket_issuer).hexdigest(),
        "not_after_s": grant.worker.not_after_s,
        "ticket_expires_s": grant.claims.expires_at_s,
        "decision": {
            "record": grant.decision.fields.record_id,
            "index": grant.decision.index,
            "log_size": grant.decision.size,
            "policy_digest": grant.policy_digest,
        },
    }


_RESTS_ON = {
    "hardware": "the hardware vendor's keys and the measured software",
    "operator": "the operator's evidence key, pinned in the trust policy: the operator is trusted",
    "simulated": "NOTHING: every part below is what a simulator says; accepted in development mode only",
}


def _text(facts: dict[str, Any]) -> str:
    decision = facts["decision"]
    return "\n".join(
        (
            f"evidence     {facts['kind'].upper() if facts['simulated'] else facts['kind']}",
            f"rests on     {_RESTS_ON[facts['kind']]}",
            f"tier         {facts['tier'].value}{' (SIMULATED)' if facts['simulated'] else ''}",
            f"partition    {facts['partition']} of tenant {facts['tenant']}",
            f"where        {facts['region']}, rack {facts['rack']}, tray {facts['tray']} (agent {facts['agent']})",
            f"devices      {', '.join(facts['gpus']) or 'none'}; {facts['memory_mib']} MiB",
            f"model        {facts['model']}, digest {facts['model_digest'].hex()}",
            f"software     {facts['software']}",
            f"fresh        answers this process's nonce {facts['nonce'].hex()[:16]}…",
            f"keys         keyset {facts['keyset_digest'].hex()}",
            f"             TLS certificate {facts['tls_certificate_sha256']}",
            f"valid until  {time_text(facts['not_after_s'])}; ticket until {time_text(facts['ticket_expires_s'])}",
            f"decision     {decision['record']}: index {decision['index']} of {decision['log_size']} in the pinned log",
            f"             policy bundle {decision['policy_digest'].hex()}",
        )
    )
