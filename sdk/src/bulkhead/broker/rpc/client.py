"""A tenant's broker as the platform's control plane reaches it."""

from typing import Final

from bulkhead.client.status import Peer
from bulkhead.client.transport import Channel
from bulkhead.errors import ConnectionFailedError, DeadlineError, EvidenceBindingError, KeyBrokerError, KeyReleaseError
from bulkhead.protocol.release import NONCE_BYTES, SEALED_KEY_BYTES, ReleaseRequest
from bulkhead.v1 import audit_pb2, broker_pb2_grpc
from bulkhead.v1 import broker_pb2 as pb

__all__ = ["RemoteBroker"]

TIMEOUT_S: Final = 15.0


class RemoteBroker:
    """One tenant's broker, behind its pinned certificate.

    Args:
        address: ``host:port``.
        certificate_pem: the only certificate that is accepted.
        server_name: a name in that certificate.

    Raises:
        InvalidRequestError: the address is none.
    """

    def __init__(self, *, address: str, certificate_pem: bytes, server_name: str) -> None:
        self._channel = Channel(
            peer=Peer.KEY_BROKER, address=address, roots_pem=certificate_pem, server_name=server_name
        )
        self._stub = broker_pb2_grpc.KeyBrokerServiceStub(self._channel.raw)

    async def challenge(self) -> bytes:
        """Return a nonce of the broker.

        Raises:
            KeyBrokerError: it cannot be reached.
            KeyReleaseError: it answers with something else.
        """
        try:
            answer = await self._channel.unary(
                self._stub.Challenge, pb.ChallengeRequest(), idempotent=True, deadline_s=TIMEOUT_S
            )
        except (ConnectionFailedError, DeadlineError) as error:
            raise KeyBrokerError("the tenant's key broker cannot be reached") from error
        if len(answer.nonce) != NONCE_BYTES:
            raise KeyReleaseError("the tenant's key broker answers without a nonce")
        return answer.nonce

    async def release(self, request: ReleaseRequest, *, evidence_digest: bytes) -> bytes:
        """Return the sealed key.

        Args:
            request: what the broker is shown.
            evidence_digest: of the evidence in it; a reply about another is refused.

        Raises:
            KeyBrokerError: it cannot be reached.
            BulkheadError: its refusal.
        """
        decision = audit_pb2.AuditReceipt(
            origin=request.origin,
            index=request.decision.index,
            leaf=request.decision.leaf,
            proof=request.decision.proof,
            checkpoint=request.decision.checkpoint,
        )
        message = pb.ReleaseRequest(
            nonce=request.nonce,
            tenant_id=request.tenant,
            manifest=request.manifest,
            evidence=request.evidence,
            decision=decision,
        )
        try:
            answer = await self._channel.unary(self._stub.Release, message, idempotent=False, deadline_s=TIMEOUT_S)
        except (ConnectionFailedError, DeadlineError) as error:
            raise KeyBrokerError("the tenant's key broker cannot be reached") from error
        if answer.evidence_digest != evidence_digest or len(answer.sealed_key) != SEALED_KEY_BYTES:
            raise EvidenceBindingError("the tenant's key broker answers for another worker")
        return answer.sealed_key

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()
