"""Issuing evidence (used by node agents): a batch of callers under one quote, and quotes without hardware.

The operator's key, or a simulator's, signs here; hardware quotes through ``data_plane.evidence``.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bulkhead.attestation.descriptor import PartitionDescriptor
from bulkhead.attestation.evidence import Evidence, EvidenceKind, signed_message
from bulkhead.attestation.statement import batch_leaf, batch_path, batch_root, gpu_nonce, statement
from bulkhead.attestation.tiers import Tier
from bulkhead.errors import EvidenceError

__all__ = ["AttestationRequest", "EvidenceBatch", "EvidenceIssuer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestationRequest:
    """One caller that wants evidence.

    Attributes:
        nonce: 32 fresh bytes of the client.
        context: session context (``bulkhead.protocol.context.session_context``).
    """

    nonce: bytes
    context: bytes


class EvidenceBatch:
    """Callers that share one quote, and the worker's keys that it is about.

    The order of work is the caller's: GPU reports with :attr:`gpu_nonce`, then the quote over :meth:`statement`, then
    :meth:`evidence` for each caller.

    Args:
        requests: 1 to 65,536 callers.
        keyset: the worker's keyset, RFC 8785 bytes.
    """

    def __init__(self, requests: Sequence[AttestationRequest], *, keyset: bytes) -> None:
        self._leaves = [batch_leaf(request.nonce, request.context) for request in requests]
        self._keyset = keyset
        self._root = batch_root(self._leaves)

    @property
    def gpu_nonce(self) -> bytes:
        """What each GPU's report must answer, 32 bytes."""
        return gpu_nonce(batch_root=self._root, keyset_digest=hashlib.sha256(self._keyset).digest())

    def statement(self, *, device: bytes, descriptor: PartitionDescriptor, not_after_s: int) -> bytes:
        """Return the 64 bytes that are signed or quoted."""
        return statement(
            batch_root=self._root,
            keyset_digest=hashlib.sha256(self._keyset).digest(),
            device_digest=hashlib.sha256(device).digest(),
            descriptor=descriptor.encoded,
            not_after_s=not_after_s,
        )

    def evidence(
        self,
        *,
        kind: EvidenceKind,
        descriptor: PartitionDescriptor,
        device: bytes,
        not_after_s: int,
        quote: bytes,
        signer: bytes = b"",
    ) -> tuple[bytes, ...]:
        """Return encoded evidence for each caller, in order."""
        return tuple(
            Evidence(
                kind=kind,
                index=index,
                size=len(self._leaves),
                path=batch_path(self._leaves, index),
                keyset=self._keyset,
                descriptor=descriptor,
                device=device,
                not_after_s=not_after_s,
                signer=signer,
                quote=quote,
            ).encode()
            for index in range(len(self._leaves))
        )


class EvidenceIssuer:
    """Signs statements as ``operator`` or ``simulated`` evidence.

    Args:
        kind: ``OPERATOR`` or ``SIMULATED``; the key alone cannot make one look like the other.
        key: the operator's evidence key, which lives with the node agent and in no control-plane replica; or the
            simulator's, which proves nothing.

    Raises:
        EvidenceError: any other kind.
    """

    def __init__(self, *, kind: EvidenceKind, key: Ed25519PrivateKey) -> None:
        if kind not in {EvidenceKind.OPERATOR, EvidenceKind.SIMULATED}:
            raise EvidenceError("only hardware issues hardware evidence")
        self._kind = kind
        self._key = key

    @property
    def public_key(self) -> bytes:
        """Raw public key (32 bytes); tenants pin an operator's."""
        return self._key.public_key().public_bytes_raw()

    def issue(
        self,
        requests: Sequence[AttestationRequest],
        *,
        keyset: bytes,
        descriptor: PartitionDescriptor,
        not_after_s: int,
        device: bytes = b"",
    ) -> tuple[bytes, ...]:
        """Return encoded evidence for each of 1 to 65,536 callers, in order, under one signature.

        Args:
            requests: the callers.
            keyset: the worker's keyset, RFC 8785 bytes.
            descriptor: of the worker's partition.
            not_after_s: Unix seconds; no later than the keyset's end.
            device: device evidence, if any.

        Raises:
            EvidenceError: the descriptor promises what this kind cannot vouch for: ``simulated`` not as the kind
                says, or tier ``confidential`` from an operator.
        """
        if descriptor.simulated != (self._kind is EvidenceKind.SIMULATED):
            raise EvidenceError("a partition with a simulated part has simulated evidence, and only such a one")
        if self._kind is EvidenceKind.OPERATOR and descriptor.tier > Tier.GPU:
            raise EvidenceError("an operator's key vouches for tiers up to gpu")
        batch = EvidenceBatch(requests, keyset=keyset)
        statement = batch.statement(device=device, descriptor=descriptor, not_after_s=not_after_s)
        return batch.evidence(
            kind=self._kind,
            descriptor=descriptor,
            device=device,
            not_after_s=not_after_s,
            signer=self.public_key,
            quote=self._key.sign(signed_message(self._kind, statement)),
        )
