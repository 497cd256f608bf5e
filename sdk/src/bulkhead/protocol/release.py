"""The release of a model's key to a worker: what both sides compute, and nothing else (docs/models.md).

Order: the broker makes a nonce; the worker shows evidence of phase ``boot`` for that nonce and :attr:`ReleaseTerms
.context`; the broker appraises it and seals the data key to the weights key in the evidence's keyset, under ``info``.
The worker computes ``info`` from the manifest that it read itself, so a key that was released for another manifest,
version, evidence or decision does not open.
"""

from dataclasses import dataclass
from typing import Final

from bulkhead.attestation.statement import NONCE_BYTES
from bulkhead.encoding import lp_join
from bulkhead.sealing.hpke import ENC_BYTES, TAG_BYTES
from bulkhead.transparency.receipt import AuditReceipt

__all__ = ["NONCE_BYTES", "SEALED_KEY_BYTES", "ReleaseRequest", "ReleaseTerms", "release_info"]

_CONTEXT_LABEL: Final = b"bulkhead/v1 model key release"
_INFO_LABEL: Final = b"bulkhead/v1 model key"
_DATA_KEY_BYTES: Final = 32
SEALED_KEY_BYTES: Final = ENC_BYTES + _DATA_KEY_BYTES + TAG_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseTerms:
    """What a release is about.

    Attributes:
        tenant: tenant id, for whose partition the key is.
        model: the model's name.
        manifest_digest: of the sealed model, 32 bytes.
        version: of the sealed model, and so of its key.
        decision_leaf_hash: RFC 9162 leaf hash (32 bytes) of the audit record that allowed it.
    """

    tenant: str
    model: str
    manifest_digest: bytes
    version: int
    decision_leaf_hash: bytes

    @property
    def context(self) -> bytes:
        """What stands for the session context in the evidence of a worker that asks for a key."""
        return lp_join(
            _CONTEXT_LABEL,
            self.tenant.encode(),
            self.model.encode(),
            self.manifest_digest,
            self.version.to_bytes(8, "big"),
            self.decision_leaf_hash,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseRequest:
    """What a broker is shown; nothing of it is trusted.

    Attributes:
        nonce: the broker's own.
        tenant: tenant id.
        manifest: document ``manifest.json`` of the sealed model.
        evidence: of phase ``boot``, for the nonce and the terms.
        decision: the record that allowed it, with its proof.
        origin: of the log that the record stands in.
    """

    nonce: bytes
    tenant: str
    manifest: bytes
    evidence: bytes
    decision: AuditReceipt
    origin: str


def release_info(
    *, nonce: bytes, manifest_digest: bytes, version: int, evidence_digest: bytes, decision_leaf_hash: bytes
) -> bytes:
    """Return HPKE's ``info`` under which a data key is sealed to a worker."""
    return lp_join(_INFO_LABEL, nonce, manifest_digest, version.to_bytes(8, "big"), evidence_digest, decision_leaf_hash)
