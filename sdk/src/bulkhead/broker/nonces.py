"""A broker's own nonces: each is good once, and for a short time."""

import secrets
import threading
from collections.abc import Callable
from typing import Final

from bulkhead.errors import EvidenceBindingError, ExhaustedError
from bulkhead.protocol.release import NONCE_BYTES

__all__ = ["Nonces"]

LIFE_S: Final = 120.0  # a worker that boots asks at once; a quote takes seconds at most
MAX_OPEN: Final = 4096  # releases under way at once; more is somebody who never comes back with evidence


class Nonces:
    """Makes nonces and takes each back once. Safe from any thread.

    Args:
        monotonic_s: seconds that never go backwards.
        random_bytes: source.
    """

    def __init__(
        self, *, monotonic_s: Callable[[], float], random_bytes: Callable[[int], bytes] = secrets.token_bytes
    ) -> None:
        self._monotonic_s = monotonic_s
        self._random_bytes = random_bytes
        self._until_s: dict[bytes, float] = {}
        self._lock = threading.Lock()

    def make(self) -> bytes:
        """Return a fresh nonce, 32 bytes.

        Raises:
            ExhaustedError: too many are open: try again in two minutes.
        """
        now_s = self._monotonic_s()
        with self._lock:
            while self._until_s and next(iter(self._until_s.values())) <= now_s:  # in order of their ends
                del self._until_s[next(iter(self._until_s))]
            if len(self._until_s) >= MAX_OPEN:
                raise ExhaustedError(f"the key broker has {MAX_OPEN} open requests: try again later")
            nonce = self._random_bytes(NONCE_BYTES)
            self._until_s[nonce] = now_s + LIFE_S
        return nonce

    def claim(self, nonce: bytes) -> None:
        """Use up a nonce.

        Raises:
            EvidenceBindingError: it is not one of ours, was used, or is too old.
        """
        with self._lock:
            until_s = self._until_s.pop(nonce, 0.0)
        if until_s <= self._monotonic_s():
            raise EvidenceBindingError("the nonce is not one that this key broker made, or was used, or is too old")
