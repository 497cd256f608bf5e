"""What a client verifies before its first prompt (docs/protocol.md section 4).

The order is fixed: the decision's audit record, the worker's evidence, its keyset and certificate, the descriptor,
the ticket. Nothing of an offer is used before the step that verifies it.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bulkhead.attestation import (
    AppraisedWorker,
    EvidenceKind,
    HardwareVerifier,
    SimulatedWorker,
    Tier,
    TrustPolicy,
    appraise,
)
from bulkhead.errors import (
    DowngradeError,
    EvidenceBindingError,
    EvidenceError,
    EvidenceExpiredError,
    EvidencePolicyError,
    RecordError,
    TenantRootMismatchError,
    TenantRootRequiredError,
    TicketError,
)
from bulkhead.protocol.context import session_context
from bulkhead.protocol.tickets import TicketClaims, TicketVerifier
from bulkhead.sealing import Keyset, PaddingMode
from bulkhead.transparency.leaf import LeafFields
from bulkhead.transparency.receipt import AuditReceipt, VerifiedLeaf, verify_receipt

__all__ = [
    "Expectation",
    "SessionOffer",
    "TrustAnchors",
    "VerifiedGrant",
    "check_tenant_root",
    "verify_grant",
    "verify_renewal",
]

MAX_CERTIFICATE_BYTES: Final = 4_096  # a worker's has about 400
_DECISION: Final = "decision"
_ALLOW: Final = "allow"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOffer:
    """What the control plane hands out for a session; nothing of it is trusted.

    Attributes:
        session: session id.
        ticket: compact JWT.
        authority: the worker's name at its ingress.
        worker_certificate: X.509 certificate, DER.
        evidence: evidence container.
        decision: audit receipt of the decision.
        model_digest: SHA-256 of the model's manifest.
        policy_digest: SHA-256 of the policy bundle that decided.
    """

    session: str
    ticket: str
    authority: str
    worker_certificate: bytes
    evidence: bytes
    decision: AuditReceipt
    model_digest: bytes
    policy_digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What the client asked for and knows by itself.

    Attributes:
        tenant: the client's tenant id.
        request_id: of its OpenSession.
        model: model name it asked for.
        minimum_tier: the weakest tier it accepts; the trust policy may demand more.
        nonce: the 32 bytes it made for this open or renewal.
        cnf: raw Ed25519 public key (32 bytes) of its session key.
        model_digest: pinned digest of the model, or None to take the one that evidence shows.
        padding: the weakest padding it accepts; policy may demand more.
    """

    tenant: str
    request_id: str
    model: str
    minimum_tier: Tier
    nonce: bytes
    cnf: bytes
    model_digest: bytes | None = None
    padding: PaddingMode = PaddingMode.OFF


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustAnchors:
    """The client's own configuration, from no server.

    Attributes:
        log_vkey: C2SP verifier key of the tenant's audit log; its name is the log's origin.
        ticket_issuers: raw Ed25519 public keys (32 bytes) of trusted ticket issuers.
        trust_policy: which evidence is accepted.
        development_mode: whether simulated evidence may be accepted.
        tenant_roots: fingerprints (32 bytes each) of the tenant's own roots, one of which the worker must name; none
            for a tenant without.
        hardware: verifies hardware evidence, with the collateral at hand; None has none.
    """

    log_vkey: str
    ticket_issuers: Sequence[bytes]
    trust_policy: TrustPolicy
    development_mode: bool = False
    tenant_roots: Sequence[bytes] = ()
    hardware: HardwareVerifier | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedGrant:
    """A session that may be used until :attr:`not_after_s`. Made by :func:`verify_grant`; never persisted.

    Attributes:
        ticket: the ticket to send.
        claims: its verified claims.
        worker: the appraised worker; a :class:`SimulatedWorker` proves nothing.
        keyset: the worker's keys.
        worker_certificate: DER; TLS must accept this certificate and no other.
        decision: the verified audit record.
        policy_digest: of the bundle that decided.
        not_after_s: Unix seconds; the earliest end among evidence, keys and ticket.
    """

    ticket: str
    claims: TicketClaims
    worker: AppraisedWorker
    keyset: Keyset
    worker_certificate: bytes
    decision: VerifiedLeaf
    policy_digest: bytes
    not_after_s: int

    @property
    def simulated(self) -> bool:
        """Whether the worker is simulated."""
        return isinstance(self.worker, SimulatedWorker)


