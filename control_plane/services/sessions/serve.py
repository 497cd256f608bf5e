"""From a recorded decision to a grant: partition, evidence, state transaction, outcome, ticket; for opens and renewals.

The state transaction takes effect only if the tenant's facts, the active bundle, the partition and the session are what
the decision was made on; :meth:`Server.serve` returns None otherwise, and its caller decides again, once.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from audit.records import Record, outcome, session_renewed
from bulkhead.encoding import Json
from bulkhead.errors import (
    AgentUnavailableError,
    BulkheadError,
    CancelledError,
    ConflictError,
    EvidenceError,
    WorkerLostError,
)
from control_plane.domain.partitions import Partition, PartitionState
from control_plane.domain.roles import Caller
from control_plane.domain.sessions import Session, SessionState
from control_plane.services.book import PartitionBook
from control_plane.services.journal import Journal
from control_plane.services.lifecycle import Origin
from control_plane.services.pool import PartitionPool, Wanted
from control_plane.services.refusals import cause_of, subject_of
from control_plane.services.sessions.ahead import AskedAhead, begin
from control_plane.services.sessions.attest import AttestedWorker, Attestor
from control_plane.services.sessions.decide import Allowed, Decided
from control_plane.services.sessions.grant import Grant, GrantIssuer
from control_plane.services.settings import SessionSettings
from control_plane.storage.engine import Database
from control_plane.storage.sessions import Activation, Sessions, TenantSnapshot

__all__ = ["Phase", "Report", "Server", "Serving"]

US_PER_S: Final = 1_000_000


class Phase(StrEnum):
    """How far an open is; the names are those of ``bulkhead.v1.OpenPhase``."""

    DECIDED = "decided"
    PLACING = "placing"
    CREATING = "creating"
    LOADING = "loading"
    ATTESTING = "attesting"


Report = Callable[[Phase, str], None]
"""Takes the phase that begins, and a sentence for a person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """One attempt: what was decided for whom, how the session stands, and what evidence is on its way already."""

    caller: Caller
    session: Session
    pair_id: str
    facts: TenantSnapshot
    decided: Decided
    nonce: bytes
    ahead: AskedAhead | None = None

    @property
    def origin(self) -> Origin:
        """What the steps of partitions are taken for."""
        return Origin(cause_of(self.caller, self.session.request_id), self.session.session_id, self.pair_id)


