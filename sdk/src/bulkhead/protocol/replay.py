"""Replay windows: each sequence number is used once within its scope (docs/protocol.md section 5).

A window holds 1,024 numbers. Its base moves past numbers that are all claimed, and only past those: a number below
the base was used, one at or beyond base + 1,024 is refused, and nothing is ever evicted. So a claim that succeeded
once never succeeds again while the key lives, whatever arrives in between.
"""

import threading
from typing import Final

from bulkhead.errors import ReplayError, WindowFullError
from bulkhead.protocol.context import SessionScope

__all__ = ["MAX_SCOPES", "WINDOW", "ReplayGuard"]

WINDOW: Final = 1_024
MAX_SCOPES: Final = 65_536  # sessions and renewals in one key's life; each scope takes less than 1 KiB


class _Window:
    __slots__ = ("base", "claimed")

    def __init__(self) -> None:
        self.base = 0
        self.claimed = 0  # bit i: base + i

    def claim(self, sequence: int) -> None:
        offset = sequence - self.base
        if offset < 0 or (offset < WINDOW and self.claimed >> offset & 1):
            raise ReplayError("the sequence number was used before")
        if offset >= WINDOW:
            raise WindowFullError("the replay window is full: renew the session")
        self.claimed |= 1 << offset
        done = (~self.claimed & self.claimed + 1).bit_length() - 1  # length of the run of ones at the base
        self.base += done
        self.claimed >>= done


class ReplayGuard:
    """Windows of one worker, by scope, for as long as the scope's KEM key lives. Safe across threads."""

    def __init__(self) -> None:
        self._windows: dict[SessionScope, _Window] = {}
        self._lock = threading.Lock()

    def claim(self, scope: SessionScope, sequence: int) -> None:
        """Use up ``sequence`` in ``scope``; call after authentication and before anything is done.

        Raises:
            ReplayError: it was used before.
            WindowFullError: it is too far ahead of unclaimed numbers, or the worker knows 65,536 scopes.
        """
        with self._lock:
            window = self._windows.get(scope)
            if window is None:
                if len(self._windows) >= MAX_SCOPES:
                    raise WindowFullError("the worker has no room for another session: renew for another key")
                window = self._windows[scope] = _Window()
            window.claim(sequence)

    def forget(self, key_id: bytes) -> None:
        """Drop the windows of a KEM key that was destroyed: nothing sealed to it opens any more."""
        with self._lock:
            self._windows = {scope: window for scope, window in self._windows.items() if scope.key_id != key_id}