def verify_grant(offer: SessionOffer, *, expectation: Expectation, anchors: TrustAnchors, now_s: int) -> VerifiedGrant:
    """Verify everything that the control plane offered for a session.

    Obligations:
        1. The decision is in the tenant's log: an allow for this tenant, request, session, model and policy bundle,
           at a tier no weaker than asked for.
        2. The evidence holds for this nonce and the session context made of verified values.
        3. The keyset is sound and alive, and the TLS certificate's key stands in it.
        4. The descriptor names this tenant, model and at least the decision's tier, a ticket issuer of ours, and this
           tenant's root if it has one (:func:`check_tenant_root`).
        5. The ticket is from that issuer, for this client's session key and exactly the worker verified, and pads
           no less than was asked for.

    The caller checks: that later checkpoints of the log are consistent with this one; it verifies again before
    ``not_after_s``, and pins the certificate in TLS.

    Args:
        offer: from the control plane (untrusted).
        expectation: the client's own request.
        anchors: the client's own configuration.
        now_s: Unix seconds of the client's clock.

    Raises:
        ProofError: 1 (:class:`RecordError` where the record is in the log and speaks of something else).
        EvidenceError: 2 to 4 (:class:`DowngradeError` for a weaker tier or padding than asked for, in 1 too).
        TenantRootRequiredError: 4, where a root is needed and the tenant has none.
        TicketError: 5.
    """
    origin = anchors.log_vkey.partition("+")[0]
    decision = verify_receipt(offer.decision, vkey=anchors.log_vkey, origin=origin)
    decided = _check_decision(decision.fields, offer, expectation)  # 1
    context = session_context(
        tenant=expectation.tenant,
        session=offer.session,
        cnf=expectation.cnf,
        model_digest=offer.model_digest,
        decision_leaf_hash=decision.leaf_hash,
        policy_digest=offer.policy_digest,
    )
    worker = appraise(  # 2
        offer.evidence,
        nonce=expectation.nonce,
        context=context,
        trust_policy=anchors.trust_policy,
        now_s=now_s,
        development_mode=anchors.development_mode,
        hardware=anchors.hardware,
    )
    keyset = _check_keyset(worker, offer.worker_certificate, now_s)  # 3
    _check_descriptor(worker, offer, expectation, minimum_tier=max(decided, expectation.minimum_tier))  # 4
    check_tenant_root(worker, anchors.tenant_roots)  # 4
    verifier = TicketVerifier(issuer_keys=anchors.ticket_issuers)
    if verifier.issuer_fingerprint(offer.ticket) not in worker.descriptor.ticket_issuers:  # 4
        raise EvidenceBindingError("the worker takes tickets of other issuers than the one configured here")
    claims = verifier.verify(offer.ticket, now_s=now_s, audience=offer.authority)
    _check_ticket(claims, offer, expectation, worker, decision)  # 5
    return VerifiedGrant(
        ticket=offer.ticket,
        claims=claims,
        worker=worker,
        keyset=keyset,
        worker_certificate=offer.worker_certificate,
        decision=decision,
        policy_digest=offer.policy_digest,
        not_after_s=min(worker.not_after_s, keyset.not_after_s, claims.expires_at_s),
    )


def verify_renewal(old: VerifiedGrant, new: VerifiedGrant) -> VerifiedGrant:
    """Return ``new``, itself verified, if it continues ``old`` without weakening it.

    Raises:
        DowngradeError: another tenant, session, session key, tenant root or model, a weaker tier or kind of evidence,
            or now simulated.
    """
    before, after = old.claims, new.claims
    same = all(
        getattr(before, name) == getattr(after, name) for name in ("tenant", "session", "cnf", "model", "model_digest")
    )
    same = same and old.worker.descriptor.tenant_root == new.worker.descriptor.tenant_root
    if not same or after.tier < before.tier or _standing(new.worker) < _standing(old.worker):
        raise DowngradeError("the renewal is for another session, or weaker than the session was")
    return new


def _standing(worker: AppraisedWorker) -> int:
    """Return how much a worker's evidence rests on: nothing, the operator, or the hardware's vendor."""
    kind = EvidenceKind.SIMULATED if isinstance(worker, SimulatedWorker) else worker.kind
    return (EvidenceKind.SIMULATED, EvidenceKind.OPERATOR, EvidenceKind.HARDWARE).index(kind)


