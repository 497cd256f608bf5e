"""Noticing that a peer stands still, at the price of one timer for many messages."""

import asyncio
from collections.abc import Callable

__all__ = ["IdleWatch"]


class IdleWatch:
    """Calls ``on_idle`` once when one ``with`` block of the watch has lasted ``idle_s`` seconds.

    Its timer looks at the time since the block began, and is set anew only when it has run out: messages are many. Used
    on the running event loop; :meth:`stop` ends it.
    """

    def __init__(self, on_idle: Callable[[], object], *, idle_s: float) -> None:
        self._on_idle = on_idle
        self._idle_s = idle_s
        self._loop = asyncio.get_running_loop()
        self._since_s: float | None = None
        self._timer = self._loop.call_later(idle_s, self._look)
        self.expired = False

    def __enter__(self) -> None:
        self._since_s = self._loop.time()

    def __exit__(self, *_: object) -> None:
        self._since_s = None

    def stop(self) -> None:
        """Look no more."""
        self._timer.cancel()

    def _look(self) -> None:
        now_s = self._loop.time()
        due_s = (now_s if self._since_s is None else self._since_s) + self._idle_s
        if due_s > now_s:
            self._timer = self._loop.call_at(due_s, self._look)
        else:
            self.expired = True
            self._on_idle()
