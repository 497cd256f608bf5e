"""What a client gets for an open session: ticket, endpoint, keys, evidence, the decision's record and its proof."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from bulkhead import ids
from bulkhead.protocol.tickets import TicketClaims, TicketLimits
from bulkhead.sealing import PaddingMode
from bulkhead.transparency import AuditReceipt
from control_plane.domain.sessions import Session
from control_plane.domain.tiers import Tier
from control_plane.services.issuers import Issuers
from control_plane.services.journal import Journal
from control_plane.services.sessions.attest import AttestedWorker
from control_plane.services.sessions.decide import Decided
from control_plane.services.settings import SessionSettings

__all__ = ["Grant", "GrantIssuer"]

US_PER_S: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """A session's grant. The client verifies all of it; nothing here asks to be believed.

    Attributes:
        session: as stored.
        worker: the appraised worker.
        ticket: signed, of the same life as ``expires_s`` (Unix seconds).
        decision: the record that allowed it, with its inclusion proof.
        origin: of the log that the record stands in.
        obligations: RFC 8785 text each.
    """

    session: Session
    worker: AttestedWorker
    partition_id: str
    tier: Tier
    ticket: str
    ticket_issuer: bytes
    expires_s: int
    decision: AuditReceipt
    origin: str
    policy_digest: bytes
    model_digest: bytes
    obligations: tuple[str, ...]
    padding: str
    max_output_tokens: int


class GrantIssuer:
    """Signs tickets and puts grants together.

    Args:
        issuers: of tickets.
        journal: the audit log, for proofs.
        settings: ticket life and limits.
        now_us: wall clock, microseconds since the epoch.
    """

    def __init__(
        self, *, issuers: Issuers, journal: Journal, settings: SessionSettings, now_us: Callable[[], int]
    ) -> None:
        self._issuers = issuers
        self._journal = journal
        self._settings = settings
        self._now_us = now_us

    def expiry_s(self) -> int:
        """Return when a ticket issued now would end, Unix seconds."""
        return self._now_us() // US_PER_S + self._settings.ticket_s

    async def prove(self, decided: Decided) -> AuditReceipt:
        """Return the decision's record with its inclusion proof.

        Raises:
            AuditUnavailableError: the proof cannot be read.
        """
        return await self._journal.audit.prove(decided.recorded)

    async def issue(
        self,
        session: Session,
        worker: AttestedWorker,
        decided: Decided,
        *,
        proof: Awaitable[AuditReceipt],
        expires_s: int,
    ) -> Grant:
        """Return the grant of an open session; the caller hands it out when the session's outcome is recorded.

        Args:
            session: activated.
            worker: appraised for it.
            decided: what allowed it.
            proof: of the decision, as :meth:`prove` returns it.
            expires_s: Unix seconds.

        Raises:
            AuditUnavailableError: the proof of the decision cannot be read.
        """
        receipt = await proof
        issuer = self._issuers.signer_for(worker.worker.descriptor.ticket_issuers)
        return Grant(
            session=session,
            worker=worker,
            partition_id=session.partition_id,
            tier=worker.tier,
            ticket=issuer.issue(self._claims(session, worker, decided, expires_s)),
            ticket_issuer=issuer.public_key,
            expires_s=expires_s,
            decision=receipt,
            origin=self._journal.audit.vkey(decided.recorded.log_id).partition("+")[0],
            policy_digest=bytes.fromhex(decided.decision.bundle_digest),
            model_digest=session.model_digest,
            obligations=decided.obligations,
            padding=decided.padding,
            max_output_tokens=decided.max_output_tokens,
        )

    def _claims(self, session: Session, worker: AttestedWorker, decided: Decided, expires_s: int) -> TicketClaims:
        return TicketClaims(
            ticket_id=ids.new_id(ids.TICKET),
            audience=worker.authority,
            tenant=session.tenant_id,
            session=session.session_id,
            cnf=session.session_public_key,
            partition=session.partition_id,
            tier=worker.tier,
            simulated=worker.simulated,
            model=session.model,
            model_digest=session.model_digest,
            limits=TicketLimits(
                max_tokens=decided.max_output_tokens,
                max_concurrent_requests=self._settings.concurrent_requests,
            ),
            padding=PaddingMode(decided.padding),
            keyset_digest=worker.keyset.key_id,
            evidence_digest=worker.worker.evidence_digest,
            decision_leaf_hash=decided.recorded.leaf_hash,
            issued_at_s=self._now_us() // US_PER_S,
            expires_at_s=expires_s,
        )
