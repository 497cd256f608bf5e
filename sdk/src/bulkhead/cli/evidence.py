"""`bulkhead evidence`."""

import logging
from typing import TYPE_CHECKING, Any

import click

from bulkhead.cli.asking import Wanted, kind_of, opened, session_options
from bulkhead.cli.console import emit, example, json_option, run, time_text
from bulkhead.cli.evidence_collateral import collateral
from bulkhead.cli.evidence_policy import policy
from bulkhead.cli.evidence_verify import claims, verify
from bulkhead.cli.settings import settings_of

if TYPE_CHECKING:
    from bulkhead.attestation import HardwareClaims
    from bulkhead.client.session import AsyncSession

__all__ = ["evidence"]


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


def _facts(session: "AsyncSession") -> dict[str, Any]:
    from hashlib import sha256

    from bulkhead.attestation import VerifiedWorker

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
        "tenant_root": descriptor.tenant_root,
        "nonce": session.link.nonce,
        "evidence_digest": grant.worker.evidence_digest,
        "keyset_digest": grant.keyset.key_id,
        "tls_certificate_sha256": sha256(grant.worker_certificate).hexdigest(),
        "ticket_issuer_sha256": sha256(session.link.received.ticket_issuer).hexdigest(),
        "hardware": grant.worker.hardware if isinstance(grant.worker, VerifiedWorker) else None,
        "not_after_s": grant.worker.not_after_s,
        "ticket_expires_s": grant.claims.expires_at_s,
        "decision": {
            "record": grant.decision.fields.record_id,
            "index": grant.decision.index,
            "log_size": grant.decision.size,
            "policy_digest": grant.policy_digest,
        },
    }


evidence.add_command(claims)
evidence.add_command(verify)
evidence.add_command(policy)
evidence.add_command(collateral)


_RESTS_ON = {
    "hardware": "the hardware vendor's keys and the measured software",
    "operator": "the operator's evidence key, pinned in the trust policy: the operator is trusted",
    "simulated": "NOTHING: every part below is what a simulator says; accepted in development mode only",
}


def _hardware_lines(claims: "HardwareClaims | None") -> list[str]:
    if claims is None:
        return []
    gpus = (
        f"GPU          {gpu.uuid}: {gpu.product} {gpu.device_serial:x}, driver {gpu.driver_version}, VBIOS "
        f"{gpu.vbios_version}, mode {gpu.mode}"
        for gpu in claims.gpus
    )
    return [
        f"processor    {claims.technology.value} on {claims.machine.hex()}",
        f"guest        measurement {claims.measurement.hex()}",
        *gpus,
        f"attachment   of GPUs to processor: shown by {claims.gpu_attachment}, not by hardware",
    ]


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
            f"tenant root  {facts['tenant_root'].hex() if facts['tenant_root'] else 'none: any ticket names a key'}",
            *_hardware_lines(facts["hardware"]),
            f"fresh        answers this process's nonce {facts['nonce'].hex()[:16]}…",
            f"keys         keyset {facts['keyset_digest'].hex()}",
            f"             TLS certificate {facts['tls_certificate_sha256']}",
            f"valid until  {time_text(facts['not_after_s'])}; ticket until {time_text(facts['ticket_expires_s'])}",
            f"decision     {decision['record']}: index {decision['index']} of {decision['log_size']} in the pinned log",
            f"             policy bundle {decision['policy_digest'].hex()}",
        )
    )
