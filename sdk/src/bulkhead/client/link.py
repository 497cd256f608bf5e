"""A session's standing with one worker: the verified grant, the sealing that stands on it, and the connection."""

import ssl
from dataclasses import dataclass

from bulkhead.attestation.collateral.kinds import CollateralEntry
from bulkhead.client.opening import ReceivedGrant
from bulkhead.client.status import Peer
from bulkhead.client.transport import Channel
from bulkhead.protocol.client import ClientSession
from bulkhead.protocol.grant import VerifiedGrant
from bulkhead.protocol.replay import WINDOW

__all__ = ["Link", "worker_channel"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What requests are sent with. A renewal makes a new one; requests in flight keep theirs.

    Attributes:
        sealing: makes sealed requests under :attr:`grant`.
        grant: verified.
        received: what it was verified from, kept for saved receipts.
        nonce: the client's nonce that the evidence answers.
        channel: to the worker.
        collateral: what hardware evidence was verified with, kept for saved receipts.
    """

    sealing: ClientSession
    grant: VerifiedGrant
    received: ReceivedGrant
    nonce: bytes
    channel: Channel
    collateral: tuple[CollateralEntry, ...] = ()

    @property
    def half_life_s(self) -> float:
        """Unix seconds when half of the grant's time has passed."""
        return (self.grant.claims.issued_at_s + self.grant.not_after_s) / 2

    def reaches(self, received: ReceivedGrant, grant: VerifiedGrant) -> bool:
        """Return whether this link's connection is also the one for another (verified) grant."""
        return (self.received.address, self.grant.claims.audience, self.grant.worker_certificate) == (
            received.address,
            grant.claims.audience,
            grant.worker_certificate,
        )


def worker_channel(received: ReceivedGrant, grant: VerifiedGrant) -> Channel:
    """Return a channel to the worker, with its verified certificate as sole root (it is self-signed)."""
    return Channel(
        peer=Peer.WORKER,
        address=received.address,
        roots_pem=ssl.DER_cert_to_PEM_cert(grant.worker_certificate).encode("ascii"),
        server_name=grant.claims.audience,
        streams_in_flight=WINDOW,  # more could not be told apart by sequence number
    )
