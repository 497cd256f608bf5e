"""Asking policy: one question, one well-formed decision of the active bundle, within a bound, or an error.

1. At most ``max_in_flight`` questions are with OPA at once; at most ``max_waiting`` wait, each ``queue_timeout_s`` at
   most. Beyond that the caller is refused at once.
2. A question that OPA has taken is answered within ``deadline_s`` or fails.
3. When a question fails in transport, all that waited behind it fail with it: OPA is down, and waiting in line for
   one time-out after the other would keep callers for minutes.
4. The reply names the revision that decided; another than the connection's own is refused.
5. The result is read by :func:`~control_plane.authz.decision.parse_decision`.
"""

import asyncio
from typing import Final, Protocol

from bulkhead.errors import PolicyEngineError
from control_plane.authz.connection import OpaConnection, OpaReply
from control_plane.authz.deadline import within
from control_plane.authz.decision import Decision, parse_decision
from control_plane.authz.input import PolicyInput

__all__ = ["DEADLINE_S", "ExternalOpa", "PolicyClient", "PolicyEngine"]

DEADLINE_S: Final = 1.5
"""Upper bound of one question; with it a caller hears of a dead engine within 2 s."""


class PolicyEngine(Protocol):
    """Where decisions come from: the supervised OPA, or one that somebody else runs."""

    def connection(self) -> OpaConnection:
        """Return the connection to the OPA that serves the active bundle.

        Raises:
            PolicyEngineError: none serves now.
        """

    def suspect(self, connection: OpaConnection) -> None:
        """Take note that a question on ``connection`` failed in transport."""


class ExternalOpa:
    """An OPA server that somebody else runs and that must serve the revision of ``connection``."""

    def __init__(self, *, connection: OpaConnection) -> None:
        self._connection = connection

    def connection(self) -> OpaConnection:
        """Return the one connection."""
        return self._connection

    def suspect(self, connection: OpaConnection) -> None:
        """Do nothing: whoever runs the server watches it."""


class PolicyClient:
    """Asks the policy engine, bounded in number and time.

    Args:
        engine: supplies the connection of the active bundle.
        deadline_s: bound of one question once OPA has it.
        max_in_flight: questions with OPA at once; more raise its latency, not its rate.
        max_waiting: questions waiting in this process.
        queue_timeout_s: bound of the wait, which a burst of sessions needs; see rule 3 for an engine that is down.
    """

    def __init__(
        self,
        *,
        engine: PolicyEngine,
        deadline_s: float = DEADLINE_S,
        max_in_flight: int = 16,
        max_waiting: int = 8192,
        queue_timeout_s: float = 30.0,
    ) -> None:
        self._engine = engine
        self._deadline_s = deadline_s
        self._slots = asyncio.Semaphore(max_in_flight)
        self._max_waiting = max_waiting
        self._queue_timeout_s = queue_timeout_s
        self._waiting = 0
        self._failures = 0

    async def decide(self, request: PolicyInput) -> Decision:
        """Return what the active bundle decides about ``request``.

        A deny is a returned :class:`Decision`, not an error.

        Raises:
            InvalidRequestError: the input is too long to be recorded.
            UnknownObligationError: allowed under an obligation this build cannot keep; record it as a deny (the
                details name bundle and input digest).
            PolicyEngineError: no well-formed decision: down, slow, undefined, another revision, or too many waiting.
        """
        input_digest = request.digest()
        reply = await self._ask(request)
        return parse_decision(reply.result, bundle_digest=reply.revision, input_digest=input_digest)

    async def _ask(self, request: PolicyInput) -> OpaReply:
        failures_before = self._failures
        await self._enter()
        try:
            if self._failures != failures_before:
                raise PolicyEngineError("The policy engine failed while this request waited for it.")
            connection = self._engine.connection()
            reply = await self._query(connection, request)
        finally:
            self._slots.release()
        if reply.revision != connection.revision:
            raise PolicyEngineError(
                "The policy engine decided with another bundle than the active one.",
                details={"active": connection.revision},
            )
        return reply

    async def _enter(self) -> None:
        if self._waiting >= self._max_waiting:
            raise PolicyEngineError("Too many requests are waiting for the policy engine.")
        self._waiting += 1
        try:
            async with asyncio.timeout(self._queue_timeout_s):
                await self._slots.acquire()
        except TimeoutError as error:
            raise PolicyEngineError("The policy engine is overloaded: this request waited too long.") from error
        finally:
            self._waiting -= 1

    async def _query(self, connection: OpaConnection, request: PolicyInput) -> OpaReply:
        try:
            return await within(connection.query(request.entrypoint, request.to_json()), timeout_s=self._deadline_s)
        except (TimeoutError, ConnectionError) as error:
            self._failures += 1
            self._engine.suspect(connection)
            slow = isinstance(error, TimeoutError)
            raise PolicyEngineError(
                "The policy engine did not answer in time." if slow else "The policy engine cannot be reached."
            ) from error
