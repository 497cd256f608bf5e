"""A worker's generations of keys: a new one at half-life, the older one kept for what was sealed to it until it ends.

New evidence speaks of the current generation only. A client whose session stands on the older one goes on with the
connection it has, and renews within its ticket's few minutes.
"""

from collections.abc import Callable
from typing import Final

from bulkhead.sealing import WorkerKeys
from bulkhead.sealing.keyset import MAX_KEYSET_LIFE_S
from service.tls import Identity

__all__ = ["KeyRing"]


class KeyRing:
    """The keys of one worker.

    Args:
        authority: the worker's name, in its certificates.
        wall_s: Unix seconds.
        life_s: seconds that a generation lives, at most 24 hours.

    Attributes:
        current: the latest generation.
    """

    def __init__(self, *, authority: str, wall_s: Callable[[], float], life_s: int = MAX_KEYSET_LIFE_S) -> None:
        self._authority: Final = authority
        self._wall_s = wall_s
        self._life_s = life_s
        self._all: list[WorkerKeys] = []
        self.current = self._generate()
        self._identity = _identity(self.current)

    def identity(self) -> Identity:
        """Return the TLS identity of the current generation; safe from any thread."""
        return self._identity

    @property
    def due_s(self) -> float:
        """Seconds until :meth:`rotate` or :meth:`take_expired` has something to do; zero or less when it has."""
        ends = [keys.keyset.not_after_s for keys in self._all[:-1]]
        return min((self._rotation_s(), *ends)) - self._wall_s()

    def rotate(self) -> WorkerKeys | None:
        """Begin a new generation and return it, if the current one has lived half its life."""
        if self._rotation_s() > self._wall_s():
            return None
        self.current = self._generate()
        self._identity = _identity(self.current)
        return self.current

    def take_expired(self) -> tuple[WorkerKeys, ...]:
        """Give up and return the generations whose time has passed; the caller destroys them."""
        now_s = self._wall_s()
        expired = tuple(keys for keys in self._all if keys.keyset.not_after_s <= now_s)
        self._all = [keys for keys in self._all if keys not in expired]
        return expired

    def destroy(self) -> None:
        """Destroy every key."""
        for keys in self._all:
            keys.destroy()

    def _rotation_s(self) -> float:
        return self.current.keyset.not_after_s - self._life_s / 2

    def _generate(self) -> WorkerKeys:
        keys = WorkerKeys.generate(authority=self._authority, now_s=int(self._wall_s()), life_s=self._life_s)
        self._all.append(keys)
        return keys


def _identity(keys: WorkerKeys) -> Identity:
    return Identity(certificate_pem=keys.tls_certificate, private_key_pem=keys.tls_private_key())
