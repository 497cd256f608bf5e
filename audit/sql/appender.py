"""One commit's work inside an open write transaction.

Under the writer lock: the lock store's state is found in this database; each leaf gets the next index of its log;
leaves, full tiles, heads and the chain are written.
"""

from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy import Connection, Dialect, insert, select

from audit.chain import GENESIS, LockState, across_break, next_chain
from audit.model import Failpoint, Head
from audit.sql.queries import as_bytes, as_int, as_text
from audit.sql.statements import CHAIN_AT, HEADS_OF, PLACES_OF, ROUND_AT, WRITER_LOCK, CommitStatements
from audit.sql.tables import audit_log, audit_round
from audit.store import Committed, NewLeaf, Placed
from audit.tiles import TILE_WIDTH, completed_tiles, join_tile, split_tile
from bulkhead.errors import BulkheadError, ConflictError, InternalError, LogForkError, NotFoundError
from bulkhead.transparency.merkle import Frontier, tree_root

__all__ = ["Appender"]

_MAX_ROOTS: Final = 1 << 16  # tile roots kept for the next level: 256 of them are one tile of the level above


@dataclass(slots=True)
class _Growth:
    """A log in this commit: where it stood and what it gains."""

    origin: str
    base: Frontier
    opened: bool = False
    hashes: list[bytes] = field(default_factory=list)


