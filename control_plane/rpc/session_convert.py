"""Messages of ``bulkhead.v1`` sessions to values and back: the only place where the two meet."""

from typing import Final

from bulkhead.errors import InvalidRequestError
from bulkhead.transparency import AuditReceipt
from bulkhead.v1 import audit_pb2, common_pb2, session_pb2
from control_plane.domain.sessions import OpenRequest, Session
from control_plane.domain.tiers import Tier
from control_plane.services.sessions import Grant, Phase

__all__ = [
    "grant_message",
    "open_request",
    "progress_message",
    "receipt_message",
    "session_message",
    "tier_number",
    "tier_of",
]

US_PER_S: Final = 1_000_000
DEFAULT_PADDING: Final = "default"
MAX_DATA_CLASSES: Final = 64  # before they are sorted; the domain allows fewer

_PHASES: Final = {
    Phase.DECIDED: session_pb2.OPEN_PHASE_DECIDED,
    Phase.PLACING: session_pb2.OPEN_PHASE_PLACING,
    Phase.CREATING: session_pb2.OPEN_PHASE_CREATING,
    Phase.LOADING: session_pb2.OPEN_PHASE_LOADING,
    Phase.ATTESTING: session_pb2.OPEN_PHASE_ATTESTING,
}
_KINDS: Final = {
    "simulated": common_pb2.EVIDENCE_KIND_SIMULATED,
    "operator": common_pb2.EVIDENCE_KIND_OPERATOR,
    "hardware": common_pb2.EVIDENCE_KIND_HARDWARE,
}


def open_request(message: session_pb2.OpenSessionRequest) -> OpenRequest:
    """Return the request, in bounds.

    Raises:
        InvalidRequestError: a field is malformed or out of bounds.
    """
    if len(message.data_classes) > MAX_DATA_CLASSES:
        raise InvalidRequestError(f"data_classes: at most {MAX_DATA_CLASSES}")
    return OpenRequest(
        request_id=message.request_id,
        model=message.model,
        session_public_key=message.session_public_key,
        nonce=message.nonce,
        minimum_tier=tier_of(message.minimum_tier),
        region=message.region,
        purpose=message.purpose,
        data_classes=tuple(sorted(set(message.data_classes))),
        max_output_tokens=message.max_output_tokens,
        padding=message.padding or DEFAULT_PADDING,
    )


def progress_message(phase: Phase, text: str) -> session_pb2.OpenSessionEvent:
    """Return an event that says how far an open is."""
    return session_pb2.OpenSessionEvent(progress=session_pb2.OpenProgress(phase=_PHASES[phase], message=text))


def grant_message(grant: Grant) -> session_pb2.SessionGrant:
    """Return a grant."""
    worker = grant.worker
    return session_pb2.SessionGrant(
        session_id=grant.session.session_id,
        tenant_id=grant.session.tenant_id,
        partition_id=grant.partition_id,
        model=grant.session.model,
        tier=tier_number(grant.tier),
        evidence_kind=_KINDS[worker.kind.value],
        simulated=worker.simulated,
        ticket=grant.ticket,
        endpoint=session_pb2.Endpoint(address=worker.ingress_address, authority=worker.authority),
        worker_certificate=worker.certificate,
        keyset=worker.keyset.encoded,
        evidence=worker.evidence,
        decision=receipt_message(grant.decision, grant.origin),
        model_digest=grant.model_digest,
        policy_digest=grant.policy_digest,
        expires_unix_s=grant.expires_s,
        obligations=grant.obligations,
        padding=grant.padding,
        max_output_tokens=grant.max_output_tokens,
        ticket_issuer=grant.ticket_issuer,
    )


def receipt_message(receipt: AuditReceipt, origin: str) -> audit_pb2.AuditReceipt:
    """Return a record with its inclusion proof."""
    return audit_pb2.AuditReceipt(
        origin=origin,
        index=receipt.index,
        leaf=receipt.leaf,
        proof=receipt.proof,
        checkpoint=receipt.checkpoint,
    )


def session_message(session: Session) -> session_pb2.Session:
    """Return a session as its tenant may see it."""
    return session_pb2.Session(
        session_id=session.session_id,
        tenant_id=session.tenant_id,
        model=session.model,
        tier=tier_number(session.tier),
        simulated=session.simulated,
        state=session.state.value,
        partition_id=session.partition_id,
        purpose=session.purpose,
        created_unix_s=session.created_us // US_PER_S,
        expires_unix_s=session.expires_us // US_PER_S,
        request_id=session.request_id,
    )


def tier_number(tier: Tier | None) -> common_pb2.Tier.ValueType:
    """Return a tier on the wire; None is unspecified."""
    return common_pb2.TIER_UNSPECIFIED if tier is None else common_pb2.Tier.Value(f"TIER_{tier.name}")


def tier_of(number: "common_pb2.Tier.ValueType") -> Tier | None:
    """Return a tier from the wire; unspecified is None.

    Raises:
        InvalidRequestError: not a tier that this build knows.
    """
    if number == common_pb2.TIER_UNSPECIFIED:
        return None
    if number not in common_pb2.Tier.values():
        raise InvalidRequestError("minimum_tier: process, mig, gpu or confidential")
    return Tier[common_pb2.Tier.Name(number).removeprefix("TIER_")]
