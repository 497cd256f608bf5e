"""Reservations in batches: what queued while one transaction ran goes into the next, so that a burst needs few of them.

Nothing waits for company: a lone reservation runs at once. Each of a batch fails by itself; only a violated constraint
fails the transaction, after which its reservations run one by one.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from bulkhead.errors import BulkheadError, ConflictError, ExhaustedError
from control_plane.domain.sessions import OpenRequest, Session
from control_plane.storage.engine import Database, Transaction
from control_plane.storage.sessions import Admission, Sessions

__all__ = ["Admissions", "OnFound"]

MAX_BATCH: Final = 64  # about 50 ms of one thread; the other writers of the state wait no longer than that
MAX_WAITING: Final = 16_384  # above what the ports take at once

OnFound: TypeAlias = Callable[[Admission], None]
"""Takes a reservation that is not committed yet, on the event loop."""

_Asked: TypeAlias = tuple[OpenRequest, Session]


@dataclass(frozen=True, slots=True)
class _Waiting:
    asked: _Asked
    future: "asyncio.Future[Admission]"
    on_found: OnFound | None


class Admissions:
    """Takes slots for opens.

    Args:
        database: the state.
    """

    def __init__(self, *, database: Database) -> None:
        self._database = database
        self._waiting: deque[_Waiting] = deque()
        self._running: asyncio.Task[None] | None = None

    async def admit(self, request: OpenRequest, fresh: Session, on_found: OnFound | None = None) -> Admission:
        """Take a slot; see :meth:`control_plane.storage.sessions.Sessions.admit`.

        What ``on_found`` is told holds only if the very same admission is then returned.

        Not to be cancelled: a reservation that is under way cannot be taken back, only undone when it is known.

        Raises:
            BulkheadError: as there.
            ExhaustedError: too many wait already.
        """
        if len(self._waiting) >= MAX_WAITING:
            raise ExhaustedError(f"{MAX_WAITING} sessions are waiting to be opened already: try again later")
        future: asyncio.Future[Admission] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting((request, fresh), future, on_found))
        if self._running is None:
            self._running = asyncio.create_task(self._run(), name="admissions")
        return await future

    async def _run(self) -> None:
        try:
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_BATCH))]
                await self._admit_all(batch)
        finally:
            self._running = None

    async def _admit_all(self, batch: list[_Waiting]) -> None:
        asked = [waiting.asked for waiting in batch]
        loop = asyncio.get_running_loop()

        def work(tx: Transaction) -> list[Admission | BulkheadError]:
            found = _admit(tx, asked)
            loop.call_soon_threadsafe(_foretell, batch, found)
            return found

        outcomes: list[Admission | BulkheadError]
        try:
            outcomes = await self._database.write(work)
        except ConflictError:
            outcomes = [await self._alone(item) for item in asked]
        except BulkheadError as error:
            outcomes = [type(error)(error.message, details=error.details) for _ in asked]
        for waiting, outcome in zip(batch, outcomes, strict=True):
            if waiting.future.done():
                continue
            if isinstance(outcome, BulkheadError):
                waiting.future.set_exception(outcome)
            else:
                waiting.future.set_result(outcome)

    async def _alone(self, asked: _Asked) -> Admission | BulkheadError:
        try:
            (outcome,) = await self._database.write(lambda tx: _admit(tx, [asked]))
        except BulkheadError as error:
            return error
        return outcome


def _foretell(batch: Sequence[_Waiting], outcomes: Sequence[Admission | BulkheadError]) -> None:
    for waiting, outcome in zip(batch, outcomes, strict=True):
        if waiting.on_found is not None and not waiting.future.done() and not isinstance(outcome, BulkheadError):
            waiting.on_found(outcome)


def _admit(tx: Transaction, asked: list[_Asked]) -> list[Admission | BulkheadError]:
    sessions = Sessions(tx.connection)
    outcomes: list[Admission | BulkheadError] = []
    for request, fresh in asked:
        try:
            outcomes.append(sessions.admit(request, fresh))
        except BulkheadError as error:  # raised before anything of it was written
            outcomes.append(error)
    return outcomes
