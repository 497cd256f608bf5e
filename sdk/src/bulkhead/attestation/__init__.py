"""Attestation: evidence of what a worker is, and its appraisal (docs/protocol.md section 3).

Evidence comes in kinds behind one port. ``operator`` and ``simulated`` are here; ``hardware`` is refused until its
verifiers exist. Only a :class:`VerifiedWorker` proves something; a :class:`SimulatedWorker` says so in its type.
"""

from bulkhead.attestation.appraisal import AppraisedWorker, SimulatedWorker, VerifiedWorker, Verifier, appraise
from bulkhead.attestation.descriptor import PartitionDescriptor, Phase, key_fingerprint
from bulkhead.attestation.evidence import Evidence, EvidenceKind
from bulkhead.attestation.issuer import AttestationRequest, EvidenceIssuer
from bulkhead.attestation.policy import TrustPolicy, load_trust_policy
from bulkhead.attestation.tiers import Tier

__all__ = [
    "AppraisedWorker",
    "AttestationRequest",
    "Evidence",
    "EvidenceIssuer",
    "EvidenceKind",
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
