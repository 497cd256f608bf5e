"""SessionService and SessionQueryService. Admission has authenticated the caller and checked the scope."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

from bulkhead.v1 import session_pb2 as pb
from bulkhead.v1 import session_pb2_grpc
from control_plane.rpc.caller import current_caller
from control_plane.rpc.session_convert import (
    grant_message,
    open_request,
    progress_message,
    session_message,
)
from control_plane.services.paging import page_size, page_token
from control_plane.services.sessions import Grant, Phase, SessionService

__all__ = ["SessionQueryServicer", "SessionServicer"]


QUIET_S: Final = 0.05  # a person notices nothing sooner, and a message costs each end about 0.1 ms of CPU
_SLOW: Final = frozenset({Phase.CREATING, Phase.LOADING})


class _Steps:
    """The steps of one open that are told. Those of an open that is ready at once are not."""

    def __init__(self) -> None:
        self.told: asyncio.Queue[tuple[Phase, str] | None] = asyncio.Queue()  # bounded by the phases of one open
        self._held: list[tuple[Phase, str]] | None = []
        self._timer = asyncio.get_running_loop().call_later(QUIET_S, self._tell)

    def report(self, phase: Phase, text: str) -> None:
        """Take a step that begins."""
        if phase in _SLOW:
            self._tell()
        if self._held is None:
            self.told.put_nowait((phase, text))
        else:
            self._held.append((phase, text))

    def end(self) -> None:
        """The open has ended, whichever way."""
        self._timer.cancel()
        self.told.put_nowait(None)

    def _tell(self) -> None:
        held, self._held = self._held, None
        for step in held or ():
            self.told.put_nowait(step)


class SessionServicer(session_pb2_grpc.SessionServiceServicer):
    """Opens, renews and closes sessions."""

    def __init__(self, *, sessions: SessionService) -> None:
        self._sessions = sessions

    async def OpenSession(self, request: pb.OpenSessionRequest, context: Any) -> AsyncIterator[pb.OpenSessionEvent]:  # noqa: N802, ARG002  gRPC's names
        """Open a session; tell how far it is; end with the grant."""
        steps = _Steps()
        opening = asyncio.create_task(self._sessions.open(current_caller(), open_request(request), steps.report))
        opening.add_done_callback(lambda _: steps.end())
        try:
            while (event := await steps.told.get()) is not None:
                yield progress_message(*event)
            yield pb.OpenSessionEvent(ready=grant_message(await opening))
        finally:
            await _ended(opening)

    async def RenewSession(self, request: pb.RenewSessionRequest, context: Any) -> pb.RenewSessionResponse:  # noqa: N802, ARG002  gRPC's names
        """Renew a session."""
        grant = await self._sessions.renew(current_caller(), request.session_id, request.nonce)
        return pb.RenewSessionResponse(grant=grant_message(grant))

    async def CloseSession(self, request: pb.CloseSessionRequest, context: Any) -> pb.CloseSessionResponse:  # noqa: N802, ARG002  gRPC's names
        """Close a session."""
        await self._sessions.close(current_caller(), request.session_id)
        return pb.CloseSessionResponse()


class SessionQueryServicer(session_pb2_grpc.SessionQueryServiceServicer):
    """Reads sessions of the caller's tenant."""

    def __init__(self, *, sessions: SessionService) -> None:
        self._sessions = sessions

    async def GetSession(self, request: pb.GetSessionRequest, context: Any) -> pb.GetSessionResponse:  # noqa: N802, ARG002  gRPC's names
        """Return one session."""
        session = await self._sessions.get(current_caller(), request.session_id)
        return pb.GetSessionResponse(session=session_message(session))

    async def ListSessions(self, request: pb.ListSessionsRequest, context: Any) -> pb.ListSessionsResponse:  # noqa: N802, ARG002  gRPC's names
        """List sessions, newest first."""
        limit = page_size(request.page.size)
        found = await self._sessions.page(
            current_caller(), open_only=request.open_only, after=page_token(request.page.token), limit=limit
        )
        return pb.ListSessionsResponse(
            sessions=[session_message(session) for session in found],
            next_page_token=found[-1].session_id if len(found) == limit else "",
        )


async def _ended(opening: "asyncio.Task[Grant]") -> None:
    """End an open whose caller went away; what it took is given back by the open itself."""
    if not opening.done():
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
