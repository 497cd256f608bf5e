"""Commands to one agent: sent once or again, answered once, never awaited without end.

A command outlives its stream: when the agent comes back within the deadline as the same process it gets the same
command id again, and answers from memory what it has done already. A new process of the agent knows nothing of it, so
the wait ends.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from bulkhead import ids
from bulkhead.errors import (
    AgentUnavailableError,
    BulkheadError,
    EvidenceError,
    ExhaustedError,
    SealedModelError,
    UnavailableError,
    error_from_code,
)
from control_plane.domain.fleet import (
    Command,
    CommandProgress,
    CommandResult,
    ControlNotice,
    Failure,
    Order,
    Outcome,
)

__all__ = ["Commands", "Outbox", "ProgressSink"]

MAX_PENDING: Final = 4_096  # per agent; more attestations at once than a tray can serve in their deadline
MAX_MESSAGE_CHARS: Final = 256
_PASSED_ON: Final = (UnavailableError, ExhaustedError, EvidenceError, SealedModelError)

ProgressSink = Callable[[str, str], None]
"""Takes (phase, sentence)."""


class Outbox(Protocol):
    """Where notices to a connected agent go; the servicer sends them."""

    def put(self, notice: ControlNotice) -> None:
        """Queue a notice.

        Raises:
            AgentUnavailableError: the stream is over, or the agent does not read.
        """


@dataclass(slots=True)
class _Pending:
    command: Command
    outcome: asyncio.Future[Outcome]
    progress: ProgressSink | None


class Commands:
    """The commands that one agent has not answered yet.

    Args:
        now_us: wall clock, microseconds since the epoch, for deadlines on the wire.
    """

    def __init__(self, *, now_us: Callable[[], int]) -> None:
        self._now_us = now_us
        self._outbox: Outbox | None = None
        self._pending: dict[str, _Pending] = {}

    def attach(self, outbox: Outbox) -> None:
        """Use a new stream of the same agent process; send again what is unanswered."""
        self._outbox = outbox
        for pending in tuple(self._pending.values()):
            outbox.put(pending.command)

    def detach(self) -> None:
        """The stream is over; unanswered commands wait for the next one, until their deadlines."""
        self._outbox = None

    def fail_all(self, reason: str) -> None:
        """End every wait: the agent process that had the commands is gone."""
        for pending in self._pending.values():
            if not pending.outcome.done():
                pending.outcome.set_exception(AgentUnavailableError(reason))

    async def run(
        self,
        order: Order,
        *,
        partition_id: str,
        fence: int,
        timeout_s: float,
        progress: ProgressSink | None = None,
    ) -> Outcome:
        """Send an order and return how it ended, a :class:`Failure` excepted.

        Raises:
            AgentUnavailableError: the agent is not connected, too busy, gone, or did not answer in time.
            BulkheadError: what the agent's failure says, where that is of use to the caller.
        """
        if self._outbox is None or len(self._pending) >= MAX_PENDING:
            raise AgentUnavailableError("the node agent of the partition is not connected, or has too much to do")
        command = Command(
            command_id=ids.new_id(ids.COMMAND),
            partition_id=partition_id,
            fence=fence,
            deadline_unix_ms=self._now_us() // 1_000 + int(timeout_s * 1_000),
            order=order,
        )
        pending = _Pending(command, asyncio.get_running_loop().create_future(), progress)
        self._pending[command.command_id] = pending
        try:
            self._outbox.put(command)
            async with asyncio.timeout(timeout_s):
                outcome = await pending.outcome
        except TimeoutError as error:
            raise AgentUnavailableError(f"the node agent did not answer within {timeout_s:.0f} s") from error
        finally:
            del self._pending[command.command_id]
        if isinstance(outcome, Failure):
            raise _error_of(outcome)
        return outcome

    def concern(self, partition_id: str) -> bool:
        """Return whether a command about that partition is unanswered."""
        return any(pending.command.partition_id == partition_id for pending in self._pending.values())

    def resolve(self, result: CommandResult) -> None:
        """Take an agent's answer; one to a command that nobody awaits any more is ignored."""
        pending = self._pending.get(result.command_id)
        if pending is not None and not pending.outcome.done():
            pending.outcome.set_result(result.outcome)

    def report(self, progress: CommandProgress) -> None:
        """Pass on how far a command is."""
        pending = self._pending.get(progress.command_id)
        if pending is not None and pending.progress is not None:
            pending.progress(progress.phase, progress.text)


def _error_of(failure: Failure) -> BulkheadError:
    """Return the agent's error where its class tells the tenant something true, else that the agent failed."""
    message = failure.message[:MAX_MESSAGE_CHARS]
    error = error_from_code(failure.code, message)
    if isinstance(error, _PASSED_ON):
        return error
    return AgentUnavailableError(
        f"the node agent could not do it: {message}", details={"agent_code": failure.code[:64]}
    )
