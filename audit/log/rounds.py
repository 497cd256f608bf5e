"""Makes the rounds of the platform's log (the format and its reasons: :mod:`bulkhead.transparency.rounds`).

A round is made when a tenant's log has grown, at most once per interval, and once in a longer interval in any case.
A round whose fate is not known (the database failed while it was committed) is sent again, the same bytes, until it
is known; only then is the next one made. Several processes may make rounds of one log: a number belongs to whoever
commits it first, and the others begin again with what is acknowledged then, so that no round shows a smaller log than
a round before it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

from audit.keys import LogKeys
from audit.model import Appended, Head, LogInfo, RoundHead
from audit.records import Record, Stamp, log_round
from audit.store import NewLeaf
from bulkhead.errors import BulkheadError, ConflictError
from bulkhead.transparency.checkpoint import Checkpoint
from bulkhead.transparency.merkle import HASH_BYTES, inclusion_proof, leaf_hash, node_hash, root_at
from bulkhead.transparency.rounds import round_leaf

__all__ = ["PastRound", "PreparedRound", "Round", "RoundMaker", "RoundState", "make_rounds"]


@dataclass(frozen=True, slots=True)
class Round:
    """What stands in a round's slots.

    Attributes:
        number: of the round.
        logs: the log of each slot.
        sizes: size of each of them in the round.
        roots: root of each of them.
        levels: complete nodes of the round's tree, 32 bytes each, by level.
    """

    number: int
    logs: tuple[LogInfo, ...]
    sizes: tuple[int, ...]
    roots: tuple[bytes, ...]
    levels: tuple[bytes, ...]

    @classmethod
    def over(
        cls, keys: LogKeys, number: int, logs: tuple[LogInfo, ...], sizes: tuple[int, ...], roots: tuple[bytes, ...]
    ) -> Self:
        """Return the round over these heads, one for each slot."""
        texts = (Checkpoint(log.origin, size, root).text() for log, size, root in zip(logs, sizes, roots, strict=True))
        hashes = [_slot_hash(keys, number, slot, text) for slot, text in enumerate(texts)]
        return cls(number, logs, sizes, roots, _levels(hashes))

    def head(self, slot: int) -> Checkpoint:
        """Return the head in a slot."""
        return Checkpoint(self.logs[slot].origin, self.sizes[slot], self.roots[slot])

    def path(self, slot: int) -> tuple[bytes, ...]:
        """Return the path from a slot to the root, the slot's sibling first."""
        return inclusion_proof(slot, len(self.logs), self._node)

    def root(self) -> bytes:
        """Return the root."""
        return root_at(len(self.logs), self._node)

    def _node(self, level: int, index: int) -> bytes:
        return self.levels[level][index * HASH_BYTES : (index + 1) * HASH_BYTES]


@dataclass(frozen=True, slots=True)
class PreparedRound:
    """A round that is ready to be appended to the platform's log.

    Attributes:
        round: the round.
        record: its record.
        changed: heads that differ from the round before, and the platform log's own, so that every round has one.
    """

    round: Round
    record: Record
    changed: tuple[RoundHead, ...]


@dataclass(frozen=True, slots=True)
class PastRound:
    """A round and its record, where it stands in the platform's log."""

    round: Round
    record: Appended


@dataclass(frozen=True, slots=True)
class RoundState:
    """What a round is made of.

    Attributes:
        heads: acknowledged heads by log id.
        logs: the newest log of the platform (it has no tenant) and of every tenant.
        next_round: number after the last round, where other processes make rounds too; else None.
    """

    heads: Mapping[int, Head]
    logs: tuple[LogInfo, ...]
    next_round: int | None


