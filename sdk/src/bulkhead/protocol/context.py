"""What a session and a request are bound to (docs/protocol.md sections 3 and 5)."""

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from bulkhead.encoding import lp, lp_join

__all__ = ["MAX_SEQUENCE", "Method", "RequestInfo", "SessionScope", "session_context"]

MAX_SEQUENCE: Final = 2**64 - 1
_REQUEST_LABEL: Final = b"bulkhead/v1 request"


class Method(StrEnum):
    """What a request asks for."""

    GENERATE = "generate"
    EMBED = "embed"


def session_context(
    *, tenant: str, session: str, cnf: bytes, model_digest: bytes, decision_leaf_hash: bytes, policy_digest: bytes
) -> bytes:
    """Return the session context that evidence is bound to.

    Args:
        tenant: tenant id.
        session: session id.
        cnf: raw Ed25519 public key (32 bytes) of the client's session key.
        model_digest: 32 bytes.
        decision_leaf_hash: RFC 9162 leaf hash (32 bytes) of the audit record that allowed the session.
        policy_digest: digest (32 bytes) of the policy bundle that decided.
    """
    return lp_join(tenant.encode(), session.encode(), cnf, model_digest, decision_leaf_hash, policy_digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionScope:
    """The part of a request's context that its ticket fixes; sequence numbers are used once within it.

    Attributes:
        key_id: SHA-256 of the worker's keyset.
        tenant: tenant id.
        session: session id.
        model_digest: 32 bytes.
        evidence_digest: SHA-256 of the evidence that the ticket was issued for.
        decision_leaf_hash: 32 bytes.
    """

    key_id: bytes
    tenant: str
    session: str
    model_digest: bytes
    evidence_digest: bytes
    decision_leaf_hash: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestInfo:
    """Everything that a request's key encapsulation is bound to.

    Attributes:
        scope: from the verified ticket, never from the request.
        request_id: chosen by the client.
        sequence: u64, used once within the scope.
        method: what is asked for.
    """

    scope: SessionScope
    request_id: str
    sequence: int
    method: Method

    @property
    def encoded(self) -> bytes:
        """HPKE's ``info``."""
        return lp_join(
            _REQUEST_LABEL,
            self.scope.key_id,
            self.scope.tenant.encode(),
            self.scope.session.encode(),
            self.request_id.encode(),
            self.sequence.to_bytes(8, "big"),
            self.scope.model_digest,
            self.method.value.encode(),
            self.scope.evidence_digest,
            self.scope.decision_leaf_hash,
        )

    def transcript_hash(self, sealed_secret: bytes) -> bytes:
        """Return ``th`` (32 bytes): SHA-256 over info and encapsulation; the session key signs it."""
        return hashlib.sha256(lp(self.encoded) + lp(sealed_secret)).digest()
