"""Appraisal: evidence in, a worker that was verified out, or an error; never a bool."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Protocol, TypeAlias

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from bulkhead.attestation.collateral.cache import CollateralCache
from bulkhead.attestation.collateral.policy import CollateralPolicy
from bulkhead.attestation.descriptor import PartitionDescriptor
from bulkhead.attestation.evidence import Binding, Evidence, EvidenceKind, signed_message
from bulkhead.attestation.hardware import HardwareClaims, HardwareVerifier
from bulkhead.attestation.policy import MAX_EVIDENCE_AGE_S, TrustPolicy
from bulkhead.attestation.statement import batch_leaf
from bulkhead.attestation.tiers import Tier
from bulkhead.errors import (
    EvidenceBindingError,
    EvidenceError,
    EvidenceExpiredError,
    EvidencePolicyError,
    SimulatedEvidenceError,
)

__all__ = [
    "AppraisedWorker",
    "OperatorVerifier",
    "SimulatedVerifier",
    "SimulatedWorker",
    "VerifiedWorker",
    "Verifier",
    "appraise",
]

_CLOCK_SKEW_S: Final = 60  # between a tenant's clock and the agent's


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedWorker:
    """A worker whose evidence held. Only :func:`appraise` makes one; it is never persisted.

    Attributes:
        kind: ``hardware`` or ``operator``: whom the proof rests on.
        tier: proven isolation tier.
        descriptor: of the partition.
        keyset: RFC 8785 bytes of the worker's keyset, now trusted (``bulkhead.sealing.Keyset.parse``).
        evidence_digest: SHA-256 of the evidence as received.
        not_after_s: Unix seconds; verify again before.
        hardware: what the hardware proves; None where the proof rests on the operator.
    """

    kind: EvidenceKind
    tier: Tier
    descriptor: PartitionDescriptor
    keyset: bytes
    evidence_digest: bytes
    not_after_s: int
    hardware: HardwareClaims | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedWorker:
    """A worker whose simulated evidence is consistent. It proves nothing and is no :class:`VerifiedWorker`.

    Attributes:
        tier: the tier that is simulated.
        descriptor: of the simulated partition.
        keyset: RFC 8785 bytes of the worker's keyset.
        evidence_digest: SHA-256 of the evidence as received.
        not_after_s: Unix seconds.
    """

    tier: Tier
    descriptor: PartitionDescriptor
    keyset: bytes
    evidence_digest: bytes
    not_after_s: int


AppraisedWorker: TypeAlias = VerifiedWorker | SimulatedWorker


class Verifier(Protocol):
    """Port: checks that one kind's voucher stands behind a statement."""

    @property
    def highest_tier(self) -> Tier:
        """The strongest tier that this kind can show."""
        ...

    def verify(
        self, evidence: Evidence, *, binding: Binding, trust_policy: TrustPolicy, now_s: int
    ) -> HardwareClaims | None:
        """Return if ``evidence`` vouches for ``binding`` under ``trust_policy``; what hardware proves, if it does.

        Raises:
            EvidenceError: it does not; :class:`EvidencePolicyError` if it does but not for this policy.
        """
        ...


class OperatorVerifier:
    """The operator's evidence key, pinned in the trust policy, signed the statement."""

    highest_tier: Tier = Tier.GPU

    def verify(self, evidence: Evidence, *, binding: Binding, trust_policy: TrustPolicy, now_s: int) -> None:
        """See :meth:`Verifier.verify`."""
        del now_s  # pinned keys have no validity of their own
        if evidence.signer not in trust_policy.operator_keys:
            raise EvidencePolicyError("the operator's evidence key is not pinned in the trust policy")
        _verify_signature(evidence, binding.statement)


class SimulatedVerifier:
    """The key inside the evidence signed the statement: consistent, and proof of nothing."""

    highest_tier: Tier = Tier.CONFIDENTIAL

    def verify(self, evidence: Evidence, *, binding: Binding, trust_policy: TrustPolicy, now_s: int) -> None:
        """See :meth:`Verifier.verify`."""
        del trust_policy, now_s  # nothing to pin: anyone can simulate
        _verify_signature(evidence, binding.statement)


_VERIFIERS: Final[Mapping[EvidenceKind, Verifier]] = MappingProxyType(
    {EvidenceKind.OPERATOR: OperatorVerifier(), EvidenceKind.SIMULATED: SimulatedVerifier()}
)


