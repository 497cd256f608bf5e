"""The chain over commits: what the lock store remembers, and what ties a database to one history.

``chain[0] = SHA-256(label)``; ``chain[n] = SHA-256(chain[n-1] ‖ entries)`` with one entry per log that grew, sorted by
origin: ``lp(origin) ‖ size as 8 bytes big-endian ‖ SHA-256(frontier)``. A restored backup, a second writer or a
rewritten tree cannot produce the chain value that the lock store holds. A declared break (:func:`across_break`) is the
one way to go on from two histories.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from bulkhead.encoding import lp
from bulkhead.errors import CheckpointError
from bulkhead.transparency.merkle import Frontier

__all__ = ["GENESIS", "LockState", "across_break", "broken_from", "next_chain", "parse_state", "show_state"]


@dataclass(frozen=True, slots=True)
class LockState:
    """The last acknowledged commit.

    Attributes:
        seq: its number; 0 before the first.
        chain: its chain value, 32 bytes.
    """

    seq: int
    chain: bytes


_STATE: Final = re.compile(r"(0|[1-9][0-9]{0,17}) ([0-9a-f]{64})")
_BREAK_LABEL: Final = b"bulkhead/v1 audit break"
GENESIS: Final = LockState(0, hashlib.sha256(b"bulkhead/v1 audit chain").digest())


def next_chain(previous: bytes, grown: Iterable[tuple[str, Frontier]]) -> bytes:
    """Return the chain value after a commit that brought each log (by origin) to the given frontier."""
    digest = hashlib.sha256(previous)
    for origin, frontier in sorted(grown, key=lambda entry: entry[0]):
        digest.update(lp(origin.encode("utf-8")))
        digest.update(frontier.size.to_bytes(8, "big"))
        digest.update(hashlib.sha256(frontier.encode()).digest())
    return digest.digest()


def across_break(database: LockState, lock: LockState | None) -> LockState:
    """Return the state that the first commit after a declared break follows: it binds both histories.

    Args:
        database: the last commit that the database holds.
        lock: what the lock store holds, None if it is lost.
    """
    digest = hashlib.sha256(_BREAK_LABEL)
    for state in (database, LockState(0, bytes(32)) if lock is None else lock):
        digest.update(state.seq.to_bytes(8, "big") + state.chain)
    return LockState(max(database.seq, 0 if lock is None else lock.seq), digest.digest())


def show_state(state: LockState) -> str:
    """Return a state as text: its number and its chain value in hexadecimal."""
    return f"{state.seq} {state.chain.hex()}"


def parse_state(text: str) -> LockState:
    """Read :func:`show_state`'s text.

    Raises:
        CheckpointError: it is malformed.
    """
    match = _STATE.fullmatch(text)
    if match is None:
        raise CheckpointError("the state of a history is a number and 64 hexadecimal digits")
    return LockState(int(match[1]), bytes.fromhex(match[2]))


def broken_from(declared: object) -> tuple[LockState, LockState | None]:
    """Return the two histories that a new epoch's leaf cites in its ``break``, as (database, lock).

    Raises:
        CheckpointError: it is malformed.
    """
    if not isinstance(declared, dict):
        raise CheckpointError("a break cites its two histories")
    lock = declared.get("lock")
    return parse_state(str(declared.get("database"))), None if lock is None else parse_state(str(lock))
