"""Makes past rounds again from the database, so that every control plane answers alike, after a restart as before it.

A round's record holds its root alone. The heads under it follow from ``audit_round`` (a log's size in a round is that
of its last row up to there), from the logs' leaves and from the keys (the salts). What is made again has the recorded
root, or there is no answer.

Making a round costs a few hashes for each slot, whoever asks; those made last are remembered for everybody.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

from audit.keys import LogKeys
from audit.log.prover import Prover
from audit.log.rounds import PastRound, Round
from audit.model import Appended, LogInfo
from audit.store import AuditReader
from bulkhead.encoding import Json
from bulkhead.errors import NotFoundError, RecordError
from bulkhead.transparency.leaf import parse_leaf
from bulkhead.transparency.merkle import Frontier, leaf_hash
from bulkhead.transparency.rounds import ROUND_ACTION

__all__ = ["MAX_ROUNDS", "RoundHistory"]

MAX_ROUNDS: Final = 64  # at once; a minute of them
_MAX_SLOTS: Final = 1 << 15  # made at once: half a second, about
_REMEMBERED_SLOTS: Final = 1 << 18  # about 40 MiB: 252 rounds of 1,024 slots
_ROUND_SLOTS: Final = 16  # what a round takes beside its slots, in slots
_MAX_ROOTS: Final = 1 << 16  # about 15 MiB
_MAX_GROWING: Final = 4_096  # logs, each with a frontier
_CHUNK: Final = 256  # leaf hashes read at once
_FAR: Final = 2_048  # leaves, from which on a tree is read anew, in a few nodes, instead of continued
_SPAN: Final = 4_096  # records of the platform's log among which a round's is looked for
_LOOK: Final = 16  # of them read at once


class RoundHistory:
    """Used by one thread at a time, but for :meth:`remember`, :meth:`known_newest` and :meth:`forget`.

    Args:
        store: its reading side.
        keys: for the salts.
        prover: reads tree nodes.
    """

    def __init__(self, *, store: AuditReader, keys: LogKeys, prover: Prover) -> None:
        self._store = store
        self._keys = keys
        self._prover = prover
        self._trees = _Trees(store, prover)
        self._made = _Remembered()

    def rounds(
        self, platform: LogInfo, size: int, logs: Mapping[int, LogInfo], first: int, limit: int
    ) -> list[PastRound]:
        """Return rounds from number ``first`` on: fewer than ``limit`` if there are no more, or if they are large.

        Args:
            platform: the platform's log, of the newest epoch.
            size: only rounds whose record is among so many records of it.
            logs: every log by id.
            first: number of the first round.
            limit: at most so many, and at most :data:`MAX_ROUNDS`.

        Raises:
            NotFoundError: round ``first`` is of an earlier epoch of the platform's log.
            RecordError: what is made again is not what the platform's log says: the database was changed.
            AuditUnavailableError: the database cannot be read.
        """
        at_once = max(1, min(limit, MAX_ROUNDS, _MAX_SLOTS // max(1, len(logs))))
        found: list[PastRound] = []
        while len(found) < at_once and (known := self._made.get(first + len(found))) is not None:
            if known.record.index >= size:
                return found
            found.append(known)
        if len(found) < at_once:
            found += self._make(platform, size, logs, first + len(found), at_once - len(found))
        return found

    def newest(self, platform: LogInfo, size: int, logs: Mapping[int, LogInfo]) -> PastRound | None:
        """Return the newest round whose record is among the first ``size`` of the platform's log, or None.

        Raises:
            RecordError, AuditUnavailableError: as :meth:`rounds`.
        """
        last = self._store.newest_round(platform.log_id, size) or 0
        for number in range(last, max(0, last - 2), -1):  # the last one's record may stand behind ``size``
            if found := self.rounds(platform, size, logs, number, 1):
                return found[0]
        return None

    def known_newest(self, platform: LogInfo, size: int) -> PastRound | None:
        """Return :meth:`newest` if it is remembered, else None.

        Raises:
            AuditUnavailableError: the database cannot be read.
        """
        last = self._store.newest_round(platform.log_id, size)
        known = None if last is None else self._made.get(last)
        return known if known is None or known.record.index < size else self._made.get(known.round.number - 1)

    def remember(self, made: PastRound) -> None:
        """Keep a round that was just made, so that it need not be made again."""
        self._made.add(made)

    def salt(self, made: Round, slot: int) -> bytes:
        """Return the salt of a slot in a round."""
        return self._keys.salt(made.number, slot)

    def forget(self) -> None:
        """Drop everything that was made or read."""
        self._made.clear()
        self._trees = _Trees(self._store, self._prover)

    def _make(
        self, platform: LogInfo, size: int, logs: Mapping[int, LogInfo], first: int, count: int
    ) -> list[PastRound]:
        rows = self._store.round_heads(first, first + count)
        places = {row.round: row.size for row in rows if row.log_id == platform.log_id}
        if first not in places:
            if any(row.round == first for row in rows):
                raise NotFoundError(f"round {first} is of an earlier epoch of the platform's log")
            return []
        sizes = dict(self._store.sizes_in_round(first))
        stops = {row.log_id: row.size for row in rows}
        found: list[PastRound] = []
        for number in range(first, first + count):
            if number not in places or places[number] >= size:
                break
            sizes.update((row.log_id, row.size) for row in rows if row.round == number)
            record, said = self._record(platform, number, places[number])
            if record.index >= size:
                break
            made = self._round(number, _slots(number, sizes, logs), sizes, stops)
            if said != {"round": number, "slots": len(made.logs), "root": made.root().hex()}:
                raise _changed(number, "the heads in the database are not those that it committed to")
            found.append(PastRound(made, record))
            self._made.add(found[-1])
        return found

    def _record(self, platform: LogInfo, number: int, start: int) -> tuple[Appended, Mapping[str, Json]]:
        """Return a round's record and its data: it stands soon behind the size that the platform's log had before it.

        Raises:
            RecordError: it is not there.
        """
        for low in range(start, start + _SPAN, _LOOK):
            stored = self._store.leaves(platform.log_id, low, low + _LOOK)
            for leaf in stored:
                fields = parse_leaf(leaf.leaf)
                if fields.action == ROUND_ACTION and fields.data.get("round") == number:
                    return Appended(
                        leaf.log_id, leaf.index, leaf_hash(leaf.leaf), leaf.record_id, leaf.leaf
                    ), fields.data
            if len(stored) < _LOOK:
                break
        raise _changed(number, "the platform's log has no record of it where audit_round says")

    def _round(
        self, number: int, logs: tuple[LogInfo, ...], sizes: Mapping[int, int], stops: Mapping[int, int]
    ) -> Round:
        heads = tuple(sizes[log.log_id] for log in logs)
        roots = tuple(
            self._trees.root(log.log_id, size, stops.get(log.log_id, size))
            for log, size in zip(logs, heads, strict=True)
        )
        return Round.over(self._keys, number, logs, heads, roots)


class _Remembered:
    """Rounds by number, those that were asked for or made last. Any thread may use it."""

    def __init__(self) -> None:
        self._rounds: OrderedDict[int, PastRound] = OrderedDict()
        self._weight = 0
        self._guard = threading.Lock()

    def get(self, number: int) -> PastRound | None:
        with self._guard:
            found = self._rounds.get(number)
            if found is not None:
                self._rounds.move_to_end(number)
            return found

    def add(self, made: PastRound) -> None:
        with self._guard:
            if made.round.number in self._rounds:
                return
            self._rounds[made.round.number] = made
            self._weight += _weight(made)
            while self._weight > _REMEMBERED_SLOTS:
                self._weight -= _weight(self._rounds.popitem(last=False)[1])

    def clear(self) -> None:
        with self._guard:
            self._rounds.clear()
            self._weight = 0


def _weight(made: PastRound) -> int:
    return len(made.round.logs) + _ROUND_SLOTS


class _Trees:
    """Roots of logs at earlier sizes. Rounds ask for sizes that grow: a tree is continued where it can be."""

    def __init__(self, store: AuditReader, prover: Prover) -> None:
        self._store = store
        self._prover = prover
        self._roots: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._growing: OrderedDict[int, tuple[Frontier, tuple[bytes, ...]]] = OrderedDict()  # and the hashes behind it

    def root(self, log_id: int, size: int, stop: int) -> bytes:
        """Return the root of a log at a size; up to ``stop`` more will be asked for soon."""
        root = self._roots.get((log_id, size))
        if root is None:
            root = self._roots[log_id, size] = self._grown(log_id, size, stop).root()
            if len(self._roots) > _MAX_ROOTS:
                self._roots.popitem(last=False)
        else:
            self._roots.move_to_end((log_id, size))
        return root

    def _grown(self, log_id: int, size: int, stop: int) -> Frontier:
        frontier, behind = self._growing.pop(log_id, (Frontier(), ()))
        if not frontier.size <= size < frontier.size + _FAR:
            frontier, behind = self._prover.frontier(log_id, size), ()
        while frontier.size < size:
            if not behind:
                high = max(size, min(stop, frontier.size + _CHUNK))
                behind = self._store.leaf_hashes(log_id, frontier.size, high)
            if not behind:
                raise RecordError(f"log {log_id}: record {frontier.size} is missing from the database")
            count = size - frontier.size
            frontier, behind = frontier.extend(behind[:count]), behind[count:]
        self._growing[log_id] = (frontier, behind)
        if len(self._growing) > _MAX_GROWING:
            self._growing.popitem(last=False)
        return frontier


def _slots(number: int, sizes: Mapping[int, int], logs: Mapping[int, LogInfo]) -> tuple[LogInfo, ...]:
    """Return the log of each slot in a round: of its newest epoch then."""
    newest: dict[int, LogInfo] = {}
    for log_id in sizes:
        log = logs.get(log_id)
        if log is None:
            raise _changed(number, f"audit_round names a log {log_id} that there is not")
        if log.slot is not None and (log.slot not in newest or newest[log.slot].epoch < log.epoch):
            newest[log.slot] = log
    if sorted(newest) != list(range(len(newest))):
        raise _changed(number, "audit_round leaves a slot out")
    return tuple(newest[slot] for slot in range(len(newest)))


def _changed(number: int, problem: str) -> RecordError:
    return RecordError(f"round {number} cannot be made again: {problem}", details={"round": str(number)})