def _check_decision(leaf: LeafFields, offer: SessionOffer, expectation: Expectation) -> Tier:
    """Return the tier that was decided, if the record is this client's permission."""
    if leaf.action != _DECISION or leaf.decision != _ALLOW:
        raise RecordError("the audit record does not allow a session")
    expected = (
        ("tenant", leaf.tenant, expectation.tenant),
        ("request id", leaf.cause.request_id, expectation.request_id),
        ("session", leaf.session, offer.session),
        ("model", leaf.model, expectation.model),
        ("policy bundle", leaf.bundle, offer.policy_digest.hex()),
    )
    for name, recorded, wanted in expected:
        if recorded != wanted:
            raise RecordError(f"the audit record is of another {name}")
    try:
        tier = Tier(leaf.tier)
    except ValueError as error:
        raise RecordError("the audit record names no tier") from error
    if tier < expectation.minimum_tier:
        raise DowngradeError(f"the audit record allows tier {tier.value}, weaker than was asked for")
    return tier


def _check_keyset(worker: AppraisedWorker, certificate: bytes, now_s: int) -> Keyset:
    keyset = Keyset.parse(worker.keyset)
    if now_s >= keyset.not_after_s:
        raise EvidenceExpiredError("the worker's keys have expired: open or renew the session")
    if worker.not_after_s > keyset.not_after_s:
        raise EvidenceError("the evidence outlives the keys it speaks of")
    if len(certificate) > MAX_CERTIFICATE_BYTES:
        raise EvidenceBindingError(f"a worker's certificate has at most {MAX_CERTIFICATE_BYTES} bytes")
    keyset.check_certificate(certificate)
    return keyset


def _check_descriptor(
    worker: AppraisedWorker, offer: SessionOffer, expectation: Expectation, *, minimum_tier: Tier
) -> None:
    descriptor = worker.descriptor
    if expectation.model_digest is not None and expectation.model_digest != offer.model_digest:
        raise EvidencePolicyError("the model's digest is not the pinned one")
    if (descriptor.tenant, descriptor.model, descriptor.model_digest) != (
        expectation.tenant,
        expectation.model,
        offer.model_digest,
    ):
        raise EvidenceBindingError("the evidence is of another tenant's partition or another model")
    if worker.tier < minimum_tier:
        raise DowngradeError(
            f"the worker's tier {worker.tier.value} is below {minimum_tier.value}, which was decided or asked for"
        )


def check_tenant_root(worker: AppraisedWorker, tenant_roots: Sequence[bytes]) -> None:
    """Return if the worker takes session keys of the tenant's own root, and of nobody else.

    Raises:
        TenantRootMismatchError: the descriptor names another root than those of the tenant, or none where it has one.
        TenantRootRequiredError: the worker is of tier confidential, or names a root, and the tenant has none.
    """
    named = worker.descriptor.tenant_root
    if tenant_roots:
        if named is None:
            raise TenantRootMismatchError("the worker takes session keys that the tenant's root did not certify")
        if named not in tenant_roots:
            raise TenantRootMismatchError("the worker's tenant root is not the configured one")
    elif named is not None:
        raise TenantRootRequiredError("the worker takes session keys of a tenant root, and none is configured here")
    elif worker.tier is Tier.CONFIDENTIAL:
        raise TenantRootRequiredError("tier confidential needs a tenant root, and none is configured here")


def _check_ticket(
    claims: TicketClaims,
    offer: SessionOffer,
    expectation: Expectation,
    worker: AppraisedWorker,
    decision: VerifiedLeaf,
) -> None:
    expected = (
        ("tenant", claims.tenant, expectation.tenant),
        ("session", claims.session, offer.session),
        ("session key", claims.cnf, expectation.cnf),
        ("partition", claims.partition, worker.descriptor.partition),
        ("tier", claims.tier, worker.tier),
        ("simulated flag", claims.simulated, isinstance(worker, SimulatedWorker)),
        ("model", claims.model, expectation.model),
        ("model digest", claims.model_digest, offer.model_digest),
        ("keyset", claims.keyset_digest, hashlib.sha256(worker.keyset).digest()),
        ("evidence", claims.evidence_digest, worker.evidence_digest),
        ("decision", claims.decision_leaf_hash, decision.leaf_hash),
    )
    for name, claimed, wanted in expected:
        if claimed != wanted:
            raise TicketError(f"the ticket names another {name} than was verified")
    if not claims.padding.covers(expectation.padding):
        raise DowngradeError(f"the ticket pads {claims.padding.value}, less than {expectation.padding.value} as asked")