class Appender:
    """Does commits on connections that the store hands in.

    Between commits it keeps the frontiers that it wrote, valid as long as no other writer commits, and tile roots.
    """

    def __init__(self, *, dialect: Dialect, failpoint: Failpoint) -> None:
        self._failpoint = failpoint
        self._sql = CommitStatements(dialect)
        self._roots: OrderedDict[tuple[int, int, int], bytes] = OrderedDict()
        self._seq = -1  # the commit after which `_fronts` was true
        self._fronts: dict[int, tuple[str, Frontier]] = {}

    def forget(self) -> None:
        """Drop what was kept; call it when a transaction was not committed."""
        self._roots.clear()
        self._fronts.clear()
        self._seq = -1

    def append(
        self,
        connection: Connection,
        batch: Sequence[NewLeaf],
        locked: LockState | None,
        *,
        look_up: bool,
        broken: LockState | None = None,
    ) -> Committed:
        """Do one commit's work; the caller commits the transaction.

        Args:
            connection: in a transaction that no other writer can share.
            batch: leaves in order.
            locked: the lock store's state.
            look_up: look for the record ids first. Without it a record that is there already is an IntegrityError,
                and so is a log that is taken.
            broken: for a declared break: the database's last commit that it names, in place of the check of
                ``locked``, which may be lost (None) then.

        Raises:
            LogForkError: ``locked`` is not in this database.
        """
        last, pos = self.sequence(connection, locked if broken is None else broken)
        if broken is not None:
            if last != broken:
                raise ConflictError("the audit database has moved on since the break was declared")
            last = across_break(broken, locked)
        self._failpoint("commit.begun")
        growing = self._heads(connection, {leaf.log_id for leaf in batch}, last)
        known = _known(connection, batch) if look_up else {}
        places, taken = self._assign(connection, batch, growing, known, look_up=look_up)
        if not taken:
            return Committed(last, places, _result_heads(growing), wrote=False)
        new, heads = self._write(connection, taken, growing, last, pos)
        return Committed(new, places, heads, wrote=True)

    def sequence(self, connection: Connection, locked: LockState | None) -> tuple[LockState, int]:
        """Become the only writer for the rest of the transaction; return the last commit and its last position.

        Raises:
            LogForkError: ``locked`` is not in this database.
        """
        if connection.dialect.name != "sqlite":  # there BEGIN IMMEDIATE is the lock
            connection.execute(WRITER_LOCK)
        row = self._sql.last.run(connection, {}).first()
        last, pos = (GENESIS, 0) if row is None else (LockState(as_int(row.seq), as_bytes(row.chain)), as_int(row.pos))
        if locked is None:
            raise LogForkError("the lock store is lost")
        _check_locked(connection, last, locked)
        return last, pos

    def _assign(
        self,
        connection: Connection,
        batch: Sequence[NewLeaf],
        growing: dict[int, _Growth],
        known: dict[str, tuple[int, int, bytes]],
        *,
        look_up: bool,
    ) -> tuple[tuple[Placed | BulkheadError, ...], list[tuple[NewLeaf, int]]]:
        """Give each leaf its index; return the places in order, and the leaves that are new."""
        places: list[Placed | BulkheadError] = []
        taken: list[tuple[NewLeaf, int]] = []
        for leaf in batch:
            if (there := known.get(leaf.record_id)) is not None:
                places.append(_again(leaf, there))
                continue
            growth = growing.get(leaf.log_id)
            if leaf.opens is not None and (growth is not None or (look_up and not _may_open(connection, leaf))):
                places.append(ConflictError(f"the log {leaf.opens.origin}, or its slot, is taken"))
                continue
            if leaf.opens is not None:
                growth = growing[leaf.log_id] = _Growth(leaf.opens.origin, Frontier(), opened=True)
                connection.execute(
                    insert(audit_log),
                    {
                        "log_id": leaf.log_id,
                        "origin": leaf.opens.origin,
                        "tenant": leaf.opens.tenant,
                        "epoch": leaf.opens.epoch,
                        "slot": leaf.opens.slot,
                    },
                )
            if growth is None:
                places.append(NotFoundError(f"there is no log {leaf.log_id}"))
                continue
            if leaf.round_heads and connection.execute(ROUND_AT, {"at": leaf.round_heads[0].round}).first():
                places.append(ConflictError(f"round {leaf.round_heads[0].round} is made already"))
                continue
            index = growth.base.size + len(growth.hashes)
            growth.hashes.append(leaf.leaf_hash)
            known[leaf.record_id] = (leaf.log_id, index, leaf.leaf_hash)
            places.append(Placed(leaf.log_id, index))
            taken.append((leaf, index))
        return tuple(places), taken

    def _write(
        self,
        connection: Connection,
        taken: list[tuple[NewLeaf, int]],
        growing: dict[int, _Growth],
        last: LockState,
        pos: int,
    ) -> tuple[LockState, tuple[Head, ...]]:
        self._sql.add_leaves.run(
            connection,
            [
                (pos + offset, leaf.log_id, index, leaf.record_id, leaf.leaf, leaf.leaf_hash)
                for offset, (leaf, index) in enumerate(taken, start=1)
            ],
        )
        self._failpoint("commit.leaves")
        rounds = [
            {"round": head.round, "log_id": head.log_id, "size": head.size}
            for leaf, _ in taken
            for head in leaf.round_heads
        ]
        if rounds:
            connection.execute(insert(audit_round), rounds)
        grown = {log_id: growth for log_id, growth in growing.items() if growth.hashes}
        frontiers = {log_id: growth.base.extend(growth.hashes) for log_id, growth in grown.items()}
        self._write_tiles(connection, grown)
        self._failpoint("commit.tiles")
        self._write_heads(connection, grown, frontiers)
        self._failpoint("commit.heads")
        chain = next_chain(last.chain, ((grown[log_id].origin, frontiers[log_id]) for log_id in grown))
        new = LockState(last.seq + 1, chain)
        self._sql.add_commit.run(connection, {"seq": new.seq, "pos": pos + len(taken), "chain": chain})
        self._failpoint("commit.chained")
        heads = {log_id: frontiers.get(log_id, growth.base) for log_id, growth in growing.items()}
        self._seq = new.seq
        self._fronts.update((log_id, (growing[log_id].origin, frontier)) for log_id, frontier in heads.items())
        return new, tuple(Head(log_id, frontier) for log_id, frontier in heads.items())

    def _heads(self, connection: Connection, ids: Collection[int], last: LockState) -> dict[int, _Growth]:
        if last.seq != self._seq:  # another writer was here, or the outcome of the last commit was not known
            self._fronts.clear()
        growing = {log_id: _Growth(*self._fronts[log_id]) for log_id in ids if log_id in self._fronts}
        unknown = sorted(log_id for log_id in ids if log_id not in growing)
        if unknown:
            for row in connection.execute(HEADS_OF, {"ids": unknown}):
                growing[row.log_id] = _Growth(
                    as_text(row.origin), Frontier.decode(as_int(row.size), as_bytes(row.frontier))
                )
        return growing

    def _write_heads(
        self, connection: Connection, grown: Mapping[int, _Growth], frontiers: Mapping[int, Frontier]
    ) -> None:
        opened: list[dict[str, object]] = []
        moved: list[tuple[int, int, bytes]] = []
        for log_id, growth in grown.items():
            size, nodes = frontiers[log_id].size, frontiers[log_id].encode()
            if growth.opened:
                opened.append({"log_id": log_id, "size": size, "frontier": nodes})
            else:
                moved.append((log_id, size, nodes))
        if opened:
            self._sql.add_head.run_many(connection, opened)
        if moved:
            self._sql.set_heads(connection, moved)

    def _write_tiles(self, connection: Connection, grown: Mapping[int, _Growth]) -> None:
        for log_id, growth in grown.items():
            old_size = growth.base.size
            for level, number in completed_tiles(old_size, old_size + len(growth.hashes)):
                if level == 0:
                    hashes = self._leaf_tile(connection, log_id, number, growth)
                else:
                    below = range(number * TILE_WIDTH, (number + 1) * TILE_WIDTH)
                    hashes = [self._root(connection, log_id, level - 1, child) for child in below]
                row = {"log_id": log_id, "level": level, "n": number, "hashes": join_tile(hashes)}
                self._sql.add_tile.run(connection, row)
                self._remember((log_id, level, number), tree_root(hashes))

    def _leaf_tile(self, connection: Connection, log_id: int, number: int, growth: _Growth) -> list[bytes]:
        low, high, old_size = number * TILE_WIDTH, (number + 1) * TILE_WIDTH, growth.base.size
        hashes: list[bytes] = []
        if low < old_size:  # the tile's first leaves are from earlier commits
            found = self._sql.hashes.run(connection, {"log": log_id, "low": low, "high": old_size}).scalars()
            hashes = [as_bytes(value) for value in found]
        return hashes + growth.hashes[max(low - old_size, 0) : high - old_size]

    def _root(self, connection: Connection, log_id: int, level: int, number: int) -> bytes:
        root = self._roots.get((log_id, level, number))
        if root is None:
            data = self._sql.tile.run(connection, {"log": log_id, "lev": level, "num": number}).scalar()
            if data is None:
                raise InternalError(f"log {log_id} has no tile {level}/{number}")
            root = tree_root(split_tile(as_bytes(data)))
            self._remember((log_id, level, number), root)
        return root

    def _remember(self, key: tuple[int, int, int], root: bytes) -> None:
        # A root of a transaction that is rolled back is overwritten when the tile is made again.
        self._roots[key] = root
        if len(self._roots) > _MAX_ROOTS:
            self._roots.popitem(last=False)


