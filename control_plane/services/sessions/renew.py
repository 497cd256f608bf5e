"""Renewing a session: a new nonce, policy again, fresh evidence, a new ticket. Nothing may weaken."""

import asyncio
from typing import Final

from bulkhead import ids
from bulkhead.errors import ConflictError, ScopeError, SessionClosedError, WorkerLostError
from control_plane.domain.roles import Caller
from control_plane.domain.sessions import SessionState, check_nonce
from control_plane.services.sessions.decide import Asked, Decider, Denied
from control_plane.services.sessions.grant import Grant
from control_plane.services.sessions.serve import Server, Serving, changed_twice, once_more
from control_plane.storage.engine import Database
from control_plane.storage.sessions import Admission, Sessions

__all__ = ["SessionRenewer"]

DECISIONS: Final = 2  # decide again once (docs/audit.md section 1)


class SessionRenewer:
    """Renews sessions.

    Args:
        database: the state.
        decider: asks policy and records.
        server: from a decision to a grant.
    """

    def __init__(self, *, database: Database, decider: Decider, server: Server) -> None:
        self._database = database
        self._decider = decider
        self._server = server

    async def renew(self, caller: Caller, session_id: str, nonce: bytes) -> Grant:
        """Return a new grant for an open session of the caller's tenant.

        Raises:
            InvalidRequestError: the nonce is not 32 bytes, or the id is none.
            NotFoundError: the tenant has no such session.
            SessionClosedError: it is closed.
            WorkerLostError: its worker is gone, or no longer fits what policy demands.
            PolicyDeniedError, UnknownObligationError: policy says no; the session ends with its ticket.
            UnavailableError, EvidenceError: nothing has changed; try again while the ticket lasts.
            ConflictError: it is being opened still, or its ground kept changing.
        """
        ids.check_id(session_id, ids.SESSION)
        check_nonce(nonce)
        if not caller.tenant_id:
            raise ScopeError("sessions are renewed by a tenant's developers")
        for _ in range(DECISIONS):
            serving = await self._decide(caller, await self._read(caller, session_id), nonce)
            grant = await self._serve(serving)
            if grant is not None:
                return grant
        raise changed_twice()

    async def _serve(self, serving: Serving) -> Grant | None:
        try:
            grant = None if once_more(serving.decided, serving.facts) else await self._server.renew(serving)
        except BaseException as error:
            await asyncio.shield(self._server.failed(serving, error))
            raise
        if grant is None:
            await self._server.failed(serving, changed_twice())
        return grant

    async def _read(self, caller: Caller, session_id: str) -> Admission:
        admission = await self._database.read(
            lambda tx: Sessions(tx.connection).for_renewal(session_id, tenant_id=caller.tenant_id)
        )
        session = admission.session
        if session.state is SessionState.LOST:
            raise WorkerLostError("the session's worker is gone: open a new session")
        if session.state is SessionState.OPENING:
            raise ConflictError("the session is being opened still")
        if session.state is not SessionState.OPEN:
            raise SessionClosedError("the session is closed: open a new one")
        if session.model_digest != admission.model.digest:
            raise WorkerLostError("the model was registered anew: open a new session")
        # Policy is asked about a fleet; a part of it that is merely not connected must not read as a denial.
        self._server.check_reachable(session)
        return admission

    async def _decide(self, caller: Caller, admission: Admission, nonce: bytes) -> Serving:
        pair_id = str(ids.new_uuid7())
        decided = await self._decider.decide(
            Asked(
                caller=caller,
                action="session.renew",
                session=admission.session,
                pair_id=pair_id,
                facts=admission.facts,
                model=admission.model,
                reserved=True,
            )
        )
        if isinstance(decided, Denied):
            raise decided.error
        return Serving(
            caller=caller,
            session=admission.session,
            pair_id=pair_id,
            facts=admission.facts,
            decided=decided,
            nonce=nonce,
        )
