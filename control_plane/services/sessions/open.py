"""Opening a session, in the one order that the audit log relies on.

validated request -> a slot and the facts, atomically -> policy -> decision recorded (a denial ends here) -> partition
-> evidence -> state transaction, if nothing that was decided on has changed (else decide again, once) -> outcome
recorded -> ticket. Policy is asked while the slot is being committed; of a partition that is ready, evidence is asked
for while the decision is being recorded (ahead.py).

Whatever ends an open early (an error, the caller's cancellation, its deadline) gives the slot back in the background,
and records that nothing came of the decision.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

import structlog

from bulkhead import ids
from bulkhead.errors import BulkheadError, ConflictError, DeadlineError, ScopeError
from control_plane.domain.roles import Caller
from control_plane.domain.sessions import OpenRequest, Session, SessionState
from control_plane.services.book import PartitionBook
from control_plane.services.revocations import Revocations
from control_plane.services.sessions.admissions import Admissions, OnFound
from control_plane.services.sessions.ahead import AskedAhead
from control_plane.services.sessions.decide import Allowed, Asked, Decider, Denied, Question
from control_plane.services.sessions.grant import Grant
from control_plane.services.sessions.renew import SessionRenewer
from control_plane.services.sessions.serve import Phase, Report, Server, Serving, changed_twice, once_more
from control_plane.services.settings import SessionSettings
from control_plane.storage.engine import Database
from control_plane.storage.sessions import Admission, Found, Sessions, TenantSnapshot

__all__ = ["SessionOpener"]

DECISIONS: Final = 2  # decide again once (docs/audit.md section 1)
RUNNING_WAIT_S: Final = 5.0  # for another call with the same request id, whose end this server may not know yet
RUNNING_POLL_S: Final = 0.1

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Attempt:
    caller: Caller
    admission: Admission
    nonce: bytes
    serving: Serving | None = None  # set once an allow is recorded, which then needs an outcome


class _Early:
    """The question to policy, asked as soon as a reservation is written and while it is being committed."""

    def __init__(self, *, decider: Decider, caller: Caller) -> None:
        self._decider = decider
        self._caller = caller
        self._question: Question | None = None

    def ask(self, admission: Admission) -> None:
        """Ask about a reservation; what is wrong with the request is told when it is decided on."""
        self.drop()
        if admission.reserved:
            with contextlib.suppress(BulkheadError):
                self._question = self._decider.ask(_asked(self._caller, admission, admission.facts))

    def take(self, facts: TenantSnapshot) -> Question | None:
        """Return the question if it was asked on these very facts, once."""
        question, self._question = self._question, None
        if question is not None and question.asked.facts is not facts:  # the reservation was made anew
            question.answer.cancel()
            return None
        return question

    def drop(self) -> None:
        """Wait for no answer."""
        if self._question is not None:
            self._question.answer.cancel()
            self._question = None


class SessionOpener:
    """Opens sessions.

    Args:
        database: the state.
        decider: asks policy and records.
        server: from a decision to a grant.
        renewer: serves a repeated request id.
        book: who uses which partition.
        revocations: sessions that come back leave the list.
        settings: bounds.
        now_us: wall clock, microseconds since the epoch.
    """

    def __init__(
        self,
        *,
        database: Database,
        decider: Decider,
        server: Server,
        renewer: SessionRenewer,
        book: PartitionBook,
        revocations: Revocations,
        settings: SessionSettings,
        now_us: Callable[[], int],
    ) -> None:
        self._database = database
        self._admissions = Admissions(database=database)
        self._decider = decider
        self._server = server
        self._renewer = renewer
        self._book = book
        self._revocations = revocations
        self._settings = settings
        self._now_us = now_us
        self._background: set[asyncio.Task[None]] = set()

    async def open(self, caller: Caller, request: OpenRequest, report: Report) -> Grant:
        """Open a session and return its grant.

        Args:
            caller: authenticated, with the scope for it.
            request: in bounds.
            report: told of each phase that begins.

        Raises:
            PolicyDeniedError, SessionLimitError, UnknownObligationError: policy said no.
            PolicyEngineError, AuditUnavailableError, StateUnavailableError: nothing was placed.
            CapacityError, AgentUnavailableError, EvidenceError: allowed, and nothing is open.
            AlreadyExistsError: the request id was used for another request.
            SessionClosedError: the request id's session is closed.
            UnknownModelError: no such model.
            ConflictError: another call is opening it, or its ground kept changing.
            DeadlineError: it took too long.
        """
        if not caller.tenant_id:
            raise ScopeError("sessions are opened by a tenant's developers")
        try:
            async with asyncio.timeout(self._settings.open_timeout_s):
                return await self._open(caller, request, report)
        except TimeoutError as error:
            raise DeadlineError(f"the session was not open within {self._settings.open_timeout_s} s") from error

    async def stop(self) -> None:
        """Wait for what is being given back."""
        await asyncio.gather(*self._background, return_exceptions=True)

    async def _open(self, caller: Caller, request: OpenRequest, report: Report) -> Grant:
        early = _Early(decider=self._decider, caller=caller)
        try:
            admission = await self._admit(caller, request, early.ask)
            if admission.found is Found.OPEN:
                return await self._renewer.renew(caller, admission.session.session_id, request.nonce)
            return await self._go_on(_Attempt(caller=caller, admission=admission, nonce=request.nonce), early, report)
        finally:
            early.drop()

    async def _go_on(self, attempt: "_Attempt", early: "_Early", report: Report) -> Grant:
        admission = attempt.admission
        try:
            grant = await self._serve(attempt, early, report)
        except BaseException as error:
            if admission.reserved:
                self._later(self._abandon(admission, attempt.serving, error))
            raise
        self._revocations.restore(admission.session.session_id)
        return grant

    async def _serve(self, attempt: "_Attempt", early: "_Early", report: Report) -> Grant:
        session, facts = attempt.admission.session, attempt.admission.facts
        for _ in range(DECISIONS):
            attempt.serving = serving = await self._decide(attempt, facts, early.take(facts))
            report(Phase.DECIDED, "policy allows it, and the decision is recorded")
            try:
                grant = None if once_more(serving.decided, facts) else await self._server.open(serving, report)
            finally:
                _drop(serving.ahead)
            if grant is not None:
                return grant
            facts = await self._database.read(
                lambda tx: Sessions(tx.connection).snapshot(session.tenant_id, without=session.session_id)
            )
        raise changed_twice()

    async def _decide(self, attempt: "_Attempt", facts: TenantSnapshot, question: Question | None) -> Serving:
        admission, session = attempt.admission, attempt.admission.session
        ahead: AskedAhead | None = None

        def on_allow(allowed: Allowed) -> None:
            nonlocal ahead
            ahead = self._server.ask_ahead(session, allowed, attempt.nonce)

        asked = _asked(attempt.caller, admission, facts)
        try:
            decided = await self._decider.decide(asked, on_allow, question=question)
        except BaseException:
            _drop(ahead)
            raise
        if isinstance(decided, Denied):
            await self._deny(admission, decided)
            raise decided.error
        return Serving(
            caller=attempt.caller,
            session=session,
            pair_id=session.pair_id,
            facts=facts,
            decided=decided,
            nonce=attempt.nonce,
            ahead=ahead,
        )

    async def _admit(self, caller: Caller, request: OpenRequest, on_found: OnFound) -> Admission:
        waited_s = 0.0
        while True:
            # Shielded: a transaction that runs in its thread cannot be taken back, only undone when it is known.
            admitting = asyncio.ensure_future(self._admit_once(caller, request, on_found))
            try:
                admission = await asyncio.shield(admitting)
            except asyncio.CancelledError:
                self._later(self._abandon_unseen(admitting))
                raise
            if admission.found is not Found.RUNNING:
                return admission
            if waited_s >= RUNNING_WAIT_S:
                raise ConflictError("another call is opening this session: wait for it, or use a new request id")
            await asyncio.sleep(RUNNING_POLL_S)
            waited_s += RUNNING_POLL_S

    async def _admit_once(self, caller: Caller, request: OpenRequest, on_found: OnFound) -> Admission:
        fresh = Session(
            session_id=ids.new_id(ids.SESSION),
            tenant_id=caller.tenant_id,
            principal_id=caller.principal_id,
            credential_id=caller.credential_id,
            subject_id=caller.subject_id,
            request_id=request.request_id,
            request_sha256=request.digest(),
            model=request.model,
            model_digest=b"",
            session_public_key=request.session_public_key,
            purpose=request.purpose,
            region=request.region,
            data_classes=request.data_classes,
            minimum_tier=request.minimum_tier,
            max_output_tokens=request.max_output_tokens,
            padding=request.padding,
            state=SessionState.OPENING,
            pair_id=str(ids.new_uuid7()),
            created_us=self._now_us(),
            tenant_revision=0,
        )
        return await self._admissions.admit(request, fresh, on_found)

    async def _deny(self, admission: Admission, denied: Denied) -> None:
        """Keep the row of a recorded denial; one that was only counted leaves none, or a flood would fill the table."""
        if admission.reserved and denied.recorded:
            session_id, now_us = admission.session.session_id, self._now_us()
            await self._database.write(
                lambda tx: Sessions(tx.connection).settle(
                    session_id, SessionState.DENIED, reason=denied.error.code, now_us=now_us
                )
            )

    async def _abandon_unseen(self, admitting: "asyncio.Future[Admission]") -> None:
        admission = await admitting
        await self._abandon(admission, None, ConflictError("abandoned"))

    async def _abandon(self, admission: Admission, serving: Serving | None, error: BaseException) -> None:
        session = admission.session
        partition_ids = self._book.used_by(session.session_id)
        try:
            if admission.reserved:
                await self._database.write(
                    lambda tx: Sessions(tx.connection).abandon(
                        session.session_id, session.pair_id, before=admission.before
                    )
                )
        finally:
            for partition_id in partition_ids:
                self._book.leave(partition_id, session.session_id)
            if serving is not None:  # the decision gets its outcome, whatever becomes of the row
                await self._server.failed(serving, error)

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(self._guarded(work), name="abandon-session")
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except BulkheadError as error:  # the reconciler frees what stays behind
            log.warning("session.abandon_failed", code=error.code)


def _asked(caller: Caller, admission: Admission, facts: TenantSnapshot) -> Asked:
    session = admission.session
    return Asked(
        caller=caller,
        action="session.open",
        session=session,
        pair_id=session.pair_id,
        facts=facts,
        model=admission.model,
        reserved=admission.reserved,
    )


def _drop(ahead: AskedAhead | None) -> None:
    if ahead is not None:
        ahead.drop()