class Server:
    """Takes decided sessions to their grants.

    Args:
        database: the state.
        journal: the audit log.
        pool: hands out partitions.
        book: who uses which partition.
        attestor: appraises workers.
        grants: signs tickets.
        settings: bounds.
    """

    def __init__(
        self,
        *,
        database: Database,
        journal: Journal,
        pool: PartitionPool,
        book: PartitionBook,
        attestor: Attestor,
        grants: GrantIssuer,
        settings: SessionSettings,
    ) -> None:
        self._database = database
        self._journal = journal
        self._pool = pool
        self._book = book
        self._attestor = attestor
        self._grants = grants
        self._slots = asyncio.Semaphore(settings.concurrent_opens)

    def ask_ahead(self, session: Session, allowed: Allowed, nonce: bytes) -> AskedAhead | None:
        """Ask for evidence of the ready partition that would serve the session, if there is one and there is room.

        Nothing is asked while the log takes no records: each answer would fill the worker's lease and be of no use.
        """
        if self._slots.locked() or not self._journal.vouches():
            return None
        partition = self._pool.ready(allowed.wanted)
        if partition is None:
            return None
        not_after_s = self._grants.expiry_s()
        asking = self._attestor.ask(partition, session, allowed, nonce=nonce, not_after_s=not_after_s)
        return AskedAhead(partition=partition, not_after_s=not_after_s, answer=begin(asking))

    async def open(self, serving: Serving, report: Report) -> Grant | None:
        """Place, attest, activate, record, and return the grant; None if it must be decided again.

        Raises:
            CapacityError, UnavailableError, EvidenceError: nothing is open; the caller abandons the session.
        """
        async with self._slots:
            report(Phase.PLACING, "finding a partition")
            partition = await self._pool.acquire(
                serving.decided.wanted,
                serving.origin,
                lambda phase, text: report(Phase(phase), text),
                decision=serving.decided.recorded,
            )
            # From here on the partition does not look idle, so that it is not released under the open.
            self._book.join(partition.partition_id, serving.session.session_id)
            return await self._finish(serving, partition, report, expected=SessionState.OPENING)

    async def renew(self, serving: Serving) -> Grant | None:
        """Attest again on the session's own partition; None if it must be decided again.

        Raises:
            WorkerLostError: the partition is gone, or no longer what the decision demands.
            UnavailableError, EvidenceError: the session stays as it is.
        """
        partition = self._book.get(serving.session.partition_id)
        if partition is None or partition.state is not PartitionState.READY:
            raise WorkerLostError("the session's worker is gone: open a new session")
        if not _still_fits(partition, serving.decided.wanted):
            raise WorkerLostError("policy, or the tenant's root, now demands another partition: open a new session")
        async with self._slots:
            return await self._finish(serving, partition, _silent, expected=SessionState.OPEN)

    def check_reachable(self, session: Session) -> None:
        """Return if whoever runs the session's worker can be asked for evidence, as far as is known.

        Raises:
            AgentUnavailableError: its agent is not connected (yet, after a start of this process): try again.
        """
        partition = self._book.get(session.partition_id)
        if partition is not None:
            self._attestor.check_reachable(partition)

    async def failed(self, serving: Serving, error: BaseException) -> None:
        """Record that nothing came of an allowed decision."""
        cause = error if isinstance(error, BulkheadError) else CancelledError("the caller went away, or time ran out")
        await self._journal.report(
            outcome(
                self._journal.stamp(),
                tenant=serving.session.tenant_id,
                subject=subject_of(serving.caller),
                cause=serving.origin.cause,
                session=serving.session.session_id,
                pair_id=serving.pair_id,
                result="failed",
                model=serving.session.model,
                code=cause.code,
                message=cause.message,
            )
        )

    async def _finish(
        self, serving: Serving, partition: Partition, report: Report, *, expected: SessionState
    ) -> Grant | None:
        report(Phase.ATTESTING, "asking the worker for evidence")
        partition = self._book.get(partition.partition_id) or partition  # with the newest fence
        proving = begin(self._grants.prove(serving.decided))
        try:
            attested = await self._attest(serving, partition, lost_is_final=expected is SessionState.OPEN)
            if attested is None:
                return None
            worker, expires_s = attested
            partition = await self._pool.confirm(partition.partition_id, serving.origin)
            session = await self._activate(serving, partition, worker, expires_s, expected)
            if session is None:
                return None
            make = self._ready if expected is SessionState.OPENING else self._renewed
            # The ticket is signed while the outcome's record is made durable, and handed out after both.
            _, grant = await asyncio.gather(
                self._journal.write(make(serving, session, worker)),
                self._grants.issue(session, worker, serving.decided, proof=proving, expires_s=expires_s),
            )
            return grant
        finally:
            proving.cancel()

    async def _attest(
        self, serving: Serving, partition: Partition, *, lost_is_final: bool
    ) -> tuple[AttestedWorker, int] | None:
        """Return the appraised worker and the ticket's end (Unix seconds); None if its partition has just been lost."""
        ahead, session, decided, nonce = serving.ahead, serving.session, serving.decided, serving.nonce
        try:
            if ahead is not None and ahead.concerns(partition):
                expires_s, answer = ahead.not_after_s, await ahead.answer
            else:
                expires_s = self._grants.expiry_s()
                answer = await self._attestor.ask(partition, session, decided, nonce=nonce, not_after_s=expires_s)
            worker = await self._attestor.appraise(answer, partition, session, decided, nonce=nonce)
        except EvidenceError as error:
            self._pool.distrust(partition, reason=error.message)
            raise
        except WorkerLostError as error:  # the agent's word, ahead of its report
            await self._pool.lose(partition, reason=error.message)
            if lost_is_final:
                raise
            return None  # decided again, and placed elsewhere
        return worker, min(expires_s, worker.worker.not_after_s)

    async def _activate(
        self,
        serving: Serving,
        partition: Partition,
        worker: AttestedWorker,
        expires_s: int,
        expected: SessionState,
    ) -> Session | None:
        decided, session = serving.decided, serving.session
        if session.tier is not None and expected is SessionState.OPEN and worker.tier < session.tier:
            raise AgentUnavailableError("the worker shows a weaker tier than the session had")
        change = Activation(
            session_id=session.session_id,
            pair_id=session.pair_id,
            partition_id=partition.partition_id,
            partition_fence=partition.version,
            tier=worker.tier,
            tier_floor=decided.wanted.tier,
            simulated=worker.simulated,
            obligations=decided.obligations,
            policy_digest=decided.decision.bundle_digest,
            decision_record_id=decided.recorded.record_id,
            tenant_revision=serving.facts.revision,
            active_bundle=serving.facts.active_bundle,
            expires_us=expires_s * US_PER_S,
        )
        return await self._database.write(lambda tx: Sessions(tx.connection).activate(change, expected=expected))

    def _ready(self, serving: Serving, session: Session, worker: AttestedWorker) -> Record:
        return outcome(
            self._journal.stamp(),
            tenant=session.tenant_id,
            subject=subject_of(serving.caller),
            cause=serving.origin.cause,
            session=session.session_id,
            pair_id=serving.pair_id,
            result="ready",
            model=session.model,
            tier=worker.tier.label,
            partition=session.partition_id,
            evidence=worker.worker.evidence_digest.hex(),
            evidence_kind=worker.kind.value,
            details=_details(session, worker),
        )

    def _renewed(self, serving: Serving, session: Session, worker: AttestedWorker) -> Record:
        return session_renewed(
            self._journal.stamp(),
            tenant=session.tenant_id,
            subject=subject_of(serving.caller),
            cause=serving.origin.cause,
            session=session.session_id,
            pair_id=serving.pair_id,
            partition=session.partition_id,
            tier=worker.tier.label,
            evidence=worker.worker.evidence_digest.hex(),
            details=_details(session, worker) | {"policy_digest": serving.decided.decision.bundle_digest},
        )


def once_more(decided: Decided, facts: TenantSnapshot) -> bool:
    """Return whether a decision was made by another bundle than the active one of the same snapshot."""
    return bool(facts.active_bundle) and decided.decision.bundle_digest != facts.active_bundle


def changed_twice() -> ConflictError:
    """Return (for raising) the error of an open whose ground moved under both of its decisions."""
    return ConflictError("tenant, policy or partition changed while the session was being decided: try again")


def _silent(_phase: Phase, _text: str) -> None:
    """Report to nobody: a renewal is one answer."""


def _still_fits(partition: Partition, wanted: Wanted) -> bool:
    return (
        partition.tier >= wanted.tier
        and (not wanted.regions or partition.region in wanted.regions)
        and (partition.exclusive or not wanted.exclusive)
        and partition.model_digest == wanted.model.digest
        and partition.tenant_root == wanted.tenant_root
    )


def _details(session: Session, worker: AttestedWorker) -> dict[str, Json]:
    return {
        "agent": worker.worker.descriptor.agent,
        "region": worker.worker.descriptor.region,
        "simulated": worker.simulated,
        "keyset_digest": worker.keyset.key_id.hex(),
        "model_digest": session.model_digest.hex(),
    }
