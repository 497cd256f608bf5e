"""The chain over commits: what the lock store remembers, and what ties a database to one history.

``chain[0] = SHA-256(label)``; ``chain[n] = SHA-256(chain[n-1] ‖ entries)`` with one entry per log that grew, sorted by
origin: ``lp(origin) ‖ size as 8 bytes big-endian ‖ SHA-256(frontier)``. A restored backup, a second writer or a
rewritten tree cannot produce the chain value that the lock store holds.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from bulkhead.encoding import lp
from bulkhead.transparency.merkle import Frontier

__all__ = ["GENESIS", "LockState", "next_chain"]


@dataclass(frozen=True, slots=True)
class LockState:
    """The last acknowledged commit.

    Attributes:
        seq: its number; 0 before the first.
        chain: its chain value, 32 bytes.
    """

    seq: int
    chain: bytes


GENESIS: Final = LockState(0, hashlib.sha256(b"bulkhead/v1 audit chain").digest())


def next_chain(previous: bytes, grown: Iterable[tuple[str, Frontier]]) -> bytes:
    """Return the chain value after a commit that brought each log (by origin) to the given frontier."""
    digest = hashlib.sha256(previous)
    for origin, frontier in sorted(grown, key=lambda entry: entry[0]):
        digest.update(lp(origin.encode("utf-8")))
        digest.update(frontier.size.to_bytes(8, "big"))
        digest.update(hashlib.sha256(frontier.encode()).digest())
    return digest.digest()
