"""Deadlines that hold on the client's side: a connection whose work takes too long is cut.

A server's own time-outs do not help against a server that is frozen, or gone without a word. Cutting the socket wakes
the thread that waits on it; its driver then reports a lost connection, and the outcome of what it did is not known.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

__all__ = ["Watchdog"]

_ROUNDS_PER_LIMIT: Final = 8  # a deadline is kept to within an eighth


class Watchdog:
    """Watches sockets on a thread of its own, which runs while there are any."""

    def __init__(self, limit_s: float) -> None:
        """Allow each watched piece of work ``limit_s`` seconds."""
        self._limit_s = limit_s
        self._watched: dict[int, float] = {}  # our duplicate of the socket, and when it is cut (monotonic)
        self._changed = threading.Condition()
        self._running = False
        self._busy = False  # something was watched since the thread last looked
        self._dozing = False

    def watch(self, fd: int) -> int:
        """Begin to watch a socket; return a handle for :meth:`release`.

        The socket is duplicated, so that a number that was closed and given to something else is never cut.
        """
        handle = os.dup(fd)
        with self._changed:
            self._watched[handle] = time.monotonic() + self._limit_s
            self._busy = True
            if not self._running:
                self._running = True
                threading.Thread(target=self._run, name="audit-watchdog", daemon=True).start()
            elif self._dozing:  # seldom: to wake it at every commit would cost more than the commit's statements
                self._changed.notify()
        return handle

    def release(self, handle: int) -> None:
        """End to watch."""
        with self._changed:
            if self._watched.pop(handle, None) is not None:
                os.close(handle)

    @contextmanager
    def watching(self, fd: int) -> Iterator[None]:
        """Watch a socket while the context lasts."""
        handle = self.watch(fd)
        try:
            yield
        finally:
            self.release(handle)

    def _run(self) -> None:
        pause_s = self._limit_s / _ROUNDS_PER_LIMIT
        with self._changed:
            while True:
                now = time.monotonic()
                for handle in [handle for handle, until in self._watched.items() if until < now]:
                    del self._watched[handle]
                    _cut(handle)
                if not self._watched and not self._busy:
                    self._dozing = True
                    awake = self._changed.wait(60)
                    self._dozing = False
                    if not awake and not self._watched:
                        self._running = False
                        return
                self._busy = False
                self._changed.wait(pause_s)


def _cut(handle: int) -> None:
    with socket.socket(fileno=handle) as connection, contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
