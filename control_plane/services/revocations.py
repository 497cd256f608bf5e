"""Sessions that may no longer be served although a ticket of theirs has not expired yet: what leases carry."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from control_plane.domain.sessions import Session

__all__ = ["Revocations"]


@dataclass(frozen=True, slots=True)
class _Revoked:
    partition_id: str
    until_us: int


class Revocations:
    """The revocation list. An entry stays until the session's last ticket has expired by itself.

    Args:
        now_us: wall clock, microseconds since the epoch.
    """

    def __init__(self, *, now_us: Callable[[], int]) -> None:
        self._now_us = now_us
        self._revoked: dict[str, _Revoked] = {}
        self._changed = asyncio.Event()

    def add(self, sessions: Iterable[Session]) -> None:
        """Revoke sessions; the next lease, sent at once, carries them."""
        now_us = self._now_us()
        for session in sessions:
            if session.expires_us > now_us and session.partition_id:
                self._revoked[session.session_id] = _Revoked(session.partition_id, session.expires_us)
                self._changed.set()

    def restore(self, session_id: str) -> None:
        """Take a session off the list: it was placed anew and has new tickets for another partition."""
        self._revoked.pop(session_id, None)

    def on(self, partition_ids: frozenset[str]) -> tuple[str, ...]:
        """Return the revoked sessions of those partitions, sorted."""
        return tuple(sorted(sid for sid, entry in self._revoked.items() if entry.partition_id in partition_ids))

    def expire(self) -> None:
        """Forget entries whose tickets have all expired."""
        now_us = self._now_us()
        for session_id in [sid for sid, entry in self._revoked.items() if entry.until_us <= now_us]:
            del self._revoked[session_id]

    async def wait(self, timeout_s: float) -> None:
        """Return when something was revoked since the last wait, or after ``timeout_s``."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            return
        self._changed.clear()