def appraise(
    encoded: bytes,
    *,
    nonce: bytes,
    context: bytes,
    trust_policy: TrustPolicy,
    now_s: int,
    development_mode: bool = False,
    hardware: HardwareVerifier | None = None,
) -> AppraisedWorker:
    """Appraise evidence that a worker was asked for.

    Obligations:
        1. The container is canonical and of a kind that the policy accepts; simulated only in development mode.
        2. The caller's nonce and session context are in the signed batch.
        3. The kind's voucher signed the statement over batch, keyset, devices, descriptor and validity.
        4. The validity has not ended and is no longer than a worker's keys live.
        5. What the descriptor claims is within the kind's reach and at least the policy's tier; its region and model
           are ones that the policy accepts.

    The caller checks: the keyset's own validity, and that tenant, partition, model and ticket issuer in the
    descriptor are those it was promised (:func:`bulkhead.protocol.grant.verify_grant` does).

    Args:
        encoded: evidence as received (untrusted).
        nonce: the 32 bytes the caller made for this session.
        context: session context, computed by the caller from what it verified.
        trust_policy: the caller's own.
        now_s: Unix seconds of the caller's clock.
        development_mode: set by the program that constructs the client, never by a peer.
        hardware: verifies hardware evidence; None has no collateral but what the evidence brings along.

    Raises:
        SimulatedEvidenceError: simulated outside development mode.
        EvidenceBindingError: the evidence answers another nonce, session, keyset or descriptor.
        EvidenceExpiredError: its validity has ended.
        EvidencePolicyError: consistent, but not accepted by ``trust_policy``.
        EvidenceError: malformed or contradictory, or collateral is missing.
        ConnectionFailedError: collateral was to be fetched, and its service did not answer.
    """
    evidence = Evidence.parse(encoded)  # 1
    _check_kind(evidence, trust_policy, development_mode=development_mode)  # 1
    verifier = _verifier(evidence.kind, hardware, now_s)
    binding = evidence.bind(batch_leaf(nonce, context))  # 2
    claims = verifier.verify(evidence, binding=binding, trust_policy=trust_policy, now_s=now_s)  # 3
    _check_validity(evidence, now_s)  # 4
    _check_claims(evidence, verifier, trust_policy)  # 5
    ends = [evidence.not_after_s, now_s + trust_policy.maximum_age_s, *([claims.not_after_s] if claims else [])]
    return _appraised(evidence, encoded, claims, min(ends))


def _verifier(kind: EvidenceKind, hardware: HardwareVerifier | None, now_s: int) -> Verifier:
    if kind is not EvidenceKind.HARDWARE:
        return _VERIFIERS[kind]
    if hardware is not None:
        return hardware
    return HardwareVerifier(collateral=CollateralCache(store=None, policy=CollateralPolicy(), now_s=lambda: now_s))


def _check_kind(evidence: Evidence, trust_policy: TrustPolicy, *, development_mode: bool) -> None:
    simulated = evidence.kind is EvidenceKind.SIMULATED
    if (simulated or evidence.descriptor.simulated) and not development_mode:
        raise SimulatedEvidenceError("the worker is simulated, and this client is not in development mode")
    if evidence.descriptor.simulated != simulated:
        raise EvidenceError("the evidence and its descriptor disagree about what is simulated")
    if evidence.kind not in trust_policy.accepted_kinds:
        raise EvidencePolicyError(f"the trust policy does not accept {evidence.kind.value} evidence")


def _check_validity(evidence: Evidence, now_s: int) -> None:
    if now_s >= evidence.not_after_s:
        raise EvidenceExpiredError("the evidence has expired: open or renew the session")
    if evidence.not_after_s > now_s + MAX_EVIDENCE_AGE_S + _CLOCK_SKEW_S:
        raise EvidenceError("the evidence claims to outlive any worker's keys")


def _check_claims(evidence: Evidence, verifier: Verifier, trust_policy: TrustPolicy) -> None:
    tier = evidence.descriptor.tier
    if tier > verifier.highest_tier:
        raise EvidenceError(f"{evidence.kind.value} evidence cannot show tier {tier.value}")
    if tier < trust_policy.minimum_tier:
        raise EvidencePolicyError(
            f"tier {tier.value} is below the trust policy's {trust_policy.minimum_tier.value}",
            details={"tier": tier.value, "minimum_tier": trust_policy.minimum_tier.value},
        )
    if trust_policy.regions is not None and evidence.descriptor.region not in trust_policy.regions:
        raise EvidencePolicyError(f"the trust policy does not accept region {evidence.descriptor.region}")
    if trust_policy.model_digests is not None and evidence.descriptor.model_digest not in trust_policy.model_digests:
        raise EvidencePolicyError("the trust policy does not accept this model")
    if trust_policy.tenant_roots is not None and evidence.descriptor.tenant_root not in trust_policy.tenant_roots:
        raise EvidencePolicyError("the trust policy does not accept the worker's tenant root, or that it has none")


def _appraised(evidence: Evidence, encoded: bytes, claims: HardwareClaims | None, not_after_s: int) -> AppraisedWorker:
    digest = hashlib.sha256(encoded).digest()
    if evidence.kind is EvidenceKind.SIMULATED:
        return SimulatedWorker(
            tier=evidence.descriptor.tier,
            descriptor=evidence.descriptor,
            keyset=evidence.keyset,
            evidence_digest=digest,
            not_after_s=not_after_s,
        )
    return VerifiedWorker(
        kind=evidence.kind,
        tier=evidence.descriptor.tier,
        descriptor=evidence.descriptor,
        keyset=evidence.keyset,
        evidence_digest=digest,
        not_after_s=not_after_s,
        hardware=claims,
    )


def _verify_signature(evidence: Evidence, statement: bytes) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(evidence.signer).verify(
            evidence.quote, signed_message(evidence.kind, statement)
        )
    except (InvalidSignature, ValueError) as error:
        raise EvidenceBindingError("the evidence is not for this nonce, session, keyset and partition") from error