class RoundMaker:
    """Prepares rounds."""

    def __init__(self, *, keys: LogKeys, next_round: int) -> None:
        self._keys = keys
        self._next = next_round
        self._shown: Mapping[int, int] = {}  # sizes in the round before, by log id, if this process made it

    def due(self, heads: Mapping[int, Head], logs: Iterable[LogInfo]) -> bool:
        """Whether a tenant's log is larger than in the last round (or this process has made none since another)."""
        return any(log.slot is not None and heads[log.log_id].size != self._shown.get(log.log_id) for log in logs)

    def begin_at(self, number: int) -> None:
        """Take note that every earlier number is taken; a round of this process may be older than the last one."""
        if number != self._next:
            self._next, self._shown = number, {}

    def prepare(self, stamp: Callable[[], Stamp], heads: Mapping[int, Head], logs: Sequence[LogInfo]) -> PreparedRound:
        """Build the next round over the tenants' acknowledged heads."""
        slots = sorted((log.slot, log.log_id, log) for log in logs if log.slot is not None)
        platform = next(log for log in logs if log.tenant is None).log_id
        tenants = tuple(log for _, _, log in slots)
        at = [heads[log.log_id] for log in tenants]
        made = Round.over(
            self._keys,
            self._next,
            tenants,
            tuple(head.size for head in at),
            tuple(head.frontier.root() for head in at),
        )
        return PreparedRound(
            made,
            log_round(stamp(), round_number=made.number, slots=len(tenants), root=made.root()),
            (
                RoundHead(made.number, platform, heads[platform].size),
                *(
                    RoundHead(made.number, head.log_id, head.size)
                    for head in at
                    if self._shown.get(head.log_id) != head.size
                ),
            ),
        )

    def committed(self, prepared: PreparedRound) -> None:
        """Take note that a round is recorded."""
        made = prepared.round
        self._next = made.number + 1
        self._shown = {log.log_id: size for log, size in zip(made.logs, made.sizes, strict=True)}


def _slot_hash(keys: LogKeys, number: int, slot: int, checkpoint_text: str) -> bytes:
    salt = keys.salt(number, slot)
    return leaf_hash(round_leaf(round_number=number, slot=slot, salt=salt, checkpoint_text=checkpoint_text))


def _levels(leaves: Sequence[bytes]) -> tuple[bytes, ...]:
    levels = [b"".join(leaves)]
    while len(leaves) > 1:
        leaves = [node_hash(left, right) for left, right in list(pairwise(leaves))[::2]]
        levels.append(b"".join(leaves))
    return tuple(levels)


async def make_rounds(
    maker: RoundMaker,
    *,
    interval_s: float,
    quiet_interval_s: float,
    monotonic_ns: Callable[[], int],
    stamp: Callable[[], Stamp],
    state: Callable[[], Awaitable[RoundState]],
    submit: Callable[[NewLeaf, Round], Awaitable[Appended]],
    ended: Callable[[], bool],
) -> None:
    """Make a round whenever one is due, until cancelled or ``ended``; runs beside the log on its event loop.

    Args:
        maker: prepares rounds.
        interval_s: least time between two rounds.
        quiet_interval_s: a round is made this often even when nothing changed.
        monotonic_ns: monotonic clock, nanoseconds.
        stamp: identity and time for a record.
        state: what is acknowledged.
        submit: appends a round's leaf; a BulkheadError means that its fate is not known.
        ended: whether writing has stopped for good.
    """
    prepared: PreparedRound | None = None
    quiet_since_ns = monotonic_ns()
    while not ended():
        await asyncio.sleep(interval_s)
        now_ns = monotonic_ns()
        try:
            now = await state()
            if prepared is None:
                if now.next_round is not None:
                    maker.begin_at(now.next_round)
                if now_ns - quiet_since_ns < quiet_interval_s * 1e9 and not maker.due(now.heads, now.logs):
                    continue
                prepared = await asyncio.to_thread(maker.prepare, stamp, now.heads, now.logs)
            platform = next(log for log in now.logs if log.tenant is None)
            record, digest = prepared.record, leaf_hash(prepared.record.leaf)
            leaf = NewLeaf(platform.log_id, record.record_id, record.leaf, digest, round_heads=prepared.changed)
            await submit(leaf, prepared.round)
        except ConflictError:  # another process was first: begin again
            prepared = None
            continue
        except BulkheadError:  # health() tells; the next turn sends the same bytes again
            continue
        maker.committed(prepared)
        prepared, quiet_since_ns = None, now_ns
