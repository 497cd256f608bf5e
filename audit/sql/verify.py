"""Verifies an audit database, or a copy of one, from its leaves up.

1. Every log's records stand at 0, 1, 2, … without a gap; each leaf has its stored hash, is a well-formed record of
   the log's tenant, and carries the id of its row; the first opens the log.
2. Full tiles are those of the leaves.
3. Each commit's chain value follows from the one before and the trees after it; the last commit ends with the last
   leaf; the lock store's commit (if its state is given) is among them. After a declared break it follows from both
   histories that the new epochs cite.
4. Heads are those of the leaves.
5. Kept checkpoints have the root of the leaves and, where a key is given, its signature; none is larger than its log.
6. The index says of each leaf what the leaf says, and leaves none out.
7. Rounds are numbered 1, 2, 3, … in the platform's log; `audit_round` has each of them and no other, and no size in it
   is larger than its log. (That a round's root is that of the heads shows to whoever holds a path into it.)

What one database alone cannot show: that it was not rewritten as a whole with the signing key in hand. Checkpoints
that others hold (receipts, exports, rounds) show that. The database may be in use; what is appended meanwhile is not
looked at.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Row, func, select

from audit.chain import GENESIS, LockState, across_break, broken_from, next_chain
from audit.export import check_place, damaged
from audit.leaves import LeafFacts, LeafReader
from audit.model import IndexRow, LogInfo, Progress, StoredLeaf
from audit.sql.queries import as_int, as_text, index_row, stored_leaf
from audit.sql.store import SqlAuditReader
from audit.sql.tables import (
    audit_checkpoint,
    audit_commit,
    audit_head,
    audit_index,
    audit_leaf,
    audit_round,
    audit_tile,
)
from audit.tiles import TILE_BYTES, TILE_WIDTH, join_tile
from bulkhead.errors import AuditUnavailableError, CheckpointError, ConsistencyError, ProofError, RecordError
from bulkhead.transparency.checkpoint import Checkpoint, open_checkpoint
from bulkhead.transparency.merkle import HASH_BYTES, Frontier, tree_root

__all__ = ["DatabaseReport", "verify_database"]

_CHUNK: Final = 1_000  # leaves per read


@dataclass(frozen=True, slots=True)
class DatabaseReport:
    """What was verified.

    Attributes:
        logs: number of logs.
        records: records in all of them.
        commits: commits whose chain value was recomputed.
        checkpoints: kept checkpoints whose root was recomputed.
        signatures: how many of them had their signature checked.
        indexed: index rows that were compared.
        lock_checked: whether the lock store's state was found.
    """

    logs: int
    records: int
    commits: int
    checkpoints: int
    signatures: int
    indexed: int
    lock_checked: bool


@dataclass(frozen=True, slots=True)
class _Chunk:
    """The leaves with ``done < pos <= stop``, what was read of each, and the rows that belong to them."""

    done: int
    stop: int
    leaves: Sequence[StoredLeaf]
    facts: Callable[[], Sequence[LeafFacts]]
    commits: Sequence[Any]
    notes: Sequence[Any]
    index: Sequence[Any]


@dataclass(slots=True)
class _Log:
    """A log as far as it has been read."""

    info: LogInfo
    frontier: Frontier = field(default_factory=Frontier)
    tiles: list[list[bytes]] = field(default_factory=list)  # hashes of the tile being filled, by tile level
    full: int = 0  # full tiles so far


def verify_database(
    reader: SqlAuditReader,
    *,
    vkeys: Mapping[str, str],
    locked: LockState | None = None,
    progress: Progress | None = None,
    processes: int = 1,
) -> DatabaseReport:
    """Verify a database; see the module for what is checked.

    Args:
        reader: the database or a copy.
        vkeys: log keys by origin; a log without one has its checkpoints' roots checked, not their signatures.
        locked: the lock store's state, if it is at hand.
        progress: told how far it is.
        processes: how many read leaves; if more than one, they are started for it, and this one puts their answers
            together. What is checked, and which record is named, is the same.

    Raises:
        RecordError: a record, or its row in index or tile, does not hold; names it.
        ConsistencyError: trees, chain or checkpoints contradict each other; names the records in doubt.
        CheckpointError: a kept checkpoint is malformed or not signed by its log's key.
        AuditUnavailableError: the database cannot be read at all.
    """
    with LeafReader(processes) as leaf_reader:
        return _Verifier(reader, vkeys, locked, progress, leaf_reader).run()


class _Verifier:
    def __init__(
        self,
        reader: SqlAuditReader,
        vkeys: Mapping[str, str],
        locked: LockState | None,
        progress: Progress | None,
        leaf_reader: LeafReader,
    ) -> None:
        self._reader = reader
        self._vkeys = vkeys
        self._locked = locked
        self._progress = progress
        self._leaf_reader = leaf_reader
        self._logs: dict[int, _Log] = {}
        self._grown: dict[int, _Log] = {}  # since the last commit
        self._commit = GENESIS
        self._declared: object = None  # the break that the commit at hand cites
        self._checkpoints = 0
        self._signatures = 0
        self._indexed = 0
        self._rounds = 0
        self._lock_checked = locked == GENESIS

    def run(self) -> DatabaseReport:
        with self._reader.reading() as connection:
            last = connection.execute(select(func.max(audit_commit.c.seq), func.max(audit_commit.c.pos))).one()
            heads = connection.execute(select(audit_head)).all()
            indexed_to = as_int(connection.execute(select(func.max(audit_index.c.pos))).scalar() or 0)
        self._logs = {info.log_id: _Log(info) for info in self._reader.logs()}
        last_seq, last_pos = as_int(last[0] or 0), as_int(last[1] or 0)
        for chunk in self._chunks(last_pos):
            self._check_chunk(chunk, indexed_to)
            if self._progress is not None:
                self._progress(chunk.stop, last_pos)
        if self._commit.seq != last_seq:
            raise ConsistencyError(f"commit {last_seq} does not end with the last record of its position")
        self._check_heads(heads)
        self._check_rest(last_pos)
        if self._locked is not None and not self._lock_checked:
            raise ConsistencyError(
                f"the lock store's commit {self._locked.seq} is not in this database: an older copy, or rewritten"
            )
        return DatabaseReport(
            len(self._logs), last_pos, self._commit.seq, self._checkpoints, self._signatures, self._indexed,
            self._lock_checked,
        )  # fmt: skip

    def _chunks(self, last_pos: int) -> Iterator["_Chunk"]:
        """Yield all leaves in order, read from the database as far ahead as their readers can use."""
        ahead: deque[_Chunk] = deque()
        for done in range(0, last_pos, _CHUNK):
            try:
                ahead.append(self._read(done, min(done + _CHUNK, last_pos)))
            except AuditUnavailableError:
                yield from ahead  # a record before the place that cannot be read is named first
                raise
            if len(ahead) >= self._leaf_reader.ahead:
                yield ahead.popleft()
        yield from ahead

    def _read(self, done: int, stop: int) -> "_Chunk":
        """Read the leaves with ``done < pos <= stop``, and what belongs to them."""
        leaf, note = audit_leaf.c, audit_checkpoint.c
        here = (leaf.pos > done, leaf.pos <= stop)
        with self._reader.reading() as connection:
            leaves = connection.execute(select(audit_leaf).where(*here).order_by(leaf.pos)).all()
            commits = connection.execute(
                select(audit_commit)
                .where(audit_commit.c.pos > done, audit_commit.c.pos <= stop)
                .order_by(audit_commit.c.seq)
            ).all()
            notes = connection.execute(
                select(note.log_id, note.size, note.note)
                .join_from(audit_checkpoint, audit_leaf, (leaf.log_id == note.log_id) & (leaf.idx == note.size - 1))
                .where(*here)
            ).all()
            index = connection.execute(
                select(audit_index).where(audit_index.c.pos > done, audit_index.c.pos <= stop)
            ).all()
        stored = [stored_leaf(row) for row in leaves]
        return _Chunk(done, stop, stored, self._leaf_reader.read(stored), commits, notes, index)

    def _check_chunk(self, chunk: "_Chunk", indexed_to: int) -> None:
        rows = {row.pos: index_row(row) for row in chunk.index}
        by_size = {(row.log_id, row.size): as_text(row.note) for row in chunk.notes}
        at = {row.pos: row for row in chunk.commits}
        for expected, (stored, facts) in enumerate(zip(chunk.leaves, chunk.facts(), strict=True), start=chunk.done + 1):
            self._leaf(expected, stored, facts)
            row_of = rows.pop(stored.pos, None)
            if row_of is not None or stored.pos <= indexed_to:
                self._index(stored, facts, row_of)
            if (text := by_size.get((stored.log_id, stored.index + 1))) is not None:
                self._checkpoint(self._logs[stored.log_id], text)
            if (commit := at.get(stored.pos)) is not None:
                self._chain(commit)
        if len(chunk.leaves) != chunk.stop - chunk.done:
            raise RecordError(f"the record at position {chunk.done + len(chunk.leaves) + 1} is missing")
        if rows:
            raise RecordError(f"the index holds a record at position {min(rows)} that is not there")

    def _leaf(self, expected: int, stored: StoredLeaf, facts: LeafFacts) -> None:
        log = self._logs.get(stored.log_id)
        if log is None:
            raise RecordError(f"record {stored.record_id} is in a log {stored.log_id} that is not registered")
        check_place(log.info.origin, log.frontier.size, stored)
        if facts.problem:
            raise damaged(log.info.origin, stored, facts.problem)
        if stored.pos != expected:
            raise RecordError(f"the record at position {expected} is missing, before {stored.record_id}")
        info = log.info
        if facts.tenant != info.tenant:
            raise damaged(log.info.origin, stored, "it is of another tenant")
        opened = (facts.data.get("origin"), facts.data.get("epoch"), facts.data.get("slot"))
        if stored.index == 0 and (facts.action != "log.opened" or opened != (info.origin, info.epoch, info.slot)):
            raise damaged(log.info.origin, stored, "it does not open this log")
        if stored.index == 0 and "break" in facts.data:
            self._declared = facts.data["break"]
        if info.tenant is None and facts.action == "log.round":
            self._rounds += 1
            if facts.data.get("round") != self._rounds:
                raise damaged(log.info.origin, stored, f"it is not round {self._rounds}")
        log.frontier = log.frontier.append(stored.leaf_hash)
        self._grown[stored.log_id] = log
        self._fill(log, stored)

    def _fill(self, log: _Log, stored: StoredLeaf) -> None:
        """Add a leaf hash to the tiles being filled; compare each that becomes full."""
        node, level, number = stored.leaf_hash, 0, stored.index
        while True:
            if level == len(log.tiles):
                log.tiles.append([])
            log.tiles[level].append(node)
            if len(log.tiles[level]) < TILE_WIDTH:
                return
            hashes, log.tiles[level] = log.tiles[level], []
            number //= TILE_WIDTH
            self._tile(log, level, number, hashes)
            log.full += 1
            node, level = tree_root(hashes), level + 1

    def _tile(self, log: _Log, level: int, number: int, hashes: list[bytes]) -> None:
        data = self._reader.tile(log.info.log_id, level, number)
        if data == join_tile(hashes):
            return
        name = f"{log.info.origin}: tile {level}/{number}"
        if data is None or len(data) != TILE_BYTES:
            raise ConsistencyError(f"{name} is missing or damaged")
        differs = next(at for at, node in enumerate(hashes) if data[at * HASH_BYTES : (at + 1) * HASH_BYTES] != node)
        first = (number * TILE_WIDTH + differs) * TILE_WIDTH**level
        last = first + TILE_WIDTH**level - 1
        which = f"record {first}" if level == 0 else f"records {first} to {last}"
        raise RecordError(
            f"{name}: {which} is not what the tree was built from",
            details={"origin": log.info.origin, "index": str(first), "last": str(last)},
        )

    def _index(self, stored: StoredLeaf, facts: LeafFacts, row: IndexRow | None) -> None:
        log = self._logs[stored.log_id]
        if row is None:
            raise damaged(log.info.origin, stored, "the index leaves it out")
        if row != IndexRow(stored.pos, stored.log_id, stored.index, *facts.indexed):
            raise damaged(log.info.origin, stored, "the index says something else than the record")
        self._indexed += 1

    def _chain(self, commit: Row[Any]) -> None:
        grown = list(self._grown.values())
        base = self._commit if self._declared is None else self._across(self._declared, commit)
        self._declared = None
        chain = next_chain(base.chain, ((log.info.origin, log.frontier) for log in grown))
        if commit.seq != base.seq + 1 or commit.chain != chain:
            named = ", ".join(f"{log.info.origin} up to {log.frontier.size - 1}" for log in grown)
            raise ConsistencyError(
                f"commit {commit.seq}: the records ({named}) are not those that were committed",
                details={"commit": str(commit.seq), "position": str(commit.pos)},
            )
        self._commit = LockState(commit.seq, chain)
        self._lock_checked = self._lock_checked or self._commit == self._locked
        self._grown.clear()

    def _across(self, declared: object, commit: Row[Any]) -> LockState:
        try:
            database, lock = broken_from(declared)
        except CheckpointError as error:
            raise ConsistencyError(f"commit {commit.seq}: it cites a break that is malformed") from error
        if database != self._commit:
            raise ConsistencyError(f"commit {commit.seq}: it cites another history than that of the records before it")
        return across_break(database, lock)

    def _checkpoint(self, log: _Log, note: str) -> None:
        origin, size = log.info.origin, log.frontier.size
        vkey = self._vkeys.get(origin)
        try:
            if vkey is not None:
                checkpoint = open_checkpoint(note, vkey=vkey, origin=origin)
                self._signatures += 1
            else:
                checkpoint = Checkpoint.parse(note.partition("\n\n")[0] + "\n")
        except CheckpointError as error:
            raise CheckpointError(f"{origin}: kept checkpoint of size {size}: {error.message}") from error
        if (checkpoint.origin, checkpoint.size, checkpoint.root) != (origin, size, log.frontier.root()):
            raise ConsistencyError(
                f"{origin}: the kept checkpoint of size {size} is not of these records",
                details={"origin": origin, "last": str(size - 1)},
            )
        self._checkpoints += 1

    def _check_heads(self, heads: list[Row[Any]] | Any) -> None:
        found = {row.log_id: (row.size, row.frontier) for row in heads}
        for log_id, log in self._logs.items():
            head = found.pop(log_id, None)
            if head is None and log.frontier.size == 0:
                continue  # opened while this ran
            if head != (log.frontier.size, log.frontier.encode()):
                size = 0 if head is None else head[0]
                raise ConsistencyError(
                    f"{log.info.origin}: the head (size {size}) is not that of the {log.frontier.size} records",
                    details={"origin": log.info.origin, "last": str(log.frontier.size - 1)},
                )
        if found:
            raise ConsistencyError(f"there is a head of a log {min(found)} that is not registered")

    def _check_rest(self, last_pos: int) -> None:
        """Look for rows that belong to nothing."""
        tile, note = audit_tile.c, audit_checkpoint.c
        with self._reader.reading() as connection:
            committed = connection.execute(select(func.max(audit_commit.c.pos))).scalar() or 0
            leaf = connection.execute(
                select(audit_leaf.c.record_id).where(audit_leaf.c.pos > committed).limit(1)
            ).scalar()
            index = connection.execute(select(func.max(audit_index.c.pos))).scalar() or 0
            rounds = connection.execute(
                select(audit_round.c.log_id, func.max(audit_round.c.size).label("size")).group_by(audit_round.c.log_id)
            ).all()
            numbers = connection.execute(
                select(func.count(audit_round.c.round.distinct()), func.max(audit_round.c.round))
            ).one()
            notes = connection.execute(
                select(note.log_id, func.max(note.size).label("size")).group_by(note.log_id)
            ).all()
            tiles = connection.execute(
                select(tile.log_id, func.count().label("tiles")).where(tile.n >= 0).group_by(tile.log_id)
            ).all()
        if leaf is not None:
            raise RecordError(f"record {leaf} belongs to no commit", details={"record": leaf})
        if committed > last_pos:
            return  # the database is in use: the rest has moved on
        if index > last_pos:
            raise RecordError(f"the index holds a record at position {index} that is not there")
        self._check_rounds(numbers, rounds)
        for row in notes:
            size = self._logs[row.log_id].frontier.size if row.log_id in self._logs else 0
            if row.size > size:
                raise ConsistencyError(
                    f"log {row.log_id} has {size} records, but a kept checkpoint has {row.size}: records are gone"
                )
        for row in tiles:
            if row.log_id not in self._logs or row.tiles != self._logs[row.log_id].full:
                raise ProofError(f"log {row.log_id} has {row.tiles} tiles, not as many as its records fill")

    def _check_rounds(self, numbers: Row[Any], sizes: Sequence[Any]) -> None:
        if tuple(numbers) != (self._rounds, self._rounds or None):
            raise ConsistencyError(f"audit_round does not have the {self._rounds} rounds of the platform's log")
        for row in sizes:
            if row.log_id not in self._logs or as_int(row.size) > self._logs[row.log_id].frontier.size:
                raise ConsistencyError(f"audit_round has log {row.log_id} at {row.size} records, more than there are")