def _check_locked(connection: Connection, last: LockState, locked: LockState) -> None:
    if last == locked:
        return
    if locked.seq < last.seq:
        chain = GENESIS.chain if locked.seq == 0 else connection.execute(CHAIN_AT, {"at": locked.seq}).scalar()
        if chain == locked.chain:
            return  # commits that were never acknowledged: an ordinary crash
    raise LogForkError(
        f"the audit database does not hold commit {locked.seq} of the lock store: it was restored from a backup, "
        "replaced or edited; writing has stopped"
    )


def _known(connection: Connection, batch: Sequence[NewLeaf]) -> dict[str, tuple[int, int, bytes]]:
    rows = connection.execute(PLACES_OF, {"ids": [leaf.record_id for leaf in batch]})
    return {row.record_id: (as_int(row.log_id), as_int(row.idx), as_bytes(row.leaf_hash)) for row in rows}


def _again(leaf: NewLeaf, there: tuple[int, int, bytes]) -> Placed | BulkheadError:
    log_id, index, digest = there
    if (log_id, digest) != (leaf.log_id, leaf.leaf_hash):
        return ConflictError(f"record {leaf.record_id} is there already with other content")
    return Placed(log_id, index)


def _may_open(connection: Connection, leaf: NewLeaf) -> bool:
    opens = leaf.opens
    rows = connection.execute(select(audit_log))
    return opens is not None and not any(
        row.log_id == opens.log_id
        or row.origin == opens.origin
        or (opens.slot is not None and (row.slot, row.epoch) == (opens.slot, opens.epoch))
        or (opens.tenant is not None and (row.tenant, row.epoch) == (opens.tenant, opens.epoch))
        for row in rows
    )


def _result_heads(growing: Mapping[int, _Growth]) -> tuple[Head, ...]:
    return tuple(Head(log_id, growth.base) for log_id, growth in growing.items())
