"""Attestation: evidence of what a worker is, and its appraisal (docs/protocol.md section 3).

Evidence comes in kinds behind one port: ``hardware`` (a processor's quote and its GPUs' reports, :mod:`.hardware`, with
the technologies in ``snp``, ``tdx`` and ``nvidia``), ``operator`` and ``simulated``. Only a :class:`VerifiedWorker`
proves something; a :class:`SimulatedWorker` says so in its type. What vendors publish is in ``collateral``.
"""

from bulkhead.attestation.appraisal import AppraisedWorker, SimulatedWorker, VerifiedWorker, Verifier, appraise
from bulkhead.attestation.descriptor import PartitionDescriptor, Phase, key_fingerprint
from bulkhead.attestation.evidence import Evidence, EvidenceKind
from bulkhead.attestation.hardware import GpuClaims, HardwareClaims, HardwareRoots, HardwareVerifier
from bulkhead.attestation.issuer import AttestationRequest, EvidenceBatch, EvidenceIssuer
from bulkhead.attestation.policy import TrustPolicy, load_trust_policy
from bulkhead.attestation.tiers import Tier

__all__ = [
    "AppraisedWorker",
    "AttestationRequest",
    "Evidence",
    "EvidenceBatch",
    "EvidenceIssuer",
    "EvidenceKind",
    "GpuClaims",
    "HardwareClaims",
    "HardwareRoots",
    "HardwareVerifier",
    "PartitionDescriptor",
    "Phase",
    "SimulatedWorker",
    "Tier",
    "TrustPolicy",
    "VerifiedWorker",
    "Verifier",
    "appraise",
    "key_fingerprint",
    "load_trust_policy",
]
