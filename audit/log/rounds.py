"""Makes the rounds of the platform's log (the format and its reasons: :mod:`bulkhead.transparency.rounds`).

A round is made when a tenant's log has grown, at most once per interval, and once in a longer interval in any case.
A round whose fate is not known (the database failed while it was committed) is sent again, the same bytes, until it
is known; only then is the next one made.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass

from audit.keys import LogKeys
from audit.model import Appended, Head, LogInfo, RoundHead
from audit.records import Record, Stamp, log_round
from audit.store import NewLeaf
from bulkhead.errors import BulkheadError
from bulkhead.transparency.checkpoint import Checkpoint
from bulkhead.transparency.merkle import inclusion_proof, leaf_hash, tree_root
from bulkhead.transparency.rounds import round_leaf

__all__ = ["CommittedRound", "PreparedRound", "RoundMaker", "SlotPath", "make_rounds"]


@dataclass(frozen=True, slots=True)
class PreparedRound:
    """A round that is ready to be appended to the platform's log.

    Attributes:
        number: the round's number.
        record: its record.
        changed: heads that differ from the round before.
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


class RoundMaker:
    """Prepares rounds and remembers the last one that was committed."""

    def __init__(self, *, keys: LogKeys, next_round: int) -> None:
        self._keys = keys
        self._next = next_round
        self.newest: CommittedRound | None = None
        """The last round that was committed by this process."""

    def due(self, heads: Mapping[int, Head], logs: Iterable[LogInfo]) -> bool:
        """Whether a tenant's log is larger than in the last committed round (or there was none yet)."""
        sizes = {} if self.newest is None else self.newest.prepared.sizes
        return any(log.slot is not None and heads[log.log_id].size != sizes.get(log.log_id) for log in logs)

    def prepare(self, stamp: Callable[[], Stamp], heads: Mapping[int, Head], logs: Iterable[LogInfo]) -> PreparedRound:
        """Build the next round over the tenants' acknowledged heads."""
        tenants = sorted(((log.slot, log) for log in logs if log.slot is not None), key=lambda pair: pair[0])
        number = self._next
        previous = {} if self.newest is None else self.newest.prepared.sizes
        texts: list[str] = []
        hashes: list[bytes] = []
        for slot, log in tenants:
            head = heads[log.log_id]
            texts.append(Checkpoint(log.origin, head.size, head.frontier.root()).text())
            salt = self._keys.salt(number, slot)
            hashes.append(leaf_hash(round_leaf(round_number=number, slot=slot, salt=salt, checkpoint_text=texts[-1])))
        sizes = {log.log_id: heads[log.log_id].size for _, log in tenants}
        return PreparedRound(
            number,
            log_round(stamp(), round_number=number, slots=len(tenants), root=tree_root(hashes)),
            tuple(RoundHead(number, log_id, size) for log_id, size in sizes.items() if previous.get(log_id) != size),
            sizes,
            tuple(texts),
            tuple(hashes),
        )

    def committed(self, prepared: PreparedRound, index: int) -> None:
        """Take note that a round stands at ``index`` of the platform's log."""
        self.newest = CommittedRound(prepared, index)
        self._next = prepared.number + 1

    def path(self, done: CommittedRound, slot: int) -> SlotPath | None:
        """Return a slot's part of a round, or None if the slot is not in it."""
        hashes = done.prepared.hashes
        if slot >= len(hashes):
            return None
        path = inclusion_proof(slot, len(hashes), lambda level, at: tree_root(hashes[at << level : (at + 1) << level]))
        return SlotPath(self._keys.salt(done.prepared.number, slot), done.prepared.texts[slot], path)


async def make_rounds(
    maker: RoundMaker,
    *,
    interval_s: float,
    quiet_interval_s: float,
    monotonic_ns: Callable[[], int],
    stamp: Callable[[], Stamp],
    state: Callable[[], tuple[Mapping[int, Head], tuple[LogInfo, ...]]],
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
        state: the acknowledged heads by log id, and every log; the platform's has no tenant.
        submit: appends a leaf; a BulkheadError means that its fate is not known.
        ended: whether writing has stopped for good.
    """
    prepared: PreparedRound | None = None
    quiet_since_ns = monotonic_ns()
    while not ended():
        await asyncio.sleep(interval_s)
        now_ns = monotonic_ns()
        heads, logs = state()
        if prepared is None:
            if now_ns - quiet_since_ns < quiet_interval_s * 1e9 and not maker.due(heads, logs):
                continue
            prepared = await asyncio.to_thread(maker.prepare, stamp, heads, logs)
        platform = next(log for log in logs if log.tenant is None)
        record, digest = prepared.record, leaf_hash(prepared.record.leaf)
        leaf = NewLeaf(platform.log_id, record.record_id, record.leaf, digest, round_heads=prepared.changed)
        try:
            appended = await submit(leaf)
        except BulkheadError:  # health() tells; the next turn sends the same bytes again
            continue
        maker.committed(prepared, appended.index)
        prepared, quiet_since_ns = None, now_ns
