"""One timer for all who wait: the limit is the same for each, so the first to begin is the first to be late."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

__all__ = ["Deadlines"]


class Deadlines:
    """Ends futures that take too long. Used on the event loop alone."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limit_s: float, late: Callable[[str], Exception]) -> None:
        """Allow each future ``limit_s`` seconds; ``late`` makes the error of one from what it waits for."""
        self._loop = loop
        self._limit_s = limit_s
        self._late = late
        self._waiting: deque[tuple[float, asyncio.Future[Any], str]] = deque()  # by deadline; many are done
        self._armed = False

    def watch(self, future: "asyncio.Future[Any]", what: str) -> None:
        """Begin to count the time of a future."""
        waiting = self._waiting
        while waiting and waiting[0][1].done():
            waiting.popleft()
        until = self._loop.time() + self._limit_s
        waiting.append((until, future, what))
        if not self._armed:
            self._armed = True
            self._loop.call_at(until, self._due)

    def _due(self) -> None:
        waiting, now = self._waiting, self._loop.time()
        while waiting and (waiting[0][0] <= now or waiting[0][1].done()):
            _, future, what = waiting.popleft()
            if not future.done():
                future.set_exception(self._late(what))
        self._armed = bool(waiting)
        if waiting:
            self._loop.call_at(waiting[0][0], self._due)
