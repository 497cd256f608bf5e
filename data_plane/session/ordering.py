"""What an agent remembers of the commands it was given: results by id, the newest fence of each partition."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any, Final

from bulkhead.errors import ConflictError, DeadlineError, ExhaustedError, InvalidRequestError
from bulkhead.ids import MAX_ID_LENGTH, PARTITION, check_id
from data_plane.session.commands import Command, Result

__all__ = ["CommandMemory"]

MAX_RESULTS: Final = 4_096  # as many commands as a control plane has open with one agent
MAX_FENCES: Final = 16_384
_MS: Final = 1000


class CommandMemory:
    """Makes commands idempotent and keeps overtaken ones out.

    Args:
        wall_s: Unix seconds.
    """

    def __init__(self, *, wall_s: Callable[[], float]) -> None:
        self._wall_s = wall_s
        self._results: OrderedDict[str, asyncio.Task[Result]] = OrderedDict()
        self._fences: OrderedDict[str, int] = OrderedDict()

    async def once(self, command_id: str, work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """Return the result of ``work``, which is begun unless a command of that id was: then that one's result.

        Raises:
            ExhaustedError: too many commands are under way.
        """
        task = self._results.get(command_id)
        if task is None:
            self._make_room()
            task = asyncio.create_task(work())
            self._results[command_id] = task
        return await asyncio.shield(task)

    def check(self, command: Command) -> None:
        """Check what holds for every command, and note its fence.

        Raises:
            InvalidRequestError: an id is malformed.
            DeadlineError: its deadline has passed.
            ConflictError: the partition has seen a newer fence.
        """
        check_id(command.partition_id, PARTITION)
        if not 0 < len(command.command_id) <= MAX_ID_LENGTH:
            raise InvalidRequestError(f"a command id has 1 to {MAX_ID_LENGTH} characters")
        if self._wall_s() * _MS >= command.deadline_ms:
            raise DeadlineError("the command's deadline has passed")
        if command.fence < self._fences.get(command.partition_id, 0):
            raise ConflictError("the command carries an older fence than the partition has seen")
        self.note_fence(command.partition_id, command.fence)

    def note_fence(self, partition_id: str, fence: int) -> None:
        """Refuse older fences of that partition from now on."""
        self._fences[partition_id] = fence
        self._fences.move_to_end(partition_id)
        while len(self._fences) > MAX_FENCES:
            self._fences.popitem(last=False)

    def _make_room(self) -> None:
        if len(self._results) < MAX_RESULTS:
            return
        finished = next((known for known, task in self._results.items() if task.done()), None)
        if finished is None:
            raise ExhaustedError(f"more than {MAX_RESULTS} commands at once")
        del self._results[finished]
