"""Makes the rounds of the platform's log (the format and its reasons: :mod:`bulkhead.transparency.rounds`).

A round is made when a tenant's log has grown, at most once per interval, and once in a longer interval in any case.
A round whose fate is not known (the database failed while it was committed) is sent again, the same bytes, until it
is known; only then is the next one made. Several processes may make rounds of one log: a number belongs to whoever
commits it first, and the others begin again with what is acknowledged then, so that no round shows a smaller log than
a round before it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass

from audit.keys import LogKeys
from audit.model import Appended, Head, LogInfo, RoundHead
from audit.records import Record, Stamp, log_round
from audit.store import NewLeaf
from bulkhead.errors import BulkheadError, ConflictError
from bulkhead.transparency.checkpoint import Checkpoint
from bulkhead.transparency.merkle import inclusion_proof, leaf_hash, tree_root
from bulkhead.transparency.rounds import round_leaf

__all__ = ["CommittedRound", "PreparedRound", "RoundMaker", "RoundState", "SlotPath", "make_rounds", "slot_hash"]


@dataclass(frozen=True, slots=True)
class PreparedRound:
    """A round that is ready to be appended to the platform's log.

    Attributes:
        number: the round's number.
        record: its record.
        changed: heads that differ from the round before, and the platform log's own, so that every round has one.
        sizes: size of every tenant's log in it, by log id.
        texts: checkpoint text of each slot, by slot.
        hashes: leaf hash of each slot, by slot.
    """

    number: int
    record: Record
    changed: tuple[RoundHead, ...]
    sizes: Mapping[int, int]
    texts: tuple[str, ...]
    hashes: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class CommittedRound:
    """A round and where it stands in the platform's log."""

    prepared: PreparedRound
    index: int


@dataclass(frozen=True, slots=True)
class SlotPath:
    """One slot's part of a round."""

    salt: bytes
    checkpoint_text: str
    path: tuple[bytes, ...]


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
    """Prepares rounds and remembers the last one that was committed."""

    def __init__(self, *, keys: LogKeys, next_round: int) -> None:
        self._keys = keys
        self._next = next_round
        self._shown: Mapping[int, int] = {}  # sizes in the round before, by log id, if this process made it
        self.newest: CommittedRound | None = None
        """The last round that was committed by this process."""

    def due(self, heads: Mapping[int, Head], logs: Iterable[LogInfo]) -> bool:
        """Whether a tenant's log is larger than in the last round (or this process has made none since another)."""
        return any(log.slot is not None and heads[log.log_id].size != self._shown.get(log.log_id) for log in logs)

    def begin_at(self, number: int) -> None:
        """Take note that every earlier number is taken; a round of this process may be older than the last one."""
        if number != self._next:
            self._next, self._shown = number, {}

    def prepare(self, stamp: Callable[[], Stamp], heads: Mapping[int, Head], logs: Iterable[LogInfo]) -> PreparedRound:
        """Build the next round over the tenants' acknowledged heads."""
        tenants = sorted(((log.slot, log) for log in logs if log.slot is not None), key=lambda pair: pair[0])
        platform = next(log for log in logs if log.tenant is None).log_id
        number = self._next
        texts: list[str] = []
        hashes: list[bytes] = []
        for slot, log in tenants:
            head = heads[log.log_id]
            texts.append(Checkpoint(log.origin, head.size, head.frontier.root()).text())
            hashes.append(slot_hash(self._keys, number, slot, texts[-1]))
        sizes = {log.log_id: heads[log.log_id].size for _, log in tenants}
        return PreparedRound(
            number,
            log_round(stamp(), round_number=number, slots=len(tenants), root=tree_root(hashes)),
            (
                RoundHead(number, platform, heads[platform].size),
                *(RoundHead(number, at, size) for at, size in sizes.items() if self._shown.get(at) != size),
            ),
            sizes,
            tuple(texts),
            tuple(hashes),
        )

    def committed(self, prepared: PreparedRound, index: int) -> None:
        """Take note that a round stands at ``index`` of the platform's log."""
        self.newest = CommittedRound(prepared, index)
        self._next, self._shown = prepared.number + 1, prepared.sizes

    def path(self, done: CommittedRound, slot: int) -> SlotPath | None:
        """Return a slot's part of a round, or None if the slot is not in it."""
        hashes = done.prepared.hashes
        if slot >= len(hashes):
            return None
        path = inclusion_proof(slot, len(hashes), lambda level, at: tree_root(hashes[at << level : (at + 1) << level]))
        return SlotPath(self._keys.salt(done.prepared.number, slot), done.prepared.texts[slot], path)


def slot_hash(keys: LogKeys, number: int, slot: int, checkpoint_text: str) -> bytes:
    """Return the hash of a slot's leaf in a round."""
    salt = keys.salt(number, slot)
    return leaf_hash(round_leaf(round_number=number, slot=slot, salt=salt, checkpoint_text=checkpoint_text))


async def make_rounds(
    maker: RoundMaker,
    *,
    interval_s: float,
    quiet_interval_s: float,
    monotonic_ns: Callable[[], int],
    stamp: Callable[[], Stamp],
    state: Callable[[], Awaitable[RoundState]],
    submit: Callable[[NewLeaf], Awaitable[Appended]],
    ended: Callable[[], bool],
) -> None:
    """Make a round whenever one is due, until cancelled or ``ended``; runs beside the log on its event loop.

    Args:
        maker: prepares and remembers rounds.
        interval_s: least time between two rounds.
        quiet_interval_s: a round is made this often even when nothing changed.
        monotonic_ns: monotonic clock, nanoseconds.
        stamp: identity and time for a record.
        state: what is acknowledged.
        submit: appends a leaf; a BulkheadError means that its fate is not known.
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
            appended = await submit(leaf)
        except ConflictError:  # another process was first: begin again
            prepared = None
            continue
        except BulkheadError:  # health() tells; the next turn sends the same bytes again
            continue
        maker.committed(prepared, appended.index)
        prepared, quiet_since_ns = None, now_ns
